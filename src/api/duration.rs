//! Durations as users write them (GEP-2257), parsed by the same rule that the schema states.

use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

/// A span of time between one second and ten years, in the format of GEP-2257, such as `90s`, `30m`, `24h` or `1h30m`: one to four
/// pairs of a number and a unit. A number has at most five digits; the units are `h`, `m`, `s` and `ms`.
///
/// Source: <https://gateway-api.sigs.k8s.io/geps/gep-2257/>
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    milliseconds: NonZeroU64,
}

/// The reason why a text is not a [`Duration`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It is not in the format of GEP-2257.
    #[error("must be a duration such as 90s, 30m, 24h or 1h30m, with the units h, m, s and ms and no sign or fraction")]
    Spelling,
    /// It is shorter than [`Duration::MIN`] or longer than [`Duration::MAX`].
    #[error("must be between 1s and 87600h (ten years)")]
    Bounds,
}

/// The format of GEP-2257 as a regular expression (RE2).
pub(super) const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// A CEL rule: a text in the format of a duration is within the bounds.
pub(super) fn within_bounds() -> String {
    let (min, max) = (Duration::MIN, Duration::MAX);
    format!(
        "!self.matches('{PATTERN}') || (duration(self) >= duration('{min}') && duration(self) <= duration('{max}'))"
    )
}

impl Duration {
    /// The shortest duration: one second.
    pub const MIN: Self = Self { milliseconds: NonZeroU64::MIN.saturating_add(999) };
    /// The longest duration: 87,600 hours, which is ten years of 365 days.
    pub const MAX: Self = Self { milliseconds: NonZeroU64::MIN.saturating_add(87_600 * 3_600_000 - 1) };

    /// The same span of time as a [`std::time::Duration`], in whole milliseconds.
    #[must_use]
    pub const fn as_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.milliseconds.get())
    }
}

impl std::str::FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rest = text;
        let mut milliseconds = 0;
        for _ in 0..4 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            let number: u64 = match digits {
                1..=5 => number.parse().map_err(|_| DurationError::Spelling)?,
                _ => return Err(DurationError::Spelling),
            };
            let units = after.bytes().take_while(u8::is_ascii_lowercase).count();
            let (unit, after) = after.split_at(units);
            milliseconds += number
                * match unit {
                    "h" => 3_600_000,
                    "m" => 60_000,
                    "s" => 1_000,
                    "ms" => 1,
                    _ => return Err(DurationError::Spelling),
                };
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        if !rest.is_empty() {
            return Err(DurationError::Spelling);
        }
        let duration = NonZeroU64::new(milliseconds).map(|milliseconds| Self { milliseconds });
        duration.filter(|duration| (Self::MIN..=Self::MAX).contains(duration)).ok_or(DurationError::Bounds)
    }
}

impl TryFrom<String> for Duration {
    type Error = DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

impl std::fmt::Display for Duration {
    /// Writes the shortest form, such as `1h30m` for `90m`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.milliseconds.get();
        for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if rest >= length {
                write!(f, "{}{unit}", rest / length)?;
                rest %= length;
            }
        }
        Ok(())
    }
}

impl schemars::JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "maxLength": 28,
            "x-kubernetes-validations": [
                {"rule": format!("self.matches('{PATTERN}')"), "message": DurationError::Spelling.to_string()},
                {"rule": within_bounds(), "message": DurationError::Bounds.to_string()},
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_gep_2257_are_parsed() {
        for (text, milliseconds) in [
            ("1s", 1_000),
            ("1000ms", 1_000),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("30m1h", 5_400_000),
            ("1h1h", 7_200_000),
            ("00001s", 1_000),
            ("87600h", 315_360_000_000),
            ("87599h59m59s1000ms", 315_360_000_000),
        ] {
            assert_eq!(
                text.parse::<Duration>().map(Duration::as_std),
                Ok(std::time::Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn durations_in_other_formats_are_rejected() {
        for text in [
            "",
            "1",
            "s",
            "1.5h",
            "-1s",
            "+1s",
            " 1s",
            "1s ",
            "1d",
            "1S",
            "100000s",
            "1h1m1s1ms1s",
            "1us",
            "1s\n",
            "٣s",
        ] {
            assert_eq!(text.parse::<Duration>(), Err(DurationError::Spelling), "{text:?}");
        }
    }

    #[test]
    fn durations_out_of_bounds_are_rejected() {
        for text in ["0s", "999ms", "87600h1ms", "99999h99999h99999h99999h"] {
            assert_eq!(text.parse::<Duration>(), Err(DurationError::Bounds), "{text}");
        }
    }

    #[test]
    fn formatted_durations_are_parsed_to_the_same_value() {
        for text in ["1s", "1h30m", "1ms1h", "87600h", "24h", "1s1ms"] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration.to_string().parse(), Ok(duration), "{text}");
        }
    }
}
