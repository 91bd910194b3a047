//! The input is the header of a request, an empty line, and its body. With the token it is authentic; with any other token, and without one,
//! it is not.
#![no_main]

use fuzz::{SECRET, Target, post};
use hyper::header::{HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use switchboard::router::source::SourceType;

static TARGET: LazyLock<Target> = LazyLock::new(|| Target::new(SourceType::CloudEvents, &["token"]));

fuzz_target!(|input: &[u8]| {
    let end = input.windows(2).position(|window| window == b"\n\n").unwrap_or(input.len());
    let mut request = post(&[], input.get(end + 2..).unwrap_or_default());
    for line in input[..end].split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value)
            && name != "authorization"
        {
            request.headers.append(name, value);
        }
    }
    TARGET.refuse(&request);
    for (token, is_known) in [(SECRET, true), ("", false), ("secre", false), ("secrets", false)] {
        let authorization = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        request.headers.insert("authorization", authorization);
        if is_known { TARGET.accept(&request) } else { TARGET.refuse(&request) }
    }
});
