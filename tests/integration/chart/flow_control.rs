//! The chart's priority level for the operator, on an API server that has few seats: claims do not wait behind the creates
//! that wait for them.

use crate::common::cluster::{Cluster, TestNamespace};
use crate::common::succeed;
use control_plane::{ControlPlane, Installation};
use futures::StreamExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::sleep;

/// Seats for everybody together. Of these the level of the service accounts has eight, and the operator's has one.
const SEATS: usize = 20;
/// Creates under way at any time: many more than there are seats.
const CONCURRENCY: usize = 100;
const CREATES: u32 = 1_000;
/// The API server's answer to a request that found no seat in time.
const TURNED_AWAY: &str = "Too many requests, please try again later.";

/// A service account that may create conversations: its requests are in the level in which the operator's would be by default.
async fn service_account(cluster: &Cluster, desk: &TestNamespace) -> Client {
    let kubectl = |arguments: &[&str]| succeed(cluster.control_plane.kubectl().args(arguments));
    let namespace = &["--namespace", &desk.namespace][..];
    kubectl(&[&["create", "serviceaccount", "flood"], namespace].concat());
    let account = format!("--serviceaccount={}:flood", desk.namespace);
    let binding = ["create", "rolebinding", "flood", "--clusterrole=switchboard-edit", &account];
    kubectl(&[&binding, namespace].concat());
    let token = kubectl(&[&["create", "token", "flood"], namespace].concat());
    let kubeconfig = Kubeconfig::from_yaml(&cluster.control_plane.kubeconfig_for_token(token.trim(), 0)).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    // A refusal is to be seen, not repeated.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// What the API server counts of the requests at the operator's level, by metric.
fn counted(cluster: &Cluster, metric: &str) -> f64 {
    let metrics = succeed(cluster.control_plane.kubectl().args(["get", "--raw", "/metrics"]));
    let ours = |line: &&str| line.starts_with(metric) && line.contains(r#"priority_level="switchboard""#);
    metrics.lines().filter(ours).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn a_flood_of_creates_leaves_room_for_the_claims_that_it_needs() {
    let control_plane = ControlPlane::builder()
        .api_server_flag(format!("--max-requests-inflight={}", SEATS / 2))
        .api_server_flag(format!("--max-mutating-requests-inflight={}", SEATS / 2))
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let cluster = Cluster::install(control_plane, &Installation::builder(env!("CARGO_BIN_EXE_switchboard")));
    let desk = cluster.test_namespace().await;
    let flood = TestNamespace { client: service_account(&cluster, &desk).await, ..desk.clone() };

    let creates = futures::stream::iter(0..CREATES).map(|number| {
        let flood = &flood;
        let contact = json!({"contact": {"address": format!("+1556{number:07}")}});
        async move {
            loop {
                match flood.create(&format!("flood-{number}"), contact.clone()).await {
                    // The API server turns the flood itself away where it waits for a seat for too long: no webhook was asked yet.
                    Err(status) if status.code == 429 && status.message.trim() == TURNED_AWAY => {
                        sleep(Duration::from_secs(1)).await;
                    }
                    result => break result,
                }
            }
        }
    });
    let mut failures = BTreeMap::<_, usize>::new();
    let mut creates = creates.buffer_unordered(CONCURRENCY);
    while let Some(result) = creates.next().await {
        if let Err(status) = result {
            *failures.entry((status.code, status.message.clone())).or_default() += 1;
        }
    }
    assert!(failures.is_empty(), "{failures:?}");

    let dispatched = counted(&cluster, "apiserver_flowcontrol_dispatched_requests_total");
    assert!(dispatched >= f64::from(CREATES), "the operator's requests are not at its level: {dispatched}");
    assert!(
        counted(&cluster, "apiserver_flowcontrol_rejected_requests_total") == 0.0,
        "requests of the operator were refused"
    );
}
