//! The parser of durations never panics. An accepted duration is within the bounds, and survives a round trip through its text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchboard::api::Duration;

/// From 1 s to 87,600 h.
const BOUNDS: std::ops::RangeInclusive<u128> = 1_000..=315_360_000_000;

fuzz_target!(|text: &str| {
    match text.parse::<Duration>() {
        Ok(duration) => {
            assert!(BOUNDS.contains(&duration.as_std().as_millis()), "{text:?}");
            let again: Duration = duration.to_string().parse().unwrap();
            assert_eq!(again, duration, "{text:?}");
        }
        Err(error) => drop(error.to_string()),
    }
});
