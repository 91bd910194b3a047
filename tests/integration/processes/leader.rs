//! Leader election with real replicas: one leads, another takes over, and no due work is lost.

use crate::common::cluster::{Cluster, TIMEOUT, metrics, until};
use control_plane::{ControlPlane, Installation, Replica};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use serde_json::json;
use std::time::Instant;
use switchboard::api::{ConditionStatus, ConditionType, State};
use tokio::time::timeout;

const NAMESPACE: &str = "switchboard-system";

/// Short, so that a test does not wait long until it expires.
const LEASE: &str = "4s";

/// Two replicas that compete for a Lease with this duration.
fn cluster(lease: &str) -> Cluster {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2);
    let installation = installation.flag(format!("--lease-duration={lease}")).flag("--drain-delay=1s");
    Cluster::install(control_plane, &installation)
}

/// Waits until `is_it` is true of the holder of the Lease, and returns its identity.
async fn wait_for_leader(cluster: &Cluster, is_it: impl Fn(&str) -> bool) -> String {
    let leases = Api::<Lease>::namespaced(cluster.client(0).await, NAMESPACE);
    let holder = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    let held = until(leases, "switchboard", |lease: Option<&Lease>| {
        lease.is_some_and(|lease| !holder(lease).is_empty() && is_it(&holder(lease)))
    });
    holder(&held.await.flatten().expect("the expected leader within the timeout"))
}

/// The replica with this identity, and the other replica.
fn leader_and_standby<'a>(cluster: &'a Cluster, identity: &str) -> (&'a Replica, &'a Replica) {
    let index = cluster.installation.index_of(identity).expect("the identity of a replica");
    (cluster.installation.replica(index), cluster.installation.replica(1 - index))
}

#[tokio::test]
async fn killed_leader_is_replaced_and_its_timers_expire() {
    let cluster = cluster(LEASE);
    let identity = wait_for_leader(&cluster, |_| true).await;
    let ns = cluster.test_namespace().await;
    ns.create("alice", json!({"timers": {"closeAfter": "15s"}})).await.unwrap();
    ns.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    let (leader, _) = leader_and_standby(&cluster, &identity);
    cluster.installation.balancer().remove(leader.webhook_address());
    leader.kill();
    let killed = Instant::now();
    wait_for_leader(&cluster, |holder| holder != identity).await;
    println!("another replica led {:?} after the leader was killed; the lease duration is {LEASE}", killed.elapsed());
    ns.wait_for_state("alice", State::Closed).await;
    ns.wait_until_free().await;
    ns.create("bob", json!({})).await.unwrap();
    ns.wait_for_condition("bob", ConditionType::Ready, ConditionStatus::True).await;
}

#[tokio::test]
async fn standby_watches_lease_without_polling() {
    let cluster = cluster("10s");
    let identity = wait_for_leader(&cluster, |_| true).await;
    let (_, standby) = leader_and_standby(&cluster, &identity);
    let requests = |verb: &'static str| async move {
        let series = format!("switchboard_api_requests_total{{verb=\"{verb}\",resource=\"leases\"");
        metrics(standby).await.lines().filter(|line| line.starts_with(&series)).map(str::to_owned).collect::<Vec<_>>()
    };
    let watches = async { while requests("watch").await.is_empty() {} };
    timeout(TIMEOUT, watches).await.expect("the standby watches the Lease");
    let before = requests("get").await;

    let leases = Api::<Lease>::namespaced(cluster.client(0).await, NAMESPACE);
    let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone()).unwrap().0;
    let first = renewed(&leases.get("switchboard").await.unwrap());
    let outlasts = |lease: &Lease| renewed(lease).duration_since(first).as_secs() > 10;
    until(leases, "switchboard", |lease: Option<&Lease>| lease.is_some_and(outlasts))
        .await
        .expect("the leader renews the Lease within the timeout");
    assert_eq!(requests("get").await, before, "no get for longer than the lease duration");
    assert_eq!(wait_for_leader(&cluster, |_| true).await, identity);
}

#[tokio::test]
async fn terminated_leader_releases_the_lease_and_exits_with_0() {
    let cluster = cluster(LEASE);
    let identity = wait_for_leader(&cluster, |_| true).await;
    let (leader, _) = leader_and_standby(&cluster, &identity);
    cluster.installation.balancer().remove(leader.webhook_address());
    leader.terminate();
    let status = leader.wait(TIMEOUT).expect("the leader exits within the timeout");
    assert!(status.success(), "{status}");
    let log = std::fs::read_to_string(leader.log()).unwrap();
    assert!(log.contains("released the Lease"), "{log}");
    wait_for_leader(&cluster, |holder| holder != identity).await;
}

#[tokio::test]
async fn lease_is_owned_by_the_operators_service_account() {
    let cluster = cluster(LEASE);
    wait_for_leader(&cluster, |_| true).await;
    let client = cluster.client(0).await;
    let account = Api::<ServiceAccount>::namespaced(client.clone(), NAMESPACE).get("switchboard").await.unwrap();
    let lease = Api::<Lease>::namespaced(client, NAMESPACE).get("switchboard").await.unwrap();
    let owners =
        lease.metadata.owner_references.expect("an owner, so that the garbage collector deletes it with the account");
    assert_eq!(owners.into_iter().map(|owner| owner.uid).collect::<Vec<_>>(), [account.metadata.uid.unwrap()]);
}

#[tokio::test]
async fn resumed_leader_does_not_undo_its_successors_decisions() {
    let cluster = cluster(LEASE);
    let identity = wait_for_leader(&cluster, |_| true).await;
    let ns = cluster.test_namespace().await;
    ns.create("alice", json!({"timers": {"closeAfter": "1h"}})).await.unwrap();
    ns.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    let (leader, _) = leader_and_standby(&cluster, &identity);
    cluster.installation.balancer().remove(leader.webhook_address());
    leader.pause();
    let successor = wait_for_leader(&cluster, |holder| holder != identity).await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    let closed = ns.wait_for_state("alice", State::Closed).await;
    ns.wait_until_free().await;
    leader.resume();
    // Once the resumed replica answers probes, it has seen the loss of the Lease.
    leader.wait_until_ready().unwrap();
    assert_eq!(wait_for_leader(&cluster, |_| true).await, successor);
    ns.create("bob", json!({})).await.unwrap();
    ns.wait_for_condition("bob", ConditionType::Ready, ConditionStatus::True).await;
    let claim = ns.claim().await.expect("the claim of bob");
    assert_eq!(claim.spec.conversation_ref.name, "bob");
    assert_eq!(ns.conversations().get("alice").await.unwrap(), closed);
}
