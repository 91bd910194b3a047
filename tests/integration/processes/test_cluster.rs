//! `SWITCHBOARD_TEST_CLUSTER`: tests run on a cluster that is up and leave nothing there, or say that they cannot.

use crate::common::cluster::Cluster;
use crate::common::fault_cluster::exclusive_cluster;
use crate::common::shared_control_plane;
use control_plane::{TEST_CLUSTER, output};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use serde_json::json;
use std::process::{Command, Output};
use switchboard::api::Conversation;

/// Runs one of the ignored tests below in a process of its own, on the cluster of this one; returns whether it passed, and its output.
fn run(test: &str) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("processes::test_cluster::{test}"), "--ignored", "--nocapture"]);
    let Output { status, stdout, stderr } =
        output(command.env(TEST_CLUSTER, Cluster::shared().control_plane.kubeconfig())).unwrap();
    let printed = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (status.success(), printed)
}

#[tokio::test]
#[ignore = "started by the tests below"]
async fn guest() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    println!("guest: {} {}", ns.namespace, ns.binding());
    assert!(ns.create("bob", json!({})).await.is_ok(), "it fails after all");
}

#[tokio::test]
#[ignore = "started by the tests below"]
async fn guest_that_uses_a_replica() {
    Cluster::shared().installation.replica(0).id().unwrap();
}

#[tokio::test]
#[ignore = "started by the tests below"]
async fn guest_that_uses_an_exclusive_cluster() {
    exclusive_cluster().await.replica().id().unwrap();
}

#[tokio::test]
#[ignore = "started by the tests below"]
async fn guest_that_uses_a_control_plane() {
    shared_control_plane().api_server(0).id().unwrap();
}

#[tokio::test]
async fn namespace_of_failed_test_is_removed_from_named_cluster() {
    let (passed, printed) = run("guest");
    assert!(!passed && printed.contains("it fails after all"), "{printed}");
    let names = printed.lines().find_map(|line| line.split_once("guest: ")).unwrap().1;
    let (namespace, binding) = names.split_once(' ').unwrap();
    let client = Cluster::shared().client(0).await;
    assert_eq!(Api::<Namespace>::all(client.clone()).get_opt(namespace).await.unwrap(), None);
    let conversations = Api::<Conversation>::namespaced(client.clone(), namespace);
    assert_eq!(conversations.get_opt("alice").await.unwrap(), None);
    let claims = Api::<switchboard::api::AddressBinding>::all(client);
    let released = crate::common::cluster::until(claims, binding, |claim| claim.is_none()).await;
    assert!(released.is_some(), "{binding} is still claimed");
}

#[test]
fn tests_that_cannot_use_named_cluster_say_so() {
    for test in ["guest_that_uses_a_replica", "guest_that_uses_an_exclusive_cluster", "guest_that_uses_a_control_plane"]
    {
        let (passed, printed) = run(test);
        assert!(!passed, "{test}: {printed}");
        let reason =
            "this needs a control plane of its own: unset SWITCHBOARD_TEST_CLUSTER, which names one that is up";
        assert!(printed.lines().any(|line| line == reason), "{test}: {printed}");
    }
}
