use super::*;
use crate::router::source::{Keys, Source, SourceType, parse};
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::json;

const URL: &str = "https://mycompany.com/myapp.php?foo=1&bar=2";
const FORM: &str = "application/x-www-form-urlencoded";
/// Of the examples of Twilio's libraries, as `CALL` is.
const TOKEN: &str = "12345";
const CALL: &str = "CallSid=CA1234567890ABCDE&Digits=1234&From=%2B14158675309&To=%2B18005551212&Caller=%2B14158675309";
const SMS: &str =
    "MessageSid=SM1&SmsStatus=received&From=%2B14158675309&To=%2B18005551212&Body=Hi+%F0%9F%98%80&NumMedia=0";

fn request(content_type: &str, signature: &str, body: &str) -> SourceRequest {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_str(content_type).unwrap());
    headers.insert(SIGNATURE, HeaderValue::from_str(signature).unwrap());
    SourceRequest { method: Method::POST, query: None, headers, body: Bytes::copy_from_slice(body.as_bytes()) }
}

fn try_parse(url: &str, keys: &[(&str, &str)], request: &SourceRequest) -> Result<Parsed, Rejection> {
    let source = Source::new(SourceType::Twilio, Some(url)).unwrap();
    let files = keys.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
    parse(&source, &Keys::of(SourceType::Twilio, files).unwrap(), request)
}

fn sign(algorithm: hmac::Algorithm, text: &str) -> String {
    BASE64.encode(hmac::sign(&hmac::Key::new(algorithm, TOKEN.as_bytes()), text.as_bytes()).as_ref())
}

/// Parses `body` at [`URL`], signed as Twilio signs it.
fn parse_form(body: &str) -> Result<Parsed, Rejection> {
    let signed = format!("{URL}{}", signed_text(&decode(body.as_bytes())?));
    let signature = sign(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &signed);
    try_parse(URL, &[("authToken", TOKEN)], &request(FORM, &signature, body))
}

fn only_message(parsed: Result<Parsed, Rejection>) -> InboundMessage {
    let Ok(Parsed::Messages(messages)) = parsed else { panic!("{parsed:?}") };
    let [message] = <[_; 1]>::try_from(messages).unwrap();
    message
}

/// The webhooks of these examples are authentic, but have no message.
const AUTHENTIC: Result<Parsed, Rejection> =
    Err(Rejection::Malformed("neither a message nor a status: MessageSid is missing"));

#[test]
fn published_signatures_of_forms_are_accepted() {
    for (url, signature, body) in [
        (URL, "RSOYDt4T1cUTdK1PDd93/VVr8B8=", CALL),
        // The signature of the URL without its port, and of the URL with a port that it does not have.
        ("https://mycompany.com:1234/myapp.php?foo=1&bar=2", "RSOYDt4T1cUTdK1PDd93/VVr8B8=", CALL),
        ("http://mycompany.com:1234/myapp.php?foo=1&bar=2", "Zmvh+3yNM1Phv2jhDCwEM3q5ebU=", CALL),
        (URL, "kvajT1Ptam85bY51eRf/AJRuM3w=", CALL),
        ("http://mycompany.com/myapp.php?foo=1&bar=2", "0ZXoZLH/DfblKGATFgpif+LLRf4=", CALL),
        (URL, "IK+Dwps556ElfBT0I3Rgjkr1wJU=", "Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234"),
        // A repeated parameter counts once, and the order of the parameters does not count.
        (URL, "IK+Dwps556ElfBT0I3Rgjkr1wJU=", "Digits=1234&Digits=5678&Digits=1234&SidAccount=AC123&Sid=CA123"),
        // With the fragment and without it.
        ("https://mycompany.com/myapp.php?foo=1&bar=2#rc=5&rp=all", "yrb/hfjtK6d2ra2gKIOZ7OP/GyM=", CALL),
        ("https://mycompany.com/myapp.php?foo=1&bar=2#rc=5&rp=all", "RSOYDt4T1cUTdK1PDd93/VVr8B8=", CALL),
    ] {
        let request = request(FORM, signature, body);
        assert_eq!(try_parse(url, &[("authToken", TOKEN)], &request), AUTHENTIC, "{url} {signature}");
        let rotation = [("authToken", "new"), ("authToken-old", TOKEN)];
        assert_eq!(try_parse(url, &rotation, &request), AUTHENTIC, "{url} {signature}");
        assert_eq!(try_parse(url, &[("authToken", "new")], &request), Err(Rejection::Unauthenticated));
    }
}

#[test]
fn published_signature_of_a_body_is_accepted() {
    let hash = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620";
    let body = "{\"property\": \"value\", \"boolean\": true}";
    let mut request = request("application/json; charset=utf-8", "a9nBmqA0ju/hNViExpshrM61xv4=", body);
    request.query = Some(format!("foo=1&bar=2&bodySHA256={hash}"));
    assert_eq!(try_parse(URL, &[("authToken", TOKEN)], &request), AUTHENTIC);

    let other_body = SourceRequest { body: Bytes::from_static(b"{}"), ..request.clone() };
    assert_eq!(try_parse(URL, &[("authToken", TOKEN)], &other_body), Err(Rejection::Unauthenticated));
    let other_hash = SourceRequest { query: Some(format!("foo=1&bar=2&bodySHA256=00{}", &hash[2..])), ..request };
    assert_eq!(try_parse(URL, &[("authToken", TOKEN)], &other_hash), Err(Rejection::Unauthenticated));
}

#[test]
fn json_body_without_a_signed_hash_is_unauthenticated() {
    // The signature of the URL alone, as of a request without parameters.
    let request = request("application/json", "zYQTYrRWXE7LtzbG4PfP7/bkkGo=", "{\"MessageSid\": \"SM1\"}");
    assert_eq!(try_parse(URL, &[("authToken", TOKEN)], &request), Err(Rejection::Unauthenticated));
}

#[test]
fn shared_key_signs_with_the_algorithm_that_the_header_names() {
    const SHA1: &str = "RSOYDt4T1cUTdK1PDd93/VVr8B8=";
    const SHA256: &str = "033hgUJA9M/hXIZsYjwkerEP/DBm35nEri5FhCYjA5s=";
    let keys = [("authToken", "other"), ("sharedKey.webhooks_sharedkey_01", TOKEN), ("sharedKey.b", "b")];
    for (settings, signature, is_authentic) in [
        ("key=webhooks_sharedkey_01,algorithm=HMAC_SHA256", SHA256, true),
        (" algorithm = hmac_sha256 , key = webhooks_sharedkey_01 ", SHA256, true),
        ("key=webhooks_sharedkey_01,algorithm=HMAC_SHA1", SHA1, true),
        ("key=webhooks_sharedkey_01", SHA1, true),
        ("key=webhooks_sharedkey_01", SHA256, false),
        ("key=webhooks_sharedkey_01,algorithm=HMAC_SHA256", SHA1, false),
        ("key=webhooks_sharedkey_01,algorithm=HMAC_SHA512", SHA256, false),
        ("key=b,algorithm=HMAC_SHA256", SHA256, false),
        ("key=,algorithm=HMAC_SHA256", SHA256, false),
        ("algorithm=HMAC_SHA256", SHA256, false),
        ("", SHA256, false),
        // The auth token is not this key.
        ("", SHA1, false),
    ] {
        let mut request = request(FORM, signature, CALL);
        request.headers.insert(SIGNATURE_SETTINGS, HeaderValue::from_static(settings));
        let expected = if is_authentic { AUTHENTIC } else { Err(Rejection::Unauthenticated) };
        assert_eq!(try_parse(URL, &keys, &request), expected, "{settings:?} {signature}");
    }
}

#[test]
fn auth_token_signs_nothing_in_the_name_of_a_shared_key() {
    let mut request = request(FORM, "RSOYDt4T1cUTdK1PDd93/VVr8B8=", CALL);
    let keys = [("authToken", TOKEN), ("sharedKey.a", "other")];
    assert_eq!(try_parse(URL, &keys, &request), AUTHENTIC);
    request.headers.insert(SIGNATURE_SETTINGS, HeaderValue::from_static("key=a,algorithm=HMAC_SHA1"));
    assert_eq!(try_parse(URL, &keys, &request), Err(Rejection::Unauthenticated));
}

#[test]
fn request_without_a_single_valid_signature_is_unauthenticated() {
    let valid = request(FORM, "RSOYDt4T1cUTdK1PDd93/VVr8B8=", CALL);
    let keys = [("authToken", TOKEN)];
    assert_eq!(try_parse(URL, &keys, &valid), AUTHENTIC);
    for signature in ["", "RSOYDt4T1cUTdK1PDd93/VVr8B8", "RSOYDt4T1cUTdK1PDd93/VVr8B9=", "%", &"A".repeat(8192)] {
        let request = request(FORM, signature, CALL);
        assert_eq!(try_parse(URL, &keys, &request), Err(Rejection::Unauthenticated), "{signature:?}");
    }
    for body in ["", &CALL.replace("1234", "1235"), &format!("{CALL}&x"), &CALL.replace("Digits", "digits")] {
        let request = SourceRequest { body: Bytes::copy_from_slice(body.as_bytes()), ..valid.clone() };
        assert_eq!(try_parse(URL, &keys, &request), Err(Rejection::Unauthenticated), "{body:?}");
    }
    for query in ["", "foo=1", "bar=2&foo=1"] {
        let request = SourceRequest { query: Some(query.to_owned()), ..valid.clone() };
        assert_eq!(try_parse(URL, &keys, &request), Err(Rejection::Unauthenticated), "{query:?}");
    }
    let mut without = valid.clone();
    without.headers.remove(SIGNATURE);
    assert_eq!(try_parse(URL, &keys, &without), Err(Rejection::Unauthenticated));
    let mut twice = valid.clone();
    twice.headers.append(HeaderName::from_static(SIGNATURE), HeaderValue::from_static("RSOYDt4T1cUTdK1PDd93/VVr8B8="));
    assert_eq!(try_parse(URL, &keys, &twice), Err(Rejection::Unauthenticated));
}

#[test]
fn other_methods_and_media_types_are_refused() {
    let valid = request(FORM, "RSOYDt4T1cUTdK1PDd93/VVr8B8=", CALL);
    let get = SourceRequest { method: Method::GET, ..valid.clone() };
    assert_eq!(try_parse(URL, &[("authToken", TOKEN)], &get), Err(Rejection::Method));
    let text = request("text/plain", "RSOYDt4T1cUTdK1PDd93/VVr8B8=", CALL);
    assert_eq!(try_parse(URL, &[("authToken", TOKEN)], &text), Err(Rejection::MediaType));
    let upper_case = request("Application/X-WWW-Form-Urlencoded ; charset=UTF-8", "RSOYDt4T1cUTdK1PDd93/VVr8B8=", CALL);
    assert_eq!(try_parse(URL, &[("authToken", TOKEN)], &upper_case), AUTHENTIC);
}

#[test]
fn form_becomes_a_message() {
    assert_eq!(
        only_message(parse_form(SMS)),
        InboundMessage {
            source: None,
            id: "SM1".to_owned(),
            kind: "message".to_owned(),
            channel: Channel::Sms,
            contact: "+14158675309".to_owned(),
            proxy: "+18005551212".to_owned(),
            time: None,
            raw: Json::of(&json!({
                "MessageSid": "SM1",
                "SmsStatus": "received",
                "From": "+14158675309",
                "To": "+18005551212",
                "Body": "Hi 😀",
                "NumMedia": "0",
            }))
            .unwrap(),
        }
    );
    let repeated = only_message(parse_form(&format!("{SMS}&a=2&a=1&a=2&=x")));
    assert_eq!((&repeated.raw.value()["a"], &repeated.raw.value()[""]), (&json!(["2", "1", "2"]), &json!("x")));
}

#[test]
fn json_body_becomes_a_message() {
    let body = json!({"MessageSid": "SM1", "From": "whatsapp:+1", "To": "whatsapp:+2", "Media": [1]});
    let text = body.to_string();
    let hash = HEXLOWER_PERMISSIVE.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    let signature = sign(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &format!("https://a.example/in?bodySHA256={hash}"));
    let mut request = request("application/json", &signature, &text);
    request.query = Some(format!("bodySHA256={hash}"));
    let message = only_message(try_parse("https://a.example/in", &[("authToken", TOKEN)], &request));
    assert_eq!((message.channel, message.contact.as_str(), message.raw.value()), (Channel::WhatsApp, "+1", body));
}

#[test]
fn prefix_of_an_address_tells_the_channel() {
    for (from, to, channel, contact, proxy) in [
        ("12345", "Sales", Channel::Sms, "12345", "Sales"),
        ("whatsapp:+1415", "whatsapp:+1800", Channel::WhatsApp, "+1415", "+1800"),
        ("whatsapp:US.1349", "WhatsApp:+1800", Channel::WhatsApp, "US.1349", "+1800"),
        ("messenger:100", "messenger:200", Channel::Messenger, "100", "200"),
        ("rcs:+1415", "rcs:desk_agent", Channel::Rcs, "+1415", "desk_agent"),
        ("+1415", "rcs:desk_agent", Channel::Rcs, "+1415", "desk_agent"),
        ("rcs:+1415", "+1800", Channel::Rcs, "+1415", "+1800"),
        ("applemessages:urn:mbid:A", "applemessages:b", Channel::AppleMessages, "urn:mbid:A", "b"),
    ] {
        let form = form_urlencoded::Serializer::new("MessageSid=SM1".to_owned())
            .append_pair("From", from)
            .append_pair("To", to)
            .finish();
        let message = only_message(parse_form(&form));
        assert_eq!((message.channel, message.contact.as_str(), message.proxy.as_str()), (channel, contact, proxy));
    }
}

#[test]
fn status_callback_has_no_message() {
    for status in [
        "MessageStatus=delivered",
        "MessageStatus=read&EventType=READ",
        "SmsStatus=sent&MessageStatus=sent",
        "SmsStatus=queued",
        "SmsStatus=received&MessageStatus=failed",
    ] {
        let parsed = parse_form(&format!("MessageSid=SM1&From=%2B18005551212&To=%2B14158675309&{status}"));
        assert_eq!(parsed, Ok(Parsed::Messages(Vec::new())), "{status}");
    }
    for status in ["SmsStatus=received", "SmsStatus=receiving", "SmsStatus="] {
        only_message(parse_form(&format!("MessageSid=SM1&From=%2B14158675309&To=%2B18005551212&{status}")));
    }
}

#[test]
fn incomplete_message_is_malformed() {
    for (form, reason) in [
        ("MessageSid=&From=1&To=2", "neither a message nor a status: MessageSid is missing"),
        ("MessageSid=SM1&MessageSid=SM2&From=1&To=2", "neither a message nor a status: MessageSid is missing"),
        ("MessageSid=SM1&To=2", "From is missing"),
        ("MessageSid=SM1&From=1&To=", "To is missing"),
        ("MessageSid=SM1&From=1&From=3&To=2", "From is missing"),
        ("MessageSid=SM1&From=viber:1&To=viber:2", "From or To has the prefix of an unknown channel"),
        ("MessageSid=SM1&From=rcs:1&To=whatsapp:2", "From and To have different channels"),
        ("MessageSid=SM%0A1&From=1&To=2", "MessageSid is longer than 512 characters, or has a control character"),
    ] {
        assert_eq!(parse_form(form), Err(Rejection::Malformed(reason)), "{form}");
    }
    only_message(parse_form(&format!("From=1&To=2&MessageSid={}", "ü".repeat(512))));
    parse_form(&format!("From=1&To=2&MessageSid={}", "a".repeat(513))).unwrap_err();
}

#[test]
fn form_is_bounded() {
    only_message(parse_form(&format!("{SMS}{}", "&a".repeat(MAX_PARAMETERS - 6))));
    let too_many = parse_form(&format!("{SMS}{}", "&a".repeat(MAX_PARAMETERS - 5)));
    assert_eq!(too_many, Err(Rejection::Malformed("the form has more than 1000 parameters")));
    let too_large = parse_form(&format!("{SMS}&a={}", "a".repeat(MAX_FORM_SIZE)));
    assert_eq!(too_large, Err(Rejection::Malformed("the form has more than 256 KiB")));
}
