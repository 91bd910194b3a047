//! Conversations in Git, applied as Flux's kustomize-controller applies them: what it reports, what it keeps and what it deletes.
//! Tier: processes.

use super::faults_unseen::create_unseen;
use crate::common;
use crate::common::chart::documents;
use crate::common::cluster::{Cluster, TestNamespace};
use crate::common::fault_cluster::{FaultCluster, claim_create, exclusive_cluster, kill_around};
use crate::common::gitops::Kustomization;
use crate::common::proxy::Stage;
use control_plane::ControlPlane;
use serde_json::{Value, json};
use std::slice;
use switchboard::api::{ConditionStatus, ConditionType, Conversation, State};

/// A namespace on the shared cluster, and the Kustomization of its conversations.
pub async fn test_namespace() -> (TestNamespace, Kustomization) {
    let cluster = Cluster::shared();
    let ns = cluster.test_namespace().await;
    let git = Kustomization::new(&cluster.control_plane, &ns.namespace);
    (ns, git)
}

/// The same on a cluster whose webhook may fail.
async fn namespace_on(cluster: &FaultCluster) -> (TestNamespace, Kustomization) {
    let (ns, _) = cluster.checked_namespace().await;
    let git = Kustomization::new(cluster.control_plane(), &ns.namespace);
    (ns, git)
}

/// A second binding in the same namespace.
pub fn second_binding(ns: &TestNamespace) -> TestNamespace {
    TestNamespace { proxy: "+15017122662".to_owned(), ..ns.clone() }
}

/// Changes a spec as somebody does with kubectl.
pub fn patch_by_kubectl(ns: &TestNamespace, name: &str, spec: &Value) {
    let mut kubectl = Cluster::shared().control_plane.kubectl();
    kubectl.args(["--namespace", &ns.namespace, "patch", "conversation", name, "--type=merge"]);
    common::succeed(kubectl.args(["--patch", &json!({"spec": spec}).to_string()]));
}

pub fn uid(conversation: &Conversation) -> &str {
    conversation.metadata.uid.as_deref().unwrap()
}

pub fn identities(conversation: &Conversation) -> Vec<&str> {
    conversation.spec.participants.iter().flatten().map(|participant| participant.identity.as_str()).collect()
}

#[tokio::test]
async fn unchanged_commit_is_healthy_and_writes_nothing() {
    let (ns, git) = test_namespace().await;
    let unassigned = second_binding(&ns).manifest("unassigned", json!({"participants": null}));
    let manifests = [
        ns.manifest("bound", json!({"timers": {"inactiveAfter": "1h", "closeAfter": "24h"}})),
        unassigned,
        ns.manifest("unbound", json!({"contact": null})),
        ns.manifest("parked", json!({"contact": null, "state": "Inactive"})),
        ns.manifest("idle", json!({"contact": null, "timers": {"inactiveAfter": "1s"}})),
        ns.manifest("closed", json!({"contact": null, "state": "Closed"})),
        ns.manifest("expired", json!({"contact": null, "timers": {"closeAfter": "1s"}})),
    ];
    git.apply("seven conversations", &manifests).await;
    ns.wait_for_state("idle", State::Inactive).await;
    ns.wait_for_state("expired", State::Closed).await;
    let versions = || async {
        let all = ns.conversations().list(&kube::api::ListParams::default()).await.unwrap().items;
        all.into_iter().map(|object| (object.metadata.name, object.metadata.resource_version)).collect::<Vec<_>>()
    };
    let before = versions().await;
    let again = git.reconcile().await;
    assert!(again.is_ready(), "{again}");
    assert!(again.changes().iter().all(|(_, action)| *action == "unchanged"), "{again:?}");
    assert_eq!((again.changes().len(), again.warnings.len()), (7, 0), "{again:?}");
    assert_eq!(versions().await, before);
}

#[tokio::test]
async fn stalled_conversation_fails_the_health_check() {
    let cluster = exclusive_cluster().await;
    let (ns, git) = namespace_on(&cluster).await;
    ns.create("alice", json!({})).await.unwrap();
    create_unseen(&cluster, &ns, &[("bob", json!({}))]).await;
    ns.wait_for_condition("bob", ConditionType::Stalled, ConditionStatus::True).await;
    git.commit(&[ns.manifest("alice", json!({})), ns.manifest("bob", json!({}))]);
    let failed = git.reconcile().await;
    let expected =
        format!("failed early due to stalled resources: [Conversation/{}/bob status: 'Failed'", ns.namespace);
    assert_eq!(failed.reason, "HealthCheckFailed");
    assert!(failed.message.contains(&expected), "{failed}");
}

#[tokio::test]
async fn refused_commit_shows_the_whole_48031_and_heals() {
    let (ns, git) = test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    let manifests = [ns.manifest("bob", json!({}))];
    git.commit(&manifests);
    let refused = git.reconcile().await;
    assert_eq!((refused.reason.as_str(), refused.changes()), ("ReconciliationFailed", vec![]));
    let (dry_run, holder) =
        (format!("Conversation/{}/bob dry-run failed (Forbidden)", ns.namespace), format!("{}/alice", ns.namespace));
    for part in [&dry_run, "denied the request: 48031: ", &ns.contact, &ns.proxy, &holder, "agent-7"] {
        assert!(refused.message.contains(part), "{part} is missing in {refused}");
    }
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    git.apply("open after the holder was closed", &manifests).await;
    ns.bound("bob").await;
}

#[tokio::test]
async fn crds_and_a_conversation_are_staged_in_one_commit() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let git = Kustomization::new(&control_plane, "crds").flag("-wait=false");
    let mut manifests: Vec<_> = ["conversations", "addressbindings"]
        .iter()
        .flat_map(|kind| documents(&std::fs::read_to_string(format!("crds/{kind}.yaml")).unwrap()))
        .collect();
    manifests.push(json!({
        "apiVersion": "switchboard.dev/v1alpha1", "kind": "Conversation",
        "metadata": {"name": "alice", "namespace": "default"},
        "spec": {"channel": "Chat", "proxy": {"address": "shop"}},
    }));
    git.commit(&manifests);
    let applied = git.reconcile().await;
    assert!(applied.is_ready(), "{applied}");
    assert_eq!(applied.changes().last(), Some(&("alice", "created")), "{applied:?}");
}

#[tokio::test]
async fn pruned_conversation_frees_its_binding() {
    let (ns, git) = test_namespace().await;
    let kept = second_binding(&ns).manifest("kept", json!({}));
    git.apply("open two", &[ns.manifest("alice", json!({})), kept.clone()]).await;
    let pruned = git.apply("prune one", &[kept]).await;
    assert_eq!(pruned.changes(), [("kept", "unchanged"), ("alice", "deleted")]);
    ns.wait_until_free().await;
    ns.create("bob", json!({})).await.unwrap();
}

#[tokio::test]
async fn close_in_an_earlier_commit_frees_the_binding() {
    let (ns, git) = test_namespace().await;
    git.apply("open", &[ns.manifest("alice", json!({}))]).await;
    let closed = ns.manifest("alice", json!({"state": "Closed"}));
    git.apply("close in one commit", slice::from_ref(&closed)).await;
    let opened = git.apply("open in the next commit", &[closed, ns.manifest("bob", json!({}))]).await;
    assert_eq!(opened.changes(), [("alice", "unchanged"), ("bob", "created")]);
    assert_eq!(ns.held_by().await.as_deref(), Some("bob"));
}

/// As README recommends it to those who open conversations by Git and run them otherwise.
#[tokio::test]
async fn if_not_present_leaves_a_conversation_to_people() {
    let (ns, git) = test_namespace().await;
    let kept = second_binding(&ns).manifest("kept", json!({}));
    let mut alice = ns.manifest("alice", json!({}));
    alice["metadata"]["annotations"] = json!({"kustomize.toolkit.fluxcd.io/ssa": "IfNotPresent"});
    git.apply("open", &[alice.clone(), kept.clone()]).await;
    patch_by_kubectl(&ns, "alice", &json!({"participants": [{"identity": "agent-9"}]}));
    patch_by_kubectl(&ns, "alice", &json!({"state": "Closed"}));
    ns.wait_for_state("alice", State::Closed).await;
    let skipped = git.apply("reconcile after people closed", &[alice, kept.clone()]).await;
    assert_eq!(skipped.changes(), [("alice", "skipped"), ("kept", "unchanged")]);
    let left = ns.conversations().get("alice").await.unwrap();
    assert_eq!((left.spec.state, identities(&left)), (Some(State::Closed), vec!["agent-9"]));
    let pruned = git.apply("prune", &[kept]).await;
    assert_eq!(pruned.changes(), [("kept", "unchanged"), ("alice", "deleted")]);
}

#[tokio::test]
async fn participants_absent_from_git_are_left_to_other_clients() {
    let (ns, git) = test_namespace().await;
    let manifests = [ns.manifest("alice", json!({"participants": null}))];
    git.apply("open unassigned", &manifests).await;
    ns.change("alice", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    let again = git.apply("reconcile after another client assigned", &manifests).await;
    assert_eq!(again.changes(), [("alice", "unchanged")]);
    assert_eq!(identities(&ns.conversations().get("alice").await.unwrap()), ["agent-8"]);
}

/// Flux takes over the fields of every manager whose name starts with `kubectl`, and removes those that Git does not have.
#[tokio::test]
async fn participants_absent_from_git_are_removed_if_kubectl_set_them() {
    let (ns, git) = test_namespace().await;
    let manifests = [ns.manifest("alice", json!({"participants": null}))];
    git.apply("open unassigned", &manifests).await;
    patch_by_kubectl(&ns, "alice", &json!({"participants": [{"identity": "agent-9"}]}));
    let again = git.apply("reconcile after kubectl assigned", &manifests).await;
    assert_eq!(again.changes(), [("alice", "configured")]);
    assert_eq!(identities(&ns.conversations().get("alice").await.unwrap()), [""; 0]);
}

/// Another client set the field, and kubectl what is in it. Once Flux has removed the latter, server-side apply leaves a null.
#[tokio::test]
async fn fields_that_two_clients_set_are_emptied_by_flux() {
    let fields = [
        ("participants", json!([{"identity": "agent-8"}]), json!([{"identity": "agent-9"}])),
        ("timers", json!({"closeAfter": "1h"}), json!({"closeAfter": "2h"})),
    ];
    for (field, first, second) in fields {
        let (ns, git) = test_namespace().await;
        let manifests = [ns.manifest("alice", json!({"participants": null}))];
        git.apply("open", &manifests).await;
        ns.change("alice", json!({field: first})).await.unwrap();
        patch_by_kubectl(&ns, "alice", &json!({field: second}));
        git.apply(&format!("reconcile after two clients set {field}"), &manifests).await;
        let emptied = ns.conversations().get("alice").await.unwrap().spec;
        assert_eq!((emptied.participants, emptied.timers), (None, None));
        let again = git.reconcile().await;
        assert_eq!(again.changes(), [("alice", "unchanged")]);
        ns.change("alice", json!({field: first})).await.unwrap();
    }
}

/// Flux takes every 422 for a change of an immutable field.
#[tokio::test]
async fn force_deletes_a_live_conversation_for_a_typo_in_a_duration() {
    let (ns, git) = test_namespace().await;
    let typo = [ns.manifest("alice", json!({"timers": {"closeAfter": "24 hours"}}))];
    git.apply("open", &[ns.manifest("alice", json!({}))]).await;
    let before = ns.bound("alice").await;
    git.commit(&typo);
    let refused = git.reconcile().await;
    assert_eq!(refused.reason, "ReconciliationFailed");
    assert!(refused.message.contains("alice dry-run failed (Invalid)"), "{refused}");
    assert_eq!(uid(&ns.conversations().get("alice").await.unwrap()), uid(&before), "without force it is left alone");

    let git = git.flag("-force");
    let failed = git.reconcile().await;
    assert!(failed.message.contains("alice dry-run failed (Invalid)"), "{failed}");
    assert_eq!(ns.conversations().get_opt("alice").await.unwrap(), None);
    ns.wait_until_free().await;

    git.apply("correct the typo", &[ns.manifest("alice", json!({"timers": {"closeAfter": "24h"}}))]).await;
    assert_ne!(uid(&ns.bound("alice").await), uid(&before));
}

#[tokio::test]
async fn force_replaces_a_conversation_whose_address_changes() {
    let (ns, git) = test_namespace().await;
    let git = git.flag("-force");
    git.apply("open", &[ns.manifest("alice", json!({}))]).await;
    let before = ns.bound("alice").await;
    let elsewhere = second_binding(&ns);
    git.apply("change the proxy by force", &[elsewhere.manifest("alice", json!({}))]).await;
    assert_ne!(uid(&elsewhere.bound("alice").await), uid(&before));
    assert_eq!(elsewhere.held_by().await.as_deref(), Some("alice"));
    ns.wait_until_free().await;
}

#[tokio::test]
async fn commit_during_an_outage_of_the_webhook_heals() {
    let cluster = exclusive_cluster().await;
    let (ns, git) = namespace_on(&cluster).await;
    let manifests = [ns.manifest("alice", json!({}))];
    cluster.replica().kill();
    git.commit(&manifests);
    let failed = git.reconcile().await;
    assert_eq!((failed.reason.as_str(), failed.changes()), ("ReconciliationFailed", vec![]));
    assert!(failed.message.contains("failed calling webhook"), "{failed}");
    cluster.replica().start().unwrap();
    git.apply("open after an outage", &manifests).await;
    ns.bound("alice").await;
}

#[tokio::test]
async fn outage_between_dry_run_and_apply_heals() {
    let cluster = exclusive_cluster().await;
    let (ns, git) = namespace_on(&cluster).await;
    let second = second_binding(&ns);
    let manifests = [ns.manifest("alice", json!({})), second.manifest("bob", json!({}))];
    git.commit(&manifests);
    // A dry run makes no claim, so alice is stored when bob is asked for.
    kill_around(&cluster, Stage::Before, claim_create(&second), async {
        let failed = git.reconcile().await;
        assert_eq!(failed.reason, "ReconciliationFailed");
        assert!(
            failed.message.contains("bob apply failed") && failed.message.contains("failed calling webhook"),
            "{failed}"
        );
    })
    .await;
    assert!(ns.conversations().get_opt("alice").await.unwrap().is_some());
    assert_eq!(ns.conversations().get_opt("bob").await.unwrap(), None);
    let healed = git.apply("the rest after an outage", &manifests).await;
    assert_eq!(healed.changes(), [("alice", "unchanged"), ("bob", "created")]);
    ns.bound("alice").await;
    second.bound("bob").await;
}

/// The operator is away while Git closes and opens: the webhook is not asked of the close, and the create waits for its return.
#[tokio::test]
async fn close_during_an_outage_is_followed_by_the_open_after_it() {
    let cluster = exclusive_cluster().await;
    let (ns, git) = namespace_on(&cluster).await;
    git.apply("open", &[ns.manifest("alice", json!({}))]).await;
    cluster.replica().kill();
    let closed = ns.manifest("alice", json!({"state": "Closed"}));
    let git = git.flag("-timeout=1s");
    git.commit(slice::from_ref(&closed));
    let failed = git.reconcile().await;
    assert_eq!(failed.reason, "HealthCheckFailed", "{failed}");
    assert!(failed.message.contains("alice status: 'InProgress'"), "{failed}");
    cluster.replica().start().unwrap();
    let git = git.flag("-timeout=1m");
    git.apply("open after an outage that saw the close", &[closed, ns.manifest("bob", json!({}))]).await;
    ns.bound("bob").await;
}
