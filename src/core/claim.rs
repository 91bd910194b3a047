//! The protocol by which a binding gets exactly one holder: each function goes from what was observed to the next step.
//!
//! `claims.rs` carries the steps out against the API server and decides nothing. Why the steps are enough is told in
//! ARCHITECTURE.md; the invariants I1 to I5 named here are those that stand there.

use super::binding::{Binding, BindingName};
use super::effective::{held_binding, state_in_effect};
use crate::api::{Admission, Conversation, ConversationReference, MAX_ADMISSIONS, State, Time};
use std::time::Duration;

/// A claim as it was read: which conversation holds a binding, and the creates of it that were admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which binding.
    pub binding: Binding,
    /// The name of the AddressBinding.
    pub name: BindingName,
    /// The UID of the AddressBinding.
    pub uid: String,
    /// The resourceVersion at which it was read, the precondition of each write that rests on it.
    pub resource_version: String,
    /// Whether it has a deletionTimestamp.
    pub is_being_deleted: bool,
    /// The conversation that it names.
    pub holder: ConversationReference,
    /// The creates of that conversation that were admitted.
    pub admissions: Vec<Admission>,
}

/// A conversation as it was read live, as far as the protocol cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveConversation {
    /// Its UID. Whoever has read it live knows that the create with this UID was stored: it is *decided*.
    pub uid: String,
    /// The binding that it holds, while it is open and has a contact.
    pub held_binding: Option<BindingName>,
    /// The state in effect.
    pub state: State,
    /// The identities of its participants.
    pub participants: Vec<String>,
}

impl LiveConversation {
    /// What the protocol sees of a conversation. One whose addresses are not canonical, which the schema excludes, holds
    /// nothing: no message can reach it.
    #[must_use]
    pub fn of(conversation: &Conversation) -> Self {
        let spec = &conversation.spec;
        let state = state_in_effect(spec.state, conversation.status.as_ref().and_then(|status| status.state));
        let binding = held_binding(Binding::of(spec).ok().flatten(), state);
        Self {
            uid: conversation.metadata.uid.clone().unwrap_or_default(),
            held_binding: binding.map(|binding| binding.name()),
            state,
            participants: spec.participants.iter().flatten().map(|participant| participant.identity.clone()).collect(),
        }
    }
}

/// A change of one claim, with the preconditions on which it rests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Make the claim. It fails where one exists.
    Create {
        /// The conversation that the claim names.
        holder: ConversationReference,
        /// The admissions that it records.
        admissions: Vec<Admission>,
    },
    /// Replace the content of the claim. It fails where the claim has changed since.
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
    /// Delete the claim. It fails where the claim has changed since.
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

/// A create of a conversation that needs a binding, as the API server asks about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The binding that is needed.
    pub binding: Binding,
    /// The place where the conversation is to be stored.
    pub conversation: ConversationReference,
    /// The UID that it is to have.
    pub uid: String,
    /// Whether the create is a server-side apply, which becomes an update where the name exists already.
    pub is_server_side_apply: bool,
    /// Whether nothing must be written.
    pub is_dry_run: bool,
}

/// What the admission of a create knows so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Nothing yet.
    Nothing,
    /// That what was known is no longer so: a write met a newer claim, or a wait is over.
    Changed,
    /// The claim, read from etcd; none where there is none.
    Claim(Option<Claim>),
    /// The claim, and then the conversation that it names, both read from etcd in this order.
    Holder(Claim, Option<LiveConversation>),
    /// That our write took effect.
    Written,
}

/// What the admission of a create does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdmitStep {
    /// Read the claim from etcd.
    ReadClaim,
    /// Read the conversation that this claim names from etcd.
    ReadHolder(Claim),
    /// Write.
    Write(Write),
    /// Wait for the claim or its holder to change, some milliseconds, and begin again; answer
    /// [`Undecided::InFlight`] where there is no time for that.
    Wait,
    /// Decide.
    Decide(Decision),
}

/// The answer to a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The binding is claimed for it.
    Allow,
    /// Another conversation holds the binding: 48031.
    Deny {
        /// Where it is.
        holder: ConversationReference,
        /// What was read of it.
        stored: LiveConversation,
    },
    /// A conversation of this name exists, and the create would fail for that reason. Answered here, it leaves no undecided UID.
    AlreadyExists,
    /// It cannot be said in time: to be repeated.
    Undecided(Undecided),
}

/// Why a create cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// Another create for the binding is in flight, or a release is.
    InFlight,
    /// Creates of this name were admitted and never stored; the leader is about to release the claim.
    AwaitingRelease,
    /// The API server could not be read or written in time.
    ApiServer,
}

/// The next step of the admission of `request`.
///
/// `now` and `grace_period` decide only whether more UIDs may be added to a claim, never who holds it.
#[must_use]
pub fn admit(request: &Request, seen: Observation, now: Time, grace_period: Duration) -> AdmitStep {
    let admission = || Admission { uid: request.uid.clone(), time: now };
    // I5: where a write would claim the binding, a dry run is told that it would.
    let write = |write| {
        if request.is_dry_run { AdmitStep::Decide(Decision::Allow) } else { AdmitStep::Write(write) }
    };
    let create = || write(Write::Create { holder: request.conversation.clone(), admissions: vec![admission()] });
    match seen {
        // Most bindings are free: try the one write that claims it, and read only if that fails.
        Observation::Nothing if !request.is_dry_run => create(),
        Observation::Nothing | Observation::Changed => AdmitStep::ReadClaim,
        Observation::Claim(None) => create(),
        Observation::Claim(Some(claim)) if claim.is_being_deleted => AdmitStep::Wait,
        // A repeated review. Its UID is undecided, so no release can have been decided since it was added.
        Observation::Claim(Some(claim)) if claim.holder == request.conversation && claim.admits(&request.uid) => {
            AdmitStep::Decide(Decision::Allow)
        }
        Observation::Claim(Some(claim)) => AdmitStep::ReadHolder(claim),
        Observation::Holder(claim, stored) if claim.holder == request.conversation => {
            if stored.is_some() && !request.is_server_side_apply {
                return AdmitStep::Decide(Decision::AlreadyExists);
            }
            let is_decided = |uid: &str| stored.as_ref().is_some_and(|stored| stored.uid == uid);
            let is_overdue = |admission: &Admission| now.duration_since(admission.time) > grace_period;
            let is_stuck =
                claim.admissions.iter().any(|admission| !is_decided(&admission.uid) && is_overdue(admission));
            if is_stuck || claim.admissions.len() >= MAX_ADMISSIONS {
                return AdmitStep::Decide(Decision::Undecided(Undecided::AwaitingRelease));
            }
            // Added, never replaced: an earlier create of the name may still be stored. And always written: the new
            // resourceVersion is what stops a release that was decided on the old one.
            let admissions = claim.admissions.iter().cloned().chain([admission()]).collect();
            write(Write::replace(&claim, request.conversation.clone(), admissions))
        }
        Observation::Holder(claim, Some(stored)) if stored.held_binding.as_ref() == Some(&claim.name) => {
            AdmitStep::Decide(Decision::Deny { holder: claim.holder, stored })
        }
        Observation::Holder(claim, stored) => {
            let is_decided = |uid: &str| stored.as_ref().is_some_and(|stored| stored.uid == uid);
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

/// What the leader knows of one UID that a claim records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateStatus {
    /// A watch has shown it, or it has just been read: it can never be stored again.
    Decided,
    /// It was admitted and never seen, and may still be stored.
    InFlight,
    /// It was admitted and never seen for longer than the grace period: it never will be stored.
    Expired,
}

/// What the leader does with a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseStep {
    /// Nothing: it is as it should be.
    Keep,
    /// Nothing until the grace period of a UID is over.
    AwaitGrace,
    /// Write.
    Write(Write),
}

/// What becomes of `claim`, given the conversation that it names, read live *after* the claim was.
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
        Some(stored) if stored.uid == uid => CreateStatus::Decided,
        _ => create_status(uid),
    };
    if let Some(holder) = live.filter(|stored| stored.held_binding.as_ref() == Some(&claim.name)) {
        // What is not the holder's UID only keeps the webhook from seeing at once, later, that the binding is free.
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

/// The write by which the leader claims a binding for a stored conversation that has none: one that no webhook saw, or whose
/// claim somebody deleted. It fails where a claim exists, and then that claim tells what to do.
#[must_use]
pub fn adopt(conversation: ConversationReference, uid: String, now: Time) -> Write {
    Write::Create { holder: conversation, admissions: vec![Admission { uid, time: now }] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Channel;

    const GRACE: Duration = Duration::from_mins(1);

    fn binding() -> Binding {
        Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap()
    }

    fn at(second: i64) -> Time {
        Time::new(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn place(name: &str) -> ConversationReference {
        ConversationReference { namespace: "sales".into(), name: name.into() }
    }

    fn claim(holder: &str, uids: &[&str]) -> Claim {
        Claim {
            binding: binding(),
            name: binding().name(),
            uid: "claim".into(),
            resource_version: "7".into(),
            is_being_deleted: false,
            holder: place(holder),
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
            conversation: place(name),
            uid: uid.into(),
            is_server_side_apply: false,
            is_dry_run: false,
        }
    }

    fn step(request: &Request, seen: Observation) -> AdmitStep {
        admit(request, seen, at(1), GRACE)
    }

    #[test]
    fn what_is_open_by_spec_and_status_and_has_a_contact_holds_its_binding() {
        let stored = |change: serde_json::Value| {
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
        assert_eq!(stored(json("{}")), alice);
        assert_eq!(
            stored(json(r#"{"status": {"state": "Inactive"}}"#)),
            LiveConversation { state: State::Inactive, ..alice.clone() }
        );
        for closed_by in [r#"{"spec": {"state": "Closed"}}"#, r#"{"status": {"state": "Closed"}}"#] {
            let closed = LiveConversation { held_binding: None, state: State::Closed, ..alice.clone() };
            assert_eq!(stored(json(closed_by)), closed, "{closed_by}");
        }
        assert_eq!(stored(json(r#"{"spec": {"contact": null}}"#)), LiveConversation { held_binding: None, ..alice });
    }

    #[test]
    fn a_claim_admits_the_creates_that_it_records_alone() {
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
    fn a_free_binding_is_claimed_by_one_write() {
        let bob = request("bob", "b1");
        assert_eq!(uids(&step(&bob, Observation::Nothing)), ["b1"]);
        assert_eq!(step(&bob, Observation::Written), AdmitStep::Decide(Decision::Allow));
    }

    #[test]
    fn a_holder_that_was_read_live_refuses_others() {
        let seen = Observation::Holder(claim("alice", &["a1"]), Some(open("a1")));
        assert!(matches!(step(&request("bob", "b1"), seen), AdmitStep::Decide(Decision::Deny { .. })));
    }

    #[test]
    fn a_holder_that_closed_gives_way_at_once_when_its_uid_is_the_only_one() {
        let seen = Observation::Holder(claim("alice", &["a1"]), Some(closed("a1")));
        let step = step(&request("bob", "b1"), seen);
        assert_eq!(uids(&step), ["b1"]);
        let AdmitStep::Write(Write::Replace { uid, resource_version, holder, .. }) = step else { panic!("{step:?}") };
        assert_eq!((uid.as_str(), resource_version.as_str(), holder), ("claim", "7", place("bob")));
    }

    #[test]
    fn a_create_that_may_still_be_stored_is_waited_for() {
        for (admissions, stored) in
            [(&["a1"][..], None), (&["a1", "a2"][..], Some(closed("a2"))), (&["a1"][..], Some(closed("a2")))]
        {
            let seen = Observation::Holder(claim("alice", admissions), stored);
            assert_eq!(step(&request("bob", "b1"), seen), AdmitStep::Wait);
        }
    }

    #[test]
    fn a_uid_is_added_to_a_claim_of_the_same_name_and_never_replaces_another() {
        let seen = Observation::Holder(claim("alice", &["a1"]), None);
        assert_eq!(uids(&step(&request("alice", "a2"), seen)), ["a1", "a2"]);
    }

    #[test]
    fn a_create_of_an_existing_name_writes_nothing_unless_it_is_a_server_side_apply() {
        let seen = || Observation::Holder(claim("alice", &["a1"]), Some(open("a1")));
        let mut alice = request("alice", "a2");
        assert_eq!(step(&alice, seen()), AdmitStep::Decide(Decision::AlreadyExists));
        alice.is_server_side_apply = true;
        assert_eq!(uids(&step(&alice, seen())), ["a1", "a2"]);
    }

    #[test]
    fn a_repeated_review_is_allowed_without_a_second_write() {
        let seen = Observation::Claim(Some(claim("alice", &["a1", "a2"])));
        assert_eq!(step(&request("alice", "a2"), seen.clone()), AdmitStep::Decide(Decision::Allow));
        // A UID that stands in another conversation's claim is no repeated review.
        assert!(matches!(step(&request("bob", "a2"), seen), AdmitStep::ReadHolder(_)));
    }

    #[test]
    fn no_uid_is_added_beyond_the_grace_period_or_to_a_full_set() {
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
        let seen = Observation::Holder(claim("alice", &["a1"]), Some(open("a1")));
        assert!(matches!(admit(&apply, seen, at(1000), GRACE), AdmitStep::Write(_)));
    }

    #[test]
    fn a_dry_run_writes_nothing_and_gets_the_same_answer() {
        let mut bob = request("bob", "b1");
        bob.is_dry_run = true;
        assert_eq!(step(&bob, Observation::Nothing), AdmitStep::ReadClaim);
        assert_eq!(step(&bob, Observation::Claim(None)), AdmitStep::Decide(Decision::Allow));
        let seen = Observation::Holder(claim("alice", &["a1"]), Some(closed("a1")));
        assert_eq!(step(&bob, seen), AdmitStep::Decide(Decision::Allow));
        let seen = Observation::Holder(claim("bob", &["b0"]), None);
        assert_eq!(step(&bob, seen), AdmitStep::Decide(Decision::Allow));
        let seen = Observation::Holder(claim("alice", &["a1"]), Some(open("a1")));
        assert!(matches!(step(&bob, seen), AdmitStep::Decide(Decision::Deny { .. })));
    }

    #[test]
    fn a_claim_that_is_going_is_waited_for() {
        let mut going = claim("alice", &["a1"]);
        going.is_being_deleted = true;
        assert_eq!(step(&request("alice", "a2"), Observation::Claim(Some(going.clone()))), AdmitStep::Wait);
        assert_eq!(release(&going, None, |_| CreateStatus::Decided), ReleaseStep::Keep);
    }

    #[test]
    fn what_has_changed_is_read_again_and_a_claim_that_is_gone_is_made() {
        let bob = request("bob", "b1");
        assert_eq!(step(&bob, Observation::Changed), AdmitStep::ReadClaim);
        assert_eq!(uids(&step(&bob, Observation::Claim(None))), ["b1"]);
    }

    fn delete() -> ReleaseStep {
        ReleaseStep::Write(Write::Delete { uid: "claim".into(), resource_version: "7".into() })
    }

    #[test]
    fn a_claim_is_deleted_when_every_uid_is_decided_or_expired_and_none_holds() {
        for create_status in [CreateStatus::Decided, CreateStatus::Expired] {
            assert_eq!(release(&claim("alice", &["a1"]), None, |_| create_status), delete());
            assert_eq!(release(&claim("alice", &["a1", "a2"]), Some(&closed("a2")), |_| { create_status }), delete());
        }
        // The conversation that was just read is decided, whatever the watch has shown.
        assert_eq!(release(&claim("alice", &["a1"]), Some(&closed("a1")), |_| { CreateStatus::InFlight }), delete());
    }

    #[test]
    fn a_claim_is_kept_while_a_create_may_still_be_stored() {
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
    fn the_claim_of_a_holder_is_kept_and_what_is_not_its_own_is_pruned() {
        let holder = open("a2");
        let one = claim("alice", &["a2"]);
        assert_eq!(release(&one, Some(&holder), |_| CreateStatus::InFlight), ReleaseStep::Keep);
        let two = claim("alice", &["a1", "a2"]);
        assert_eq!(release(&two, Some(&holder), |_| CreateStatus::InFlight), ReleaseStep::AwaitGrace);
        let of_another_create = claim("alice", &["a1"]);
        assert_eq!(release(&of_another_create, Some(&holder), |_| CreateStatus::InFlight), ReleaseStep::AwaitGrace);
        for create_status in [CreateStatus::Decided, CreateStatus::Expired] {
            let pruned = Write::replace(&two, place("alice"), one.admissions.clone());
            assert_eq!(release(&two, Some(&holder), |_| create_status), ReleaseStep::Write(pruned));
        }
    }

    #[test]
    fn a_conversation_that_holds_another_binding_does_not_keep_this_one() {
        let mut elsewhere = open("a1");
        elsewhere.held_binding = Some(Binding::parse(Channel::Sms, "+15558675310", "+15017122662").unwrap().name());
        assert_eq!(release(&claim("alice", &["a1"]), Some(&elsewhere), |_| { CreateStatus::Decided }), delete());
    }

    /// I3, second half, for every way in which creates of alice can come and fail within two grace periods.
    #[test]
    fn creates_of_one_name_that_keep_failing_keep_a_binding_for_no_longer_than_twice_the_grace_period() {
        const TICKS: i64 = 4;
        let grace_period = Duration::from_secs(u64::try_from(TICKS).unwrap());
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
                    let seen = if admissions.is_empty() {
                        Observation::Claim(None)
                    } else {
                        Observation::Holder(claimed(&admissions), None)
                    };
                    if let AdmitStep::Write(_) = admit(&alice, seen, at(*tick), grace_period) {
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
