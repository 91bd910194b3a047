//! The input is a body that is signed as Meta signs it, so it is accepted as authentic. No change of the body or the signature is. As the
//! query of a GET, the input yields no message.
#![no_main]

use data_encoding::HEXLOWER;
use fuzz::{SECRET, Target, post};
use libfuzzer_sys::fuzz_target;
use ring::hmac;
use std::sync::LazyLock;
use switchboard::router::source::SourceType;

static TARGET: LazyLock<Target> = LazyLock::new(|| Target::new(SourceType::Meta, &["appSecret", "verifyToken"]));

fuzz_target!(|body: &[u8]| {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), body);
    let request = |signature: &[u8], body: &[u8]| {
        let signature = format!("sha256={}", HEXLOWER.encode(signature));
        post(&[("content-type", "application/json"), ("x-hub-signature-256", &signature)], body)
    };
    TARGET.accept(&request(tag.as_ref(), body));

    let mut other_tag = tag.as_ref().to_vec();
    other_tag[0] ^= 1;
    TARGET.refuse(&request(&other_tag, body));
    TARGET.refuse(&request(&tag.as_ref()[1..], body));
    TARGET.refuse(&request(&[], body));
    TARGET.refuse(&request(tag.as_ref(), &[body, b" "].concat()));
    TARGET.refuse(&post(&[("content-type", "application/json")], body));
    TARGET.get(String::from_utf8_lossy(body).into_owned());
});
