use super::*;
use crate::router::source::{Keys, Source, SourceType, parse};
use hyper::body::Bytes;
use hyper::header::HeaderValue;

const SECRET: &str = "app secret";

fn keys() -> Keys {
    let files =
        [("appSecret", SECRET), ("appSecret-old", "old"), ("verifyToken", "meatyhamhock"), ("verifyToken2", "b")];
    Keys::of(SourceType::Meta, files.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).into()).unwrap()
}

fn try_parse(request: &SourceRequest) -> Result<Parsed, Rejection> {
    parse(&Source::new(SourceType::Meta, None).unwrap(), &keys(), request)
}

fn signature_of(secret: &str, body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body);
    format!("sha256={}", HEXLOWER.encode(tag.as_ref()))
}

fn post(body: &str) -> SourceRequest {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert(SIGNATURE, HeaderValue::from_str(&signature_of(SECRET, body.as_bytes())).unwrap());
    SourceRequest { method: Method::POST, query: None, headers, body: Bytes::copy_from_slice(body.as_bytes()) }
}

/// Parses an authentic webhook about `entries` of an object of this type.
fn parse_webhook(object: &str, entries: &Value) -> Result<Parsed, Rejection> {
    try_parse(&post(&json!({"object": object, "entry": entries}).to_string()))
}

fn messages_in(object: &str, entries: &Value) -> Vec<InboundMessage> {
    let parsed = parse_webhook(object, entries);
    let Ok(Parsed::Messages(messages)) = parsed else { panic!("{parsed:?}") };
    messages
}

fn change(value: &Value) -> Value {
    json!({"field": "messages", "value": value})
}

/// The messages of an entry of WhatsApp with one change.
fn messages_of_whatsapp(value: &Value) -> Vec<InboundMessage> {
    messages_in("whatsapp_business_account", &json!([{"id": "1029", "changes": [change(value)]}]))
}

/// The value of the example in Meta's reference.
fn whatsapp() -> Value {
    json!({
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "15550783881", "phone_number_id": "106540352242922"},
        "contacts": [{"profile": {"name": "Sheena Nelson"}, "wa_id": "16505551234"}],
        "messages": [{
            "from": "16505551234",
            "id": "wamid.HBgLMTY1MDM4Nzk0MzkVAgASGBQzQTRBNjU5OUFFRTAzODEwMTQ0RgA=",
            "timestamp": "1749416383",
            "type": "text",
            "text": {"body": "Does it come in another color?"},
        }],
    })
}

/// The messages of an entry of an Instagram account or page with ID 200.
fn messages_of(object: &str, events: &Value) -> Vec<InboundMessage> {
    messages_in(object, &json!([{"id": "200", "time": 1_569_262_486_134_i64, "messaging": events}]))
}

fn event(name: &str, content: &Value) -> Value {
    json!({"sender": {"id": "100"}, "recipient": {"id": "200"}, "timestamp": 1_569_262_485_349_i64, name: content})
}

/// The ID, the kind, the contact and the proxy of each message.
fn summary(messages: &[InboundMessage]) -> Vec<[&str; 4]> {
    messages
        .iter()
        .map(|message| [&message.id, &message.kind, &message.contact, &message.proxy].map(String::as_str))
        .collect()
}

#[test]
fn body_is_authenticated_by_each_app_secret() {
    let valid = post(&json!({"object": "page", "entry": []}).to_string());
    assert_eq!(try_parse(&valid), Ok(Parsed::Messages(Vec::new())));
    let with = |signature: &str| {
        let mut request = valid.clone();
        request.headers.insert(SIGNATURE, HeaderValue::from_str(signature).unwrap());
        try_parse(&request)
    };
    let signature = signature_of("old", &valid.body);
    assert_eq!(with(&signature), Ok(Parsed::Messages(Vec::new())));
    assert_eq!(with(&signature.to_uppercase().replace("SHA", "sha")), Ok(Parsed::Messages(Vec::new())));
    for other in [
        "",
        "sha256=",
        &signature[7..],
        &signature[..70],
        &signature.replace("sha256", "sha1"),
        &signature_of("other", &valid.body),
        &signature_of("old", b"{}"),
        // The verify token signs nothing.
        &signature_of("meatyhamhock", &valid.body),
        &"a".repeat(8192),
    ] {
        assert_eq!(with(other), Err(Rejection::Unauthenticated), "{other}");
    }
    let mut twice = valid.clone();
    twice.headers.append(SIGNATURE, HeaderValue::from_str(&signature).unwrap());
    assert_eq!(try_parse(&twice), Err(Rejection::Unauthenticated));
    // A body is not read before it is authentic, so its faults are not told.
    assert_eq!(try_parse(&SourceRequest { body: Bytes::from_static(b"{"), ..valid }), Err(Rejection::Unauthenticated));
}

#[test]
fn signature_is_over_the_raw_body() {
    // Meta escapes characters beyond ASCII; another spelling of the same JSON is not what was signed.
    let body = r#"{"object":"page","entry":[],"a":"\u00e4"}"#;
    assert_eq!(try_parse(&post(body)), Ok(Parsed::Messages(Vec::new())));
    let respelled = SourceRequest { body: Bytes::from(body.replace("\\u00e4", "ä")), ..post(body) };
    assert_eq!(try_parse(&respelled), Err(Rejection::Unauthenticated));
}

#[test]
fn challenge_is_answered_if_the_verify_token_is_known() {
    for (query, expected) in [
        ("hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=meatyhamhock", Ok("1158201444")),
        ("hub.verify_token=b&hub.challenge=a-B_1.~&hub.mode=subscribe&x=y", Ok("a-B_1.~")),
        ("hub.mode=subscribe&hub.challenge=1&hub.verify_token=meatyhamhoc", Err(Rejection::Unauthenticated)),
        ("hub.mode=subscribe&hub.challenge=1&hub.verify_token=", Err(Rejection::Unauthenticated)),
        // The app secret is not a verify token.
        ("hub.mode=subscribe&hub.challenge=1&hub.verify_token=old", Err(Rejection::Unauthenticated)),
        ("hub.mode=subscribe&hub.challenge=1", Err(Rejection::Unauthenticated)),
        ("hub.mode=unsubscribe&hub.challenge=1&hub.verify_token=b", Err(Rejection::Unauthenticated)),
        ("hub.challenge=1&hub.verify_token=b", Err(Rejection::Unauthenticated)),
        ("", Err(Rejection::Unauthenticated)),
    ] {
        let get = SourceRequest { method: Method::GET, query: Some(query.to_owned()), ..post("") };
        assert_eq!(try_parse(&get), expected.map(|text: &str| Parsed::Challenge(text.to_owned())), "{query}");
    }
    for challenge in ["", "%3Cscript%3E", "a%0Ab", &"1".repeat(513)] {
        let query = format!("hub.mode=subscribe&hub.verify_token=b&hub.challenge={challenge}");
        let get = SourceRequest { method: Method::GET, query: Some(query), ..post("") };
        assert!(matches!(try_parse(&get), Err(Rejection::Malformed(_))), "{challenge}");
    }
    assert_eq!(try_parse(&SourceRequest { method: Method::GET, ..post("") }), Err(Rejection::Unauthenticated));
}

#[test]
fn other_methods_and_media_types_are_refused() {
    assert_eq!(try_parse(&SourceRequest { method: Method::PUT, ..post("{}") }), Err(Rejection::Method));
    let mut form = post("{}");
    form.headers.insert("content-type", HeaderValue::from_static("application/x-www-form-urlencoded"));
    assert_eq!(try_parse(&form), Err(Rejection::MediaType));
}

#[test]
fn whatsapp_message_has_its_addresses_and_its_context() {
    assert_eq!(
        messages_of_whatsapp(&whatsapp()),
        [InboundMessage {
            source: None,
            id: "wamid.HBgLMTY1MDM4Nzk0MzkVAgASGBQzQTRBNjU5OUFFRTAzODEwMTQ0RgA=".to_owned(),
            kind: "message".to_owned(),
            channel: Channel::WhatsApp,
            contact: "+16505551234".to_owned(),
            proxy: "+15550783881".to_owned(),
            time: Some("2025-06-08T20:59:43Z".parse().unwrap()),
            raw: Json::of(&whatsapp()).unwrap(),
        }]
    );
}

#[test]
fn separators_of_the_display_number_are_removed() {
    for (text, proxy) in [
        ("+1 555-078-3881", "+15550783881"),
        ("+1 (555) 078.3881", "+15550783881"),
        ("15550783881", "+15550783881"),
        ("Sales", "Sales"),
        ("", ""),
    ] {
        let mut value = whatsapp();
        value["metadata"]["display_phone_number"] = json!(text);
        assert_eq!(messages_of_whatsapp(&value)[0].proxy, proxy, "{text}");
    }
}

#[test]
fn sender_without_a_number_has_a_user_id() {
    let contact = json!([{"profile": {"username": "@a"}, "user_id": "US.1349"}]);
    for (contacts, message, expected) in [
        (contact.clone(), json!({"from_user_id": "US.1349"}), "US.1349"),
        (contact.clone(), json!({"from": "", "from_user_id": "US.1349"}), "US.1349"),
        (contact.clone(), json!({}), "US.1349"),
        (contact.clone(), json!({"from": "1650", "from_user_id": "US.1349"}), "+1650"),
        (json!([{"wa_id": "1650", "user_id": "US.1349"}]), json!({}), "+1650"),
        // Of two contacts, either could be the sender.
        (json!([{"user_id": "US.1"}, {"user_id": "US.2"}]), json!({}), ""),
        (json!([]), json!({"system": {"user_id": "MX.2", "previous_user_id": "CO.1"}, "type": "system"}), "CO.1"),
        (json!([]), json!({"from": 1650}), ""),
    ] {
        let mut value = whatsapp();
        value["contacts"] = contacts;
        value["messages"] = json!([message]);
        assert_eq!(messages_of_whatsapp(&value)[0].contact, expected, "{value}");
    }
}

#[test]
fn message_of_a_batch_has_only_its_own_contact() {
    let mut value = whatsapp();
    value["contacts"] = json!([{"wa_id": "1"}, {"wa_id": "2", "user_id": "US.2"}, {"user_id": "US.3"}]);
    value["messages"] = json!([
        {"id": "a", "from": "2"},
        {"id": "b", "from_user_id": "US.3"},
        {"id": "c", "from": "9", "from_user_id": "US.2"},
        {"id": "d", "from": "9"},
    ]);
    value["statuses"] = json!([{"id": "e", "status": "sent"}]);
    let messages = messages_of_whatsapp(&value);
    let values: Vec<_> = messages.iter().map(|message| message.raw.value()).collect();
    let raw: Vec<_> = values.iter().map(|value| (value.get("contacts"), &value["messages"])).collect();
    let (of_2, of_3) = (json!([{"wa_id": "2", "user_id": "US.2"}]), json!([{"user_id": "US.3"}]));
    assert_eq!(
        raw,
        [
            (Some(&of_2), &json!([{"id": "a", "from": "2"}])),
            (Some(&of_3), &json!([{"id": "b", "from_user_id": "US.3"}])),
            (Some(&of_2), &json!([{"id": "c", "from": "9", "from_user_id": "US.2"}])),
            (None, &json!([{"id": "d", "from": "9"}])),
        ]
    );
    assert!(values.iter().all(|value| value["metadata"] == whatsapp()["metadata"]));
    assert!(values.iter().all(|value| value.get("statuses").is_none()));
}

#[test]
fn event_about_a_whatsapp_message_has_a_kind_of_its_own() {
    for (type_, kind) in [
        ("text", "message"),
        ("interactive", "message"),
        ("unsupported", "message"),
        ("reaction", "reaction"),
        ("edit", "edit"),
        ("revoke", "deletion"),
        ("system", "system"),
    ] {
        let mut value = whatsapp();
        value["messages"][0]["type"] = json!(type_);
        assert_eq!(messages_of_whatsapp(&value)[0].kind, kind, "{type_}");
    }
}

#[test]
fn message_in_a_group_has_no_contact() {
    let mut value = whatsapp();
    value["messages"][0]["group_id"] = json!("Y2FwaV9ncm91cDo");
    let messages = messages_of_whatsapp(&value);
    assert_eq!((messages[0].kind.as_str(), messages[0].contact.as_str()), ("message", ""));
    assert_eq!(messages[0].raw.value(), value);
}

#[test]
fn statuses_echoes_and_other_objects_have_no_message() {
    let mut statuses = whatsapp();
    statuses["statuses"] = statuses.as_object_mut().unwrap().remove("messages").unwrap();
    let echoes = json!({"field": "smb_message_echoes", "value": {"message_echoes": [{"from": "1", "id": "a"}]}});
    let history = json!({"field": "history", "value": whatsapp()});
    let entry = json!([{"id": "1029", "changes": [change(&statuses), echoes, history]}, {"changes": []}]);
    assert_eq!(messages_in("whatsapp_business_account", &entry), []);
    assert_eq!(messages_in("permissions", &json!([{"changes": [change(&whatsapp())]}])), []);

    let events = json!([
        event("delivery", &json!({"mids": ["m"], "watermark": 1})),
        event("read", &json!({"watermark": 1})),
        event("referral", &json!({"ref": "a"})),
        event("account_linking", &json!({"status": "linked"})),
        event("message", &json!({"mid": "m", "text": "Hi", "is_echo": true})),
        {"sender": {"id": "200"}, "recipient": {"id": "100"}, "message": {"mid": "m", "text": "Hi"}},
    ]);
    assert_eq!(messages_of("page", &events), []);
    assert_eq!(messages_of("instagram", &events), []);
    let standby =
        json!([{"id": "200", "standby": [event("message", &json!({"mid": "m"}))], "changes": [{"field": "feed"}]}]);
    assert_eq!(messages_in("page", &standby), []);
}

#[test]
fn event_of_messenger_has_its_addresses_and_its_kind() {
    let text = event("message", &json!({"mid": "m_1", "text": "Hi"}));
    for (object, channel) in [("page", Channel::Messenger), ("instagram", Channel::Instagram)] {
        assert_eq!(
            messages_of(object, &json!([text])),
            [InboundMessage {
                source: None,
                id: "m_1".to_owned(),
                kind: "message".to_owned(),
                channel,
                contact: "100".to_owned(),
                proxy: "200".to_owned(),
                time: Some("2019-09-23T18:14:45.349Z".parse().unwrap()),
                raw: Json::of(&text).unwrap(),
            }]
        );
    }
    for (event, id, kind) in [
        (event("postback", &json!({"mid": "m_1", "payload": "P"})), "m_1/postback/1569262485349", "postback"),
        (event("reaction", &json!({"mid": "m_1", "action": "react"})), "m_1/reaction/1569262485349", "reaction"),
        (event("message_edit", &json!({"mid": "m_1", "num_edit": 1})), "m_1/edit/1569262485349", "edit"),
        (event("message", &json!({"mid": "m_1", "is_deleted": true})), "m_1/deletion/1569262485349", "deletion"),
        (json!({"sender": {"id": "100"}, "reaction": {"mid": "m_1"}}), "m_1/reaction", "reaction"),
    ] {
        let messages = messages_of("instagram", &json!([event]));
        assert_eq!((messages[0].id.as_str(), messages[0].kind.as_str(), messages[0].raw.value()), (id, kind, event));
    }
}

#[test]
fn event_without_a_valid_id_has_a_stable_one() {
    let without = event("postback", &json!({"payload": "P"}));
    let messages = messages_of("page", &json!([without]));
    let [[id, kind, contact, proxy]] = summary(&messages)[..] else { panic!() };
    assert_eq!((kind, contact, proxy), ("postback", "100", "200"));
    assert!(id.starts_with("sha256-") && id.len() == 71, "{id}");
    assert_eq!(messages_of("page", &json!([without.clone(), without]))[1].id, id);

    let mut value = whatsapp();
    for id in [json!("a".repeat(513)), json!("a\u{0}"), json!(""), json!(1), json!(null)] {
        value["messages"][0]["id"] = id;
        let messages = messages_of_whatsapp(&value);
        let [[id, kind, contact, _]] = summary(&messages)[..] else { panic!() };
        assert_eq!((kind, contact), ("message", "+16505551234"));
        assert!(id.starts_with("sha256-"), "{id}");
    }
}

#[test]
fn malformed_part_of_a_batch_does_not_refuse_the_rest() {
    let mut partly_valid = whatsapp();
    partly_valid["messages"] = json!([1, {"id": "a", "from": "1"}, null]);
    let mut without_array = whatsapp();
    without_array["messages"] = json!({});
    let mut with_large_metadata = whatsapp();
    with_large_metadata["metadata"]["a"] = json!("a".repeat(MAX_SHARED_SIZE));
    let mut with_large_contact = whatsapp();
    with_large_contact["contacts"][0]["a"] = json!("a".repeat(MAX_SHARED_SIZE));
    let malformed = [
        (json!({"changes": 1}), json!({"changes": 1})),
        (json!("entry"), json!("entry")),
        (json!({"changes": ["change"]}), json!("change")),
        (json!({"changes": [{"value": whatsapp()}]}), json!({"value": whatsapp()})),
        (json!({"changes": [change(&json!([]))]}), change(&json!([]))),
        (json!({"changes": [change(&without_array)]}), change(&without_array)),
        (json!({"changes": [change(&with_large_metadata)]}), change(&with_large_metadata)),
        (json!({"changes": [change(&with_large_contact)]}), change(&with_large_contact)),
    ];
    let mut entries: Vec<_> = malformed.iter().map(|(entry, _)| entry.clone()).collect();
    entries.push(json!({"changes": [change(&partly_valid)]}));
    let messages = messages_in("whatsapp_business_account", &json!(entries));
    let kinds: Vec<_> = messages.iter().map(|message| message.kind.as_str()).collect();
    assert_eq!(kinds, [["malformed"; 9].as_slice(), &["message", "malformed"]].concat());
    for (message, (_, raw)) in messages.iter().zip(malformed) {
        assert_eq!((message.contact.as_str(), message.proxy.as_str(), message.raw.value()), ("", "", raw));
    }

    let entries = json!([{"messaging": [1, event("message", &json!({"mid": "m"})), event("message", &json!(null))]}, 2, {"messaging": {}}]);
    let messages = messages_in("page", &entries);
    let kinds: Vec<_> = messages.iter().map(|message| message.kind.as_str()).collect();
    assert_eq!(kinds, ["malformed", "message", "message", "malformed", "malformed"]);
}

#[test]
fn body_that_is_not_a_webhook_is_malformed() {
    for body in
        ["", "[]", "{}", r#"{"object":"page"}"#, r#"{"object":1,"entry":[]}"#, r#"{"object":"page","entry":{}}"#]
    {
        assert!(matches!(try_parse(&post(body)), Err(Rejection::Malformed(_))), "{body}");
    }
    let deep = format!("{{\"object\":\"page\",\"entry\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(try_parse(&post(&deep)), Err(Rejection::Malformed(_))));
}

#[test]
fn batch_is_bounded() {
    let mut value = whatsapp();
    value["messages"] = Value::Array(vec![whatsapp()["messages"][0].clone(); MAX_MESSAGES / 2]);
    let changes = json!({"changes": [change(&value), change(&value)]});
    assert_eq!(messages_in("whatsapp_business_account", &json!([changes])).len(), MAX_MESSAGES);
    let parsed = parse_webhook("whatsapp_business_account", &json!([changes, 1]));
    assert_eq!(parsed, Err(Rejection::TooMany));
    let events = json!(vec![event("message", &json!({"mid": "m"})); MAX_MESSAGES + 1]);
    assert_eq!(parse_webhook("page", &json!([{"messaging": events}])), Err(Rejection::TooMany));
}
