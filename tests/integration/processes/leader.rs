//! Leadership, by real replicas: one leads, another takes over, and nothing that was due is lost.

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

/// Short, so that a test need not wait long for its end.
const LEASE: &str = "4s";

/// Two replicas that compete for a Lease which lasts that long.
fn cluster(lease: &str) -> Cluster {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2);
    let installation = installation.flag(format!("--lease-duration={lease}")).flag("--drain-delay=1s");
    Cluster::install(control_plane, &installation)
}

/// Waits until the Lease has a holder that `is_it`, and returns that holder.
async fn wait_for_leader(cluster: &Cluster, is_it: impl Fn(&str) -> bool) -> String {
    let leases = Api::<Lease>::namespaced(cluster.client(0).await, NAMESPACE);
    let holder = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    let held = until(leases, "switchboard", |lease: Option<&Lease>| {
        lease.is_some_and(|lease| !holder(lease).is_empty() && is_it(&holder(lease)))
    });
    holder(&held.await.flatten().expect("a leader in time"))
}

/// The replica of that identity, and the other one.
fn leader_and_standby<'a>(cluster: &'a Cluster, identity: &str) -> (&'a Replica, &'a Replica) {
    let index = cluster.installation.index_of(identity).expect("a replica of ours");
    (cluster.installation.replica(index), cluster.installation.replica(1 - index))
}

#[tokio::test]
async fn a_leader_that_is_killed_is_replaced_and_its_timers_are_honoured() {
    let cluster = cluster(LEASE);
    let identity = wait_for_leader(&cluster, |_| true).await;
    let desk = cluster.desk().await;
    desk.create("alice", json!({"timers": {"closeAfter": "15s"}})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    let (leader, _) = leader_and_standby(&cluster, &identity);
    cluster.installation.balancer().remove(leader.webhook_address());
    leader.kill();
    let killed = Instant::now();
    wait_for_leader(&cluster, |holder| holder != identity).await;
    println!("another led {:?} after the leader was killed, whose lease lasts {LEASE}", killed.elapsed());
    desk.wait_for_state("alice", State::Closed).await;
    desk.wait_until_free().await;
    desk.create("bob", json!({})).await.unwrap();
    desk.wait_for_condition("bob", ConditionType::Ready, ConditionStatus::True).await;
}

#[tokio::test]
async fn who_stands_by_is_told_of_each_renewal_and_asks_nothing() {
    let cluster = cluster("10s");
    let identity = wait_for_leader(&cluster, |_| true).await;
    let (_, standby) = leader_and_standby(&cluster, &identity);
    let asked = |verb: &'static str| async move {
        let series = format!("switchboard_api_requests_total{{verb=\"{verb}\",resource=\"leases\"");
        metrics(standby).await.lines().filter(|line| line.starts_with(&series)).map(str::to_owned).collect::<Vec<_>>()
    };
    let watches = async { while asked("watch").await.is_empty() {} };
    timeout(TIMEOUT, watches).await.expect("it watches the Lease");
    let before = asked("get").await;

    let leases = Api::<Lease>::namespaced(cluster.client(0).await, NAMESPACE);
    let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone()).unwrap().0;
    let first = renewed(&leases.get("switchboard").await.unwrap());
    let lasts = |lease: &Lease| renewed(lease).duration_since(first).as_secs() > 10;
    until(leases, "switchboard", |lease: Option<&Lease>| lease.is_some_and(lasts))
        .await
        .expect("it is renewed in time");
    assert_eq!(asked("get").await, before, "for longer than the Lease would last without a renewal");
    assert_eq!(wait_for_leader(&cluster, |_| true).await, identity);
}

#[tokio::test]
async fn a_leader_that_is_asked_to_stop_gives_the_lease_back_and_ends_well() {
    let cluster = cluster(LEASE);
    let identity = wait_for_leader(&cluster, |_| true).await;
    let (leader, _) = leader_and_standby(&cluster, &identity);
    cluster.installation.balancer().remove(leader.webhook_address());
    leader.terminate();
    let status = leader.wait(TIMEOUT).expect("it ends");
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
async fn a_leader_that_was_suspended_undoes_nothing_that_its_successor_decided() {
    let cluster = cluster(LEASE);
    let identity = wait_for_leader(&cluster, |_| true).await;
    let desk = cluster.desk().await;
    desk.create("alice", json!({"timers": {"closeAfter": "1h"}})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    let (leader, _) = leader_and_standby(&cluster, &identity);
    cluster.installation.balancer().remove(leader.webhook_address());
    leader.pause();
    let successor = wait_for_leader(&cluster, |holder| holder != identity).await;
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    let closed = desk.wait_for_state("alice", State::Closed).await;
    desk.wait_until_free().await;
    leader.resume();
    // The one that wakes answers probes again, and has seen that the Lease is gone before it does anything else.
    leader.wait_until_ready().unwrap();
    assert_eq!(wait_for_leader(&cluster, |_| true).await, successor);
    desk.create("bob", json!({})).await.unwrap();
    desk.wait_for_condition("bob", ConditionType::Ready, ConditionStatus::True).await;
    let claim = desk.claim().await.expect("bob's claim");
    assert_eq!(claim.spec.conversation_ref.name, "bob");
    assert_eq!(desk.conversations().get("alice").await.unwrap(), closed);
}
