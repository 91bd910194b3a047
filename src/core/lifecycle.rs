//! State, times and conditions of a conversation as a function of what is stored of it, of its binding, and of the time.

use super::binding::{Binding, BindingName, InvalidBinding};
use crate::api::{
    Condition, ConditionReason, ConditionStatus, ConditionType, Conversation, ConversationStatus, Deadlines, State,
    StateReason, Time,
};

/// What the lifecycle decides from, and nothing else: small, since it is kept for every open conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The generation of the spec.
    pub generation: i64,
    /// When the conversation was created.
    pub creation_time: Time,
    /// The state that the spec asks for.
    pub state: State,
    /// The binding that the spec names; none without a contact.
    pub binding: Option<Binding>,
    /// Whether there is no participant.
    pub is_unassigned: bool,
    /// `timers.inactiveAfter`, in milliseconds.
    pub inactive_after: Option<u64>,
    /// `timers.closeAfter`, in milliseconds.
    pub close_after: Option<u64>,
    /// `timers.closeUnassignedAfter`, in milliseconds.
    pub close_unassigned_after: Option<u64>,
    /// What the status said, as far as the next one rests on it.
    pub status: StatusFacts,
}

/// What the next status rests on in the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusFacts {
    observed_generation: i64,
    state: Option<State>,
    state_reason: Option<StateReason>,
    state_transition_time: Option<Time>,
    reported_activity: Option<Time>,
    counted_activity_time: Option<Time>,
    last_activity_time: Option<Time>,
    unassigned_time: Option<Time>,
    closed_time: Option<Time>,
    conditions: Vec<(ConditionType, ConditionStatus, Time)>,
}

/// Whether a conversation that needs its binding has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The claim names it.
    Held(BindingName),
    /// The claim names another one that holds the binding; with the text that says which.
    HeldByAnother(String),
}

/// What is in effect now, and when that changes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The whole status, except `reportedActivityTime`, which belongs to others.
    pub status: ConversationStatus,
    /// When to decide again though nothing has been reported.
    pub next: Option<Time>,
}

impl Facts {
    /// The facts of a stored conversation.
    ///
    /// # Errors
    /// Where its addresses are not canonical, which the schema excludes.
    pub fn of(conversation: &Conversation) -> Result<Self, InvalidBinding> {
        let spec = &conversation.spec;
        let timers = spec.timers.clone().unwrap_or_default();
        let milliseconds = |timer: Option<crate::api::Duration>| timer.map(crate::api::Duration::as_milliseconds);
        let creation_time = conversation.metadata.creation_timestamp.as_ref().map(Time::from);
        Ok(Self {
            generation: conversation.metadata.generation.unwrap_or_default(),
            creation_time: creation_time.unwrap_or(Time::EPOCH),
            state: spec.state.unwrap_or_default(),
            binding: Binding::of(spec)?,
            is_unassigned: spec.participants.as_ref().is_none_or(Vec::is_empty),
            inactive_after: milliseconds(timers.inactive_after),
            close_after: milliseconds(timers.close_after),
            close_unassigned_after: milliseconds(timers.close_unassigned_after),
            status: conversation.status.as_ref().map(StatusFacts::of).unwrap_or_default(),
        })
    }

    /// Whether the conversation is open and has a contact, as far as is stored.
    #[must_use]
    pub fn holds(&self) -> Option<&Binding> {
        self.binding.as_ref().filter(|_| self.state.max(self.status.state.unwrap_or_default()) != State::Closed)
    }

    /// Whether the stored status says `Bound=True`.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.status
            .conditions
            .iter()
            .any(|(type_, status, _)| (*type_, *status) == (ConditionType::Bound, ConditionStatus::True))
    }
}

impl StatusFacts {
    fn of(status: &ConversationStatus) -> Self {
        Self {
            observed_generation: status.observed_generation.unwrap_or_default(),
            state: status.state,
            state_reason: status.state_reason,
            state_transition_time: status.state_transition_time,
            // It is free input: what cannot be read as an instant is no activity.
            reported_activity: status.reported_activity_time.as_ref().and_then(|text| text.parse().ok()),
            counted_activity_time: status.counted_activity_time,
            last_activity_time: status.last_activity_time,
            unassigned_time: status.unassigned_time,
            closed_time: status.closed_time,
            conditions: status
                .conditions
                .iter()
                .map(|condition| (condition.type_, condition.status, condition.last_transition_time))
                .collect(),
        }
    }
}

/// The last activity in effect, and the report that had to be cut for it because it lay in the future when it was seen.
fn activity(facts: &Facts, now: Time) -> (Option<Time>, Option<Time>) {
    let StatusFacts { last_activity_time, counted_activity_time, reported_activity, .. } = facts.status;
    let Some(reported) = reported_activity else {
        return (last_activity_time, None);
    };
    if counted_activity_time == Some(reported) {
        return (last_activity_time, counted_activity_time);
    }
    // The creation is an activity too: what lies before it moves nothing.
    let news = Some(reported.min(now)).filter(|activity| *activity > facts.creation_time);
    (last_activity_time.max(news), (reported > now).then_some(reported))
}

/// What is in effect at `now`. `holding` is looked at only while the conversation is open and has a contact.
#[must_use]
pub fn decide(facts: &Facts, holding: Option<&Holding>, now: Time) -> Decision {
    let before = &facts.status;
    if before.state == Some(State::Closed) {
        return closed(facts, before, now);
    }
    let (last_activity_time, counted_activity_time) = activity(facts, now);
    let is_woken = last_activity_time != before.last_activity_time;
    let base = last_activity_time.unwrap_or(facts.creation_time);
    let unassigned_time = facts.is_unassigned.then(|| {
        // At first sight the conversation has been without participants from its creation on.
        let first_sight = before.observed_generation == 0;
        before.unassigned_time.unwrap_or(if first_sight { facts.creation_time } else { now })
    });
    let inactive_due = facts.inactive_after.map(|after| base.after(after));
    let close_due = facts.close_after.map(|after| base.after(after));
    let unassigned_due = unassigned_time.zip(facts.close_unassigned_after).map(|(since, after)| since.after(after));
    let is_due = |due: Option<Time>| due.is_some_and(|due| due <= now);

    let (state, reason) = if facts.state == State::Closed {
        (State::Closed, StateReason::Spec)
    } else if is_due(close_due) || is_due(unassigned_due) {
        let first = [(close_due, StateReason::CloseTimer), (unassigned_due, StateReason::UnassignedTimer)]
            .into_iter()
            .filter_map(|(due, reason)| Some((due?, reason)))
            .min_by_key(|(due, _)| *due);
        (State::Closed, first.map_or(StateReason::CloseTimer, |(_, reason)| reason))
    } else if facts.state == State::Inactive {
        (State::Inactive, StateReason::Spec)
    } else {
        let was_inactive =
            (before.state, before.state_reason) == (Some(State::Inactive), Some(StateReason::InactiveTimer));
        if is_due(inactive_due) || (was_inactive && !is_woken) {
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
    let close_time = [close_due, unassigned_due].into_iter().flatten().min().filter(|_| !is_closed);
    let deadlines = Deadlines { inactive_time, close_time };
    let held = match holding {
        Some(Holding::Held(name)) if !is_closed => Some(name.as_str().to_owned()),
        _ => None,
    };
    let kept_transition = before.state_transition_time.filter(|_| before.state == Some(state));
    let status = ConversationStatus {
        observed_generation: Some(facts.generation),
        state: Some(state),
        state_reason: Some(reason),
        state_transition_time: Some(kept_transition.unwrap_or(now)),
        reported_activity_time: None,
        counted_activity_time,
        last_activity_time,
        unassigned_time,
        deadlines: Some(deadlines).filter(|deadlines| *deadlines != Deadlines::default()),
        closed_time: is_closed.then_some(now),
        address_binding_name: held,
        conditions: conditions(facts, state, holding, now),
    };
    Decision { status, next: [inactive_time, close_time].into_iter().flatten().min() }
}

/// A closed conversation stays as it is: only its conditions follow the generation of the spec.
fn closed(facts: &Facts, before: &StatusFacts, now: Time) -> Decision {
    let status = ConversationStatus {
        observed_generation: Some(facts.generation),
        state: before.state,
        state_reason: before.state_reason,
        state_transition_time: before.state_transition_time,
        reported_activity_time: None,
        counted_activity_time: before.counted_activity_time,
        last_activity_time: before.last_activity_time,
        unassigned_time: before.unassigned_time,
        deadlines: None,
        closed_time: before.closed_time,
        address_binding_name: None,
        conditions: conditions(facts, State::Closed, None, now),
    };
    Decision { status, next: None }
}

fn conditions(facts: &Facts, state: State, holding: Option<&Holding>, now: Time) -> Vec<Condition> {
    use {ConditionReason as Reason, ConditionStatus as Status, ConditionType as Type};
    let is_closed = state == State::Closed;
    let conflict = match holding {
        Some(Holding::HeldByAnother(text)) if facts.binding.is_some() && !is_closed => Some(text.as_str()),
        _ => None,
    };
    let (ready, bound) = if is_closed {
        (
            (Status::True, Reason::Closed, "The conversation is closed"),
            (Status::False, Reason::Closed, "A closed conversation holds no binding"),
        )
    } else if facts.binding.is_none() {
        (
            (Status::True, Reason::Unbound, "The conversation is open and, without a contact, needs no binding"),
            (Status::False, Reason::NoContact, "Without a contact there is no binding"),
        )
    } else if let Some(conflict) = conflict {
        ((Status::False, Reason::AddressAlreadyBound, conflict), (Status::False, Reason::AddressAlreadyBound, conflict))
    } else {
        (
            (Status::True, Reason::Bound, "The conversation is open and holds its binding"),
            (Status::True, Reason::BindingHeld, "Inbound messages of the binding reach this conversation"),
        )
    };
    let unassigned = if is_closed {
        (Status::False, Reason::Closed, "The conversation is closed")
    } else if facts.is_unassigned {
        (Status::True, Reason::NoParticipants, "There is no participant: an inbound message reaches nobody")
    } else {
        (Status::False, Reason::Assigned, "There is at least one participant")
    };
    let stalled = conflict.map(|conflict| (Type::Stalled, (Status::True, Reason::AddressAlreadyBound, conflict)));
    [(Type::Ready, ready), (Type::Bound, bound), (Type::Unassigned, unassigned)]
        .into_iter()
        .chain(stalled)
        .map(|(type_, (status, reason, message))| {
            let kept = facts.status.conditions.iter().find(|(before, was, _)| (*before, *was) == (type_, status));
            Condition {
                type_,
                status,
                observed_generation: Some(facts.generation),
                last_transition_time: kept.map_or(now, |(_, _, time)| *time),
                reason,
                message: message.to_owned(),
            }
        })
        .collect()
}
