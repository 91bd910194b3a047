//! Faults that the lifecycle survives: changes between a decision and its write, timers that expire while no operator runs, a crash
//! before an Event is recorded, refused lists and Events, invalid objects. Also the number of writes. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace, condition, metrics, until};
use crate::common::fault_cluster::{
    FaultCluster, POLL_INTERVAL, WAITING, assert_handed_over, claim_delete, claim_replace, claim_use, create_waiting,
    exclusive_cluster, kill_around, status_write,
};
use crate::common::oracle::{Change, Kind};
use crate::common::proxy::{Call, Fault, Held, InForce, Stage};
use crate::common::recorder::Recorder;
use control_plane::ControlPlane;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use std::time::Duration;
use switchboard::api::{
    AddressBinding, ConditionStatus, ConditionType, Conversation, ConversationStatus, State, StateReason, Time,
};
use switchboard::clock::Clock;
use tokio::time::{Instant, sleep};

fn status(conversation: &Conversation) -> &ConversationStatus {
    conversation.status.as_ref().unwrap()
}

/// Matches the write by which the operator closes this conversation.
pub fn closing(ns: &TestNamespace, name: &str) -> impl Fn(&Call) -> bool + Send + 'static {
    let writes = status_write(ns, name);
    move |call| writes(call) && call.mentions("\"state\":\"Closed\"")
}

/// Matches the requests by which the operator records an Event that contains `text` in this namespace.
fn event(ns: &TestNamespace, text: &'static str) -> impl Fn(&Call) -> bool + Send + 'static {
    let path = format!("/namespaces/{}/events", ns.namespace);
    move |call| call.is("POST", &path) && call.mentions(text)
}

/// Matches every write of the operator, except those of its Lease.
fn is_write(call: &Call) -> bool {
    // The self-check makes access reviews and dry runs, which write nothing.
    let is_self_check = call.path.ends_with("/subjectaccessreviews") || call.query.contains("dryRun=All");
    call.method != hyper::Method::GET && !call.path.contains("/leases") && !is_self_check
}

// ---- Changes between a decision and its write ----

/// Creates `alice` with `changes`, whose timer soon closes it, and others that wait for the binding. Holds every write that closes alice,
/// and returns the first such write.
async fn hold_closings(cluster: &FaultCluster, ns: &TestNamespace, changes: Value) -> (InForce, Held) {
    let mut closings = cluster.proxy.hold(Stage::Before, closing(ns, "alice"));
    ns.create("alice", changes).await.unwrap();
    create_waiting(ns).await;
    let decided = closings.next().await;
    (closings, decided)
}

#[tokio::test]
async fn activity_after_the_decision_to_close_prevents_the_close() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let (mut closings, decided) = hold_closings(&cluster, &ns, json!({"timers": {"closeAfter": "2s"}})).await;
    let now = Clock.now();
    ns.report_activity("alice", &now.to_string()).await.unwrap();
    decided.resolve(Fault::Pass);
    let alice = ns.wait_for("alice", "active", |alice| status(alice).last_activity_time == Some(now)).await;
    assert_eq!(status(&alice).state, Some(State::Active), "the decision was stale");
    // The next attempt to close was held as well, so the conversation could not close during the checks.
    closings.next().await.resolve(Fault::Pass);
    let alice = ns.wait_for_state("alice", State::Closed).await;
    assert!(
        status(&alice).closed_time.unwrap() >= now.after(Duration::from_secs(2)),
        "the timer counts from the activity"
    );
    assert_handed_over(&ns, &mut checker, WAITING[0]).await;
}

#[tokio::test]
async fn participant_added_after_the_decision_prevents_the_close() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let unassigned = json!({"participants": [], "timers": {"closeUnassignedAfter": "1s"}});
    let (closings, decided) = hold_closings(&cluster, &ns, unassigned).await;
    ns.change("alice", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    decided.resolve(Fault::Pass);
    let (alice, _) = ns.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::False).await;
    assert_eq!((status(&alice).state, &status(&alice).deadlines), (Some(State::Active), &None));
    assert_eq!(closings.count(), 1, "the operator does not try to close it again");
    drop(closings);
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn longer_ttl_after_the_decision_to_delete_prevents_the_delete() {
    let cluster = exclusive_cluster().await;
    let (ns, _) = cluster.checked_namespace().await;
    let path = format!("/namespaces/{}/conversations/alice", ns.namespace);
    let mut deletes = cluster.proxy.hold(Stage::Before, move |call| call.is("DELETE", &path));
    ns.create("alice", json!({"state": "Closed", "ttlAfterClosed": "1s"})).await.unwrap();
    let decided = deletes.next().await;
    let changed = ns.change("alice", json!({"ttlAfterClosed": "87600h"})).await.unwrap();
    decided.resolve(Fault::Pass);
    ns.wait_for("alice", "observed", |alice| status(alice).observed_generation == changed.metadata.generation).await;
    assert_eq!(deletes.count(), 1);
}

/// Edits `alice` between its close and the release of its binding, which must come all the same. If `is_contended`, the binding is handed
/// over to others that wait.
async fn edit_between_close_and_release(is_contended: bool) {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let elsewhere = TestNamespace { proxy: "+15017122662".to_owned(), ..ns.clone() };
    let address = json!({"address": ns.contact});
    let cases = [
        (json!({"state": "Closed"}), json!({"proxy": {"address": elsewhere.proxy}, "state": null})),
        (json!({"state": "Closed", "contact": null}), json!({"contact": address, "state": "Active"})),
    ];
    for (close, edit) in cases {
        for is_killed in [false, true] {
            ns.create("alice", json!({})).await.unwrap();
            ns.bound("alice").await;
            let (is_delete, is_replace) = (claim_delete(&ns), claim_replace(&ns));
            let is_release = move |call: &Call| if is_contended { is_replace(call) } else { is_delete(call) };
            let mut releases = cluster.proxy.hold(Stage::Before, is_release);
            if is_contended {
                create_waiting(&ns).await;
            }
            ns.change("alice", close.clone()).await.unwrap();
            ns.wait_for_state("alice", State::Closed).await;
            let release = releases.next().await;
            ns.change("alice", edit.clone()).await.unwrap();
            if is_killed {
                cluster.replica().kill();
                release.resolve(Fault::Cut);
                drop(releases);
                cluster.replica().start().unwrap();
            } else {
                release.resolve(Fault::Pass);
                drop(releases);
            }
            if is_contended {
                assert_handed_over(&ns, &mut checker, WAITING[0]).await;
                for name in WAITING {
                    ns.delete(name).await;
                }
            }
            ns.wait_until_free().await;
            checker.wait_until_at_rest().await;
            assert_eq!(elsewhere.claim().await, None, "{close} and then {edit}");
            ns.delete("alice").await;
        }
    }
}

#[tokio::test]
async fn conversation_edited_after_its_close_releases_its_binding() {
    edit_between_close_and_release(false).await;
}

#[tokio::test]
async fn conversation_edited_after_its_close_hands_over_its_binding() {
    edit_between_close_and_release(true).await;
}

#[tokio::test]
async fn next_holder_is_bound_after_the_status_of_the_previous_one() {
    let cluster = exclusive_cluster().await;
    for change in [json!({"state": "Closed"}), json!({"contact": null})] {
        let (ns, mut checker) = cluster.contended_namespace().await;
        let mut statuses = cluster.proxy.hold(Stage::Before, status_write(&ns, "alice"));
        let next_statuses = cluster.proxy.inject(Stage::Before, Fault::Pass, status_write(&ns, WAITING[0]));
        ns.change("alice", change).await.unwrap();
        let status = statuses.next().await;
        let is_handed_over =
            |claim: Option<&AddressBinding>| claim.is_some_and(|claim| claim.spec.conversation_ref.name == WAITING[0]);
        assert!(until(ns.claims(), ns.binding().as_str(), is_handed_over).await.is_some(), "it is handed over");
        // The renewals of the Lease measure the time: two seconds, in which the status of the next holder would have been written.
        cluster.proxy.inject(Stage::Before, Fault::Pass, |call| call.path.contains("/leases")).wait_for(8).await;
        checker.check().await;
        assert_eq!(next_statuses.count(), 0, "the stored status of alice has Bound=True");
        status.resolve(Fault::Pass);
        drop(statuses);
        assert_handed_over(&ns, &mut checker, WAITING[0]).await;
    }
}

// ---- Timers ----

#[tokio::test]
async fn rule_8_overdue_timers_are_applied_at_once_in_one_write() {
    let cluster = exclusive_cluster().await;
    let (ns, _) = cluster.checked_namespace().await;
    cluster.replica().kill();
    // The API server does not call the webhook for a conversation without a contact.
    let timers = json!({"contact": null, "timers": {"inactiveAfter": "1s", "closeAfter": "2s"}});
    let mut last = Time::EPOCH;
    for number in 0..150 {
        let created = ns.create(&format!("c{number}"), timers.clone()).await.unwrap();
        last = Time::from(created.metadata.creation_timestamp.as_ref().unwrap()).after(Duration::from_secs(2));
    }
    while Clock.now() < last {
        sleep(POLL_INTERVAL).await;
    }
    let namespace = format!("/namespaces/{}/", ns.namespace);
    let is_closing = move |call: &Call| is_write_of_status(call) && call.path.contains(&namespace);
    let closings = cluster.proxy.inject(Stage::Before, Fault::Pass, is_closing);
    cluster.replica().start().unwrap();
    for number in 0..150 {
        let closed = ns.wait_for_state(&format!("c{number}"), State::Closed).await;
        assert_eq!(status(&closed).state_reason, Some(StateReason::CloseTimer));
        assert!(
            status(&closed).closed_time.unwrap() >= last,
            "closedTime is the time of the decision, not of the deadline"
        );
    }
    assert_eq!(closings.count(), 150, "two overdue timers make one write");
}

#[tokio::test]
async fn unassigned_timer_counts_from_first_sight_after_an_outage() {
    let cluster = exclusive_cluster().await;
    let (ns, _) = cluster.checked_namespace().await;
    let unassigned = json!({"contact": null, "participants": [], "timers": {"closeUnassignedAfter": "1h"}});
    ns.create("seen", unassigned).await.unwrap();
    ns.wait_for_condition("seen", ConditionType::Unassigned, ConditionStatus::True).await;
    cluster.replica().kill();
    // A conversation that no replica has observed loses its participant; another one gets a participant and loses it again.
    ns.create("unseen", json!({"contact": null})).await.unwrap();
    ns.change("seen", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    let left = Clock.now();
    for name in ["unseen", "seen"] {
        ns.change(name, json!({"participants": [], "timers": {"closeUnassignedAfter": "1s"}})).await.unwrap();
    }
    cluster.replica().start().unwrap();
    for name in ["unseen", "seen"] {
        let closed = ns.wait_for_state(name, State::Closed).await;
        assert_eq!(status(&closed).state_reason, Some(StateReason::UnassignedTimer));
        let since = status(&closed).unassigned_time.unwrap();
        assert!(since >= left, "{name} had a participant until {left}, and counts as unassigned since {since}");
        assert!(status(&closed).closed_time.unwrap() >= since.after(Duration::from_secs(1)));
    }
}

fn is_write_of_status(call: &Call) -> bool {
    call.method == hyper::Method::PATCH && call.path.ends_with("/status")
}

#[tokio::test]
async fn expired_timer_is_applied_once_writes_succeed_again() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    for fault in [Fault::Answer(500), Fault::Cut, Fault::Answer(403)] {
        let failing = cluster.proxy.inject(Stage::Before, fault, closing(&ns, "alice"));
        ns.create("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
        create_waiting(&ns).await;
        failing.wait_for(1).await;
        drop(failing);
        ns.wait_for_state("alice", State::Closed).await;
        assert_handed_over(&ns, &mut checker, WAITING[0]).await;
        for name in ["alice"].into_iter().chain(WAITING) {
            ns.delete(name).await;
        }
        ns.wait_until_free().await;
    }
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn durations_of_ten_years_become_deadlines() {
    let cluster = exclusive_cluster().await;
    let (ns, _) = cluster.checked_namespace().await;
    let timers = json!({"inactiveAfter": "87599h", "closeAfter": "87600h", "closeUnassignedAfter": "87600h"});
    let created = ns.create("alice", json!({"timers": timers, "ttlAfterClosed": "87600h"})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let alice = ns.bound("alice").await;
    let deadlines = status(&alice).deadlines.clone().unwrap();
    assert_eq!(deadlines.close_time, Some(created.after(Duration::from_hours(87_600))));
    assert_eq!(deadlines.inactive_time, Some(created.after(Duration::from_hours(87_599))));
}

#[tokio::test]
async fn frequent_reports_cause_at_most_one_write_a_second() {
    const REPORTS: usize = 400;
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    ns.create("alice", json!({"timers": {"closeAfter": "1h"}})).await.unwrap();
    ns.bound("alice").await;
    let writes = cluster.proxy.inject(Stage::Before, Fault::Pass, status_write(&ns, "alice"));
    let began = Instant::now();
    for _ in 0..REPORTS {
        ns.report_activity("alice", &Clock.now().to_string()).await.unwrap();
    }
    let last = Clock.now();
    ns.report_activity("alice", &last.to_string()).await.unwrap();
    ns.wait_for("alice", "up to date", |alice| status(alice).last_activity_time == Some(last)).await;
    // One write at the start, one per second, and one for the last report.
    let allowed = usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
    assert!(writes.count() <= allowed, "{} writes for {REPORTS} reports, {allowed} are allowed", writes.count());
    checker.wait_until_at_rest().await;
}

// ---- The number of writes ----

#[tokio::test]
async fn conversation_costs_five_writes_and_none_at_rest() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let recorder = Recorder::start(cluster.control_plane());
    // A write without a change is not in etcd's history, so the requests are counted as well.
    let (of_claim, of_status) = (claim_use(&ns), status_write(&ns, "alice"));
    let calls = cluster
        .proxy
        .inject(Stage::Before, Fault::Pass, move |call| is_write(call) && (of_claim(call) || of_status(call)));
    ns.create("alice", json!({"timers": {"closeAfter": "2s"}})).await.unwrap();
    ns.wait_for_state("alice", State::Closed).await;
    ns.wait_until_free().await;
    // Events are sent concurrently with the other work.
    ns.wait_for_event("alice", "Closed").await;
    checker.wait_until_at_rest().await;
    assert_eq!(calls.count(), 4, "the claim, two statuses and the release");
    drop(calls);

    let writes = cluster.proxy.inject(Stage::Before, Fault::Pass, is_write);
    // The renewals of the Lease measure the time: about five seconds, in which the leader checks its deadlines at least twice.
    cluster.proxy.inject(Stage::Before, Fault::Pass, |call| call.path.contains("/leases")).wait_for(20).await;
    assert_eq!(writes.count(), 0, "the operator writes nothing at rest");

    let binding = ns.binding();
    let events = recorder.new_events().await.into_iter().filter(|event| match event.kind {
        Kind::Conversation => event.namespace == ns.namespace,
        Kind::Claim => event.name == binding.as_str(),
    });
    let written: Vec<_> = events.map(|event| (event.kind, event.change)).collect();
    let object = (Kind::Conversation, Change::Created);
    let (claim, release) = ((Kind::Claim, Change::Created), (Kind::Claim, Change::Deleted));
    let status = (Kind::Conversation, Change::Updated);
    // The webhook makes the claim before the API server stores the conversation.
    assert_eq!(written, [claim, object, status, status, release]);
}

#[tokio::test]
async fn leader_runs_sixteen_writes_concurrently_and_no_more() {
    let cluster = exclusive_cluster().await;
    let (ns, _) = cluster.checked_namespace().await;
    let mut writes = cluster.proxy.hold(Stage::Before, is_write_of_status);
    for number in 0..20 {
        ns.create(&format!("c{number}"), json!({"contact": null})).await.unwrap();
    }
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(writes.next().await);
    }
    // The renewals of the Lease measure the time: two seconds, in which another write would have arrived.
    cluster.proxy.inject(Stage::Before, Fault::Pass, |call| call.path.contains("/leases")).wait_for(8).await;
    assert_eq!(writes.count(), 16);
    drop((held, writes));
    for number in 0..20 {
        ns.wait_for_condition(&format!("c{number}"), ConditionType::Ready, ConditionStatus::True).await;
    }
}

// ---- Events ----

/// Kills the leader around the request that records an Event, and asserts that the Event is recorded exactly once.
async fn assert_event_recorded_once(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let (ns, _) = cluster.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    let close = async {
        ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    };
    kill_around(&cluster, stage, event(&ns, "Closed"), close).await;
    let events = ns.wait_for_event("alice", "Closed").await;
    // The new leader records this Event after it has recorded the recent ones of its predecessor again.
    ns.create("bob", json!({"participants": []})).await.unwrap();
    ns.wait_for_event("bob", "Unassigned").await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(ns.wait_for_event("alice", "Closed").await.len(), 1);
}

/// As [`assert_event_recorded_once`], for the Event that a conversation which waited is bound.
async fn assert_event_of_a_hand_over_recorded_once(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.contended_namespace().await;
    let close = async {
        ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    };
    kill_around(&cluster, stage, event(&ns, r#""reason":"Bound""#), close).await;
    ns.wait_for_event(WAITING[0], "Bound").await;
    // The new leader records this Event after it has recorded the recent ones of its predecessor again.
    ns.create("bob", json!({"contact": null, "participants": []})).await.unwrap();
    ns.wait_for_event("bob", "Unassigned").await;
    let events = ns.wait_for_event(WAITING[0], "Bound").await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_handed_over(&ns, &mut checker, WAITING[0]).await;
}

#[tokio::test]
async fn kill_before_the_event_of_a_hand_over_does_not_lose_it() {
    assert_event_of_a_hand_over_recorded_once(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_the_event_of_a_hand_over_does_not_repeat_it() {
    assert_event_of_a_hand_over_recorded_once(Stage::After).await;
}

#[tokio::test]
async fn kill_before_an_event_request_does_not_lose_the_event() {
    assert_event_recorded_once(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_an_event_request_does_not_repeat_the_event() {
    assert_event_recorded_once(Stage::After).await;
}

#[tokio::test]
async fn event_of_a_deletion_during_shutdown_is_recorded() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let path = format!("/namespaces/{}/conversations/alice", ns.namespace);
    let mut deletion = cluster.proxy.hold(Stage::After, move |call| call.is("DELETE", &path));
    ns.create("alice", json!({"state": "Closed", "ttlAfterClosed": "1s"})).await.unwrap();
    // The API server has deleted the conversation, and the leader has not received the answer.
    let answer = deletion.next().await;
    drop(deletion);
    let replica = cluster.replica();
    let shutdowns = || std::fs::read_to_string(replica.log()).unwrap().matches(r#""shutting down""#).count();
    let before = shutdowns();
    replica.terminate();
    while shutdowns() == before {
        sleep(POLL_INTERVAL).await;
    }
    answer.resolve(Fault::Pass);
    ns.wait_for_event("alice", "TTLExpired").await;
    assert!(replica.wait(TIMEOUT).expect("the replica exits within the timeout").success());
    replica.start().unwrap();
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn refused_events_do_not_delay_other_work() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    // The API server does not answer the requests that record Events.
    let held = cluster.proxy.hold(Stage::Before, event(&ns, "alice"));
    for _ in 0..20 {
        ns.create("alice", json!({"participants": []})).await.unwrap();
        ns.bound("alice").await;
        ns.delete("alice").await;
        ns.wait_until_free().await;
    }
    held.wait_for(1).await;
    drop(held);
    // The requests fail, and succeed later.
    let failing = cluster.proxy.inject(Stage::Before, Fault::Answer(500), event(&ns, "bob"));
    ns.create("bob", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    ns.wait_for_state("bob", State::Closed).await;
    ns.wait_until_free().await;
    failing.wait_for(1).await;
    drop(failing);
    ns.wait_for_event("bob", "Closed").await;
    checker.wait_until_at_rest().await;
}

// ---- Lists and invalid objects ----

/// Matches the lists of both kinds, either streamed or in pages.
fn is_list(call: &Call, streamed: bool) -> bool {
    let kind = call.path.ends_with("/conversations") || call.path.ends_with("/addressbindings");
    kind && call.query.contains(if streamed { "sendInitialEvents=true" } else { "limit=" })
}

#[tokio::test]
async fn lists_are_streamed_or_fetched_in_pages_if_unsupported() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    cluster.replica().kill();
    let streamed = cluster.proxy.inject(Stage::Before, Fault::Pass, |call| is_list(call, true));
    let paged = cluster.proxy.inject(Stage::Before, Fault::Pass, |call| is_list(call, false));
    cluster.replica().start().unwrap();
    ns.change("alice", json!({"participants": []})).await.unwrap();
    ns.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::True).await;
    assert_eq!((streamed.count(), paged.count()), (3, 0), "lists of open and closed conversations and of claims");

    cluster.replica().kill();
    drop(streamed);
    let refused = cluster.proxy.inject(Stage::Before, Fault::Answer(422), |call| is_list(call, true));
    cluster.replica().start().unwrap();
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.wait_for_state("alice", State::Closed).await;
    ns.wait_until_free().await;
    paged.wait_for(3).await;
    assert_eq!(refused.count(), 3, "the leader does not ask for a streamed list again");
    checker.wait_until_at_rest().await;
}

/// The warnings of the controller and its index in `log`.
fn controller_warnings(log: &str) -> Vec<&str> {
    let is_of_controller = |line: &str| {
        ["controller", "index"].iter().any(|module| line.contains(&format!(r#""target":"switchboard::{module}"#)))
    };
    let is_warning = |line: &&str| line.contains(r#""level":"WARN""#) && is_of_controller(line);
    log.lines().filter(is_warning).collect()
}

#[tokio::test]
async fn fallback_to_pages_logs_no_warning_but_failed_watches_do() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let log = || std::fs::read_to_string(cluster.replica().log()).unwrap();

    // Kubernetes 1.31 and 1.33 answer so.
    cluster.replica().kill();
    let before = log().len();
    let unsupported = cluster.proxy.inject(Stage::Before, Fault::Answer(422), |call| is_list(call, true));
    cluster.replica().start().unwrap();
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    let fallback = log().split_off(before);
    let messages = fallback.matches("the API server does not support streaming lists; fetching them in pages").count();
    assert_eq!(messages, 3, "lists of open and closed conversations and of claims: {fallback}");
    assert_eq!(controller_warnings(&fallback), [""; 0]);

    cluster.replica().kill();
    let before = log().len();
    // The same answer to any watch, so that no fallback is left.
    let failing = cluster.proxy.inject(Stage::Before, Fault::Answer(422), |call| {
        let kind = call.path.ends_with("/conversations") || call.path.ends_with("/addressbindings");
        kind && call.query.contains("watch=true")
    });
    cluster.replica().start_without_waiting().unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while controller_warnings(&log()[before..]).len() < 3 {
        assert!(Instant::now() < deadline, "failed watches log no warning: {}", &log()[before..]);
        sleep(POLL_INTERVAL).await;
    }
    drop((unsupported, failing));
    cluster.replica().wait_until_ready().unwrap();
    checker.wait_until_at_rest().await;
}

/// Replaces the schema of `spec.timers`, and returns the previous one.
async fn change_schema_of_timers(cluster: &FaultCluster, timers: Value) -> Value {
    let crds = Api::<CustomResourceDefinition>::all(cluster.client().await);
    let mut crd = serde_json::to_value(crds.get("conversations.switchboard.dev").await.unwrap()).unwrap();
    let schema = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/timers").unwrap();
    let before = std::mem::replace(schema, timers);
    let crd = serde_json::from_value(crd).unwrap();
    crds.replace("conversations.switchboard.dev", &PostParams::default(), &crd).await.unwrap();
    before
}

/// Changes the spec with kubectl, which does not validate it. The error is that of kubectl.
fn patch(
    control_plane: &ControlPlane,
    ns: &TestNamespace,
    name: &str,
    spec: &Value,
    dry_run: &str,
) -> Result<(), String> {
    let mut command = control_plane.kubectl();
    command.args(["patch", "conversation", name, "--namespace", &ns.namespace, "--type=merge", "--patch"]);
    let output = command.arg(json!({"spec": spec}).to_string()).arg(format!("--dry-run={dry_run}")).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

#[tokio::test]
async fn invalid_conversation_is_reported_and_stops_no_other_work() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let (other, mut other_checker) = cluster.checked_namespace().await;
    let control_plane = cluster.control_plane();
    ns.create("alice", json!({})).await.unwrap();
    other.create("bob", json!({})).await.unwrap();
    ns.bound("alice").await;
    other.bound("bob").await;

    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let timers = change_schema_of_timers(&cluster, anything).await;
    let (invalid, deadline) = (json!({"timers": {"closeAfter": "tomorrow"}}), Instant::now() + TIMEOUT);
    while let Err(complaint) = patch(control_plane, &ns, "alice", &invalid, "none") {
        assert!(Instant::now() < deadline, "the API server does not use the changed schema: {complaint}");
        sleep(POLL_INTERVAL).await;
    }
    change_schema_of_timers(&cluster, timers).await;
    // The API server uses the schema, and restarts its storage of the kind, a moment later.
    while !patch(control_plane, &other, "bob", &invalid, "server")
        .is_err_and(|error| error.contains("must be a duration"))
    {
        assert!(Instant::now() < deadline, "the API server does not use the restored schema");
        sleep(POLL_INTERVAL).await;
    }
    let events = ns.wait_for_event("alice", "InvalidObject").await;
    assert_eq!(events[0].type_.as_deref(), Some("Warning"));
    assert!(events[0].note.as_ref().unwrap().contains("spec: must be a duration"), "{events:?}");
    assert!(metrics(cluster.replica()).await.contains("switchboard_invalid_conversations 1\n"));

    // The invalid object stops neither the watch nor a list.
    other.change("bob", json!({"participants": []})).await.unwrap();
    other.wait_for_condition("bob", ConditionType::Unassigned, ConditionStatus::True).await;
    cluster.replica().kill();
    cluster.replica().start().unwrap();
    other.change("bob", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    other.wait_for_condition("bob", ConditionType::Unassigned, ConditionStatus::False).await;
    other_checker.wait_until_at_rest().await;
    assert!(ns.claim().await.is_some(), "the claim stays, since alice may still hold its binding");
    let refusal = ns.create("carol", json!({})).await.unwrap_err();
    assert_eq!(refusal.code, 503, "no other conversation gets the binding: {refusal:?}");
    create_waiting(&ns).await;

    patch(control_plane, &ns, "alice", &json!({"timers": null}), "none").expect("the conversation can be corrected");
    let corrected = |alice: &Conversation| status(alice).observed_generation == alice.metadata.generation;
    let alice = ns.wait_for("alice", "observed", corrected).await;
    assert!(metrics(cluster.replica()).await.contains("switchboard_invalid_conversations 0\n"));
    assert_eq!(condition(&alice, ConditionType::Bound).map(|(status, _)| status), Some(ConditionStatus::True));
    assert_eq!(ns.held_by().await.as_deref(), Some("alice"));
    ns.conversations().delete("alice", &DeleteParams::default()).await.unwrap();
    assert_handed_over(&ns, &mut checker, WAITING[0]).await;
    let log = std::fs::read_to_string(cluster.replica().log()).unwrap();
    assert!(log.contains("cannot be decoded and is not reconciled"), "the log names the invalid conversation");
    assert!(!log.contains(&ns.contact), "the log contains the address of the contact");
}
