//! Claims about conversations that no webhook saw, because none was installed when they were made: they are found, and bound when
//! their binding is free. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace};
use crate::common::fault_cluster::{
    FaultCluster, HistoryChecker, POLL_INTERVAL, claim_create, exclusive_cluster, kill_around,
};
use crate::common::oracle::Oracle;
use crate::common::proxy::Stage;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType};
use tokio::time::{Instant, sleep};

/// A desk all of whose conversations may have been made while no webhook was installed.
async fn desk_of(faulty: &FaultCluster) -> (TestNamespace, HistoryChecker) {
    let (desk, _) = faulty.desk().await;
    let witness = faulty.witness(&desk, Oracle::default().unseen_by_webhooks(|place| place.name.starts_with("unseen")));
    (desk, witness)
}

/// Creates these, in this order, while no webhook is installed.
pub(super) async fn create_unseen(faulty: &FaultCluster, desk: &TestNamespace, names: &[&str]) {
    // What it holds tells whether the webhook is asked.
    let (guard, _) = faulty.desk().await;
    guard.create("guard", json!({})).await.unwrap();
    let configurations = Api::<ValidatingWebhookConfiguration>::all(desk.client.clone());
    let mut configuration = configurations.get("switchboard").await.unwrap();
    configurations.delete("switchboard", &DeleteParams::default()).await.unwrap();
    // The API server goes on asking for a moment.
    wait_until_the_webhook_is_asked(&guard, false).await;
    for name in names {
        desk.create(name, json!({})).await.unwrap();
    }
    configuration.metadata.resource_version = None;
    configuration.metadata.uid = None;
    configurations.create(&PostParams::default(), &configuration).await.unwrap();
}

/// A dry run of the binding that is held is refused if and only if a webhook is asked.
async fn wait_until_the_webhook_is_asked(desk: &TestNamespace, is_asked: bool) {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let probe = desk.conversation("probe", json!({}));
    let deadline = Instant::now() + TIMEOUT;
    while desk.create_object(&probe, &dry_run).await.is_ok() == is_asked {
        assert!(Instant::now() < deadline, "it stays as it was");
        sleep(POLL_INTERVAL).await;
    }
}

/// Waits until the conversation is told that another one holds its binding, and returns what it is told.
async fn not_bound(desk: &TestNamespace, name: &str) -> String {
    let (conversation, reason) = desk.wait_for_condition(name, ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::AddressAlreadyBound);
    let conditions = conversation.status.unwrap().conditions;
    conditions.into_iter().find(|condition| condition.type_ == ConditionType::Bound).unwrap().message
}

/// Waits for an event of that reason about the conversation, and returns its note.
async fn event(desk: &TestNamespace, name: &str, reason: &str) -> String {
    let events = Api::<Event>::namespaced(desk.client.clone(), &desk.namespace);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let is_it = |event: &&Event| {
            event.reason.as_deref() == Some(reason)
                && event.regarding.as_ref().is_some_and(|regarding| regarding.name.as_deref() == Some(name))
        };
        if let Some(event) = all.iter().find(is_it) {
            return event.note.clone().unwrap_or_default();
        }
        assert!(Instant::now() < deadline, "no event {reason} of {name} among {all:?}");
        sleep(POLL_INTERVAL).await;
    }
}

/// Those two in the order in which they get the binding: the older one first, and of two of the same second the one with the lower UID.
async fn in_order<'a>(desk: &TestNamespace, names: [&'a str; 2]) -> [&'a str; 2] {
    let mut ages = Vec::new();
    for name in names {
        let metadata = desk.conversations().get(name).await.unwrap().metadata;
        ages.push((metadata.creation_timestamp.unwrap().0, metadata.uid.unwrap(), name));
    }
    ages.sort();
    [ages[0].2, ages[1].2]
}

#[tokio::test]
async fn a_conversation_that_no_webhook_saw_is_found_and_bound() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = desk_of(&faulty).await;
    create_unseen(&faulty, &desk, &["unseen"]).await;
    wait_until_the_webhook_is_asked(&desk, true).await;
    let unseen = desk.bound("unseen").await;
    witness.show_rest().await;
    let claim = desk.claim().await.unwrap();
    assert_eq!(Some(&claim.spec.admissions[0].uid), unseen.metadata.uid.as_ref());
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    desk.change("unseen", json!({"state": "Closed"})).await.unwrap();
    desk.create("bob", json!({})).await.expect("a close frees the binding at once");
    witness.show_rest().await;
}

#[tokio::test]
async fn of_two_for_one_binding_the_older_is_bound_and_the_other_as_soon_as_it_is_free() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = desk_of(&faulty).await;
    // The leader sees neither before it begins anew, and then both in one list.
    faulty.proxy.freeze_watches(true);
    create_unseen(&faulty, &desk, &["unseen-1", "unseen-2"]).await;
    faulty.replica().kill();
    faulty.proxy.freeze_watches(false);
    faulty.replica().start().unwrap();
    let [older, younger] = in_order(&desk, ["unseen-1", "unseen-2"]).await;
    desk.bound(older).await;
    let told = not_bound(&desk, younger).await;
    assert!(told.starts_with("48031: ") && told.contains(&format!("{}/{older}", desk.namespace)), "{told}");
    witness.show_rest().await;
    assert_eq!(desk.held_by().await.as_deref(), Some(older));
    desk.change(older, json!({"state": "Closed"})).await.unwrap();
    desk.bound(younger).await;
    witness.show_rest().await;
    assert_eq!(desk.held_by().await.as_deref(), Some(younger));
}

#[tokio::test]
async fn who_finds_the_binding_held_is_told_so_in_an_event() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = desk_of(&faulty).await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    create_unseen(&faulty, &desk, &["unseen"]).await;
    not_bound(&desk, "unseen").await;
    let note = event(&desk, "unseen", "AddressAlreadyBound").await;
    assert!(note.contains("48031") && !note.contains(&desk.contact), "{note}");
    witness.show_rest().await;
}

#[tokio::test]
async fn one_that_no_webhook_saw_does_not_take_the_binding_from_its_holder() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = desk_of(&faulty).await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    create_unseen(&faulty, &desk, &["unseen"]).await;
    not_bound(&desk, "unseen").await;
    witness.show_rest().await;
    assert_eq!(desk.held_by().await.as_deref(), Some("alice"));
    desk.delete("alice").await;
    desk.bound("unseen").await;
    witness.show_rest().await;
}

async fn killed_around_the_claim_for_one_that_no_webhook_saw(stage: Stage) {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = desk_of(&faulty).await;
    kill_around(&faulty, stage, claim_create(&desk), create_unseen(&faulty, &desk, &["unseen"])).await;
    wait_until_the_webhook_is_asked(&desk, true).await;
    desk.bound("unseen").await;
    witness.show_rest().await;
    assert_eq!(desk.claim().await.unwrap().spec.admissions.len(), 1);
}

#[tokio::test]
async fn killed_before_the_leader_claims_a_binding_it_does_so_after_the_restart() {
    killed_around_the_claim_for_one_that_no_webhook_saw(Stage::Before).await;
}

#[tokio::test]
async fn killed_after_the_leader_claimed_a_binding_it_stays_claimed() {
    killed_around_the_claim_for_one_that_no_webhook_saw(Stage::After).await;
}
