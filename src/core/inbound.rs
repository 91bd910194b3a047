//! Inbound messages: where a message goes, which conversation it creates, and when it is reported as activity. As all of `core`, it has
//! no client, no async code and no clock.

mod activity;
mod autocreate;
mod route;

pub use activity::activity_window;
pub use autocreate::{RateLimit, assignee, conversation};
pub use route::{
    BindingStatus, Creation, OwnConversation, Recipient, Report, RouteObservation, RouteStep, Routing, WaitingSource,
};

use super::binding::BindingName;
use data_encoding::BASE32_NOPAD;
use ring::digest;
use strum::{IntoStaticStr, VariantArray};

/// Why a message is delivered to no conversation. It is told to a sink instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
pub enum Unroutable {
    /// No ProxyAddress declares the address of the business.
    UnknownProxyAddress,
    /// The ProxyAddress does not accept messages from the source.
    SourceNotAccepted,
    /// An address is not in the form of its channel.
    InvalidAddress,
    /// No conversation holds the binding, and the ProxyAddress creates none.
    NoConversation,
    /// The ProxyAddress has created as many conversations as it may within a minute.
    RateLimited,
    /// The API server does not admit the conversation that the message would create: a permission or a quota is missing, or its namespace may
    /// not use the address, or does not exist.
    NotAdmitted,
    /// The conversation that the message created before is closed.
    ConversationClosed,
    /// Another object has the name of the conversation that the message would create.
    NameTaken,
    /// It could not be found out in time who holds the binding, and the source does not send a message again.
    Undecided,
}

impl Unroutable {
    /// The reason as events and metrics spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What distinguishes a message from all others: a repeated message has the same.
#[derive(Clone, Copy, Debug)]
pub struct MessageKey<'a> {
    /// The name of the source.
    pub source: &'a str,
    /// The `source` of the `CloudEvent`, if it is one: events of different sources may have the same ID.
    pub event_source: Option<&'a str>,
    /// The ID that the provider gave to the message.
    pub id: &'a str,
    /// The kind of event, where one message can have several.
    pub kind: &'a str,
}

impl MessageKey<'_> {
    /// The name of the conversation that the message creates: `in-` and the first 26 characters of the lower-case RFC 4648 base32 of
    /// SHA-256 over the name of the source, the `source` of the event (or nothing), ID, kind and the name of the binding, each preceded by
    /// its length in bytes as a 64-bit big-endian integer. So a repeated message cannot create a second conversation.
    #[must_use]
    pub fn conversation_name(&self, binding: &BindingName) -> String {
        let mut hash = digest::Context::new(&digest::SHA256);
        let event_source = self.event_source.unwrap_or_default();
        for part in [self.source, event_source, self.id, self.kind, binding.as_str()] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut encoded = BASE32_NOPAD.encode(hash.finish().as_ref()).to_ascii_lowercase();
        encoded.truncate(26);
        format!("in-{encoded}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Channel;
    use crate::core::binding::Binding;
    use std::collections::HashSet;

    #[test]
    fn conversation_name_depends_on_each_part_and_nothing_else() {
        let binding = |contact| Binding::parse(Channel::Sms, contact, "+15017122661").unwrap();
        let name = |source, id, kind, contact| {
            MessageKey { source, event_source: None, id, kind }.conversation_name(&binding(contact).name())
        };
        let alice = "+15558675310";
        let names = [
            name("twilio", "SM1", "message", alice),
            name("meta", "SM1", "message", alice),
            name("twilio", "SM2", "message", alice),
            name("twilio", "SM1", "reaction", alice),
            name("twilio", "SM1", "message", "+15558675311"),
            name("twilioSM", "1", "message", alice),
            MessageKey { source: "twilio", event_source: Some("twilio"), id: "SM1", kind: "message" }
                .conversation_name(&binding(alice).name()),
        ];
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        assert_eq!(names[0], name("twilio", "SM1", "message", alice));
        let is_label =
            |name: &String| name.len() == 29 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        assert!(names.iter().all(is_label), "{names:?}");
    }
}
