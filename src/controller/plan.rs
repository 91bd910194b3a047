//! The plan for a task: a pure function of the index and the time.

use super::events::PendingEvent;
use super::index::{AdmissionEntry, Entry, Index, InvalidEntry, Permission, fingerprint};
use super::keys::{NamespacedName, ProxyKey, Uid, Version};
use super::proxy_addresses::{ProxyAddressWrite, affected};
use super::task::Task;
use crate::api::{ConversationStatus, State, Time};
use crate::core::binding::BindingName;
use crate::core::claim::{Claim, CreateStatus};
use crate::core::lifecycle::{BindingStatus, Decision, Defaults, Notice, decide, due, new_notices};
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
        return Plan::Record(PendingEvent { key: key.clone(), uid: uid.clone(), notice: notice.clone() });
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
mod tests {
    use super::super::index::fixtures::{NAME, UID, claim, conversation, index, invalid, key};
    use super::*;
    use serde_json::json;

    /// A moment at `now`, long after this replica started to lead.
    fn at(now: Time) -> Moment {
        let instant = Instant::now();
        Moment { now, instant, earlier_writes_until: instant }
    }

    #[test]
    fn unreadable_conversation_is_reported_until_corrected() {
        let (mut index, now) = (index(), Instant::now());
        let alice = conversation("alice", UID, json!({}));
        index.conversation_applied(&alice, now);
        index.claim_applied(&claim("alice", &[UID]), now);
        let (name, task) = (BindingName::existing(NAME.into()), Task::Conversation(key("alice")));
        let affected = index.conversation_invalid(&invalid("alice"), now);
        assert!(affected.contains(&Task::Claim(name.clone())) && affected.contains(&task), "{affected:?}");
        assert!(plan_all(&index, |_| false, at(Time::EPOCH)).tasks.contains(&task));
        let Plan::Record(pending) = plan_conversation(&index, &key("alice"), |_| false, at(Time::EPOCH)) else {
            panic!("no Event is planned");
        };
        assert!(pending.notice.note.contains("unknown channel") && pending.notice.reason.is_warning());
        assert!(
            index.conversation_deleted(&alice.metadata, now).contains(&Task::Claim(name)),
            "it may be ready for release"
        );
        index.conversation_invalid(&invalid("alice"), now);
        index.conversation_applied(&alice, now);
        assert!(!matches!(plan_conversation(&index, &key("alice"), |_| false, at(Time::EPOCH)), Plan::Record(_)));
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
        let expected = LeaderWork { tasks: expected.to_vec(), ..LeaderWork::default() };
        assert_eq!(plan_all(&index, |_| false, at(Time::EPOCH)), expected);
    }

    #[test]
    fn new_leader_schedules_settled_conversations_by_deadline() {
        let (mut index, now) = (index(), Instant::now());
        let mut alice = conversation("alice", UID, json!({"contact": null, "timers": {"closeAfter": "10m"}}));
        index.conversation_applied(&alice, now);
        let created = "2026-11-24T10:00:00Z".parse::<Time>().unwrap();
        let Plan::Run(Job::WriteStatus(write)) = plan_conversation(&index, &key("alice"), |_| false, at(created))
        else {
            panic!("no write is planned")
        };
        alice.status = Some(write.status);
        index.conversation_applied(&alice, now);
        let due = created.after(Duration::from_mins(10));
        let asleep = LeaderWork { deadlines: vec![(key("alice"), due)], ..LeaderWork::default() };
        assert_eq!(plan_all(&index, |_| false, at(created)), asleep);
        let overdue = LeaderWork { tasks: vec![Task::Conversation(key("alice"))], ..LeaderWork::default() };
        assert_eq!(plan_all(&index, |_| false, at(due)), overdue);
    }

    /// An index with the catalog of one ProxyAddress with these default timers, in effect for as long as need be.
    fn index_with_defaults(timers: &serde_json::Value) -> Index {
        let mut index = index();
        index.catalog_changed(catalog(timers), Time::EPOCH, Instant::now());
        index
    }

    fn catalog(timers: &serde_json::Value) -> std::sync::Arc<crate::proxy_addresses::Catalog> {
        let spec = json!({"channel": "SMS", "address": "+15017122661", "defaults": {"timers": timers}});
        let sales = serde_json::from_value(json!({"metadata": {"name": "sales"}, "spec": spec})).unwrap();
        std::sync::Arc::new([sales].into_iter().collect())
    }

    /// Plans for alice, and stores the status that is written.
    fn store_planned_status(index: &mut Index, alice: &mut crate::api::Conversation, moment: Moment) {
        let plan = plan_conversation(index, &key("alice"), |_| false, moment);
        let Plan::Run(Job::WriteStatus(write)) = plan else { panic!("no write is planned: {plan:?}") };
        alice.status = Some(write.status);
        index.conversation_applied(alice, Instant::now());
    }

    #[test]
    fn close_by_a_default_is_planned_only_after_a_live_read() {
        let timers: crate::api::Timers = serde_json::from_value(json!({"closeAfter": "10m"})).unwrap();
        let mut index = index_with_defaults(&json!(timers));
        let mut alice = conversation("alice", UID, json!({"contact": null}));
        let created = "2026-11-24T10:00:00Z".parse::<Time>().unwrap();
        index.conversation_applied(&alice, Instant::now());
        store_planned_status(&mut index, &mut alice, at(created));
        let due = at(created.after(Duration::from_mins(10)));
        let plan = |index: &Index| plan_conversation(index, &key("alice"), |_| false, due);
        let Plan::AwaitLiveRead { proxy, until: None } = plan(&index) else { panic!("{:?}", plan(&index)) };
        index.defaults.await_live_read(proxy.clone(), key("alice"));
        let (is_same, affected) = index.defaults.live_read(&proxy, None, due.instant);
        assert!(!is_same && affected.contains(&key("alice")));
        assert!(matches!(plan(&index), Plan::AwaitLiveRead { .. }), "the read failed");
        let mut edited = alice.clone();
        edited.metadata.generation = Some(2);
        index.conversation_applied(&edited, Instant::now());
        let Plan::Run(Job::WriteStatus(write)) = plan(&index) else { panic!("the edit is not observed") };
        assert_eq!((write.status.state, write.next), (Some(State::Active), None));
        index.conversation_applied(&alice, Instant::now());
        index.defaults.live_read(&proxy, Some(timers), due.instant);
        let Plan::Run(Job::WriteStatus(write)) = plan(&index) else { panic!("no close is planned") };
        assert_eq!(write.status.state, Some(State::Closed));
    }

    #[test]
    fn close_by_its_own_timer_needs_no_live_read() {
        let mut index = index_with_defaults(&json!({"closeAfter": "10m"}));
        let alice = conversation("alice", UID, json!({"contact": null, "timers": {"closeAfter": "5m"}}));
        index.conversation_applied(&alice, Instant::now());
        let due = at("2026-11-24T10:10:00Z".parse().unwrap());
        let plan = plan_conversation(&index, &key("alice"), |_| false, due);
        assert!(matches!(&plan, Plan::Run(Job::WriteStatus(write)) if write.status.state == Some(State::Closed)));
    }

    #[test]
    fn default_does_not_close_early_after_a_jump_of_the_wall_clock() {
        let delay = Duration::from_mins(10);
        let (mut index, start) = (index(), Instant::now());
        index.defaults = super::super::index::DefaultTimers::new(crate::api::Timers::default(), delay);
        let created = "2026-11-24T10:00:00Z".parse::<Time>().unwrap();
        index.catalog_changed(catalog(&json!({"closeAfter": "1s"})), created, start);
        let mut alice = conversation("alice", UID, json!({"contact": null}));
        index.conversation_applied(&alice, start);
        let after = |minutes| Moment { instant: start + minutes, ..at(created.after(Duration::from_hours(1))) };
        store_planned_status(&mut index, &mut alice, after(Duration::from_mins(9)));
        let Plan::Wait { until, .. } =
            plan_conversation(&index, &key("alice"), |_| false, after(Duration::from_mins(9)))
        else {
            panic!("it is closed early")
        };
        assert!(until.is_some_and(|until| until > created.after(Duration::from_mins(61))), "{until:?}");
        let later = plan_conversation(&index, &key("alice"), |_| false, after(delay));
        assert!(matches!(later, Plan::AwaitLiveRead { .. }), "{later:?}");
    }

    #[test]
    fn outdated_deadlines_are_background_work_of_a_new_leader() {
        let (mut index, created) = (index(), "2026-11-24T10:00:00Z".parse::<Time>().unwrap());
        let mut alice = conversation("alice", UID, json!({"contact": null}));
        index.conversation_applied(&alice, Instant::now());
        store_planned_status(&mut index, &mut alice, at(created));
        let affected = index.catalog_changed(catalog(&json!({"closeAfter": "1h"})), Time::EPOCH, Instant::now());
        assert_eq!(affected, [key("alice")]);
        let work = plan_all(&index, |_| false, at(created));
        assert_eq!(work.background, [Task::Conversation(key("alice"))]);
        assert_eq!(
            work.deadlines,
            [(key("alice"), created.after(Duration::from_hours(1)))],
            "its timers run meanwhile"
        );
        assert_eq!(work.tasks, [Task::ProxyAddress("sales".into())]);
    }

    #[test]
    fn rival_is_unbound_before_the_new_holder_is_bound() {
        let (mut index, now) = (index(), Instant::now());
        let alice = conversation("alice", UID, json!({}));
        index.conversation_applied(&alice, now);
        index.claim_applied(&claim("alice", &[UID]), now);
        let plan =
            |index: &Index, name: &str, others: bool| plan_conversation(index, &key(name), |_| others, at(Time::EPOCH));
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

    /// An index with the claim of alice, who is bound, and with conversations that have been told that they wait, oldest first.
    fn queue_for_alice(waiting: usize) -> Index {
        let (mut index, now) = (index(), Instant::now());
        index.claim_applied(&claim("alice", &[UID]), now);
        let store = |index: &mut Index, mut object: crate::api::Conversation, status: BindingStatus| {
            let input = crate::core::lifecycle::LifecycleInput::of(&object).unwrap();
            object.status = Some(decide(&input, &Defaults::default(), Some(&status), Time::EPOCH).status);
            index.conversation_applied(&object, now);
        };
        let held = BindingStatus::Held { name: BindingName::existing(NAME.into()), since: Time::EPOCH };
        store(&mut index, conversation("alice", UID, json!({})), held);
        for number in 0..waiting {
            let name = format!("waiting-{number:04}");
            let object = conversation(&name, &name, json!({"onConflict": "Wait"}));
            store(&mut index, object, BindingStatus::HeldByAnother);
        }
        index
    }

    #[test]
    fn change_of_a_claim_costs_nothing_for_those_that_wait() {
        let (mut index, now) = (queue_for_alice(1_000), Instant::now());
        let plan = |index: &Index, name: &str| plan_conversation(index, &key(name), |_| false, at(Time::EPOCH));
        for name in ["waiting-0000", "waiting-0999"] {
            assert!(matches!(plan(&index, name), Plan::Wait { until: None, blocked_on } if blocked_on.is_empty()));
        }
        let mut changed = claim("alice", &[UID]);
        changed.resource_version = "10".into();
        assert_eq!(index.claim_applied(&changed, now), [Task::Conversation(key("alice"))]);
        let name = BindingName::existing(NAME.into());
        let closed = conversation("alice", UID, json!({"state": "Closed"}));
        let affected = index.conversation_applied(&closed, now);
        assert_eq!(affected, [Task::Claim(name.clone()), Task::Conversation(key("alice"))]);
        let Plan::Run(Job::Release(release)) = plan_claim(&index, &name, Duration::ZERO, now) else {
            panic!("no release is planned")
        };
        assert_eq!(release.successor, Some((key("waiting-0000"), "waiting-0000".into())));
        index.conversation_deleted(&closed.metadata, now);
        let affected = index.claim_deleted(&name);
        assert_eq!(affected, [Task::Conversation(key("waiting-0000"))], "only the first is asked");
        assert!(matches!(plan(&index, "waiting-0000"), Plan::Run(Job::Resolve(lookup)) if lookup.is_first));
        assert!(matches!(plan(&index, "waiting-0001"), Plan::Wait { .. }));
    }

    #[test]
    fn edit_of_a_waiting_conversation_is_observed_without_a_read() {
        let mut index = queue_for_alice(1);
        let entry = index.open(&key("waiting-0000")).unwrap().clone();
        let mut edited = conversation("waiting-0000", "waiting-0000", json!({"onConflict": "Refuse"}));
        edited.metadata.generation = Some(2);
        let input = crate::core::lifecycle::LifecycleInput { generation: 1, ..entry.input };
        edited.status =
            Some(decide(&input, &Defaults::default(), Some(&BindingStatus::HeldByAnother), Time::EPOCH).status);
        index.conversation_applied(&edited, Instant::now());
        let plan = plan_conversation(&index, &key("waiting-0000"), |_| false, at(Time::EPOCH));
        let Plan::Run(Job::WriteStatus(write)) = plan else { panic!("{plan:?}") };
        assert_eq!((write.status.observed_generation, write.is_bound), (Some(2), false));
    }

    #[test]
    fn successor_is_bound_after_every_rival_has_lost_the_condition() {
        let (mut index, now) = (queue_for_alice(1), Instant::now());
        let plan = |index: &Index, moment| plan_conversation(index, &key("waiting-0000"), |_| false, moment);
        // Closed in its spec, without its contact and being deleted: its stored status still says Bound=True.
        let mut alice = conversation("alice", UID, json!({}));
        let input = crate::core::lifecycle::LifecycleInput::of(&alice).unwrap();
        let held = BindingStatus::Held { name: BindingName::existing(NAME.into()), since: Time::EPOCH };
        alice.status = Some(decide(&input, &Defaults::default(), Some(&held), Time::EPOCH).status);
        let closed = {
            let mut closed = alice.clone();
            closed.spec.state = Some(State::Closed);
            closed
        };
        let without_contact = {
            let mut without_contact = alice.clone();
            without_contact.spec.contact = None;
            without_contact
        };
        let deleted = {
            let mut deleted = alice;
            deleted.metadata.deletion_timestamp = closed.metadata.creation_timestamp.clone();
            deleted
        };
        index.claim_applied(&claim("waiting-0000", &["waiting-0000"]), now);
        for released in [&closed, &without_contact, &deleted] {
            index.conversation_applied(released, now);
            let Plan::Wait { blocked_on, .. } = plan(&index, at(Time::EPOCH)) else { panic!("it is bound too early") };
            assert_eq!(blocked_on, [Task::Conversation(key("alice"))]);
            assert_eq!(index.claimant(&key("alice")), Some(Task::Conversation(key("waiting-0000"))));
        }
        // A status that the API server refuses to change does not block the others.
        index.status_write_failed(&key("alice"), &"7".into(), None);
        assert!(matches!(plan(&index, at(Time::EPOCH)), Plan::Run(Job::WriteStatus(write)) if write.is_bound));
    }

    #[test]
    fn write_of_unknown_outcome_delays_the_rival() {
        let (mut index, now) = (queue_for_alice(1), Instant::now());
        index.claim_applied(&claim("waiting-0000", &["waiting-0000"]), now);
        // alice lost the binding by a manual deletion of her claim, and her status says so; a write of the old one is under way.
        let mut alice = conversation("alice", UID, json!({}));
        let input = crate::core::lifecycle::LifecycleInput::of(&alice).unwrap();
        alice.status =
            Some(decide(&input, &Defaults::default(), Some(&BindingStatus::HeldByAnother), Time::EPOCH).status);
        index.conversation_applied(&alice, now);
        let minute = Duration::from_mins(1);
        let at = |instant: Instant, leader_since: Instant| Moment {
            now: Time::EPOCH,
            instant,
            earlier_writes_until: leader_since + minute,
        };
        let plan = |index: &Index, moment| plan_conversation(index, &key("waiting-0000"), |_| false, moment);
        let is_delayed = |plan| matches!(plan, Plan::Wait { until: Some(_), .. });
        assert!(is_delayed(plan(&index, at(now, now))), "an earlier leader may have written");
        assert!(!is_delayed(plan(&index, at(now + minute, now))));
        index.status_written(&key("alice"), &"an older one".into());
        assert!(!is_delayed(plan(&index, at(now, now))), "this leader has written since");
        index.status_write_failed(&key("alice"), &"7".into(), Some(now + minute));
        assert!(is_delayed(plan(&index, at(now, now))));
        assert!(!is_delayed(plan(&index, at(now + minute, now))));
        alice.metadata.resource_version = Some("8".into());
        index.conversation_applied(&alice, now);
        assert!(!is_delayed(plan(&index, at(now, now))), "the write was based on an older version");
    }

    #[test]
    fn claim_that_does_not_record_its_holder_is_written_first() {
        let (mut index, now) = (index(), Instant::now());
        index.claim_applied(&claim("alice", &["another"]), now);
        index.conversation_applied(&conversation("alice", UID, json!({})), now);
        let Plan::Wait { blocked_on, .. } = plan_conversation(&index, &key("alice"), |_| false, at(Time::EPOCH)) else {
            panic!("it is bound without a claim")
        };
        let name = BindingName::existing(NAME.into());
        assert_eq!(blocked_on, [Task::Claim(name.clone())]);
        assert!(matches!(plan_claim(&index, &name, Duration::ZERO, now), Plan::Run(Job::Release(_))));
    }

    #[test]
    fn written_conversation_waits_for_its_watch_event() {
        let (mut index, now) = (index(), Instant::now());
        let mut alice = conversation("alice", UID, json!({"contact": null}));
        index.conversation_applied(&alice, now);
        let plan = |index: &Index| plan_conversation(index, &key("alice"), |_| false, at(Time::EPOCH));
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
