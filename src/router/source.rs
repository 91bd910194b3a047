//! Sources: authenticates the requests of message providers, and parses them into messages. It depends on nothing but the request and
//! the keys, so it is pure.

use crate::api::{Channel, Time};
use hyper::Method;
use hyper::body::Bytes;
use hyper::header::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

/// The maximum number of messages in one request, as in Meta's batches.
pub const MAX_MESSAGES: usize = 1000;

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

/// A message that a contact has sent.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundMessage {
    /// The `source` of the `CloudEvent`; `None` if the name of the source stands for it.
    pub source: Option<String>,
    /// The ID that the provider gave to the message. From 1 to 512 characters.
    pub id: String,
    /// The kind of event, where one message can have several; otherwise `message`.
    pub kind: String,
    /// The channel.
    pub channel: Channel,
    /// The address of the contact, in the canonical form of the channel as far as the provider's form is known. It is not checked.
    pub contact: String,
    /// The address of the business, likewise.
    pub proxy: String,
    /// When the message was sent, according to the provider.
    pub time: Option<Time>,
    /// The message as the provider sent it.
    pub raw: Value,
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
