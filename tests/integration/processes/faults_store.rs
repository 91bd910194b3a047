//! Claims about faults of what stores: a full disk, a history that was compacted away, an etcd that was restored from a backup, and a
//! namespace that goes with a thousand conversations in it. Tier: processes.

use crate::common;
use crate::common::cluster::{Cluster, TIMEOUT, TestNamespace, until};
use crate::common::etcd::{compact, set_disk_full};
use crate::common::fault_cluster::{
    FaultCluster, POLL_INTERVAL, create_as_soon_as_possible, exclusive_cluster, is_to_be_repeated,
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
async fn while_the_disk_of_etcd_is_full_nothing_is_admitted_and_nothing_is_lost() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let (other, mut other_witness) = faulty.desk().await;
    other.create("alice", json!({})).await.unwrap();
    other.bound("alice").await;
    set_disk_full(&faulty.cluster.control_plane, true).await;
    let refusal = desk.create("alice", json!({})).await.expect_err("no claim can be made");
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    let refusal = other.create("bob", json!({})).await.expect_err("alice holds it");
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    // A deletion is what etcd still takes, of a conversation and of its claim.
    other.delete("alice").await;
    set_disk_full(&faulty.cluster.control_plane, false).await;
    create_as_soon_as_possible(&desk, "alice", json!({})).await;
    create_as_soon_as_possible(&other, "bob", json!({})).await;
    desk.bound("alice").await;
    other.bound("bob").await;
    witness.show_rest().await;
    other_witness.show_rest().await;
}

#[tokio::test]
async fn watches_whose_history_was_compacted_away_begin_anew_and_miss_nothing() {
    // Not one that others get afterwards: their witnesses look back to the first revision.
    let faulty = FaultCluster::start(1).await;
    let (desk, mut witness) = faulty.desk().await;
    let (other, mut other_witness) = faulty.desk().await;
    for desk in [&desk, &other] {
        desk.create("alice", json!({})).await.unwrap();
        desk.bound("alice").await;
    }
    let is_watch = |call: &common::proxy::Call| call.query.contains("watch=true");
    let gone = faulty.proxy.inject(Stage::Before, Fault::Answer(503), is_watch);
    faulty.proxy.freeze_watches(true);
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.create("bob", json!({})).await.expect("closing frees the binding at once, without the leader");
    desk.delete("bob").await;
    other.delete("alice").await;
    witness.show().await;
    other_witness.show().await;
    // An API server that begins anew knows nothing from before it began, and etcd no more either.
    compact(&faulty.cluster.control_plane).await;
    let api_server = faulty.cluster.control_plane.api_server(0);
    api_server.kill();
    api_server.start().unwrap();
    drop(gone);
    faulty.proxy.freeze_watches(false);
    let desk = TestNamespace { client: faulty.client().await, ..desk };
    let other = TestNamespace { client: faulty.client().await, ..other };
    desk.wait_until_free().await;
    other.wait_until_free().await;
    create_as_soon_as_possible(&desk, "carol", json!({})).await;
    desk.bound("carol").await;
    witness.show_rest().await;
    other_witness.show_rest().await;
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
async fn an_etcd_that_is_restored_from_a_backup_makes_each_replica_begin_anew_and_rest_is_as_it_should_be() {
    let faulty = FaultCluster::start(2).await;
    let control_plane = &faulty.cluster.control_plane;
    let (desk, _) = faulty.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    let (data, backup) = (control_plane.etcd_data(), control_plane.data_dir().join("backup"));
    control_plane.etcd().stop();
    copy(&data, &backup);
    control_plane.etcd().start().unwrap();
    desk.until_it_answers().await;

    // What the backup does not know of.
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    create_as_soon_as_possible(&desk, "bob", json!({})).await;
    desk.bound("bob").await;

    control_plane.api_server(0).stop();
    control_plane.etcd().stop();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data);
    control_plane.etcd().start().unwrap();
    control_plane.api_server(0).start().unwrap();
    for replica in faulty.cluster.installation.replicas() {
        let ended = replica.wait(TIMEOUT).expect("what it knows is of another history: it ends");
        assert!(!ended.success(), "so that it is started anew: {ended}");
    }
    for replica in faulty.cluster.installation.replicas() {
        replica.start().unwrap();
    }

    let desk = TestNamespace { client: faulty.client().await, ..desk };
    let mut witness = faulty.witness(&desk, Oracle::default());
    let refusal = desk.create("carol", json!({})).await.expect_err("alice is open again, as she was");
    assert!(refusal.message.contains("48031") && refusal.message.contains("/alice"), "{refusal:?}");
    witness.show_rest().await;
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    create_as_soon_as_possible(&desk, "bob", json!({})).await;
    desk.bound("bob").await;
    witness.show_rest().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_goes_with_a_thousand_conversations_leaves_no_claim() {
    const COUNT: usize = 1_000;
    let control_plane =
        ControlPlane::builder().namespace_controller().start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard"));
    let cluster = Cluster::install(control_plane, &installation);
    let desk = cluster.desk().await;
    let creates = stream::iter(0..COUNT).map(Ok::<_, Box<kube::core::Status>>);
    let create = |number: usize| {
        let desk = &desk;
        async move {
            let contact = json!({"contact": {"address": format!("+1666{number:07}")}});
            desk.create(&format!("contact-{number}"), contact).await.map(drop)
        }
    };
    creates.try_for_each_concurrent(16, create).await.unwrap();
    let claims = desk.claims().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(claims.len(), COUNT);
    let namespaces = Api::<Namespace>::all(desk.client.clone());
    let uid = namespaces.get(&desk.namespace).await.unwrap().metadata.uid.unwrap();
    namespaces.delete(&desk.namespace, &DeleteParams::default()).await.unwrap();
    let gone = conditions::is_deleted(&uid);
    until(namespaces, &desk.namespace, |namespace| gone.matches_object(namespace)).await.expect("the namespace goes");
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let left: Vec<AddressBinding> = desk.claims().list(&ListParams::default()).await.unwrap().items;
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{} claims stay, such as {:?}", left.len(), left[0]);
        sleep(POLL_INTERVAL).await;
    }
    let again = cluster.desk().await;
    let bob = again.conversation("bob", json!({"contact": {"address": "+16660000000"}}));
    again.create_object(&bob, &PostParams::default()).await.expect("each binding is free");
}
