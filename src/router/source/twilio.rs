//! Twilio: authenticates and parses the webhooks of incoming messages.
//!
//! The signature is over the URL and the decoded parameters, so they are decoded first, within bounds; nothing else is read before the
//! signature is verified. Sources of the rules: <https://www.twilio.com/docs/usage/webhooks/webhooks-security>, for shared keys
//! <https://www.twilio.com/docs/usage/webhooks/webhook-shared-keys>, for the parameters
//! <https://www.twilio.com/docs/messaging/guides/webhook-request>, and `RequestValidator` of Twilio's own libraries, whose published
//! examples are the tests.

use super::keys::SharedKey;
use super::public_url::PublicUrl;
use super::{InboundMessage, Json, MESSAGE, Parsed, Rejection, SourceRequest, header, is_id, media_type};
use crate::api::Channel;
use crate::api::address_format::own_schemes;
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use hyper::Method;
use hyper::header::HeaderMap;
use ring::{digest, hmac};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use strum::VariantArray;

/// The maximum size of a form, in bytes. It bounds the work before the signature is verified. Twilio's are some kilobytes: the text of a
/// message has at most 1,600 characters, and a message at most ten media.
const MAX_FORM_SIZE: usize = 256 * 1024;

/// The maximum number of parameters of a form. Twilio's have some dozens.
const MAX_PARAMETERS: usize = 1000;

const SIGNATURE: &str = "x-twilio-signature";
const SIGNATURE_SETTINGS: &str = "x-twilio-webhooks-signature-settings";

/// Parses a webhook that Twilio sent to `url`, as a form or as JSON. Status callbacks contain no message.
pub(super) fn parse(
    url: &PublicUrl,
    auth_tokens: &[hmac::Key],
    shared_keys: &BTreeMap<String, SharedKey>,
    request: &SourceRequest,
) -> Result<Parsed, Rejection> {
    if request.method != Method::POST {
        return Err(Rejection::Method);
    }
    let signature = signature(&request.headers).ok_or(Rejection::Unauthenticated)?;
    let keys = signing_keys(auth_tokens, shared_keys, &request.headers).ok_or(Rejection::Unauthenticated)?;
    let query = url.query(request.query.as_deref());
    let authenticate = |parameters: &str| {
        let is_signed = |text: &str| keys.iter().any(|key| hmac::verify(key, text.as_bytes(), &signature).is_ok());
        let is_authentic = url.spellings(query).iter().any(|url| is_signed(&format!("{url}{parameters}")));
        if is_authentic { Ok(()) } else { Err(Rejection::Unauthenticated) }
    };
    match media_type(&request.headers)?.as_str() {
        "application/x-www-form-urlencoded" => {
            let parameters = decode(&request.body)?;
            authenticate(&signed_text(&parameters))?;
            message(|name| parameter(&parameters, name), || Json::of(&Form(&parameters)))
        }
        "application/json" => {
            authenticate("")?;
            if !has_hash(query.unwrap_or_default(), &request.body) {
                return Err(Rejection::Unauthenticated);
            }
            let body = serde_json::from_slice::<Map<String, Value>>(&request.body);
            let body = body.map_err(|_| Rejection::Malformed("the body is not a JSON object"))?;
            message(|name| body.get(name).and_then(Value::as_str), || Json::of(&body))
        }
        _ => Err(Rejection::MediaType),
    }
}

/// The signature of the request; `None` if there is no single one in base64.
fn signature(headers: &HeaderMap) -> Option<Vec<u8>> {
    BASE64.decode(header(headers, SIGNATURE).ok()??).ok()
}

/// The keys that the request can be signed with. The header of settings, `key=ID,algorithm=HMAC_SHA256`, names a shared key and its
/// algorithm; without it, or if it is empty, an auth token signs. `None` if the header names no known key or algorithm. The header need not
/// be authentic, since it selects only among secrets.
fn signing_keys<'a>(
    auth_tokens: &'a [hmac::Key],
    shared_keys: &'a BTreeMap<String, SharedKey>,
    headers: &HeaderMap,
) -> Option<&'a [hmac::Key]> {
    let settings = header(headers, SIGNATURE_SETTINGS).ok()?.unwrap_or_default();
    if settings.is_empty() {
        return Some(auth_tokens);
    }
    let settings = std::str::from_utf8(settings).ok()?;
    let setting = |name| {
        let mut settings = settings.split(',').filter_map(|setting| setting.split_once('='));
        settings.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    };
    let key = shared_keys.get(setting("key")?)?;
    match setting("algorithm").unwrap_or("HMAC_SHA1").to_ascii_uppercase().as_str() {
        "HMAC_SHA1" => Some(std::slice::from_ref(&key.sha1)),
        "HMAC_SHA256" => Some(std::slice::from_ref(&key.sha256)),
        _ => None,
    }
}

/// A decoded form, in the order of the body.
type Parameters<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

fn decode(body: &[u8]) -> Result<Parameters<'_>, Rejection> {
    if body.len() > MAX_FORM_SIZE {
        return Err(Rejection::Malformed("the form has more than 256 KiB"));
    }
    let parameters: Parameters = form_urlencoded::parse(body).take(MAX_PARAMETERS + 1).collect();
    if parameters.len() > MAX_PARAMETERS {
        return Err(Rejection::Malformed("the form has more than 1000 parameters"));
    }
    Ok(parameters)
}

/// The part of the signed text that follows the URL: names and values in the order of the names, the values of one name in their own
/// order, and equal ones once.
fn signed_text(parameters: &Parameters) -> String {
    let mut sorted: Vec<_> = parameters.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.into_iter().flat_map(|(name, value)| [name, value]).collect()
}

/// The value of the parameter `name`, unless it is repeated.
fn parameter<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    let mut values = parameters.iter().filter(|(of, _)| of == name).map(|(_, value)| value.as_ref());
    values.next().filter(|_| values.next().is_none())
}

/// Whether `query` has the SHA-256 of `body`. The query is part of the signed URL, which is how Twilio signs a body of JSON.
fn has_hash(query: &str, body: &[u8]) -> bool {
    let hash = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "bodySHA256");
    let hash = hash.and_then(|(_, hash)| HEXLOWER_PERMISSIVE.decode(hash.as_bytes()).ok());
    hash.is_some_and(|hash| hash == digest::digest(&digest::SHA256, body).as_ref())
}

/// The parameters as a JSON object. A repeated one is an array.
struct Form<'a>(&'a Parameters<'a>);

impl Serialize for Form<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sorted: Vec<_> = self.0.iter().collect();
        // The sort is stable, so the values of one name stay in their order.
        sorted.sort_by_key(|(name, _)| name.as_ref());
        let mut object = serializer.serialize_map(None)?;
        for same in sorted.chunk_by(|(one, _), (other, _)| one == other) {
            match same {
                [(name, value)] => object.serialize_entry(name, value)?,
                [(name, _), ..] => object.serialize_entry(name, &Values(same))?,
                [] => {}
            }
        }
        object.end()
    }
}

/// The values of parameters of one name.
struct Values<'a>(&'a [&'a (Cow<'a, str>, Cow<'a, str>)]);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(_, value)| value))
    }
}

/// The message in the parameters that `parameter` has; none, if they are the status of a message that the business sent.
fn message<'a>(
    parameter: impl Fn(&'static str) -> Option<&'a str>,
    raw: impl FnOnce() -> Result<Json, Rejection>,
) -> Result<Parsed, Rejection> {
    let text = |name| parameter(name).filter(|text| !text.is_empty());
    let status = text("MessageStatus").or_else(|| text("SmsStatus"));
    if status.is_some_and(|status| status != "received" && status != "receiving") {
        return Ok(Parsed::Messages(Vec::new()));
    }
    let id = text("MessageSid").ok_or(Rejection::Malformed("neither a message nor a status: MessageSid is missing"))?;
    if !is_id(id) {
        return Err(Rejection::Malformed("MessageSid is longer than 512 characters, or has a control character"));
    }
    let (from_channel, contact) = address(text("From").ok_or(Rejection::Malformed("From is missing"))?)?;
    let (to_channel, proxy) = address(text("To").ok_or(Rejection::Malformed("To is missing"))?)?;
    let channel = match (from_channel, to_channel) {
        (None, None) => Channel::Sms,
        (Some(channel), None) | (None, Some(channel)) => channel,
        (Some(from), Some(to)) if from == to => from,
        (Some(_), Some(_)) => return Err(Rejection::Malformed("From and To have different channels")),
    };
    Ok(Parsed::Messages(vec![InboundMessage {
        source: None,
        id: id.to_owned(),
        kind: MESSAGE.to_owned(),
        channel,
        contact: contact.to_owned(),
        proxy: proxy.to_owned(),
        time: None,
        raw: raw()?,
    }]))
}

/// The channel that a prefix such as `whatsapp:` says, and the address without it.
fn address(text: &str) -> Result<(Option<Channel>, &str), Rejection> {
    let Some((scheme, address)) = text.split_once(':') else { return Ok((None, text)) };
    let has_scheme = |channel: &&Channel| own_schemes(**channel).iter().any(|own| own.eq_ignore_ascii_case(scheme));
    let channel = Channel::VARIANTS.iter().find(has_scheme);
    let channel = channel.ok_or(Rejection::Malformed("From or To has the prefix of an unknown channel"))?;
    Ok((Some(*channel), address))
}

#[cfg(test)]
mod tests;
