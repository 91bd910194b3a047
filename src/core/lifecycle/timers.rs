//! The timers in effect: those of the conversation, else the defaults of its ProxyAddress, else those of the installation.

use crate::api::{Time, Timer, Timers, TimersInEffect};

/// The defaults of the conversations behind a proxy address, and when they may close one. They are looked up for each decision, and
/// never stored with a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// The default timers: those of the ProxyAddress [over](with_defaults) those of the installation.
    pub timers: Timers,
    /// The earliest time at which a default closes a conversation; `None` if it may close one at any time. Closing is final, so a change
    /// of a default must not close anything at once.
    pub closes_from: Option<Time>,
    /// Whether no default closes a conversation for now, even if it is due. Timers of the conversation itself close it all the same.
    pub are_withheld: bool,
}

/// `timers` with `defaults` for the fields that it does not set. A default that contradicts `timers` does not apply: a `closeAfter` that
/// is not longer than `inactiveAfter`, or an `inactiveAfter` that is not shorter than the `closeAfter` in effect. `never` counts as set.
#[must_use]
pub fn with_defaults(timers: Timers, defaults: Timers) -> Timers {
    let close_after = timers
        .close_after
        .or_else(|| defaults.close_after.filter(|close_after| !is_contradiction(timers.inactive_after, *close_after)));
    let inactive_after = timers.inactive_after.or_else(|| {
        let contradicts = |after| close_after.is_some_and(|close_after| is_contradiction(Some(after), close_after));
        defaults.inactive_after.filter(|after| !contradicts(*after))
    });
    let close_unassigned_after = timers.close_unassigned_after.or(defaults.close_unassigned_after);
    Timers { inactive_after, close_after, close_unassigned_after }
}

/// The timers in effect for a conversation that sets the timers `own`.
#[must_use]
pub(super) fn in_effect(own: Timers, defaults: Timers) -> TimersInEffect {
    let Timers { inactive_after, close_after, close_unassigned_after } = with_defaults(own, defaults);
    TimersInEffect {
        inactive_after: inactive_after.and_then(Timer::after),
        close_after: close_after.and_then(Timer::after),
        close_unassigned_after: close_unassigned_after.and_then(Timer::after),
    }
}

/// Whether a conversation with these timers would be closed before it is Inactive. The schema rejects such timers.
#[must_use]
pub fn is_contradiction(inactive_after: Option<Timer>, close_after: Timer) -> bool {
    let pair = inactive_after.and_then(Timer::after).zip(close_after.after());
    pair.is_some_and(|(inactive_after, close_after)| close_after <= inactive_after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Timers as texts; an empty text is an absent timer.
    fn timers([inactive_after, close_after, close_unassigned_after]: [&str; 3]) -> Timers {
        let timer = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        Timers {
            inactive_after: timer(inactive_after),
            close_after: timer(close_after),
            close_unassigned_after: timer(close_unassigned_after),
        }
    }

    fn expected_timers(texts: [&str; 3]) -> TimersInEffect {
        let [inactive_after, close_after, close_unassigned_after] = texts.map(|text| text.parse().ok());
        TimersInEffect { inactive_after, close_after, close_unassigned_after }
    }

    #[test]
    fn default_applies_to_each_absent_field_by_itself() {
        let defaults = ["30m", "24h", "1h"];
        for (own, expected) in [
            (["", "", ""], ["30m", "24h", "1h"]),
            (["10m", "", ""], ["10m", "24h", "1h"]),
            (["", "2h", ""], ["30m", "2h", "1h"]),
            (["", "", "5m"], ["30m", "24h", "5m"]),
            (["never", "never", "never"], ["", "", ""]),
            (["", "never", ""], ["30m", "", "1h"]),
        ] {
            assert_eq!(in_effect(timers(own), timers(defaults)), expected_timers(expected), "{own:?}");
        }
    }

    #[test]
    fn contradicting_default_does_not_apply() {
        let defaults = ["30m", "24h", ""];
        for (own, expected) in [
            (["24h", "", ""], ["24h", "", ""]),
            (["23h", "", ""], ["23h", "24h", ""]),
            (["", "30m", ""], ["", "30m", ""]),
            (["", "31m", ""], ["30m", "31m", ""]),
            (["never", "30m", ""], ["", "30m", ""]),
        ] {
            assert_eq!(in_effect(timers(own), timers(defaults)), expected_timers(expected), "{own:?}");
        }
    }

    #[test]
    fn proxy_address_opts_out_of_a_default_of_the_installation() {
        let (declared, installation) = (timers(["", "never", "10m"]), timers(["30m", "24h", "1h"]));
        let defaults = with_defaults(declared, installation);
        assert_eq!(in_effect(timers([""; 3]), defaults), expected_timers(["30m", "", "10m"]));
        assert_eq!(in_effect(timers(["", "2h", ""]), defaults), expected_timers(["30m", "2h", "10m"]));
    }

    prop_compose! {
        fn any_timers()(
            inactive_after in any_timer(), close_after in any_timer(), close_unassigned_after in any_timer(),
        ) -> Timers {
            Timers { inactive_after, close_after, close_unassigned_after }
        }
    }

    fn any_timer() -> impl Strategy<Value = Option<Timer>> {
        prop_oneof![
            Just(None),
            Just(Some(Timer::Never)),
            (1_u64..6).prop_map(|seconds| format!("{seconds}s").parse().ok()),
        ]
    }

    fn is_consistent(timers: Timers) -> bool {
        !timers.close_after.is_some_and(|close_after| is_contradiction(timers.inactive_after, close_after))
    }

    proptest! {
        #[test]
        fn own_timer_always_wins(own in any_timers(), defaults in any_timers()) {
            let merged = with_defaults(own, defaults);
            prop_assert!(own.inactive_after.is_none() || merged.inactive_after == own.inactive_after);
            prop_assert!(own.close_after.is_none() || merged.close_after == own.close_after);
            prop_assert!(own.close_unassigned_after.is_none() || merged.close_unassigned_after == own.close_unassigned_after);
        }

        #[test]
        fn merged_timers_are_own_or_default_or_contradict(own in any_timers(), defaults in any_timers()) {
            let merged = with_defaults(own, defaults);
            if merged.close_after != own.close_after.or(defaults.close_after) {
                prop_assert!(is_contradiction(own.inactive_after, defaults.close_after.unwrap()));
            }
            if merged.inactive_after != own.inactive_after.or(defaults.inactive_after) {
                prop_assert!(is_contradiction(defaults.inactive_after, merged.close_after.unwrap()));
            }
            prop_assert_eq!(merged.close_unassigned_after, own.close_unassigned_after.or(defaults.close_unassigned_after));
        }

        #[test]
        fn defaults_add_no_contradiction(own in any_timers(), declared in any_timers(), installation in any_timers()) {
            prop_assume!(is_consistent(own));
            prop_assert!(is_consistent(with_defaults(own, with_defaults(declared, installation))));
        }

        #[test]
        fn absent_defaults_change_nothing(own in any_timers()) {
            prop_assert_eq!(with_defaults(own, Timers::default()), own);
        }
    }
}
