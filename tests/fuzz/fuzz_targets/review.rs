//! No bytes make the parser of reviews panic, and what it takes is answered by a review that can be read, with the same uid.
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
    // What the parser passes over unread may be no JSON that a document can be made of: a lone surrogate, say.
    if let Ok(asked) = serde_json::from_slice::<Value>(bytes) {
        assert_eq!(answer["response"]["uid"], asked["request"]["uid"]);
    }
    assert_eq!(answer["response"]["allowed"], true);
});
