use super::*;
use crate::router::source::{Keys, Source, SourceType, parse};
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::json;

const STRUCTURED: &str = "application/cloudevents+json";
const BATCHED: &str = "application/cloudevents-batch+json";

fn request(headers: &[(&str, &str)], body: &str) -> SourceRequest {
    let headers = headers.iter().map(|(name, value)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    });
    SourceRequest {
        method: Method::POST,
        query: None,
        headers: headers.collect(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn try_parse(request: &SourceRequest) -> Result<Parsed, Rejection> {
    let files = [("token", "secret"), ("token-old", "old secret")];
    let files = files.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).into();
    let source = Source::new(SourceType::CloudEvents, None).unwrap();
    parse(&source, &Keys::of(SourceType::CloudEvents, files).unwrap(), request)
}

fn parse_json(media_type: &str, body: &Value) -> Result<Parsed, Rejection> {
    try_parse(&request(&[("authorization", "Bearer secret"), ("content-type", media_type)], &body.to_string()))
}

/// Parses an event in binary mode whose headers are `BINARY`, but for those in `changes`: an empty value removes a header.
fn parse_binary(changes: &[(&str, &str)], body: &str) -> Result<Parsed, Rejection> {
    const BINARY: [(&str, &str); 7] = [
        ("authorization", "Bearer secret"),
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-type", "dev.switchboard.message.v1"),
        ("ce-id", "1"),
        ("ce-source", "/gateway"),
        ("ce-time", "2026-11-27T10:00:00Z"),
    ];
    let unchanged = BINARY.into_iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    let headers: Vec<_> = unchanged.chain(changes.iter().copied()).filter(|(_, value)| !value.is_empty()).collect();
    try_parse(&request(&headers, body))
}

fn data() -> Value {
    json!({"channel": "SMS", "contact": "+14158675309", "proxy": "+18005551212", "text": "Hi"})
}

fn event() -> Value {
    json!({
        "specversion": "1.0",
        "type": "dev.switchboard.message.v1",
        "id": "1",
        "source": "/gateway",
        "time": "2026-11-27T10:00:00Z",
        "data": data(),
    })
}

/// [`event`] with the members of `changes`; null removes one.
fn event_with(changes: &Value) -> Value {
    let mut event = event();
    for (name, value) in changes.as_object().unwrap() {
        event[name] = value.clone();
    }
    event.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    event
}

fn expected() -> InboundMessage {
    InboundMessage {
        source: Some("/gateway".to_owned()),
        id: "1".to_owned(),
        kind: "message".to_owned(),
        channel: Channel::Sms,
        contact: "+14158675309".to_owned(),
        proxy: "+18005551212".to_owned(),
        time: Some("2026-11-27T10:00:00Z".parse().unwrap()),
        raw: Json::of(&data()).unwrap(),
    }
}

fn messages(parsed: Result<Parsed, Rejection>) -> Vec<InboundMessage> {
    let Ok(Parsed::Messages(messages)) = parsed else { panic!("{parsed:?}") };
    messages
}

#[test]
fn event_is_the_same_in_each_mode() {
    assert_eq!(messages(parse_binary(&[], &data().to_string())), [expected()]);
    assert_eq!(messages(parse_json(STRUCTURED, &event())), [expected()]);
    let batch = json!([event(), event_with(&json!({"id": "2"})), event_with(&json!({"type": "other"}))]);
    let second = InboundMessage { id: "2".to_owned(), ..expected() };
    assert_eq!(messages(parse_json(BATCHED, &batch)), [expected(), second]);
    assert_eq!(messages(parse_json(BATCHED, &json!([]))), []);
}

#[test]
fn data_in_base64_are_read_if_they_are_json() {
    let encoded = BASE64.encode(data().to_string().as_bytes());
    for media_type in ["application/json", "application/json; charset=utf-8", "text/json", "application/vnd.a+JSON"] {
        let changes = json!({"data": null, "data_base64": encoded, "datacontenttype": media_type});
        assert_eq!(messages(parse_json(STRUCTURED, &event_with(&changes))), [expected()], "{media_type}");
        let changes = json!({"datacontenttype": media_type});
        assert_eq!(messages(parse_json(STRUCTURED, &event_with(&changes))), [expected()], "{media_type}");
        let message = parse_binary(&[("content-type", media_type)], &data().to_string());
        assert_eq!(messages(message), [expected()], "{media_type}");
    }
    for changes in [
        json!({"data": null, "data_base64": encoded}),
        json!({"data": null, "data_base64": encoded, "datacontenttype": "text/plain"}),
        json!({"data": null, "data_base64": "%", "datacontenttype": "application/json"}),
        json!({"data": null, "data_base64": "eA==", "datacontenttype": "application/json"}),
        json!({"data": null, "data_base64": 1, "datacontenttype": "application/json"}),
        json!({"data_base64": encoded, "datacontenttype": "application/json"}),
        json!({"datacontenttype": "text/plain"}),
    ] {
        let parsed = parse_json(STRUCTURED, &event_with(&changes));
        assert!(matches!(parsed, Err(Rejection::Malformed(_))), "{changes}: {parsed:?}");
    }
}

#[test]
fn event_of_another_type_has_no_message() {
    assert_eq!(messages(parse_binary(&[("ce-type", "com.example.other")], "")), []);
    // Its other attributes and its data are its own business.
    let other = json!({"specversion": "1.0", "type": "com.example.other"});
    assert_eq!(messages(parse_json(STRUCTURED, &other)), []);
}

#[test]
fn malformed_event_is_refused_in_each_mode() {
    let too_long = "a".repeat(513);
    for (attribute, value) in [
        ("specversion", ""),
        ("specversion", "0.3"),
        ("type", ""),
        ("id", ""),
        ("id", too_long.as_str()),
        ("source", ""),
        ("source", too_long.as_str()),
        ("time", "yesterday"),
    ] {
        let in_binary_mode = parse_binary(&[(&format!("ce-{attribute}"), value)], &data().to_string());
        let changed = event_with(&json!({attribute: value}));
        for parsed in
            [in_binary_mode, parse_json(STRUCTURED, &changed), parse_json(BATCHED, &json!([event(), changed]))]
        {
            assert!(matches!(parsed, Err(Rejection::Malformed(_))), "{attribute}: {value:?}: {parsed:?}");
        }
    }
    for data in [
        json!(null),
        json!("text"),
        json!(["SMS", "+1", "+2"]),
        json!({"channel": "SMS", "contact": "+1"}),
        json!({"channel": "sms", "contact": "+1", "proxy": "+2"}),
        json!({"channel": "SMS", "contact": 1, "proxy": "+2"}),
    ] {
        for parsed in
            [parse_binary(&[], &data.to_string()), parse_json(STRUCTURED, &event_with(&json!({"data": data})))]
        {
            assert!(matches!(parsed, Err(Rejection::Malformed(_))), "{data}: {parsed:?}");
        }
    }
    for (media_type, body) in [
        (STRUCTURED, json!([])),
        (STRUCTURED, event_with(&json!({"id": 1}))),
        (STRUCTURED, event_with(&json!({"id": "a\nb"}))),
        (BATCHED, event()),
        (BATCHED, json!([1])),
    ] {
        let parsed = parse_json(media_type, &body);
        assert!(matches!(parsed, Err(Rejection::Malformed(_))), "{body}: {parsed:?}");
    }
    assert!(matches!(parse_binary(&[], "{"), Err(Rejection::Malformed(_))));
}

#[test]
fn header_of_an_attribute_is_unquoted_and_decoded_once() {
    for (value, id) in [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("%41%2525%zz", "A%25%zz"),
        ("%e2%82%ac", "€"),
        ("\"a b\"", "a b"),
        ("\"a\\\"b\\\\%41\"", "a\"b\\A"),
        ("a\\b", "a\\b"),
        ("1€", "1€"),
    ] {
        assert_eq!(messages(parse_binary(&[("ce-id", value)], &data().to_string()))[0].id, id, "{value}");
    }
    // The first is an overlong encoding of a space, as in the specification.
    for value in ["%C0%A0", "%ff", "\"a", "\"a\\\"", "%0a", "%00"] {
        let parsed = parse_binary(&[("ce-id", value)], &data().to_string());
        assert!(matches!(parsed, Err(Rejection::Malformed(_))), "{value}: {parsed:?}");
    }
}

#[test]
fn repeated_or_oversized_header_is_malformed() {
    let body = data().to_string();
    for changes in [
        &[("ce-id", "1"), ("ce-id", "2")][..],
        &[("ce-specversion", "1.0"), ("ce-specversion", "1.0")],
        &[("ce-time", &"2".repeat(4097))],
    ] {
        assert!(matches!(parse_binary(changes, &body), Err(Rejection::Malformed(_))));
    }
}

#[test]
fn only_a_known_bearer_token_authenticates() {
    let body = event().to_string();
    for (authorization, is_known) in [
        ("Bearer secret", true),
        ("bearer  secret", true),
        ("Bearer old secret", true),
        ("Bearer secre", false),
        ("Bearer secrets", false),
        ("Bearer ", false),
        ("Bearer", false),
        ("Basic secret", false),
        ("secret", false),
        ("", false),
    ] {
        let parsed = try_parse(&request(&[("authorization", authorization), ("content-type", STRUCTURED)], &body));
        let expected = if is_known { Ok(Parsed::Messages(vec![expected()])) } else { Err(Rejection::Unauthenticated) };
        assert_eq!(parsed, expected, "{authorization:?}");
    }
    let twice = [("authorization", "Bearer secret"), ("authorization", "Bearer secret"), ("content-type", STRUCTURED)];
    assert_eq!(try_parse(&request(&twice, &body)), Err(Rejection::Unauthenticated));
    // A body is not read before the token is known, so its faults are not told.
    assert_eq!(try_parse(&request(&[("content-type", STRUCTURED)], "{")), Err(Rejection::Unauthenticated));
}

#[test]
fn other_methods_and_media_types_are_refused() {
    let put = SourceRequest { method: Method::PUT, ..request(&[("authorization", "Bearer secret")], "") };
    assert_eq!(try_parse(&put), Err(Rejection::Method));
    for media_type in
        ["", "text/plain", "json", "application/cloudevents+avro", "application/cloudevents", "application/xml"]
    {
        assert_eq!(parse_json(media_type, &event()), Err(Rejection::MediaType), "{media_type:?}");
    }
    assert_eq!(messages(parse_json("Application/CloudEvents+JSON; charset=UTF-8", &event())), [expected()]);
}

#[test]
fn batch_and_depth_are_bounded() {
    let batch = |length| Value::Array(vec![event(); length]);
    assert_eq!(messages(parse_json(BATCHED, &batch(MAX_MESSAGES))).len(), MAX_MESSAGES);
    assert_eq!(parse_json(BATCHED, &batch(MAX_MESSAGES + 1)), Err(Rejection::TooMany));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(parse_binary(&[], &deep), Err(Rejection::Malformed(_))));
}
