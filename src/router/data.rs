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
