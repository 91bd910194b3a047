//! Faults of the storage: a full disk, a compacted history, an etcd that is restored from a backup, and the deletion of a namespace with a
//! thousand conversations. Tier: processes.

use crate::common;
use crate::common::cluster::{Cluster, TIMEOUT, TestNamespace, until};
use crate::common::etcd::{compact, set_disk_full};
use crate::common::fault_cluster::{
    FaultCluster, POLL_INTERVAL, WAITING, assert_handed_over, claim_replace, create_with_retries, exclusive_cluster,
    is_retryable, waiting, waits,
};
use crate::common::oracle::Oracle;
use crate::common::proxy::{Fault, Stage};
use control_plane::{ControlPlane, Installation};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::wait::{Condition, conditions};
use serde_json::json;
use std::path::Path;
use switchboard::api::AddressBinding;
use tokio::time::{Instant, sleep};

#[tokio::test]
async fn full_disk_of_etcd_admits_nothing_and_loses_nothing() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let (other, mut other_checker) = cluster.checked_namespace().await;
    other.create("alice", json!({})).await.unwrap();
    other.bound("alice").await;
    let (contended, mut contended_checker) = cluster.contended_namespace().await;
    set_disk_full(cluster.control_plane(), true).await;
    let refusal = ns.create("alice", json!({})).await.expect_err("no claim can be made");
    assert!(is_retryable(&refusal), "{refusal:?}");
    let refusal = other.create("bob", json!({})).await.expect_err("alice holds it");
    assert!(is_retryable(&refusal), "{refusal:?}");
    // etcd still accepts deletions, of a conversation and of its claim, but no hand-over.
    other.delete("alice").await;
    let hand_over = cluster.proxy.inject(Stage::Before, Fault::Pass, claim_replace(&contended));
    contended.delete("alice").await;
    hand_over.wait_for(1).await;
    set_disk_full(cluster.control_plane(), false).await;
    create_with_retries(&ns, "alice", json!({})).await;
    create_with_retries(&other, "bob", json!({})).await;
    ns.bound("alice").await;
    other.bound("bob").await;
    checker.wait_until_at_rest().await;
    other_checker.wait_until_at_rest().await;
    assert_handed_over(&contended, &mut contended_checker, WAITING[0]).await;
}

#[tokio::test]
async fn watches_restart_after_a_compaction_and_miss_nothing() {
    // No other test may use this cluster, since a checker reads the history from the first revision.
    let cluster = FaultCluster::start(1).await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let (other, mut other_checker) = cluster.checked_namespace().await;
    for ns in [&ns, &other] {
        ns.create("alice", json!({})).await.unwrap();
        ns.bound("alice").await;
    }
    let (contended, mut contended_checker) = cluster.contended_namespace().await;
    let is_watch = |call: &common::proxy::Call| call.query.contains("watch=true");
    let unavailable = cluster.proxy.inject(Stage::Before, Fault::Answer(503), is_watch);
    cluster.proxy.freeze_watches(true);
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.create("bob", json!({})).await.expect("closing frees the binding at once, without the leader");
    ns.delete("bob").await;
    other.delete("alice").await;
    contended.delete("alice").await;
    contended.delete(WAITING[0]).await;
    checker.check().await;
    other_checker.check().await;
    contended_checker.check().await;
    // The restarted API server has no watch cache, and etcd has no older revisions.
    compact(cluster.control_plane()).await;
    let api_server = cluster.control_plane().api_server(0);
    api_server.kill();
    api_server.start().unwrap();
    drop(unavailable);
    cluster.proxy.freeze_watches(false);
    let ns = TestNamespace { client: cluster.client().await, ..ns };
    let other = TestNamespace { client: cluster.client().await, ..other };
    let contended = TestNamespace { client: cluster.client().await, ..contended };
    ns.wait_until_free().await;
    other.wait_until_free().await;
    create_with_retries(&ns, "carol", json!({})).await;
    ns.bound("carol").await;
    checker.wait_until_at_rest().await;
    other_checker.wait_until_at_rest().await;
    assert_handed_over(&contended, &mut contended_checker, WAITING[1]).await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn restored_etcd_backup_restarts_replicas_which_then_recover() {
    let cluster = FaultCluster::start(2).await;
    let control_plane = cluster.control_plane();
    let (ns, _) = cluster.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    let (contended, _) = cluster.contended_namespace().await;
    let (data, backup) = (control_plane.etcd_data(), control_plane.data_dir().join("backup"));
    control_plane.etcd().stop();
    copy(&data, &backup);
    control_plane.etcd().start().unwrap();
    ns.wait_until_api_server_answers().await;

    // The backup does not contain these changes.
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    create_with_retries(&ns, "bob", json!({})).await;
    ns.bound("bob").await;
    contended.change("alice", json!({"state": "Closed"})).await.unwrap();
    contended.bound(WAITING[0]).await;

    control_plane.api_server(0).stop();
    control_plane.etcd().stop();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data);
    control_plane.etcd().start().unwrap();
    control_plane.api_server(0).start().unwrap();
    for replica in cluster.installation().replicas() {
        let status = replica.wait(TIMEOUT).expect("the replica exits, since the history went back");
        assert!(!status.success(), "the replica exits with an error: {status}");
    }
    for replica in cluster.installation().replicas() {
        replica.start().unwrap();
    }

    let ns = TestNamespace { client: cluster.client().await, ..ns };
    let mut checker = cluster.checker(&ns, Oracle::default());
    let contended = TestNamespace { client: cluster.client().await, ..contended };
    let mut contended_checker = cluster.checker(&contended, Oracle::default());
    let refusal = ns.create("carol", json!({})).await.expect_err("alice is open again");
    assert!(refusal.message.contains("48031") && refusal.message.contains("/alice"), "{refusal:?}");
    checker.wait_until_at_rest().await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    create_with_retries(&ns, "bob", json!({})).await;
    ns.bound("bob").await;
    checker.wait_until_at_rest().await;
    waiting(&contended, WAITING[0]).await;
    assert_handed_over(&contended, &mut contended_checker, "alice").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_of_a_full_namespace_leaves_no_claim() {
    const COUNT: usize = 1_000;
    /// The number of these bindings for which another conversation of the namespace waits.
    const CONTENDED: usize = 100;
    let control_plane =
        ControlPlane::builder().namespace_controller().start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard"));
    let cluster = Cluster::install(control_plane, &installation);
    let ns = cluster.test_namespace().await;
    let creates = stream::iter(0..COUNT).map(Ok::<_, Box<kube::core::Status>>);
    let of_contact = |number: usize| json!({"contact": {"address": format!("+1666{number:07}")}});
    let create = |number: usize| {
        let ns = &ns;
        async move {
            ns.create(&format!("contact-{number}"), of_contact(number)).await?;
            if number < CONTENDED {
                ns.create(&format!("waiting-{number}"), waits(of_contact(number))).await?;
            }
            Ok(())
        }
    };
    creates.try_for_each_concurrent(16, create).await.unwrap();
    let other_ns = cluster.test_namespace().await;
    other_ns.create("waiting", waits(of_contact(1))).await.unwrap();
    let claims = ns.claims().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(claims.len(), COUNT);
    let namespaces = Api::<Namespace>::all(ns.client.clone());
    let uid = namespaces.get(&ns.namespace).await.unwrap().metadata.uid.unwrap();
    namespaces.delete(&ns.namespace, &DeleteParams::default()).await.unwrap();
    let is_deleted = conditions::is_deleted(&uid);
    until(namespaces, &ns.namespace, |namespace| is_deleted.matches_object(namespace))
        .await
        .expect("the namespace is deleted within the timeout");
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut remaining: Vec<AddressBinding> = ns.claims().list(&ListParams::default()).await.unwrap().items;
        remaining.retain(|claim| claim.spec.conversation_ref.namespace == ns.namespace);
        if remaining.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{} claims remain, such as {:?}", remaining.len(), remaining[0]);
        sleep(POLL_INTERVAL).await;
    }
    let bob = other_ns.conversation("bob", of_contact(0));
    other_ns.create_object(&bob, &PostParams::default()).await.expect("each binding is free");
    other_ns.bound("waiting").await;
}
