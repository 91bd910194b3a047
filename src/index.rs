//! The index: the open conversations and the claims that the watches have shown, as plain state.
//!
//! It stores the input of decisions, not the objects. Every replica of the operator and of the router stores the whole index, so the
//! entries are small. It has no client, and the time is passed in; only `dispatch` knows of the watches.

mod defaults;
mod dispatch;
mod entry;
mod keys;
mod stats;
mod task;
mod tombstones;

pub use defaults::{ChangedDefaults, DefaultTimers, Permission};
pub use dispatch::{AddressBindings, ClosedConversations, EventHandler, OpenConversations, dispatch, watch_for};
pub use entry::{AdmissionEntry, BindingEntry, ClaimEntry, Entry, InvalidEntry, fingerprint};
pub use keys::{NamespacedName, ProxyKey, Uid, Version};
pub use stats::{Stats, StatsCollector};
pub use task::Task;

use crate::api::{Conversation, Time};
use crate::core::binding::BindingName;
use crate::core::claim::Claim;
use crate::core::lifecycle::{LifecycleInput, invalid_object};
use crate::proxy_addresses::Catalog;
use crate::watch::InvalidObject;
use entry::identity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stats::StatsKey;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tombstones::Tombstones;

/// The state that the watches have shown. The methods that change it return the tasks that follow.
#[derive(Debug, Default)]
pub struct Index {
    conversations: HashMap<NamespacedName, Box<Entry>>,
    /// The proxy addresses of the open conversations, and the number of conversations behind each.
    proxies: HashMap<ProxyKey, usize>,
    /// The default timers of the proxy addresses.
    pub defaults: DefaultTimers,
    /// The bindings that are claimed or that an open conversation needs.
    bindings: HashMap<BindingName, Box<BindingEntry>>,
    /// The closed conversations that need work or have a time to live, which are few. The others are not stored.
    closed: HashMap<NamespacedName, Box<Entry>>,
    /// The recently closed conversations and the times at which they were closed, in the order of observation.
    recently_closed: VecDeque<(Time, NamespacedName)>,
    /// The conversations that cannot be decoded.
    invalid: HashMap<NamespacedName, InvalidEntry>,
    tombstones: Tombstones,
    stats: Stats,
    conversation_list: ListEpoch,
    claim_list: ListEpoch,
    closed_list: ListEpoch,
}

/// The lists of a watch. A watch starts with a list, and with another one after an interruption.
#[derive(Debug, Default)]
struct ListEpoch {
    /// Whether a list has been completed.
    is_complete: bool,
    /// The number of the last list. When this list is complete, an object that it did not contain is gone.
    number: u32,
}

impl ListEpoch {
    fn start(&mut self) {
        self.number += 1;
    }
}

impl Index {
    /// Whether the watches of the open conversations, of the claims and of the ProxyAddresses have each completed a list.
    pub fn has_synced(&self) -> bool {
        self.has_listed() && self.defaults.has_synced()
    }

    /// Whether the watches of the open conversations and of the claims have each completed a list.
    pub fn has_listed(&self) -> bool {
        self.conversation_list.is_complete && self.claim_list.is_complete
    }

    /// An empty index with these default timers, which keeps the counts of the stored conversations in `stats`.
    pub fn new(stats: Stats, defaults: DefaultTimers) -> Self {
        Self { defaults, stats, ..Self::default() }
    }

    /// All known conversations.
    pub fn keys(&self) -> impl Iterator<Item = &NamespacedName> {
        self.conversations.keys().chain(self.closed.keys()).chain(self.invalid.keys())
    }

    /// An open conversation.
    pub fn open(&self, key: &NamespacedName) -> Option<&Entry> {
        self.conversations.get(key).map(Box::as_ref)
    }

    /// The equal key of an open conversation, whose text the index shares.
    pub fn open_key(&self, key: &NamespacedName) -> Option<NamespacedName> {
        self.conversations.get_key_value(key).map(|(known, _)| known.clone())
    }

    /// A closed conversation that needs work or has a time to live.
    pub fn closed(&self, key: &NamespacedName) -> Option<&Entry> {
        self.closed.get(key).map(Box::as_ref)
    }

    /// A conversation that cannot be decoded.
    pub fn invalid(&self, key: &NamespacedName) -> Option<&InvalidEntry> {
        self.invalid.get(key)
    }

    /// The claim of a binding.
    pub fn claim(&self, name: &BindingName) -> Option<&ClaimEntry> {
        self.bindings.get(name)?.claim.as_ref()
    }

    /// The conversations that need the binding, or whose status still says that they hold it. The oldest comes first.
    pub fn candidates(&self, name: &BindingName) -> &[NamespacedName] {
        self.bindings.get(name).map_or(&[], |entry| &entry.candidates)
    }

    /// Whether this UID of the claim is decided: a watch has shown it, so it can never be stored again.
    pub fn is_decided(&self, claim: &ClaimEntry, uid: &Uid) -> bool {
        self.tombstones.contains(uid) || self.open(&claim.holder).is_some_and(|conversation| conversation.uid == *uid)
    }

    /// The conversation other than `except` that gets the binding next: the one that was bound, or else the oldest.
    pub fn next_candidate(&self, name: &BindingName, except: Option<&NamespacedName>) -> Option<&NamespacedName> {
        let needs = |key: &&NamespacedName| {
            Some(*key) != except && self.open(key).is_some_and(|entry| entry.input.needed_binding().is_some())
        };
        let is_bound = |key: &&NamespacedName| self.open(key).is_some_and(|entry| entry.input.is_bound());
        let mut waiting = self.candidates(name).iter().filter(needs);
        waiting.clone().find(is_bound).or_else(|| waiting.next())
    }

    /// Whether the conversation that the claim names holds the binding, and the claim records no other UID.
    pub fn is_settled(&self, name: &BindingName) -> bool {
        self.holder(name).is_some() && self.claim(name).is_some_and(|claim| claim.admissions.len() == 1)
    }

    /// The open conversation that holds the binding: the claim names it and records its UID.
    pub fn holder(&self, name: &BindingName) -> Option<&NamespacedName> {
        let claim = self.claim(name)?;
        let entry = self.open(&claim.holder)?;
        let is_recorded = claim.admissions.iter().any(|admission| admission.uid == entry.uid);
        (is_recorded && entry.input.needed_binding() == Some(name)).then_some(&claim.holder)
    }

    /// The claims that are not settled.
    pub fn unsettled(&self) -> impl Iterator<Item = Task> {
        let claims = self.bindings.iter().filter(|(_, entry)| entry.claim.is_some()).map(|(name, _)| name);
        claims.filter(|name| !self.is_settled(name)).cloned().map(Task::Claim)
    }

    /// The latest end of a grace period among the UIDs of the claim that are in flight; `None` if none is in flight.
    pub fn grace_end(&self, name: &BindingName, grace_period: Duration) -> Option<Instant> {
        let claim = self.claim(name)?;
        let in_flight = claim.admissions.iter().filter(|admission| !self.is_decided(claim, &admission.uid));
        in_flight.map(|admission| admission.since + grace_period).max()
    }

    /// The task of the conversation that the claim of the binding of `key` names, if it is another one: it may be blocked on `key`.
    pub fn claimant(&self, key: &NamespacedName) -> Option<Task> {
        let binding = self.open(key)?.input.contended_binding()?;
        let claimant = &self.claim(binding)?.holder;
        (claimant != key && self.conversations.contains_key(claimant)).then(|| Task::Conversation(claimant.clone()))
    }

    /// The conversations whose status has notices from `since` on.
    pub fn recently_changed(&self, since: Time) -> Vec<NamespacedName> {
        let open = self.conversations.iter().filter(|(_, entry)| entry.input.status.has_notices_since(since));
        let closed = self.recently_closed.iter().filter(|(closed, _)| *closed >= since).map(|(_, key)| key);
        open.map(|(key, _)| key).chain(closed).cloned().collect()
    }

    /// A list of the open conversations starts.
    pub fn conversation_list_started(&mut self) {
        self.conversation_list.start();
    }

    /// A list of the open conversations is complete: those that it did not contain are gone.
    pub fn conversation_list_completed(&mut self, now: Instant) -> Vec<Task> {
        self.conversation_list.is_complete = true;
        self.sync_stats();
        let number = self.conversation_list.number;
        let unlisted = self.conversations.iter().filter(|(_, entry)| entry.list != number).map(|(key, _)| key);
        let invalid = self.invalid.iter().filter(|(_, entry)| !entry.is_closed && entry.list != number);
        let gone: Vec<NamespacedName> = unlisted.chain(invalid.map(|(key, _)| key)).cloned().collect();
        let mut affected: Vec<Task> = gone.iter().flat_map(|key| self.forget(key, now)).collect();
        // A conversation that was created and deleted between two watches was never shown. It can only be found by its claim.
        affected.extend(self.unsettled());
        affected
    }

    /// An open conversation was listed, created or changed.
    pub fn conversation_applied(&mut self, conversation: &Conversation, now: Instant) -> Vec<Task> {
        let Some((key, uid, version)) = identity(&conversation.metadata) else {
            return Vec::new();
        };
        let mut input = match LifecycleInput::of(conversation) {
            Ok(input) => input,
            Err(error) => {
                let object = InvalidObject { metadata: conversation.metadata.clone(), error: error.to_string() };
                return self.conversation_invalid(&object, now);
            }
        };
        self.remove_invalid(&key);
        let mut affected = Vec::new();
        if self.conversations.get(&key).is_some_and(|before| before.uid != uid) {
            affected.extend(self.forget(&key, now));
        }
        input.binding = input.binding.map(|name| self.shared_name(name));
        input.status.address_binding_name = input.status.address_binding_name.map(|name| match &input.binding {
            Some(binding) if *binding == name => binding.clone(),
            _ => self.shared_name(name),
        });
        let key = self.shared_key(key, input.binding.as_ref());
        let binding = input.contended_binding().cloned();
        let fingerprint = conversation.status.as_ref().map_or(0, fingerprint);
        let mut entry = Entry::new(uid, version, input, fingerprint, self.conversation_list.number);
        entry.proxy = Some(self.add_proxy(ProxyKey::new(conversation.spec.channel, &conversation.spec.proxy.address)));
        self.stats.add(StatsKey::of(&entry.input));
        if let Some(before) = self.conversations.get(&key) {
            entry.follow(before);
        }
        let before = self.conversations.insert(key.clone(), Box::new(entry));
        if let Some(before) = &before {
            self.stats.remove(StatsKey::of(&before.input));
            self.remove_proxy(before.proxy.as_ref());
        }
        let before = before.and_then(|before| before.input.contended_binding().cloned());
        if before != binding {
            affected.extend(before.into_iter().flat_map(|name| self.remove_candidate(&key, &name)));
        }
        if let Some(name) = binding {
            self.add_candidate(&key, &name);
            // The plans for the other candidates depend on this one.
            affected.extend(
                self.candidate_tasks(&name).into_iter().filter(|task| *task != Task::Conversation(key.clone())),
            );
            if !self.is_settled(&name) {
                affected.push(Task::Claim(name));
            }
        }
        affected.push(Task::Conversation(key));
        affected
    }

    /// The equal name that the index contains already, so that its text is stored only once.
    fn shared_name(&self, name: BindingName) -> BindingName {
        self.bindings.get_key_value(&name).map_or(name, |(known, _)| known.clone())
    }

    /// The equal key that the index contains already, so that its text is stored only once.
    fn shared_key(&self, key: NamespacedName, binding: Option<&BindingName>) -> NamespacedName {
        if let Some((known, _)) = self.conversations.get_key_value(&key) {
            return known.clone();
        }
        let claimed = binding.and_then(|name| self.claim(name)).map(|claim| claim.holder.clone());
        claimed.filter(|holder| *holder == key).unwrap_or(key)
    }

    /// Counts a conversation behind `proxy`. Returns the equal key that the index contains already, so that its text is stored only once.
    fn add_proxy(&mut self, proxy: ProxyKey) -> ProxyKey {
        let entry = self.proxies.entry(proxy);
        let shared = entry.key().clone();
        *entry.or_default() += 1;
        shared
    }

    fn remove_proxy(&mut self, proxy: Option<&ProxyKey>) {
        if let Some(proxy) = proxy
            && let Some(count) = self.proxies.get_mut(proxy)
        {
            *count -= 1;
            if *count == 0 {
                self.proxies.remove(proxy);
            }
        }
    }

    /// The watch of the ProxyAddresses shows `catalog`. Returns the open conversations whose default timers have changed.
    pub fn catalog_changed(&mut self, catalog: Arc<Catalog>, time: Time, now: Instant) -> Vec<NamespacedName> {
        let changed = self.defaults.catalog_changed(catalog, time, now);
        self.sync_stats();
        let changed = match changed {
            ChangedDefaults::All => return self.conversations.keys().cloned().collect(),
            ChangedDefaults::Of(changed) => changed,
        };
        let in_use: HashSet<ProxyKey> = changed.into_iter().filter(|proxy| self.proxies.contains_key(proxy)).collect();
        if in_use.is_empty() {
            return Vec::new();
        }
        let is_affected = |entry: &Entry| entry.proxy.as_ref().is_some_and(|proxy| in_use.contains(proxy));
        self.conversations.iter().filter(|(_, entry)| is_affected(entry)).map(|(key, _)| key.clone()).collect()
    }

    /// A conversation cannot be decoded: only its metadata is known.
    pub fn conversation_invalid(&mut self, object: &InvalidObject, now: Instant) -> Vec<Task> {
        let Some((key, uid, _)) = identity(&object.metadata) else { return Vec::new() };
        let mut affected = self.forget(&key, now);
        self.tombstones.insert(uid.clone(), now);
        self.insert_invalid(key.clone(), uid, object, false);
        affected.push(Task::Conversation(key));
        affected
    }

    /// The status of a conversation was changed by a write that was based on `version`. The watch has yet to show the new version.
    pub fn status_written(&mut self, key: &NamespacedName, version: &Version) {
        if let Some(entry) = self.conversations.get_mut(key) {
            entry.was_written = true;
            entry.awaiting_watch |= entry.version == *version;
        }
    }

    /// A write of a status on `version` met a newer one. The watch is about to show it.
    pub fn status_outdated(&mut self, key: &NamespacedName, version: &Version) {
        if let Some(entry) = self.conversations.get_mut(key) {
            entry.awaiting_watch |= entry.version == *version;
        }
    }

    /// A write of a status on `version` failed, and may take effect until `in_doubt_until`; `None` if the API server refused it.
    pub fn status_write_failed(&mut self, key: &NamespacedName, version: &Version, in_doubt_until: Option<Instant>) {
        if let Some(entry) = self.conversations.get_mut(key)
            && entry.version == *version
        {
            match in_doubt_until {
                Some(until) => entry.in_doubt_until = Some(until),
                None => entry.is_refused = true,
            }
        }
    }

    /// This replica starts to lead. Writes of an earlier leader may still take effect.
    pub fn leadership_started(&mut self) {
        self.defaults.leadership_started();
        for entry in self.conversations.values_mut() {
            entry.was_written = false;
            entry.is_refused = false;
        }
    }

    /// An open conversation has left the watch: it was deleted, or its status is Closed.
    pub fn conversation_deleted(&mut self, metadata: &ObjectMeta, now: Instant) -> Vec<Task> {
        let Some((key, uid, _)) = identity(metadata) else {
            return Vec::new();
        };
        self.tombstones.insert(uid, now);
        self.forget(&key, now)
    }

    fn forget(&mut self, key: &NamespacedName, now: Instant) -> Vec<Task> {
        if self.remove_invalid(key) {
            // Its binding is unknown.
            return self.claims_of(key).map(Task::Claim).collect();
        }
        let Some(entry) = self.conversations.remove(key) else {
            return Vec::new();
        };
        self.stats.remove(StatsKey::of(&entry.input));
        self.remove_proxy(entry.proxy.as_ref());
        let binding = entry.input.contended_binding().cloned();
        self.tombstones.insert(entry.uid, now);
        let mut affected = binding.map(|name| self.remove_candidate(key, &name)).unwrap_or_default();
        affected.push(Task::Conversation(key.clone()));
        affected
    }

    fn claims_of<'a>(&'a self, key: &'a NamespacedName) -> impl Iterator<Item = BindingName> {
        let holds = move |entry: &BindingEntry| entry.claim.as_ref().is_some_and(|claim| claim.holder == *key);
        self.bindings.iter().filter(move |(_, entry)| holds(entry)).map(|(name, _)| name.clone())
    }

    fn add_candidate(&mut self, key: &NamespacedName, name: &BindingName) {
        let conversations = &self.conversations;
        let order = |key: &NamespacedName| (conversations.get(key).map(|entry| entry.input.creation_time), key.clone());
        let candidates = &mut self.bindings.entry(name.clone()).or_default().candidates;
        if let Err(position) = candidates.binary_search_by_key(&order(key), order) {
            candidates.reserve_exact(usize::from(candidates.is_empty()));
            candidates.insert(position, key.clone());
        }
    }

    /// `key` no longer needs the binding, so another candidate may get it.
    fn remove_candidate(&mut self, key: &NamespacedName, name: &BindingName) -> Vec<Task> {
        if let Some(entry) = self.bindings.get_mut(name) {
            entry.candidates.retain(|candidate| candidate != key);
        }
        self.remove_if_empty(name);
        let mut affected = self.candidate_tasks(name);
        affected.push(Task::Claim(name.clone()));
        affected
    }

    fn remove_if_empty(&mut self, name: &BindingName) {
        if self.bindings.get(name).is_some_and(|entry| entry.candidates.is_empty() && entry.claim.is_none()) {
            self.bindings.remove(name);
        }
    }

    /// The candidates whose plan depends on the claim and on the other candidates: the one that the claim names, or else the next
    /// one, and those whose status does not say yet that they wait. Nothing changes for the others, which may be many.
    fn candidate_tasks(&self, name: &BindingName) -> Vec<Task> {
        let holder = self.claim(name).map(|claim| &claim.holder);
        let first = holder.or_else(|| self.next_candidate(name, None));
        let is_affected = |key: &&NamespacedName| {
            Some(*key) == first || self.open(key).is_some_and(|entry| entry.input.waiting_since().is_none())
        };
        self.candidates(name).iter().filter(is_affected).cloned().map(Task::Conversation).collect()
    }

    fn insert_invalid(&mut self, key: NamespacedName, uid: Uid, object: &InvalidObject, is_closed: bool) {
        let creation_time = object.metadata.creation_timestamp.as_ref().map(Time::from);
        let notice = invalid_object(creation_time.unwrap_or(Time::EPOCH), &object.error);
        let list = if is_closed { self.closed_list.number } else { self.conversation_list.number };
        self.invalid.insert(key, InvalidEntry { uid, notice, is_closed, list });
        self.stats.set_invalid(self.invalid.len());
    }

    fn remove_invalid(&mut self, key: &NamespacedName) -> bool {
        let is_removed = self.invalid.remove(key).is_some();
        if is_removed {
            self.stats.set_invalid(self.invalid.len());
        }
        is_removed
    }

    /// A list of the closed conversations starts.
    pub fn closed_list_started(&mut self) {
        self.closed_list.start();
    }

    /// A list of the closed conversations is complete: those that it did not contain are gone.
    pub fn closed_list_completed(&mut self) {
        let number = self.closed_list.number;
        self.closed.retain(|_, entry| entry.list == number);
        self.invalid.retain(|_, entry| !entry.is_closed || entry.list == number);
        self.stats.set_invalid(self.invalid.len());
    }

    /// A closed conversation was listed or changed. If it was closed at `backfill_since` or later, its Event may be missing.
    pub fn closed_applied(&mut self, conversation: &Conversation, backfill_since: Time) -> Vec<Task> {
        let Some((key, uid, version)) = identity(&conversation.metadata) else { return Vec::new() };
        while self.recently_closed.pop_front_if(|(closed, _)| *closed < backfill_since).is_some() {}
        if let Some(closed) = conversation.status.as_ref().and_then(|status| status.closed_time)
            && closed >= backfill_since
        {
            self.recently_closed.push_back((closed, key.clone()));
        }
        let input = LifecycleInput::of(conversation).ok();
        let Some(input) = input.filter(|input| !input.is_observed() || input.expiry().is_some()) else {
            self.closed.remove(&key);
            return Vec::new();
        };
        let fingerprint = conversation.status.as_ref().map_or(0, fingerprint);
        let entry = Entry::new(uid, version, input, fingerprint, self.closed_list.number);
        self.closed.insert(key.clone(), Box::new(entry));
        vec![Task::Conversation(key)]
    }

    /// A closed conversation was deleted.
    pub fn closed_deleted(&mut self, metadata: &ObjectMeta) {
        if let Some((key, ..)) = identity(metadata) {
            self.closed.remove(&key);
            if self.invalid(&key).is_some_and(|entry| entry.is_closed) {
                self.remove_invalid(&key);
            }
        }
    }

    /// A closed conversation cannot be decoded.
    pub fn closed_invalid(&mut self, object: &InvalidObject) -> Vec<Task> {
        let Some((key, uid, _)) = identity(&object.metadata) else { return Vec::new() };
        self.closed.remove(&key);
        self.insert_invalid(key.clone(), uid, object, true);
        vec![Task::Conversation(key)]
    }

    /// A list of the claims starts.
    pub fn claim_list_started(&mut self) {
        self.claim_list.start();
    }

    /// A list of the claims is complete: those that it did not contain are gone.
    pub fn claim_list_completed(&mut self) -> Vec<Task> {
        self.claim_list.is_complete = true;
        self.sync_stats();
        let number = self.claim_list.number;
        let is_gone = |entry: &BindingEntry| entry.claim.as_ref().is_some_and(|claim| claim.list != number);
        let gone: Vec<BindingName> =
            self.bindings.iter().filter(|(_, entry)| is_gone(entry)).map(|(name, _)| name.clone()).collect();
        gone.iter().flat_map(|name| self.claim_deleted(name)).collect()
    }

    /// A claim was listed, created or changed.
    pub fn claim_applied(&mut self, claim: &Claim, now: Instant) -> Vec<Task> {
        let name = self.shared_name(claim.name.clone());
        let mut claim = ClaimEntry::of(claim, self.claim(&name), self.claim_list.number, now);
        if let Some((holder, _)) = self.conversations.get_key_value(&claim.holder) {
            claim.holder = holder.clone();
        }
        let in_flight = claim.admissions.iter().filter(|admission| !self.is_decided(&claim, &admission.uid)).count();
        let is_waiting = in_flight > 0 && in_flight == claim.admissions.len();
        self.bindings.entry(name.clone()).or_default().claim = Some(claim);
        let mut affected = self.candidate_tasks(&name);
        // A claim whose UIDs are all in flight must be kept. A claim with a decided UID, or without UIDs, may have to be released or pruned.
        if !is_waiting && !self.is_settled(&name) {
            affected.push(Task::Claim(name));
        }
        affected
    }

    /// A claim was deleted.
    pub fn claim_deleted(&mut self, name: &BindingName) -> Vec<Task> {
        if let Some(claim) = self.bindings.get_mut(name).and_then(|entry| entry.claim.take()) {
            for admission in &claim.admissions {
                self.tombstones.remove(&admission.uid);
            }
        }
        let affected = self.candidate_tasks(name);
        self.remove_if_empty(name);
        affected
    }

    fn sync_stats(&self) {
        if self.has_synced() {
            self.stats.set_synced();
        }
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;
    use crate::api::AddressBinding;
    use crate::claims::claim_of;
    use serde_json::{Value, json};

    pub const UID: &str = "0f3c9a52-6f0e-4c1d-8a77-9b2f7e5d1c00";
    pub const NAME: &str = "sms-67e3eom4uehoawfojbv6j3egtc";

    pub fn conversation(name: &str, uid: &str, spec: Value) -> Conversation {
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

    pub fn claim(holder: &str, uids: &[&str]) -> Claim {
        claim_of(&address_binding(holder, uids)).unwrap()
    }

    pub fn address_binding(holder: &str, uids: &[&str]) -> AddressBinding {
        let admissions: Vec<Value> =
            uids.iter().map(|uid| json!({"uid": uid, "time": "2026-11-24T10:00:00.123Z"})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": NAME, "uid": "00000000-0000-4000-8000-000000000001", "resourceVersion": "9"},
            "spec": {
                "channel": "SMS", "contactAddress": "+15558675310", "proxyAddress": "+15017122661",
                "conversationRef": {"namespace": "sales", "name": holder}, "admissions": admissions,
            },
        }))
        .unwrap()
    }

    pub fn invalid(name: &str) -> InvalidObject {
        InvalidObject { metadata: conversation(name, UID, json!({})).metadata, error: "unknown channel".into() }
    }

    pub fn key(name: &str) -> NamespacedName {
        NamespacedName::new("sales", name)
    }

    /// An index after empty lists.
    pub fn index() -> Index {
        let mut index = Index::default();
        index.conversation_list_started();
        index.conversation_list_completed(Instant::now());
        index.claim_list_started();
        index.claim_list_completed();
        index
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{NAME, UID, claim, conversation, index, key};
    use super::*;
    use serde_json::json;

    #[test]
    fn index_has_synced_only_with_the_proxy_addresses() {
        let mut index = index();
        assert!(!index.has_synced());
        index.catalog_changed(Arc::default(), Time::EPOCH, Instant::now());
        assert!(index.has_synced());
    }

    #[test]
    fn open_conversations_share_the_text_of_their_proxy_address() {
        let (mut index, now) = (index(), Instant::now());
        for name in ["alice", "bob"] {
            index.conversation_applied(&conversation(name, name, json!({"contact": null})), now);
            index.conversation_applied(&conversation(name, name, json!({"contact": null})), now);
        }
        let proxy = |name: &str| index.open(&key(name)).unwrap().proxy.clone().unwrap();
        assert!(proxy("alice").is_same_text(&proxy("bob")));
        assert_eq!(index.proxies.values().collect::<Vec<_>>(), [&2]);
        for name in ["alice", "bob"] {
            index.conversation_deleted(&conversation(name, name, json!({})).metadata, now);
        }
        assert!(index.proxies.is_empty(), "an unused address takes no memory");
    }

    #[test]
    fn entry_of_an_open_conversation_is_small() {
        assert!(size_of::<Entry>() <= 320, "{}", size_of::<Entry>());
    }

    #[test]
    fn claim_is_returned_unchanged() {
        let (mut index, claim) = (index(), claim("alice", &[UID, "of another kind"]));
        index.claim_applied(&claim, Instant::now());
        assert_eq!(index.claim(&claim.name).unwrap().claim(&claim.name), Some(claim));
    }

    #[test]
    fn objects_missing_from_a_list_are_removed() {
        let (mut index, now) = (index(), Instant::now());
        index.conversation_applied(&conversation("alice", UID, json!({})), now);
        index.claim_applied(&claim("alice", &[UID]), now);
        index.conversation_list_started();
        index.claim_list_started();
        index.conversation_applied(&conversation("bob", "u2", json!({"contact": null})), now);
        assert_eq!(index.claim_list_completed(), [Task::Conversation(key("alice"))]);
        index.conversation_list_completed(now);
        assert_eq!(index.conversations.keys().collect::<Vec<_>>(), [&key("bob")]);
        assert!(index.bindings.is_empty(), "an unused binding takes no entry");
        assert!(index.tombstones.contains(&Uid::from(UID)), "it was stored");
    }

    #[test]
    fn list_enqueues_claim_without_its_conversation() {
        let (mut index, now) = (index(), Instant::now());
        let task = Task::Claim(BindingName::existing(NAME.into()));
        assert!(!index.claim_applied(&claim("alice", &[UID]), now).contains(&task), "it waits for its create");
        index.conversation_list_started();
        assert!(index.conversation_list_completed(now).contains(&task));
    }

    #[test]
    fn claim_without_admissions_is_enqueued_at_once() {
        let mut index = index();
        let affected = index.claim_applied(&claim("alice", &[]), Instant::now());
        assert!(affected.contains(&Task::Claim(BindingName::existing(NAME.into()))), "{affected:?}");
    }

    #[test]
    fn edited_closed_conversation_needs_no_binding_and_keeps_its_ttl() {
        let mut index = index();
        let now = Instant::now();
        index.conversation_applied(&conversation("alice", UID, json!({})), now);
        index.claim_applied(&claim("alice", &[UID]), now);
        let name = BindingName::existing(NAME.into());
        let closed = |spec| {
            let mut closed = conversation("alice", UID, spec);
            closed.status = serde_json::from_value(
                json!({"state": "Closed", "observedGeneration": 1, "closedTime": "2026-11-24T10:00:00Z"}),
            )
            .unwrap();
            closed
        };
        let affected = index.conversation_deleted(&closed(json!({})).metadata, now);
        assert!(affected.contains(&Task::Claim(name.clone())), "the claim is found by the watch: {affected:?}");
        for contact in ["+15550000001", "+15017122661"] {
            let edited = json!({"state": "Active", "contact": {"address": contact}, "ttlAfterClosed": "1h"});
            assert_eq!(index.closed_applied(&closed(edited), Time::EPOCH), [Task::Conversation(key("alice"))]);
            let expiry = index.closed(&key("alice")).and_then(|entry| entry.input.expiry());
            assert_eq!(expiry, "2026-11-24T11:00:00Z".parse().ok());
            assert_eq!(index.bindings.keys().collect::<Vec<_>>(), [&name], "{contact}");
            assert_eq!(index.candidates(&name), []);
        }
    }

    #[test]
    fn only_recently_closed_conversations_are_remembered() {
        let mut index = index();
        let closed = |name: &str, time: &str| {
            let mut closed = conversation(name, name, json!({"state": "Closed"}));
            closed.status =
                serde_json::from_value(json!({"state": "Closed", "observedGeneration": 1, "closedTime": time}))
                    .unwrap();
            closed
        };
        let at = |text: &str| text.parse::<Time>().unwrap();
        index.closed_applied(&closed("alice", "2026-11-24T10:00:00Z"), at("2026-11-24T10:00:00Z"));
        index.closed_applied(&closed("bob", "2026-11-24T10:01:00Z"), at("2026-11-24T10:01:00Z"));
        index.closed_applied(&closed("carol", "2025-11-24T10:01:00Z"), at("2026-11-24T10:01:00Z"));
        assert_eq!(index.recently_changed(at("2026-11-24T10:00:30Z")), [key("bob")]);
        assert_eq!((index.recently_closed.len(), index.closed.len()), (1, 0));
    }
}
