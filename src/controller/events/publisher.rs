//! The Event of a notice. Its name is derived from the notice, so retries are idempotent.

use crate::api::{Conversation, FIELD_MANAGER, Time};
use crate::core::lifecycle::Notice;
use data_encoding::BASE32_NOPAD;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use ring::digest;

/// The longest note of an Event, in bytes.
const MAX_NOTE_BYTES: usize = 1024;
/// The longest part of a conversation's name in the names of its Events, so that these have at most 253 characters.
const MAX_NAME_LENGTH: usize = 220;

/// Creates Events in the name of a replica.
#[derive(Clone)]
pub struct EventPublisher {
    client: Client,
    instance: String,
}

impl EventPublisher {
    /// A publisher for the replica `instance`.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance }
    }

    /// Creates the Event of a notice of the conversation `name` in `namespace`. It is no error if the Event exists.
    ///
    /// # Errors
    /// If the API server does not accept the Event.
    pub async fn publish(&self, namespace: &str, name: &str, uid: &str, notice: &Notice) -> kube::Result<()> {
        let event = self.event(namespace, name, uid, notice);
        let events = Api::<Event>::namespaced(self.client.clone(), namespace);
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match events.create(&parameters, &event).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            result => result.map(drop),
        }
    }

    fn event(&self, namespace: &str, name: &str, uid: &str, notice: &Notice) -> Event {
        let Notice { reason, time, state_reason: _, note } = notice;
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
            note: Some(truncated(note, MAX_NOTE_BYTES).to_owned()),
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
    format!("{}.{hash}", truncated(conversation, MAX_NAME_LENGTH).trim_end_matches(['.', '-']))
}

/// `text`, truncated between two characters to at most `bytes` bytes.
fn truncated(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn event_names_are_deterministic_and_distinct() {
        let later = Time::EPOCH.after(Duration::from_millis(1));
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
    fn long_note_is_truncated_between_characters() {
        assert_eq!(truncated("äöü", 3), "ä");
        assert_eq!(truncated("abc", 3), "abc");
    }
}
