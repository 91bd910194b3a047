//! The conditions of a conversation, computed from its state and the status of its binding.

use super::LifecycleInput;
use crate::api::{Condition, ConditionReason, ConditionStatus, ConditionType, OnConflict, State, Time};
use crate::core::binding::BindingName;
use crate::core::denial::ALREADY_BOUND;

/// Whether a conversation that needs its binding holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindingStatus {
    /// The claim names this conversation and records its UID.
    Held {
        /// The binding.
        name: BindingName,
        /// When the claim recorded the UID: shortly after the creation time, unless the conversation waited.
        since: Time,
    },
    /// The claim names another conversation, which holds the binding.
    HeldByAnother,
}

/// The conditions in `state`. A condition whose status is unchanged keeps its transition time.
pub(super) fn conditions(
    input: &LifecycleInput,
    state: State,
    binding_status: Option<&BindingStatus>,
    now: Time,
) -> Vec<Condition> {
    use {ConditionReason as Reason, ConditionStatus as Status, ConditionType as Type};
    let is_closed = state == State::Closed;
    let conflict = match (binding_status, &input.binding) {
        (Some(BindingStatus::HeldByAnother), Some(name)) if !is_closed && !input.is_being_deleted => {
            Some(conflict(input.on_conflict, name))
        }
        _ => None,
    };
    let (ready, bound) = if is_closed {
        (
            (Status::True, Reason::Closed, "The conversation is closed"),
            (Status::False, Reason::Closed, "The conversation is closed and holds no binding"),
        )
    } else if input.is_being_deleted {
        (
            (
                Status::False,
                Reason::Deleting,
                "The conversation is being deleted; its finalizers still keep the object",
            ),
            (Status::False, Reason::Deleting, "The conversation is being deleted and holds no binding"),
        )
    } else if input.binding.is_none() {
        (
            (Status::True, Reason::Unbound, "The conversation is open and has no contact, so it needs no binding"),
            (Status::False, Reason::NoContact, "The conversation has no contact, so it has no binding"),
        )
    } else if let Some((reason, message)) = &conflict {
        ((Status::False, *reason, message.as_str()), (Status::False, *reason, message.as_str()))
    } else {
        (
            (Status::True, Reason::Bound, "The conversation is open and holds its binding"),
            (Status::True, Reason::BindingHeld, "Inbound messages for the binding are routed to this conversation"),
        )
    };
    let unassigned = if is_closed {
        (Status::False, Reason::Closed, "The conversation is closed")
    } else if input.is_unassigned {
        (
            Status::True,
            Reason::NoParticipants,
            "The conversation has no participants; no user receives its inbound messages",
        )
    } else {
        (Status::False, Reason::Assigned, "The conversation has at least one participant")
    };
    let stalled = conflict.as_ref().filter(|(reason, _)| *reason == Reason::AddressAlreadyBound);
    let stalled = stalled.map(|(reason, message)| (Type::Stalled, (Status::True, *reason, message.as_str())));
    [(Type::Ready, ready), (Type::Bound, bound), (Type::Unassigned, unassigned)]
        .into_iter()
        .chain(stalled)
        .map(|(type_, (status, reason, message))| {
            let kept = input.status.since(type_, status);
            Condition {
                type_,
                status,
                observed_generation: Some(input.generation),
                last_transition_time: kept.unwrap_or(now),
                reason,
                message: message.to_owned(),
            }
        })
        .collect()
}

/// Reason and message of a conversation whose binding another one holds. The message names the AddressBinding and not its holder,
/// so that it does not change with the holder.
fn conflict(on_conflict: OnConflict, name: &BindingName) -> (ConditionReason, String) {
    match on_conflict {
        OnConflict::Refuse => (
            ConditionReason::AddressAlreadyBound,
            format!(
                "{ALREADY_BOUND}: another conversation holds the binding; AddressBinding {name} shows which one. This \
                 conversation gets the binding as soon as it is free. If it is not needed, close or delete it."
            ),
        ),
        OnConflict::Wait => (
            ConditionReason::WaitingForBinding,
            format!(
                "The conversation waits for its binding; AddressBinding {name} shows the conversation that holds it. The \
                 oldest waiting conversation gets the binding as soon as it is free."
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{at, condition, decide_at, input, live};
    use super::super::input::PreviousStatus;
    use super::super::{Defaults, decide};
    use super::*;

    #[test]
    fn conditions_follow_state_and_binding() {
        use {ConditionReason as R, ConditionStatus as S, ConditionType as T};
        let status = decide_at(&input(), 1).status;
        assert_eq!(condition(&status, T::Ready), (S::True, R::Bound));
        assert_eq!(condition(&status, T::Bound), (S::True, R::BindingHeld));
        assert!(status.address_binding_name.unwrap().starts_with("sms-"));

        let status = decide_at(&LifecycleInput { binding: None, ..input() }, 1).status;
        assert_eq!(condition(&status, T::Ready), (S::True, R::Unbound));
        assert_eq!(condition(&status, T::Bound), (S::False, R::NoContact));
        assert_eq!(status.address_binding_name, None);

        let status = decide_at(&LifecycleInput { state: State::Closed, ..input() }, 1).status;
        for (type_, expected) in [(T::Ready, S::True), (T::Bound, S::False), (T::Unassigned, S::False)] {
            assert_eq!(condition(&status, type_), (expected, R::Closed));
        }
        assert_eq!(status.address_binding_name, None);

        let another = BindingStatus::HeldByAnother;
        let status = decide(&input(), &Defaults::default(), Some(&another), at(1)).status;
        for (type_, expected) in [(T::Ready, S::False), (T::Bound, S::False), (T::Stalled, S::True)] {
            assert_eq!(condition(&status, type_), (expected, R::AddressAlreadyBound));
        }
        assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(1)));
    }

    #[test]
    fn closed_or_unbound_conversation_is_never_stalled() {
        let another = BindingStatus::HeldByAnother;
        for input in [LifecycleInput { state: State::Closed, ..input() }, LifecycleInput { binding: None, ..input() }] {
            let status = decide(&input, &Defaults::default(), Some(&another), at(1)).status;
            assert!(status.conditions.iter().all(|condition| condition.type_ != ConditionType::Stalled), "{status:?}");
        }
    }

    #[test]
    fn stalled_is_present_only_while_true() {
        let mut input = input();
        let another = BindingStatus::HeldByAnother;
        input.status = PreviousStatus::of(&decide(&input, &Defaults::default(), Some(&another), at(1)).status);
        let status = decide_at(&input, 2).status;
        assert!(status.conditions.iter().all(|condition| condition.type_ != ConditionType::Stalled));
        let bound = status.conditions.iter().find(|condition| condition.type_ == ConditionType::Bound).unwrap();
        assert_eq!(bound.last_transition_time, at(2), "it moves with the status");
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let mut input = input();
        let first = live(&mut input, 1);
        input.generation = 2;
        let second = live(&mut input, 9);
        assert_eq!(first.state_transition_time, second.state_transition_time);
        for (first, second) in first.conditions.iter().zip(&second.conditions) {
            assert_eq!(first.last_transition_time, second.last_transition_time);
            assert_eq!(second.observed_generation, Some(2));
        }
    }
}
