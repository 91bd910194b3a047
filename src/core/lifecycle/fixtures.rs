//! Inputs and helpers that the tests of the lifecycle share.

use super::{BindingStatus, Decision, Defaults, LifecycleInput, PreviousStatus, decide};
use crate::api::{
    Channel, ConditionReason, ConditionStatus, ConditionType, ConversationStatus, OnConflict, State, Time, Timer,
};
use crate::core::binding::Binding;

/// `second` seconds after the creation.
pub fn at(second: u64) -> Time {
    Time::EPOCH.after(std::time::Duration::from_secs(1_000_000_000 + second))
}

/// An open conversation with a contact and a participant, without timers and without a status.
pub fn input() -> LifecycleInput {
    LifecycleInput {
        generation: 1,
        creation_time: at(0),
        is_being_deleted: false,
        state: State::Active,
        on_conflict: OnConflict::Refuse,
        channel: Channel::Sms,
        binding: Some(Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap().name()),
        is_unassigned: false,
        inactive_after: None,
        close_after: None,
        close_unassigned_after: None,
        ttl_after_closed: None,
        status: PreviousStatus::default(),
    }
}

/// A timer of `seconds` seconds; `None` for 0.
pub fn seconds(seconds: u64) -> Option<Timer> {
    format!("{seconds}s").parse().ok()
}

/// The status of the binding in the usual case: the conversation holds it if it has a contact.
pub fn held(input: &LifecycleInput) -> Option<BindingStatus> {
    input.binding.clone().map(|name| BindingStatus::Held { name, since: input.creation_time })
}

/// The decision `second` seconds after the creation, without defaults.
pub fn decide_at(input: &LifecycleInput, second: u64) -> Decision {
    decide_with(input, &Defaults::default(), second)
}

/// The decision `second` seconds after the creation, with `defaults`.
pub fn decide_with(input: &LifecycleInput, defaults: &Defaults, second: u64) -> Decision {
    decide(input, defaults, held(input).as_ref(), at(second))
}

/// Decides, and stores the status as the API server would: the field that gateways own is kept.
pub fn live(input: &mut LifecycleInput, second: u64) -> ConversationStatus {
    let status = decide_at(input, second).status;
    let reported_activity = input.status.reported_activity;
    input.status = PreviousStatus { reported_activity, ..PreviousStatus::of(&status) };
    status
}

/// Status and reason of a condition.
pub fn condition(status: &ConversationStatus, type_: ConditionType) -> (ConditionStatus, ConditionReason) {
    let condition = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (condition.status, condition.reason)
}
