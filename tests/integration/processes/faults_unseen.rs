//! Conversations that no webhook saw, because none was installed when they were created. The operator finds them, and binds them once
//! their binding is free. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace};
use crate::common::fault_cluster::{
    ExclusiveCluster, FaultCluster, HistoryChecker, POLL_INTERVAL, assert_handed_over, claim_create, create_waiting,
    exclusive_cluster, kill_around, waiting, waits,
};
use crate::common::oracle::Oracle;
use crate::common::proxy::Stage;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType};
use tokio::time::{Instant, sleep};

/// A namespace whose conversations named `unseen…` are created while no webhook is installed.
async fn unseen_namespace(cluster: &FaultCluster) -> (TestNamespace, HistoryChecker) {
    let (ns, _) = cluster.checked_namespace().await;
    let checker = cluster
        .checker(&ns, Oracle::default().unseen_by_webhooks(|conversation| conversation.name.starts_with("unseen")));
    (ns, checker)
}

/// Creates conversations with these names and changes, in this order, while no webhook is installed.
pub(super) async fn create_unseen(cluster: &FaultCluster, ns: &TestNamespace, conversations: &[(&str, Value)]) {
    without_webhook(cluster, async || {
        for (name, changes) in conversations {
            ns.create(name, changes.clone()).await.unwrap();
        }
    })
    .await;
}

/// Runs `work` while no webhook is installed.
pub(super) async fn without_webhook(cluster: &FaultCluster, work: impl AsyncFnOnce()) {
    // Dry runs for the binding of this namespace show whether the API server calls the webhook.
    let (guard, _) = cluster.checked_namespace().await;
    guard.create("guard", json!({})).await.unwrap();
    let configurations = Api::<ValidatingWebhookConfiguration>::all(guard.client.clone());
    let mut configuration = configurations.get("switchboard").await.unwrap();
    configurations.delete("switchboard", &DeleteParams::default()).await.unwrap();
    // The API server still calls the webhook for a moment.
    wait_until_webhook_is_called(&guard, false).await;
    work().await;
    configuration.metadata.resource_version = None;
    configuration.metadata.uid = None;
    configurations.create(&PostParams::default(), &configuration).await.unwrap();
}

/// Waits until the API server calls the webhook, or no longer does. A dry run for a held binding is refused only by the webhook.
async fn wait_until_webhook_is_called(ns: &TestNamespace, is_called: bool) {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let probe = ns.conversation("probe", json!({}));
    let deadline = Instant::now() + TIMEOUT;
    while ns.create_object(&probe, &dry_run).await.is_ok() == is_called {
        assert!(Instant::now() < deadline, "is_called does not become {is_called}");
        sleep(POLL_INTERVAL).await;
    }
}

/// Waits until the conversation has `Bound=False` because another one holds its binding, and returns the message of the condition.
async fn wait_until_not_bound(ns: &TestNamespace, name: &str) -> String {
    let (conversation, reason) = ns.wait_for_condition(name, ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::AddressAlreadyBound);
    let conditions = conversation.status.unwrap().conditions;
    conditions.into_iter().find(|condition| condition.type_ == ConditionType::Bound).unwrap().message
}

/// A namespace in which `alice` is bound and the conversation `unseen`, for the same binding, is not.
async fn unseen_conversation_beside_bound_alice() -> (ExclusiveCluster, TestNamespace, HistoryChecker) {
    let cluster = exclusive_cluster().await;
    let (ns, checker) = unseen_namespace(&cluster).await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    create_unseen(&cluster, &ns, &[("unseen", json!({}))]).await;
    wait_until_not_bound(&ns, "unseen").await;
    (cluster, ns, checker)
}

/// The two names in the order in which they get the binding: the older one first, or the lower UID if both were created in the same
/// second.
async fn in_order<'a>(ns: &TestNamespace, names: [&'a str; 2]) -> [&'a str; 2] {
    let mut ages = Vec::new();
    for name in names {
        let metadata = ns.conversations().get(name).await.unwrap().metadata;
        ages.push((metadata.creation_timestamp.unwrap().0, name));
    }
    ages.sort();
    [ages[0].1, ages[1].1]
}

#[tokio::test]
async fn unseen_conversation_is_found_and_bound() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = unseen_namespace(&cluster).await;
    create_unseen(&cluster, &ns, &[("unseen", json!({}))]).await;
    wait_until_webhook_is_called(&ns, true).await;
    let unseen = ns.bound("unseen").await;
    checker.wait_until_at_rest().await;
    let claim = ns.claim().await.unwrap();
    assert_eq!(Some(&claim.spec.admissions[0].uid), unseen.metadata.uid.as_ref());
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    ns.change("unseen", json!({"state": "Closed"})).await.unwrap();
    ns.create("bob", json!({})).await.expect("a close frees the binding at once");
    create_waiting(&ns).await;
    assert_handed_over(&ns, &mut checker, "bob").await;
}

#[tokio::test]
async fn older_of_two_unseen_conversations_is_bound_first() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = unseen_namespace(&cluster).await;
    // The leader sees neither of them before its restart, and then both in one list.
    cluster.proxy.freeze_watches(true);
    let unseen = [("unseen-1", json!({})), ("unseen-2", json!({})), ("unseen-3", waits(json!({})))];
    create_unseen(&cluster, &ns, &unseen).await;
    cluster.replica().kill();
    cluster.proxy.freeze_watches(false);
    cluster.replica().start().unwrap();
    let [older, younger] = in_order(&ns, ["unseen-1", "unseen-2"]).await;
    ns.bound(older).await;
    let message = wait_until_not_bound(&ns, younger).await;
    assert!(message.starts_with("48031: ") && message.contains(ns.binding().as_str()), "{message}");
    waiting(&ns, "unseen-3").await;
    checker.wait_until_at_rest().await;
    assert_eq!(ns.held_by().await.as_deref(), Some(older));
    ns.change(older, json!({"state": "Closed"})).await.unwrap();
    ns.bound(younger).await;
    checker.wait_until_at_rest().await;
    assert_eq!(ns.held_by().await.as_deref(), Some(younger));
    ns.change(younger, json!({"state": "Closed"})).await.unwrap();
    ns.bound("unseen-3").await;
    create_waiting(&ns).await;
    assert_handed_over(&ns, &mut checker, "unseen-3").await;
}

#[tokio::test]
async fn event_reports_an_unseen_conversation_without_its_binding() {
    let (_cluster, ns, mut checker) = unseen_conversation_beside_bound_alice().await;
    let events = ns.wait_for_event("unseen", "AddressAlreadyBound").await;
    let event = events.iter().find(|event| event.reason.as_deref() == Some("AddressAlreadyBound")).unwrap();
    let note = event.note.as_deref().unwrap_or_default();
    assert!(note.contains("48031") && !note.contains(&ns.contact), "{note}");
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn unseen_conversation_does_not_take_the_holders_binding() {
    let (_cluster, ns, mut checker) = unseen_conversation_beside_bound_alice().await;
    checker.wait_until_at_rest().await;
    assert_eq!(ns.held_by().await.as_deref(), Some("alice"));
    create_waiting(&ns).await;
    ns.delete("alice").await;
    // It is older than those that wait.
    ns.bound("unseen").await;
    assert_handed_over(&ns, &mut checker, "unseen").await;
}

async fn kill_around_claim_for_unseen_conversation(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = unseen_namespace(&cluster).await;
    let unseen = [("unseen", json!({})), ("unseen-waiting", waits(json!({})))];
    kill_around(&cluster, stage, claim_create(&ns), create_unseen(&cluster, &ns, &unseen)).await;
    wait_until_webhook_is_called(&ns, true).await;
    ns.bound("unseen").await;
    waiting(&ns, "unseen-waiting").await;
    checker.wait_until_at_rest().await;
    assert_eq!(ns.claim().await.unwrap().spec.admissions.len(), 1);
    create_waiting(&ns).await;
    ns.change("unseen", json!({"state": "Closed"})).await.unwrap();
    assert_handed_over(&ns, &mut checker, "unseen-waiting").await;
}

#[tokio::test]
async fn kill_before_the_leaders_claim_delays_the_claim() {
    kill_around_claim_for_unseen_conversation(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_the_leaders_claim_keeps_the_claim() {
    kill_around_claim_for_unseen_conversation(Stage::After).await;
}
