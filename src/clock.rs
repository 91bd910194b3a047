//! The only module that reads the time. Clippy denies it to the others: see `disallowed-methods` in clippy.toml.
#![allow(clippy::disallowed_methods, reason = "this is the clock")]

use crate::api::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

/// The source of time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// The wall-clock time, which may jump. For times that users see or set.
    #[must_use]
    pub fn now(self) -> Time {
        Time::new(Timestamp::now())
    }

    /// The monotonic time. For timeouts and durations.
    #[must_use]
    pub fn monotonic(self) -> Instant {
        Instant::now()
    }
}
