//! The first line of the input is the query, the rest is the body: JSON if it starts with `{`, else a form. It is signed as Twilio signs
//! it, so it is accepted as authentic. No change of the body, the query or the signature is.
#![no_main]

use data_encoding::{BASE64, HEXLOWER};
use fuzz::{SECRET, Target, URL, post};
use libfuzzer_sys::fuzz_target;
use ring::{digest, hmac};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use switchboard::router::source::{SourceRequest, SourceType};

static TARGET: LazyLock<Target> = LazyLock::new(|| Target::new(SourceType::Twilio, &["authToken", "sharedKey.a"]));

/// A parameter that is added to the body.
const ADDED: &str = "added-by-the-fuzz-target";

fuzz_target!(|input: &[u8]| {
    let line = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (query, body) = (String::from_utf8_lossy(&input[..line]), input.get(line + 1..).unwrap_or_default());
    let is_json = body.starts_with(b"{");
    let query = if is_json {
        format!("bodySHA256={}&{query}", HEXLOWER.encode(digest::digest(&digest::SHA256, body).as_ref()))
    } else {
        query.into_owned()
    };
    let mut signed = format!("{URL}?{query}");
    if !is_json {
        let mut parameters = BTreeMap::<_, BTreeSet<_>>::new();
        for (name, value) in form_urlencoded::parse(body) {
            parameters.entry(name).or_default().insert(value);
        }
        for (name, values) in parameters {
            for value in values {
                signed += &name;
                signed += &value;
            }
        }
    }
    let media_type = if is_json { "application/json" } else { "application/x-www-form-urlencoded" };
    for (algorithm, settings) in
        [(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, ""), (hmac::HMAC_SHA256, "key=a,algorithm=HMAC_SHA256")]
    {
        let tag = hmac::sign(&hmac::Key::new(algorithm, SECRET.as_bytes()), signed.as_bytes());
        let request = |signature: &[u8], query: &str, body: &[u8]| {
            let headers = [
                ("content-type", media_type),
                ("x-twilio-signature", &BASE64.encode(signature)),
                ("x-twilio-webhooks-signature-settings", settings),
            ];
            SourceRequest { query: Some(query.to_owned()), ..post(&headers, body) }
        };
        TARGET.accept(&request(tag.as_ref(), &query, body));

        let mut other_tag = tag.as_ref().to_vec();
        other_tag[0] ^= 1;
        TARGET.refuse(&request(&other_tag, &query, body));
        TARGET.refuse(&request(&tag.as_ref()[1..], &query, body));
        TARGET.refuse(&request(&[], &query, body));
        TARGET.refuse(&request(tag.as_ref(), &format!("{query}&"), body));
        TARGET.refuse(&SourceRequest {
            headers: post(&[("content-type", media_type)], b"").headers,
            ..request(&[], &query, body)
        });
        if !String::from_utf8_lossy(body).contains(ADDED) {
            TARGET.refuse(&request(tag.as_ref(), &query, &[body, b"&", ADDED.as_bytes()].concat()));
        }
    }
});
