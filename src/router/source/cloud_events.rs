//! `CloudEvents`: authenticates and parses messages that a gateway of one's own sends, in binary, structured or batched mode.
//!
//! A bearer token authenticates the request before its body is read. Sources of the rules:
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>, and next to it `bindings/http-protocol-binding.md` and
//! `formats/json-format.md`.

use super::keys::Token;
use super::{
    InboundMessage, Json, MAX_MESSAGES, MESSAGE, Parsed, Rejection, SourceRequest, essence, header, is_id, media_type,
};
use crate::api::Channel;
use data_encoding::BASE64;
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap};
use percent_encoding::percent_decode;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The type of the events that contain a message. Events of other types are ignored.
const MESSAGE_TYPE: &str = "dev.switchboard.message.v1";

/// The fields of the data of an event that route the message. The data may have others.
#[derive(Deserialize)]
struct Routing {
    channel: Channel,
    contact: String,
    proxy: String,
}

/// Parses one event, or a batch of at most [`MAX_MESSAGES`] events. A batch with a malformed event is malformed as a whole: the gateway is
/// in the same hands as the router, and learns that none of it was accepted.
pub(super) fn parse(tokens: &[Token], request: &SourceRequest) -> Result<Parsed, Rejection> {
    if request.method != Method::POST {
        return Err(Rejection::Method);
    }
    let token = bearer_token(&request.headers).ok_or(Rejection::Unauthenticated)?;
    if !tokens.iter().any(|known| known.is(token)) {
        return Err(Rejection::Unauthenticated);
    }
    let messages = match media_type(&request.headers)?.as_str() {
        "application/cloudevents+json" => structured(json(&request.body)?)?.into_iter().collect(),
        "application/cloudevents-batch+json" => {
            let events: Vec<Value> = serde_json::from_slice(&request.body)
                .map_err(|_| Rejection::Malformed("the batch is not a JSON array"))?;
            if events.len() > MAX_MESSAGES {
                return Err(Rejection::TooMany);
            }
            let messages = events.into_iter().filter_map(|event| structured(event).transpose());
            messages.collect::<Result<_, _>>()?
        }
        other if !other.starts_with("application/cloudevents") && is_json(other) => {
            let attribute = |name: &str| attribute_of_header(&request.headers, name);
            message(attribute, || json(&request.body))?.into_iter().collect()
        }
        _ => return Err(Rejection::MediaType),
    };
    Ok(Parsed::Messages(messages))
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750); `None` if the request has no single one.
fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let value = header(headers, AUTHORIZATION.as_str()).ok()??;
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Whether a media type without parameters is JSON, as section 3.1 of the JSON format defines it.
fn is_json(media_type: &str) -> bool {
    media_type.split_once('/').is_some_and(|(_, subtype)| subtype == "json" || subtype.ends_with("+json"))
}

fn json(text: &[u8]) -> Result<Value, Rejection> {
    serde_json::from_slice(text).map_err(|_| Rejection::Malformed("the body or the data is not JSON"))
}

/// The message in an event in the JSON format.
fn structured(event: Value) -> Result<Option<InboundMessage>, Rejection> {
    let Value::Object(mut event) = event else { return Err(Rejection::Malformed("the event is not a JSON object")) };
    let data = event.remove("data");
    let data_base64 = event.remove("data_base64");
    message(
        |name| attribute_of_member(&event, name),
        || {
            let media_type = attribute_of_member(&event, "datacontenttype")?.and_then(|text| essence(&text));
            match (data, data_base64) {
                (Some(data), None) if media_type.as_deref().is_none_or(is_json) => Ok(data),
                (None, Some(Value::String(text))) if media_type.as_deref().is_some_and(is_json) => {
                    let decoded = BASE64.decode(text.as_bytes());
                    json(&decoded.map_err(|_| Rejection::Malformed("data_base64 is not base64"))?)
                }
                (None, None) => Err(Rejection::Malformed("data is missing")),
                (Some(_), Some(_)) => Err(Rejection::Malformed("the event has both data and data_base64")),
                _ => Err(Rejection::Malformed("the data is not JSON according to datacontenttype")),
            }
        },
    )
}

/// An attribute in the JSON format; `None` if it is absent or null.
fn attribute_of_member(event: &Map<String, Value>, name: &str) -> Result<Option<String>, Rejection> {
    match event.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Rejection::Malformed("an attribute is not a string")),
    }
}

/// An attribute in binary mode. Section 3.1.3.2 of the HTTP binding: the value of the header is unquoted first, then percent-decoded
/// once; a sequence that is not UTF-8 is an error.
fn attribute_of_header(headers: &HeaderMap, name: &str) -> Result<Option<String>, Rejection> {
    let value = header(headers, &format!("ce-{name}"))
        .map_err(|_| Rejection::Malformed("a header of an attribute is repeated, or longer than 4096 bytes"))?;
    let Some(value) = value else { return Ok(None) };
    let unquoted = unquote(value).ok_or(Rejection::Malformed("a header of an attribute has an open quotation"))?;
    let decoded = percent_decode(&unquoted).decode_utf8();
    let decoded = decoded.map_err(|_| Rejection::Malformed("a header of an attribute is not UTF-8"))?;
    Ok(Some(decoded.into_owned()))
}

/// `value` with its quoted strings (RFC 7230, section 3.2.6) replaced by their content; `None` if one of them does not end.
fn unquote(value: &[u8]) -> Option<Vec<u8>> {
    let mut unquoted = Vec::with_capacity(value.len());
    let mut is_quoted = false;
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\\' if is_quoted => unquoted.push(bytes.next()?),
            byte => unquoted.push(byte),
        }
    }
    (!is_quoted).then_some(unquoted)
}

/// The message in an event with these attributes and this data; `None` if the event has another type.
fn message(
    attribute: impl Fn(&str) -> Result<Option<String>, Rejection>,
    data: impl FnOnce() -> Result<Value, Rejection>,
) -> Result<Option<InboundMessage>, Rejection> {
    if attribute("specversion")?.as_deref() != Some("1.0") {
        return Err(Rejection::Malformed("specversion is not 1.0"));
    }
    match attribute("type")? {
        Some(type_) if type_ == MESSAGE_TYPE => {}
        Some(type_) if !type_.is_empty() => return Ok(None),
        _ => return Err(Rejection::Malformed("type is missing")),
    }
    let bounded = |name, reason| attribute(name)?.filter(|text| is_id(text)).ok_or(Rejection::Malformed(reason));
    let id = bounded("id", "id must have from 1 to 512 characters, none of them a control character")?;
    let source = bounded("source", "source must have from 1 to 512 characters, none of them a control character")?;
    let time = attribute("time")?.map(|time| time.parse()).transpose();
    let time = time.map_err(|_| Rejection::Malformed("time is not a time of RFC 3339"))?;
    let raw = data()?;
    // A struct can be read from an array too.
    let routing = Some(&raw).filter(|raw| raw.is_object()).and_then(|raw| Routing::deserialize(raw).ok());
    let Routing { channel, contact, proxy } =
        routing.ok_or(Rejection::Malformed("data must have a channel, a contact and a proxy"))?;
    let (kind, raw) = (MESSAGE.to_owned(), Json::of(&raw)?);
    Ok(Some(InboundMessage { source: Some(source), id, kind, channel, contact, proxy, time, raw }))
}

#[cfg(test)]
mod tests;
