//! The tests of the plans.

use super::*;
use crate::index::fixtures::{NAME, UID, claim, conversation, index, invalid, key};
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
    let Plan::Run(Job::WriteStatus(write)) = plan_conversation(&index, &key("alice"), |_| false, at(created)) else {
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
fn close_by_a_default_is_planned_again_after_a_withdrawal() {
    let timers = json!({"closeAfter": "10m"});
    let mut index = index_with_defaults(&timers);
    let mut alice = conversation("alice", UID, json!({"contact": null}));
    let created = "2026-11-24T10:00:00Z".parse::<Time>().unwrap();
    index.conversation_applied(&alice, Instant::now());
    store_planned_status(&mut index, &mut alice, at(created));
    index.defaults.catalog_withdrawn();
    let due = at(created.after(Duration::from_mins(10)));
    let plan = |index: &Index| plan_conversation(index, &key("alice"), |_| false, due);
    assert!(matches!(plan(&index), Plan::Wait { until: None, .. }), "{:?}", plan(&index));
    assert_eq!(index.catalog_changed(catalog(&timers), due.now, due.instant), [key("alice")]);
    assert!(matches!(plan(&index), Plan::AwaitLiveRead { .. }), "{:?}", plan(&index));
}

#[test]
fn close_by_its_own_timer_needs_no_live_read() {
    let mut index = index_with_defaults(&json!({"closeAfter": "10m"}));
    index.defaults.catalog_withdrawn();
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
    index.defaults = crate::index::DefaultTimers::new(crate::api::Timers::default(), delay);
    let created = "2026-11-24T10:00:00Z".parse::<Time>().unwrap();
    index.catalog_changed(catalog(&json!({"closeAfter": "1s"})), created, start);
    let mut alice = conversation("alice", UID, json!({"contact": null}));
    index.conversation_applied(&alice, start);
    let after = |minutes| Moment { instant: start + minutes, ..at(created.after(Duration::from_hours(1))) };
    store_planned_status(&mut index, &mut alice, after(Duration::from_mins(9)));
    let Plan::Wait { until, .. } = plan_conversation(&index, &key("alice"), |_| false, after(Duration::from_mins(9)))
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
    assert_eq!(work.deadlines, [(key("alice"), created.after(Duration::from_hours(1)))], "its timers run meanwhile");
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
    edited.status = Some(decide(&input, &Defaults::default(), Some(&BindingStatus::HeldByAnother), Time::EPOCH).status);
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
    alice.status = Some(decide(&input, &Defaults::default(), Some(&BindingStatus::HeldByAnother), Time::EPOCH).status);
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
