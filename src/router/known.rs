//! What the watches have shown: who holds a binding, and who is assigned to what. Lookups need no request. It knows nothing of messages.

use crate::api::{Assignment, Conversation};
use crate::core::binding::BindingName;
use crate::core::inbound::{BindingStatus, Recipient, activity_window, assignee};
use crate::index::{AddressBindings, EventHandler, Index, NamespacedName, OpenConversations, ProxyKey, Task, Uid};
use crate::watch::InvalidObject;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the watches are not believed after an error, unless an event arrives. It is longer than the pause before kube tries again (at
/// most a minute with its jitter) and the time after which a silent connection counts as dead (75 s) together.
const DOUBT: Duration = Duration::from_secs(150);
/// How long an assignment by this replica counts, if the watch does not show its conversation.
const ASSIGNMENT_TTL: Duration = Duration::from_mins(1);

/// The open conversations and the claims.
#[derive(Debug, Default)]
pub struct Known {
    index: Index,
    details: HashMap<NamespacedName, Details>,
    /// The number of open conversations of each user behind each proxy address.
    assigned: HashMap<ProxyKey, HashMap<Arc<str>, usize>>,
    /// The identities of users, each stored once.
    identities: HashSet<Arc<str>>,
    /// The assignments by this replica that the watch has not shown yet, by their number.
    unseen: BTreeMap<u64, Unseen>,
    next_assignment: u64,
    conversations_failure: Option<Failure>,
    claims_failure: Option<Failure>,
}

/// The errors of a watch since its last event.
#[derive(Clone, Copy, Debug)]
struct Failure {
    first: Instant,
    last: Instant,
}

impl Failure {
    /// The errors after another event of the watch. The beginning of a list is no sign that the watch works: it precedes the request.
    fn after<K>(before: Option<Self>, event: &watcher::Result<Event<K>>, now: Instant) -> Option<Self> {
        match event {
            Err(_) => Some(Self { first: before.map_or(now, |before| before.first), last: now }),
            Ok(Event::Init | Event::InitApply(_)) => before,
            Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => None,
        }
    }

    /// Whether the watch may not have recovered yet.
    fn is_current(self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < DOUBT
    }
}

/// The parts of a conversation that the index does not have.
#[derive(Debug)]
struct Details {
    participants: Box<[Arc<str>]>,
    proxy: ProxyKey,
    window: Duration,
}

#[derive(Debug)]
struct Unseen {
    proxy: ProxyKey,
    identity: String,
    /// The conversation; `None` until it is created.
    uid: Option<Uid>,
    since: Instant,
}

/// An assignment by this replica.
#[derive(Clone, Copy, Debug)]
pub struct AssignmentNumber(u64);

impl Known {
    /// Who has the binding of this name.
    pub fn sight(&self, name: &BindingName, now: Instant) -> BindingStatus {
        if let Some(is_awaited) = self.is_awaited(name, now) {
            return if is_awaited { BindingStatus::Awaited } else { BindingStatus::Free };
        }
        let holder = self.index.holder(name).filter(|_| self.is_believed(now));
        holder.and_then(|holder| self.recipient(holder)).map_or(BindingStatus::Unknown, BindingStatus::Held)
    }

    /// Whether an open conversation waits for a binding that nobody holds. `None` if the watches are not believed, or show a holder: if a
    /// live read has found none, then they are late, and may not show yet who was created before that holder was closed.
    pub fn is_awaited(&self, name: &BindingName, now: Instant) -> Option<bool> {
        let needs =
            |key: &NamespacedName| self.index.open(key).is_some_and(|entry| entry.input.needed_binding() == Some(name));
        let is_free = self.is_believed(now) && self.index.holder(name).is_none();
        is_free.then(|| self.index.candidates(name).iter().any(needs))
    }

    fn recipient(&self, key: &NamespacedName) -> Option<Recipient> {
        let (entry, details) = (self.index.open(key)?, self.details.get(key)?);
        Some(Recipient {
            conversation: key.reference(),
            uid: entry.uid.to_string(),
            state: entry.input.state_in_effect(),
            participants: details.participants.iter().map(|identity| identity.as_ref().to_owned()).collect(),
        })
    }

    /// The window in which the activity of a conversation is reported; `None` if it is not known.
    pub fn window(&self, recipient: &Recipient) -> Option<Duration> {
        self.details.get(&NamespacedName::from(&recipient.conversation)).map(|details| details.window)
    }

    /// The number of open conversations of a user behind a proxy address.
    fn open_of(&self, proxy: &ProxyKey, identity: &str) -> usize {
        let seen = self.assigned.get(proxy).and_then(|of_proxy| of_proxy.get(identity)).copied();
        let is_same = |unseen: &&Unseen| unseen.proxy == *proxy && unseen.identity == identity;
        seen.unwrap_or_default() + self.unseen.values().filter(is_same).count()
    }

    /// The user that `assignment` gives a conversation of `contact` to. It counts as assigned from now on, so that conversations that are
    /// created at the same time go to different users, until it is [settled](Self::assignment_settled).
    pub fn assign(
        &mut self,
        assignment: &Assignment,
        proxy: ProxyKey,
        contact: &str,
        now: Instant,
    ) -> Option<(String, AssignmentNumber)> {
        self.unseen.retain(|_, unseen| now.saturating_duration_since(unseen.since) < ASSIGNMENT_TTL);
        let identity = assignee(assignment, contact, |identity| self.open_of(&proxy, identity))?.to_owned();
        let number = self.next_assignment;
        self.next_assignment += 1;
        self.unseen.insert(number, Unseen { proxy, identity: identity.clone(), uid: None, since: now });
        Some((identity, AssignmentNumber(number)))
    }

    /// The conversation of an assignment is `created`, or is not created.
    pub fn assignment_settled(&mut self, AssignmentNumber(number): AssignmentNumber, created: Option<&Recipient>) {
        let key = created.map(|created| (NamespacedName::from(&created.conversation), Uid::from(created.uid.as_str())));
        match key {
            Some((key, uid)) if self.index.open(&key).is_none_or(|entry| entry.uid != uid) => {
                if let Some(unseen) = self.unseen.get_mut(&number) {
                    unseen.uid = Some(uid);
                }
            }
            // The watch has shown it, or it does not exist.
            _ => drop(self.unseen.remove(&number)),
        }
    }

    /// Whether both watches have completed a list.
    pub fn has_synced(&self) -> bool {
        self.index.has_listed()
    }

    /// Whether the watches have synced, and work.
    pub fn is_believed(&self, now: Instant) -> bool {
        self.has_synced() && self.failing_for(now).is_none()
    }

    /// For how long one of the watches has been failing; `None` if none is.
    pub fn failing_for(&self, now: Instant) -> Option<Duration> {
        let failures = [self.conversations_failure, self.claims_failure].into_iter().flatten();
        let current = failures.filter(|failure| failure.is_current(now));
        current.map(|failure| now.saturating_duration_since(failure.first)).max()
    }

    /// Handles the watch of the claims.
    pub fn claims(&mut self, now: Instant) -> AddressBindings<'_> {
        AddressBindings { index: &mut self.index, in_flight: None, now }
    }

    /// The watch of the conversations has had an event.
    pub fn conversations_watched<K>(&mut self, event: &watcher::Result<Event<K>>, now: Instant) {
        self.conversations_failure = Failure::after(self.conversations_failure, event, now);
    }

    /// The watch of the claims has had an event.
    pub fn claims_watched<K>(&mut self, event: &watcher::Result<Event<K>>, now: Instant) {
        self.claims_failure = Failure::after(self.claims_failure, event, now);
    }

    fn insert_details(&mut self, conversation: &Conversation) {
        let ObjectMeta { namespace: Some(namespace), name: Some(name), uid, .. } = &conversation.metadata else {
            return;
        };
        let key = NamespacedName::new(namespace, name);
        self.remove_details(&key);
        if let Some(uid) = uid.as_deref().map(Uid::from) {
            self.unseen.retain(|_, unseen| unseen.uid.as_ref() != Some(&uid));
        }
        // The index has the texts of both keys already, and shares them.
        let (Some(key), Some(proxy)) =
            (self.index.open_key(&key), self.index.open(&key).and_then(|entry| entry.proxy.clone()))
        else {
            return;
        };
        let participants: Box<[Arc<str>]> = conversation
            .spec
            .participants
            .iter()
            .flatten()
            .map(|participant| {
                if let Some(known) = self.identities.get(participant.identity.as_str()) {
                    return known.clone();
                }
                let identity: Arc<str> = participant.identity.as_str().into();
                self.identities.insert(identity.clone());
                identity
            })
            .collect();
        if !participants.is_empty() {
            let of_proxy = self.assigned.entry(proxy.clone()).or_default();
            for identity in &participants {
                *of_proxy.entry(identity.clone()).or_default() += 1;
            }
        }
        let timers = conversation.status.as_ref().and_then(|status| status.timers.as_ref());
        self.details.insert(key, Details { participants, proxy, window: activity_window(timers) });
    }

    fn remove_details(&mut self, key: &NamespacedName) {
        let Some(Details { participants, proxy, .. }) = self.details.remove(key) else { return };
        let Some(of_proxy) = self.assigned.get_mut(&proxy) else { return };
        for identity in &participants {
            if let Some(count) = of_proxy.get_mut(identity) {
                *count -= 1;
                if *count == 0 {
                    of_proxy.remove(identity);
                }
            }
        }
        if of_proxy.is_empty() {
            self.assigned.remove(&proxy);
        }
        for identity in participants {
            // This one and that of the set.
            if Arc::strong_count(&identity) == 2 {
                self.identities.remove(&identity);
            }
        }
    }
}

/// Handles the watch of the open conversations.
pub struct Conversations<'a> {
    /// What to update.
    pub known: &'a mut Known,
    /// The current instant.
    pub now: Instant,
}

impl Conversations<'_> {
    fn index(&mut self) -> OpenConversations<'_> {
        OpenConversations { index: &mut self.known.index, now: self.now }
    }
}

impl EventHandler for Conversations<'_> {
    type Object = Conversation;
    const SELECTOR: Option<&'static str> = OpenConversations::SELECTOR;
    const WATCH: &'static str = OpenConversations::WATCH;

    fn list_started(&mut self) {
        self.index().list_started();
    }

    fn applied(&mut self, conversation: &Conversation) -> Vec<Task> {
        let affected = self.index().applied(conversation);
        self.known.insert_details(conversation);
        affected
    }

    fn invalid(&mut self, object: &InvalidObject) -> Vec<Task> {
        if let ObjectMeta { namespace: Some(namespace), name: Some(name), .. } = &object.metadata {
            self.known.remove_details(&NamespacedName::new(namespace, name));
        }
        self.index().invalid(object)
    }

    fn deleted(&mut self, metadata: &ObjectMeta) -> Vec<Task> {
        if let ObjectMeta { namespace: Some(namespace), name: Some(name), .. } = metadata {
            self.known.remove_details(&NamespacedName::new(namespace, name));
        }
        self.index().deleted(metadata)
    }

    fn list_completed(&mut self) -> Vec<Task> {
        let affected = self.index().list_completed();
        let known = &mut *self.known;
        let gone: Vec<_> = known.details.keys().filter(|key| known.index.open(key).is_none()).cloned().collect();
        for key in gone {
            known.remove_details(&key);
        }
        affected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::fixtures::{NAME, UID, claim, conversation};
    use kube::runtime::watcher;
    use serde_json::json;

    /// What is known after empty lists.
    fn known(now: Instant) -> Known {
        let mut known = Known::default();
        let mut conversations = Conversations { known: &mut known, now };
        conversations.list_started();
        conversations.list_completed();
        known.claims(now).list_started();
        known.claims(now).list_completed();
        known
    }

    #[test]
    fn late_watches_do_not_tell_that_nobody_waits() {
        let (now, name) = (Instant::now(), BindingName::existing(NAME.into()));
        let mut known = known(now);
        assert_eq!(known.is_awaited(&name, now), Some(false));
        Conversations { known: &mut known, now }.applied(&conversation("alice", UID, json!({})));
        assert_eq!(known.is_awaited(&name, now), Some(true), "its claim may have been released already");
        known.index.claim_applied(&claim("alice", &[UID]), now);
        assert_eq!(known.is_awaited(&name, now), None, "it may be closed, and another one may wait");
        assert!(matches!(known.sight(&name, now), BindingStatus::Held(holder) if holder.uid == UID));
        Conversations { known: &mut known, now }.applied(&conversation("next", "u2", json!({"onConflict": "Wait"})));
        Conversations { known: &mut known, now }.deleted(&conversation("alice", UID, json!({})).metadata);
        assert_eq!(known.is_awaited(&name, now), Some(true));
        assert_eq!(known.sight(&name, now), BindingStatus::Awaited);
    }

    #[test]
    fn failing_watch_is_not_believed_until_its_next_event() {
        let (now, name) = (Instant::now(), BindingName::existing(NAME.into()));
        let mut known = known(now);
        known.claims_watched::<()>(&Err(watcher::Error::NoResourceVersion), now);
        assert_eq!((known.is_awaited(&name, now), known.sight(&name, now)), (None, BindingStatus::Unknown));
        known.claims_watched(&Ok(Event::<()>::InitDone), now);
        assert_eq!((known.is_awaited(&name, now), known.sight(&name, now)), (Some(false), BindingStatus::Free));
    }
}
