//! The tests of the decision.

use super::super::fixtures::{at, condition, decide_at, decide_with, held, input, live, seconds};
use super::super::timers::with_defaults;
use super::*;
use crate::api::{ConditionReason, ConditionStatus, ConditionType, OnConflict, Timer, Timers};
use proptest::prelude::*;

#[test]
fn rule_6_both_timers_start_at_the_last_activity() {
    let mut input = LifecycleInput { inactive_after: seconds(600), close_after: seconds(1_800), ..input() };
    let status = live(&mut input, 1);
    assert_eq!(status.deadlines, Some(Deadlines { inactive_time: Some(at(600)), close_time: Some(at(1_800)) }));
    assert_eq!(decide_at(&input, 599).status.state, Some(State::Active));
    let status = live(&mut input, 600);
    assert_eq!((status.state, status.state_reason), (Some(State::Inactive), Some(StateReason::InactiveTimer)));
    assert_eq!(decide_at(&input, 600).next, Some(at(1_800)));
    let status = live(&mut input, 1_800);
    assert_eq!((status.state, status.state_reason), (Some(State::Closed), Some(StateReason::CloseTimer)));
    assert_eq!((status.closed_time, status.deadlines), (Some(at(1_800)), None));
}

#[test]
fn rule_7_activity_reactivates_after_the_inactive_timer() {
    let mut input = LifecycleInput { inactive_after: seconds(10), ..input() };
    live(&mut input, 10);
    input.status.reported_activity = Some(at(15));
    let status = live(&mut input, 16);
    assert_eq!((status.state, status.state_reason), (Some(State::Active), Some(StateReason::Activity)));
    assert_eq!((status.last_activity_time, status.deadlines.unwrap().inactive_time), (Some(at(15)), Some(at(25))));
    assert_eq!(live(&mut input, 17).state_reason, Some(StateReason::Activity), "the reason is kept");
    assert_eq!(live(&mut input, 25).state, Some(State::Inactive), "the timer runs again");
}

#[test]
fn longer_timer_does_not_reactivate() {
    for longer in [seconds(1_000), None] {
        let mut input = LifecycleInput { inactive_after: seconds(10), ..input() };
        live(&mut input, 10);
        input.inactive_after = longer;
        let status = live(&mut input, 11);
        assert_eq!((status.state, status.state_reason), (Some(State::Inactive), Some(StateReason::InactiveTimer)));
    }
}

#[test]
fn parked_conversation_has_new_activity_by_its_spec_alone() {
    let mut input = LifecycleInput { state: State::Inactive, ..input() };
    let status = live(&mut input, 1);
    assert_eq!((status.state, status.state_reason), (Some(State::Inactive), Some(StateReason::Spec)));
    input.status.reported_activity = Some(at(2));
    assert_eq!(live(&mut input, 3).state, Some(State::Inactive));
    input.state = State::Active;
    let status = live(&mut input, 4);
    assert_eq!((status.state, status.state_reason), (Some(State::Active), Some(StateReason::Spec)));
}

#[test]
fn rule_5_closed_is_final() {
    let mut input = LifecycleInput { state: State::Closed, ..input() };
    let closed = live(&mut input, 5);
    assert_eq!((closed.state, closed.state_reason), (Some(State::Closed), Some(StateReason::Spec)));
    input.state = State::Active;
    input.status.reported_activity = Some(at(6));
    input.is_unassigned = true;
    assert_eq!(live(&mut input, 7), closed);
}

#[test]
fn rule_8_timers_missed_in_an_outage_end_in_the_final_state() {
    let both = LifecycleInput { inactive_after: seconds(10), close_after: seconds(20), ..input() };
    let status = decide_at(&both, 1_000).status;
    assert_eq!((status.state, status.state_reason), (Some(State::Closed), Some(StateReason::CloseTimer)));
    assert_eq!(status.closed_time, Some(at(1_000)), "the time of the decision, not the deadline");
}

#[test]
fn rule_9_unassigned_conversation_has_a_timer_of_its_own() {
    use {ConditionReason as Reason, ConditionStatus as Status, ConditionType as Type};
    let mut input = LifecycleInput { is_unassigned: true, close_unassigned_after: seconds(60), ..input() };
    let status = live(&mut input, 1);
    assert_eq!(condition(&status, Type::Unassigned), (Status::True, Reason::NoParticipants));
    assert_eq!(status.unassigned_time, Some(at(0)), "without a status, since its creation");
    assert_eq!(status.deadlines.unwrap().close_time, Some(at(60)));
    input.is_unassigned = false;
    let status = live(&mut input, 2);
    assert_eq!(condition(&status, Type::Unassigned), (Status::False, Reason::Assigned));
    assert_eq!((status.unassigned_time, status.deadlines), (None, None));
    input.is_unassigned = true;
    let status = live(&mut input, 30);
    assert_eq!(status.unassigned_time, Some(at(30)), "later, since the decision");
    let status = live(&mut input, 90);
    assert_eq!((status.state, status.state_reason), (Some(State::Closed), Some(StateReason::UnassignedTimer)));
}

#[test]
fn first_sight_counts_from_the_creation_if_the_spec_never_changed() {
    let unassigned = |generation| LifecycleInput { generation, is_unassigned: true, ..input() };
    assert_eq!(decide_at(&unassigned(1), 100).status.unassigned_time, Some(at(0)));
    assert_eq!(decide_at(&unassigned(2), 100).status.unassigned_time, Some(at(100)), "it may have had participants");
}

#[test]
fn unassigned_time_is_kept_unless_participants_may_have_come_and_gone() {
    let mut input = LifecycleInput { is_unassigned: true, ..input() };
    live(&mut input, 1);
    input.generation = 2;
    assert_eq!(live(&mut input, 100).unassigned_time, Some(at(0)), "one change of a spec without participants");
    input.generation = 4;
    assert_eq!(live(&mut input, 200).unassigned_time, Some(at(200)), "a change that nobody saw");
    assert_eq!(live(&mut input, 300).unassigned_time, Some(at(200)));
}

#[test]
fn earlier_close_timer_closes_the_conversation() {
    let input = LifecycleInput {
        close_after: seconds(50),
        close_unassigned_after: seconds(60),
        is_unassigned: true,
        ..input()
    };
    assert_eq!(decide_at(&input, 1_000).status.state_reason, Some(StateReason::CloseTimer));
    let input = LifecycleInput { close_after: seconds(70), ..input };
    assert_eq!(decide_at(&input, 1_000).status.state_reason, Some(StateReason::UnassignedTimer));
    assert_eq!(decide_at(&input, 1).next, Some(at(60)));
}

#[test]
fn activity_never_moves_back_nor_before_the_creation() {
    let mut input = input();
    for before in [Time::EPOCH, at(0)] {
        input.status.reported_activity = Some(before);
        assert_eq!(live(&mut input, 1).last_activity_time, None);
    }
    input.status.reported_activity = Some(at(5));
    let status = live(&mut input, 5);
    assert_eq!(
        (status.last_activity_time, status.counted_activity_time),
        (Some(at(5)), None),
        "a report of now is not in the future"
    );
    input.status.reported_activity = Some(at(3));
    assert_eq!(live(&mut input, 7).last_activity_time, Some(at(5)));
    input.status.reported_activity = None;
    assert_eq!(live(&mut input, 8).last_activity_time, Some(at(5)));
}

#[test]
fn future_activity_counts_once_as_of_its_observation() {
    let mut input = LifecycleInput { close_after: seconds(10), ..input() };
    input.status.reported_activity = Some(at(1_000_000));
    let status = live(&mut input, 5);
    assert_eq!((status.last_activity_time, status.counted_activity_time), (Some(at(5)), Some(at(1_000_000))));
    assert_eq!(live(&mut input, 14).last_activity_time, Some(at(5)), "it does not count again");
    assert_eq!(live(&mut input, 15).state, Some(State::Closed));
}

#[test]
fn corrected_future_report_replaces_the_activity_time() {
    let mut input = input();
    input.status.reported_activity = Some(at(1_000));
    live(&mut input, 5);
    input.status.reported_activity = Some(at(6));
    let status = live(&mut input, 7);
    assert_eq!((status.last_activity_time, status.counted_activity_time), (Some(at(6)), None));
}

#[test]
fn due_is_the_deadline_of_the_timer_that_changed_the_state() {
    let input = LifecycleInput {
        inactive_after: seconds(10),
        close_after: seconds(20),
        close_unassigned_after: seconds(15),
        is_unassigned: true,
        ..input()
    };
    assert_eq!(due(&input, &Defaults::default(), &decide_at(&input, 12).status), Some(at(10)));
    assert_eq!(due(&input, &Defaults::default(), &decide_at(&input, 99).status), Some(at(15)));
    let assigned = LifecycleInput { is_unassigned: false, ..input.clone() };
    assert_eq!(due(&assigned, &Defaults::default(), &decide_at(&assigned, 99).status), Some(at(20)));
    let closed = LifecycleInput { state: State::Closed, ..input };
    assert_eq!(due(&closed, &Defaults::default(), &decide_at(&closed, 99).status), None);
}

#[test]
fn closed_conversation_observes_new_generations() {
    let mut input = LifecycleInput { state: State::Closed, ..input() };
    let closed = live(&mut input, 1);
    input.generation = 2;
    assert!(!input.is_observed());
    let status = live(&mut input, 9);
    assert!(input.is_observed());
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(2)));
    assert_eq!((status.state, status.closed_time), (closed.state, closed.closed_time));
}

/// Stores the status of a conversation whose binding another one holds.
fn wait_for_binding(input: &mut LifecycleInput, second: u64) -> ConversationStatus {
    let status = decide(input, &Defaults::default(), Some(&BindingStatus::HeldByAnother), at(second)).status;
    input.status = PreviousStatus::of(&status);
    status
}

#[test]
fn timers_do_not_run_while_waiting_and_start_when_bound() {
    let mut input = LifecycleInput {
        on_conflict: OnConflict::Wait,
        is_unassigned: true,
        inactive_after: seconds(10),
        close_after: seconds(20),
        close_unassigned_after: seconds(30),
        ..input()
    };
    for second in [1, 1_000] {
        let status = wait_for_binding(&mut input, second);
        assert_eq!((status.state, &status.deadlines), (Some(State::Active), &None));
        assert_eq!(condition(&status, ConditionType::Bound).1, ConditionReason::WaitingForBinding);
        assert_eq!(decide(&input, &Defaults::default(), None, at(second + 1)).next, None, "nothing happens by itself");
    }
    let status = live(&mut input, 2_000);
    assert_eq!((status.last_activity_time, status.unassigned_time), (Some(at(2_000)), Some(at(2_000))));
    let deadlines = Deadlines { inactive_time: Some(at(2_010)), close_time: Some(at(2_020)) };
    assert_eq!((status.state, status.deadlines), (Some(State::Active), Some(deadlines)));
    assert_eq!(live(&mut input, 2_001).last_activity_time, Some(at(2_000)), "they start once");
    input.on_conflict = OnConflict::Refuse;
    assert_eq!(
        condition(&wait_for_binding(&mut input, 2_002), ConditionType::Ready),
        (ConditionStatus::False, ConditionReason::AddressAlreadyBound)
    );
}

#[test]
fn timers_start_when_bound_after_a_wait_that_no_status_tells_of() {
    let input = LifecycleInput {
        is_unassigned: true,
        close_after: seconds(20),
        close_unassigned_after: seconds(30),
        ..input()
    };
    let name = input.binding.clone().unwrap();
    let decide_since = |since| {
        let held = BindingStatus::Held { name: name.clone(), since: at(since) };
        decide(&input, &Defaults::default(), Some(&held), at(1_000)).status
    };
    assert_eq!(decide_since(1).state, Some(State::Closed), "it was admitted at its creation");
    let status = decide_since(900);
    assert_eq!((status.state, status.last_activity_time), (Some(State::Active), Some(at(1_000))));
    assert_eq!(status.unassigned_time, Some(at(1_000)));
}

#[test]
fn removal_of_the_contact_while_waiting_starts_the_timers() {
    let mut input = LifecycleInput { close_after: seconds(20), ..input() };
    wait_for_binding(&mut input, 1);
    input.binding = None;
    let status = live(&mut input, 1_000);
    assert_eq!((status.state, status.last_activity_time), (Some(State::Active), Some(at(1_000))));
    assert_eq!(condition(&status, ConditionType::Bound).1, ConditionReason::NoContact);
    assert_eq!(live(&mut input, 1_001).last_activity_time, Some(at(1_000)), "they start once");
    assert_eq!(live(&mut input, 1_020).state, Some(State::Closed));
}

#[test]
fn conversation_being_deleted_needs_no_binding_and_has_no_timers() {
    let mut input = LifecycleInput { close_after: seconds(10), ..input() };
    live(&mut input, 1);
    input.is_being_deleted = true;
    assert_eq!((input.needed_binding(), input.contended_binding()), (None, input.binding.as_ref()));
    let status = live(&mut input, 1_000);
    for type_ in [ConditionType::Ready, ConditionType::Bound] {
        assert_eq!(condition(&status, type_), (ConditionStatus::False, ConditionReason::Deleting));
    }
    assert_eq!((status.state, status.deadlines, status.address_binding_name), (Some(State::Active), None, None));
    assert_eq!(input.contended_binding(), None, "its status no longer says that it is bound");
    input.state = State::Closed;
    assert_eq!(live(&mut input, 1_001).state, Some(State::Closed));
}

prop_compose! {
    fn any_input()(
        state in prop_oneof![Just(State::Active), Just(State::Inactive), Just(State::Closed)],
        has_contact in any::<bool>(),
        is_unassigned in any::<bool>(),
        inactive_after in prop::option::of(1_u64..100),
        close_after in prop::option::of(1_u64..100),
        close_unassigned_after in prop::option::of(1_u64..100),
        reported in prop::option::of(0_u64..200),
    ) -> LifecycleInput {
        let base = input();
        LifecycleInput {
            state,
            binding: base.binding.clone().filter(|_| has_contact),
            is_unassigned,
            inactive_after: inactive_after.and_then(seconds),
            close_after: close_after.and_then(seconds),
            close_unassigned_after: close_unassigned_after.and_then(seconds),
            status: PreviousStatus { reported_activity: reported.map(at), ..PreviousStatus::default() },
            ..base
        }
    }
}

prop_compose! {
    fn any_defaults()(
        inactive_after in prop::option::of(1_u64..100),
        close_after in prop::option::of(1_u64..100),
        close_unassigned_after in prop::option::of(1_u64..100),
        closes_from in prop::option::of(0_u64..200),
        are_withheld in any::<bool>(),
    ) -> Defaults {
        let timers = Timers {
            inactive_after: inactive_after.and_then(seconds),
            close_after: close_after.and_then(seconds),
            close_unassigned_after: close_unassigned_after.and_then(seconds),
        };
        Defaults { timers: with_defaults(timers, Timers::default()), closes_from: closes_from.map(at), are_withheld }
    }
}

#[test]
fn default_timers_are_in_the_status_until_closed() {
    let timers = Timers { close_after: seconds(20), close_unassigned_after: Some(Timer::Never), ..Timers::default() };
    let defaults = Defaults { timers, ..Defaults::default() };
    let input = LifecycleInput { inactive_after: seconds(10), ..input() };
    let Decision { status, next, .. } = decide_with(&input, &defaults, 1);
    let [inactive_after, close_after] = ["10s", "20s"].map(|text| text.parse().ok());
    let in_effect = TimersInEffect { inactive_after, close_after, close_unassigned_after: None };
    assert_eq!((status.timers, next), (Some(in_effect), Some(at(10))));
    let closed = decide_with(&input, &defaults, 20);
    assert_eq!((closed.status.state, closed.status.timers), (Some(State::Closed), None));
    assert_eq!((closed.is_closed_by_default, due(&input, &defaults, &closed.status)), (true, Some(at(20))));
    assert_eq!(decide_at(&super::super::fixtures::input(), 1).status.timers, None, "there are none");
}

#[test]
fn default_closes_nothing_before_its_time() {
    let timers = Timers { close_after: seconds(20), ..Timers::default() };
    let defaults = Defaults { timers, closes_from: Some(at(600)), ..Defaults::default() };
    let early = decide_with(&input(), &defaults, 599);
    assert_eq!((early.status.state, early.next), (Some(State::Active), Some(at(600))));
    assert_eq!(early.status.deadlines.unwrap().close_time, Some(at(600)));
    let closed = decide_with(&input(), &defaults, 600);
    assert_eq!((closed.status.state, due(&input(), &defaults, &closed.status)), (Some(State::Closed), Some(at(600))));
    let own = LifecycleInput { close_after: seconds(30), ..input() };
    assert_eq!(decide_with(&own, &defaults, 30).status.state, Some(State::Closed), "its own timer is not delayed");
}

#[test]
fn withheld_default_waits_without_a_deadline() {
    let timers = Timers { close_after: seconds(20), ..Timers::default() };
    let defaults = Defaults { timers, are_withheld: true, ..Defaults::default() };
    let overdue = decide_with(&input(), &defaults, 50);
    assert_eq!((overdue.status.state, overdue.next), (Some(State::Active), None));
    assert!(overdue.is_closed_by_default);
    assert_eq!(overdue.status.deadlines.unwrap().close_time, Some(at(20)));
    let unassigned = LifecycleInput { is_unassigned: true, close_unassigned_after: seconds(60), ..input() };
    let own_next = decide_with(&unassigned, &defaults, 50);
    assert_eq!((own_next.status.state, own_next.next), (Some(State::Active), Some(at(60))));
    let usual = Defaults { are_withheld: false, ..defaults };
    let closed = decide_with(&unassigned, &usual, 50);
    assert_eq!((closed.status.state, closed.next), (Some(State::Closed), Some(at(60))), "its own timer runs on");
    let own_due = decide_with(&unassigned, &defaults, 60);
    assert!(!own_due.is_closed_by_default);
    assert_eq!(own_due.status.state_reason, Some(StateReason::UnassignedTimer));
}

proptest! {
    #[test]
    fn defaults_act_as_timers_of_the_conversation(
        base in any_input(), defaults in any_defaults(), first in 0_u64..200, later in 0_u64..200,
    ) {
        let defaults = Defaults { closes_from: None, are_withheld: false, ..defaults };
        let mut input = base;
        live(&mut input, first);
        let Timers { inactive_after, close_after, close_unassigned_after } =
            with_defaults(input.own_timers(), defaults.timers);
        let explicit = LifecycleInput { inactive_after, close_after, close_unassigned_after, ..input.clone() };
        let (by_default, mut by_spec) =
            (decide_with(&input, &defaults, first + later), decide_at(&explicit, first + later));
        if !by_default.is_closed_by_default && by_spec.status.state == Some(State::Closed) {
            // If both are due, its own timer is the reason.
            by_spec.status.state_reason = by_default.status.state_reason;
        }
        let next = by_default.next.filter(|_| by_default.status.state != Some(State::Closed));
        prop_assert_eq!((by_default.status, next), (by_spec.status, by_spec.next));
    }

    #[test]
    fn defaults_close_nothing_early_or_while_withheld(
        base in any_input(), defaults in any_defaults(), second in 0_u64..400,
    ) {
        let Decision { status, is_closed_by_default, next } = decide_with(&base, &defaults, second);
        let without = decide_at(&base, second).status;
        let is_closed = status.state == Some(State::Closed);
        let may_close = !defaults.are_withheld && defaults.closes_from.is_none_or(|from| from <= at(second));
        prop_assert!(may_close || !is_closed || without.state == Some(State::Closed));
        prop_assert_eq!(is_closed && without.state != Some(State::Closed), is_closed_by_default && !defaults.are_withheld);
        prop_assert!(next.is_none_or(|next| next > at(second)), "a deadline in the past would be due for ever");
    }

    #[test]
    fn withheld_default_changes_no_other_timer(base in any_input(), defaults in any_defaults(), second in 0_u64..400) {
        let decided = |are_withheld| decide_with(&base, &Defaults { are_withheld, ..defaults }, second);
        let (withheld, usual) = (decided(true), decided(false));
        prop_assert_eq!(withheld.is_closed_by_default, usual.is_closed_by_default);
        if !usual.is_closed_by_default {
            prop_assert_eq!(withheld, usual);
        }
    }

    #[test]
    fn decision_is_idempotent(base in any_input(), first in 0_u64..200, later in 0_u64..200) {
        let mut input = base;
        live(&mut input, first);
        let once = live(&mut input, first + later);
        prop_assert_eq!(live(&mut input, first + later), once);
    }

    #[test]
    fn state_changes_exactly_at_the_next_deadline(base in any_input(), first in 0_u64..200) {
        let mut input = base;
        // The first decision clamps a report in the future.
        let status = live(&mut input, first);
        match decide_at(&input, first).next {
            None => prop_assert_eq!(live(&mut input, 100_000), status),
            Some(next) => {
                let binding_status = held(&input);
                let before = decide(&input, &Defaults::default(), binding_status.as_ref(), next.before(std::time::Duration::from_millis(1)));
                prop_assert_eq!(before.status.state, status.state);
                prop_assert_ne!(decide(&input, &Defaults::default(), binding_status.as_ref(), next).status.state, status.state);
            }
        }
    }

    #[test]
    fn unassigned_time_is_never_early(changes in prop::collection::vec((1_u64..10, any::<bool>(), any::<bool>()), 1..20)) {
        let mut input = LifecycleInput { is_unassigned: changes[0].1, ..input() };
        let (mut now, mut since) = (0, 0);
        for (index, (pause, is_unassigned, is_seen)) in changes.into_iter().enumerate() {
            if index > 0 {
                now += pause;
                input.generation += 1;
                since = if input.is_unassigned { since } else { now };
                input.is_unassigned = is_unassigned;
            }
            if is_seen {
                let status = live(&mut input, now);
                prop_assert!(status.unassigned_time.is_none_or(|time| time >= at(since)), "{status:?}");
            }
        }
        let status = live(&mut input, now + 1);
        prop_assert!(status.unassigned_time.is_none_or(|time| time >= at(since)), "{status:?}");
    }

    #[test]
    fn closed_conversation_is_never_reopened(base in any_input(), first in 0_u64..200, then in any_input(), later in 0_u64..200) {
        let mut input = base;
        let status = live(&mut input, first);
        let mut then = LifecycleInput { status: input.status, ..then };
        let after = live(&mut then, first + later);
        prop_assert!(status.state != Some(State::Closed) || after.state == Some(State::Closed));
        prop_assert!(after.last_activity_time >= status.last_activity_time);
    }

    #[test]
    fn state_matches_the_documented_rules(base in any_input(), first in 0_u64..200, then in any_input(), later in 0_u64..200) {
        let mut input = base;
        let before = live(&mut input, first);
        // The schema allows to remove a contact, but not to add one.
        let binding = then.binding.clone().filter(|_| input.binding.is_some());
        let reported_activity = then.status.reported_activity;
        let mut then =
            LifecycleInput { binding, status: PreviousStatus { reported_activity, ..input.status }, ..then };
        let status = live(&mut then, first + later);
        let (now, activity) = (at(first + later), status.last_activity_time.unwrap_or(then.creation_time));
        let is_over = |since: Time, timer: Option<Timer>| {
            timer.and_then(Timer::after).is_some_and(|after| since.after(after.as_std()) <= now)
        };
        let was = |state| before.state == Some(state);

        let is_closed = was(State::Closed)
            || then.state == State::Closed
            || is_over(activity, then.close_after)
            || status.unassigned_time.is_some_and(|since| is_over(since, then.close_unassigned_after));
        prop_assert_eq!(status.state == Some(State::Closed), is_closed);
        if is_closed {
            return Ok(());
        }
        let was_idle = was(State::Inactive) && before.state_reason == Some(StateReason::InactiveTimer);
        let is_idle = is_over(activity, then.inactive_after)
            || (was_idle && status.last_activity_time == before.last_activity_time);
        let expected = if then.state == State::Inactive || is_idle { State::Inactive } else { State::Active };
        prop_assert_eq!(status.state, Some(expected));
        prop_assert_eq!(status.unassigned_time.is_some(), then.is_unassigned);
    }

    #[test]
    fn state_never_moves_back_without_input(base in any_input(), decisions in prop::collection::vec(0_u64..300, 1..20)) {
        let (mut input, mut decisions) = (base, decisions);
        decisions.sort_unstable();
        // From this second on no report is in the future.
        let from = input.status.reported_activity.map_or(0, |reported| reported.duration_since(at(0)).as_secs());
        let mut state = live(&mut input, from).state;
        for second in decisions {
            let next = live(&mut input, from + second).state;
            prop_assert!(next >= state, "{:?} after {:?}", next, state);
            state = next;
        }
    }

    #[test]
    fn order_of_activity_reports_does_not_matter(
        base in any_input(), reports in prop::collection::vec(0_u64..200, 1..8), turn in 0_usize..8,
    ) {
        // Without timers: one may elapse before the report that would have moved it.
        let input = LifecycleInput { inactive_after: None, close_after: None, close_unassigned_after: None, ..base };
        let after = |reports: &[u64]| {
            let mut input = input.clone();
            input.status.reported_activity = None;
            live(&mut input, 0);
            for report in reports {
                input.status.reported_activity = Some(at(*report));
                live(&mut input, 200);
            }
            let status = live(&mut input, 200);
            (status.state, status.last_activity_time, status.deadlines)
        };
        let mut turned = reports.clone();
        turned.rotate_left(turn % reports.len());
        prop_assert_eq!(after(&reports), after(&turned));
        turned.reverse();
        prop_assert_eq!(after(&reports), after(&turned));
    }

    #[test]
    fn due_equals_the_deadline_in_the_previous_status(base in any_input(), first in 0_u64..200, later in 0_u64..200) {
        let mut input = base;
        let before = live(&mut input, first);
        let status = decide_at(&input, first + later).status;
        // Activity counted in between moves the deadlines.
        if status.last_activity_time == before.last_activity_time
            && let Some(due) = due(&input, &Defaults::default(), &status)
        {
            let deadlines = before.deadlines.unwrap_or_default();
            let expected = if status.state == Some(State::Closed) { deadlines.close_time } else { deadlines.inactive_time };
            prop_assert_eq!(Some(due), expected);
            prop_assert!(due <= at(first + later));
        }
    }

    #[test]
    fn intermediate_decision_does_not_change_the_result(base in any_input(), first in 0_u64..200, later in 0_u64..200) {
        let mut input = base;
        // A report in the future is clamped at each decision, so its effect depends on when decisions are made.
        input.status.reported_activity = input.status.reported_activity.map(|reported| reported.min(at(first)));
        let (mut twice, mut once) = (input.clone(), input);
        live(&mut twice, first);
        prop_assert_eq!(live(&mut twice, first + later).state, live(&mut once, first + later).state);
    }
}
