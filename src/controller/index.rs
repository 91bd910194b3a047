//! What is known of the open conversations and of the claims, from the watches: plain state that says what to do next.
//!
//! It holds what is decided from and no objects, in few bytes, since every replica holds all of it. No client, no async; the time
//! is handed in.

use super::keys::{NamespacedName, Uid, Version};
use super::queue::Task;
use super::stats::{Stats, StatsKey};
use super::watch::InvalidObject;
use crate::api::{Admission, Channel, Conversation, ConversationStatus, State, Time};
use crate::core::binding::{Binding, BindingName};
use crate::core::claim::{Claim, CreateStatus};
use crate::core::lifecycle::{BindingStatus, Decision, LifecycleInput, Notice, decide, due, new_notices, unreadable};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio::time::Instant;

/// How long the UID of a conversation that is gone is remembered, so that a claim that is seen only later counts it as decided.
const TOMBSTONE_TTL: Duration = Duration::from_mins(10);

/// What the watches have shown.
#[derive(Debug, Default)]
pub struct Index {
    conversations: HashMap<NamespacedName, Box<Entry>>,
    /// What is known of each binding that an open conversation names, or that is claimed.
    bindings: HashMap<BindingName, Box<BindingEntry>>,
    /// The closed conversations about which something is left to do: few, and nothing is kept of the others.
    closed: HashMap<NamespacedName, Box<Entry>>,
    /// Those that closed lately, and when, in the order in which that was seen.
    closed_lately: VecDeque<(Time, NamespacedName)>,
    /// What is stored as a conversation and cannot be read.
    unreadable: HashMap<NamespacedName, UnreadableEntry>,
    tombstones: Tombstones,
    stats: Stats,
    conversation_list: ListEpoch,
    claim_list: ListEpoch,
    closed_list: ListEpoch,
}

/// What is known of one conversation.
#[derive(Debug)]
struct Entry {
    uid: Uid,
    version: Version,
    input: LifecycleInput,
    /// Tells whether the stored status is the one that was decided.
    fingerprint: u64,
    /// The list that showed it last.
    list: u32,
    /// Whether its status was written since, which the watch has yet to show.
    awaiting_watch: bool,
}

#[derive(Debug)]
struct UnreadableEntry {
    uid: Uid,
    notice: Notice,
    /// Whether the watch of the closed ones showed it.
    is_closed: bool,
    /// The list of that watch that showed it last.
    list: u32,
}

#[derive(Debug, Default)]
struct BindingEntry {
    /// The open conversations that name it as theirs: one but for what no webhook saw.
    candidates: Vec<NamespacedName>,
    claim: Option<ClaimEntry>,
}

/// A claim. Its binding is kept as text, since that takes less.
#[derive(Debug)]
struct ClaimEntry {
    uid: Uid,
    version: Version,
    is_being_deleted: bool,
    holder: NamespacedName,
    admissions: Box<[AdmissionEntry]>,
    channel: Channel,
    /// The contact's address and the proxy's; neither has a line's end in it.
    addresses: Box<str>,
    /// The list that showed it last.
    list: u32,
}

#[derive(Debug)]
struct AdmissionEntry {
    uid: Uid,
    time: Time,
    /// When it was first observed.
    since: Instant,
}

/// The lists that a watch begins with, and begins anew with after it was interrupted.
#[derive(Debug, Default)]
struct ListEpoch {
    /// Whether one has been complete.
    is_complete: bool,
    /// How many have begun. What the last one has not shown when it is complete is gone.
    number: u32,
}

impl ListEpoch {
    fn begin(&mut self) {
        self.number += 1;
    }
}

/// UIDs that were shown and are gone, for a while.
#[derive(Debug, Default)]
struct Tombstones {
    since: HashMap<Uid, Instant>,
    in_order: VecDeque<(Instant, Uid)>,
}

impl Tombstones {
    fn insert(&mut self, uid: Uid, now: Instant) {
        while let Some((since, _)) = self.in_order.front()
            && now.saturating_duration_since(*since) >= TOMBSTONE_TTL
            && let Some((since, uid)) = self.in_order.pop_front()
        {
            if self.since.get(&uid) == Some(&since) {
                self.since.remove(&uid);
            }
        }
        if !self.since.contains_key(&uid) {
            self.since.insert(uid.clone(), now);
            self.in_order.push_back((now, uid));
        }
    }
}

impl ClaimEntry {
    fn of(claim: &Claim, before: Option<&Self>, list: u32, now: Instant) -> Self {
        let admissions = claim.admissions.iter().map(|Admission { uid, time }| {
            let uid = Uid::from(uid.as_str());
            let known = before.and_then(|before| before.admissions.iter().find(|known| known.uid == uid));
            AdmissionEntry { since: known.map_or(now, |known| known.since), uid, time: *time }
        });
        Self {
            uid: claim.uid.as_str().into(),
            version: claim.resource_version.as_str().into(),
            is_being_deleted: claim.is_being_deleted,
            holder: NamespacedName::from(&claim.holder),
            admissions: admissions.collect(),
            channel: claim.binding.channel(),
            addresses: format!("{}\n{}", claim.binding.contact(), claim.binding.proxy()).into(),
            list,
        }
    }

    /// The claim as it was seen.
    fn claim(&self, name: &BindingName) -> Option<Claim> {
        let (contact, proxy) = self.addresses.split_once('\n')?;
        let admissions = self.admissions.iter();
        Some(Claim {
            binding: Binding::parse(self.channel, contact, proxy).ok()?,
            name: name.clone(),
            uid: self.uid.to_string(),
            resource_version: self.version.to_string(),
            is_being_deleted: self.is_being_deleted,
            holder: self.holder.reference(),
            admissions: admissions.map(|known| Admission { uid: known.uid.to_string(), time: known.time }).collect(),
        })
    }
}

/// A status to be written, on the version of the conversation that it was decided on.
#[derive(Debug)]
pub struct StatusWrite {
    /// Which conversation.
    pub key: NamespacedName,
    /// Its UID.
    pub uid: Uid,
    /// The version that the status was decided on.
    pub version: Version,
    /// What people are to be told once it is written.
    pub notices: Vec<Notice>,
    /// Whether it only follows activity, and may wait a little for more of it.
    pub is_routine: bool,
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
    pub key: NamespacedName,
    /// Its UID.
    pub uid: Uid,
    /// The version that was seen to be closed.
    pub version: Version,
    /// When it was to be deleted.
    pub expiry: Time,
}

/// Something that people are to be told of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingEvent {
    /// Which conversation.
    pub key: NamespacedName,
    /// Its UID.
    pub uid: Uid,
    /// What.
    pub notice: Notice,
}

/// What is to be done about a conversation.
#[derive(Debug)]
pub enum ConversationPlan {
    /// Nothing now.
    Nothing {
        /// When its state will change by itself.
        wake: Option<Time>,
        /// What has to be seen to before it.
        blocked_on: Vec<Task>,
    },
    /// Write its status.
    Write(Box<StatusWrite>),
    /// Delete it.
    Delete(Deletion),
    /// Tell people that it cannot be read.
    Report(PendingEvent),
    /// Find out who holds its binding, and write its status accordingly.
    Resolve(Box<ConversationLookup>),
}

/// A conversation whose binding the index does not show to be its own.
#[derive(Debug)]
pub struct ConversationLookup {
    /// Which conversation.
    pub key: NamespacedName,
    /// Its UID.
    pub uid: Uid,
    /// The version that is known.
    pub version: Version,
    /// What is known of it.
    pub input: LifecycleInput,
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
        enqueue: Vec<Task>,
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
    pub create_statuses: HashMap<Uid, CreateStatus>,
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
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How many stored conversations cannot be read.
    pub fn unreadable(&self) -> usize {
        self.unreadable.len()
    }

    /// What a new leader finds: what is to be worked on, first the conversations whose timers are due, in the order in which they
    /// are; and when to look again at those that are as they should be, which nearly all are.
    pub fn plan_all(
        &self,
        is_in_progress: impl Fn(&NamespacedName) -> bool,
        now: Time,
    ) -> (Vec<Task>, Vec<(NamespacedName, Time)>) {
        let (mut to_do, mut asleep) = (Vec::new(), Vec::new());
        let keys = self.conversations.keys().chain(self.closed.keys()).chain(self.unreadable.keys());
        for key in keys {
            match self.plan_conversation(key, &is_in_progress, now) {
                ConversationPlan::Nothing { wake, blocked_on } if blocked_on.is_empty() => {
                    asleep.extend(wake.map(|wake| (key.clone(), wake)));
                }
                _ => to_do.push(key),
            }
        }
        // As of 1970 nothing is due, and all that will be lies ahead.
        let deadline = |key: &NamespacedName| decide(&self.conversations.get(key)?.input, None, Time::EPOCH).next;
        to_do.sort_by_cached_key(|key| {
            let deadline = deadline(key);
            (deadline.is_none(), deadline)
        });
        (to_do.into_iter().cloned().map(Task::Conversation).chain(self.unsettled()).collect(), asleep)
    }

    /// The claims that record anything but the conversation that holds them.
    fn unsettled(&self) -> impl Iterator<Item = Task> {
        let claims = self.bindings.iter().filter(|(_, entry)| entry.claim.is_some()).map(|(name, _)| name);
        claims.filter(|name| !self.is_settled(name)).cloned().map(Task::Claim)
    }

    /// The conversations of which people are told something that came about at `since` or later.
    pub fn recently_changed(&self, since: Time) -> Vec<NamespacedName> {
        let open = self.conversations.iter().filter(|(_, entry)| entry.input.status.has_notices_since(since));
        let closed = self.closed_lately.iter().filter(|(closed, _)| *closed >= since).map(|(_, key)| key);
        open.map(|(key, _)| key).chain(closed).cloned().collect()
    }

    /// A list of the conversations begins.
    pub fn conversations_begin(&mut self) {
        self.conversation_list.begin();
    }

    /// A list of the conversations is complete: what it did not show is gone.
    pub fn conversations_listed(&mut self, now: Instant) -> Vec<Task> {
        self.conversation_list.is_complete = true;
        let number = self.conversation_list.number;
        let unlisted = self.conversations.iter().filter(|(_, entry)| entry.list != number).map(|(key, _)| key);
        let unreadable = self.unreadable.iter().filter(|(_, entry)| !entry.is_closed && entry.list != number);
        let gone: Vec<NamespacedName> = unlisted.chain(unreadable.map(|(key, _)| key)).cloned().collect();
        let mut affected: Vec<Task> = gone.iter().flat_map(|key| self.forget(key, now)).collect();
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
        let number = self.closed_list.number;
        self.closed.retain(|_, entry| entry.list == number);
        self.unreadable.retain(|_, entry| !entry.is_closed || entry.list == number);
    }

    /// A conversation is closed, as `conversation` says. Whether that has been told is not known if it closed at `untold` or later.
    pub fn closed_seen(&mut self, conversation: &Conversation, untold: Time) -> Vec<Task> {
        let Some((key, uid, version)) = identity(&conversation.metadata) else { return Vec::new() };
        while self.closed_lately.pop_front_if(|(closed, _)| *closed < untold).is_some() {}
        if let Some(closed) = conversation.status.as_ref().and_then(|status| status.closed_time)
            && closed >= untold
        {
            self.closed_lately.push_back((closed, key.clone()));
        }
        let input = LifecycleInput::of(conversation).ok();
        let Some(input) = input.filter(|input| !input.is_observed() || input.expiry().is_some()) else {
            self.closed.remove(&key);
            return Vec::new();
        };
        let fingerprint = conversation.status.as_ref().map_or(0, fingerprint);
        let entry = Entry { uid, version, input, fingerprint, list: self.closed_list.number, awaiting_watch: false };
        self.closed.insert(key.clone(), Box::new(entry));
        vec![Task::Conversation(key)]
    }

    /// A closed conversation is gone.
    pub fn closed_gone(&mut self, metadata: &ObjectMeta) {
        if let Some((key, ..)) = identity(metadata) {
            self.closed.remove(&key);
            self.unreadable.retain(|unreadable, entry| *unreadable != key || !entry.is_closed);
        }
    }

    /// A closed conversation cannot be read.
    pub fn closed_unreadable(&mut self, stored: &InvalidObject) -> Vec<Task> {
        let Some((key, uid, _)) = identity(&stored.metadata) else { return Vec::new() };
        self.closed.remove(&key);
        self.unreadable.insert(
            key.clone(),
            UnreadableEntry { uid, notice: notice_of(stored), is_closed: true, list: self.closed_list.number },
        );
        vec![Task::Conversation(key)]
    }

    /// A list of the claims begins.
    pub fn claims_begin(&mut self) {
        self.claim_list.begin();
    }

    /// A list of the claims is complete: what it did not show is gone.
    pub fn claims_listed(&mut self) -> Vec<Task> {
        self.claim_list.is_complete = true;
        let number = self.claim_list.number;
        let is_gone = |entry: &BindingEntry| entry.claim.as_ref().is_some_and(|claim| claim.list != number);
        let gone: Vec<BindingName> =
            self.bindings.iter().filter(|(_, entry)| is_gone(entry)).map(|(name, _)| name.clone()).collect();
        gone.iter().flat_map(|name| self.claim_gone(name)).collect()
    }

    /// A conversation is stored as `conversation` says.
    pub fn conversation_seen(&mut self, conversation: &Conversation, now: Instant) -> Vec<Task> {
        let Some((key, uid, version)) = identity(&conversation.metadata) else {
            return Vec::new();
        };
        let mut input = match LifecycleInput::of(conversation) {
            Ok(input) => input,
            Err(error) => {
                let stored = InvalidObject { metadata: conversation.metadata.clone(), error: error.to_string() };
                return self.conversation_unreadable(&stored, now);
            }
        };
        self.unreadable.remove(&key);
        let mut affected = Vec::new();
        if self.conversations.get(&key).is_some_and(|before| before.uid != uid) {
            affected.extend(self.forget(&key, now));
        }
        input.binding = input.binding.map(|name| self.shared_name(name));
        let key = self.shared_place(key, input.binding.as_ref());
        let binding = input.held_binding().cloned();
        let fingerprint = conversation.status.as_ref().map_or(0, fingerprint);
        let list = self.conversation_list.number;
        let entry = Entry { uid, version, input, fingerprint, list, awaiting_watch: false };
        self.stats.add(StatsKey::of(&entry.input));
        let before = self.conversations.insert(key.clone(), Box::new(entry));
        if let Some(before) = &before {
            self.stats.remove(StatsKey::of(&before.input));
        }
        let before = before.and_then(|before| before.input.held_binding().cloned());
        if before != binding {
            affected.extend(before.into_iter().flat_map(|name| self.give_up(&key, &name)));
        }
        if let Some(name) = binding {
            let candidates = &mut self.bindings.entry(name.clone()).or_default().candidates;
            if !candidates.contains(&key) {
                candidates.reserve_exact(1);
                candidates.push(key.clone());
            }
            // What another one of the same binding may do depends on what this one is known to be.
            affected.extend(candidates.iter().filter(|other| **other != key).cloned().map(Task::Conversation));
            if !self.is_settled(&name) {
                affected.push(Task::Claim(name));
            }
        }
        affected.push(Task::Conversation(key));
        affected
    }

    /// The name as it is held already, so that its text is there once.
    fn shared_name(&self, name: BindingName) -> BindingName {
        self.bindings.get_key_value(&name).map_or(name, |(known, _)| known.clone())
    }

    /// The key as it is held already, so that its text is there once.
    fn shared_place(&self, key: NamespacedName, binding: Option<&BindingName>) -> NamespacedName {
        if let Some((known, _)) = self.conversations.get_key_value(&key) {
            return known.clone();
        }
        let claimed = binding.and_then(|name| self.claim(name)).map(|claim| claim.holder.clone());
        claimed.filter(|holder| *holder == key).unwrap_or(key)
    }

    /// What is stored as a conversation cannot be read: nothing is known of it but that it was stored.
    pub fn conversation_unreadable(&mut self, stored: &InvalidObject, now: Instant) -> Vec<Task> {
        let Some((key, uid, _)) = identity(&stored.metadata) else { return Vec::new() };
        let mut affected = self.forget(&key, now);
        self.tombstones.insert(uid.clone(), now);
        self.unreadable.insert(
            key.clone(),
            UnreadableEntry { uid, notice: notice_of(stored), is_closed: false, list: self.conversation_list.number },
        );
        affected.push(Task::Conversation(key));
        affected
    }

    /// The status of a conversation was changed by a write that rested on this version: the next event about it shows that.
    pub fn written(&mut self, key: &NamespacedName, version: &Version) {
        if let Some(entry) = self.conversations.get_mut(key)
            && entry.version == *version
        {
            entry.awaiting_watch = true;
        }
    }

    /// A conversation is gone from the watch: it was deleted, or its status says Closed.
    pub fn conversation_gone(&mut self, metadata: &ObjectMeta, now: Instant) -> Vec<Task> {
        let Some((key, uid, _)) = identity(metadata) else {
            return Vec::new();
        };
        self.tombstones.insert(uid, now);
        self.forget(&key, now)
    }

    fn forget(&mut self, key: &NamespacedName, now: Instant) -> Vec<Task> {
        if self.unreadable.remove(key).is_some() {
            // Which binding it had is not known.
            return self.claims_of(key).map(Task::Claim).collect();
        }
        let Some(entry) = self.conversations.remove(key) else {
            return Vec::new();
        };
        self.stats.remove(StatsKey::of(&entry.input));
        let binding = entry.input.held_binding().cloned();
        self.tombstones.insert(entry.uid, now);
        let mut affected = binding.map(|name| self.give_up(key, &name)).unwrap_or_default();
        affected.push(Task::Conversation(key.clone()));
        affected
    }

    fn claims_of<'a>(&'a self, key: &'a NamespacedName) -> impl Iterator<Item = BindingName> {
        let holds = move |entry: &BindingEntry| entry.claim.as_ref().is_some_and(|claim| claim.holder == *key);
        self.bindings.iter().filter(move |(_, entry)| holds(entry)).map(|(name, _)| name.clone())
    }

    /// `key` no longer needs the binding. Others may have waited for it.
    fn give_up(&mut self, key: &NamespacedName, name: &BindingName) -> Vec<Task> {
        if let Some(entry) = self.bindings.get_mut(name) {
            entry.candidates.retain(|candidate| candidate != key);
        }
        self.tidy(name);
        let mut affected = self.candidates_of(name);
        affected.push(Task::Claim(name.clone()));
        affected
    }

    /// A binding of which nothing is known is not kept.
    fn tidy(&mut self, name: &BindingName) {
        if self.bindings.get(name).is_some_and(|entry| entry.candidates.is_empty() && entry.claim.is_none()) {
            self.bindings.remove(name);
        }
    }

    fn claim(&self, name: &BindingName) -> Option<&ClaimEntry> {
        self.bindings.get(name)?.claim.as_ref()
    }

    fn candidates(&self, name: &BindingName) -> &[NamespacedName] {
        self.bindings.get(name).map_or(&[], |entry| &entry.candidates)
    }

    /// A claim is stored as `claim` says.
    pub fn claim_seen(&mut self, claim: &Claim, now: Instant) -> Vec<Task> {
        let name = self.shared_name(claim.name.clone());
        let mut claim = ClaimEntry::of(claim, self.claim(&name), self.claim_list.number, now);
        if let Some((holder, _)) = self.conversations.get_key_value(&claim.holder) {
            claim.holder = holder.clone();
        }
        let in_flight = claim.admissions.iter().filter(|admission| !self.is_decided(&claim, &admission.uid)).count();
        let waits = in_flight > 0 && in_flight == claim.admissions.len();
        self.bindings.entry(name.clone()).or_default().claim = Some(claim);
        let mut affected = self.candidates_of(&name);
        // A claim whose UIDs are all in flight waits for them. One that has a decided UID, or none, may be to be released or pruned.
        if !waits && !self.is_settled(&name) {
            affected.push(Task::Claim(name));
        }
        affected
    }

    /// A claim is gone.
    pub fn claim_gone(&mut self, name: &BindingName) -> Vec<Task> {
        if let Some(claim) = self.bindings.get_mut(name).and_then(|entry| entry.claim.take()) {
            for admission in &claim.admissions {
                self.tombstones.since.remove(&admission.uid);
            }
        }
        let affected = self.candidates_of(name);
        self.tidy(name);
        affected
    }

    fn candidates_of(&self, name: &BindingName) -> Vec<Task> {
        self.candidates(name).iter().cloned().map(Task::Conversation).collect()
    }

    /// Whether a watch has shown this UID of the claim: it can never be stored again.
    fn is_decided(&self, claim: &ClaimEntry, uid: &Uid) -> bool {
        self.tombstones.since.contains_key(uid)
            || self.conversations.get(&claim.holder).is_some_and(|conversation| conversation.uid == *uid)
    }

    /// Whether the claim is that of a conversation which holds it, and records nothing else.
    fn is_settled(&self, name: &BindingName) -> bool {
        self.claim(name).is_some_and(|claim| {
            self.conversations.get(&claim.holder).is_some_and(|holder| {
                holder.input.held_binding() == Some(name)
                    && claim.admissions.iter().all(|admission| admission.uid == holder.uid)
            })
        })
    }

    /// When the last grace period of the claim's UIDs that are still in flight is over; nothing where none is.
    pub fn grace_ends(&self, name: &BindingName, grace_period: Duration) -> Option<Instant> {
        let claim = self.claim(name)?;
        let in_flight = claim.admissions.iter().filter(|admission| !self.is_decided(claim, &admission.uid));
        in_flight.map(|admission| admission.since + grace_period).max()
    }

    /// The conversation that the claim on the binding of `key` names, where that is another one: it may wait for `key`.
    pub fn claimant(&self, key: &NamespacedName) -> Option<Task> {
        let binding = self.conversations.get(key)?.input.held_binding()?;
        let claimant = &self.claim(binding)?.holder;
        (claimant != key && self.conversations.contains_key(claimant)).then(|| Task::Conversation(claimant.clone()))
    }

    /// What is to be done about the conversation at `key`, given which others are being written.
    pub fn plan_conversation(
        &self,
        key: &NamespacedName,
        is_in_progress: impl Fn(&NamespacedName) -> bool,
        now: Time,
    ) -> ConversationPlan {
        if let Some(UnreadableEntry { uid, notice, .. }) = self.unreadable.get(key) {
            return ConversationPlan::Report(PendingEvent {
                key: key.clone(),
                uid: uid.clone(),
                notice: notice.clone(),
            });
        }
        let Some(entry) = self.conversations.get(key) else {
            return self.plan_closed(key, now);
        };
        let unheld = decide(&entry.input, None, now);
        if entry.awaiting_watch {
            // What would be decided rests on a version that is no more. The event that shows the next one is on its way.
            return ConversationPlan::Nothing { wake: unheld.next, blocked_on: Vec::new() };
        }
        let Some(name) = entry.input.held_binding().filter(|_| unheld.status.state != Some(State::Closed)) else {
            return Self::plan_status(key, entry, unheld);
        };
        if self.claim(name).is_none_or(|claim| claim.holder != *key) {
            return ConversationPlan::Resolve(Box::new(ConversationLookup {
                key: key.clone(),
                uid: entry.uid.clone(),
                version: entry.version.clone(),
                input: entry.input.clone(),
                fingerprint: entry.fingerprint,
                is_first: self.first_candidate(name) == Some(key),
            }));
        }
        // Never two with Bound=True, also where somebody went around the admission policy: the other one gives way first, and
        // what is being or was just written of it, decided on an older claim, may say that it is bound.
        let rivals = || self.candidates(name).iter().filter(|other| *other != key);
        let awaiting_watch = |other| self.conversations.get(other).is_some_and(|entry| entry.awaiting_watch);
        if rivals().any(|other| is_in_progress(other) || awaiting_watch(other)) {
            return ConversationPlan::Nothing { wake: unheld.next, blocked_on: Vec::new() };
        }
        let is_bound =
            |other: &&NamespacedName| self.conversations.get(*other).is_some_and(|other| other.input.is_bound());
        let bound_by_another: Vec<Task> = rivals().filter(is_bound).cloned().map(Task::Conversation).collect();
        if !bound_by_another.is_empty() {
            return ConversationPlan::Nothing { wake: unheld.next, blocked_on: bound_by_another };
        }
        Self::plan_status(key, entry, decide(&entry.input, Some(&BindingStatus::Held(name.clone())), now))
    }

    fn plan_closed(&self, key: &NamespacedName, now: Time) -> ConversationPlan {
        let nothing = |wake| ConversationPlan::Nothing { wake, blocked_on: Vec::new() };
        let Some(entry) = self.closed.get(key) else { return nothing(None) };
        if !entry.input.is_observed() {
            return Self::plan_status(key, entry, decide(&entry.input, None, now));
        }
        match entry.input.expiry() {
            Some(expiry) if expiry <= now => ConversationPlan::Delete(Deletion {
                key: key.clone(),
                uid: entry.uid.clone(),
                version: entry.version.clone(),
                expiry,
            }),
            expiry => nothing(expiry),
        }
    }

    fn plan_status(key: &NamespacedName, entry: &Entry, decision: Decision) -> ConversationPlan {
        if fingerprint(&decision.status) == entry.fingerprint {
            return ConversationPlan::Nothing { wake: decision.next, blocked_on: Vec::new() };
        }
        ConversationPlan::Write(Box::new(StatusWrite {
            key: key.clone(),
            uid: entry.uid.clone(),
            version: entry.version.clone(),
            notices: new_notices(&entry.input.status, &decision.status),
            due: due(&entry.input, &decision.status),
            is_routine: entry.input.is_routine(&decision.status),
            status: decision.status,
            wake: decision.next,
        }))
    }

    /// Of the conversations that want a binding the one that had it, else the oldest, and of those the one with the lowest UID.
    fn first_candidate(&self, name: &BindingName) -> Option<&NamespacedName> {
        let age = |key: &&NamespacedName| {
            let entry = self.conversations.get(*key);
            entry.map(|entry| (!entry.input.is_bound(), entry.input.creation_time, entry.uid.to_string()))
        };
        self.candidates(name).iter().min_by_key(age)
    }

    /// What is to be done about a claim.
    pub fn plan_claim(&self, name: &BindingName, grace_period: Duration, now: Instant) -> ClaimPlan {
        let Some(entry) = self.claim(name) else {
            let first = self.first_candidate(name).cloned().map(Task::Conversation);
            return ClaimPlan::Nothing { enqueue: first.into_iter().collect() };
        };
        let claim = entry.claim(name).filter(|_| !self.is_settled(name));
        let Some(claim) = claim else {
            return ClaimPlan::Nothing { enqueue: Vec::new() };
        };
        let create_status = |admission: &AdmissionEntry| {
            if self.is_decided(entry, &admission.uid) {
                CreateStatus::Decided
            } else if now.saturating_duration_since(admission.since) >= grace_period {
                CreateStatus::Expired
            } else {
                CreateStatus::InFlight
            }
        };
        let create_statuses = entry.admissions.iter().map(|known| (known.uid.clone(), create_status(known))).collect();
        ClaimPlan::Release(Box::new(Release { claim, create_statuses }))
    }
}

fn notice_of(stored: &InvalidObject) -> Notice {
    let creation_time = stored.metadata.creation_timestamp.as_ref().map(Time::from);
    unreadable(creation_time.unwrap_or(Time::EPOCH), &stored.error)
}

fn identity(metadata: &ObjectMeta) -> Option<(NamespacedName, Uid, Version)> {
    let key = NamespacedName::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
    Some((key, metadata.uid.as_deref()?.into(), metadata.resource_version.as_deref()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::AddressBinding;
    use crate::claims::claim_of;
    use serde_json::{Value, json};

    const UID: &str = "0f3c9a52-6f0e-4c1d-8a77-9b2f7e5d1c00";
    const NAME: &str = "sms-67e3eom4uehoawfojbv6j3egtc";

    fn conversation(name: &str, uid: &str, spec: Value) -> Conversation {
        let mut object = json!({
            "metadata": {
                "name": name, "namespace": "sales", "uid": uid, "resourceVersion": "7", "generation": 1,
                "creationTimestamp": "2026-11-24T10:00:00Z",
            },
            "spec": {"channel": "SMS", "contact": {"address": "+15558675310"}, "proxy": {"address": "+15017122661"}},
        });
        if let Value::Object(fields) = spec {
            fields.into_iter().for_each(|(field, value)| object["spec"][field] = value);
        }
        serde_json::from_value(object).unwrap()
    }

    fn claim(holder: &str, uids: &[&str]) -> Claim {
        let admissions: Vec<Value> =
            uids.iter().map(|uid| json!({"uid": uid, "time": "2026-11-24T10:00:00.123Z"})).collect();
        let object: AddressBinding = serde_json::from_value(json!({
            "metadata": {"name": NAME, "uid": "00000000-0000-4000-8000-000000000001", "resourceVersion": "9"},
            "spec": {
                "channel": "SMS", "contactAddress": "+15558675310", "proxyAddress": "+15017122661",
                "conversationRef": {"namespace": "sales", "name": holder}, "admissions": admissions,
            },
        }))
        .unwrap();
        claim_of(&object).unwrap()
    }

    fn unreadable(name: &str) -> InvalidObject {
        InvalidObject { metadata: conversation(name, UID, json!({})).metadata, error: "unknown channel".into() }
    }

    fn key(name: &str) -> NamespacedName {
        NamespacedName::new("sales", name)
    }

    /// An index that has seen lists with nothing in them.
    fn index() -> Index {
        let mut index = Index::default();
        index.conversations_begin();
        index.conversations_listed(Instant::now());
        index.claims_begin();
        index.claims_listed();
        index
    }

    #[test]
    fn a_claim_comes_out_as_it_went_in() {
        let (mut index, claim) = (index(), claim("alice", &[UID, "of another kind"]));
        index.claim_seen(&claim, Instant::now());
        assert_eq!(index.claim(&claim.name).unwrap().claim(&claim.name), Some(claim));
    }

    #[test]
    fn what_a_list_does_not_show_is_gone_and_what_came_after_it_is_not() {
        let (mut index, now) = (index(), Instant::now());
        index.conversation_seen(&conversation("alice", UID, json!({})), now);
        index.claim_seen(&claim("alice", &[UID]), now);
        index.conversations_begin();
        index.claims_begin();
        index.conversation_seen(&conversation("bob", "u2", json!({"contact": null})), now);
        assert_eq!(index.claims_listed(), [Task::Conversation(key("alice"))]);
        index.conversations_listed(now);
        assert_eq!(index.conversations.keys().collect::<Vec<_>>(), [&key("bob")]);
        assert!(index.bindings.is_empty(), "nothing is kept of a binding that nobody wants");
        assert!(index.tombstones.since.contains_key(&Uid::from(UID)), "it was stored once");
    }

    #[test]
    fn one_that_cannot_be_read_is_reported_until_it_can_be_and_its_claim_is_looked_at() {
        let (mut index, now) = (index(), Instant::now());
        let alice = conversation("alice", UID, json!({}));
        index.conversation_seen(&alice, now);
        index.claim_seen(&claim("alice", &[UID]), now);
        let (name, task) = (BindingName::existing(NAME.into()), Task::Conversation(key("alice")));
        let affected = index.conversation_unreadable(&unreadable("alice"), now);
        assert!(affected.contains(&Task::Claim(name.clone())) && affected.contains(&task), "{affected:?}");
        assert!(index.plan_all(|_| false, Time::EPOCH).0.contains(&task));
        let ConversationPlan::Report(told) = index.plan_conversation(&key("alice"), |_| false, Time::EPOCH) else {
            panic!("nothing is reported");
        };
        assert!(told.notice.note.contains("unknown channel") && told.notice.reason.is_warning());
        assert!(index.conversation_gone(&alice.metadata, now).contains(&Task::Claim(name)), "it may be to be released");
        index.conversation_unreadable(&unreadable("alice"), now);
        index.conversation_seen(&alice, now);
        assert!(!matches!(index.plan_conversation(&key("alice"), |_| false, Time::EPOCH), ConversationPlan::Report(_)));
    }

    #[test]
    fn a_new_leader_honours_timers_in_the_order_in_which_they_were_due() {
        let (mut index, now) = (index(), Instant::now());
        for (number, after) in [("30m", 30), ("none", 0), ("10m", 10), ("1h", 60), ("20m", 20)] {
            let timers = if after == 0 { json!({}) } else { json!({"closeAfter": format!("{after}m")}) };
            let spec = json!({"contact": null, "timers": timers});
            index.conversation_seen(&conversation(number, number, spec), now);
        }
        let expected = ["10m", "20m", "30m", "1h", "none"].map(|name| Task::Conversation(key(name)));
        assert_eq!(index.plan_all(|_| false, Time::EPOCH), (expected.to_vec(), Vec::new()));
    }

    #[test]
    fn a_new_leader_lets_those_sleep_that_are_as_they_should_be() {
        let (mut index, now) = (index(), Instant::now());
        let mut alice = conversation("alice", UID, json!({"contact": null, "timers": {"closeAfter": "10m"}}));
        index.conversation_seen(&alice, now);
        let created = "2026-11-24T10:00:00Z".parse::<Time>().unwrap();
        let ConversationPlan::Write(write) = index.plan_conversation(&key("alice"), |_| false, created) else {
            panic!("its status is not written")
        };
        alice.status = Some(write.status);
        index.conversation_seen(&alice, now);
        let due = created.after(Duration::from_mins(10));
        assert_eq!(index.plan_all(|_| false, created), (Vec::new(), vec![(key("alice"), due)]));
        assert_eq!(index.plan_all(|_| false, due), (vec![Task::Conversation(key("alice"))], Vec::new()));
    }

    #[test]
    fn a_claim_whose_conversation_came_and_went_between_two_lists_is_looked_at() {
        let (mut index, now) = (index(), Instant::now());
        let look = Task::Claim(BindingName::existing(NAME.into()));
        assert!(!index.claim_seen(&claim("alice", &[UID]), now).contains(&look), "it waits for its create");
        index.conversations_begin();
        assert!(index.conversations_listed(now).contains(&look));
    }

    #[test]
    fn a_claim_without_admissions_waits_for_nothing() {
        let mut index = index();
        let affected = index.claim_seen(&claim("alice", &[]), Instant::now());
        assert!(affected.contains(&Task::Claim(BindingName::existing(NAME.into()))), "{affected:?}");
    }

    #[test]
    fn nobody_is_called_bound_while_a_rival_is_written_or_was_and_is_looked_at_when_that_is_over() {
        let (mut index, now) = (index(), Instant::now());
        let alice = conversation("alice", UID, json!({}));
        index.conversation_seen(&alice, now);
        index.claim_seen(&claim("alice", &[UID]), now);
        let plan =
            |index: &Index, name: &str, others: bool| index.plan_conversation(&key(name), |_| others, Time::EPOCH);
        let ConversationPlan::Write(of_alice) = plan(&index, "alice", false) else { panic!("alice is not bound") };
        // Somebody deletes the claim, and bob gets it.
        index.conversation_seen(&conversation("bob", "u2", json!({})), now);
        index.claim_seen(&claim("bob", &["u2"]), now);
        assert!(matches!(plan(&index, "bob", true), ConversationPlan::Nothing { .. }), "alice is being written");
        assert_eq!(index.claimant(&key("alice")), Some(Task::Conversation(key("bob"))), "who waits for it");
        assert_eq!(index.claimant(&key("bob")), None);
        index.written(&key("alice"), &of_alice.version);
        assert!(matches!(plan(&index, "bob", false), ConversationPlan::Nothing { .. }), "what of, is not shown yet");
        let affected = index.conversation_gone(&alice.metadata, now);
        assert!(affected.contains(&Task::Conversation(key("bob"))), "{affected:?}");
        assert!(matches!(plan(&index, "bob", false), ConversationPlan::Write(_)));
    }

    #[test]
    fn what_was_just_written_is_not_decided_on_until_the_watch_shows_it() {
        let (mut index, now) = (index(), Instant::now());
        let mut alice = conversation("alice", UID, json!({"contact": null}));
        index.conversation_seen(&alice, now);
        let plan = |index: &Index| index.plan_conversation(&key("alice"), |_| false, Time::EPOCH);
        let ConversationPlan::Write(write) = plan(&index) else { panic!("its status is not written") };
        index.written(&key("alice"), &"an older one".into());
        assert!(matches!(plan(&index), ConversationPlan::Write(_)), "another version was written");
        index.written(&key("alice"), &write.version);
        assert!(matches!(plan(&index), ConversationPlan::Nothing { .. }));
        alice.status = Some(write.status);
        alice.spec.state = Some(State::Inactive);
        alice.metadata.resource_version = Some("8".into());
        index.conversation_seen(&alice, now);
        assert!(matches!(plan(&index), ConversationPlan::Write(_)), "the next change is decided on");
    }

    #[test]
    fn uids_of_conversations_that_are_gone_are_forgotten_after_a_while() {
        let (mut tombstones, now) = (Tombstones::default(), Instant::now());
        tombstones.insert("a".into(), now);
        tombstones.insert("a".into(), now + TOMBSTONE_TTL / 2);
        tombstones.insert("b".into(), now + TOMBSTONE_TTL / 2);
        tombstones.insert("c".into(), now + TOMBSTONE_TTL);
        let mut known: Vec<_> = tombstones.since.keys().map(Uid::to_string).collect();
        known.sort();
        assert_eq!(known, ["b", "c"]);
        assert_eq!(tombstones.in_order.len(), 2);
    }

    #[test]
    fn what_closed_lately_may_have_to_be_told_and_what_closed_long_ago_costs_nothing() {
        let mut index = index();
        let closed = |name: &str, time: &str| {
            let mut closed = conversation(name, name, json!({"state": "Closed"}));
            closed.status =
                serde_json::from_value(json!({"state": "Closed", "observedGeneration": 1, "closedTime": time}))
                    .unwrap();
            closed
        };
        let at = |text: &str| text.parse::<Time>().unwrap();
        index.closed_seen(&closed("alice", "2026-11-24T10:00:00Z"), at("2026-11-24T10:00:00Z"));
        index.closed_seen(&closed("bob", "2026-11-24T10:01:00Z"), at("2026-11-24T10:01:00Z"));
        index.closed_seen(&closed("carol", "2025-11-24T10:01:00Z"), at("2026-11-24T10:01:00Z"));
        assert_eq!(index.recently_changed(at("2026-11-24T10:00:30Z")), [key("bob")]);
        assert_eq!((index.closed_lately.len(), index.closed.len()), (1, 0));
    }
}
