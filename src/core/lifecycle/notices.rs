//! Notices: the changes of a conversation that users are notified of. The controller records each of them as an Event, and sends it to the
//! sink of the lifecycle events.

use super::PreviousStatus;
use crate::api::{ConditionReason, ConditionStatus, ConditionType, ConversationStatus, State, StateReason, Time};
use crate::core::denial::ALREADY_BOUND;

/// A change of a conversation that users are notified of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The kind of change, for programs.
    pub reason: NoticeReason,
    /// Time of the change. Reason and time identify the notice, so that it is recorded once.
    pub time: Time,
    /// The reason of the state, if the state has changed.
    pub state_reason: Option<StateReason>,
    /// The description of the change, for people.
    pub note: String,
}

/// The reason of a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeReason {
    /// Another conversation holds the binding.
    AddressAlreadyBound,
    /// The conversation waited for its binding and holds it now.
    Bound,
    /// The conversation has no participant.
    Unassigned,
    /// The conversation became Inactive.
    Inactive,
    /// The conversation became Active again.
    Reactivated,
    /// The conversation became Closed.
    Closed,
    /// The closed conversation was deleted because its time to live elapsed.
    TTLExpired,
    /// The stored conversation cannot be decoded: it does not match the schema.
    InvalidObject,
}

impl NoticeReason {
    /// The reason as it appears in the Event.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AddressAlreadyBound => "AddressAlreadyBound",
            Self::Bound => "Bound",
            Self::Unassigned => "Unassigned",
            Self::Inactive => "Inactive",
            Self::Reactivated => "Reactivated",
            Self::Closed => "Closed",
            Self::TTLExpired => "TTLExpired",
            Self::InvalidObject => "InvalidObject",
        }
    }

    /// Whether the change asks for action by a user.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        matches!(self, Self::AddressAlreadyBound | Self::Unassigned | Self::InvalidObject)
    }
}

/// The notices of a change from `before` to `status`.
#[must_use]
pub fn new_notices(before: &PreviousStatus, status: &ConversationStatus) -> Vec<Notice> {
    use {ConditionReason as Reason, ConditionStatus as Status, ConditionType as Type};
    let conditions = status.conditions.iter().filter_map(|condition| {
        // Events are often copied into logs, which must not contain addresses. The condition has the addresses.
        let (reason, note) = match (condition.type_, condition.status, condition.reason) {
            (Type::Stalled, Status::True, Reason::AddressAlreadyBound) => (
                NoticeReason::AddressAlreadyBound,
                format!("{ALREADY_BOUND}: another conversation holds the binding; the condition Bound has the details and the remedy"),
            ),
            (Type::Bound, Status::True, _) if before.since(Type::Bound, Status::False).is_some() => {
                (NoticeReason::Bound, "The conversation waited for its binding and holds it now".to_owned())
            }
            (Type::Unassigned, Status::True, _) => (NoticeReason::Unassigned, condition.message.clone()),
            _ => return None,
        };
        let is_unchanged = before.since(condition.type_, condition.status).is_some();
        let time = condition.last_transition_time;
        (!is_unchanged).then_some(Notice { reason, time, state_reason: None, note })
    });
    let state_reason = status.state_reason.unwrap_or(StateReason::Spec);
    let because = match state_reason {
        StateReason::InactiveTimer => "the timer inactiveAfter expired",
        StateReason::CloseTimer => "the timer closeAfter expired",
        StateReason::UnassignedTimer => "the timer closeUnassignedAfter expired",
        StateReason::Activity => "activity was reported",
        StateReason::Spec => "spec.state requests it",
    };
    let change = match (before.state.unwrap_or_default(), status.state.unwrap_or_default()) {
        (State::Active, State::Inactive) => Some((NoticeReason::Inactive, "Inactive")),
        (State::Inactive, State::Active) => Some((NoticeReason::Reactivated, "Active again")),
        (State::Active | State::Inactive, State::Closed) => Some((NoticeReason::Closed, "Closed")),
        _ => None,
    };
    let change = change.zip(status.state_transition_time).map(|((reason, word), time)| Notice {
        reason,
        time,
        state_reason: Some(state_reason),
        note: format!("The conversation became {word}: {because}"),
    });
    conditions.chain(change).collect()
}

/// The notices of all changes in `status` at `since` or later, recorded or not.
///
/// There is no notice if `spec.state` was Inactive and is Active again: the status is then the same as that of a conversation that was
/// always Active.
#[must_use]
pub fn notices_since(status: &ConversationStatus, since: Time) -> Vec<Notice> {
    let before = PreviousStatus::of(status).derived_predecessor();
    new_notices(&before, status).into_iter().filter(|notice| notice.time >= since).collect()
}

/// The notice of a stored conversation that cannot be decoded because of `error`.
#[must_use]
pub fn invalid_object(creation_time: Time, error: &str) -> Notice {
    let note = format!("The conversation is invalid and is not processed until it is corrected: {error}");
    Notice { reason: NoticeReason::InvalidObject, time: creation_time, state_reason: None, note }
}

/// The notice of a conversation that was deleted because its time to live elapsed at `expiry`. `finalizers` still keep the object.
#[must_use]
pub fn expired(expiry: Time, finalizers: &[String]) -> Notice {
    let because = "because it had been closed for longer than ttlAfterClosed";
    let note = if finalizers.is_empty() {
        format!("The conversation was deleted {because}")
    } else {
        let finalizers = finalizers.join(", ");
        format!("The conversation is being deleted {because}; its finalizers still keep the object: {finalizers}")
    };
    Notice { reason: NoticeReason::TTLExpired, time: expiry, state_reason: None, note }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{at, input, live, seconds};
    use super::super::{BindingStatus, Defaults, LifecycleInput, decide};
    use super::*;

    #[test]
    fn reasons_are_spelled_as_in_the_api() {
        use NoticeReason::{
            AddressAlreadyBound, Bound, Closed, Inactive, InvalidObject, Reactivated, TTLExpired, Unassigned,
        };
        let reasons =
            [AddressAlreadyBound, Bound, Unassigned, Inactive, Reactivated, Closed, TTLExpired, InvalidObject];
        for reason in reasons {
            assert_eq!(reason.as_str(), format!("{reason:?}"));
        }
    }

    #[test]
    fn notice_is_new_in_one_decision_only() {
        let mut input =
            LifecycleInput { is_unassigned: true, inactive_after: seconds(10), close_after: seconds(20), ..input() };
        let mut recorded = Vec::new();
        for second in [1, 2, 10, 11, 20, 21] {
            let before = input.status.clone();
            let status = live(&mut input, second);
            recorded.extend(new_notices(&before, &status).into_iter().map(|notice| (notice.reason, notice.time)));
        }
        let expected =
            [(NoticeReason::Unassigned, at(1)), (NoticeReason::Inactive, at(10)), (NoticeReason::Closed, at(20))];
        assert_eq!(recorded, expected);
    }

    #[test]
    fn note_names_the_cause_but_no_address() {
        let another = BindingStatus::HeldByAnother;
        let status = decide(&input(), &Defaults::default(), Some(&another), at(1)).status;
        let [notice] = &new_notices(&PreviousStatus::default(), &status)[..] else { panic!("{status:?}") };
        assert_eq!(notice.reason, NoticeReason::AddressAlreadyBound);
        assert!(
            notice.note.starts_with("48031: another conversation") && !notice.note.contains('…'),
            "no address: {notice:?}"
        );
        assert!(notice.reason.is_warning());

        let mut input = LifecycleInput { inactive_after: seconds(10), ..input() };
        live(&mut input, 10);
        input.status.reported_activity = Some(at(15));
        let before = input.status.clone();
        let status = live(&mut input, 16);
        let [notice] = &new_notices(&before, &status)[..] else { panic!("{status:?}") };
        assert_eq!(notice.reason, NoticeReason::Reactivated);
        assert!(notice.note.contains("activity was reported") && !notice.reason.is_warning(), "{}", notice.note);
    }

    #[test]
    fn recent_notices_can_be_recovered_from_the_status() {
        let mut input =
            LifecycleInput { is_unassigned: true, inactive_after: seconds(10), close_after: seconds(30), ..input() };
        let mut recorded: Vec<Notice> = Vec::new();
        for second in [1, 10, 15, 30] {
            if second == 15 {
                input.status.reported_activity = Some(at(15));
            }
            let before = input.status.clone();
            let status = live(&mut input, second);
            recorded.extend(new_notices(&before, &status));
            let recent = notices_since(&status, at(second));
            assert_eq!(input.status.has_notices_since(at(second)), !recent.is_empty());
            assert_eq!(recent, recorded.iter().filter(|notice| notice.time >= at(second)).cloned().collect::<Vec<_>>());
            assert_eq!(notices_since(&status, at(second + 1)), []);
        }
        let reasons: Vec<_> = recorded.iter().map(|notice| notice.reason).collect();
        assert_eq!(
            reasons,
            [NoticeReason::Unassigned, NoticeReason::Inactive, NoticeReason::Reactivated, NoticeReason::Inactive]
        );
        input.status.reported_activity = None;
        assert_eq!(notices_since(&live(&mut input, 45), at(45))[0].reason, NoticeReason::Closed);
    }

    #[test]
    fn notice_of_a_hand_over_can_be_recovered_from_the_status() {
        let mut input = input();
        let another = BindingStatus::HeldByAnother;
        let waiting = decide(&input, &Defaults::default(), Some(&another), at(1)).status;
        input.status = PreviousStatus::of(&waiting);
        let status = live(&mut input, 5);
        let [notice] = &notices_since(&status, at(5))[..] else { panic!("{status:?}") };
        assert_eq!((notice.reason, notice.time), (NoticeReason::Bound, at(5)));
        assert!(input.status.has_notices_since(at(5)) && !input.status.has_notices_since(at(6)));
        let status = live(&mut LifecycleInput { status: PreviousStatus::default(), ..input }, 1);
        assert_eq!(notices_since(&status, at(1)), [], "it was bound from the first status on");
    }
}
