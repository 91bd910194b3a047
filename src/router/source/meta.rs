//! Meta: authenticates and parses the webhooks of the `WhatsApp` Cloud API, Messenger and Instagram.
//!
//! The app secret signs the raw body, which is read only after the signature is verified. Sources of the rules:
//! <https://developers.facebook.com/docs/graph-api/webhooks/getting-started>, and under
//! <https://developers.facebook.com/documentation/business-messaging/> `whatsapp/webhooks/reference/messages`,
//! `whatsapp/business-scoped-user-ids`, `messenger-platform/webhooks/webhook-events` and `instagram-messaging/webhooks`.
//!
//! A webhook is a batch, which Meta repeats as a whole for days until it is accepted. So a part of it that cannot be read must not refuse
//! the rest, and must not be lost either: it becomes a message of kind `malformed` without addresses, which is unroutable, and which the
//! dead letter sink receives.

use super::keys::Token;
use super::{InboundMessage, Json, MAX_MESSAGES, MESSAGE, Parsed, Rejection, SourceRequest, header, is_id, media_type};
use crate::api::address_format::SEPARATORS;
use crate::api::{Channel, Time};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use hyper::Method;
use hyper::header::HeaderMap;
use k8s_openapi::jiff::Timestamp;
use ring::{digest, hmac};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

const SIGNATURE: &str = "x-hub-signature-256";

/// The maximum number of characters of a challenge. Meta's are numbers.
const MAX_CHALLENGE_LENGTH: usize = 512;

/// The maximum size, in bytes of JSON, of each part of a batch of `WhatsApp` that is repeated in every message that it belongs to. It
/// bounds the size of all messages by that of the body. Names and numbers need some hundred bytes.
const MAX_SHARED_SIZE: usize = 4096;

/// The fields that make an object in `messaging` an event for the conversation, and their kinds. Other events, such as receipts, referrals
/// and opt-ins, are ignored.
const EVENTS: [(&str, &str); 4] =
    [("message", MESSAGE), ("postback", "postback"), ("reaction", "reaction"), ("message_edit", "edit")];

/// Parses a webhook, or the challenge that Meta sends when the webhook is set up.
pub(super) fn parse(
    app_secrets: &[hmac::Key],
    verify_tokens: &[Token],
    request: &SourceRequest,
) -> Result<Parsed, Rejection> {
    match request.method {
        Method::GET => challenge(verify_tokens, request.query.as_deref().unwrap_or_default()),
        Method::POST => {
            let signature = signature(&request.headers).ok_or(Rejection::Unauthenticated)?;
            if !app_secrets.iter().any(|key| hmac::verify(key, &request.body, &signature).is_ok()) {
                return Err(Rejection::Unauthenticated);
            }
            if media_type(&request.headers)? != "application/json" {
                return Err(Rejection::MediaType);
            }
            webhook(&request.body)
        }
        _ => Err(Rejection::Method),
    }
}

fn challenge(verify_tokens: &[Token], query: &str) -> Result<Parsed, Rejection> {
    let parameters: HashMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
    let token = parameters.get("hub.verify_token").ok_or(Rejection::Unauthenticated)?;
    let is_known = verify_tokens.iter().any(|known| known.is(token.as_bytes()));
    if !is_known || parameters.get("hub.mode").is_none_or(|mode| mode != "subscribe") {
        return Err(Rejection::Unauthenticated);
    }
    let challenge = parameters.get("hub.challenge").map(AsRef::as_ref).unwrap_or_default();
    let is_bounded = (1..=MAX_CHALLENGE_LENGTH).contains(&challenge.len());
    if is_bounded && challenge.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
        Ok(Parsed::Challenge(challenge.to_owned()))
    } else {
        Err(Rejection::Malformed("hub.challenge must have from 1 to 512 letters, digits, '-', '.', '_' and '~'"))
    }
}

/// The signature of the request; `None` if there is no single one in hexadecimal.
fn signature(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = header(headers, SIGNATURE).ok()??;
    HEXLOWER_PERMISSIVE.decode(value.strip_prefix(b"sha256=")?).ok()
}

/// Parses the body of a webhook. Those of objects other than messaging accounts are ignored.
fn webhook(body: &[u8]) -> Result<Parsed, Rejection> {
    let mut webhook: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| Rejection::Malformed("the body is not a JSON object"))?;
    let entries = webhook.remove("entry");
    let channel = match webhook.get("object").and_then(Value::as_str) {
        Some("whatsapp_business_account") => Channel::WhatsApp,
        Some("page") => Channel::Messenger,
        Some("instagram") => Channel::Instagram,
        Some(_) => return Ok(Parsed::Messages(Vec::new())),
        None => return Err(Rejection::Malformed("object is missing")),
    };
    let Some(Value::Array(entries)) = entries else { return Err(Rejection::Malformed("entry is not an array")) };
    let mut batch = Batch { channel, messages: Vec::new() };
    for entry in entries {
        match channel {
            Channel::WhatsApp => batch.read_entry_of_whatsapp(entry)?,
            _ => batch.read_entry_of_messenger(entry)?,
        }
    }
    Ok(Parsed::Messages(batch.messages))
}

/// The messages of a webhook that are read so far.
struct Batch {
    channel: Channel,
    messages: Vec<InboundMessage>,
}

impl Batch {
    fn push(&mut self, message: InboundMessage) -> Result<(), Rejection> {
        if self.messages.len() == MAX_MESSAGES {
            return Err(Rejection::TooMany);
        }
        self.messages.push(message);
        Ok(())
    }

    /// Adds a part of the batch that cannot be read.
    fn push_malformed(&mut self, raw: &Value) -> Result<(), Rejection> {
        self.push(InboundMessage {
            source: None,
            id: digest_id(raw),
            kind: "malformed".to_owned(),
            channel: self.channel,
            contact: String::new(),
            proxy: String::new(),
            time: None,
            raw: Json::of(raw)?,
        })
    }

    fn read_entry_of_whatsapp(&mut self, mut entry: Value) -> Result<(), Rejection> {
        let changes = match entry.get_mut("changes") {
            Some(Value::Array(changes)) => std::mem::take(changes),
            _ => return self.push_malformed(&entry),
        };
        changes.into_iter().try_for_each(|change| self.read_change(change))
    }

    /// Reads a change of a `WhatsApp` account. Changes of other fields than `messages`, such as echoes of messages that the business sent,
    /// are ignored, and so are statuses.
    fn read_change(&mut self, mut change: Value) -> Result<(), Rejection> {
        match change.get("field").and_then(Value::as_str) {
            Some("messages") => {}
            Some(_) => return Ok(()),
            None => return self.push_malformed(&change),
        }
        let mut value = match change.get_mut("value") {
            Some(Value::Object(value)) if is_readable(value) => std::mem::take(value),
            _ => return self.push_malformed(&change),
        };
        let Some(Value::Array(messages)) = value.remove("messages") else { return Ok(()) };
        let context = Context::of(value);
        messages.into_iter().try_for_each(|message| {
            if message.is_object() { self.push(context.message(message)?) } else { self.push_malformed(&message) }
        })
    }

    /// Reads an entry of Messenger or Instagram. Its `changes` are not messages, and its `standby` events belong to another app that has
    /// the control of the conversation; both are ignored.
    fn read_entry_of_messenger(&mut self, mut entry: Value) -> Result<(), Rejection> {
        let business = entry.get("id").and_then(Value::as_str).map(str::to_owned);
        let is_object = entry.is_object();
        let events = match entry.get_mut("messaging") {
            Some(Value::Array(events)) => std::mem::take(events),
            None if is_object => return Ok(()),
            _ => return self.push_malformed(&entry),
        };
        events.iter().try_for_each(|event| self.read_event(business.as_deref(), event))
    }

    /// Reads an event of Messenger or Instagram of the account `business`. Echoes of messages that the business sent are ignored.
    fn read_event(&mut self, business: Option<&str>, event: &Value) -> Result<(), Rejection> {
        if !event.is_object() {
            return self.push_malformed(event);
        }
        let Some((field, kind)) = EVENTS.into_iter().find(|(field, _)| event.get(field).is_some()) else {
            return Ok(());
        };
        let content = &event[field];
        let is_true = |name| content.get(name).and_then(Value::as_bool).unwrap_or_default();
        let contact = text(&event["sender"], "id");
        if is_true("is_echo") || (contact.is_some() && contact == business) {
            return Ok(());
        }
        let kind = if field == "message" && is_true("is_deleted") { "deletion" } else { kind };
        let milliseconds = integer(event, "timestamp");
        // Events about a message have its ID, and a contact can react to one several times.
        let id = text(content, "mid").map(|id| match (kind, milliseconds) {
            (MESSAGE, _) => id.to_owned(),
            (_, Some(milliseconds)) => format!("{id}/{kind}/{milliseconds}"),
            (_, None) => format!("{id}/{kind}"),
        });
        self.push(InboundMessage {
            source: None,
            id: id.filter(|id| is_id(id)).unwrap_or_else(|| digest_id(event)),
            kind: kind.to_owned(),
            channel: self.channel,
            contact: contact.unwrap_or_default().to_owned(),
            proxy: text(&event["recipient"], "id").unwrap_or_default().to_owned(),
            time: milliseconds.and_then(|time| Timestamp::from_millisecond(time).ok()).map(Time::new),
            raw: Json::of(event)?,
        })
    }
}

/// Whether the messages of the value of a change can be read: they are an array, or there are none, and no part that they share is too
/// large.
fn is_readable(value: &Map<String, Value>) -> bool {
    let size = |value: &Value| serde_json::to_string(value).map_or(usize::MAX, |json| json.len());
    let contacts = value.get("contacts").map_or(Some([].as_slice()), |contacts| contacts.as_array().map(Vec::as_slice));
    let shared = value.iter().filter(|(name, _)| !["messages", "contacts", "statuses"].contains(&name.as_str()));
    value.get("messages").is_none_or(Value::is_array)
        && contacts.is_some_and(|contacts| contacts.iter().all(|contact| size(contact) <= MAX_SHARED_SIZE))
        && shared.map(|(name, value)| name.len().saturating_add(size(value))).fold(0, usize::saturating_add)
            <= MAX_SHARED_SIZE
}

/// What the messages of one change of a `WhatsApp` account share.
struct Context {
    proxy: String,
    /// `messaging_product`, `metadata`, and other members that are not of single messages.
    members: Map<String, Value>,
    contacts: Vec<Value>,
    /// The position in `contacts`, by number and by user ID.
    positions: HashMap<String, usize>,
}

impl Context {
    /// The context of the messages of `value`, which is readable, and from which the messages were taken.
    fn of(mut value: Map<String, Value>) -> Self {
        value.remove("statuses");
        let contacts = match value.remove("contacts") {
            Some(Value::Array(contacts)) => contacts,
            _ => Vec::new(),
        };
        let ids = contacts.iter().enumerate().flat_map(|(position, contact)| {
            let ids = ["wa_id", "user_id"].map(|name| text(contact, name));
            ids.into_iter().flatten().map(move |id| (id.to_owned(), position))
        });
        let number = value.get("metadata").and_then(|metadata| text(metadata, "display_phone_number"));
        let proxy = number.map(|text| number_of(&text.replace(|letter| SEPARATORS.contains(letter), "")));
        Self { proxy: proxy.unwrap_or_default(), positions: ids.collect(), contacts, members: value }
    }

    /// The message `message` with its context as Meta would have sent it alone. A message in a group does not belong to the conversation
    /// of its sender, so it has no contact.
    fn message(&self, message: Value) -> Result<InboundMessage, Rejection> {
        let contact = self.contact(&message);
        let is_in_group = message.get("group_id").is_some_and(|id| !id.is_null());
        let address = if is_in_group { None } else { address(&message, contact) };
        let kind = match text(&message, "type") {
            Some("reaction") => "reaction",
            Some("edit") => "edit",
            Some("revoke") => "deletion",
            Some("system") => "system",
            _ => MESSAGE,
        };
        let id = text(&message, "id").filter(|id| is_id(id));
        let seconds = integer(&message, "timestamp");
        let id = id.map_or_else(|| digest_id(&message), str::to_owned);
        let mut raw = self.members.clone();
        raw.extend(contact.map(|contact| ("contacts".to_owned(), json!([contact]))));
        raw.insert("messages".to_owned(), Value::Array(vec![message]));
        Ok(InboundMessage {
            source: None,
            id,
            kind: kind.to_owned(),
            channel: Channel::WhatsApp,
            contact: address.unwrap_or_default(),
            proxy: self.proxy.clone(),
            time: seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).map(Time::new),
            raw: Json::of(&raw)?,
        })
    }

    /// The contact that sent `message`: the one with its number or user ID. The number can differ from the one in `contacts` in some
    /// countries, and be absent; then it is the only contact.
    fn contact(&self, message: &Value) -> Option<&Value> {
        let mut ids = ["from", "from_user_id"].into_iter().filter_map(|name| text(message, name));
        match (ids.find_map(|id| self.positions.get(id)), self.contacts.as_slice()) {
            (Some(position), contacts) => contacts.get(*position),
            (None, [contact]) => Some(contact),
            (None, _) => None,
        }
    }
}

/// The address of the sender of a `WhatsApp` message: the number, or, if it is hidden, the business-scoped user ID. A notification of a
/// changed user ID has only the previous one.
fn address(message: &Value, contact: Option<&Value>) -> Option<String> {
    let of_contact = |name| contact.and_then(|contact| text(contact, name));
    let id = text(message, "from")
        .or_else(|| text(message, "from_user_id"))
        .or_else(|| message.get("system").and_then(|system| text(system, "previous_user_id")))
        .or_else(|| of_contact("wa_id"))
        .or_else(|| of_contact("user_id"));
    id.map(number_of)
}

/// Meta writes numbers without the `+`.
fn number_of(text: &str) -> String {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { format!("+{text}") } else { text.to_owned() }
}

/// The string `name` of `object`, unless it is empty.
fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The integer `name` of `object`. Meta writes it as a number or as a string.
fn integer(object: &Value, name: &str) -> Option<i64> {
    let value = object.get(name)?;
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// An ID for a part of a batch that has no valid one. It is the same when Meta repeats the batch.
fn digest_id(part: &Value) -> String {
    format!("sha256-{}", HEXLOWER.encode(digest::digest(&digest::SHA256, part.to_string().as_bytes()).as_ref()))
}

#[cfg(test)]
mod tests;
