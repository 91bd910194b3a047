//! The parser of reviews never panics. The answer to an accepted review is valid JSON with the same uid.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use switchboard::webhook::{ReviewKind, Review, respond};

fuzz_target!(|bytes: &[u8]| {
    let Ok(review) = Review::parse(bytes) else { return };
    if let Ok(ReviewKind::Claim(request)) = review.kind() {
        assert!(!request.uid.is_empty() && !request.conversation.name.is_empty());
        assert_eq!(request.binding.name(), request.binding.name());
    }
    let answer: Value = serde_json::from_slice(&respond(&review, None).unwrap()).unwrap();
    // The parser skips unknown fields, which may contain text that is not valid JSON, such as a lone surrogate.
    if let Ok(request) = serde_json::from_slice::<Value>(bytes) {
        assert_eq!(answer["response"]["uid"], request["request"]["uid"]);
    }
    assert_eq!(answer["response"]["allowed"], true);
});
