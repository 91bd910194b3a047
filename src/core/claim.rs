//! The claim protocol, which guarantees that a binding has at most one holder: each function maps an observation to the next step.
//!
//! `claims.rs` executes the steps against the API server and decides nothing. ARCHITECTURE.md explains why the steps suffice, and
//! defines the invariants I1 to I5 that are named here.

use super::binding::{Binding, BindingName};
use crate::api::{Admission, Conversation, ConversationReference, MAX_ADMISSIONS, State, Time};

/// A claim as it was read: the conversation that holds a binding, and the admitted creates of that conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The claimed binding.
    pub binding: Binding,
    /// The name of the AddressBinding.
    pub name: BindingName,
    /// The UID of the AddressBinding.
    pub uid: String,
    /// The resourceVersion at which it was read: the precondition of each write that is based on it.
    pub resource_version: String,
    /// Whether it has a deletionTimestamp.
    pub is_being_deleted: bool,
    /// The conversation that it names.
    pub holder: ConversationReference,
    /// The admitted creates of that conversation.
    pub admissions: Vec<Admission>,
}

/// A conversation as it was read live, reduced to the fields that the protocol uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveConversation {
    /// Its UID. Since the conversation was read live, the create with this UID is *decided*: it was stored.
    pub uid: String,
    /// The binding that it holds, while it is open and has a contact.
    pub held_binding: Option<BindingName>,
    /// The state in effect.
    pub state: State,
    /// The identities of its participants.
    pub participants: Vec<String>,
}

impl LiveConversation {
    /// The view of a conversation that the protocol uses. A conversation whose addresses are not canonical, which the schema
    /// excludes, holds no binding, since no message can be routed to it.
    #[must_use]
    pub fn of(conversation: &Conversation) -> Self {
        let spec = &conversation.spec;
        let state = state_in_effect(conversation);
        let is_open = state != State::Closed;
        let binding = Binding::of(spec).ok().flatten().filter(|_| is_open);
        Self {
            uid: conversation.metadata.uid.clone().unwrap_or_default(),
            held_binding: binding.map(|binding| binding.name()),
            state,
            participants: spec.participants.iter().flatten().map(|participant| participant.identity.clone()).collect(),
        }
    }
}

/// The state in effect: the later of `spec.state` and `status.state`.
#[must_use]
pub fn state_in_effect(conversation: &Conversation) -> State {
    let desired = conversation.spec.state.unwrap_or_default();
    let reached = conversation.status.as_ref().and_then(|status| status.state).unwrap_or_default();
    desired.max(reached)
}

/// A write of one claim, with its preconditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Create the claim. Fails if one exists.
    Create {
        /// The conversation that the claim names.
        holder: ConversationReference,
        /// The admissions that it records.
        admissions: Vec<Admission>,
    },
    /// Replace the content of the claim. Fails if the claim has changed since it was read.
    Replace {
        /// The UID of the claim that was read.
        uid: String,
        /// The resourceVersion at which it was read.
        resource_version: String,
        /// The conversation that the claim names from now on.
        holder: ConversationReference,
        /// The admissions that it records from now on.
        admissions: Vec<Admission>,
    },
    /// Delete the claim. Fails if the claim has changed since it was read.
    Delete {
        /// The UID of the claim that was read.
        uid: String,
        /// The resourceVersion at which it was read.
        resource_version: String,
    },
}

impl Write {
    fn replace(claim: &Claim, holder: ConversationReference, admissions: Vec<Admission>) -> Self {
        let Claim { uid, resource_version, .. } = claim.clone();
        Self::Replace { uid, resource_version, holder, admissions }
    }
}

/// A create of a conversation that needs a binding, from an admission review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The binding that is needed.
    pub binding: Binding,
    /// The namespace and name of the conversation.
    pub conversation: ConversationReference,
    /// The UID that the API server assigned to it.
    pub uid: String,
    /// Whether the create is a server-side apply, which becomes an update if the name exists already.
    pub is_server_side_apply: bool,
    /// Whether the create is a dry run, during which nothing must be written.
    pub is_dry_run: bool,
}

/// The result of the last step of an admission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// No step has been taken yet.
    Nothing,
    /// The last observation is outdated: a write met a newer claim, or a wait is over.
    Changed,
    /// The claim, read live, or `None` if there is none.
    Claim(Option<Claim>),
    /// The claim and the conversation that it names, read live in this order.
    Holder(Claim, Option<LiveConversation>),
    /// The write took effect.
    Written,
}

/// The next step of the admission of a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdmitStep {
    /// Read the claim live.
    ReadClaim,
    /// Read the conversation that this claim names, live.
    ReadHolder(Claim),
    /// Write the claim.
    Write(Write),
    /// Wait some milliseconds for the claim or its holder to change, then continue with [`Observation::Changed`]. If there is
    /// no time left to wait, decide [`Undecided::InFlight`].
    Wait,
    /// End the admission with a decision.
    Decide(Decision),
}

/// The decision about a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The binding is claimed for the conversation.
    Allow,
    /// Another conversation holds the binding: 48031.
    Deny {
        /// The namespace and name of the holder.
        holder: ConversationReference,
        /// The holder, as it was read live.
        live: LiveConversation,
    },
    /// A conversation with this name exists, so the create would fail. Deciding that here leaves no undecided UID in the claim.
    AlreadyExists,
    /// The create cannot be decided in time. The client must retry.
    Undecided(Undecided),
}

/// The reason why a create cannot be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// Another create or a release of the binding is in flight.
    InFlight,
    /// Earlier creates with this name were admitted but never stored; the leader will release their claim.
    AwaitingRelease,
    /// The API server did not answer in time.
    ApiServer,
}

/// The next step of the admission of `request`.
///
/// `now` and `grace_period_milliseconds` decide only whether more UIDs can be added to a claim, never which conversation holds it.
#[must_use]
pub fn admit(request: &Request, observation: Observation, now: Time, grace_period_milliseconds: u64) -> AdmitStep {
    let admission = || Admission { uid: request.uid.clone(), time: now };
    // I5: if a write would claim the binding, a dry run is allowed without it.
    let write = |write| {
        if request.is_dry_run { AdmitStep::Decide(Decision::Allow) } else { AdmitStep::Write(write) }
    };
    let create = || write(Write::Create { holder: request.conversation.clone(), admissions: vec![admission()] });
    match observation {
        // Most bindings are free, so try the write that claims it first, and read only if that fails.
        Observation::Nothing if !request.is_dry_run => create(),
        Observation::Nothing | Observation::Changed => AdmitStep::ReadClaim,
        Observation::Claim(None) => create(),
        Observation::Claim(Some(claim)) if claim.is_being_deleted => AdmitStep::Wait,
        // A repeated review. Its UID is undecided, so no release has been decided since it was added.
        Observation::Claim(Some(claim)) if claim.holder == request.conversation && claim.admits(&request.uid) => {
            AdmitStep::Decide(Decision::Allow)
        }
        Observation::Claim(Some(claim)) => AdmitStep::ReadHolder(claim),
        Observation::Holder(claim, live) if claim.holder == request.conversation => {
            if live.is_some() && !request.is_server_side_apply {
                return AdmitStep::Decide(Decision::AlreadyExists);
            }
            let is_decided = |uid: &str| live.as_ref().is_some_and(|live| live.uid == uid);
            let is_overdue = |admission: &Admission| now.milliseconds_since(admission.time) > grace_period_milliseconds;
            let is_stuck =
                claim.admissions.iter().any(|admission| !is_decided(&admission.uid) && is_overdue(admission));
            if is_stuck || claim.admissions.len() >= MAX_ADMISSIONS {
                return AdmitStep::Decide(Decision::Undecided(Undecided::AwaitingRelease));
            }
            // The UID is added and replaces none, since an earlier create of the name can still be stored. The write is never
            // skipped, since the new resourceVersion prevents a release that was decided on the old one.
            let admissions = claim.admissions.iter().cloned().chain([admission()]).collect();
            write(Write::replace(&claim, request.conversation.clone(), admissions))
        }
        Observation::Holder(claim, Some(live)) if live.held_binding.as_ref() == Some(&claim.name) => {
            AdmitStep::Decide(Decision::Deny { holder: claim.holder, live })
        }
        Observation::Holder(claim, live) => {
            let is_decided = |uid: &str| live.as_ref().is_some_and(|live| live.uid == uid);
            if claim.admissions.iter().all(|admission| is_decided(&admission.uid)) {
                write(Write::replace(&claim, request.conversation.clone(), vec![admission()]))
            } else {
                AdmitStep::Wait
            }
        }
        Observation::Written => AdmitStep::Decide(Decision::Allow),
    }
}

impl Claim {
    /// Whether a create with this UID was admitted under the claim.
    #[must_use]
    pub fn admits(&self, uid: &str) -> bool {
        self.admissions.iter().any(|admission| admission.uid == uid)
    }
}

/// The status of a create whose UID a claim records, as far as the leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateStatus {
    /// A watch or a live read has shown its object, so it cannot be stored again.
    Decided,
    /// It was admitted and its object has not been observed, so it can still be stored.
    InFlight,
    /// It was admitted and its object has not been observed for longer than the grace period, so it will never be stored.
    Expired,
}

/// The next step of the release of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseStep {
    /// Keep the claim as it is.
    Keep,
    /// Decide again when the grace period of a UID is over.
    AwaitGrace,
    /// Write the claim.
    Write(Write),
}

/// The next step of the release of `claim`, given the conversation that it names, which must be read live *after* the claim.
#[must_use]
pub fn release(
    claim: &Claim,
    live: Option<&LiveConversation>,
    create_status: impl Fn(&str) -> CreateStatus,
) -> ReleaseStep {
    if claim.is_being_deleted {
        return ReleaseStep::Keep;
    }
    let create_status = |uid: &str| match live {
        Some(live) if live.uid == uid => CreateStatus::Decided,
        _ => create_status(uid),
    };
    if let Some(holder) = live.filter(|live| live.held_binding.as_ref() == Some(&claim.name)) {
        // Other UIDs than the holder's would delay the moment at which the webhook sees that the binding is free.
        let (kept, pruned): (Vec<_>, Vec<_>) = claim.admissions.iter().cloned().partition(|admission| {
            admission.uid == holder.uid || create_status(&admission.uid) == CreateStatus::InFlight
        });
        return if !pruned.is_empty() {
            ReleaseStep::Write(Write::replace(claim, claim.holder.clone(), kept))
        } else if kept.iter().any(|admission| admission.uid != holder.uid) {
            ReleaseStep::AwaitGrace
        } else {
            ReleaseStep::Keep
        };
    }
    if claim.admissions.iter().any(|admission| create_status(&admission.uid) == CreateStatus::InFlight) {
        return ReleaseStep::AwaitGrace;
    }
    let Claim { uid, resource_version, .. } = claim.clone();
    ReleaseStep::Write(Write::Delete { uid, resource_version })
}

/// The write by which the leader claims the binding of a stored conversation without a claim: one that was created without the
/// webhook, or whose claim was deleted. It fails if a claim exists; the leader then acts on that claim.
#[must_use]
pub fn adopt(conversation: ConversationReference, uid: String, now: Time) -> Write {
    Write::Create { holder: conversation, admissions: vec![Admission { uid, time: now }] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Channel;

    const GRACE: u64 = 60_000;

    fn binding() -> Binding {
        Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap()
    }

    fn at(second: i64) -> Time {
        Time::new(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn reference(name: &str) -> ConversationReference {
        ConversationReference { namespace: "sales".into(), name: name.into() }
    }

    fn claim(holder: &str, uids: &[&str]) -> Claim {
        Claim {
            binding: binding(),
            name: binding().name(),
            uid: "claim".into(),
            resource_version: "7".into(),
            is_being_deleted: false,
            holder: reference(holder),
            admissions: uids.iter().map(|uid| Admission { uid: (*uid).into(), time: at(0) }).collect(),
        }
    }

    fn open(uid: &str) -> LiveConversation {
        LiveConversation {
            uid: uid.into(),
            held_binding: Some(binding().name()),
            state: State::Active,
            participants: vec![],
        }
    }

    fn closed(uid: &str) -> LiveConversation {
        LiveConversation { uid: uid.into(), held_binding: None, state: State::Closed, participants: vec![] }
    }

    fn request(name: &str, uid: &str) -> Request {
        Request {
            binding: binding(),
            conversation: reference(name),
            uid: uid.into(),
            is_server_side_apply: false,
            is_dry_run: false,
        }
    }

    fn step(request: &Request, observation: Observation) -> AdmitStep {
        admit(request, observation, at(1), GRACE)
    }

    #[test]
    fn open_conversation_with_a_contact_holds_its_binding() {
        let live = |change: serde_json::Value| {
            let mut object = serde_json::json!({
                "metadata": {"name": "alice", "namespace": "sales", "uid": "u1"},
                "spec": {"channel": "SMS", "contact": {"address": "+15558675310"}, "proxy": {"address": "+15017122661"},
                         "participants": [{"identity": "agent-7"}]},
            });
            for (part, fields) in change.as_object().unwrap() {
                for (field, value) in fields.as_object().unwrap() {
                    object[part][field] = value.clone();
                }
            }
            LiveConversation::of(&serde_json::from_value(object).unwrap())
        };
        let json = |text: &str| serde_json::from_str(text).unwrap();
        let alice = LiveConversation { participants: vec!["agent-7".into()], ..open("u1") };
        assert_eq!(live(json("{}")), alice);
        assert_eq!(
            live(json(r#"{"status": {"state": "Inactive"}}"#)),
            LiveConversation { state: State::Inactive, ..alice.clone() }
        );
        for closed_by in [r#"{"spec": {"state": "Closed"}}"#, r#"{"status": {"state": "Closed"}}"#] {
            let closed = LiveConversation { held_binding: None, state: State::Closed, ..alice.clone() };
            assert_eq!(live(json(closed_by)), closed, "{closed_by}");
        }
        assert_eq!(live(json(r#"{"spec": {"contact": null}}"#)), LiveConversation { held_binding: None, ..alice });
    }

    #[test]
    fn claim_admits_only_the_creates_that_it_records() {
        let claim = claim("alice", &["u1", "u2"]);
        assert_eq!(["u1", "u2", "u3"].map(|uid| claim.admits(uid)), [true, true, false]);
    }

    fn uids(step: &AdmitStep) -> Vec<&str> {
        match step {
            AdmitStep::Write(Write::Create { admissions, .. } | Write::Replace { admissions, .. }) => {
                admissions.iter().map(|admission| admission.uid.as_str()).collect()
            }
            other => panic!("{other:?} writes no admissions"),
        }
    }

    #[test]
    fn free_binding_is_claimed_by_one_write() {
        let bob = request("bob", "b1");
        assert_eq!(uids(&step(&bob, Observation::Nothing)), ["b1"]);
        assert_eq!(step(&bob, Observation::Written), AdmitStep::Decide(Decision::Allow));
    }

    #[test]
    fn create_is_denied_if_a_live_read_shows_a_holder() {
        let observation = Observation::Holder(claim("alice", &["a1"]), Some(open("a1")));
        assert!(matches!(step(&request("bob", "b1"), observation), AdmitStep::Decide(Decision::Deny { .. })));
    }

    #[test]
    fn claim_of_a_closed_holder_is_taken_over_at_once() {
        let observation = Observation::Holder(claim("alice", &["a1"]), Some(closed("a1")));
        let step = step(&request("bob", "b1"), observation);
        assert_eq!(uids(&step), ["b1"]);
        let AdmitStep::Write(Write::Replace { uid, resource_version, holder, .. }) = step else { panic!("{step:?}") };
        assert_eq!((uid.as_str(), resource_version.as_str(), holder), ("claim", "7", reference("bob")));
    }

    #[test]
    fn create_waits_for_another_create_in_flight() {
        for (admissions, live) in
            [(&["a1"][..], None), (&["a1", "a2"][..], Some(closed("a2"))), (&["a1"][..], Some(closed("a2")))]
        {
            let observation = Observation::Holder(claim("alice", admissions), live);
            assert_eq!(step(&request("bob", "b1"), observation), AdmitStep::Wait);
        }
    }

    #[test]
    fn uid_is_added_to_a_claim_of_the_same_name() {
        let observation = Observation::Holder(claim("alice", &["a1"]), None);
        assert_eq!(uids(&step(&request("alice", "a2"), observation)), ["a1", "a2"]);
    }

    #[test]
    fn create_of_an_existing_name_writes_only_if_it_is_an_apply() {
        let observation = || Observation::Holder(claim("alice", &["a1"]), Some(open("a1")));
        let mut alice = request("alice", "a2");
        assert_eq!(step(&alice, observation()), AdmitStep::Decide(Decision::AlreadyExists));
        alice.is_server_side_apply = true;
        assert_eq!(uids(&step(&alice, observation())), ["a1", "a2"]);
    }

    #[test]
    fn repeated_review_is_allowed_without_a_second_write() {
        let observation = Observation::Claim(Some(claim("alice", &["a1", "a2"])));
        assert_eq!(step(&request("alice", "a2"), observation.clone()), AdmitStep::Decide(Decision::Allow));
        // A UID that another conversation's claim records is not a repeated review.
        assert!(matches!(step(&request("bob", "a2"), observation), AdmitStep::ReadHolder(_)));
    }

    #[test]
    fn no_uid_is_added_to_an_overdue_or_full_claim() {
        let awaiting = AdmitStep::Decide(Decision::Undecided(Undecided::AwaitingRelease));
        let alice = request("alice", "a2");
        let stuck = || Observation::Holder(claim("alice", &["a1"]), None);
        assert!(matches!(admit(&alice, stuck(), at(60), GRACE), AdmitStep::Write(_)));
        assert_eq!(admit(&alice, stuck(), at(61), GRACE), awaiting);
        let names: Vec<String> = (0..MAX_ADMISSIONS).map(|index| index.to_string()).collect();
        let full: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(step(&alice, Observation::Holder(claim("alice", &full), None)), awaiting);
        assert!(matches!(step(&alice, Observation::Holder(claim("alice", &full[1..]), None)), AdmitStep::Write(_)));
        // The UID of the conversation just read is decided, however old.
        let mut apply = alice;
        apply.is_server_side_apply = true;
        let observation = Observation::Holder(claim("alice", &["a1"]), Some(open("a1")));
        assert!(matches!(admit(&apply, observation, at(1000), GRACE), AdmitStep::Write(_)));
    }

    #[test]
    fn dry_run_writes_nothing_and_gets_the_same_decision() {
        let mut bob = request("bob", "b1");
        bob.is_dry_run = true;
        assert_eq!(step(&bob, Observation::Nothing), AdmitStep::ReadClaim);
        assert_eq!(step(&bob, Observation::Claim(None)), AdmitStep::Decide(Decision::Allow));
        let observation = Observation::Holder(claim("alice", &["a1"]), Some(closed("a1")));
        assert_eq!(step(&bob, observation), AdmitStep::Decide(Decision::Allow));
        let observation = Observation::Holder(claim("bob", &["b0"]), None);
        assert_eq!(step(&bob, observation), AdmitStep::Decide(Decision::Allow));
        let observation = Observation::Holder(claim("alice", &["a1"]), Some(open("a1")));
        assert!(matches!(step(&bob, observation), AdmitStep::Decide(Decision::Deny { .. })));
    }

    #[test]
    fn create_waits_for_a_claim_that_is_being_deleted() {
        let mut deleted = claim("alice", &["a1"]);
        deleted.is_being_deleted = true;
        assert_eq!(step(&request("alice", "a2"), Observation::Claim(Some(deleted.clone()))), AdmitStep::Wait);
        assert_eq!(release(&deleted, None, |_| CreateStatus::Decided), ReleaseStep::Keep);
    }

    #[test]
    fn changed_claim_is_read_again_and_missing_one_is_created() {
        let bob = request("bob", "b1");
        assert_eq!(step(&bob, Observation::Changed), AdmitStep::ReadClaim);
        assert_eq!(uids(&step(&bob, Observation::Claim(None))), ["b1"]);
    }

    fn delete() -> ReleaseStep {
        ReleaseStep::Write(Write::Delete { uid: "claim".into(), resource_version: "7".into() })
    }

    #[test]
    fn claim_without_holder_is_deleted_if_no_uid_is_in_flight() {
        for create_status in [CreateStatus::Decided, CreateStatus::Expired] {
            assert_eq!(release(&claim("alice", &["a1"]), None, |_| create_status), delete());
            assert_eq!(release(&claim("alice", &["a1", "a2"]), Some(&closed("a2")), |_| { create_status }), delete());
        }
        // The conversation that was just read is decided, whatever the watch has shown.
        assert_eq!(release(&claim("alice", &["a1"]), Some(&closed("a1")), |_| { CreateStatus::InFlight }), delete());
    }

    #[test]
    fn claim_is_kept_while_a_create_is_in_flight() {
        let create_status = |uid: &str| {
            if uid == "a1" { CreateStatus::InFlight } else { CreateStatus::Decided }
        };
        assert_eq!(release(&claim("alice", &["a1"]), None, create_status), ReleaseStep::AwaitGrace);
        assert_eq!(
            release(&claim("alice", &["a1", "a2"]), Some(&closed("a2")), create_status),
            ReleaseStep::AwaitGrace
        );
    }

    #[test]
    fn claim_of_a_holder_is_kept_and_other_uids_are_pruned() {
        let holder = open("a2");
        let one = claim("alice", &["a2"]);
        assert_eq!(release(&one, Some(&holder), |_| CreateStatus::InFlight), ReleaseStep::Keep);
        let two = claim("alice", &["a1", "a2"]);
        assert_eq!(release(&two, Some(&holder), |_| CreateStatus::InFlight), ReleaseStep::AwaitGrace);
        let of_another_create = claim("alice", &["a1"]);
        assert_eq!(release(&of_another_create, Some(&holder), |_| CreateStatus::InFlight), ReleaseStep::AwaitGrace);
        for create_status in [CreateStatus::Decided, CreateStatus::Expired] {
            let pruned = Write::replace(&two, reference("alice"), one.admissions.clone());
            assert_eq!(release(&two, Some(&holder), |_| create_status), ReleaseStep::Write(pruned));
        }
    }

    #[test]
    fn holder_of_another_binding_does_not_keep_the_claim() {
        let mut elsewhere = open("a1");
        elsewhere.held_binding = Some(Binding::parse(Channel::Sms, "+15558675310", "+15017122662").unwrap().name());
        assert_eq!(release(&claim("alice", &["a1"]), Some(&elsewhere), |_| { CreateStatus::Decided }), delete());
    }

    /// I3, second half, for every sequence of creates of alice that fail within two grace periods.
    #[test]
    fn failing_creates_free_a_binding_after_two_grace_periods() {
        const TICKS: i64 = 4;
        let grace_period = u64::try_from(TICKS * 1_000).unwrap();
        let last = 2 * TICKS + 1;
        for tries in 1_u32..1 << last {
            let mut admissions: Vec<(Admission, i64)> = Vec::new();
            let begin = i64::from(tries.trailing_zeros());
            let freed = (begin..=begin + last).find(|tick| {
                let uids =
                    |admissions: &[(Admission, i64)]| admissions.iter().map(|(known, _)| known.clone()).collect();
                let claimed =
                    |admissions: &[(Admission, i64)]| Claim { admissions: uids(admissions), ..claim("alice", &[]) };
                if tries.checked_shr(u32::try_from(*tick).unwrap()).unwrap_or_default() & 1 == 1 {
                    let alice = request("alice", &tick.to_string());
                    let observation = if admissions.is_empty() {
                        Observation::Claim(None)
                    } else {
                        Observation::Holder(claimed(&admissions), None)
                    };
                    if let AdmitStep::Write(_) = admit(&alice, observation, at(*tick), grace_period) {
                        admissions.push((Admission { uid: alice.uid, time: at(*tick) }, *tick));
                    }
                }
                let create_status = |uid: &str| {
                    let (_, since) = admissions.iter().find(|(known, _)| known.uid == uid).unwrap();
                    if tick - since >= TICKS { CreateStatus::Expired } else { CreateStatus::InFlight }
                };
                matches!(release(&claimed(&admissions), None, create_status), ReleaseStep::Write(Write::Delete { .. }))
            });
            let freed = freed.unwrap_or_else(|| panic!("{tries:b} keeps the binding"));
            assert!(freed - begin <= 2 * TICKS, "{tries:b} keeps the binding for {} ticks", freed - begin);
        }
    }
}
