//! The chart's priority level for the operator, on an API server with few seats: claims do not queue behind the creates that
//! wait for them.

use crate::common::chart::NAMESPACE;
use crate::common::cluster::{Cluster, TIMEOUT, TestNamespace, metrics};
use crate::common::fault_cluster::POLL_INTERVAL;
use crate::common::succeed;
use control_plane::{ControlPlane, Installation};
use futures::StreamExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Seats of all priority levels together. The level of the service accounts gets eight of them, and the operator's level gets one.
const SEATS: usize = 20;
/// Concurrent creates: many more than there are seats.
const CONCURRENCY: usize = 100;
const CREATES: u32 = 1_000;
/// The API server's answer to a request that got no seat in time.
const NO_SEAT: &str = "Too many requests, please try again later.";

/// A cluster with few seats. The operator's level may borrow none: how many it could borrow changes every ten seconds with the demand
/// at the other levels, and at worst it is none.
async fn cluster(installation: &control_plane::InstallationBuilder) -> Cluster {
    let control_plane = ControlPlane::builder()
        .api_server_flag(format!("--max-requests-inflight={}", SEATS / 2))
        .api_server_flag(format!("--max-mutating-requests-inflight={}", SEATS / 2))
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let cluster = Cluster::install(control_plane, installation);
    let no_borrowing = r#"{"spec": {"limited": {"borrowingLimitPercent": 0}}}"#;
    let patch = ["patch", "prioritylevelconfiguration", "switchboard", "--type", "merge", "--patch", no_borrowing];
    succeed(cluster.control_plane.kubectl().args(patch));
    let has_one_seat = async {
        loop {
            let (lines, seats) = at_operator_level(&cluster, "apiserver_flowcontrol_current_limit_seats");
            if lines.len() == 1 && seats <= 1.0 {
                break;
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(TIMEOUT, has_one_seat).await.expect("the operator's level has one seat");
    cluster
}

/// A client of a service account, given as `NAMESPACE:NAME`, that may create conversations in the test namespace by this role.
async fn service_account(cluster: &Cluster, namespace: &TestNamespace, account: &str, role: &str) -> Client {
    let kubectl = |arguments: &[&str]| succeed(cluster.control_plane.kubectl().args(arguments));
    let binding = ["create", "rolebinding", "flood", "--clusterrole", role, "--serviceaccount", account];
    kubectl(&[&binding[..], &["--namespace", &namespace.namespace]].concat());
    let (of, name) = account.split_once(':').unwrap();
    let token = kubectl(&["create", "token", name, "--namespace", of]);
    let kubeconfig = Kubeconfig::from_yaml(&cluster.control_plane.kubeconfig_for_token(token.trim(), 0)).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    // The test must see each refusal, so the client does not retry.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// The lines of a metric of the API server for requests at the operator's priority level, and the sum of their values.
fn at_operator_level(cluster: &Cluster, metric: &str) -> (Vec<String>, f64) {
    let metrics = succeed(cluster.control_plane.kubectl().args(["get", "--raw", "/metrics"]));
    let ours = |line: &&str| line.starts_with(metric) && line.contains(r#"priority_level="switchboard""#);
    let lines: Vec<_> = metrics.lines().filter(ours).map(str::to_owned).collect();
    let sum = lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
    (lines, sum)
}

/// Creates conversations with all clients at once, and asserts that each is stored and that no request of the operator was rejected.
async fn assert_served_during_a_flood(cluster: &Cluster, flood: &TestNamespace) {
    let creates = futures::stream::iter(0..CREATES).map(|number| {
        let contact = json!({"contact": {"address": format!("+1556{number:07}")}});
        async move {
            loop {
                match flood.create(&format!("flood-{number}"), contact.clone()).await {
                    // The API server rejects a create that waits too long for a seat. It has not called the webhook yet.
                    Err(status) if status.code == 429 && status.message.trim() == NO_SEAT => {
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

    let (_, dispatched) = at_operator_level(cluster, "apiserver_flowcontrol_dispatched_requests_total");
    assert!(dispatched >= f64::from(CREATES), "the operator's requests are not at its priority level: {dispatched}");
    let (rejections, count) = at_operator_level(cluster, "apiserver_flowcontrol_rejected_requests_total");
    assert!(count == 0.0, "the API server rejected requests of the operator: {rejections:?}");
}

/// A dry run of the operator occupies its seat until the operator has read the claim. At the operator's level, that read would wait for the
/// seat, and so would the claims of all creates, for as long as a review may take.
#[tokio::test]
async fn self_check_occupies_no_seat_of_the_operator() {
    let cluster = cluster(&Installation::builder(env!("CARGO_BIN_EXE_switchboard"))).await;
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    let replica = cluster.installation.replica(0);
    let passed = async {
        while !metrics(replica).await.contains("switchboard_webhook_in_force 1\n") {
            assert!(
                metrics(replica).await.contains("switchboard_self_check_failures_total 0\n"),
                "a self-check failed"
            );
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(TIMEOUT, passed).await.expect("the self-check passes");
}

/// Without the chart's priority level, the operator's requests would be in the same level as those of the account.
#[tokio::test]
async fn claims_are_served_during_a_flood_of_creates() {
    let cluster = cluster(&Installation::builder(env!("CARGO_BIN_EXE_switchboard"))).await;
    let namespace = cluster.test_namespace().await;
    succeed(cluster.control_plane.kubectl().args([
        "create",
        "serviceaccount",
        "flood",
        "--namespace",
        &namespace.namespace,
    ]));
    let account = format!("{}:flood", namespace.namespace);
    let client = service_account(&cluster, &namespace, &account, "switchboard-edit").await;
    assert_served_during_a_flood(&cluster, &TestNamespace { client, ..namespace.clone() }).await;
}

/// If the router's requests were in the operator's level, its creates could take the seat that the answer of the webhook needs.
#[tokio::test]
async fn claims_are_served_during_a_flood_of_the_router() {
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard"))
        .set("router.enabled", "true")
        .set("router.sources.gateway.type", "CloudEvents")
        .set("router.sources.gateway.secretName", "gateway");
    let cluster = cluster(&installation).await;
    let namespace = cluster.test_namespace().await;
    let account = format!("{NAMESPACE}:switchboard-router");
    let client = service_account(&cluster, &namespace, &account, "switchboard-router-create").await;
    assert_served_during_a_flood(&cluster, &TestNamespace { client, ..namespace.clone() }).await;
}
