//! The plan for a task: a pure function of the index and the time.

use super::events::PendingEvent;
use super::index::{AdmissionEntry, Entry, Index, InvalidEntry, fingerprint};
use super::keys::{NamespacedName, Uid, Version};
use super::task::Task;
use crate::api::{ConversationStatus, State, Time};
use crate::core::binding::BindingName;
use crate::core::claim::{Claim, CreateStatus};
use crate::core::lifecycle::{BindingStatus, Decision, Notice, decide, due, new_notices};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// The plan for a task.
#[derive(Debug)]
pub enum Plan {
    /// Nothing to do now.
    Wait {
        /// The next deadline of the conversation.
        until: Option<Time>,
        /// The tasks to process first.
        blocked_on: Vec<Task>,
    },
    /// Record an Event.
    Record(PendingEvent),
    /// Run a job.
    Run(Job),
}

/// A job: the part of a task that calls the API server.
#[derive(Debug)]
pub enum Job {
    /// Write the status of a conversation.
    WriteStatus(Box<StatusWrite>),
    /// Delete a closed conversation whose time to live has elapsed.
    Delete(Deletion),
    /// Find the holder of a conversation's binding, and write the status that follows.
    Resolve(Box<ConversationLookup>),
    /// Read the conversation of a claim live, and release or prune the claim if possible.
    Release(Box<Release>),
}

/// A write of a status. The version of the conversation that the decision is based on is its precondition.
#[derive(Debug)]
pub struct StatusWrite {
    /// The conversation.
    pub key: NamespacedName,
    /// Its UID.
    pub uid: Uid,
    /// The version that the decision is based on.
    pub version: Version,
    /// The notices to record once the status is written.
    pub notices: Vec<Notice>,
    /// Whether the write only records activity, and may be delayed until there is more.
    pub is_routine: bool,
    /// The status, without the field that gateways own.
    pub status: ConversationStatus,
    /// The next deadline after the write.
    pub next: Option<Time>,
    /// The deadline of the timer that changes the state; `None` if no timer changes it.
    pub due: Option<Time>,
}

impl StatusWrite {
    /// The write that stores `decision`; `None` if it is stored already.
    pub fn of(key: &NamespacedName, entry: &Entry, decision: Decision) -> Option<Box<Self>> {
        let Decision { status, next } = decision;
        (fingerprint(&status) != entry.fingerprint).then(|| {
            Box::new(Self {
                key: key.clone(),
                uid: entry.uid.clone(),
                version: entry.version.clone(),
                notices: new_notices(&entry.input.status, &status),
                due: due(&entry.input, &status),
                is_routine: entry.input.is_routine(&status),
                status,
                next,
            })
        })
    }
}

/// A closed conversation whose time to live has elapsed.
#[derive(Debug)]
pub struct Deletion {
    /// The conversation.
    pub key: NamespacedName,
    /// Its UID.
    pub uid: Uid,
    /// The version that was observed to be closed.
    pub version: Version,
    /// End of its time to live.
    pub expiry: Time,
}

/// A conversation that needs a binding and that, according to the index, does not hold it.
#[derive(Debug)]
pub struct ConversationLookup {
    /// The conversation.
    pub key: NamespacedName,
    /// Its entry in the index.
    pub entry: Entry,
    /// Whether it is the first of the candidates for the binding.
    pub is_first: bool,
}

/// A claim that may have to be released or pruned.
#[derive(Debug)]
pub struct Release {
    /// The claim as the watch showed it.
    pub claim: Claim,
    /// The status of each create that it records, by UID.
    pub create_statuses: HashMap<Uid, CreateStatus>,
}

/// The work of a new leader. Returns the tasks: first the conversations with a deadline, in the order of their deadlines, then the
/// others, then the claims. Also returns the deadlines of the conversations that need no work, which are nearly all.
pub fn plan_all(
    index: &Index,
    is_in_progress: impl Fn(&NamespacedName) -> bool,
    now: Time,
) -> (Vec<Task>, Vec<(NamespacedName, Time)>) {
    let (mut to_do, mut asleep) = (Vec::new(), Vec::new());
    for key in index.keys() {
        match plan_conversation(index, key, &is_in_progress, now) {
            Plan::Wait { until, blocked_on } if blocked_on.is_empty() => {
                asleep.extend(until.map(|until| (key.clone(), until)));
            }
            _ => to_do.push(key),
        }
    }
    // A decision for the year 1970 has the next deadline even if that has passed by now.
    let deadline = |key: &NamespacedName| decide(&index.open(key)?.input, None, Time::EPOCH).next;
    to_do.sort_by_cached_key(|key| {
        let deadline = deadline(key);
        (deadline.is_none(), deadline)
    });
    (to_do.into_iter().cloned().map(Task::Conversation).chain(index.unsettled()).collect(), asleep)
}

/// The plan for a conversation. `is_in_progress` returns whether another conversation is being written.
pub fn plan_conversation(
    index: &Index,
    key: &NamespacedName,
    is_in_progress: impl Fn(&NamespacedName) -> bool,
    now: Time,
) -> Plan {
    if let Some(InvalidEntry { uid, notice, .. }) = index.invalid(key) {
        return Plan::Record(PendingEvent { key: key.clone(), uid: uid.clone(), notice: notice.clone() });
    }
    let Some(entry) = index.open(key) else {
        return plan_closed(index, key, now);
    };
    let unheld = decide(&entry.input, None, now);
    if entry.awaiting_watch {
        // A decision would be based on an outdated version. The watch event with the new version adds this task again.
        return wait(unheld.next);
    }
    let Some(name) = entry.input.held_binding().filter(|_| unheld.status.state != Some(State::Closed)) else {
        return plan_status(key, entry, unheld);
    };
    if index.claim(name).is_none_or(|claim| claim.holder != *key) {
        let is_first = first_candidate(index, name) == Some(key);
        return Plan::Run(Job::Resolve(Box::new(ConversationLookup {
            key: key.clone(),
            entry: entry.clone(),
            is_first,
        })));
    }
    // There must never be two conversations with Bound=True, even if somebody bypasses the admission policy: the condition of the
    // other conversation is changed first. A write that is in progress, or that the watch has yet to show, may still set it.
    let rivals = || index.candidates(name).iter().filter(|other| *other != key);
    let awaiting_watch = |other| index.open(other).is_some_and(|entry| entry.awaiting_watch);
    if rivals().any(|other| is_in_progress(other) || awaiting_watch(other)) {
        return wait(unheld.next);
    }
    let is_bound = |other: &&NamespacedName| index.open(other).is_some_and(|other| other.input.is_bound());
    let blocked_on: Vec<Task> = rivals().filter(is_bound).cloned().map(Task::Conversation).collect();
    if !blocked_on.is_empty() {
        return Plan::Wait { until: unheld.next, blocked_on };
    }
    plan_status(key, entry, decide(&entry.input, Some(&BindingStatus::Held(name.clone())), now))
}

fn plan_closed(index: &Index, key: &NamespacedName, now: Time) -> Plan {
    let Some(entry) = index.closed(key) else { return wait(None) };
    if !entry.input.is_observed() {
        return plan_status(key, entry, decide(&entry.input, None, now));
    }
    match entry.input.expiry() {
        Some(expiry) if expiry <= now => Plan::Run(Job::Delete(Deletion {
            key: key.clone(),
            uid: entry.uid.clone(),
            version: entry.version.clone(),
            expiry,
        })),
        expiry => wait(expiry),
    }
}

fn plan_status(key: &NamespacedName, entry: &Entry, decision: Decision) -> Plan {
    let next = decision.next;
    StatusWrite::of(key, entry, decision).map_or_else(|| wait(next), |write| Plan::Run(Job::WriteStatus(write)))
}

fn wait(until: Option<Time>) -> Plan {
    Plan::Wait { until, blocked_on: Vec::new() }
}

/// The first of the candidates for a binding: the one with Bound=True; otherwise the oldest; among the oldest, the one with the lowest
/// UID.
fn first_candidate<'a>(index: &'a Index, name: &BindingName) -> Option<&'a NamespacedName> {
    index.candidates(name).iter().min_by_key(|key| {
        let entry = index.open(key);
        entry.map(|entry| (!entry.input.is_bound(), entry.input.creation_time, entry.uid.to_string()))
    })
}

/// The plan for a claim.
pub fn plan_claim(index: &Index, name: &BindingName, grace_period: Duration, now: Instant) -> Plan {
    let Some(entry) = index.claim(name) else {
        let first = first_candidate(index, name).cloned().map(Task::Conversation);
        return Plan::Wait { until: None, blocked_on: first.into_iter().collect() };
    };
    let Some(claim) = entry.claim(name).filter(|_| !index.is_settled(name)) else {
        return wait(None);
    };
    let create_status = |admission: &AdmissionEntry| {
        if index.is_decided(entry, &admission.uid) {
            CreateStatus::Decided
        } else if now.saturating_duration_since(admission.since) >= grace_period {
            CreateStatus::Expired
        } else {
            CreateStatus::InFlight
        }
    };
    let create_statuses = entry.admissions.iter().map(|known| (known.uid.clone(), create_status(known))).collect();
    Plan::Run(Job::Release(Box::new(Release { claim, create_statuses })))
}

#[cfg(test)]
mod tests {
    use super::super::index::fixtures::{NAME, UID, claim, conversation, index, invalid, key};
    use super::*;
    use serde_json::json;

    #[test]
    fn unreadable_conversation_is_reported_until_corrected() {
        let (mut index, now) = (index(), Instant::now());
        let alice = conversation("alice", UID, json!({}));
        index.conversation_applied(&alice, now);
        index.claim_applied(&claim("alice", &[UID]), now);
        let (name, task) = (BindingName::existing(NAME.into()), Task::Conversation(key("alice")));
        let affected = index.conversation_invalid(&invalid("alice"), now);
        assert!(affected.contains(&Task::Claim(name.clone())) && affected.contains(&task), "{affected:?}");
        assert!(plan_all(&index, |_| false, Time::EPOCH).0.contains(&task));
        let Plan::Record(pending) = plan_conversation(&index, &key("alice"), |_| false, Time::EPOCH) else {
            panic!("no Event is planned");
        };
        assert!(pending.notice.note.contains("unknown channel") && pending.notice.reason.is_warning());
        assert!(
            index.conversation_deleted(&alice.metadata, now).contains(&Task::Claim(name)),
            "it may be ready for release"
        );
        index.conversation_invalid(&invalid("alice"), now);
        index.conversation_applied(&alice, now);
        assert!(!matches!(plan_conversation(&index, &key("alice"), |_| false, Time::EPOCH), Plan::Record(_)));
    }

    #[test]
    fn new_leader_processes_timers_in_order_of_deadline() {
        let (mut index, now) = (index(), Instant::now());
        for (number, after) in [("30m", 30), ("none", 0), ("10m", 10), ("1h", 60), ("20m", 20)] {
            let timers = if after == 0 { json!({}) } else { json!({"closeAfter": format!("{after}m")}) };
            let spec = json!({"contact": null, "timers": timers});
            index.conversation_applied(&conversation(number, number, spec), now);
        }
        let expected = ["10m", "20m", "30m", "1h", "none"].map(|name| Task::Conversation(key(name)));
        assert_eq!(plan_all(&index, |_| false, Time::EPOCH), (expected.to_vec(), Vec::new()));
    }

    #[test]
    fn new_leader_schedules_settled_conversations_by_deadline() {
        let (mut index, now) = (index(), Instant::now());
        let mut alice = conversation("alice", UID, json!({"contact": null, "timers": {"closeAfter": "10m"}}));
        index.conversation_applied(&alice, now);
        let created = "2026-11-24T10:00:00Z".parse::<Time>().unwrap();
        let Plan::Run(Job::WriteStatus(write)) = plan_conversation(&index, &key("alice"), |_| false, created) else {
            panic!("no write is planned")
        };
        alice.status = Some(write.status);
        index.conversation_applied(&alice, now);
        let due = created.after(Duration::from_mins(10));
        assert_eq!(plan_all(&index, |_| false, created), (Vec::new(), vec![(key("alice"), due)]));
        assert_eq!(plan_all(&index, |_| false, due), (vec![Task::Conversation(key("alice"))], Vec::new()));
    }

    #[test]
    fn rival_is_unbound_before_the_new_holder_is_bound() {
        let (mut index, now) = (index(), Instant::now());
        let alice = conversation("alice", UID, json!({}));
        index.conversation_applied(&alice, now);
        index.claim_applied(&claim("alice", &[UID]), now);
        let plan =
            |index: &Index, name: &str, others: bool| plan_conversation(index, &key(name), |_| others, Time::EPOCH);
        let Plan::Run(Job::WriteStatus(of_alice)) = plan(&index, "alice", false) else { panic!("no write is planned") };
        // Somebody deletes the claim, and bob claims the binding.
        index.conversation_applied(&conversation("bob", "u2", json!({})), now);
        index.claim_applied(&claim("bob", &["u2"]), now);
        assert!(matches!(plan(&index, "bob", true), Plan::Wait { .. }), "the write of alice is in progress");
        assert_eq!(index.claimant(&key("alice")), Some(Task::Conversation(key("bob"))), "bob is blocked on alice");
        assert_eq!(index.claimant(&key("bob")), None);
        index.status_written(&key("alice"), &of_alice.version);
        assert!(matches!(plan(&index, "bob", false), Plan::Wait { .. }), "the watch has yet to show the write");
        let affected = index.conversation_deleted(&alice.metadata, now);
        assert!(affected.contains(&Task::Conversation(key("bob"))), "{affected:?}");
        assert!(matches!(plan(&index, "bob", false), Plan::Run(Job::WriteStatus(_))));
    }

    #[test]
    fn written_conversation_waits_for_its_watch_event() {
        let (mut index, now) = (index(), Instant::now());
        let mut alice = conversation("alice", UID, json!({"contact": null}));
        index.conversation_applied(&alice, now);
        let plan = |index: &Index| plan_conversation(index, &key("alice"), |_| false, Time::EPOCH);
        let Plan::Run(Job::WriteStatus(write)) = plan(&index) else { panic!("no write is planned") };
        index.status_written(&key("alice"), &"an older one".into());
        assert!(matches!(plan(&index), Plan::Run(Job::WriteStatus(_))), "the write was on another version");
        index.status_written(&key("alice"), &write.version);
        assert!(matches!(plan(&index), Plan::Wait { .. }));
        alice.status = Some(write.status);
        alice.spec.state = Some(State::Inactive);
        alice.metadata.resource_version = Some("8".into());
        index.conversation_applied(&alice, now);
        assert!(matches!(plan(&index), Plan::Run(Job::WriteStatus(_))), "the next change is planned");
    }
}
