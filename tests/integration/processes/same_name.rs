//! Creates of one name at once or again: none leaves an undecided UID behind, and a 503 says what it waits for. Tier: processes.

use crate::common::cluster::TestNamespace;
use crate::common::fault_cluster::{
    FaultCluster, GRACE_PERIOD, HistoryChecker, create_denied, create_with_retries, is_retryable, shared,
};
use futures::future::join_all;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use switchboard::api::Conversation;
use tokio::time::sleep;

/// The number of creates of one name.
const CREATES: usize = 50;
/// The number of applies of one name. The API server of these tests gives a request up after three seconds, in which more of them
/// cannot be answered on a busy machine.
const APPLIES: usize = 10;

async fn namespace() -> (Arc<FaultCluster>, TestNamespace, HistoryChecker) {
    let cluster = shared().await;
    let (namespace, checker) = cluster.checked_namespace().await;
    (cluster, namespace, checker)
}

/// The UIDs that the claim records.
async fn recorded(namespace: &TestNamespace) -> Vec<String> {
    let admissions = namespace.claim().await.map(|claim| claim.spec.admissions).unwrap_or_default();
    admissions.into_iter().map(|admission| admission.uid).collect()
}

async fn alice_gives_way_at_once(namespace: &TestNamespace, checker: &mut HistoryChecker) {
    let alice = namespace.conversations().get("alice").await.unwrap();
    assert_eq!(recorded(namespace).await, [alice.metadata.uid.unwrap()], "no other UID was left behind");
    namespace.change("alice", json!({"state": "Closed"})).await.unwrap();
    namespace.create("bob", json!({})).await.expect("the binding is free at once");
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn concurrent_creates_of_one_name_leave_no_uid_behind() {
    let (_cluster, namespace, mut checker) = namespace().await;
    let outcomes = join_all((0..CREATES).map(|_| namespace.create("alice", json!({})))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    for refusal in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(refusal.reason == "AlreadyExists" || is_retryable(refusal), "{refusal:?}");
    }
    alice_gives_way_at_once(&namespace, &mut checker).await;
}

#[tokio::test]
async fn concurrent_applies_of_one_name_leave_no_uid_behind() {
    let (_cluster, namespace, mut checker) = namespace().await;
    let apply = async |number: usize| {
        let object: Conversation = namespace.conversation("alice", json!({}));
        let parameters = PatchParams::apply(&format!("client-{number}")).force();
        loop {
            match namespace.conversations().patch("alice", &parameters, &Patch::Apply(&object)).await {
                Ok(stored) => return stored.metadata.uid.unwrap(),
                Err(kube::Error::Api(status)) if is_retryable(&status) => {
                    let seconds = status.details.map_or(1, |details| details.retry_after_seconds);
                    sleep(Duration::from_secs(seconds.into())).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    let uids = join_all((0..APPLIES).map(apply)).await;
    assert!(uids.iter().all(|uid| *uid == uids[0]), "each created or updated the same object");
    alice_gives_way_at_once(&namespace, &mut checker).await;
}

#[tokio::test]
async fn repeated_create_of_a_closed_name_keeps_the_binding_free() {
    let (_cluster, namespace, mut checker) = namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    namespace.change("alice", json!({"state": "Closed"})).await.unwrap();
    namespace.wait_until_free().await;
    for _ in 0..5 {
        let refusal = namespace.create("alice", json!({})).await.unwrap_err();
        assert_eq!(refusal.reason, "AlreadyExists", "{refusal:?}");
        assert_eq!(namespace.claim().await, None, "nothing was claimed for it");
    }
    namespace.create("bob", json!({})).await.expect("the binding is free");
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn unavailable_answer_says_what_it_waits_for_and_until_when() {
    let (cluster, namespace, mut checker) = namespace().await;
    let _other = cluster.deny_some(&namespace).await;
    create_denied(&namespace, "alice").await;
    let refusal = namespace.create("bob", json!({})).await.unwrap_err();
    assert!(is_retryable(&refusal), "{refusal:?}");
    let name = format!("Conversation {}/alice", namespace.namespace);
    let claim = namespace.claim().await.unwrap();
    let until = claim.spec.admissions[0].time.after(GRACE_PERIOD);
    for part in [name, format!("released after {until}")] {
        assert!(refusal.message.contains(&part), "{part} is missing in {}", refusal.message);
    }
    create_with_retries(&namespace, "bob", json!({})).await;
    checker.wait_until_at_rest().await;
}
