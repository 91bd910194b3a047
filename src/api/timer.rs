//! The value of a timer: a duration, or `never`.

use super::duration::{Duration, DurationError, PATTERN, within_bounds};
use serde::{Deserialize, Serialize};

/// A timer: a duration in the format of GEP-2257 between one second and ten years, such as `30m`, or `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Timer {
    /// It expires after this period.
    After(Duration),
    /// It never expires, even if there is a default.
    Never,
}

/// The text of [`Timer::Never`].
const NEVER: &str = "never";

/// The reason why a text is not a [`Timer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}, or never")]
pub struct TimerError(#[from] DurationError);

impl Timer {
    /// The period after which it expires; `None` if it never does.
    #[must_use]
    pub const fn after(self) -> Option<Duration> {
        match self {
            Self::After(duration) => Some(duration),
            Self::Never => None,
        }
    }
}

impl std::str::FromStr for Timer {
    type Err = TimerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == NEVER { Ok(Self::Never) } else { Ok(Self::After(text.parse()?)) }
    }
}

impl TryFrom<String> for Timer {
    type Error = TimerError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Timer> for String {
    fn from(timer: Timer) -> Self {
        timer.to_string()
    }
}

impl std::fmt::Display for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::After(duration) => duration.fmt(f),
            Self::Never => f.write_str(NEVER),
        }
    }
}

impl schemars::JsonSchema for Timer {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timer".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let message = |error: DurationError| TimerError(error).to_string();
        schemars::json_schema!({
            "type": "string",
            "maxLength": 28,
            "x-kubernetes-validations": [
                {
                    "rule": format!("self == '{NEVER}' || self.matches('{PATTERN}')"),
                    "message": message(DurationError::Spelling),
                },
                {"rule": within_bounds(), "message": message(DurationError::Bounds)},
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_is_a_duration_or_never() {
        assert_eq!("never".parse(), Ok(Timer::Never));
        assert_eq!("30m".parse(), Ok(Timer::After("30m".parse().unwrap())));
        for (text, error) in [
            ("", DurationError::Spelling),
            ("Never", DurationError::Spelling),
            ("never ", DurationError::Spelling),
            ("0s", DurationError::Bounds),
        ] {
            assert_eq!(text.parse::<Timer>(), Err(TimerError(error)), "{text:?}");
        }
        for text in ["never", "1h30m"] {
            assert_eq!(text.parse::<Timer>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn timer_takes_no_more_memory_than_a_duration() {
        assert!(size_of::<Option<Timer>>() <= 16);
    }
}
