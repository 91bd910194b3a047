//! The input of the lifecycle: the parts of a stored conversation that the next status depends on.

use crate::api::{
    Channel, ConditionStatus, ConditionType, Conversation, ConversationStatus, Duration, OnConflict, State,
    StateReason, Time, Timer, Timers,
};
use crate::core::binding::{Binding, BindingName, InvalidBinding};
use crate::core::effective::{self, stored_binding};

/// The input of the lifecycle. The index contains one for every open conversation, so it is small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifecycleInput {
    /// The generation of the spec.
    pub generation: i64,
    /// Creation time of the conversation.
    pub creation_time: Time,
    /// Whether it is being deleted and a finalizer keeps it.
    pub is_being_deleted: bool,
    /// The state that the spec requests.
    pub state: State,
    /// The handling of a binding that is not free.
    pub on_conflict: OnConflict,
    /// The channel of both addresses.
    pub channel: Channel,
    /// The binding that the spec names; `None` without a contact, and once the conversation is closed. The addresses are not kept.
    pub binding: Option<BindingName>,
    /// Whether the conversation has no participant.
    pub is_unassigned: bool,
    /// `timers.inactiveAfter`.
    pub inactive_after: Option<Timer>,
    /// `timers.closeAfter`.
    pub close_after: Option<Timer>,
    /// `timers.closeUnassignedAfter`.
    pub close_unassigned_after: Option<Timer>,
    /// `ttlAfterClosed`.
    pub ttl_after_closed: Option<Duration>,
    /// The previous status.
    pub status: PreviousStatus,
}

/// The parts of the previous status that the next one depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousStatus {
    pub(super) observed_generation: i64,
    pub(super) state: Option<State>,
    pub(super) state_reason: Option<StateReason>,
    pub(super) state_transition_time: Option<Time>,
    pub(super) reported_activity: Option<Time>,
    pub(super) counted_activity_time: Option<Time>,
    pub(super) last_activity_time: Option<Time>,
    pub(super) unassigned_time: Option<Time>,
    pub(super) closed_time: Option<Time>,
    /// The binding that it holds. The index shares the text of equal names.
    pub address_binding_name: Option<BindingName>,
    pub(super) conditions: PreviousConditions,
}

/// The conditions by type. Two arrays take less memory than one array of pairs, because they need no padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PreviousConditions {
    statuses: [Option<ConditionStatus>; CONDITIONS],
    since: [Option<Time>; CONDITIONS],
}

/// The number of condition types.
const CONDITIONS: usize = 4;

impl LifecycleInput {
    /// The input of a stored conversation.
    ///
    /// # Errors
    /// If it is open and its addresses form no binding, which every version of the schema excludes.
    pub fn of(conversation: &Conversation) -> Result<Self, InvalidBinding> {
        let spec = &conversation.spec;
        let timers = spec.timers.unwrap_or_default();
        let creation_time = conversation.metadata.creation_timestamp.as_ref().map(Time::from);
        Ok(Self {
            generation: conversation.metadata.generation.unwrap_or_default(),
            creation_time: creation_time.unwrap_or(Time::EPOCH),
            is_being_deleted: conversation.metadata.deletion_timestamp.is_some(),
            state: spec.state.unwrap_or_default(),
            on_conflict: spec.on_conflict.unwrap_or_default(),
            channel: spec.channel,
            binding: stored_binding(conversation)?.as_ref().map(Binding::name),
            is_unassigned: spec.participants.as_ref().is_none_or(Vec::is_empty),
            inactive_after: timers.inactive_after,
            close_after: timers.close_after,
            close_unassigned_after: timers.close_unassigned_after,
            ttl_after_closed: spec.ttl_after_closed,
            status: conversation.status.as_ref().map(PreviousStatus::of).unwrap_or_default(),
        })
    }

    /// The timers that the conversation sets itself.
    pub(super) fn own_timers(&self) -> Timers {
        let &Self { inactive_after, close_after, close_unassigned_after, .. } = self;
        Timers { inactive_after, close_after, close_unassigned_after }
    }

    /// The binding that the conversation needs, according to its stored spec and status.
    #[must_use]
    pub fn needed_binding(&self) -> Option<&BindingName> {
        effective::needed_binding(self.binding.as_ref(), self.state_in_effect(), self.is_being_deleted)
    }

    /// The binding that the conversation needs, or that its stored status still says to be bound. As long as the status says so, no
    /// other conversation may be told that it is bound.
    #[must_use]
    pub fn contended_binding(&self) -> Option<&BindingName> {
        self.needed_binding().or_else(|| self.status.address_binding_name.as_ref().filter(|_| self.is_bound()))
    }

    /// Time since which the conversation has waited for its binding, according to the stored status; `None` if it does not wait.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Time> {
        self.needed_binding().and_then(|_| self.status.waiting_since())
    }

    /// Whether the conversation waits for its binding according to the stored status, whatever its spec needs by now.
    #[must_use]
    pub fn was_waiting(&self) -> bool {
        self.status.waiting_since().is_some()
    }

    /// Whether no status has been decided yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.status.observed_generation == 0
    }

    /// The state in effect, according to the stored spec and status.
    #[must_use]
    pub fn state_in_effect(&self) -> State {
        effective::state_in_effect(Some(self.state), self.status.state)
    }

    /// Time since which the conversation, which has no participant, is known to have had none: since that in the stored status, or
    /// since its creation if it has no status yet. `None` if participants may have come and gone unseen, because the spec has
    /// changed more than once since the status was decided.
    pub(super) fn known_unassigned_since(&self) -> Option<Time> {
        let PreviousStatus { observed_generation, unassigned_time, .. } = self.status;
        let since = if observed_generation == 0 { Some(self.creation_time) } else { unassigned_time };
        since.filter(|_| self.generation <= observed_generation + 1)
    }

    /// Time at which the conversation became unassigned, according to the stored status; `None` if it has a participant.
    #[must_use]
    pub fn unassigned_since(&self) -> Option<Time> {
        self.is_unassigned.then(|| self.status.unassigned_time.unwrap_or(self.creation_time))
    }

    /// Time at which the closed conversation is to be deleted; `None` if it is open or has no time to live.
    #[must_use]
    pub fn expiry(&self) -> Option<Time> {
        let closed = self.status.closed_time.filter(|_| self.status.state == Some(State::Closed));
        closed.zip(self.ttl_after_closed).map(|(closed, ttl)| end(closed, ttl))
    }

    /// Whether the stored status was decided on the current generation of the spec.
    #[must_use]
    pub fn is_observed(&self) -> bool {
        self.status.observed_generation == self.generation
    }

    /// Whether the stored status has `Bound=True`.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.status.since(ConditionType::Bound, ConditionStatus::True).is_some()
    }

    /// Whether `status` differs from the stored one only in the last activity, the timers in effect, and the deadlines computed from
    /// them. The write of such a status may be delayed: nothing waits for it, and more activity is likely to follow.
    #[must_use]
    pub fn is_routine(&self, status: &ConversationStatus) -> bool {
        let before = &self.status;
        let after = PreviousStatus::of(status);
        let other = PreviousStatus {
            reported_activity: before.reported_activity,
            counted_activity_time: before.counted_activity_time,
            last_activity_time: before.last_activity_time,
            ..after
        };
        other == *before
    }
}

impl PreviousStatus {
    pub(super) fn of(status: &ConversationStatus) -> Self {
        Self {
            observed_generation: status.observed_generation.unwrap_or_default(),
            state: status.state,
            state_reason: status.state_reason,
            state_transition_time: status.state_transition_time,
            // Gateways may write any text here. A text that cannot be parsed as a time is ignored.
            reported_activity: status.reported_activity_time.as_ref().and_then(|text| text.parse().ok()),
            counted_activity_time: status.counted_activity_time,
            last_activity_time: status.last_activity_time,
            unassigned_time: status.unassigned_time,
            closed_time: status.closed_time,
            address_binding_name: status.address_binding_name.clone().map(BindingName::existing),
            conditions: status.conditions.iter().fold(PreviousConditions::default(), |mut previous, condition| {
                previous.statuses[condition.type_ as usize] = Some(condition.status);
                previous.since[condition.type_ as usize] = Some(condition.last_transition_time);
                previous
            }),
        }
    }

    /// Time since which the conversation has waited for its binding: it is not Ready, because it is not Bound.
    fn waiting_since(&self) -> Option<Time> {
        let is_ready = self.since(ConditionType::Ready, ConditionStatus::False).is_none();
        self.since(ConditionType::Bound, ConditionStatus::False).filter(|_| !is_ready)
    }

    /// Whether [`notices_since`](super::notices_since) may return a notice of this status for `since`.
    #[must_use]
    pub fn has_notices_since(&self, since: Time) -> bool {
        let is_first_state = self.state == Some(State::Active) && self.state_reason != Some(StateReason::Activity);
        let times = [
            self.state_transition_time.filter(|_| !is_first_state),
            self.since(ConditionType::Unassigned, ConditionStatus::True),
            self.since(ConditionType::Stalled, ConditionStatus::True),
            self.bound_after_wait(),
        ];
        times.into_iter().flatten().any(|time| time >= since)
    }

    /// Time at which the conversation got its binding after it had waited: its first status, which has its first state, did not say that it
    /// is bound. `None` if it was bound from the first status on, or if its state has changed since.
    fn bound_after_wait(&self) -> Option<Time> {
        let bound = self.since(ConditionType::Bound, ConditionStatus::True);
        bound.filter(|bound| self.state_transition_time.is_some_and(|first| *bound > first))
    }

    /// The status before this one, as far as it can be derived: each notice of it is a notice of this status.
    pub(super) fn derived_predecessor(&self) -> Self {
        let was_reactivated = (self.state, self.state_reason) == (Some(State::Active), Some(StateReason::Activity));
        let mut before = Self { state: was_reactivated.then_some(State::Inactive), ..Self::default() };
        if self.bound_after_wait().is_some() {
            before.conditions.statuses[ConditionType::Bound as usize] = Some(ConditionStatus::False);
            before.conditions.since[ConditionType::Bound as usize] = Some(Time::EPOCH);
        }
        before
    }

    /// Time at which the condition got this status; `None` if it has another status.
    pub(super) fn since(&self, type_: ConditionType, status: ConditionStatus) -> Option<Time> {
        let PreviousConditions { statuses, since } = &self.conditions;
        since[type_ as usize].filter(|_| statuses[type_ as usize] == Some(status))
    }
}

/// The deadline of a timer that started at `since`.
pub(super) fn end(since: Time, timer: Duration) -> Time {
    since.after(timer.as_std())
}

#[cfg(test)]
mod tests {
    use crate::core::lifecycle::fixtures::{at, decide_at, input, live, seconds};

    use super::*;

    #[test]
    fn held_bound_and_unassigned_follow_spec_and_status() {
        let mut input = LifecycleInput { is_unassigned: true, close_after: seconds(60), ..input() };
        assert_eq!((input.needed_binding(), input.is_bound()), (input.binding.as_ref(), false));
        assert_eq!(input.unassigned_since(), Some(at(0)), "there is no status yet");
        live(&mut input, 1);
        assert_eq!((input.needed_binding(), input.is_bound()), (input.binding.as_ref(), true));
        assert!(input.status.has_notices_since(at(1)) && !input.status.has_notices_since(at(2)));
        input.is_unassigned = false;
        live(&mut input, 2);
        assert_eq!(input.unassigned_since(), None);
        assert_eq!(input.state_in_effect(), State::Active);
        assert_eq!(
            LifecycleInput { state: State::Closed, ..input.clone() }.needed_binding(),
            None,
            "spec.state is Closed"
        );
        live(&mut input, 60);
        assert_eq!((input.state_in_effect(), input.needed_binding(), input.is_bound()), (State::Closed, None, false));
    }

    #[test]
    fn closed_conversation_expires_after_its_ttl() {
        let ttl_after_closed = "100s".parse().ok();
        let mut input = LifecycleInput { close_after: seconds(10), ttl_after_closed, ..input() };
        live(&mut input, 1);
        assert_eq!(input.expiry(), None, "it is open");
        live(&mut input, 12);
        assert_eq!(input.expiry(), Some(at(112)), "counted from closedTime");
        input.ttl_after_closed = None;
        assert_eq!(input.expiry(), None, "without a TTL it is kept");
    }

    #[test]
    fn status_is_routine_if_only_activity_changed() {
        let mut input = LifecycleInput { inactive_after: seconds(10), close_after: seconds(60), ..input() };
        live(&mut input, 1);
        input.status.reported_activity = Some(at(5));
        assert!(input.is_routine(&decide_at(&input, 6).status));
        input.status.reported_activity = Some(at(1_000));
        assert!(input.is_routine(&decide_at(&input, 6).status), "a report in the future as well");
        for (changed, what) in [
            (LifecycleInput { generation: 2, ..input.clone() }, "the generation"),
            (LifecycleInput { is_unassigned: true, ..input.clone() }, "the assignment"),
            (LifecycleInput { state: State::Inactive, ..input.clone() }, "the state"),
        ] {
            assert!(!changed.is_routine(&decide_at(&changed, 6).status), "{what} changed");
        }
        input.status.reported_activity = Some(at(5));
        assert!(!input.is_routine(&decide_at(&input, 15).status), "a timer elapsed");
        live(&mut input, 15);
        input.status.reported_activity = Some(at(17));
        assert!(!input.is_routine(&decide_at(&input, 18).status), "it is reactivated");
    }
}
