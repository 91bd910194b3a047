//! The events that sinks receive: `CloudEvents` 1.0 in the binary mode of HTTP.
//!
//! Source: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>

use super::signer::Signer;
use crate::api::Time;
use data_encoding::BASE32_NOPAD;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use ring::digest;
use std::borrow::Cow;
use strum::IntoStaticStr;

/// The characters that the HTTP binding encodes in the value of a header: space, `"`, `%`, and all that is not printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr)]
pub enum EventType {
    /// A contact has sent a message to a conversation.
    #[strum(serialize = "dev.switchboard.message.received.v1")]
    Received,
    /// A message has created a conversation.
    #[strum(serialize = "dev.switchboard.conversation.created.v1")]
    Created,
    /// No conversation gets a message.
    #[strum(serialize = "dev.switchboard.message.unroutable.v1")]
    Unroutable,
    /// Another conversation holds the binding of a conversation.
    #[strum(serialize = "dev.switchboard.conversation.already_bound.v1")]
    AlreadyBound,
    /// A conversation that waited for its binding holds it now.
    #[strum(serialize = "dev.switchboard.conversation.bound.v1")]
    Bound,
    /// A conversation has no participant.
    #[strum(serialize = "dev.switchboard.conversation.unassigned.v1")]
    Unassigned,
    /// A conversation became Inactive.
    #[strum(serialize = "dev.switchboard.conversation.inactive.v1")]
    Inactive,
    /// A conversation became Active again.
    #[strum(serialize = "dev.switchboard.conversation.reactivated.v1")]
    Reactivated,
    /// A conversation became Closed.
    #[strum(serialize = "dev.switchboard.conversation.closed.v1")]
    Closed,
    /// A closed conversation was deleted because its time to live elapsed.
    #[strum(serialize = "dev.switchboard.conversation.expired.v1")]
    Expired,
}

/// An event. Its addresses stand in `data` alone, because intermediaries log attributes.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its type.
    pub type_: EventType,
    /// Its source: `/proxyaddresses/NAME` or `/sources/SOURCE` of a message, `/conversations` of a change of a conversation.
    pub source: String,
    /// Its ID. A repeated event has the same source and ID.
    pub id: String,
    /// The conversation, as `NAMESPACE/NAME`.
    pub subject: Option<String>,
    /// When the message was sent, or the conversation changed.
    pub time: Option<Time>,
    /// The UID of the conversation.
    pub partition_key: Option<String>,
    /// Its data, in JSON. It is the body of the request.
    pub data: Bytes,
}

impl Event {
    /// The headers of the request, which `signer` signs at `now`.
    #[must_use]
    pub fn headers(&self, signer: &Signer, now: Time) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(16);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let type_: &'static str = self.type_.into();
        let time = self.time.map(|time| time.to_string());
        let attributes = [
            ("ce-specversion", Some("1.0")),
            ("ce-type", Some(type_)),
            ("ce-source", Some(self.source.as_str())),
            ("ce-id", Some(self.id.as_str())),
            ("ce-subject", self.subject.as_deref()),
            ("ce-time", time.as_deref()),
            ("ce-partitionkey", self.partition_key.as_deref()),
        ];
        for (name, value) in attributes {
            // Encoded, every text is the value of a header.
            let value = value.and_then(|value| match Cow::from(utf8_percent_encode(value, ENCODED)) {
                Cow::Borrowed(value) => HeaderValue::from_str(value).ok(),
                Cow::Owned(value) => HeaderValue::try_from(value).ok(),
            });
            if let Some(value) = value {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers.extend(signer.headers(|| self.webhook_id(), &self.data, now));
        headers
    }

    /// The ID of the webhook, by which a receiver recognises a repeated one. It is derived from source and ID.
    fn webhook_id(&self) -> String {
        let mut hash = digest::Context::new(&digest::SHA256);
        for part in [&self.source, &self.id] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut encoded = BASE32_NOPAD.encode(hash.finish().as_ref()).to_ascii_lowercase();
        encoded.truncate(26);
        format!("msg_{encoded}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            type_: EventType::Received,
            source: "/proxyaddresses/sales-sms".to_owned(),
            id: "a \"%\" ü".to_owned(),
            subject: Some("sales/alice".to_owned()),
            time: None,
            partition_key: Some("0f3c9a52-6f0e-4c1d-8a77-9b2f7e5d1c00".to_owned()),
            data: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn attributes_are_headers_with_encoded_values() {
        let headers = event().headers(&Signer::default(), Time::EPOCH);
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(text("ce-specversion"), Some("1.0"));
        assert_eq!(text("ce-type"), Some("dev.switchboard.message.received.v1"));
        assert_eq!(text("ce-id"), Some("a%20%22%25%22%20%C3%BC"));
        assert_eq!(text("ce-subject"), Some("sales/alice"));
        assert_eq!((text("ce-time"), text("webhook-id")), (None, None));
    }
}
