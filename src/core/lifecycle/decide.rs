//! The decision: computes the next status from the input, the status of the binding and the time.

use super::conditions::{BindingStatus, conditions};
use super::input::{LifecycleInput, PreviousStatus, end};
use super::timers::{Defaults, in_effect};
use crate::api::{ConversationStatus, Deadlines, Duration, State, StateReason, Time, TimersInEffect};

/// The longest time from the creation time, which has whole seconds, until a create that does not wait is admitted.
const MAX_ADMISSION_TIME: std::time::Duration = std::time::Duration::from_secs(3);

/// The status in effect, and the time of its next change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The whole status, except `reportedActivityTime`, which gateways own.
    pub status: ConversationStatus,
    /// The next deadline: the time at which a timer changes the state, unless activity or the spec changes first.
    pub next: Option<Time>,
    /// Whether only a default closes the conversation, or would if it were not withheld: no timer of its own is due, and its spec does
    /// not request it.
    pub is_closed_by_default: bool,
}

/// The status in effect at `now`. `defaults` apply to the timers that the conversation does not set. `binding_status` matters only while
/// the conversation is open and has a contact.
#[must_use]
pub fn decide(
    input: &LifecycleInput,
    defaults: &Defaults,
    binding_status: Option<&BindingStatus>,
    now: Time,
) -> Decision {
    let before = &input.status;
    if before.state == Some(State::Closed) {
        return closed(input, before, now);
    }
    let (last_activity_time, counted_activity_time) = activity(input, now);
    let has_new_activity = last_activity_time != before.last_activity_time;
    let waits = match binding_status {
        Some(BindingStatus::HeldByAnother) => true,
        Some(BindingStatus::Held { .. }) => false,
        None => input.waiting_since().is_some(),
    };
    // The timers of a conversation that waited start when it no longer does. One that was never told so may have waited as well.
    let has_waited = match binding_status {
        Some(BindingStatus::Held { since, .. }) if input.is_pending() => {
            *since > input.creation_time.after(MAX_ADMISSION_TIME)
        }
        _ => input.was_waiting(),
    };
    let starts_anew = !waits && has_waited && !input.is_being_deleted;
    let last_activity_time = if starts_anew { last_activity_time.max(Some(now)) } else { last_activity_time };
    let base = last_activity_time.unwrap_or(input.creation_time);
    // Closing is final, so the timer may be late, but never early.
    let unassigned_time =
        input.is_unassigned.then(|| input.known_unassigned_since().filter(|_| !starts_anew).unwrap_or(now));
    let has_timers = !waits && !input.is_being_deleted;
    let timers = in_effect(input.own_timers(), defaults.timers);
    let inactive_due = inactive_due(&timers, base).filter(|_| has_timers);
    let closes = [
        CloseTimer::after_activity(input, defaults, &timers, base),
        unassigned_time.and_then(|since| CloseTimer::after_unassigned(input, defaults, &timers, since)),
    ];
    let closes = closes.map(|close| close.filter(|_| has_timers));
    let is_due = |due: Option<Time>| due.is_some_and(|due| due <= now);
    let due_closes = || closes.iter().flatten().filter(|close| close.due <= now);
    let is_closed_by_default =
        input.state != State::Closed && due_closes().next().is_some() && due_closes().all(|close| close.is_default);
    // A timer of its own that is due needs no default.
    let may_close = |close: &&CloseTimer| !close.is_default || (is_closed_by_default && !defaults.are_withheld);
    let closed_by = due_closes().filter(may_close).min_by_key(|close| close.due);

    let (state, reason) = if input.state == State::Closed {
        (State::Closed, StateReason::Spec)
    } else if let Some(close) = closed_by {
        (State::Closed, close.reason)
    } else if input.state == State::Inactive {
        (State::Inactive, StateReason::Spec)
    } else {
        let was_inactive =
            (before.state, before.state_reason) == (Some(State::Inactive), Some(StateReason::InactiveTimer));
        if is_due(inactive_due) || (was_inactive && !has_new_activity) {
            (State::Inactive, StateReason::InactiveTimer)
        } else if was_inactive {
            (State::Active, StateReason::Activity)
        } else {
            let kept = before.state_reason.filter(|_| before.state == Some(State::Active));
            (State::Active, kept.unwrap_or(StateReason::Spec))
        }
    };

    let is_closed = state == State::Closed;
    let inactive_time = inactive_due.filter(|_| state == State::Active);
    let close_times = closes.iter().flatten().map(|close| close.due);
    let close_time = close_times.clone().min().filter(|_| !is_closed);
    let deadlines = Deadlines { inactive_time, close_time };
    let held = match binding_status {
        Some(BindingStatus::Held { name, .. }) if !is_closed && !input.is_being_deleted => {
            Some(name.as_str().to_owned())
        }
        _ => None,
    };
    let kept_transition = before.state_transition_time.filter(|_| before.state == Some(state));
    let status = ConversationStatus {
        observed_generation: Some(input.generation),
        state: Some(state),
        state_reason: Some(reason),
        state_transition_time: Some(kept_transition.unwrap_or(now)),
        reported_activity_time: None,
        counted_activity_time,
        last_activity_time,
        unassigned_time,
        timers: Some(timers).filter(|timers| !is_closed && *timers != TimersInEffect::default()),
        deadlines: Some(deadlines).filter(|deadlines| *deadlines != Deadlines::default()),
        closed_time: is_closed.then_some(now),
        address_binding_name: held,
        conditions: conditions(input, state, binding_status, now),
    };
    // A close that is due and withheld has no deadline: it waits for something else than time. Meanwhile, the other timers run.
    let is_settled = is_closed && !is_closed_by_default;
    let next = inactive_time.into_iter().chain(close_times).filter(|due| *due > now && !is_settled).min();
    Decision { status, next, is_closed_by_default }
}

/// A timer that closes a conversation.
struct CloseTimer {
    due: Time,
    reason: StateReason,
    /// Whether the conversation does not set it itself.
    is_default: bool,
}

impl CloseTimer {
    /// The timer `closeAfter` of a conversation whose last activity was at `activity`.
    fn after_activity(
        input: &LifecycleInput,
        defaults: &Defaults,
        timers: &TimersInEffect,
        activity: Time,
    ) -> Option<Self> {
        let is_default = input.close_after.is_none();
        Self::of(timers.close_after, activity, StateReason::CloseTimer, is_default, defaults)
    }

    /// The timer `closeUnassignedAfter` of a conversation that has been unassigned since `since`.
    fn after_unassigned(
        input: &LifecycleInput,
        defaults: &Defaults,
        timers: &TimersInEffect,
        since: Time,
    ) -> Option<Self> {
        let is_default = input.close_unassigned_after.is_none();
        Self::of(timers.close_unassigned_after, since, StateReason::UnassignedTimer, is_default, defaults)
    }

    fn of(
        timer: Option<Duration>,
        since: Time,
        reason: StateReason,
        is_default: bool,
        defaults: &Defaults,
    ) -> Option<Self> {
        let due = end(since, timer?);
        let due = if is_default { Some(due).max(defaults.closes_from).unwrap_or(due) } else { due };
        Some(Self { due, reason, is_default })
    }
}

/// The deadline of the timer `inactiveAfter` of a conversation whose last activity was at `activity`.
fn inactive_due(timers: &TimersInEffect, activity: Time) -> Option<Time> {
    timers.inactive_after.map(|after| end(activity, after))
}

/// The deadline of the timer that changes the state from the previous one to that of `status`; `None` if the state is the same, or no
/// timer changes it.
#[must_use]
pub fn due(input: &LifecycleInput, defaults: &Defaults, status: &ConversationStatus) -> Option<Time> {
    if status.state == input.status.state {
        return None;
    }
    let activity = status.last_activity_time.unwrap_or(input.creation_time);
    let timers = in_effect(input.own_timers(), defaults.timers);
    let close = match status.state_reason? {
        StateReason::InactiveTimer => return inactive_due(&timers, activity),
        StateReason::CloseTimer => CloseTimer::after_activity(input, defaults, &timers, activity),
        StateReason::UnassignedTimer => CloseTimer::after_unassigned(input, defaults, &timers, status.unassigned_time?),
        StateReason::Spec | StateReason::Activity => None,
    };
    close.map(|close| close.due)
}

/// The status of a closed conversation. It is final, except for the conditions and the observed generation.
fn closed(input: &LifecycleInput, before: &PreviousStatus, now: Time) -> Decision {
    let status = ConversationStatus {
        observed_generation: Some(input.generation),
        state: before.state,
        state_reason: before.state_reason,
        state_transition_time: before.state_transition_time,
        reported_activity_time: None,
        counted_activity_time: before.counted_activity_time,
        last_activity_time: before.last_activity_time,
        unassigned_time: before.unassigned_time,
        timers: None,
        deadlines: None,
        closed_time: before.closed_time,
        address_binding_name: None,
        conditions: conditions(input, State::Closed, None, now),
    };
    Decision { status, next: None, is_closed_by_default: false }
}

/// The last activity in effect, and the report that was clamped to `now` because it was in the future. The latter is stored so that
/// it counts once.
fn activity(input: &LifecycleInput, now: Time) -> (Option<Time>, Option<Time>) {
    let PreviousStatus { last_activity_time, counted_activity_time, reported_activity, .. } = input.status;
    let Some(reported) = reported_activity else {
        return (last_activity_time, None);
    };
    if counted_activity_time == Some(reported) {
        return (last_activity_time, counted_activity_time);
    }
    // The creation counts as activity, so earlier reports have no effect.
    let new = Some(reported.min(now)).filter(|activity| *activity > input.creation_time);
    (last_activity_time.max(new), (reported > now).then_some(reported))
}

#[cfg(test)]
mod tests;
