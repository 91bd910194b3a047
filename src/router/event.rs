//! The events that sinks receive: `CloudEvents` 1.0 in the binary mode of HTTP, signed as Standard Webhooks say.
//!
//! Sources: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>,
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use crate::api::Time;
use data_encoding::{BASE32_NOPAD, BASE64};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use ring::{digest, hmac};
use serde_json::Value;
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
}

/// An event. Its addresses stand in `data` alone, because intermediaries log attributes.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its type.
    pub type_: EventType,
    /// Its source: `/proxyaddresses/NAME`, or `/sources/SOURCE`.
    pub source: String,
    /// Its ID. A repeated event has the same source and ID.
    pub id: String,
    /// The conversation, as `NAMESPACE/NAME`.
    pub subject: Option<String>,
    /// When the message was sent.
    pub time: Option<Time>,
    /// The UID of the conversation.
    pub partition_key: Option<String>,
    /// Its data.
    pub data: Value,
}

impl Event {
    /// The body of the request.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        self.data.to_string().into_bytes()
    }

    /// The headers of the request with `body`, which `signer` signs at `now`.
    #[must_use]
    pub fn headers(&self, body: &[u8], signer: &Signer, now: Time) -> HeaderMap {
        let mut headers = HeaderMap::new();
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
            let value = value.and_then(|value| utf8_percent_encode(value, ENCODED).to_string().parse().ok());
            if let Some(value) = value {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers.extend(signer.headers(&self.webhook_id(), body, now));
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

/// Signs events. Without secrets, it signs nothing.
#[derive(Clone, Default)]
pub struct Signer(Vec<hmac::Key>);

/// Why a signing secret is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a signing secret must be `whsec_` and the base64 of 24 to 64 bytes, as `echo whsec_$(openssl rand -base64 32)` makes"
)]
pub struct InvalidSecret;

impl Signer {
    /// Signs by each of `secrets`, so that they can be replaced one after the other.
    ///
    /// # Errors
    /// If a secret is not valid.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, InvalidSecret> {
        let key = |secret: &[u8]| {
            let encoded = secret.trim_ascii().strip_prefix(b"whsec_").ok_or(InvalidSecret)?;
            let bytes = BASE64.decode(encoded).map_err(|_| InvalidSecret)?;
            if (24..=64).contains(&bytes.len()) {
                Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
            } else {
                Err(InvalidSecret)
            }
        };
        Ok(Self(secrets.into_iter().map(key).collect::<Result<_, _>>()?))
    }

    fn headers(&self, id: &str, body: &[u8], now: Time) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.0.is_empty() {
            return headers;
        }
        let timestamp = now.timestamp().as_second().to_string();
        let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
        let signature = |key| format!("v1,{}", BASE64.encode(hmac::sign(key, &signed).as_ref()));
        let signatures = self.0.iter().map(signature).collect::<Vec<_>>().join(" ");
        for (name, value) in [("webhook-id", id), ("webhook-timestamp", &timestamp), ("webhook-signature", &signatures)]
        {
            if let Ok(value) = value.parse() {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event() -> Event {
        Event {
            type_: EventType::Received,
            source: "/proxyaddresses/sales-sms".to_owned(),
            id: "a \"%\" ü".to_owned(),
            subject: Some("sales/alice".to_owned()),
            time: None,
            partition_key: Some("0f3c9a52-6f0e-4c1d-8a77-9b2f7e5d1c00".to_owned()),
            data: json!({"raw": "ü"}),
        }
    }

    #[test]
    fn attributes_are_headers_with_encoded_values() {
        let headers = event().headers(b"{}", &Signer::default(), Time::EPOCH);
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(text("ce-specversion"), Some("1.0"));
        assert_eq!(text("ce-type"), Some("dev.switchboard.message.received.v1"));
        assert_eq!(text("ce-id"), Some("a%20%22%25%22%20%C3%BC"));
        assert_eq!(text("ce-subject"), Some("sales/alice"));
        assert_eq!((text("ce-time"), text("webhook-id")), (None, None));
        assert_eq!(event().body(), r#"{"raw":"ü"}"#.as_bytes());
    }

    #[test]
    fn signature_matches_the_example_of_the_specification() {
        let signer = Signer::new([&b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"[..]]).unwrap();
        let body = br#"{"test": 2432232314}"#;
        let at = Time::new(k8s_openapi::jiff::Timestamp::from_second(1_614_265_330).unwrap());
        let headers = signer.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", body, at);
        assert_eq!(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(headers["webhook-timestamp"], "1614265330");
    }

    #[test]
    fn each_secret_signs_and_an_invalid_one_is_an_error() {
        let secrets = [&b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"[..], b"whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"];
        let headers = event().headers(b"{}", &Signer::new(secrets).unwrap(), Time::EPOCH);
        assert_eq!(headers["webhook-signature"].to_str().unwrap().split(' ').count(), 2);
        assert_eq!(headers["webhook-id"].len(), 30);
        for invalid in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_AAEC", "whsec_?"] {
            assert!(Signer::new([invalid.as_bytes()]).is_err(), "{invalid}");
        }
    }
}
