//! An instant as the API represents it. This module must not read the clock.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::num::NonZeroI64;
use std::time::Duration;

/// An instant with a precision of one millisecond, written as RFC 3339 in UTC. The last hours of the year 9999 are valid in the
/// API, but exceed [`Timestamp::MAX`]; they are parsed as that instant.
///
/// It is stored as milliseconds since 1970, in 8 bytes, because the index contains many of them. Milliseconds from 0 on are stored
/// plus one: the value 0 is then free, so that an `Option<Time>` needs no more memory than a `Time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "std::borrow::Cow<'_, str>", into = "Timestamp")]
pub struct Time(NonZeroI64);

impl Time {
    /// 1970-01-01T00:00:00Z, the default for a missing time.
    pub const EPOCH: Self = Self::of(0);

    const fn of(milliseconds: i64) -> Self {
        let stored = if milliseconds < 0 { milliseconds } else { milliseconds.saturating_add(1) };
        Self(match NonZeroI64::new(stored) {
            Some(stored) => stored,
            None => NonZeroI64::MIN,
        })
    }

    const fn milliseconds(self) -> i64 {
        let stored = self.0.get();
        if stored < 0 { stored } else { stored - 1 }
    }

    /// The instant `timestamp`, rounded down to a millisecond.
    #[must_use]
    pub fn new(timestamp: Timestamp) -> Self {
        let milliseconds = timestamp.as_nanosecond().div_euclid(1_000_000);
        // This conversion cannot fail: the milliseconds of every `Timestamp` fit.
        Self::of(i64::try_from(milliseconds).unwrap_or(i64::MAX))
    }

    /// The same instant as a jiff timestamp, which the other Kubernetes types use.
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        let milliseconds = self.milliseconds();
        let nanoseconds = i128::from(milliseconds) * 1_000_000;
        Timestamp::from_nanosecond(nanoseconds).unwrap_or(if milliseconds < 0 {
            Timestamp::MIN
        } else {
            Timestamp::MAX
        })
    }

    /// The instant `duration` after this one, rounded down to a millisecond, and at most [`Timestamp::MAX`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let last = Self::new(Timestamp::MAX);
        Self::of(self.milliseconds().saturating_add(whole_milliseconds(duration))).min(last)
    }

    /// The instant `duration` before this one, rounded to a millisecond, and at least [`Timestamp::MIN`].
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        let first = Self::new(Timestamp::MIN);
        Self::of(self.milliseconds().saturating_sub(whole_milliseconds(duration))).max(first)
    }

    /// The time from `earlier` to this instant; zero if `earlier` is later than this instant.
    #[must_use]
    pub fn duration_since(self, earlier: Self) -> Duration {
        let milliseconds = self.milliseconds().saturating_sub(earlier.milliseconds());
        Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
    }
}

fn whole_milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl From<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time> for Time {
    fn from(time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> Self {
        Self::new(time.0)
    }
}

impl std::str::FromStr for Time {
    type Err = k8s_openapi::jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .or_else(|error| if text.starts_with("9999-12-3") { Ok(Timestamp::MAX) } else { Err(error) })
            .map(Self::new)
    }
}

impl TryFrom<std::borrow::Cow<'_, str>> for Time {
    type Error = k8s_openapi::jiff::Error;

    fn try_from(text: std::borrow::Cow<'_, str>) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Time> for Timestamp {
    fn from(time: Time) -> Self {
        time.timestamp()
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.timestamp().fmt(f)
    }
}

impl schemars::JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "date-time", "maxLength": 64})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instant_of_rfc_3339_is_parsed() {
        for (text, read) in [
            ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00Z"),
            ("2026-11-24T10:00:00.123987654+01:00", "2026-11-24T09:00:00.123Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59Z", "9999-12-30T22:00:00.999Z"),
            ("9999-12-31T23:59:59-23:59", "9999-12-30T22:00:00.999Z"),
        ] {
            assert_eq!(text.parse::<Time>().unwrap().to_string(), read, "{text}");
        }
        assert!("9999".parse::<Time>().is_err() && "soon".parse::<Time>().is_err());
    }

    #[test]
    fn instants_around_1970_keep_their_distances() {
        let instants = [-2, -1, 0, 1, 2].map(Time::of);
        assert!(instants.is_sorted());
        assert_eq!(instants.map(Time::milliseconds), [-2, -1, 0, 1, 2]);
        assert_eq!(instants[3].duration_since(instants[1]), Duration::from_millis(2));
        assert_eq!((Time::EPOCH, Time::EPOCH.before(Duration::from_millis(1))), (instants[2], instants[1]));
        assert_eq!(size_of::<Option<Time>>(), size_of::<Time>());
    }

    #[test]
    fn instants_beyond_the_last_one_are_clamped() {
        let last = Time::new(Timestamp::MAX);
        assert_eq!(Time::EPOCH.after(Duration::from_millis(u64::MAX)), last);
        assert_eq!(Time::EPOCH.after(Duration::MAX), last);
        assert_eq!(last.after(Duration::from_millis(1)), last);
        assert_eq!(Time::EPOCH.duration_since(last), Duration::ZERO);
    }
}
