//! One commit that closes, renames, moves or edits conversations, applied by Flux, kubectl and helm. Tier: processes.

use super::apply::Applier;
use super::gitops::{identities, patch_by_kubectl, second_binding, test_namespace, uid};
use crate::common::cluster::{TestNamespace, create_namespace};
use crate::common::gitops::{FLUX_NAMESPACE, Reconciliation};
use kube::core::Status;
use serde_json::{Value, json};
use std::slice;
use switchboard::api::{ConditionStatus, ConditionType, State};

/// A conversation that waits for its binding where another one holds it.
fn waiting(ns: &TestNamespace, name: &str) -> Value {
    ns.manifest(name, json!({"onConflict": "Wait"}))
}

fn closed(ns: &TestNamespace, name: &str) -> Value {
    ns.manifest(name, json!({"onConflict": "Wait", "state": "Closed"}))
}

fn warns_of_50377(reconciliation: &Reconciliation) -> bool {
    reconciliation.warnings.iter().any(|warning| warning.contains("50377"))
}

/// Flux applies in the order of the names.
async fn close_and_open_in_one_commit(before: &str, after: &str) {
    let (ns, git) = test_namespace().await;
    git.apply("open", &[waiting(&ns, before)]).await;
    git.apply(&format!("close {before} and open {after} in one commit"), &[closed(&ns, before), waiting(&ns, after)])
        .await;
    ns.wait_for_state(before, State::Closed).await;
    assert_eq!(ns.held_by().await.as_deref(), Some(after));
}

#[tokio::test]
async fn commit_that_closes_before_it_opens_is_applied() {
    close_and_open_in_one_commit("alice", "bob").await;
}

#[tokio::test]
async fn commit_that_opens_before_it_closes_is_applied() {
    close_and_open_in_one_commit("bob", "alice").await;
}

#[tokio::test]
async fn commit_that_renames_is_applied() {
    let (ns, git) = test_namespace().await;
    git.apply("open", &[waiting(&ns, "alice")]).await;
    let renamed = git.apply("rename in one commit", &[waiting(&ns, "bob")]).await;
    assert_eq!(renamed.changes(), [("bob", "created"), ("alice", "deleted")]);
    assert_eq!(ns.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn commit_that_moves_to_another_namespace_is_applied() {
    let (ns, git) = test_namespace().await;
    let elsewhere = TestNamespace { namespace: format!("{}-elsewhere", ns.namespace), ..ns.clone() };
    create_namespace(&ns.client, &elsewhere.namespace).await;
    git.apply("open", &[waiting(&ns, "alice")]).await;
    git.apply("move to another namespace in one commit", &[waiting(&elsewhere, "alice")]).await;
    assert_eq!(ns.conversations().get_opt("alice").await.unwrap(), None);
    assert_eq!(ns.claim().await.unwrap().spec.conversation_ref.namespace, elsewhere.namespace);
}

#[tokio::test]
async fn one_conflict_stops_no_other_conversation_of_a_commit() {
    let (ns, git) = test_namespace().await;
    let others = ["+15017122663", "+15017122664"].map(|proxy| TestNamespace { proxy: proxy.to_owned(), ..ns.clone() });
    ns.create("holder", json!({})).await.unwrap();
    let manifests = [waiting(&others[0], "alice"), waiting(&ns, "bob"), waiting(&others[1], "carol")];
    let git = git.flag("-timeout=5s");
    git.commit(&manifests);
    let failed = git.reconcile().await;
    assert_eq!(failed.reason, "HealthCheckFailed", "{failed}");
    assert!(failed.message.contains("bob status: 'InProgress'"), "{failed}");
    assert_eq!(failed.changes(), [("alice", "created"), ("bob", "created"), ("carol", "created")]);
    for (ns, name) in [(&others[0], "alice"), (&others[1], "carol")] {
        ns.bound(name).await;
    }
    ns.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::False).await;
    ns.change("holder", json!({"state": "Closed"})).await.unwrap();
    git.apply("the conflict is resolved", &manifests).await;
    assert_eq!(ns.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn new_conversations_in_conflict_are_pruned_later() {
    let (ns, git) = test_namespace().await;
    let kept = second_binding(&ns).manifest("kept", json!({}));
    let git = git.flag("-timeout=5s");
    git.commit(&[waiting(&ns, "alice"), waiting(&ns, "bob"), kept.clone()]);
    let failed = git.reconcile().await;
    assert_eq!(failed.reason, "HealthCheckFailed", "{failed}");
    let pruned = git.apply("prune two in conflict", &[kept]).await;
    assert_eq!(pruned.changes(), [("kept", "unchanged"), ("bob", "deleted"), ("alice", "deleted")]);
    ns.wait_until_free().await;
}

/// Flux takes the state that kubectl has set for one of its own, and sets what Git says.
async fn close_by_kubectl_persists(manifest: impl Fn(&TestNamespace) -> Value, transition: &str) {
    let (ns, git) = test_namespace().await;
    let alice = manifest(&ns);
    git.apply("open", slice::from_ref(&alice)).await;
    patch_by_kubectl(&ns, "alice", &json!({"state": "Closed"}));
    ns.wait_for_state("alice", State::Closed).await;
    let applied = git.apply(transition, slice::from_ref(&alice)).await;
    assert!(warns_of_50377(&applied), "{applied:?}");
    let again = git.apply("reconcile once more", &[alice, ns.manifest("bob", json!({}))]).await;
    assert_eq!(again.changes(), [("alice", "unchanged"), ("bob", "created")]);
    let alice = ns.wait_for_state("alice", State::Closed).await;
    assert_ne!(alice.spec.state, Some(State::Closed), "the spec is as Git says");
    assert_eq!(ns.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn close_by_kubectl_persists_where_git_omits_the_state() {
    close_by_kubectl_persists(|ns| ns.manifest("alice", json!({})), "closed by kubectl, no state in Git").await;
}

#[tokio::test]
async fn close_by_kubectl_persists_where_git_says_active() {
    let active = |ns: &TestNamespace| ns.manifest("alice", json!({"state": "Active"}));
    close_by_kubectl_persists(active, "closed by kubectl, Active in Git").await;
}

#[tokio::test]
async fn reconciliation_right_after_a_close_by_kubectl_heals() {
    let (ns, git) = test_namespace().await;
    let manifests = [ns.manifest("alice", json!({}))];
    git.apply("open", &manifests).await;
    patch_by_kubectl(&ns, "alice", &json!({"state": "Closed"}));
    git.apply("reconcile at once after kubectl closed", &manifests).await;
    ns.wait_for_state("alice", State::Closed).await;
    ns.wait_until_free().await;
}

#[tokio::test]
async fn participants_change_across_open_and_closed_conversations() {
    let (ns, git) = test_namespace().await;
    let other = second_binding(&ns);
    let manifests = |identity: &str| {
        let participants = json!([{"identity": identity}]);
        [
            ns.manifest("alice", json!({"participants": participants})),
            ns.manifest("bob", json!({"contact": null, "participants": participants, "timers": {"closeAfter": "1s"}})),
            other.manifest("carol", json!({"participants": participants})),
        ]
    };
    git.apply("open three", &manifests("agent-7")).await;
    ns.wait_for_state("bob", State::Closed).await;
    let applied = git.apply("edit participants of open and closed", &manifests("agent-9")).await;
    assert!(warns_of_50377(&applied), "{applied:?}");
    assert_eq!(applied.changes(), ["alice", "bob", "carol"].map(|name| (name, "configured")));
    for name in ["alice", "bob", "carol"] {
        assert_eq!(identities(&ns.conversations().get(name).await.unwrap()), ["agent-9"]);
    }
    ns.wait_for_state("bob", State::Closed).await;
}

#[tokio::test]
async fn force_does_not_reopen_a_closed_conversation() {
    let (ns, git) = test_namespace().await;
    let git = git.flag("-force");
    let manifest = |identity: &str| ns.manifest("alice", json!({"participants": [{"identity": identity}]}));
    git.apply("open", &[manifest("agent-7")]).await;
    patch_by_kubectl(&ns, "alice", &json!({"state": "Closed"}));
    let before = ns.wait_for_state("alice", State::Closed).await;
    git.apply("edit what is closed, by force", &[manifest("agent-9")]).await;
    let after = ns.conversations().get("alice").await.unwrap();
    assert_eq!((uid(&after), after.status.as_ref().unwrap().state), (uid(&before), Some(State::Closed)));
    ns.wait_until_free().await;
}

#[tokio::test]
async fn kubectl_apply_of_a_directory_that_opens_first_succeeds() {
    let kubectl = Applier::kubectl().await;
    let ns = &kubectl.ns;
    kubectl.apply("open", &[waiting(ns, "alice")]);
    kubectl.apply("kubectl apply that opens and closes", &[waiting(ns, "bob"), closed(ns, "alice")]);
    ns.bound("bob").await;
}

#[tokio::test]
async fn kubectl_apply_prune_renames() {
    let kubectl = Applier::kubectl_with_prune().await;
    let ns = &kubectl.ns;
    kubectl.apply("open", &[waiting(ns, "alice")]);
    kubectl.apply("kubectl apply --prune that renames", &[waiting(ns, "bob")]);
    assert_eq!(ns.conversations().get_opt("alice").await.unwrap(), None);
    ns.bound("bob").await;
}

#[tokio::test]
async fn helm_upgrade_that_opens_before_it_closes_succeeds() {
    let helm = Applier::helm().await;
    let ns = &helm.ns;
    helm.apply("install", &[waiting(ns, "alice")]);
    helm.apply("helm upgrade that opens and closes", &[waiting(ns, "bob"), closed(ns, "alice")]);
    ns.bound("bob").await;
}

#[tokio::test]
async fn helm_upgrade_that_closes_before_it_opens_succeeds() {
    let helm = Applier::helm().await;
    let ns = &helm.ns;
    helm.apply("install", &[waiting(ns, "alice")]);
    helm.apply("helm upgrade that closes and opens", &[closed(ns, "alice"), waiting(ns, "bob")]);
    ns.bound("bob").await;
}

#[tokio::test]
async fn helm_upgrade_that_renames_succeeds() {
    let helm = Applier::helm().await;
    let ns = &helm.ns;
    helm.apply("install", &[waiting(ns, "alice")]);
    helm.apply("helm upgrade that renames", &[waiting(ns, "bob")]);
    assert_eq!(ns.conversations().get_opt("alice").await.unwrap(), None);
    ns.bound("bob").await;
}

/// To close it with kubectl would be undone; to remove its contact cannot be done in Git.
#[tokio::test]
async fn refusal_names_the_kustomization_that_manages_the_holder() {
    let (ns, git) = test_namespace().await;
    git.apply("open", &[ns.manifest("alice", json!({}))]).await;
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    let owner = format!("Flux Kustomization {FLUX_NAMESPACE}/{}", ns.namespace);
    assert_managed_by(&refusal, &owner);
    assert!(!refusal.message.contains("remove its contact"), "{}", refusal.message);
}

#[tokio::test]
async fn refusal_names_the_helm_release_that_manages_the_holder() {
    let helm = Applier::helm().await;
    let ns = &helm.ns;
    helm.apply("install", &[ns.manifest("alice", json!({}))]);
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    assert_managed_by(&refusal, &format!("Helm release {}/{}", ns.namespace, ns.namespace));
}

fn assert_managed_by(refusal: &Status, owner: &str) {
    assert!(refusal.message.contains(&format!("managed by {owner}")), "{}", refusal.message);
    let causes = &refusal.details.as_ref().unwrap().causes;
    let managers: Vec<_> = causes.iter().filter(|cause| cause.reason == "HolderManagedBy").collect();
    assert_eq!(managers.iter().map(|cause| cause.message.as_str()).collect::<Vec<_>>(), [owner]);
}

/// Flux would create it again, open, each time that it was deleted.
#[tokio::test]
async fn ttl_after_closed_in_git_is_warned_of() {
    let (ns, git) = test_namespace().await;
    let applied = git.apply("open", &[ns.manifest("alice", json!({"ttlAfterClosed": "720h"}))]).await;
    assert!(applied.warnings.iter().any(|warning| warning.contains("ttlAfterClosed")), "{applied:?}");
}
