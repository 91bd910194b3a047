//! What is known of the open conversations and of the claims, from the watches: plain state that says what to do next.
//!
//! It holds what is decided from and no objects. No client, no async; the time is handed in.

use super::census::{Census, Counted};
use super::queue::Task;
use crate::api::{AddressBinding, Conversation, ConversationReference, ConversationStatus, State, Time};
use crate::core::binding::BindingName;
use crate::core::claim::{Claim, Standing};
use crate::core::lifecycle::{Decision, Fact, Facts, Holding, decide, due, news};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the UID of a conversation that is gone is remembered, so that a claim that is seen only later counts it as decided.
const REMEMBERED: Duration = Duration::from_mins(10);

type Place = Arc<ConversationReference>;

/// What the watches have shown.
#[derive(Debug, Default)]
pub struct Index {
    conversations: HashMap<Place, Entry>,
    /// The open conversations that have a contact, by their binding.
    candidates: HashMap<BindingName, BTreeSet<Place>>,
    claims: HashMap<BindingName, ClaimEntry>,
    /// The closed conversations about which something is left to do: few, and nothing is kept of the others.
    closed: HashMap<Place, Entry>,
    /// UIDs that were shown and are gone, and since when.
    departed: HashMap<String, Instant>,
    census: Census,
    conversation_list: List<Place>,
    claim_list: List<BindingName>,
    closed_list: List<Place>,
}

/// What is known of one conversation.
#[derive(Debug)]
struct Entry {
    uid: String,
    resource_version: String,
    facts: Facts,
    /// The binding that it names while it is open and has a contact.
    binding: Option<BindingName>,
    /// Tells whether the stored status is the one that was decided.
    fingerprint: u64,
    counted: Counted,
    /// Whether its status was written since, which the watch has yet to show.
    is_behind: bool,
}

#[derive(Debug)]
struct ClaimEntry {
    claim: Claim,
    /// When each UID of the claim was first observed.
    observed: Vec<(String, Instant)>,
}

/// The state of a list that a watch begins with, or begins anew with after it was interrupted.
#[derive(Debug)]
struct List<K> {
    is_complete: bool,
    /// What the list under way has shown so far.
    shown: Option<HashSet<K>>,
}

impl<K> Default for List<K> {
    fn default() -> Self {
        Self { is_complete: false, shown: None }
    }
}

impl<K: Eq + Hash> List<K> {
    fn begin(&mut self) {
        self.shown = Some(HashSet::new());
    }

    fn saw(&mut self, key: K) {
        if let Some(shown) = &mut self.shown {
            shown.insert(key);
        }
    }

    /// What was listed.
    fn end(&mut self) -> HashSet<K> {
        self.is_complete = true;
        self.shown.take().unwrap_or_default()
    }
}

/// A status to be written, on the version of the conversation that it was decided on.
#[derive(Debug)]
pub struct StatusWrite {
    /// Which conversation.
    pub place: Place,
    /// Its UID.
    pub uid: String,
    /// The version that the status was decided on.
    pub resource_version: String,
    /// What people are to be told once it is written.
    pub news: Vec<Fact>,
    /// The status, without what belongs to others.
    pub status: ConversationStatus,
    /// When the state will change by itself after it.
    pub wake: Option<Time>,
    /// When the timer was due that brings the state about; nothing where none does.
    pub due: Option<Time>,
}

/// A closed conversation whose time to live is over.
#[derive(Debug)]
pub struct Deletion {
    /// Which conversation.
    pub place: Place,
    /// Its UID.
    pub uid: String,
    /// The version that was seen to be closed.
    pub resource_version: String,
    /// When it was to be deleted.
    pub expiry: Time,
}

/// What is to be done about a conversation.
#[derive(Debug)]
pub enum ConversationPlan {
    /// Nothing now.
    Nothing {
        /// When its state will change by itself.
        wake: Option<Time>,
        /// What has to be seen to before it.
        look_at_first: Vec<Task>,
    },
    /// Write its status.
    Write(Box<StatusWrite>),
    /// Delete it.
    Delete(Deletion),
    /// Find out who holds its binding, and write its status accordingly.
    Resolve(Box<Question>),
}

/// A conversation whose binding the index does not show to be its own.
#[derive(Debug)]
pub struct Question {
    /// Which conversation.
    pub place: Place,
    /// Its UID.
    pub uid: String,
    /// The version that is known.
    pub resource_version: String,
    /// What is known of it.
    pub facts: Facts,
    /// The fingerprint of the stored status.
    pub fingerprint: u64,
    /// Whether, of the conversations that wait for the binding, it is the one to get it.
    pub is_first: bool,
}

/// What is to be done about a claim.
#[derive(Debug)]
pub enum ClaimPlan {
    /// Nothing with the claim.
    Nothing {
        /// The conversation that waits for the binding.
        look_at: Vec<Task>,
    },
    /// Read its conversation live, and see.
    Release(Box<Release>),
}

/// A claim that may be released or pruned.
#[derive(Debug)]
pub struct Release {
    /// The claim as the watch showed it.
    pub claim: Claim,
    /// What is known of each of its UIDs.
    pub standings: HashMap<String, Standing>,
}

/// The fingerprint of the part of a status that switchboard writes.
#[must_use]
pub fn fingerprint(status: &ConversationStatus) -> u64 {
    let ours = ConversationStatus { reported_activity_time: None, ..status.clone() };
    let mut hasher = DefaultHasher::new();
    ours.hash(&mut hasher);
    hasher.finish()
}

impl Index {
    /// Whether both watches have shown everything that is stored.
    pub fn has_synced(&self) -> bool {
        self.conversation_list.is_complete && self.claim_list.is_complete
    }

    /// The open conversations, counted.
    pub fn census(&self) -> &Census {
        &self.census
    }

    /// Everything that a new leader looks at.
    pub fn everything(&self) -> Vec<Task> {
        let conversations = self.conversations.keys().chain(self.closed.keys()).cloned().map(Task::Conversation);
        self.unsettled().chain(conversations).collect()
    }

    /// The claims that record anything but the conversation that holds them.
    fn unsettled(&self) -> impl Iterator<Item = Task> {
        self.claims.keys().filter(|name| !self.is_settled(name)).cloned().map(Task::Claim)
    }

    /// A list of the conversations begins.
    pub fn conversations_begin(&mut self) {
        self.conversation_list.begin();
    }

    /// A list of the conversations is complete: what it did not show is gone.
    pub fn conversations_listed(&mut self, now: Instant) -> Vec<Task> {
        let listed = self.conversation_list.end();
        let gone: Vec<Place> = self.conversations.keys().filter(|place| !listed.contains(*place)).cloned().collect();
        let mut affected: Vec<Task> = gone.iter().flat_map(|place| self.forget(place, now)).collect();
        // What came and went while no watch was open was never shown: nothing else tells that its claim is left.
        affected.extend(self.unsettled());
        affected
    }

    /// A list of the closed conversations begins.
    pub fn closed_begin(&mut self) {
        self.closed_list.begin();
    }

    /// A list of the closed conversations is complete: what it did not show is gone.
    pub fn closed_listed(&mut self) {
        let listed = self.closed_list.end();
        self.closed.retain(|place, _| listed.contains(place));
    }

    /// A conversation is closed, as `conversation` says.
    pub fn closed_seen(&mut self, conversation: &Conversation) -> Vec<Task> {
        let Some((place, uid, resource_version)) = identity(&conversation.metadata) else { return Vec::new() };
        let facts = Facts::of(conversation).ok();
        let Some(facts) = facts.filter(|facts| !facts.is_observed() || facts.expiry().is_some()) else {
            self.closed.remove(&place);
            return Vec::new();
        };
        self.closed_list.saw(place.clone());
        let fingerprint = conversation.status.as_ref().map_or(0, fingerprint);
        let counted = Counted::of(conversation);
        let entry = Entry { uid, resource_version, facts, binding: None, fingerprint, counted, is_behind: false };
        self.closed.insert(place.clone(), entry);
        vec![Task::Conversation(place)]
    }

    /// A closed conversation is gone.
    pub fn closed_gone(&mut self, metadata: &ObjectMeta) {
        if let Some((place, ..)) = identity(metadata) {
            self.closed.remove(&place);
        }
    }

    /// A list of the claims begins.
    pub fn claims_begin(&mut self) {
        self.claim_list.begin();
    }

    /// A list of the claims is complete: what it did not show is gone.
    pub fn claims_listed(&mut self) -> Vec<Task> {
        let listed = self.claim_list.end();
        let gone: Vec<BindingName> = self.claims.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        gone.iter().flat_map(|name| self.forget_claim(name)).collect()
    }

    /// A conversation is stored as `conversation` says.
    pub fn conversation_seen(&mut self, conversation: &Conversation, now: Instant) -> Vec<Task> {
        let Some((place, uid, resource_version)) = identity(&conversation.metadata) else {
            return Vec::new();
        };
        self.conversation_list.saw(place.clone());
        let facts = match Facts::of(conversation) {
            Ok(facts) => facts,
            Err(error) => {
                tracing::error!(conversation = %place, %error, "a stored conversation has addresses that no schema allows, and is passed over");
                return self.forget(&place, now);
            }
        };
        let mut affected = Vec::new();
        if self.conversations.get(&place).is_some_and(|before| before.uid != uid) {
            affected.extend(self.forget(&place, now));
        }
        let binding = facts.holds().map(crate::core::binding::Binding::name);
        let fingerprint = conversation.status.as_ref().map_or(0, fingerprint);
        let counted = Counted::of(conversation);
        let entry =
            Entry { uid, resource_version, facts, binding: binding.clone(), fingerprint, counted, is_behind: false };
        self.census.add(counted);
        let before = self.conversations.insert(place.clone(), entry);
        if let Some(before) = &before {
            self.census.remove(before.counted);
        }
        let before = before.and_then(|before| before.binding);
        if before != binding {
            affected.extend(before.into_iter().flat_map(|name| self.give_up(&place, &name)));
        }
        if let Some(name) = binding {
            let candidates = self.candidates.entry(name.clone()).or_default();
            candidates.insert(place.clone());
            // What another one of the same binding may do depends on what this one is known to be.
            affected.extend(candidates.iter().filter(|other| **other != place).cloned().map(Task::Conversation));
            if !self.is_settled(&name) {
                affected.push(Task::Claim(name));
            }
        }
        affected.push(Task::Conversation(place));
        affected
    }

    /// The status of a conversation was changed by a write that rested on this version: the next event about it shows that.
    pub fn written(&mut self, place: &Place, resource_version: &str) {
        if let Some(entry) = self.conversations.get_mut(place)
            && entry.resource_version == resource_version
        {
            entry.is_behind = true;
        }
    }

    /// A conversation is gone from the watch: it was deleted, or its status says Closed.
    pub fn conversation_gone(&mut self, metadata: &ObjectMeta, now: Instant) -> Vec<Task> {
        let Some((place, uid, _)) = identity(metadata) else {
            return Vec::new();
        };
        self.departed.insert(uid, now);
        self.forget(&place, now)
    }

    fn forget(&mut self, place: &Place, now: Instant) -> Vec<Task> {
        self.departed.retain(|_, since| now.saturating_duration_since(*since) < REMEMBERED);
        let Some(entry) = self.conversations.remove(place) else {
            return Vec::new();
        };
        self.census.remove(entry.counted);
        self.departed.insert(entry.uid, now);
        let mut affected = entry.binding.map(|name| self.give_up(place, &name)).unwrap_or_default();
        affected.push(Task::Conversation(place.clone()));
        affected
    }

    /// `place` no longer needs the binding. Others may have waited for it.
    fn give_up(&mut self, place: &Place, name: &BindingName) -> Vec<Task> {
        if let Some(candidates) = self.candidates.get_mut(name) {
            candidates.remove(place);
            if candidates.is_empty() {
                self.candidates.remove(name);
            }
        }
        let mut affected = self.candidates_of(name);
        affected.push(Task::Claim(name.clone()));
        affected
    }

    /// A claim is stored as `claim` says.
    pub fn claim_seen(&mut self, claim: Claim, now: Instant) -> Vec<Task> {
        let name = claim.name.clone();
        self.claim_list.saw(name.clone());
        let before = self.claims.remove(&name);
        let since = |uid: &str| {
            let observed = before.iter().flat_map(|before| &before.observed);
            observed.clone().find(|(known, _)| known == uid).map_or(now, |(_, since)| *since)
        };
        let observed =
            claim.admissions.iter().map(|admission| (admission.uid.clone(), since(&admission.uid))).collect();
        let in_flight = claim.admissions.iter().filter(|admission| !self.is_decided(&claim, &admission.uid)).count();
        let waits = in_flight > 0 && in_flight == claim.admissions.len();
        self.claims.insert(name.clone(), ClaimEntry { claim, observed });
        let mut affected = self.candidates_of(&name);
        // A claim whose UIDs are all in flight waits for them. One that has a decided UID, or none, may be to be released or pruned.
        if !waits && !self.is_settled(&name) {
            affected.push(Task::Claim(name));
        }
        affected
    }

    /// A claim is gone.
    pub fn claim_gone(&mut self, object: &AddressBinding) -> Vec<Task> {
        let name = BindingName::existing(object.metadata.name.clone().unwrap_or_default());
        self.forget_claim(&name)
    }

    fn forget_claim(&mut self, name: &BindingName) -> Vec<Task> {
        if let Some(entry) = self.claims.remove(name) {
            for admission in &entry.claim.admissions {
                self.departed.remove(&admission.uid);
            }
        }
        self.candidates_of(name)
    }

    fn candidates_of(&self, name: &BindingName) -> Vec<Task> {
        self.candidates.get(name).into_iter().flatten().cloned().map(Task::Conversation).collect()
    }

    /// Whether a watch has shown this UID of the claim: it can never be stored again.
    fn is_decided(&self, claim: &Claim, uid: &str) -> bool {
        self.departed.contains_key(uid)
            || self.conversations.get(&claim.holder).is_some_and(|conversation| conversation.uid == uid)
    }

    /// Whether the claim is that of a conversation which holds it, and records nothing else.
    fn is_settled(&self, name: &BindingName) -> bool {
        self.claims.get(name).is_some_and(|ClaimEntry { claim, .. }| {
            self.conversations.get(&claim.holder).is_some_and(|holder| {
                holder.binding.as_ref() == Some(name)
                    && claim.admissions.iter().all(|admission| admission.uid == holder.uid)
            })
        })
    }

    /// When the last grace period of the claim's UIDs that are still in flight is over; nothing where none is.
    pub fn grace_ends(&self, name: &BindingName, grace_period: Duration) -> Option<Instant> {
        let entry = self.claims.get(name)?;
        let in_flight = entry.observed.iter().filter(|(uid, _)| !self.is_decided(&entry.claim, uid));
        in_flight.map(|(_, since)| *since + grace_period).max()
    }

    /// The conversation that the claim on the binding of `place` names, where that is another one: it may wait for `place`.
    pub fn claimant(&self, place: &Place) -> Option<Task> {
        let binding = self.conversations.get(place)?.binding.as_ref()?;
        let (claimant, _) = self.conversations.get_key_value(&self.claims.get(binding)?.claim.holder)?;
        (claimant != place).then(|| Task::Conversation(claimant.clone()))
    }

    /// What is to be done about the conversation at `place`, given which others are being written.
    pub fn plan_conversation(
        &self,
        place: &Place,
        is_under_way: impl Fn(&Place) -> bool,
        now: Time,
    ) -> ConversationPlan {
        let Some(entry) = self.conversations.get(place) else {
            return self.plan_closed(place, now);
        };
        let unheld = decide(&entry.facts, None, now);
        let Some(name) = entry.binding.as_ref().filter(|_| unheld.status.state != Some(State::Closed)) else {
            return Self::plan_status(place, entry, unheld);
        };
        if self.claims.get(name).is_none_or(|entry| entry.claim.holder != **place) {
            return ConversationPlan::Resolve(Box::new(Question {
                place: place.clone(),
                uid: entry.uid.clone(),
                resource_version: entry.resource_version.clone(),
                facts: entry.facts.clone(),
                fingerprint: entry.fingerprint,
                is_first: self.first_candidate(name) == Some(place),
            }));
        }
        // Never two with Bound=True, also where somebody went around the admission policy: the other one gives way first, and
        // what is being or was just written of it, decided on an older claim, may say that it is bound.
        let rivals = || self.candidates.get(name).into_iter().flatten().filter(|other| *other != place);
        let is_behind = |other| self.conversations.get(other).is_some_and(|entry: &Entry| entry.is_behind);
        if rivals().any(|other| is_under_way(other) || is_behind(other)) {
            return ConversationPlan::Nothing { wake: unheld.next, look_at_first: Vec::new() };
        }
        let is_bound = |other: &&Place| self.conversations.get(*other).is_some_and(|other| other.facts.is_bound());
        let bound_by_another: Vec<Task> = rivals().filter(is_bound).cloned().map(Task::Conversation).collect();
        if !bound_by_another.is_empty() {
            return ConversationPlan::Nothing { wake: unheld.next, look_at_first: bound_by_another };
        }
        Self::plan_status(place, entry, decide(&entry.facts, Some(&Holding::Held(name.clone())), now))
    }

    fn plan_closed(&self, place: &Place, now: Time) -> ConversationPlan {
        let nothing = |wake| ConversationPlan::Nothing { wake, look_at_first: Vec::new() };
        let Some(entry) = self.closed.get(place) else { return nothing(None) };
        if !entry.facts.is_observed() {
            return Self::plan_status(place, entry, decide(&entry.facts, None, now));
        }
        match entry.facts.expiry() {
            Some(expiry) if expiry <= now => ConversationPlan::Delete(Deletion {
                place: place.clone(),
                uid: entry.uid.clone(),
                resource_version: entry.resource_version.clone(),
                expiry,
            }),
            expiry => nothing(expiry),
        }
    }

    fn plan_status(place: &Place, entry: &Entry, decision: Decision) -> ConversationPlan {
        if fingerprint(&decision.status) == entry.fingerprint {
            return ConversationPlan::Nothing { wake: decision.next, look_at_first: Vec::new() };
        }
        ConversationPlan::Write(Box::new(StatusWrite {
            place: place.clone(),
            uid: entry.uid.clone(),
            resource_version: entry.resource_version.clone(),
            news: news(&entry.facts.status, &decision.status),
            due: due(&entry.facts, &decision.status),
            status: decision.status,
            wake: decision.next,
        }))
    }

    /// Of the conversations that want a binding the one that had it, else the oldest, and of those the one with the lowest UID.
    fn first_candidate(&self, name: &BindingName) -> Option<&Place> {
        let age = |place: &&Place| {
            let entry = self.conversations.get(*place);
            entry.map(|entry| (!entry.facts.is_bound(), entry.facts.creation_time, entry.uid.clone()))
        };
        self.candidates.get(name)?.iter().min_by_key(age)
    }

    /// What is to be done about a claim.
    pub fn plan_claim(&self, name: &BindingName, grace_period: Duration, now: Instant) -> ClaimPlan {
        let Some(entry) = self.claims.get(name) else {
            let first = self.first_candidate(name).cloned().map(Task::Conversation);
            return ClaimPlan::Nothing { look_at: first.into_iter().collect() };
        };
        if self.is_settled(name) {
            return ClaimPlan::Nothing { look_at: Vec::new() };
        }
        let standing = |uid: &str, since: Instant| {
            if self.is_decided(&entry.claim, uid) {
                Standing::Decided
            } else if now.saturating_duration_since(since) >= grace_period {
                Standing::Expired
            } else {
                Standing::InFlight
            }
        };
        let standings = entry.observed.iter().map(|(uid, since)| (uid.clone(), standing(uid, *since))).collect();
        ClaimPlan::Release(Box::new(Release { claim: entry.claim.clone(), standings }))
    }
}

fn identity(metadata: &ObjectMeta) -> Option<(Place, String, String)> {
    let place = ConversationReference { namespace: metadata.namespace.clone()?, name: metadata.name.clone()? };
    Some((Arc::new(place), metadata.uid.clone()?, metadata.resource_version.clone()?))
}
