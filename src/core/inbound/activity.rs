//! How often a message is reported as activity: each report is a write, so it is made once in a while, and early enough for the timers.

use crate::api::TimersInEffect;
use std::time::Duration;

/// The longest window, which is also that of a conversation without timers.
const MAX_WINDOW: Duration = Duration::from_mins(5);
/// The shortest window, unless a timer is so short that a third of it is less.
const MIN_WINDOW: Duration = Duration::from_secs(10);

/// The window in which a conversation with these timers has one report at its beginning and one at its end: a tenth of the shortest timer
/// that activity starts again, at least the lesser of 10 s and a third of this timer, and at most 5 minutes.
#[must_use]
pub fn activity_window(timers: Option<&TimersInEffect>) -> Duration {
    let timers = timers.into_iter().flat_map(|timers| [timers.inactive_after, timers.close_after]).flatten();
    let Some(shortest) = timers.min().map(crate::api::Duration::as_std) else { return MAX_WINDOW };
    (shortest / 10).max(MIN_WINDOW.min(shortest / 3)).min(MAX_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_a_part_of_the_shortest_timer_within_bounds() {
        let of = |inactive_after: &str, close_after: &str| {
            let timer = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
            activity_window(Some(&TimersInEffect {
                inactive_after: timer(inactive_after),
                close_after: timer(close_after),
                close_unassigned_after: Some("1s".parse().unwrap()),
            }))
        };
        let seconds = Duration::from_secs;
        for (inactive_after, close_after, expected) in [
            ("30m", "24h", seconds(180)),
            ("", "24h", seconds(300)),
            ("", "50m", seconds(300)),
            ("100s", "", seconds(10)),
            ("60s", "24h", seconds(10)),
            ("30s", "", seconds(10)),
            ("15s", "", seconds(5)),
            ("1s", "", seconds(1) / 3),
            ("", "", seconds(300)),
        ] {
            assert_eq!(of(inactive_after, close_after), expected, "{inactive_after} {close_after}");
        }
        assert_eq!(activity_window(None), seconds(300));
    }
}
