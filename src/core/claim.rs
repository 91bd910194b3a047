//! The claim protocol, which guarantees that a binding has at most one holder: each function maps an observation to the next step.
//!
//! `claims.rs` executes the steps against the API server and decides nothing. ARCHITECTURE.md explains why the steps suffice, and
//! defines the invariants I1 to I5 that are named here.

use super::binding::{Binding, BindingName};
use super::effective::{state_in_effect, stored_binding};
use super::manager::Manager;
use crate::api::{Admission, Conversation, ConversationReference, MAX_ADMISSIONS, OnConflict, State, Time};
use std::time::Duration;

/// How long a create waits for the other creates of its name before it adds its UID to their claim. Each UID that is added and
/// never stored keeps the binding from others for a grace period.
const OWN_NAME_WAIT: Duration = Duration::from_secs(1);
/// The age up to which a create in flight is expected to be stored within a second.
const USUAL_CREATE_TIME: Duration = Duration::from_secs(2);
/// The time after the end of a grace period within which the leader releases the claim.
const RELEASE_SLACK: Duration = Duration::from_secs(10);
/// How often client-go repeats a request that is answered with a 503 and `retryAfterSeconds`.
const CLIENT_RETRIES: u32 = 10;

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
    /// The binding that it needs: that of its spec, while it is open and has a contact. It holds the binding if a claim names it
    /// and records its UID.
    pub needed_binding: Option<BindingName>,
    /// The state in effect.
    pub state: State,
    /// The identities of its participants.
    pub participants: Vec<String>,
    /// The tool that manages it from elsewhere.
    pub manager: Option<Manager>,
}

impl LiveConversation {
    /// The view of a conversation that the protocol uses. A conversation whose addresses no version of the schema
    /// admits holds no binding, since no message can be routed to it.
    #[must_use]
    pub fn of(conversation: &Conversation) -> Self {
        let spec = &conversation.spec;
        let state = state_in_effect(spec.state, conversation.status.as_ref().and_then(|status| status.state));
        let binding = stored_binding(conversation).ok().flatten();
        Self {
            uid: conversation.metadata.uid.clone().unwrap_or_default(),
            needed_binding: binding.map(|binding| binding.name()),
            state,
            participants: spec.participants.iter().flatten().map(|participant| participant.identity.clone()).collect(),
            manager: Manager::of(&conversation.metadata),
        }
    }
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
    /// Whether the API server generated the name. If the name exists already, the API server generates another one.
    pub has_generated_name: bool,
    /// The handling of a binding that is not free.
    pub on_conflict: OnConflict,
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
    /// Whether a conversation with the requested name exists, according to this source.
    Name(Source, bool),
    /// The claim, read live, or `None` if there is none.
    Claim(Option<Claim>),
    /// The claim and the conversation that it names, read live in this order.
    Holder {
        /// The claim.
        claim: Claim,
        /// The conversation that it names; `None` if there is none.
        live: Option<LiveConversation>,
        /// How long this admission has observed the claim with the same admissions.
        unchanged_for: Duration,
    },
    /// The write took effect.
    Written,
}

/// The source of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cache of the API server, which can be outdated and costs little.
    Cache,
    /// etcd.
    Live,
}

/// The next step of the admission of a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdmitStep {
    /// Read the conversation with the requested name.
    ReadName(Source),
    /// Read the claim live.
    ReadClaim,
    /// Read the conversation that this claim names, live.
    ReadHolder(Claim),
    /// Write the claim.
    Write(Write),
    /// Wait some milliseconds for the claim or its holder to change, then continue with [`Observation::Changed`]. If there is
    /// no time left to wait, the create is undecided for this reason.
    Wait(Undecided),
    /// End the admission with a decision.
    Decide(Decision),
}

/// The decision about a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The binding is claimed for the conversation.
    Allow,
    /// The conversation may be stored without a claim, since its spec says that it waits for the binding.
    AllowWaiting,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// The claim is being deleted.
    Release,
    /// Creates of the conversation that the claim names were admitted, and none of them is known to be stored.
    Create {
        /// The conversation that the claim names.
        conversation: ConversationReference,
        /// The time at which the grace period of the last of them ends. Then the leader releases the claim.
        until: Time,
        /// The delay after which to retry: ten retries outlast the grace period.
        retry_after: Duration,
    },
    /// A server-side apply of a conversation that was created meanwhile. A retry is an update, which needs no decision.
    NameTaken,
    /// The API server did not answer in time.
    ApiServer,
}

impl Undecided {
    /// The delay after which to retry the create.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Create { retry_after, .. } => *retry_after,
            Self::Release | Self::NameTaken | Self::ApiServer => Duration::from_secs(1),
        }
    }
}

/// The next step of the admission of `request`.
///
/// `now` and `grace_period` decide only whether more UIDs can be added to a claim, never which conversation holds it.
#[must_use]
pub fn admit(request: &Request, observation: Observation, now: Time, grace_period: Duration) -> AdmitStep {
    let admission = || Admission { uid: request.uid.clone(), time: now };
    // I5: if a write would claim the binding, a dry run is allowed without it.
    let write = |write| {
        if request.is_dry_run { AdmitStep::Decide(Decision::Allow) } else { AdmitStep::Write(write) }
    };
    let create = || write(Write::Create { holder: request.conversation.clone(), admissions: vec![admission()] });
    // Most bindings are free, so the first step is the write that claims it, and the claim is read only if that fails.
    let claim = || if request.is_dry_run { AdmitStep::ReadClaim } else { create() };
    let undecided = |why| AdmitStep::Decide(request.undecided(why));
    match observation {
        // A create of an existing name fails. If it claimed the binding first, its UID would keep the binding from others.
        Observation::Nothing if request.has_name_of_its_own() => AdmitStep::ReadName(Source::Cache),
        Observation::Name(Source::Cache, true) => AdmitStep::ReadName(Source::Live),
        Observation::Name(Source::Live, true) => AdmitStep::Decide(Decision::AlreadyExists),
        Observation::Nothing | Observation::Name(_, false) => claim(),
        Observation::Changed => AdmitStep::ReadClaim,
        Observation::Claim(None) => create(),
        Observation::Claim(Some(claim)) if claim.is_being_deleted => match request.on_conflict {
            OnConflict::Refuse => AdmitStep::Wait(Undecided::Release),
            OnConflict::Wait => AdmitStep::Decide(Decision::AllowWaiting),
        },
        // A repeated review. Its UID is undecided, so no release has been decided since it was added.
        Observation::Claim(Some(claim)) if claim.holder == request.conversation && claim.admits(&request.uid) => {
            AdmitStep::Decide(Decision::Allow)
        }
        Observation::Claim(Some(claim)) => AdmitStep::ReadHolder(claim),
        Observation::Holder { claim, live, unchanged_for } if claim.holder == request.conversation => {
            if live.is_some() {
                return if request.is_server_side_apply {
                    undecided(Undecided::NameTaken)
                } else {
                    AdmitStep::Decide(Decision::AlreadyExists)
                };
            }
            let is_overdue = |admission: &Admission| now.duration_since(admission.time) > grace_period;
            let in_flight = || claim.in_flight(now, grace_period);
            if claim.admissions.iter().any(is_overdue) || claim.admissions.len() >= MAX_ADMISSIONS {
                return undecided(in_flight());
            }
            if !claim.admissions.is_empty() && unchanged_for < OWN_NAME_WAIT {
                return AdmitStep::Wait(in_flight());
            }
            // The UID is added and replaces none, since an earlier create of the name can still be stored. The write is never
            // skipped, since the new resourceVersion prevents a release that was decided on the old one.
            let admissions = claim.admissions.iter().cloned().chain([admission()]).collect();
            write(Write::replace(&claim, request.conversation.clone(), admissions))
        }
        Observation::Holder { claim, live: Some(live), .. } if claim.is_held_by(&live) => {
            AdmitStep::Decide(match request.on_conflict {
                OnConflict::Refuse => Decision::Deny { holder: claim.holder, live },
                OnConflict::Wait => Decision::AllowWaiting,
            })
        }
        Observation::Holder { claim, live, .. } => {
            let is_decided = |uid: &str| live.as_ref().is_some_and(|live| live.uid == uid);
            if claim.admissions.iter().all(|admission| is_decided(&admission.uid)) {
                write(Write::replace(&claim, request.conversation.clone(), vec![admission()]))
            } else {
                match request.on_conflict {
                    OnConflict::Refuse => AdmitStep::Wait(claim.in_flight(now, grace_period)),
                    OnConflict::Wait => AdmitStep::Decide(Decision::AllowWaiting),
                }
            }
        }
        Observation::Written => AdmitStep::Decide(Decision::Allow),
    }
}

impl Request {
    /// Whether it is a create under a name that the client chose, which fails if the name exists.
    #[must_use]
    pub fn has_name_of_its_own(&self) -> bool {
        !self.is_server_side_apply && !self.has_generated_name
    }

    /// The decision if it cannot be decided in time whether the binding is free.
    #[must_use]
    pub fn undecided(&self, why: Undecided) -> Decision {
        match self.on_conflict {
            OnConflict::Refuse => Decision::Undecided(why),
            OnConflict::Wait => Decision::AllowWaiting,
        }
    }
}

impl Claim {
    /// Whether a create with this UID was admitted under the claim.
    #[must_use]
    pub fn admits(&self, uid: &str) -> bool {
        self.admissions.iter().any(|admission| admission.uid == uid)
    }

    /// Whether `live`, the conversation that the claim names, holds the binding.
    #[must_use]
    pub fn is_held_by(&self, live: &LiveConversation) -> bool {
        live.needed_binding.as_ref() == Some(&self.name) && self.admits(&live.uid)
    }

    /// The reason to wait for the creates that the claim records.
    fn in_flight(&self, now: Time, grace_period: Duration) -> Undecided {
        let last = self.admissions.iter().map(|admission| admission.time).max().unwrap_or(now);
        let retry_after = if now.duration_since(last) < USUAL_CREATE_TIME {
            1
        } else {
            (grace_period + RELEASE_SLACK).as_secs().div_ceil(u64::from(CLIENT_RETRIES))
        };
        Undecided::Create {
            conversation: self.holder.clone(),
            until: last.after(grace_period),
            retry_after: Duration::from_secs(retry_after),
        }
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

/// A conversation that waits for a binding, and is next to get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Its namespace and name.
    pub conversation: ConversationReference,
    /// The conversation, which must be read live *after* the claim.
    pub live: LiveConversation,
}

/// The next step of the release of `claim`, given the conversation that it names, which must be read live *after* the claim. A
/// `successor` that needs the binding gets it in the same write, so that no other create can claim it in between.
#[must_use]
pub fn release(
    claim: &Claim,
    live: Option<&LiveConversation>,
    successor: Option<&Successor>,
    create_status: impl Fn(&str) -> CreateStatus,
    now: Time,
) -> ReleaseStep {
    if claim.is_being_deleted {
        return ReleaseStep::Keep;
    }
    let create_status = |uid: &str| match live {
        Some(live) if live.uid == uid => CreateStatus::Decided,
        _ => create_status(uid),
    };
    let needs_binding = |live: &&LiveConversation| live.needed_binding.as_ref() == Some(&claim.name);
    if let Some(holder) = live.filter(needs_binding) {
        // Other UIDs than the holder's would delay the moment at which the webhook sees that the binding is free.
        let (mut kept, pruned): (Vec<_>, Vec<_>) = claim.admissions.iter().cloned().partition(|admission| {
            admission.uid == holder.uid || create_status(&admission.uid) == CreateStatus::InFlight
        });
        // A conversation that was stored without a review becomes the holder when the claim records it.
        let is_added = !claim.admits(&holder.uid) && kept.len() < MAX_ADMISSIONS;
        if is_added {
            kept.push(Admission { uid: holder.uid.clone(), time: now });
        }
        return if is_added || !pruned.is_empty() {
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
    ReleaseStep::Write(match successor.filter(|successor| needs_binding(&&successor.live)) {
        Some(Successor { conversation, live }) => {
            Write::replace(claim, conversation.clone(), vec![Admission { uid: live.uid.clone(), time: now }])
        }
        None => Write::Delete { uid: claim.uid.clone(), resource_version: claim.resource_version.clone() },
    })
}

/// The write by which the leader claims the binding of a stored conversation without a claim: one that was created without the
/// webhook, one that waited, or one whose claim was deleted. It fails if a claim exists; the leader then acts on that claim.
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
            needed_binding: Some(binding().name()),
            state: State::Active,
            participants: vec![],
            manager: None,
        }
    }

    fn closed(uid: &str) -> LiveConversation {
        LiveConversation {
            uid: uid.into(),
            needed_binding: None,
            state: State::Closed,
            participants: vec![],
            manager: None,
        }
    }

    fn request(name: &str, uid: &str) -> Request {
        Request {
            binding: binding(),
            conversation: reference(name),
            uid: uid.into(),
            is_server_side_apply: false,
            has_generated_name: false,
            on_conflict: OnConflict::Refuse,
            is_dry_run: false,
        }
    }

    /// The observation of a claim that has not changed for long.
    fn holder(claim: Claim, live: Option<LiveConversation>) -> Observation {
        Observation::Holder { claim, live, unchanged_for: OWN_NAME_WAIT }
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
            let closed = LiveConversation { needed_binding: None, state: State::Closed, ..alice.clone() };
            assert_eq!(live(json(closed_by)), closed, "{closed_by}");
        }
        assert_eq!(live(json(r#"{"spec": {"contact": null}}"#)), LiveConversation { needed_binding: None, ..alice });
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
        assert_eq!(uids(&step(&bob, Observation::Name(Source::Cache, false))), ["b1"]);
        assert_eq!(step(&bob, Observation::Written), AdmitStep::Decide(Decision::Allow));
        // A name that the create does not choose is not read.
        for (is_server_side_apply, has_generated_name) in [(true, false), (false, true)] {
            let bob = Request { is_server_side_apply, has_generated_name, ..bob.clone() };
            assert_eq!(uids(&step(&bob, Observation::Nothing)), ["b1"]);
        }
    }

    #[test]
    fn create_of_an_existing_name_is_refused_before_it_claims() {
        let alice = request("alice", "a2");
        assert_eq!(step(&alice, Observation::Nothing), AdmitStep::ReadName(Source::Cache));
        assert_eq!(step(&alice, Observation::Name(Source::Cache, true)), AdmitStep::ReadName(Source::Live));
        assert_eq!(step(&alice, Observation::Name(Source::Live, true)), AdmitStep::Decide(Decision::AlreadyExists));
        assert_eq!(uids(&step(&alice, Observation::Name(Source::Live, false))), ["a2"]);
    }

    #[test]
    fn create_is_denied_if_a_live_read_shows_a_holder() {
        let observation = holder(claim("alice", &["a1"]), Some(open("a1")));
        assert!(matches!(step(&request("bob", "b1"), observation), AdmitStep::Decide(Decision::Deny { .. })));
    }

    #[test]
    fn claim_of_a_closed_holder_is_taken_over_at_once() {
        let observation = holder(claim("alice", &["a1"]), Some(closed("a1")));
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
            let observation = holder(claim("alice", admissions), live);
            assert!(matches!(
                step(&request("bob", "b1"), observation),
                AdmitStep::Wait(Undecided::Create { conversation, .. }) if conversation == reference("alice")
            ));
        }
    }

    #[test]
    fn uid_is_added_once_the_claim_of_its_name_is_unchanged_for_long() {
        let alice = request("alice", "a2");
        let observation =
            |unchanged_for| Observation::Holder { claim: claim("alice", &["a1"]), live: None, unchanged_for };
        assert_eq!(uids(&step(&alice, observation(OWN_NAME_WAIT))), ["a1", "a2"]);
        let earlier = observation(OWN_NAME_WAIT.saturating_sub(Duration::from_millis(1)));
        assert!(matches!(step(&alice, earlier), AdmitStep::Wait(Undecided::Create { .. })));
        let without_creates =
            Observation::Holder { claim: claim("alice", &[]), live: None, unchanged_for: Duration::ZERO };
        assert_eq!(uids(&step(&alice, without_creates)), ["a2"]);
    }

    #[test]
    fn create_whose_name_is_stored_leaves_no_uid() {
        let observation = || holder(claim("alice", &["a1"]), Some(open("a1")));
        let mut alice = request("alice", "a2");
        assert_eq!(step(&alice, observation()), AdmitStep::Decide(Decision::AlreadyExists));
        alice.is_server_side_apply = true;
        assert_eq!(step(&alice, observation()), AdmitStep::Decide(Decision::Undecided(Undecided::NameTaken)));
    }

    #[test]
    fn waiting_create_is_allowed_without_a_claim() {
        let bob = Request { on_conflict: OnConflict::Wait, ..request("bob", "b1") };
        let allowed = AdmitStep::Decide(Decision::AllowWaiting);
        let deleted = Claim { is_being_deleted: true, ..claim("alice", &["a1"]) };
        assert_eq!(step(&bob, Observation::Claim(Some(deleted))), allowed);
        for live in [Some(open("a1")), Some(open("a2")), Some(closed("a2")), None] {
            assert_eq!(step(&bob, holder(claim("alice", &["a1"]), live)), allowed);
        }
        // A binding that is free is claimed as by every create, and so is a UID added to a claim of the same name.
        assert_eq!(uids(&step(&bob, holder(claim("alice", &["a1"]), Some(closed("a1"))))), ["b1"]);
        assert_eq!(uids(&step(&bob, Observation::Claim(None))), ["b1"]);
        assert_eq!(uids(&step(&bob, holder(claim("bob", &["b0"]), None))), ["b0", "b1"]);
        assert_eq!(admit(&bob, holder(claim("bob", &["b0"]), None), at(61), GRACE), allowed);
        assert_eq!(bob.undecided(Undecided::ApiServer), Decision::AllowWaiting);
    }

    #[test]
    fn conversation_that_no_claim_records_is_no_holder() {
        let observation = holder(claim("alice", &["a1"]), Some(open("a2")));
        assert!(matches!(step(&request("bob", "b1"), observation), AdmitStep::Wait(_)));
    }

    #[test]
    fn ten_retries_outlast_the_grace_period() {
        let retry_after = |second| claim("alice", &["a1"]).in_flight(at(second), GRACE).retry_after().as_secs();
        assert_eq!([0, 1, 2, 60].map(retry_after), [1, 1, 7, 7]);
        let Undecided::Create { until, .. } = claim("alice", &["a1"]).in_flight(at(5), GRACE) else { panic!() };
        assert_eq!(until, at(60));
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
        let is_undecided = |step| matches!(step, AdmitStep::Decide(Decision::Undecided(Undecided::Create { conversation, .. })) if conversation == reference("alice"));
        let alice = request("alice", "a2");
        let stuck = || holder(claim("alice", &["a1"]), None);
        assert!(matches!(admit(&alice, stuck(), at(60), GRACE), AdmitStep::Write(_)));
        assert!(is_undecided(admit(&alice, stuck(), at(61), GRACE)));
        let names: Vec<String> = (0..MAX_ADMISSIONS).map(|index| index.to_string()).collect();
        let full: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(is_undecided(step(&alice, holder(claim("alice", &full), None))));
        assert!(matches!(step(&alice, holder(claim("alice", &full[1..]), None)), AdmitStep::Write(_)));
    }

    #[test]
    fn dry_run_writes_nothing_and_gets_the_same_decision() {
        let mut bob = request("bob", "b1");
        bob.is_dry_run = true;
        assert_eq!(step(&bob, Observation::Nothing), AdmitStep::ReadName(Source::Cache));
        assert_eq!(step(&bob, Observation::Name(Source::Cache, false)), AdmitStep::ReadClaim);
        assert_eq!(step(&bob, Observation::Claim(None)), AdmitStep::Decide(Decision::Allow));
        let observation = holder(claim("alice", &["a1"]), Some(closed("a1")));
        assert_eq!(step(&bob, observation), AdmitStep::Decide(Decision::Allow));
        let observation = holder(claim("bob", &["b0"]), None);
        assert_eq!(step(&bob, observation), AdmitStep::Decide(Decision::Allow));
        let observation = holder(claim("alice", &["a1"]), Some(open("a1")));
        assert!(matches!(step(&bob, observation), AdmitStep::Decide(Decision::Deny { .. })));
    }

    #[test]
    fn create_waits_for_a_claim_that_is_being_deleted() {
        let mut deleted = claim("alice", &["a1"]);
        deleted.is_being_deleted = true;
        let observation = Observation::Claim(Some(deleted.clone()));
        assert_eq!(step(&request("alice", "a2"), observation), AdmitStep::Wait(Undecided::Release));
        assert_eq!(release_step(&deleted, None, |_| CreateStatus::Decided), ReleaseStep::Keep);
    }

    #[test]
    fn changed_claim_is_read_again_and_missing_one_is_created() {
        let bob = request("bob", "b1");
        assert_eq!(step(&bob, Observation::Changed), AdmitStep::ReadClaim);
        assert_eq!(uids(&step(&bob, Observation::Claim(None))), ["b1"]);
    }

    /// The release of a claim for which no conversation waits.
    fn release_step(
        claim: &Claim,
        live: Option<&LiveConversation>,
        create_status: impl Fn(&str) -> CreateStatus,
    ) -> ReleaseStep {
        release(claim, live, None, create_status, at(1))
    }

    fn delete() -> ReleaseStep {
        ReleaseStep::Write(Write::Delete { uid: "claim".into(), resource_version: "7".into() })
    }

    #[test]
    fn claim_without_holder_is_deleted_if_no_uid_is_in_flight() {
        for create_status in [CreateStatus::Decided, CreateStatus::Expired] {
            assert_eq!(release_step(&claim("alice", &["a1"]), None, |_| create_status), delete());
            assert_eq!(
                release_step(&claim("alice", &["a1", "a2"]), Some(&closed("a2")), |_| { create_status }),
                delete()
            );
        }
        // The conversation that was just read is decided, whatever the watch has shown.
        assert_eq!(
            release_step(&claim("alice", &["a1"]), Some(&closed("a1")), |_| { CreateStatus::InFlight }),
            delete()
        );
    }

    #[test]
    fn claim_is_kept_while_a_create_is_in_flight() {
        let create_status = |uid: &str| {
            if uid == "a1" { CreateStatus::InFlight } else { CreateStatus::Decided }
        };
        assert_eq!(release_step(&claim("alice", &["a1"]), None, create_status), ReleaseStep::AwaitGrace);
        assert_eq!(
            release_step(&claim("alice", &["a1", "a2"]), Some(&closed("a2")), create_status),
            ReleaseStep::AwaitGrace
        );
    }

    #[test]
    fn claim_of_a_holder_is_kept_and_other_uids_are_pruned() {
        let holder = open("a2");
        let one = claim("alice", &["a2"]);
        assert_eq!(release_step(&one, Some(&holder), |_| CreateStatus::InFlight), ReleaseStep::Keep);
        let two = claim("alice", &["a1", "a2"]);
        assert_eq!(release_step(&two, Some(&holder), |_| CreateStatus::InFlight), ReleaseStep::AwaitGrace);
        for create_status in [CreateStatus::Decided, CreateStatus::Expired] {
            let pruned = Write::replace(&two, reference("alice"), one.admissions.clone());
            assert_eq!(release_step(&two, Some(&holder), |_| create_status), ReleaseStep::Write(pruned));
        }
    }

    #[test]
    fn stored_conversation_is_added_to_the_claim_of_its_name() {
        let holder = open("a2");
        for (recorded, create_status, expected) in [
            (&["a1"][..], CreateStatus::InFlight, &["a1", "a2"][..]),
            (&["a1"], CreateStatus::Expired, &["a2"]),
            (&[], CreateStatus::InFlight, &["a2"]),
        ] {
            let step = release_step(&claim("alice", recorded), Some(&holder), |_| create_status);
            let ReleaseStep::Write(Write::Replace { admissions, .. }) = step else { panic!("{step:?}") };
            assert_eq!(admissions.iter().map(|admission| admission.uid.as_str()).collect::<Vec<_>>(), expected);
        }
        let names: Vec<String> = (0..MAX_ADMISSIONS).map(|index| index.to_string()).collect();
        let full = claim("alice", &names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(release_step(&full, Some(&holder), |_| CreateStatus::InFlight), ReleaseStep::AwaitGrace);
    }

    #[test]
    fn waiting_conversation_gets_the_binding_in_one_write() {
        let bob = |live| Successor { conversation: reference("bob"), live };
        let alice = claim("alice", &["a1"]);
        let handed_over = Write::replace(&alice, reference("bob"), vec![Admission { uid: "b1".into(), time: at(1) }]);
        let step = |live: Option<LiveConversation>, successor, create_status| {
            release(&alice, live.as_ref(), Some(&successor), |_| create_status, at(1))
        };
        let (decided, in_flight) = (CreateStatus::Decided, CreateStatus::InFlight);
        assert_eq!(step(Some(closed("a1")), bob(open("b1")), in_flight), ReleaseStep::Write(handed_over.clone()));
        assert_eq!(step(None, bob(open("b1")), decided), ReleaseStep::Write(handed_over));
        assert_eq!(step(None, bob(open("b1")), in_flight), ReleaseStep::AwaitGrace, "a create can still be stored");
        assert_eq!(step(Some(open("a1")), bob(open("b1")), decided), ReleaseStep::Keep, "alice holds it");
        assert_eq!(step(None, bob(closed("b1")), decided), delete(), "bob no longer needs it");
    }

    #[test]
    fn holder_of_another_binding_does_not_keep_the_claim() {
        let mut elsewhere = open("a1");
        elsewhere.needed_binding = Some(Binding::parse(Channel::Sms, "+15558675310", "+15017122662").unwrap().name());
        assert_eq!(release_step(&claim("alice", &["a1"]), Some(&elsewhere), |_| { CreateStatus::Decided }), delete());
    }

    /// I3, second half, for every sequence of creates of alice that fail within two grace periods.
    #[test]
    fn failing_creates_free_a_binding_after_two_grace_periods() {
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
                    let observation = if admissions.is_empty() {
                        Observation::Claim(None)
                    } else {
                        holder(claimed(&admissions), None)
                    };
                    if let AdmitStep::Write(_) = admit(&alice, observation, at(*tick), grace_period) {
                        admissions.push((Admission { uid: alice.uid, time: at(*tick) }, *tick));
                    }
                }
                let create_status = |uid: &str| {
                    let (_, since) = admissions.iter().find(|(known, _)| known.uid == uid).unwrap();
                    if tick - since >= TICKS { CreateStatus::Expired } else { CreateStatus::InFlight }
                };
                matches!(
                    release_step(&claimed(&admissions), None, create_status),
                    ReleaseStep::Write(Write::Delete { .. })
                )
            });
            let freed = freed.unwrap_or_else(|| panic!("{tries:b} keeps the binding"));
            assert!(freed - begin <= 2 * TICKS, "{tries:b} keeps the binding for {} ticks", freed - begin);
        }
    }
}
