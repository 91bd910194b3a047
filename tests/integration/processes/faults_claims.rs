//! Manual changes of objects that only the operator may change. The chart's policies refuse them. If somebody has removed the policies,
//! the operator repairs the objects, and no two conversations have `Bound=True` at the same time. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace, condition};
use crate::common::fault_cluster::{
    FaultCluster, HistoryChecker, POLL_INTERVAL, WAITING, assert_handed_over, create_waiting, create_with_retries,
    shared,
};
use crate::common::oracle::Oracle;
use crate::common::proxy::{Fault, Stage};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use switchboard::api::{AddressBinding, ConditionReason, ConditionStatus, ConditionType, Conversation};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

/// A cluster without the policies that protect claims and statuses.
async fn unguarded_cluster() -> &'static FaultCluster {
    static UNGUARDED: OnceCell<FaultCluster> = OnceCell::const_new();
    UNGUARDED
        .get_or_init(|| async {
            let cluster = FaultCluster::start(1).await;
            let policies = Api::<ValidatingAdmissionPolicyBinding>::all(cluster.client().await);
            for policy in ["switchboard-claims", "switchboard-status"] {
                policies.delete(policy, &DeleteParams::default()).await.unwrap();
            }
            wait_until_policies_are_removed(&cluster).await;
            cluster
        })
        .await
}

/// Waits until the API server no longer enforces the policies. It notices their removal a moment later.
async fn wait_until_policies_are_removed(cluster: &FaultCluster) {
    let (ns, _) = cluster.checked_namespace().await;
    ns.create("probe", json!({})).await.unwrap();
    ns.bound("probe").await;
    let dry_run = DeleteParams { dry_run: true, ..DeleteParams::default() };
    let deadline = Instant::now() + TIMEOUT;
    while ns.claims().delete(ns.binding().as_str(), &dry_run).await.is_err()
        || patch_status(&ns, "probe", json!({"closedTime": "2020-01-01T00:00:00Z"}), true).await.is_err()
    {
        assert!(Instant::now() < deadline, "the API server still enforces the policies");
        sleep(POLL_INTERVAL).await;
    }
}

async fn unguarded_namespace() -> (&'static FaultCluster, TestNamespace, HistoryChecker) {
    let cluster = unguarded_cluster().await;
    let (ns, _) = cluster.checked_namespace().await;
    let checker = cluster.checker(&ns, Oracle::default().with_claims_changed_by_hand());
    (cluster, ns, checker)
}

/// An unguarded namespace in which `alice` is bound and others wait for the binding.
async fn unguarded_alice() -> (&'static FaultCluster, TestNamespace, HistoryChecker, Conversation) {
    let (cluster, ns, checker) = unguarded_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    let alice = ns.bound("alice").await;
    create_waiting(&ns).await;
    (cluster, ns, checker, alice)
}

async fn patch_status(ns: &TestNamespace, name: &str, status: Value, dry_run: bool) -> kube::Result<Conversation> {
    let parameters = PatchParams { dry_run, ..PatchParams::default() };
    ns.conversations().patch_status(name, &parameters, &Patch::Merge(json!({"status": status}))).await
}

async fn edit_claim(ns: &TestNamespace, spec: Value) -> kube::Result<AddressBinding> {
    let patch = Patch::Merge(json!({"spec": spec}));
    ns.claims().patch(ns.binding().as_str(), &PatchParams::default(), &patch).await
}

fn assert_forbidden<T: std::fmt::Debug>(result: kube::Result<T>, policy: &str) {
    let status = match result {
        Err(kube::Error::Api(status)) => status,
        other => panic!("{other:?}"),
    };
    assert!(status.code == 403 && status.message.contains(policy), "{status:?}");
}

#[tokio::test]
async fn administrator_cannot_create_change_or_delete_a_claim() {
    let (ns, mut checker) = shared().await.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    let before = ns.claim().await.unwrap();
    let name = ns.binding();
    assert_forbidden(ns.claims().delete(name.as_str(), &DeleteParams::default()).await, "switchboard-claims");
    let all = ns.claims().delete_collection(&DeleteParams::default(), &kube::api::ListParams::default()).await;
    assert_forbidden(all, "switchboard-claims");
    let other_holder = json!({"conversationRef": {"name": "mallory"}});
    assert_forbidden(edit_claim(&ns, other_holder).await, "switchboard-claims");
    let mut forged = AddressBinding::new("forged", before.spec.clone());
    forged.metadata.labels = None;
    assert_forbidden(ns.claims().create(&PostParams::default(), &forged).await, "switchboard-claims");
    assert_eq!(ns.claim().await.unwrap(), before);
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn administrator_cannot_clear_or_forge_a_status() {
    let (ns, mut checker) = shared().await.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    let before = ns.bound("alice").await;
    for status in [json!({"conditions": []}), json!({"state": "Closed"}), json!({"addressBindingName": null})] {
        assert_forbidden(patch_status(&ns, "alice", status, false).await, "switchboard-status");
    }
    assert_eq!(ns.conversations().get("alice").await.unwrap().status, before.status);
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn deleted_claim_is_recreated_for_its_holder() {
    let (_cluster, ns, mut checker, alice) = unguarded_alice().await;
    ns.claims().delete(ns.binding().as_str(), &DeleteParams::default()).await.unwrap();
    checker.wait_until_at_rest().await;
    let claim = ns.claim().await.unwrap();
    assert_eq!(claim.spec.conversation_ref.name, "alice");
    assert_eq!(Some(&claim.spec.admissions[0].uid), alice.metadata.uid.as_ref());
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn create_admitted_while_a_claim_is_missing_is_bound_first() {
    let (cluster, ns, mut checker, _alice) = unguarded_alice().await;
    let mut restores =
        cluster.proxy.hold(Stage::Before, |call| call.is("POST", "/addressbindings") && call.mentions("\"alice\""));
    ns.claims().delete(ns.binding().as_str(), &DeleteParams::default()).await.unwrap();
    let too_late = loop {
        let held = restores.next().await;
        // Other namespaces have conversations with that name, too.
        if held.call.mentions(ns.binding().as_str()) {
            break held;
        }
        held.resolve(Fault::Pass);
    };
    ns.create("bob", json!({})).await.expect("no claim names alice");
    too_late.resolve(Fault::Pass);
    drop(restores);
    let (alice, reason) = ns.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::AddressAlreadyBound);
    let conditions = alice.status.unwrap().conditions;
    assert!(conditions.iter().any(|condition| condition.message.starts_with("48031: ")), "{conditions:?}");
    ns.bound("bob").await;
    checker.wait_until_at_rest().await;
    ns.change("bob", json!({"state": "Closed"})).await.unwrap();
    // It is older than those that wait.
    ns.bound("alice").await;
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn claim_edited_to_name_no_conversation_names_its_holder_again() {
    let (_cluster, ns, mut checker, _alice) = unguarded_alice().await;
    edit_claim(&ns, json!({"conversationRef": {"name": "nobody"}})).await.unwrap();
    checker.wait_until_at_rest().await;
    assert_eq!(ns.claim().await.unwrap().spec.conversation_ref.name, "alice");
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn claim_without_admissions_keeps_its_holder() {
    let (_cluster, ns, mut checker, _alice) = unguarded_alice().await;
    edit_claim(&ns, json!({"admissions": []})).await.unwrap();
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    assert_handed_over(&ns, &mut checker, "alice").await;
    create_with_retries(&ns, "bob", json!({})).await;
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn forged_uid_in_a_claim_is_pruned_after_the_grace_period() {
    let (_cluster, ns, mut checker, alice) = unguarded_alice().await;
    let time = "2020-01-01T00:00:00.000Z";
    let uids = [alice.metadata.uid.unwrap(), "forged".to_owned()];
    let admissions: Vec<_> = uids.iter().map(|uid| json!({"uid": uid, "time": time})).collect();
    edit_claim(&ns, json!({"admissions": admissions})).await.unwrap();
    checker.wait_until_at_rest().await;
    assert_eq!(ns.claim().await.unwrap().spec.admissions.len(), 1);
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn cleared_status_is_written_again() {
    let (_cluster, ns, mut checker, before) = unguarded_alice().await;
    let cleared = json!({"conditions": [], "state": null, "addressBindingName": null, "observedGeneration": null});
    for name in ["alice"].into_iter().chain(WAITING) {
        patch_status(&ns, name, cleared.clone(), false).await.unwrap();
    }
    let after = ns.bound("alice").await;
    checker.wait_until_at_rest().await;
    let name = |conversation: &Conversation| conversation.status.as_ref().unwrap().address_binding_name.clone();
    assert_eq!(name(&after), name(&before));
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn exactly_one_holder_is_bound_after_a_claim_was_edited() {
    let (_cluster, ns, mut checker, _alice) = unguarded_alice().await;
    edit_claim(&ns, json!({"conversationRef": {"name": "bob"}, "admissions": []})).await.unwrap();
    // The webhook allows this create if the leader has not repaired the claim yet.
    let bob = ns.create("bob", json!({})).await;
    checker.wait_until_at_rest().await;
    let stored = ns.conversations().list(&kube::api::ListParams::default()).await.unwrap();
    assert_eq!(stored.items.len(), 1 + WAITING.len() + usize::from(bob.is_ok()));
    let is_bound = |conversation: &&Conversation| {
        condition(conversation, ConditionType::Bound).is_some_and(|(status, _)| status == ConditionStatus::True)
    };
    assert_eq!(stored.items.iter().filter(is_bound).count(), 1);
    let holder = ns.held_by().await.unwrap();
    let other = if holder == "alice" { "bob" } else { "alice" };
    if other == "alice" || bob.is_ok() {
        ns.delete(other).await;
    }
    assert_handed_over(&ns, &mut checker, &holder).await;
}
