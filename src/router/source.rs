//! Sources: authenticates the requests of message providers, and parses them into messages. It depends on nothing but the request and
//! the keys, so it is pure.
//!
//! `keys` has the secrets, and `public_url` the URL that Twilio signs. `twilio`, `meta` and `cloud_events` parse one type of source each.
//! None of them reads a message before the request is authenticated.

mod cloud_events;
mod json;
mod keys;
mod meta;
mod public_url;
mod twilio;

pub use json::Json;
pub use keys::{InvalidKeys, Keys};
pub use public_url::InvalidPublicUrl;

use crate::api::{Channel, Time};
use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use keys::KeysOfType;
use public_url::PublicUrl;
use serde::Deserialize;

/// The maximum number of messages in one request, as in Meta's batches.
pub const MAX_MESSAGES: usize = 1000;

/// The maximum number of characters of the ID of a message, and of the source of a `CloudEvent`.
pub const MAX_ID_LENGTH: usize = 512;

/// The maximum number of bytes of the value of a header that is read.
const MAX_HEADER_LENGTH: usize = 4096;

/// The [`InboundMessage::kind`] of a message, unlike those of an event about a message.
const MESSAGE: &str = "message";

/// A source, as it is configured.
#[derive(Clone, Debug)]
pub struct Source {
    type_: SourceType,
    /// A source of type Twilio has one.
    public_url: Option<PublicUrl>,
}

impl Source {
    /// The source of type `type_` that the provider calls at `public_url`. Only Twilio signs the URL; for the other types it is not read.
    pub fn new(type_: SourceType, public_url: Option<&str>) -> Result<Self, InvalidPublicUrl> {
        let public_url = match type_ {
            SourceType::Twilio => Some(PublicUrl::parse(public_url.unwrap_or_default())?),
            SourceType::Meta | SourceType::CloudEvents => None,
        };
        Ok(Self { type_, public_url })
    }

    /// Whether the provider sends a message again that was answered with a 503.
    #[must_use]
    pub fn repeats(&self) -> bool {
        match self.type_ {
            SourceType::Twilio => self.public_url.as_ref().is_some_and(PublicUrl::repeats),
            SourceType::Meta | SourceType::CloudEvents => true,
        }
    }

    /// Its type.
    #[must_use]
    pub const fn type_(&self) -> SourceType {
        self.type_
    }
}

/// Authenticates `request` by `keys`, and parses it. Keys of another type than the source's authenticate nothing.
pub fn parse(source: &Source, keys: &Keys, request: &SourceRequest) -> Result<Parsed, Rejection> {
    match (source.type_, &source.public_url, keys.of_type()) {
        (SourceType::Twilio, Some(url), KeysOfType::Twilio { auth_tokens, shared_keys }) => {
            twilio::parse(url, auth_tokens, shared_keys, request)
        }
        (SourceType::Meta, _, KeysOfType::Meta { app_secrets, verify_tokens }) => {
            meta::parse(app_secrets, verify_tokens, request)
        }
        (SourceType::CloudEvents, _, KeysOfType::CloudEvents { tokens }) => cloud_events::parse(tokens, request),
        _ => Err(Rejection::Unauthenticated),
    }
}

/// A request of a provider.
#[derive(Clone, Debug)]
pub struct SourceRequest {
    /// The method.
    pub method: Method,
    /// The query of the URL, without `?`.
    pub query: Option<String>,
    /// The header.
    pub headers: HeaderMap,
    /// The body, as it was received.
    pub body: Bytes,
}

/// The type of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum SourceType {
    /// Webhooks of Twilio.
    Twilio,
    /// Webhooks of Meta: WhatsApp Cloud API, Messenger and Instagram.
    Meta,
    /// `CloudEvents` over HTTP.
    CloudEvents,
}

/// What a request contains.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// Messages, at most [`MAX_MESSAGES`]. None, if the request has only what needs no routing: status callbacks, or echoes of messages
    /// that the business sent.
    Messages(Vec<InboundMessage>),
    /// A challenge that proves who owns the URL, to be sent back as the response.
    Challenge(String),
}

/// A message that a contact has sent, or an event about one, such as a reaction.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundMessage {
    /// The `source` of the `CloudEvent`; `None` if the name of the source stands for it.
    pub source: Option<String>,
    /// The ID that the provider gave to the message. An event about a message has an ID of its own, which contains that of the message. A
    /// repetition has the same ID. From 1 to [`MAX_ID_LENGTH`] characters, none of them a control character.
    pub id: String,
    /// `message`; `reaction`, `postback`, `edit` or `deletion` for an event about a message; `system` for a notification of the provider;
    /// `malformed` for a part of a batch that cannot be read, whose contact and proxy are empty.
    pub kind: String,
    /// The channel.
    pub channel: Channel,
    /// The address of the contact, in the canonical form of the channel as far as the provider's form is known. It is not checked. Empty,
    /// if the provider names none: then no conversation can be bound for it.
    pub contact: String,
    /// The address of the business, likewise.
    pub proxy: String,
    /// When the message was sent, according to the provider.
    pub time: Option<Time>,
    /// The message as the provider sent it.
    pub raw: Json,
}

impl InboundMessage {
    /// Whether it may open a conversation. What happens to a message later, such as a reaction or a deletion, may not.
    #[must_use]
    pub fn opens(&self) -> bool {
        matches!(self.kind.as_str(), MESSAGE | "postback")
    }
}

/// Why a request is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// 403: the signature or the token is missing or wrong.
    Unauthenticated,
    /// 405: the method is not the one of the source.
    Method,
    /// 415: the media type is not the one of the source.
    MediaType,
    /// 413: it has more messages than [`MAX_MESSAGES`].
    TooMany,
    /// 400: the body is malformed. The text says why, without any part of the body.
    Malformed(&'static str),
}

/// Whether `text` is bounded as an ID must be, and has no control character, so that it can be the value of an attribute of a `CloudEvent`.
fn is_id(text: &str) -> bool {
    let length = text.chars().take(MAX_ID_LENGTH + 1).count();
    (1..=MAX_ID_LENGTH).contains(&length) && !text.chars().any(char::is_control)
}

/// A header that is repeated, or longer than [`MAX_HEADER_LENGTH`].
struct InvalidHeader;

/// The value of the header `name`; `None` if the request has no such header. A repeated header is ambiguous, so it is an error.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a [u8]>, InvalidHeader> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().map(HeaderValue::as_bytes);
    let is_too_long = value.is_some_and(|value| value.len() > MAX_HEADER_LENGTH);
    if is_too_long || values.next().is_some() { Err(InvalidHeader) } else { Ok(value) }
}

/// The media type of the body without its parameters, in lower case.
fn media_type(headers: &HeaderMap) -> Result<String, Rejection> {
    let value = header(headers, CONTENT_TYPE.as_str()).ok().flatten().ok_or(Rejection::MediaType)?;
    essence(std::str::from_utf8(value).map_err(|_| Rejection::MediaType)?).ok_or(Rejection::MediaType)
}

/// The media type `text` without its parameters, in lower case.
fn essence(text: &str) -> Option<String> {
    text.split(';').next().map(|essence| essence.trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_another_type_authenticate_nothing() {
        let types =
            [(SourceType::Twilio, "authToken"), (SourceType::Meta, "appSecret"), (SourceType::CloudEvents, "token")];
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer a".parse().unwrap());
        headers.insert("content-type", "application/cloudevents-batch+json".parse().unwrap());
        let request = SourceRequest { method: Method::POST, query: None, headers, body: Bytes::from_static(b"[]") };
        for (type_, _) in types {
            for (type_of_keys, data_key) in types {
                let source = Source::new(type_, Some("https://a.example")).unwrap();
                let keys = Keys::of(type_of_keys, [(data_key.to_owned(), b"a".to_vec())].into()).unwrap();
                let is_authentic = type_ == SourceType::CloudEvents && type_of_keys == SourceType::CloudEvents;
                let expected =
                    if is_authentic { Ok(Parsed::Messages(Vec::new())) } else { Err(Rejection::Unauthenticated) };
                assert_eq!(parse(&source, &keys, &request), expected, "{type_:?} {type_of_keys:?}");
            }
        }
    }

    #[test]
    fn only_twilio_needs_a_public_url() {
        Source::new(SourceType::Meta, None).unwrap();
        assert_eq!(Source::new(SourceType::CloudEvents, Some("x")).unwrap().type_(), SourceType::CloudEvents);
        let error = Source::new(SourceType::Twilio, None).unwrap_err();
        assert!(error.to_string().starts_with("publicURL is missing"), "{error}");
    }
}
