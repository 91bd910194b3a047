//! The data of the events about messages, in JSON. It reads nothing but a message and its conversation.

use super::source::{InboundMessage, Json};
use crate::api::{Channel, State};
use crate::core::inbound::{Recipient, Unroutable};
use hyper::body::Bytes;
use serde::Serialize;

#[derive(Serialize)]
struct Conversation<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    state: State,
    participants: &'a [String],
    created: bool,
}

#[derive(Serialize)]
struct ReceivedData<'a> {
    conversation: Conversation<'a>,
    kind: &'a str,
    channel: Channel,
    contact: &'a str,
    proxy: &'a str,
    raw: &'a Json,
}

#[derive(Serialize)]
struct UnroutableData<'a> {
    reason: &'a str,
    message: Option<&'a str>,
    kind: &'a str,
    channel: Channel,
    contact: &'a str,
    proxy: &'a str,
    raw: &'a Json,
}

/// The data of the event about a message that a conversation gets. `is_created` tells whether the message created it.
///
/// # Errors
/// It cannot fail, since every key is a string.
pub fn received(message: &InboundMessage, recipient: &Recipient, is_created: bool) -> Result<Bytes, serde_json::Error> {
    let Recipient { conversation, uid, state, participants } = recipient;
    let (namespace, name) = (conversation.namespace.as_str(), conversation.name.as_str());
    let conversation = Conversation { namespace, name, uid, state: *state, participants, created: is_created };
    let InboundMessage { kind, channel, contact, proxy, raw, .. } = message;
    let data = ReceivedData { conversation, kind, channel: *channel, contact, proxy, raw };
    serde_json::to_vec(&data).map(Bytes::from)
}

/// The data of the event about a message that no conversation gets, for this `reason`. The text `cause` is the API server's.
///
/// # Errors
/// It cannot fail, since every key is a string.
pub fn unroutable(
    message: &InboundMessage,
    reason: Unroutable,
    cause: Option<&str>,
) -> Result<Bytes, serde_json::Error> {
    let InboundMessage { kind, channel, contact, proxy, raw, .. } = message;
    let data = UnroutableData { reason: reason.as_str(), message: cause, kind, channel: *channel, contact, proxy, raw };
    serde_json::to_vec(&data).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ConversationReference;
    use crate::router::source::{Keys, Parsed, Source, SourceRequest, SourceType, parse};
    use hyper::Method;
    use hyper::header::HeaderMap;

    /// A message that a gateway sent as a `CloudEvent`.
    fn message() -> InboundMessage {
        let keys = Keys::of(SourceType::CloudEvents, [("token".to_owned(), b"a".to_vec())].into()).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer a"),
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/gateway"),
            ("ce-type", "dev.switchboard.message.v1"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let body = Bytes::from(r#"{"channel":"Chat","contact":"alice","proxy":"desk","text":"ü"}"#);
        let request = SourceRequest { method: Method::POST, query: None, headers, body };
        let source = Source::new(SourceType::CloudEvents, None).unwrap();
        let Ok(Parsed::Messages(mut messages)) = parse(&source, &keys, &request) else { panic!() };
        messages.pop().unwrap()
    }

    #[test]
    fn data_have_the_message_as_it_was_sent() {
        let recipient = Recipient {
            conversation: ConversationReference { namespace: "sales".to_owned(), name: "alice".to_owned() },
            uid: "u1".to_owned(),
            state: State::Active,
            participants: vec!["agent-7".to_owned()],
        };
        let rest = r#""kind":"message","channel":"Chat","contact":"alice","proxy":"desk","raw":{"channel":"Chat","contact":"alice","proxy":"desk","text":"ü"}}"#;
        let conversation = r#"{"namespace":"sales","name":"alice","uid":"u1","state":"Active","participants":["agent-7"],"created":true}"#;
        let expected = format!(r#"{{"conversation":{conversation},{rest}"#);
        assert_eq!(received(&message(), &recipient, true).unwrap(), expected);
        let expected = format!(r#"{{"reason":"NoConversation","message":null,{rest}"#);
        assert_eq!(unroutable(&message(), Unroutable::NoConversation, None).unwrap(), expected);
    }
}
