//! Events (events.k8s.io/v1): what a person would want to be told of a conversation, each notice once.
//!
//! The name of an Event is derived from the notice, so that a replica that tells it again changes nothing.

use crate::api::{Conversation, FIELD_MANAGER, Time};
use crate::core::lifecycle::Notice;
use data_encoding::BASE32_NOPAD;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use ring::digest;

/// The longest note that an Event may have, in bytes.
const MAX_NOTE_BYTES: usize = 1024;
/// The longest name that a conversation lends to its Events, so that theirs stays within 253 characters.
const MAX_NAME_LENGTH: usize = 220;

/// Publishes notices as Events.
#[derive(Clone)]
pub struct Events {
    client: Client,
    instance: String,
}

impl Events {
    /// What tells facts in the name of the replica `instance`.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance }
    }

    /// Tells a notice of the conversation `name` in `namespace`. It has been told as well where it had been before.
    ///
    /// # Errors
    /// Where the API server does not take the Event.
    pub async fn tell(&self, namespace: &str, name: &str, uid: &str, notice: &Notice) -> kube::Result<()> {
        let event = self.event(namespace, name, uid, notice);
        let events = Api::<Event>::namespaced(self.client.clone(), namespace);
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match events.create(&parameters, &event).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            result => result.map(drop),
        }
    }

    fn event(&self, namespace: &str, name: &str, uid: &str, notice: &Notice) -> Event {
        let Notice { reason, time, note } = notice;
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(name, uid, reason.as_str(), *time)),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(time.timestamp())),
            reporting_controller: Some("switchboard.dev/switchboard".to_owned()),
            reporting_instance: Some(self.instance.clone()),
            action: Some("Reconcile".to_owned()),
            reason: Some(reason.as_str().to_owned()),
            type_: Some(if reason.is_warning() { "Warning" } else { "Normal" }.to_owned()),
            note: Some(cut(note, MAX_NOTE_BYTES).to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(Conversation::api_version(&()).into_owned()),
                kind: Some(Conversation::kind(&()).into_owned()),
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            }),
            ..Event::default()
        }
    }
}

fn event_name(conversation: &str, uid: &str, reason: &str, time: Time) -> String {
    let hash = digest::digest(&digest::SHA256, format!("{uid} {reason} {time}").as_bytes());
    let hash = BASE32_NOPAD.encode(&hash.as_ref()[..10]).to_ascii_lowercase();
    format!("{}.{hash}", cut(conversation, MAX_NAME_LENGTH).trim_end_matches(['.', '-']))
}

/// `text`, or as much of its beginning as fits into `bytes`.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_fact_has_the_same_name_and_another_has_another() {
        let later = Time::EPOCH.after(1);
        let names = [
            event_name("alice", "u1", "Closed", Time::EPOCH),
            event_name("alice", "u2", "Closed", Time::EPOCH),
            event_name("alice", "u1", "Inactive", Time::EPOCH),
            event_name("alice", "u1", "Closed", later),
        ];
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        assert_eq!(names[3], event_name("alice", "u1", "Closed", later));
        assert!(event_name(&"a-".repeat(126), "u1", "Closed", later).len() <= 253);
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(cut("abc", 3), "abc");
    }
}
