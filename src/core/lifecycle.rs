//! State, times and conditions of a conversation as a function of what is stored of it, of its binding, and of the time.

use super::binding::{Binding, BindingName, InvalidBinding};
use super::denial::ALREADY_BOUND;
use crate::api::{
    Channel, Condition, ConditionReason, ConditionStatus, ConditionType, Conversation, ConversationStatus, Deadlines,
    Duration, State, StateReason, Time,
};

/// What the lifecycle decides from, and nothing else: small, since it is kept for every open conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifecycleInput {
    /// The generation of the spec.
    pub generation: i64,
    /// When the conversation was created.
    pub creation_time: Time,
    /// The state that the spec asks for.
    pub state: State,
    /// The channel of both addresses.
    pub channel: Channel,
    /// The binding that the spec names; none without a contact. The addresses are not kept.
    pub binding: Option<BindingName>,
    /// Whether there is no participant.
    pub is_unassigned: bool,
    /// `timers.inactiveAfter`.
    pub inactive_after: Option<Duration>,
    /// `timers.closeAfter`.
    pub close_after: Option<Duration>,
    /// `timers.closeUnassignedAfter`.
    pub close_unassigned_after: Option<Duration>,
    /// `ttlAfterClosed`.
    pub ttl_after_closed: Option<Duration>,
    /// What the status said, as far as the next one rests on it.
    pub status: PreviousStatus,
}

/// What the next status rests on in the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousStatus {
    observed_generation: i64,
    state: Option<State>,
    state_reason: Option<StateReason>,
    state_transition_time: Option<Time>,
    reported_activity: Option<Time>,
    counted_activity_time: Option<Time>,
    last_activity_time: Option<Time>,
    unassigned_time: Option<Time>,
    closed_time: Option<Time>,
    conditions: PreviousConditions,
}

/// The conditions by type. What is apart here is one thing, and takes less so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PreviousConditions {
    statuses: [Option<ConditionStatus>; CONDITIONS],
    since: [Option<Time>; CONDITIONS],
}

/// How many types of conditions there are.
const CONDITIONS: usize = 4;

/// Whether a conversation that needs its binding has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindingStatus {
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

impl LifecycleInput {
    /// The facts of a stored conversation.
    ///
    /// # Errors
    /// Where its addresses are not canonical, which the schema excludes.
    pub fn of(conversation: &Conversation) -> Result<Self, InvalidBinding> {
        let spec = &conversation.spec;
        let timers = spec.timers.clone().unwrap_or_default();
        let creation_time = conversation.metadata.creation_timestamp.as_ref().map(Time::from);
        Ok(Self {
            generation: conversation.metadata.generation.unwrap_or_default(),
            creation_time: creation_time.unwrap_or(Time::EPOCH),
            state: spec.state.unwrap_or_default(),
            channel: spec.channel,
            binding: Binding::of(spec)?.as_ref().map(Binding::name),
            is_unassigned: spec.participants.as_ref().is_none_or(Vec::is_empty),
            inactive_after: timers.inactive_after,
            close_after: timers.close_after,
            close_unassigned_after: timers.close_unassigned_after,
            ttl_after_closed: spec.ttl_after_closed,
            status: conversation.status.as_ref().map(PreviousStatus::of).unwrap_or_default(),
        })
    }

    /// Whether the conversation is open and has a contact, as far as is stored.
    #[must_use]
    pub fn held_binding(&self) -> Option<&BindingName> {
        self.binding.as_ref().filter(|_| self.state_in_effect() != State::Closed)
    }

    /// The later of what the spec asks for and what the stored status says.
    #[must_use]
    pub fn state_in_effect(&self) -> State {
        self.state.max(self.status.state.unwrap_or_default())
    }

    /// Since when there has been no participant, as far as is stored; nothing where there is one.
    #[must_use]
    pub fn unassigned_since(&self) -> Option<Time> {
        self.is_unassigned.then(|| self.status.unassigned_time.unwrap_or(self.creation_time))
    }

    /// When the conversation, being closed, is to be deleted; nothing where it is open or to be kept.
    #[must_use]
    pub fn expiry(&self) -> Option<Time> {
        let closed = self.status.closed_time.filter(|_| self.status.state == Some(State::Closed));
        closed.zip(self.ttl_after_closed).map(|(closed, ttl)| end(closed, ttl))
    }

    /// Whether the stored status was decided on the spec as it is now.
    #[must_use]
    pub fn is_observed(&self) -> bool {
        self.status.observed_generation == self.generation
    }

    /// Whether the stored status says `Bound=True`.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.status.since(ConditionType::Bound, ConditionStatus::True).is_some()
    }

    /// Whether `status` differs from the stored one in the last activity and what follows from it alone. That may be written a
    /// little later: nothing waits for it, and more activity is likely to come.
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
            conditions: status.conditions.iter().fold(PreviousConditions::default(), |mut previous, condition| {
                previous.statuses[condition.type_ as usize] = Some(condition.status);
                previous.since[condition.type_ as usize] = Some(condition.last_transition_time);
                previous
            }),
        }
    }

    /// Whether there may be something in [`notices_since`] since then.
    #[must_use]
    pub fn has_notices_since(&self, since: Time) -> bool {
        let is_first_state = self.state == Some(State::Active) && self.state_reason != Some(StateReason::Activity);
        let told = [
            self.state_transition_time.filter(|_| !is_first_state),
            self.since(ConditionType::Unassigned, ConditionStatus::True),
            self.since(ConditionType::Stalled, ConditionStatus::True),
        ];
        told.into_iter().flatten().any(|time| time >= since)
    }

    /// Since when the condition has had this status; nothing where it has another.
    fn since(&self, type_: ConditionType, status: ConditionStatus) -> Option<Time> {
        let PreviousConditions { statuses, since } = &self.conditions;
        since[type_ as usize].filter(|_| statuses[type_ as usize] == Some(status))
    }
}

/// When a timer ends that began at `since`.
fn end(since: Time, timer: Duration) -> Time {
    since.after(timer.as_milliseconds())
}

/// The last activity in effect, and the report that had to be cut for it because it lay in the future when it was seen.
fn activity(input: &LifecycleInput, now: Time) -> (Option<Time>, Option<Time>) {
    let PreviousStatus { last_activity_time, counted_activity_time, reported_activity, .. } = input.status;
    let Some(reported) = reported_activity else {
        return (last_activity_time, None);
    };
    if counted_activity_time == Some(reported) {
        return (last_activity_time, counted_activity_time);
    }
    // The creation is an activity too: what lies before it moves nothing.
    let news = Some(reported.min(now)).filter(|activity| *activity > input.creation_time);
    (last_activity_time.max(news), (reported > now).then_some(reported))
}

/// What is in effect at `now`. `binding_status` is looked at only while the conversation is open and has a contact.
#[must_use]
pub fn decide(input: &LifecycleInput, binding_status: Option<&BindingStatus>, now: Time) -> Decision {
    let before = &input.status;
    if before.state == Some(State::Closed) {
        return closed(input, before, now);
    }
    let (last_activity_time, counted_activity_time) = activity(input, now);
    let is_woken = last_activity_time != before.last_activity_time;
    let base = last_activity_time.unwrap_or(input.creation_time);
    let unassigned_time = input.is_unassigned.then(|| {
        // At first sight the conversation has been without participants from its creation on.
        let first_sight = before.observed_generation == 0;
        before.unassigned_time.unwrap_or(if first_sight { input.creation_time } else { now })
    });
    let inactive_due = input.inactive_after.map(|after| end(base, after));
    let close_due = input.close_after.map(|after| end(base, after));
    let unassigned_due = unassigned_time.zip(input.close_unassigned_after).map(|(since, after)| end(since, after));
    let is_due = |due: Option<Time>| due.is_some_and(|due| due <= now);

    let (state, reason) = if input.state == State::Closed {
        (State::Closed, StateReason::Spec)
    } else if is_due(close_due) || is_due(unassigned_due) {
        let first = [(close_due, StateReason::CloseTimer), (unassigned_due, StateReason::UnassignedTimer)]
            .into_iter()
            .filter_map(|(due, reason)| Some((due?, reason)))
            .min_by_key(|(due, _)| *due);
        (State::Closed, first.map_or(StateReason::CloseTimer, |(_, reason)| reason))
    } else if input.state == State::Inactive {
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
    let held = match binding_status {
        Some(BindingStatus::Held(name)) if !is_closed => Some(name.as_str().to_owned()),
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
        deadlines: Some(deadlines).filter(|deadlines| *deadlines != Deadlines::default()),
        closed_time: is_closed.then_some(now),
        address_binding_name: held,
        conditions: conditions(input, state, binding_status, now),
    };
    Decision { status, next: [inactive_time, close_time].into_iter().flatten().min() }
}

/// When the timer was due that brought about the state in `status`; nothing where the state is as before, or no timer did.
#[must_use]
pub fn due(input: &LifecycleInput, status: &ConversationStatus) -> Option<Time> {
    if status.state == input.status.state {
        return None;
    }
    let activity = status.last_activity_time.unwrap_or(input.creation_time);
    let (since, after) = match status.state_reason? {
        StateReason::InactiveTimer => (activity, input.inactive_after?),
        StateReason::CloseTimer => (activity, input.close_after?),
        StateReason::UnassignedTimer => (status.unassigned_time?, input.close_unassigned_after?),
        StateReason::Spec | StateReason::Activity => return None,
    };
    Some(end(since, after))
}

/// Something that a person would want to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What, in one word for programs.
    pub reason: NoticeReason,
    /// Since when. Together with the reason it names the fact: the same is never told twice.
    pub time: Time,
    /// What, for people.
    pub note: String,
}

/// The reasons of the facts that people are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeReason {
    /// Another conversation holds the binding.
    AddressAlreadyBound,
    /// There is no participant.
    Unassigned,
    /// The conversation became Inactive.
    Inactive,
    /// The conversation became Active again.
    Reactivated,
    /// The conversation became Closed.
    Closed,
    /// The closed conversation was deleted, since its time to live is over.
    TTLExpired,
    /// What is stored is no conversation that can be read: somebody went around its schema.
    Unreadable,
}

impl NoticeReason {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AddressAlreadyBound => "AddressAlreadyBound",
            Self::Unassigned => "Unassigned",
            Self::Inactive => "Inactive",
            Self::Reactivated => "Reactivated",
            Self::Closed => "Closed",
            Self::TTLExpired => "TTLExpired",
            Self::Unreadable => "Unreadable",
        }
    }

    /// Whether somebody should do something about it.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        matches!(self, Self::AddressAlreadyBound | Self::Unassigned | Self::Unreadable)
    }
}

/// The facts that `status` tells and `before` did not.
#[must_use]
pub fn new_notices(before: &PreviousStatus, status: &ConversationStatus) -> Vec<Notice> {
    use {ConditionReason as Reason, ConditionStatus as Status, ConditionType as Type};
    let conditions = status.conditions.iter().filter_map(|condition| {
        // An Event is copied into logs, where addresses have no business: the condition has them.
        let (reason, note) = match (condition.type_, condition.status, condition.reason) {
            (Type::Bound, Status::False, Reason::AddressAlreadyBound) => (
                NoticeReason::AddressAlreadyBound,
                format!("{ALREADY_BOUND}: another conversation holds the binding; the condition Bound has the details and the remedy"),
            ),
            (Type::Unassigned, Status::True, _) => (NoticeReason::Unassigned, condition.message.clone()),
            _ => return None,
        };
        let was_so = before.since(condition.type_, condition.status).is_some();
        let time = condition.last_transition_time;
        (!was_so).then_some(Notice { reason, time, note })
    });
    let because = match status.state_reason {
        Some(StateReason::InactiveTimer) => "the timer inactiveAfter expired",
        Some(StateReason::CloseTimer) => "the timer closeAfter expired",
        Some(StateReason::UnassignedTimer) => "the timer closeUnassignedAfter expired",
        Some(StateReason::Activity) => "activity was reported",
        Some(StateReason::Spec) | None => "spec.state requests it",
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
        note: format!("The conversation became {word}: {because}"),
    });
    conditions.chain(change).collect()
}

/// The facts that `status` tells and that came about at `since` or later, whether they have been told or not.
///
/// That a parked conversation was made Active again is not among them: no status tells it from one that always was.
#[must_use]
pub fn notices_since(status: &ConversationStatus, since: Time) -> Vec<Notice> {
    let was_woken = (status.state, status.state_reason) == (Some(State::Active), Some(StateReason::Activity));
    let before = PreviousStatus { state: was_woken.then_some(State::Inactive), ..PreviousStatus::default() };
    new_notices(&before, status).into_iter().filter(|notice| notice.time >= since).collect()
}

/// What people are told of a conversation, created at `creation_time`, that cannot be read because of `error`.
#[must_use]
pub fn unreadable(creation_time: Time, error: &str) -> Notice {
    let note = format!("The conversation is invalid and is not processed until it is corrected: {error}");
    Notice { reason: NoticeReason::Unreadable, time: creation_time, note }
}

/// What people are told of a conversation that was deleted at `expiry`.
#[must_use]
pub fn expired(expiry: Time) -> Notice {
    let note = "The conversation is deleted because it has been closed for longer than ttlAfterClosed".to_owned();
    Notice { reason: NoticeReason::TTLExpired, time: expiry, note }
}

/// A closed conversation stays as it is: only its conditions follow the generation of the spec.
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
        deadlines: None,
        closed_time: before.closed_time,
        address_binding_name: None,
        conditions: conditions(input, State::Closed, None, now),
    };
    Decision { status, next: None }
}

fn conditions(
    input: &LifecycleInput,
    state: State,
    binding_status: Option<&BindingStatus>,
    now: Time,
) -> Vec<Condition> {
    use {ConditionReason as Reason, ConditionStatus as Status, ConditionType as Type};
    let is_closed = state == State::Closed;
    let conflict = match binding_status {
        Some(BindingStatus::HeldByAnother(text)) if input.binding.is_some() && !is_closed => Some(text.as_str()),
        _ => None,
    };
    let (ready, bound) = if is_closed {
        (
            (Status::True, Reason::Closed, "The conversation is closed"),
            (Status::False, Reason::Closed, "The conversation is closed and holds no binding"),
        )
    } else if input.binding.is_none() {
        (
            (Status::True, Reason::Unbound, "The conversation is open and has no contact, so it needs no binding"),
            (Status::False, Reason::NoContact, "The conversation has no contact, so it has no binding"),
        )
    } else if let Some(conflict) = conflict {
        ((Status::False, Reason::AddressAlreadyBound, conflict), (Status::False, Reason::AddressAlreadyBound, conflict))
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
    let stalled = conflict.map(|conflict| (Type::Stalled, (Status::True, Reason::AddressAlreadyBound, conflict)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `second` seconds after the creation.
    fn at(second: u64) -> Time {
        Time::EPOCH.after(1_000_000_000_000 + second * 1_000)
    }

    fn input() -> LifecycleInput {
        LifecycleInput {
            generation: 1,
            creation_time: at(0),
            state: State::Active,
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

    /// The timer as the input has it.
    fn seconds(seconds: u64) -> Option<Duration> {
        format!("{seconds}s").parse().ok()
    }

    fn held(input: &LifecycleInput) -> Option<BindingStatus> {
        input.binding.clone().map(BindingStatus::Held)
    }

    fn decide_at(input: &LifecycleInput, second: u64) -> Decision {
        decide(input, held(input).as_ref(), at(second))
    }

    /// Decides, and stores the status, as the API server would: what others write is kept.
    fn live(input: &mut LifecycleInput, second: u64) -> ConversationStatus {
        let status = decide_at(input, second).status;
        let reported_activity = input.status.reported_activity;
        input.status = PreviousStatus { reported_activity, ..PreviousStatus::of(&status) };
        status
    }

    fn condition(status: &ConversationStatus, type_: ConditionType) -> (ConditionStatus, ConditionReason) {
        let condition = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
        (condition.status, condition.reason)
    }

    #[test]
    fn rule_6_both_timers_count_from_the_last_activity_and_not_from_each_other() {
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
    fn rule_7_activity_wakes_what_a_timer_made_inactive() {
        let mut input = LifecycleInput { inactive_after: seconds(10), ..input() };
        live(&mut input, 10);
        input.status.reported_activity = Some(at(15));
        let status = live(&mut input, 16);
        assert_eq!((status.state, status.state_reason), (Some(State::Active), Some(StateReason::Activity)));
        assert_eq!((status.last_activity_time, status.deadlines.unwrap().inactive_time), (Some(at(15)), Some(at(25))));
        assert_eq!(live(&mut input, 17).state_reason, Some(StateReason::Activity), "it stays what it is");
        assert_eq!(live(&mut input, 25).state, Some(State::Inactive), "and the timer runs again");
    }

    #[test]
    fn a_conversation_that_a_timer_made_inactive_is_not_woken_by_a_longer_timer() {
        for longer in [seconds(1_000), None] {
            let mut input = LifecycleInput { inactive_after: seconds(10), ..input() };
            live(&mut input, 10);
            input.inactive_after = longer;
            let status = live(&mut input, 11);
            assert_eq!((status.state, status.state_reason), (Some(State::Inactive), Some(StateReason::InactiveTimer)));
        }
    }

    #[test]
    fn a_parked_conversation_is_woken_by_the_spec_alone() {
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
    fn rule_8_timers_that_became_due_unseen_are_honoured_by_the_state_that_results() {
        let both = LifecycleInput { inactive_after: seconds(10), close_after: seconds(20), ..input() };
        let status = decide_at(&both, 1_000).status;
        assert_eq!((status.state, status.state_reason), (Some(State::Closed), Some(StateReason::CloseTimer)));
        assert_eq!(status.closed_time, Some(at(1_000)), "when it was decided, not when it was due");
    }

    #[test]
    fn rule_9_a_conversation_without_participants_is_unassigned_and_has_a_timer_of_its_own() {
        use {ConditionReason as Reason, ConditionStatus as Status, ConditionType as Type};
        let mut input = LifecycleInput { is_unassigned: true, close_unassigned_after: seconds(60), ..input() };
        let status = live(&mut input, 1);
        assert_eq!(condition(&status, Type::Unassigned), (Status::True, Reason::NoParticipants));
        assert_eq!(status.unassigned_time, Some(at(0)), "at first sight, since its creation");
        assert_eq!(status.deadlines.unwrap().close_time, Some(at(60)));
        input.is_unassigned = false;
        let status = live(&mut input, 2);
        assert_eq!(condition(&status, Type::Unassigned), (Status::False, Reason::Assigned));
        assert_eq!((status.unassigned_time, status.deadlines), (None, None));
        input.is_unassigned = true;
        let status = live(&mut input, 30);
        assert_eq!(status.unassigned_time, Some(at(30)), "later, since it was seen");
        let status = live(&mut input, 90);
        assert_eq!((status.state, status.state_reason), (Some(State::Closed), Some(StateReason::UnassignedTimer)));
    }

    #[test]
    fn the_earlier_of_the_two_close_timers_closes() {
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
    fn activity_never_moves_back_and_what_lies_before_the_creation_is_none() {
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
            "of now, and not later"
        );
        input.status.reported_activity = Some(at(3));
        assert_eq!(live(&mut input, 7).last_activity_time, Some(at(5)));
        input.status.reported_activity = None;
        assert_eq!(live(&mut input, 8).last_activity_time, Some(at(5)));
    }

    #[test]
    fn activity_in_the_future_counts_once_as_the_moment_at_which_it_was_seen() {
        let mut input = LifecycleInput { close_after: seconds(10), ..input() };
        input.status.reported_activity = Some(at(1_000_000));
        let status = live(&mut input, 5);
        assert_eq!((status.last_activity_time, status.counted_activity_time), (Some(at(5)), Some(at(1_000_000))));
        assert_eq!(live(&mut input, 14).last_activity_time, Some(at(5)), "it is not counted again");
        assert_eq!(live(&mut input, 15).state, Some(State::Closed));
    }

    #[test]
    fn a_correction_of_a_report_in_the_future_leaves_nothing_behind() {
        let mut input = input();
        input.status.reported_activity = Some(at(1_000));
        live(&mut input, 5);
        input.status.reported_activity = Some(at(6));
        let status = live(&mut input, 7);
        assert_eq!((status.last_activity_time, status.counted_activity_time), (Some(at(6)), None));
    }

    #[test]
    fn conditions_tell_what_is_in_effect() {
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

        let another = BindingStatus::HeldByAnother("48031: …".into());
        let status = decide(&input(), Some(&another), at(1)).status;
        for (type_, expected) in [(T::Ready, S::False), (T::Bound, S::False), (T::Stalled, S::True)] {
            assert_eq!(condition(&status, type_), (expected, R::AddressAlreadyBound));
        }
        assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(1)));
    }

    #[test]
    fn what_is_closed_or_needs_no_binding_is_never_stalled() {
        let another = BindingStatus::HeldByAnother("48031: …".into());
        for input in [LifecycleInput { state: State::Closed, ..input() }, LifecycleInput { binding: None, ..input() }] {
            let status = decide(&input, Some(&another), at(1)).status;
            assert!(status.conditions.iter().all(|condition| condition.type_ != ConditionType::Stalled), "{status:?}");
        }
    }

    #[test]
    fn what_is_stored_says_what_is_held_bound_and_unassigned_and_since_when() {
        let mut input = LifecycleInput { is_unassigned: true, close_after: seconds(60), ..input() };
        assert_eq!((input.held_binding(), input.is_bound()), (input.binding.as_ref(), false));
        assert_eq!(input.unassigned_since(), Some(at(0)), "nothing is stored of it yet");
        live(&mut input, 1);
        assert_eq!((input.held_binding(), input.is_bound()), (input.binding.as_ref(), true));
        assert!(input.status.has_notices_since(at(1)) && !input.status.has_notices_since(at(2)));
        input.is_unassigned = false;
        live(&mut input, 2);
        assert_eq!(input.unassigned_since(), None);
        assert_eq!(input.state_in_effect(), State::Active);
        assert_eq!(LifecycleInput { state: State::Closed, ..input.clone() }.held_binding(), None, "the spec closes it");
        live(&mut input, 60);
        assert_eq!((input.state_in_effect(), input.held_binding(), input.is_bound()), (State::Closed, None, false));
    }

    #[test]
    fn a_timer_was_due_when_it_elapsed_and_what_no_timer_brings_about_was_never_due() {
        let input = LifecycleInput {
            inactive_after: seconds(10),
            close_after: seconds(20),
            close_unassigned_after: seconds(15),
            is_unassigned: true,
            ..input()
        };
        assert_eq!(due(&input, &decide_at(&input, 12).status), Some(at(10)));
        assert_eq!(due(&input, &decide_at(&input, 99).status), Some(at(15)));
        let assigned = LifecycleInput { is_unassigned: false, ..input.clone() };
        assert_eq!(due(&assigned, &decide_at(&assigned, 99).status), Some(at(20)));
        let closed = LifecycleInput { state: State::Closed, ..input };
        assert_eq!(due(&closed, &decide_at(&closed, 99).status), None);
    }

    #[test]
    fn reasons_are_words_of_the_api() {
        use NoticeReason::{AddressAlreadyBound, Closed, Inactive, Reactivated, TTLExpired, Unassigned, Unreadable};
        let reasons = [AddressAlreadyBound, Unassigned, Inactive, Reactivated, Closed, TTLExpired, Unreadable];
        for reason in reasons {
            assert_eq!(reason.as_str(), format!("{reason:?}"));
        }
    }

    #[test]
    fn stalled_is_present_only_while_true() {
        let mut input = input();
        let another = BindingStatus::HeldByAnother("48031: …".into());
        input.status = PreviousStatus::of(&decide(&input, Some(&another), at(1)).status);
        let status = decide_at(&input, 2).status;
        assert!(status.conditions.iter().all(|condition| condition.type_ != ConditionType::Stalled));
        let bound = status.conditions.iter().find(|condition| condition.type_ == ConditionType::Bound).unwrap();
        assert_eq!(bound.last_transition_time, at(2), "it moves with the status");
    }

    #[test]
    fn a_transition_time_moves_with_the_status_alone() {
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

    #[test]
    fn a_closed_conversation_expires_when_its_time_to_live_is_over() {
        let mut input = LifecycleInput { close_after: seconds(10), ttl_after_closed: seconds(100), ..input() };
        live(&mut input, 1);
        assert_eq!(input.expiry(), None, "it is open");
        live(&mut input, 12);
        assert_eq!(input.expiry(), Some(at(112)), "from when its closing was decided");
        input.ttl_after_closed = None;
        assert_eq!(input.expiry(), None, "it is kept");
    }

    #[test]
    fn a_closed_conversation_follows_the_generation_of_its_spec() {
        let mut input = LifecycleInput { state: State::Closed, ..input() };
        let closed = live(&mut input, 1);
        input.generation = 2;
        assert!(!input.is_observed());
        let status = live(&mut input, 9);
        assert!(input.is_observed());
        assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(2)));
        assert_eq!((status.state, status.closed_time), (closed.state, closed.closed_time));
    }

    #[test]
    fn a_fact_is_news_once() {
        let mut input =
            LifecycleInput { is_unassigned: true, inactive_after: seconds(10), close_after: seconds(20), ..input() };
        let mut told = Vec::new();
        for second in [1, 2, 10, 11, 20, 21] {
            let before = input.status.clone();
            let status = live(&mut input, second);
            told.extend(new_notices(&before, &status).into_iter().map(|fact| (fact.reason, fact.time)));
        }
        let expected =
            [(NoticeReason::Unassigned, at(1)), (NoticeReason::Inactive, at(10)), (NoticeReason::Closed, at(20))];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_people_are_told_says_why() {
        let another = BindingStatus::HeldByAnother("48031: …".into());
        let status = decide(&input(), Some(&another), at(1)).status;
        let [fact] = &new_notices(&PreviousStatus::default(), &status)[..] else { panic!("{status:?}") };
        assert_eq!(fact.reason, NoticeReason::AddressAlreadyBound);
        assert!(
            fact.note.starts_with("48031: another conversation") && !fact.note.contains('…'),
            "no address: {fact:?}"
        );
        assert!(fact.reason.is_warning());

        let mut input = LifecycleInput { inactive_after: seconds(10), ..input() };
        live(&mut input, 10);
        input.status.reported_activity = Some(at(15));
        let before = input.status.clone();
        let status = live(&mut input, 16);
        let [fact] = &new_notices(&before, &status)[..] else { panic!("{status:?}") };
        assert_eq!(fact.reason, NoticeReason::Reactivated);
        assert!(fact.note.contains("activity was reported") && !fact.reason.is_warning(), "{}", fact.note);
    }

    #[test]
    fn what_came_about_lately_can_be_told_again_and_is_the_same_fact() {
        let mut input =
            LifecycleInput { is_unassigned: true, inactive_after: seconds(10), close_after: seconds(30), ..input() };
        let mut told: Vec<Notice> = Vec::new();
        for second in [1, 10, 15, 30] {
            if second == 15 {
                input.status.reported_activity = Some(at(15));
            }
            let before = input.status.clone();
            let status = live(&mut input, second);
            told.extend(new_notices(&before, &status));
            let lately = notices_since(&status, at(second));
            assert_eq!(input.status.has_notices_since(at(second)), !lately.is_empty());
            assert_eq!(lately, told.iter().filter(|notice| notice.time >= at(second)).cloned().collect::<Vec<_>>());
            assert_eq!(notices_since(&status, at(second + 1)), []);
        }
        let reasons: Vec<_> = told.iter().map(|notice| notice.reason).collect();
        assert_eq!(
            reasons,
            [NoticeReason::Unassigned, NoticeReason::Inactive, NoticeReason::Reactivated, NoticeReason::Inactive]
        );
        input.status.reported_activity = None;
        assert_eq!(notices_since(&live(&mut input, 45), at(45))[0].reason, NoticeReason::Closed);
    }

    #[test]
    fn what_activity_alone_changes_is_routine() {
        let mut input = LifecycleInput { inactive_after: seconds(10), close_after: seconds(60), ..input() };
        live(&mut input, 1);
        input.status.reported_activity = Some(at(5));
        assert!(input.is_routine(&decide_at(&input, 6).status));
        input.status.reported_activity = Some(at(1_000));
        assert!(input.is_routine(&decide_at(&input, 6).status), "also where it has to be cut");
        for (changed, what) in [
            (LifecycleInput { generation: 2, ..input.clone() }, "the generation"),
            (LifecycleInput { is_unassigned: true, ..input.clone() }, "that it is unassigned"),
            (LifecycleInput { state: State::Inactive, ..input.clone() }, "the state"),
        ] {
            assert!(!changed.is_routine(&decide_at(&changed, 6).status), "{what} is more than activity");
        }
        input.status.reported_activity = Some(at(5));
        assert!(!input.is_routine(&decide_at(&input, 15).status), "a timer is more than activity");
        live(&mut input, 15);
        input.status.reported_activity = Some(at(17));
        assert!(!input.is_routine(&decide_at(&input, 18).status), "waking is more than activity");
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

    proptest! {
        #[test]
        fn the_same_input_at_the_same_time_change_nothing(base in any_input(), first in 0_u64..200, later in 0_u64..200) {
            let mut input = base;
            live(&mut input, first);
            let once = live(&mut input, first + later);
            prop_assert_eq!(live(&mut input, first + later), once);
        }

        #[test]
        fn nothing_changes_before_the_next_deadline_and_something_does_at_it(base in any_input(), first in 0_u64..200) {
            let mut input = base;
            // A report that was in the future is counted by the first look.
            let status = live(&mut input, first);
            match decide_at(&input, first).next {
                None => prop_assert_eq!(live(&mut input, 100_000), status),
                Some(next) => {
                    let binding_status = held(&input);
                    let before = decide(&input, binding_status.as_ref(), Time::EPOCH.after(next.milliseconds_since(Time::EPOCH) - 1));
                    prop_assert_eq!(before.status.state, status.state);
                    prop_assert_ne!(decide(&input, binding_status.as_ref(), next).status.state, status.state);
                }
            }
        }

        #[test]
        fn closing_holds_for_ever(base in any_input(), first in 0_u64..200, then in any_input(), later in 0_u64..200) {
            let mut input = base;
            let status = live(&mut input, first);
            let mut then = LifecycleInput { status: input.status, ..then };
            let after = live(&mut then, first + later);
            prop_assert!(status.state != Some(State::Closed) || after.state == Some(State::Closed));
            prop_assert!(after.last_activity_time >= status.last_activity_time);
        }

        #[test]
        fn no_state_but_by_a_rule(base in any_input(), first in 0_u64..200, then in any_input(), later in 0_u64..200) {
            let mut input = base;
            let before = live(&mut input, first);
            let mut then = LifecycleInput { status: PreviousStatus { reported_activity: then.status.reported_activity, ..input.status }, ..then };
            let status = live(&mut then, first + later);
            let (now, activity) = (at(first + later), status.last_activity_time.unwrap_or(then.creation_time));
            let is_over = |since: Time, after: Option<Duration>| {
                after.is_some_and(|after| since.after(after.as_milliseconds()) <= now)
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
        fn a_state_that_nothing_disturbs_only_moves_on(base in any_input(), looks in prop::collection::vec(0_u64..300, 1..20)) {
            let (mut input, mut looks) = (base, looks);
            looks.sort_unstable();
            // From when on no report lies in the future any more.
            let from = input.status.reported_activity.map_or(0, |reported| reported.milliseconds_since(at(0)) / 1_000);
            let mut state = live(&mut input, from).state;
            for look in looks {
                let next = live(&mut input, from + look).state;
                prop_assert!(next >= state, "{:?} after {:?}", next, state);
                state = next;
            }
        }

        #[test]
        fn the_order_in_which_activity_is_reported_does_not_matter(
            base in any_input(), reports in prop::collection::vec(0_u64..200, 1..8), turn in 0_usize..8,
        ) {
            // Without timers, which may elapse between a report and the one that would have moved them.
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
        fn what_a_timer_brings_about_was_due_when_the_deadlines_said(base in any_input(), first in 0_u64..200, later in 0_u64..200) {
            let mut input = base;
            let before = live(&mut input, first);
            let status = decide_at(&input, first + later).status;
            // Activity that comes to count in between moves the deadlines.
            if status.last_activity_time == before.last_activity_time
                && let Some(due) = due(&input, &status)
            {
                let deadlines = before.deadlines.unwrap_or_default();
                let expected = if status.state == Some(State::Closed) { deadlines.close_time } else { deadlines.inactive_time };
                prop_assert_eq!(Some(due), expected);
                prop_assert!(due <= at(first + later));
            }
        }

        #[test]
        fn two_looks_end_where_one_does(base in any_input(), first in 0_u64..200, later in 0_u64..200) {
            let mut input = base;
            // A report that lies in the future at a look counts as one of that moment, and so otherwise at each.
            input.status.reported_activity = input.status.reported_activity.map(|reported| reported.min(at(first)));
            let (mut twice, mut once) = (input.clone(), input);
            live(&mut twice, first);
            prop_assert_eq!(live(&mut twice, first + later).state, live(&mut once, first + later).state);
        }
    }
}
