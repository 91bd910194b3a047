//! One commit that closes, renames, moves or edits conversations, applied by Flux, kubectl and helm. Tier: processes.

use super::apply::Applier;
use super::gitops::{desk, identities, patch_by_kubectl, second_binding, uid};
use crate::common::cluster::{TestNamespace, create_namespace};
use crate::common::gitops::{FLUX_NAMESPACE, Reconciliation};
use kube::core::Status;
use serde_json::{Value, json};
use std::slice;
use switchboard::api::{ConditionStatus, ConditionType, State};

/// A conversation that waits for its binding where another one holds it.
fn waiting(desk: &TestNamespace, name: &str) -> Value {
    desk.manifest(name, json!({"onConflict": "Wait"}))
}

fn closed(desk: &TestNamespace, name: &str) -> Value {
    desk.manifest(name, json!({"onConflict": "Wait", "state": "Closed"}))
}

fn warns_of_50377(reconciliation: &Reconciliation) -> bool {
    reconciliation.warnings.iter().any(|warning| warning.contains("50377"))
}

/// Flux applies in the order of the names.
async fn close_and_open_in_one_commit(before: &str, after: &str) {
    let (desk, git) = desk().await;
    git.apply("open", &[waiting(&desk, before)]).await;
    git.apply(
        &format!("close {before} and open {after} in one commit"),
        &[closed(&desk, before), waiting(&desk, after)],
    )
    .await;
    desk.wait_for_state(before, State::Closed).await;
    assert_eq!(desk.held_by().await.as_deref(), Some(after));
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
    let (desk, git) = desk().await;
    git.apply("open", &[waiting(&desk, "alice")]).await;
    let renamed = git.apply("rename in one commit", &[waiting(&desk, "bob")]).await;
    assert_eq!(renamed.changes(), [("bob", "created"), ("alice", "deleted")]);
    assert_eq!(desk.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn commit_that_moves_to_another_namespace_is_applied() {
    let (desk, git) = desk().await;
    let elsewhere = TestNamespace { namespace: format!("{}-elsewhere", desk.namespace), ..desk.clone() };
    create_namespace(&desk.client, &elsewhere.namespace).await;
    git.apply("open", &[waiting(&desk, "alice")]).await;
    git.apply("move to another namespace in one commit", &[waiting(&elsewhere, "alice")]).await;
    assert_eq!(desk.conversations().get_opt("alice").await.unwrap(), None);
    assert_eq!(desk.claim().await.unwrap().spec.conversation_ref.namespace, elsewhere.namespace);
}

#[tokio::test]
async fn one_conflict_stops_no_other_conversation_of_a_commit() {
    let (desk, git) = desk().await;
    let others =
        ["+15017122663", "+15017122664"].map(|proxy| TestNamespace { proxy: proxy.to_owned(), ..desk.clone() });
    desk.create("holder", json!({})).await.unwrap();
    let manifests = [waiting(&others[0], "alice"), waiting(&desk, "bob"), waiting(&others[1], "carol")];
    let git = git.flag("-timeout=5s");
    git.commit(&manifests);
    let failed = git.reconcile().await;
    assert_eq!(failed.reason, "HealthCheckFailed", "{failed}");
    assert!(failed.message.contains("bob status: 'InProgress'"), "{failed}");
    assert_eq!(failed.changes(), [("alice", "created"), ("bob", "created"), ("carol", "created")]);
    for (desk, name) in [(&others[0], "alice"), (&others[1], "carol")] {
        desk.bound(name).await;
    }
    desk.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::False).await;
    desk.change("holder", json!({"state": "Closed"})).await.unwrap();
    git.apply("the conflict is resolved", &manifests).await;
    assert_eq!(desk.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn new_conversations_in_conflict_are_pruned_later() {
    let (desk, git) = desk().await;
    let kept = second_binding(&desk).manifest("kept", json!({}));
    let git = git.flag("-timeout=5s");
    git.commit(&[waiting(&desk, "alice"), waiting(&desk, "bob"), kept.clone()]);
    let failed = git.reconcile().await;
    assert_eq!(failed.reason, "HealthCheckFailed", "{failed}");
    let pruned = git.apply("prune two in conflict", &[kept]).await;
    assert_eq!(pruned.changes(), [("kept", "unchanged"), ("bob", "deleted"), ("alice", "deleted")]);
    desk.wait_until_free().await;
}

/// Flux takes the state that kubectl has set for one of its own, and sets what Git says.
async fn close_by_kubectl_persists(manifest: impl Fn(&TestNamespace) -> Value, transition: &str) {
    let (desk, git) = desk().await;
    let alice = manifest(&desk);
    git.apply("open", slice::from_ref(&alice)).await;
    patch_by_kubectl(&desk, "alice", &json!({"state": "Closed"}));
    desk.wait_for_state("alice", State::Closed).await;
    let applied = git.apply(transition, slice::from_ref(&alice)).await;
    assert!(warns_of_50377(&applied), "{applied:?}");
    let again = git.apply("reconcile once more", &[alice, waiting(&desk, "bob")]).await;
    assert_eq!(again.changes(), [("alice", "unchanged"), ("bob", "created")]);
    let alice = desk.wait_for_state("alice", State::Closed).await;
    assert_ne!(alice.spec.state, Some(State::Closed), "the spec is as Git says");
    assert_eq!(desk.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn close_by_kubectl_persists_where_git_omits_the_state() {
    close_by_kubectl_persists(|desk| desk.manifest("alice", json!({})), "closed by kubectl, no state in Git").await;
}

#[tokio::test]
async fn close_by_kubectl_persists_where_git_says_active() {
    let active = |desk: &TestNamespace| desk.manifest("alice", json!({"state": "Active"}));
    close_by_kubectl_persists(active, "closed by kubectl, Active in Git").await;
}

#[tokio::test]
async fn reconciliation_right_after_a_close_by_kubectl_heals() {
    let (desk, git) = desk().await;
    let manifests = [desk.manifest("alice", json!({}))];
    git.apply("open", &manifests).await;
    patch_by_kubectl(&desk, "alice", &json!({"state": "Closed"}));
    git.apply("reconcile at once after kubectl closed", &manifests).await;
    desk.wait_for_state("alice", State::Closed).await;
    desk.wait_until_free().await;
}

#[tokio::test]
async fn participants_change_across_open_and_closed_conversations() {
    let (desk, git) = desk().await;
    let other = second_binding(&desk);
    let manifests = |identity: &str| {
        let participants = json!([{"identity": identity}]);
        [
            desk.manifest("alice", json!({"participants": participants})),
            desk.manifest(
                "bob",
                json!({"contact": null, "participants": participants, "timers": {"closeAfter": "1s"}}),
            ),
            other.manifest("carol", json!({"participants": participants})),
        ]
    };
    git.apply("open three", &manifests("agent-7")).await;
    desk.wait_for_state("bob", State::Closed).await;
    let applied = git.apply("edit participants of open and closed", &manifests("agent-9")).await;
    assert!(warns_of_50377(&applied), "{applied:?}");
    assert_eq!(applied.changes(), ["alice", "bob", "carol"].map(|name| (name, "configured")));
    for name in ["alice", "bob", "carol"] {
        assert_eq!(identities(&desk.conversations().get(name).await.unwrap()), ["agent-9"]);
    }
    desk.wait_for_state("bob", State::Closed).await;
}

#[tokio::test]
async fn force_does_not_reopen_a_closed_conversation() {
    let (desk, git) = desk().await;
    let git = git.flag("-force");
    let manifest = |identity: &str| desk.manifest("alice", json!({"participants": [{"identity": identity}]}));
    git.apply("open", &[manifest("agent-7")]).await;
    patch_by_kubectl(&desk, "alice", &json!({"state": "Closed"}));
    let before = desk.wait_for_state("alice", State::Closed).await;
    git.apply("edit what is closed, by force", &[manifest("agent-9")]).await;
    let after = desk.conversations().get("alice").await.unwrap();
    assert_eq!((uid(&after), after.status.as_ref().unwrap().state), (uid(&before), Some(State::Closed)));
    desk.wait_until_free().await;
}

#[tokio::test]
async fn kubectl_apply_of_a_directory_that_opens_first_succeeds() {
    let kubectl = Applier::kubectl().await;
    let desk = &kubectl.desk;
    kubectl.apply("open", &[waiting(desk, "alice")]);
    kubectl.apply("kubectl apply that opens and closes", &[waiting(desk, "bob"), closed(desk, "alice")]);
    desk.bound("bob").await;
}

#[tokio::test]
async fn kubectl_apply_prune_renames() {
    let kubectl = Applier::kubectl_with_prune().await;
    let desk = &kubectl.desk;
    kubectl.apply("open", &[waiting(desk, "alice")]);
    kubectl.apply("kubectl apply --prune that renames", &[waiting(desk, "bob")]);
    assert_eq!(desk.conversations().get_opt("alice").await.unwrap(), None);
    desk.bound("bob").await;
}

#[tokio::test]
async fn helm_upgrade_that_opens_before_it_closes_succeeds() {
    let helm = Applier::helm().await;
    let desk = &helm.desk;
    helm.apply("install", &[waiting(desk, "alice")]);
    helm.apply("helm upgrade that opens and closes", &[waiting(desk, "bob"), closed(desk, "alice")]);
    desk.bound("bob").await;
}

#[tokio::test]
async fn helm_upgrade_that_closes_before_it_opens_succeeds() {
    let helm = Applier::helm().await;
    let desk = &helm.desk;
    helm.apply("install", &[waiting(desk, "alice")]);
    helm.apply("helm upgrade that closes and opens", &[closed(desk, "alice"), waiting(desk, "bob")]);
    desk.bound("bob").await;
}

#[tokio::test]
async fn helm_upgrade_that_renames_succeeds() {
    let helm = Applier::helm().await;
    let desk = &helm.desk;
    helm.apply("install", &[waiting(desk, "alice")]);
    helm.apply("helm upgrade that renames", &[waiting(desk, "bob")]);
    assert_eq!(desk.conversations().get_opt("alice").await.unwrap(), None);
    desk.bound("bob").await;
}

/// To close it with kubectl would be undone; to remove its contact cannot be done in Git.
#[tokio::test]
async fn refusal_names_the_kustomization_that_manages_the_holder() {
    let (desk, git) = desk().await;
    git.apply("open", &[desk.manifest("alice", json!({}))]).await;
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    let owner = format!("Flux Kustomization {FLUX_NAMESPACE}/{}", desk.namespace);
    assert_managed_by(&refusal, &owner);
    assert!(!refusal.message.contains("remove its contact"), "{}", refusal.message);
}

#[tokio::test]
async fn refusal_names_the_helm_release_that_manages_the_holder() {
    let helm = Applier::helm().await;
    let desk = &helm.desk;
    helm.apply("install", &[desk.manifest("alice", json!({}))]);
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    assert_managed_by(&refusal, &format!("Helm release {}/{}", desk.namespace, desk.namespace));
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
    let (desk, git) = desk().await;
    let applied = git.apply("open", &[desk.manifest("alice", json!({"ttlAfterClosed": "720h"}))]).await;
    assert!(applied.warnings.iter().any(|warning| warning.contains("ttlAfterClosed")), "{applied:?}");
}
