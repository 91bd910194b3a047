//! Claims about what the lifecycle survives: what arrives between a decision and its write, timers that became due unseen, a crash
//! before people were told, lists and Events that are refused, what cannot be read; and about how little it writes. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace, condition, metrics};
use crate::common::fault_cluster::{
    FaultCluster, POLL_INTERVAL, claim_delete, claim_use, exclusive_cluster, kill_around, status_write,
};
use crate::common::oracle::{Change, Kind};
use crate::common::proxy::{Call, Fault, Stage};
use crate::common::recorder::Recorder;
use control_plane::ControlPlane;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use std::time::Duration;
use switchboard::api::{ConditionStatus, ConditionType, Conversation, ConversationStatus, State, StateReason, Time};
use switchboard::clock::Clock;
use tokio::time::{Instant, sleep};

fn status(conversation: &Conversation) -> &ConversationStatus {
    conversation.status.as_ref().unwrap()
}

/// The operator closes a conversation of this desk.
fn closing(desk: &TestNamespace, name: &str) -> impl Fn(&Call) -> bool + Send + 'static {
    let writes = status_write(desk, name);
    move |call| writes(call) && call.mentions("\"state\":\"Closed\"")
}

/// The operator tells something at this desk.
fn event(desk: &TestNamespace, reason: &'static str) -> impl Fn(&Call) -> bool + Send + 'static {
    let path = format!("/namespaces/{}/events", desk.namespace);
    move |call| call.is("POST", &path) && call.mentions(reason)
}

/// The operator writes anything but its Lease; a dry run, by which it sees whether the webhook is in force, writes nothing.
fn is_write(call: &Call) -> bool {
    // A question is no write, and neither is a dry run; the self-check makes both.
    let is_question = call.path.ends_with("/subjectaccessreviews") || call.query.contains("dryRun=All");
    call.method != hyper::Method::GET && !call.path.contains("/leases") && !is_question
}

// ---- What arrives between a decision and its write ----

#[tokio::test]
async fn activity_that_arrives_between_the_decision_to_close_and_the_write_keeps_it_open() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    // Every attempt to close waits for this test, so that it stays open for as long as it is looked at.
    let mut closings = faulty.proxy.hold(Stage::Before, closing(&desk, "alice"));
    desk.create("alice", json!({"timers": {"closeAfter": "2s"}})).await.unwrap();
    let decided = closings.next().await;
    let now = Clock.now();
    desk.report_activity("alice", &now.to_string()).await.unwrap();
    decided.resolve(Fault::Pass);
    let alice = desk.wait_for("alice", "active", |alice| status(alice).last_activity_time == Some(now)).await;
    assert_eq!(status(&alice).state, Some(State::Active), "the decision was stale");
    closings.next().await.resolve(Fault::Pass);
    let alice = desk.wait_for_state("alice", State::Closed).await;
    assert!(status(&alice).closed_time.unwrap() >= now.after(Duration::from_secs(2)), "two seconds after the activity");
    witness.show_rest().await;
}

#[tokio::test]
async fn a_participant_who_arrives_between_the_decision_to_close_and_the_write_keeps_it_open() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let mut closings = faulty.proxy.hold(Stage::Before, closing(&desk, "alice"));
    desk.create("alice", json!({"participants": [], "timers": {"closeUnassignedAfter": "1s"}})).await.unwrap();
    let decided = closings.next().await;
    desk.change("alice", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    decided.resolve(Fault::Pass);
    let (alice, _) = desk.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::False).await;
    assert_eq!((status(&alice).state, &status(&alice).deadlines), (Some(State::Active), &None));
    assert_eq!(closings.count(), 1, "and nothing wants to close it any more");
    witness.show_rest().await;
}

#[tokio::test]
async fn a_longer_time_to_live_that_arrives_between_the_decision_to_delete_and_the_delete_keeps_it() {
    let faulty = exclusive_cluster().await;
    let (desk, _) = faulty.desk().await;
    let path = format!("/namespaces/{}/conversations/alice", desk.namespace);
    let mut deletes = faulty.proxy.hold(Stage::Before, move |call| call.is("DELETE", &path));
    desk.create("alice", json!({"state": "Closed", "ttlAfterClosed": "1s"})).await.unwrap();
    let decided = deletes.next().await;
    let changed = desk.change("alice", json!({"ttlAfterClosed": "87600h"})).await.unwrap();
    decided.resolve(Fault::Pass);
    desk.wait_for("alice", "observed", |alice| status(alice).observed_generation == changed.metadata.generation).await;
    assert_eq!(deletes.count(), 1);
}

#[tokio::test]
async fn conversation_edited_after_its_close_releases_its_binding() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let elsewhere = TestNamespace { proxy: "+15017122662".to_owned(), ..desk.clone() };
    let address = json!({"address": desk.contact});
    let cases = [
        (json!({"state": "Closed"}), json!({"proxy": {"address": elsewhere.proxy}, "state": null})),
        (json!({"state": "Closed", "contact": null}), json!({"contact": address, "state": "Active"})),
    ];
    for (close, edit) in cases {
        for is_killed in [false, true] {
            desk.create("alice", json!({})).await.unwrap();
            desk.bound("alice").await;
            let mut releases = faulty.proxy.hold(Stage::Before, claim_delete(&desk));
            desk.change("alice", close.clone()).await.unwrap();
            desk.wait_for_state("alice", State::Closed).await;
            let release = releases.next().await;
            desk.change("alice", edit.clone()).await.unwrap();
            if is_killed {
                faulty.replica().kill();
                release.resolve(Fault::Cut);
                drop(releases);
                faulty.replica().start().unwrap();
            } else {
                release.resolve(Fault::Pass);
                drop(releases);
            }
            desk.wait_until_free().await;
            witness.show_rest().await;
            assert_eq!(elsewhere.claim().await, None, "{close} and then {edit}");
            desk.delete("alice").await;
        }
    }
}

// ---- Time ----

#[tokio::test]
async fn rule_8_timers_that_became_due_while_nobody_watched_are_honoured_at_once_by_the_state_that_results() {
    let faulty = exclusive_cluster().await;
    let (desk, _) = faulty.desk().await;
    faulty.replica().kill();
    // What needs no claim is created without a webhook.
    let timers = json!({"contact": null, "timers": {"inactiveAfter": "1s", "closeAfter": "2s"}});
    let mut last = Time::EPOCH;
    for number in 0..150 {
        let created = desk.create(&format!("c{number}"), timers.clone()).await.unwrap();
        last = Time::from(created.metadata.creation_timestamp.as_ref().unwrap()).after(Duration::from_secs(2));
    }
    while Clock.now() < last {
        sleep(POLL_INTERVAL).await;
    }
    let ours = format!("/namespaces/{}/", desk.namespace);
    let is_ours = move |call: &Call| is_write_of_status(call) && call.path.contains(&ours);
    let closings = faulty.proxy.inject(Stage::Before, Fault::Pass, is_ours);
    faulty.replica().start().unwrap();
    for number in 0..150 {
        let closed = desk.wait_for_state(&format!("c{number}"), State::Closed).await;
        assert_eq!(status(&closed).state_reason, Some(StateReason::CloseTimer));
        assert!(status(&closed).closed_time.unwrap() >= last, "when it was decided, not when it was due");
    }
    assert_eq!(closings.count(), 150, "two overdue timers make one write");
}

#[tokio::test]
async fn unassigned_timer_counts_from_first_sight_after_an_outage() {
    let faulty = exclusive_cluster().await;
    let (desk, _) = faulty.desk().await;
    let unassigned = json!({"contact": null, "participants": [], "timers": {"closeUnassignedAfter": "1h"}});
    desk.create("seen", unassigned).await.unwrap();
    desk.wait_for_condition("seen", ConditionType::Unassigned, ConditionStatus::True).await;
    faulty.replica().kill();
    // One that nobody has seen yet loses its participant, and to another one a participant comes and goes.
    desk.create("unseen", json!({"contact": null})).await.unwrap();
    desk.change("seen", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    let left = Clock.now();
    for name in ["unseen", "seen"] {
        desk.change(name, json!({"participants": [], "timers": {"closeUnassignedAfter": "1s"}})).await.unwrap();
    }
    faulty.replica().start().unwrap();
    for name in ["unseen", "seen"] {
        let closed = desk.wait_for_state(name, State::Closed).await;
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
async fn a_timer_whose_write_fails_is_honoured_as_soon_as_writes_succeed_again() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    for fate in [Fault::Answer(500), Fault::Cut, Fault::Answer(403)] {
        let failing = faulty.proxy.inject(Stage::Before, fate, closing(&desk, "alice"));
        desk.create("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
        failing.wait_for(1).await;
        drop(failing);
        desk.wait_for_state("alice", State::Closed).await;
        desk.delete("alice").await;
        desk.wait_until_free().await;
    }
    witness.show_rest().await;
}

#[tokio::test]
async fn a_duration_of_ten_years_is_a_deadline_like_any_other() {
    let faulty = exclusive_cluster().await;
    let (desk, _) = faulty.desk().await;
    let timers = json!({"inactiveAfter": "87599h", "closeAfter": "87600h", "closeUnassignedAfter": "87600h"});
    let created = desk.create("alice", json!({"timers": timers, "ttlAfterClosed": "87600h"})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let alice = desk.bound("alice").await;
    let deadlines = status(&alice).deadlines.clone().unwrap();
    assert_eq!(deadlines.close_time, Some(created.after(Duration::from_hours(87_600))));
    assert_eq!(deadlines.inactive_time, Some(created.after(Duration::from_hours(87_599))));
}

#[tokio::test]
async fn a_flood_of_reports_is_followed_once_a_second() {
    const REPORTS: usize = 400;
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    desk.create("alice", json!({"timers": {"closeAfter": "1h"}})).await.unwrap();
    desk.bound("alice").await;
    let writes = faulty.proxy.inject(Stage::Before, Fault::Pass, status_write(&desk, "alice"));
    let began = Instant::now();
    for _ in 0..REPORTS {
        desk.report_activity("alice", &Clock.now().to_string()).await.unwrap();
    }
    let last = Clock.now();
    desk.report_activity("alice", &last.to_string()).await.unwrap();
    desk.wait_for("alice", "up to date", |alice| status(alice).last_activity_time == Some(last)).await;
    // One at its beginning, and one a second after another.
    let allowed = usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
    assert!(writes.count() <= allowed, "{} writes for {REPORTS} reports, {allowed} are allowed", writes.count());
    witness.show_rest().await;
}

// ---- How little is written ----

#[tokio::test]
async fn a_whole_life_costs_five_writes_and_rest_none() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let recorder = Recorder::start(&faulty.cluster.control_plane);
    // A write that changes nothing leaves no trace in etcd, but it is a call.
    let (of_claim, of_status) = (claim_use(&desk), status_write(&desk, "alice"));
    let calls = faulty
        .proxy
        .inject(Stage::Before, Fault::Pass, move |call| is_write(call) && (of_claim(call) || of_status(call)));
    desk.create("alice", json!({"timers": {"closeAfter": "2s"}})).await.unwrap();
    desk.wait_for_state("alice", State::Closed).await;
    desk.wait_until_free().await;
    // What is told goes out beside the work.
    desk.wait_for_event("alice", "Closed").await;
    witness.show_rest().await;
    assert_eq!(calls.count(), 4, "the claim, two statuses, the release");
    drop(calls);

    let writes = faulty.proxy.inject(Stage::Before, Fault::Pass, is_write);
    // The Lease is the clock: some five seconds, in which the leader looks at its deadlines at least twice.
    faulty.proxy.inject(Stage::Before, Fault::Pass, |call| call.path.contains("/leases")).wait_for(20).await;
    assert_eq!(writes.count(), 0, "at rest nothing is written");

    let binding = desk.binding();
    let ours = recorder.news().await.into_iter().filter(|event| match event.kind {
        Kind::Conversation => event.namespace == desk.namespace,
        Kind::Claim => event.name == binding.as_str(),
    });
    let written: Vec<_> = ours.map(|event| (event.kind, event.change)).collect();
    let object = (Kind::Conversation, Change::Created);
    let (claim, release) = ((Kind::Claim, Change::Created), (Kind::Claim, Change::Deleted));
    let status = (Kind::Conversation, Change::Updated);
    // The webhook claims before the API server stores.
    assert_eq!(written, [claim, object, status, status, release]);
}

#[tokio::test]
async fn sixteen_writes_are_under_way_at_once_and_no_more() {
    let faulty = exclusive_cluster().await;
    let (desk, _) = faulty.desk().await;
    let mut writes = faulty.proxy.hold(Stage::Before, is_write_of_status);
    for number in 0..20 {
        desk.create(&format!("c{number}"), json!({"contact": null})).await.unwrap();
    }
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(writes.next().await);
    }
    // The Lease is the clock: two seconds, in which one more would have come.
    faulty.proxy.inject(Stage::Before, Fault::Pass, |call| call.path.contains("/leases")).wait_for(8).await;
    assert_eq!(writes.count(), 16);
    drop((held, writes));
    for number in 0..20 {
        desk.wait_for_condition(&format!("c{number}"), ConditionType::Ready, ConditionStatus::True).await;
    }
}

// ---- What people are told ----

async fn told_once_around(stage: Stage) {
    let faulty = exclusive_cluster().await;
    let (desk, _) = faulty.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    let close = async {
        desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    };
    kill_around(&faulty, stage, event(&desk, "Closed"), close).await;
    let told = desk.wait_for_event("alice", "Closed").await;
    // Another fact, told after the new leader has told again what it cannot know to have been told.
    desk.create("bob", json!({"participants": []})).await.unwrap();
    desk.wait_for_event("bob", "Unassigned").await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(desk.wait_for_event("alice", "Closed").await.len(), 1);
}

#[tokio::test]
async fn killed_before_a_fact_is_told_the_next_leader_tells_it() {
    told_once_around(Stage::Before).await;
}

#[tokio::test]
async fn killed_after_a_fact_was_told_the_next_leader_does_not_tell_it_twice() {
    told_once_around(Stage::After).await;
}

#[tokio::test]
async fn what_is_done_on_the_way_out_is_told_too() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let path = format!("/namespaces/{}/conversations/alice", desk.namespace);
    let mut deletion = faulty.proxy.hold(Stage::After, move |call| call.is("DELETE", &path));
    desk.create("alice", json!({"state": "Closed", "ttlAfterClosed": "1s"})).await.unwrap();
    // It is deleted, and the leader does not know yet.
    let answer = deletion.next().await;
    drop(deletion);
    let replica = faulty.replica();
    let goodbyes = || std::fs::read_to_string(replica.log()).unwrap().matches("SIGTERM: shutting down").count();
    let before = goodbyes();
    replica.terminate();
    while goodbyes() == before {
        sleep(POLL_INTERVAL).await;
    }
    answer.resolve(Fault::Pass);
    desk.wait_for_event("alice", "TTLExpired").await;
    assert!(replica.wait(TIMEOUT).expect("it ends").success());
    replica.start().unwrap();
    witness.show_rest().await;
}

#[tokio::test]
async fn an_api_server_that_takes_no_events_holds_nothing_up() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    // It neither takes nor refuses them.
    let held = faulty.proxy.hold(Stage::Before, event(&desk, "alice"));
    for _ in 0..20 {
        desk.create("alice", json!({"participants": []})).await.unwrap();
        desk.bound("alice").await;
        desk.delete("alice").await;
        desk.wait_until_free().await;
    }
    held.wait_for(1).await;
    drop(held);
    // It fails, and takes them later.
    let failing = faulty.proxy.inject(Stage::Before, Fault::Answer(500), event(&desk, "bob"));
    desk.create("bob", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    desk.wait_for_state("bob", State::Closed).await;
    desk.wait_until_free().await;
    failing.wait_for(1).await;
    drop(failing);
    desk.wait_for_event("bob", "Closed").await;
    witness.show_rest().await;
}

// ---- Lists, and what they hold ----

/// The leader asks for the list of a kind of ours by a stream, or by pages.
fn is_list(call: &Call, streamed: bool) -> bool {
    let kind = call.path.ends_with("/conversations") || call.path.ends_with("/addressbindings");
    kind && call.query.contains(if streamed { "sendInitialEvents=true" } else { "limit=" })
}

#[tokio::test]
async fn lists_are_streamed_and_fetched_by_pages_where_the_server_does_not_stream_them() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    faulty.replica().kill();
    let streamed = faulty.proxy.inject(Stage::Before, Fault::Pass, |call| is_list(call, true));
    let paged = faulty.proxy.inject(Stage::Before, Fault::Pass, |call| is_list(call, false));
    faulty.replica().start().unwrap();
    desk.change("alice", json!({"participants": []})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::True).await;
    assert_eq!((streamed.count(), paged.count()), (3, 0), "open, closed, claims");

    faulty.replica().kill();
    drop(streamed);
    let refused = faulty.proxy.inject(Stage::Before, Fault::Answer(422), |call| is_list(call, true));
    faulty.replica().start().unwrap();
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.wait_for_state("alice", State::Closed).await;
    desk.wait_until_free().await;
    paged.wait_for(3).await;
    assert_eq!(refused.count(), 3, "it is not asked again");
    witness.show_rest().await;
}

/// The warnings of the controller in `log`.
fn controller_warnings(log: &str) -> Vec<&str> {
    let is_one =
        |line: &&str| line.contains(r#""level":"WARN""#) && line.contains(r#""target":"switchboard::controller"#);
    log.lines().filter(is_one).collect()
}

#[tokio::test]
async fn fallback_to_pages_logs_no_warning_but_failed_watches_do() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let log = || std::fs::read_to_string(faulty.replica().log()).unwrap();

    // As Kubernetes 1.31 and 1.33 answer.
    faulty.replica().kill();
    let before = log().len();
    let unsupported = faulty.proxy.inject(Stage::Before, Fault::Answer(422), |call| is_list(call, true));
    faulty.replica().start().unwrap();
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    let fallback = log().split_off(before);
    let told = fallback.matches("the API server does not support streaming lists; fetching them in pages").count();
    assert_eq!(told, 3, "open, closed, claims: {fallback}");
    assert_eq!(controller_warnings(&fallback), [""; 0]);

    faulty.replica().kill();
    let before = log().len();
    // The same answer where there is nothing left to fall back to.
    let failing = faulty.proxy.inject(Stage::Before, Fault::Answer(422), |call| {
        let kind = call.path.ends_with("/conversations") || call.path.ends_with("/addressbindings");
        kind && call.query.contains("watch=true")
    });
    faulty.replica().start_without_waiting().unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while controller_warnings(&log()[before..]).len() < 3 {
        assert!(Instant::now() < deadline, "watches that fail are no warning: {}", &log()[before..]);
        sleep(POLL_INTERVAL).await;
    }
    drop((unsupported, failing));
    faulty.replica().wait_until_ready().unwrap();
    witness.show_rest().await;
}

/// Changes what the schema of conversations says of `spec.timers`, and returns what it said.
async fn change_schema_of_timers(faulty: &FaultCluster, timers: Value) -> Value {
    let crds = Api::<CustomResourceDefinition>::all(faulty.client().await);
    let mut crd = serde_json::to_value(crds.get("conversations.switchboard.dev").await.unwrap()).unwrap();
    let place = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/timers").unwrap();
    let before = std::mem::replace(place, timers);
    let crd = serde_json::from_value(crd).unwrap();
    crds.replace("conversations.switchboard.dev", &PostParams::default(), &crd).await.unwrap();
    before
}

/// Changes the spec whatever the client makes of it, or as if, and returns what kubectl complains of.
fn patch(
    control_plane: &ControlPlane,
    desk: &TestNamespace,
    name: &str,
    spec: &Value,
    dry_run: &str,
) -> Result<(), String> {
    let mut command = control_plane.kubectl();
    command.args(["patch", "conversation", name, "--namespace", &desk.namespace, "--type=merge", "--patch"]);
    let output = command.arg(json!({"spec": spec}).to_string()).arg(format!("--dry-run={dry_run}")).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

#[tokio::test]
async fn one_that_cannot_be_read_is_reported_and_stops_nothing_else() {
    let faulty = exclusive_cluster().await;
    let (desk, _) = faulty.desk().await;
    let (other, mut other_witness) = faulty.desk().await;
    let control_plane = &faulty.cluster.control_plane;
    desk.create("alice", json!({})).await.unwrap();
    other.create("bob", json!({})).await.unwrap();
    desk.bound("alice").await;
    other.bound("bob").await;

    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let timers = change_schema_of_timers(&faulty, anything).await;
    let (unreadable, deadline) = (json!({"timers": {"closeAfter": "tomorrow"}}), Instant::now() + TIMEOUT);
    while let Err(complaint) = patch(control_plane, &desk, "alice", &unreadable, "none") {
        assert!(Instant::now() < deadline, "the schema stays as it was: {complaint}");
        sleep(POLL_INTERVAL).await;
    }
    change_schema_of_timers(&faulty, timers).await;
    // The API server takes it up, and its storage anew, a moment later.
    while !patch(control_plane, &other, "bob", &unreadable, "server")
        .is_err_and(|why| why.contains("must be a duration"))
    {
        assert!(Instant::now() < deadline, "the schema is not what it was");
        sleep(POLL_INTERVAL).await;
    }
    let told = desk.wait_for_event("alice", "Unreadable").await;
    assert_eq!(told[0].type_.as_deref(), Some("Warning"));
    assert!(told[0].note.as_ref().unwrap().contains("spec: must be a duration"), "{told:?}");
    assert!(metrics(faulty.replica()).await.contains("switchboard_unreadable_conversations 1\n"));

    // Neither the watch of the others nor a list that begins with it stops.
    other.change("bob", json!({"participants": []})).await.unwrap();
    other.wait_for_condition("bob", ConditionType::Unassigned, ConditionStatus::True).await;
    faulty.replica().kill();
    faulty.replica().start().unwrap();
    other.change("bob", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    other.wait_for_condition("bob", ConditionType::Unassigned, ConditionStatus::False).await;
    other_witness.show_rest().await;
    assert!(desk.claim().await.is_some(), "nobody knows whether it still holds its binding");
    let refusal = desk.create("carol", json!({})).await.unwrap_err();
    assert_eq!(refusal.code, 503, "and so nobody else gets it: {refusal:?}");

    patch(control_plane, &desk, "alice", &json!({"timers": null}), "none").expect("it can be corrected");
    let corrected = |alice: &Conversation| status(alice).observed_generation == alice.metadata.generation;
    let alice = desk.wait_for("alice", "observed", corrected).await;
    assert!(metrics(faulty.replica()).await.contains("switchboard_unreadable_conversations 0\n"));
    assert_eq!(condition(&alice, ConditionType::Bound).map(|(status, _)| status), Some(ConditionStatus::True));
    desk.conversations().delete("alice", &DeleteParams::default()).await.unwrap();
    desk.wait_until_free().await;
    let log = std::fs::read_to_string(faulty.replica().log()).unwrap();
    assert!(log.contains("cannot be parsed and is not reconciled"), "it is in the log");
    assert!(!log.contains(&desk.contact), "and no address of a contact is");
}
