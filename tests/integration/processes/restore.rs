//! A backup by `switchboard export` and its restore, and a copy beside the original. Tier: processes.

use crate::common::cluster::{Cluster, TestNamespace, create_namespace};
use crate::common::succeed;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use std::process::Command;
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType, State};

fn export(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    command.arg("export").args(arguments).env("KUBECONFIG", cluster.control_plane.kubeconfig());
    succeed(&mut command)
}

fn apply(cluster: &Cluster, name: &str, manifests: &str) {
    let path = cluster.control_plane.data_dir().join(name);
    std::fs::write(&path, manifests).unwrap();
    succeed(cluster.control_plane.kubectl().arg("apply").arg("--filename").arg(path));
}

async fn delete_all(namespace: &TestNamespace) {
    namespace.conversations().delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    namespace.wait_until_free().await;
}

/// alice was closed by a timer, bob holds the binding, and carol waits for it.
async fn three_states(namespace: &TestNamespace) {
    namespace.create("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    namespace.wait_for_state("alice", State::Closed).await;
    namespace.create("bob", json!({})).await.unwrap();
    namespace.bound("bob").await;
    namespace.create("a-waiting-one", json!({"onConflict": "Wait"})).await.unwrap();
    waits(namespace).await;
}

async fn waits(namespace: &TestNamespace) {
    let (_, reason) = namespace.wait_for_condition("a-waiting-one", ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::WaitingForBinding);
}

#[tokio::test]
async fn restore_brings_back_each_state_and_the_holder() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    three_states(&namespace).await;
    let manifests = export(cluster, &["--namespace", &namespace.namespace]);
    assert_eq!(manifests.matches("\n---\n").count() + 1, 3, "{manifests}");
    assert!(!manifests.contains("status:") && !manifests.contains("uid:"), "{manifests}");
    delete_all(&namespace).await;
    apply(cluster, &format!("{}.yaml", namespace.namespace), &manifests);
    namespace.wait_for_state("alice", State::Closed).await;
    namespace.bound("bob").await;
    waits(&namespace).await;
}

#[tokio::test]
async fn closed_conversation_takes_no_binding_in_any_order_of_the_restore() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    three_states(&namespace).await;
    namespace.delete("a-waiting-one").await;
    let manifests = export(cluster, &["--namespace", &namespace.namespace]);
    delete_all(&namespace).await;
    let mut documents: Vec<&str> = manifests.split("---\n").collect();
    documents.reverse();
    apply(cluster, &format!("{}-reversed.yaml", namespace.namespace), &documents.join("\n---\n"));
    namespace.bound("bob").await;
    namespace.wait_for_state("alice", State::Closed).await;
}

#[tokio::test]
async fn copy_without_contacts_leaves_the_bindings_to_the_original() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("bob", json!({})).await.unwrap();
    namespace.bound("bob").await;
    let manifests = export(cluster, &["--namespace", &namespace.namespace, "--without-contacts"]);
    let copy = TestNamespace { namespace: format!("{}-copy", namespace.namespace), ..namespace.clone() };
    create_namespace(&copy.client, &copy.namespace).await;
    let mapped = manifests
        .replace(&format!("namespace: {}\n", namespace.namespace), &format!("namespace: {}\n", copy.namespace));
    apply(cluster, &format!("{}.yaml", copy.namespace), &mapped);
    let (_, reason) = copy.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::NoContact);
    namespace.delete("bob").await;
    namespace.wait_until_free().await;
}
