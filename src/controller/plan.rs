//! The plan for a task: a pure function of the index and the time.

use super::events::PendingEvent;
use super::proxy_addresses::{ProxyAddressWrite, affected};
use crate::api::{ConversationStatus, State, Time};
use crate::core::binding::BindingName;
use crate::core::claim::{Claim, CreateStatus};
use crate::core::lifecycle::{BindingStatus, Decision, Defaults, Notice, decide, due, new_notices};
use crate::index::Task;
use crate::index::{AdmissionEntry, Entry, Index, InvalidEntry, Permission, fingerprint};
use crate::index::{NamespacedName, ProxyKey, Uid, Version};
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
    /// Wait for a live read of the default timers that are due to close the conversation.
    AwaitLiveRead {
        /// The next deadline of the conversation.
        until: Option<Time>,
        /// The proxy address whose defaults must be read.
        proxy: ProxyKey,
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
    /// Write the status of a ProxyAddress.
    WriteProxyAddress(Box<ProxyAddressWrite>),
    /// Read the default timers of a proxy address live.
    ReadDefaults(ProxyKey),
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
    /// Whether the write only records activity and deadlines, and may be delayed until there is more.
    pub is_routine: bool,
    /// The status, without the field that gateways own.
    pub status: ConversationStatus,
    /// Whether the status says that the conversation holds its binding.
    pub is_bound: bool,
    /// The next deadline after the write.
    pub next: Option<Time>,
    /// The deadline of the timer that changes the state; `None` if no timer changes it.
    pub due: Option<Time>,
}

impl StatusWrite {
    /// The write that stores `decision`; `None` if it is stored already.
    pub fn of(key: &NamespacedName, entry: &Entry, defaults: &Defaults, decision: Decision) -> Option<Box<Self>> {
        let Decision { status, next, is_closed_by_default: _ } = decision;
        let next = next.filter(|_| status.state != Some(State::Closed));
        (fingerprint(&status) != entry.fingerprint).then(|| {
            Box::new(Self {
                key: key.clone(),
                uid: entry.uid.clone(),
                version: entry.version.clone(),
                notices: new_notices(&entry.input.status, &status),
                due: due(&entry.input, defaults, &status),
                is_routine: entry.input.is_routine(&status),
                is_bound: status.address_binding_name.is_some(),
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
    /// The defaults of its proxy address.
    pub defaults: Defaults,
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
    /// The conversation that gets the binding if the claim is released, with its UID.
    pub successor: Option<(NamespacedName, Uid)>,
}

/// The moment of a plan, and the times that it depends on.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time.
    pub now: Time,
    /// The same moment by the monotonic clock.
    pub instant: Instant,
    /// The end of the time in which writes of an earlier leader can still take effect.
    pub earlier_writes_until: Instant,
}

/// The work of a new leader, or after a change of many conversations at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeaderWork {
    /// The tasks: first the conversations with a deadline, in the order of their deadlines, then the others, then those of a new leader:
    /// the claims and the ProxyAddresses.
    pub tasks: Vec<Task>,
    /// The conversations whose status has outdated deadlines and nothing else to change.
    pub background: Vec<Task>,
    /// The deadlines of the conversations that need no work now, which are nearly all.
    pub deadlines: Vec<(NamespacedName, Time)>,
}

/// The work of a new leader.
pub fn plan_all(index: &Index, is_in_progress: impl Fn(&NamespacedName) -> bool, moment: Moment) -> LeaderWork {
    let mut work = plan_each(index, index.keys(), is_in_progress, moment);
    let proxy_addresses = index.defaults.catalog().map(|catalog| affected(None, catalog)).unwrap_or_default();
    work.tasks.extend(index.unsettled().chain(proxy_addresses));
    work
}

/// The work of many conversations.
pub fn plan_each<'a>(
    index: &Index,
    keys: impl Iterator<Item = &'a NamespacedName>,
    is_in_progress: impl Fn(&NamespacedName) -> bool,
    moment: Moment,
) -> LeaderWork {
    let mut work = LeaderWork::default();
    let mut to_do = Vec::new();
    for key in keys {
        match plan_conversation(index, key, &is_in_progress, moment) {
            Plan::Wait { until, blocked_on } if blocked_on.is_empty() => {
                work.deadlines.extend(until.map(|until| (key.clone(), until)));
            }
            Plan::Run(Job::WriteStatus(write)) if write.is_routine => {
                // Its timers run meanwhile.
                work.deadlines.extend(write.next.map(|next| (key.clone(), next)));
                work.background.push(Task::Conversation(key.clone()));
            }
            _ => to_do.push(key),
        }
    }
    // A decision for the year 1970 has the next deadline even if that has passed by now.
    let deadline = |key: &NamespacedName| {
        let entry = index.open(key)?;
        let (defaults, _) = index.defaults.of(entry.proxy.as_ref(), moment.instant);
        decide(&entry.input, &defaults, None, Time::EPOCH).next
    };
    to_do.sort_by_cached_key(|key| {
        let deadline = deadline(key);
        (deadline.is_none(), deadline)
    });
    work.tasks = to_do.into_iter().cloned().map(Task::Conversation).collect();
    work
}

/// The plan for a conversation. `is_in_progress` returns whether another conversation is being written.
pub fn plan_conversation(
    index: &Index,
    key: &NamespacedName,
    is_in_progress: impl Fn(&NamespacedName) -> bool,
    moment: Moment,
) -> Plan {
    let now = moment.now;
    if let Some(InvalidEntry { uid, notice, .. }) = index.invalid(key) {
        let (key, uid, notice) = (key.clone(), uid.clone(), notice.clone());
        return Plan::Record(PendingEvent { key, uid, notice, snapshot: None });
    }
    let Some(entry) = index.open(key) else {
        return plan_closed(index, key, moment);
    };
    let (defaults, permission) = index.defaults.of(entry.proxy.as_ref(), moment.instant);
    let plan_status = |decision| plan_status(key, entry, &defaults, permission, decision, moment);
    let unheld = decide(&entry.input, &defaults, None, now);
    if entry.awaiting_watch {
        // A decision would be based on an outdated version. The watch event with the new version adds this task again.
        return wait(unheld.next);
    }
    let Some(name) = entry.input.needed_binding() else {
        return plan_status(unheld);
    };
    let Some(claim) = index.claim(name).filter(|claim| claim.holder == *key) else {
        return plan_unbound(index, key, entry, name, &defaults, plan_status, now);
    };
    let Some(admission) = claim.admissions.iter().find(|admission| admission.uid == entry.uid) else {
        // The claim is not its claim until it records its UID.
        return Plan::Wait { until: None, blocked_on: vec![Task::Claim(name.clone())] };
    };
    let held = BindingStatus::Held { name: name.clone(), since: admission.time };
    let bound = decide(&entry.input, &defaults, Some(&held), now);
    if entry.input.is_bound() || bound.status.address_binding_name.is_none() {
        return plan_status(bound);
    }
    // There must never be two conversations with Bound=True, even if somebody bypasses the admission policy: the condition of the
    // other conversation is changed first. A write that is in progress, that the watch has yet to show, or whose outcome is unknown
    // may still set it.
    let rivals = || {
        let others = index.candidates(name).iter().filter(|other| *other != key);
        others.filter_map(|other| Some((other, index.open(other)?))).filter(|(_, entry)| !entry.is_refused)
    };
    if rivals().any(|(other, entry)| is_in_progress(other) || entry.awaiting_watch) {
        return wait(bound.next);
    }
    let is_bound = |(_, entry): &(&NamespacedName, &Entry)| entry.input.is_bound();
    let blocked_on: Vec<Task> = rivals().filter(is_bound).map(|(other, _)| Task::Conversation(other.clone())).collect();
    if !blocked_on.is_empty() {
        return Plan::Wait { until: bound.next, blocked_on };
    }
    let in_doubt_until =
        |(_, entry): (_, &Entry)| entry.in_doubt_until.max((!entry.was_written).then_some(moment.earlier_writes_until));
    if let Some(until) = rivals().filter_map(in_doubt_until).max().filter(|until| *until > moment.instant) {
        return wait(Some(now.after(until.saturating_duration_since(moment.instant))));
    }
    plan_status(bound)
}

/// The plan for a conversation that needs the binding `name`, whose claim, if there is one, names another conversation.
fn plan_unbound(
    index: &Index,
    key: &NamespacedName,
    entry: &Entry,
    name: &BindingName,
    defaults: &Defaults,
    plan_status: impl FnOnce(Decision) -> Plan,
    now: Time,
) -> Plan {
    let is_first = index.claim(name).is_none() && index.next_candidate(name, None) == Some(key);
    let waiting = decide(&entry.input, defaults, Some(&BindingStatus::HeldByAnother), now);
    if !is_first && entry.input.waiting_since().is_some() {
        // It was told that it waits, and still does. Nothing has to be read for that, however many wait.
        return plan_status(waiting);
    }
    let (key, entry, defaults) = (key.clone(), entry.clone(), *defaults);
    Plan::Run(Job::Resolve(Box::new(ConversationLookup { key, entry, defaults, is_first })))
}

fn plan_closed(index: &Index, key: &NamespacedName, moment: Moment) -> Plan {
    let Some(entry) = index.closed(key) else { return wait(None) };
    let now = moment.now;
    if !entry.input.is_observed() {
        let defaults = Defaults::default();
        let decision = decide(&entry.input, &defaults, None, now);
        return plan_status(key, entry, &defaults, Permission::Granted, decision, moment);
    }
    match entry.input.expiry() {
        Some(expiry) if expiry <= now && !entry.input.is_being_deleted => Plan::Run(Job::Delete(Deletion {
            key: key.clone(),
            uid: entry.uid.clone(),
            version: entry.version.clone(),
            expiry,
        })),
        expiry => wait(expiry.filter(|_| !entry.input.is_being_deleted)),
    }
}

/// The plan to store `decision`. `permission` tells whether `defaults` may close the conversation.
fn plan_status(
    key: &NamespacedName,
    entry: &Entry,
    defaults: &Defaults,
    permission: Permission,
    decision: Decision,
    moment: Moment,
) -> Plan {
    let (until, is_closed_by_default) = (decision.next, decision.is_closed_by_default);
    let await_live_read = || entry.proxy.clone().map(|proxy| Plan::AwaitLiveRead { until, proxy });
    if is_closed_by_default
        && permission == Permission::Unconfirmed
        && let Some(plan) = await_live_read()
    {
        return plan;
    }
    if let Some(write) = StatusWrite::of(key, entry, defaults, decision) {
        return Plan::Run(Job::WriteStatus(write));
    }
    match permission {
        Permission::Withheld if is_closed_by_default => await_live_read().unwrap_or_else(|| wait(until)),
        Permission::NotBefore(instant) if is_closed_by_default => {
            // The wall clock was set forward.
            let left = instant.saturating_duration_since(moment.instant) + Duration::from_millis(1);
            wait(until.into_iter().chain([moment.now.after(left)]).min())
        }
        _ => wait(until),
    }
}

fn wait(until: Option<Time>) -> Plan {
    Plan::Wait { until, blocked_on: Vec::new() }
}

/// The plan for a claim.
pub fn plan_claim(index: &Index, name: &BindingName, grace_period: Duration, now: Instant) -> Plan {
    let Some(entry) = index.claim(name) else {
        let first = index.next_candidate(name, None).cloned().map(Task::Conversation);
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
    let successor = index.next_candidate(name, Some(&entry.holder));
    let successor = successor.and_then(|key| Some((key.clone(), index.open(key)?.uid.clone())));
    Plan::Run(Job::Release(Box::new(Release { claim, create_statuses, successor })))
}

#[cfg(test)]
mod tests;
