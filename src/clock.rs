//! The only reader of time.

use crate::api::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

/// Where everything that needs the time gets it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// The time of day, which may jump: for what users see, and for what they have set.
    #[must_use]
    pub fn now(self) -> Time {
        Time::new(Timestamp::now())
    }

    /// A time that only moves forward: for waiting, and for how long something has lasted.
    #[must_use]
    pub fn monotonic(self) -> Instant {
        Instant::now()
    }
}
