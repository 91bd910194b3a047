//! Conversations that wait for their binding (`onConflict: Wait`), and those that are being deleted. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace, metrics};
use crate::common::fault_cluster::{
    FaultCluster, HistoryChecker, POLL_INTERVAL, claim_use, exclusive_cluster, shared, waiting, waits,
};
use crate::common::proxy::{Call, Fault, Stage};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::sync::Arc;
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType, State};
use tokio::time::{Instant, sleep};

async fn namespace() -> (Arc<FaultCluster>, TestNamespace, HistoryChecker) {
    let cluster = shared().await;
    let (namespace, checker) = cluster.checked_namespace().await;
    (cluster, namespace, checker)
}

/// Adds a finalizer, which keeps the object after its deletion.
async fn keep(namespace: &TestNamespace, name: &str, finalizers: Value) {
    let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    namespace.conversations().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn waiting_conversation_is_bound_when_the_holder_closes() {
    let (_cluster, namespace, mut checker) = namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    namespace.bound("alice").await;
    let timers = json!({"inactiveAfter": "1s", "closeAfter": "2s"});
    namespace.create("bob", waits(json!({"timers": timers}))).await.expect("it is stored without its binding");
    let bob = waiting(&namespace, "bob").await;
    let status = bob.status.clone().unwrap();
    assert_eq!((status.state, status.deadlines), (Some(State::Active), None), "no timer runs");
    assert!(status.conditions.iter().all(|condition| condition.type_ != ConditionType::Stalled));
    let ready = status.conditions.iter().find(|condition| condition.type_ == ConditionType::Ready).unwrap();
    assert_eq!((ready.status, ready.reason), (ConditionStatus::False, ConditionReason::WaitingForBinding));
    assert!(ready.message.contains(namespace.binding().as_str()) && !ready.message.contains("alice"), "{ready:?}");
    checker.wait_until_at_rest().await;
    // The timers are long over, counted from the creation.
    let alice = namespace.change("alice", json!({"timers": {"closeAfter": "3s"}})).await.unwrap();
    assert_eq!(alice.spec.state, None);
    let claim = namespace.claim().await.unwrap().metadata.uid;
    let bob = namespace.bound("bob").await.status.unwrap();
    assert!(bob.last_activity_time.is_some() && bob.deadlines.is_some(), "its timers start now: {bob:?}");
    assert_eq!(bob.state, Some(State::Active));
    assert_eq!(namespace.claim().await.unwrap().metadata.uid, claim, "the claim was handed over in one write");
    namespace.wait_for_event("bob", "Bound").await;
    namespace.wait_for_state("bob", State::Closed).await;
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn oldest_waiting_conversation_gets_the_binding_first() {
    let (_cluster, namespace, mut checker) = namespace().await;
    namespace.create("holder", json!({})).await.unwrap();
    // Within a second, the name decides.
    let names = ["waiting-1", "waiting-2", "waiting-3"];
    for name in names {
        namespace.create(name, waits(json!({}))).await.unwrap();
        waiting(&namespace, name).await;
    }
    for (holder, how, next) in [
        ("holder", "close", names[0]),
        (names[0], "removal of the contact", names[1]),
        (names[1], "deletion", names[2]),
    ] {
        match how {
            "close" => drop(namespace.change(holder, json!({"state": "Closed"})).await.unwrap()),
            "removal of the contact" => drop(namespace.change(holder, json!({"contact": null})).await.unwrap()),
            _ => namespace.delete(holder).await,
        }
        namespace.bound(next).await;
        assert_eq!(namespace.held_by().await.as_deref(), Some(next), "after {how} of {holder}");
        checker.wait_until_at_rest().await;
    }
}

#[tokio::test]
async fn waiting_create_claims_a_free_binding_at_once() {
    let (_cluster, namespace, mut checker) = namespace().await;
    namespace.create("alice", waits(json!({}))).await.unwrap();
    assert_eq!(namespace.held_by().await.as_deref(), Some("alice"));
    let refusal = namespace.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    let refusal = namespace.create("alice", waits(json!({}))).await.unwrap_err();
    assert_eq!(refusal.reason, "AlreadyExists", "a name that is taken stays a 409");
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn waiting_create_is_stored_while_claims_cannot_be_reached() {
    let (cluster, namespace, mut checker) = namespace().await;
    let refused = cluster.proxy.inject(Stage::Before, Fault::Answer(500), claim_use(&namespace));
    namespace.create("alice", waits(json!({}))).await.expect("it is stored and claims nothing");
    assert_eq!(namespace.claim().await, None);
    drop(refused);
    namespace.bound("alice").await;
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn dry_run_of_a_waiting_create_is_allowed_and_writes_nothing() {
    let (_cluster, namespace, mut checker) = namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    let claim = namespace.claim().await;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let object = namespace.conversation("bob", waits(json!({})));
    namespace.create_object(&object, &dry_run).await.expect("it would wait");
    assert_eq!(namespace.claim().await, claim);
    checker.wait_until_at_rest().await;
}

/// The number of waiting conversations that the replica reports.
async fn waiting_count(cluster: &FaultCluster) -> usize {
    let metrics = metrics(cluster.replica()).await;
    let count = metrics.lines().find_map(|line| line.strip_prefix("switchboard_waiting_conversations "));
    count.unwrap().parse().unwrap()
}

async fn wait_until_waiting(cluster: &FaultCluster, at_least: usize) {
    let deadline = Instant::now() + TIMEOUT;
    while waiting_count(cluster).await < at_least {
        assert!(Instant::now() < deadline, "{} wait, not {at_least}", waiting_count(cluster).await);
        sleep(POLL_INTERVAL).await;
    }
}

/// The number of calls that the operator makes for one hand-over does not depend on how many wait.
#[tokio::test]
async fn hand_over_costs_the_same_however_many_wait() {
    const MANY: usize = 200;
    let cluster = exclusive_cluster().await;
    let calls_of_a_hand_over = async |count: usize| {
        let (namespace, mut checker) = cluster.checked_namespace().await;
        namespace.create("holder", json!({})).await.unwrap();
        for number in 0..count {
            namespace.create(&format!("waiting-{number:03}"), waits(json!({}))).await.unwrap();
        }
        for number in 0..count {
            waiting(&namespace, &format!("waiting-{number:03}")).await;
        }
        checker.wait_until_at_rest().await;
        // Other tests on this cluster may have left more.
        wait_until_waiting(&cluster, count).await;
        let is_of_namespace = {
            let (place, binding) = (format!("/namespaces/{}/", namespace.namespace), namespace.binding().to_string());
            move |call: &Call| call.path.contains(&place) || call.path.contains(&binding)
        };
        let calls = cluster.proxy.inject(Stage::Before, Fault::Pass, is_of_namespace);
        namespace.change("holder", json!({"state": "Closed"})).await.unwrap();
        namespace.bound("waiting-000").await;
        checker.wait_until_at_rest().await;
        calls.count()
    };
    let few = calls_of_a_hand_over(2).await;
    let many = calls_of_a_hand_over(MANY).await;
    println!("calls of a hand-over: {few} where 2 wait, {many} where {MANY} wait");
    assert!(many <= 2 * few, "{many} calls where {MANY} wait, {few} where 2 do");
}

#[tokio::test]
async fn conversation_being_deleted_frees_its_binding_at_once() {
    let (_cluster, namespace, mut checker) = namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    namespace.bound("alice").await;
    keep(&namespace, "alice", json!(["example.com/archive"])).await;
    namespace.delete("alice").await;
    namespace.create("bob", json!({})).await.expect("a deletion cannot be taken back");
    let (alice, reason) = namespace.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::Deleting, "{alice:?}");
    assert!(alice.metadata.deletion_timestamp.is_some());
    namespace.bound("bob").await;
    checker.wait_until_at_rest().await;
    keep(&namespace, "alice", json!([])).await;
    checker.wait_until_at_rest().await;
    assert_eq!(namespace.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn expiry_event_says_that_a_finalizer_keeps_the_object() {
    let (_cluster, namespace, mut checker) = namespace().await;
    namespace.create("alice", json!({"state": "Closed"})).await.unwrap();
    keep(&namespace, "alice", json!(["example.com/archive"])).await;
    namespace.change("alice", json!({"ttlAfterClosed": "1s"})).await.unwrap();
    let events = namespace.wait_for_event("alice", "TTLExpired").await;
    let note = events.iter().find(|event| event.reason.as_deref() == Some("TTLExpired")).unwrap().note.clone();
    assert!(note.as_ref().is_some_and(|note| note.contains("example.com/archive")), "{note:?}");
    keep(&namespace, "alice", json!([])).await;
    checker.wait_until_at_rest().await;
}
