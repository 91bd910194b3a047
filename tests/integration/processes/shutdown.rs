//! The shutdown of replicas, with real API servers: no create fails, and another replica leads at once.

use crate::common::cluster::{Cluster, TIMEOUT, until};
use crate::common::creates::{count_until, create_once, without_retries};
use crate::common::webhook_client::{self, WebhookClient};
use control_plane::{ControlPlane, Installation, Replica};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Whether a replica answers its readiness probe with a 200.
async fn is_ready(replica: &Replica) -> bool {
    let url = format!("http://{}", replica.address()).parse().unwrap();
    // A failed probe is a result, so the client does not retry.
    let mut config = kube::Config::new(url);
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    client.request_text(hyper::Request::get("/readyz").body(Vec::new()).unwrap()).await.is_ok()
}

/// Waits until `is_it` is true of the holder of the Lease, and returns its identity.
async fn holder(cluster: &Cluster, is_it: impl Fn(&str) -> bool) -> String {
    let leases = Api::<Lease>::namespaced(cluster.client(0).await, "switchboard-system");
    let holder = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    let held = until(leases, "switchboard", |lease: Option<&Lease>| {
        lease.is_some_and(|lease| !holder(lease).is_empty() && is_it(&holder(lease)))
    });
    holder(&held.await.flatten().expect("the expected leader within the timeout"))
}

/// Restarts a replica as a rollout does: after SIGTERM its probe fails, it gets no new connections, and it exits. Returns the time until
/// another replica leads, if this one was the leader.
async fn roll(cluster: &Cluster, replica: &Replica, name: &str) -> Option<Duration> {
    let leads = holder(cluster, |_| true).await.starts_with(&format!("{name}_"));
    let terminated = Instant::now();
    replica.terminate();
    let failover = async {
        if !leads {
            return None;
        }
        holder(cluster, |holder| !holder.starts_with(&format!("{name}_"))).await;
        Some(terminated.elapsed())
    };
    let drain = async {
        while is_ready(replica).await {
            sleep(POLL_INTERVAL).await;
        }
        cluster.installation.balancer().remove(replica.webhook_address());
    };
    let (failover, ()) = tokio::join!(failover, drain);
    let status = tokio::task::block_in_place(|| replica.wait(TIMEOUT)).expect("the replica exits within the timeout");
    assert!(status.success(), "{status}");
    tokio::task::block_in_place(|| replica.start()).unwrap();
    cluster.installation.balancer().add(replica.webhook_address());
    failover
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restart_fails_no_create_and_answers_open_requests() {
    let control_plane = ControlPlane::builder().api_servers(2).start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2).flag("--drain-delay=2s");
    let cluster = Arc::new(Cluster::install(control_plane, &installation));
    let ns = cluster.test_namespace().await;
    let done = CancellationToken::new();
    // The creates run in their own tasks, because the wait for a process blocks its task. There are so many that each API server has
    // a pool of connections, some of which are idle at any moment.
    let creates: Vec<_> = (0..16)
        .map(|client| {
            let (cluster, ns, done) = (cluster.clone(), ns.clone(), done.clone());
            tokio::spawn(async move { count_until(&cluster, &ns, client % 2, &done).await })
        })
        .collect();
    let mut failovers = Vec::new();
    for _ in 0..2 {
        for (replica, name) in cluster.installation.replicas().iter().zip(["replica-1", "replica-2"]) {
            failovers.extend(roll(&cluster, replica, name).await);
        }
    }
    done.cancel();
    let (mut sent, mut failures) = (Vec::new(), Vec::new());
    for create in creates {
        let (count, failed) = create.await.unwrap();
        sent.push(count);
        failures.extend(failed);
    }
    println!(
        "{} creates during four restarts, {} failed; another replica led after {failovers:?}",
        sent.iter().sum::<usize>(),
        failures.len()
    );
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(sent.iter().all(|count| *count > 0) && !failovers.is_empty());

    let replica = cluster.installation.replica(0);
    let webhook_client = WebhookClient::new(cluster.installation.authority().certificate().as_bytes(), None);
    let mut in_flight = webhook_client.connect(replica.webhook_address()).await.unwrap();
    let body = b"not a review";
    webhook_client::send(&mut in_flight, &webhook_client::request(body.len(), &body[..8])).await.unwrap();
    replica.terminate();
    // Once it refuses new connections, it waits only for requests in flight.
    while TcpStream::connect(replica.webhook_address()).await.is_ok() {
        sleep(POLL_INTERVAL).await;
    }
    webhook_client::send(&mut in_flight, &body[8..]).await.unwrap();
    assert_eq!(webhook_client::answer(&mut in_flight).await.expect("an answer").code, 400);
    assert!(
        tokio::task::block_in_place(|| replica.wait(TIMEOUT)).expect("the replica exits within the timeout").success()
    );
}

/// The webhook's timeout for request headers. An earlier version cut idle connections after it, and the API server does not retry a
/// create whose connection is cut.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CREATES: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_five_seconds_apart_fail_none() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let cluster = Cluster::install(control_plane, &Installation::builder(env!("CARGO_BIN_EXE_switchboard")));
    let ns = without_retries(&cluster, &cluster.test_namespace().await, 0).await;
    let clients = (0..20).map(|number| {
        let ns = ns.clone();
        // The time from an answer of the webhook to the next review is five seconds, give or take a few milliseconds.
        let pause = HEADER_TIMEOUT + Duration::from_millis(2 * number);
        tokio::spawn(async move {
            let mut failures = Vec::new();
            for _ in 0..CREATES {
                let next = tokio::time::Instant::now() + pause;
                failures.extend(create_once(&ns).await.err().map(|error| error.to_string()));
                // This is not a wait for a condition: the test is about idle connections.
                sleep_until(next).await;
            }
            failures
        })
    });
    let mut failures = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        failures.extend(client.await.unwrap());
    }
    println!("{} creates about {HEADER_TIMEOUT:?} apart, {} failed", 20 * CREATES, failures.len());
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_replica_fails_its_probe_and_answers_new_connections() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    // The drain delay is longer than the test.
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).flag("--drain-delay=10m");
    let cluster = Cluster::install(control_plane, &installation);
    let ns = cluster.test_namespace().await;
    let replica = cluster.installation.replica(0);
    replica.terminate();
    let is_draining = async {
        while is_ready(replica).await {
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(TIMEOUT, is_draining).await.expect("the probe fails");
    let webhook_client = WebhookClient::new(cluster.installation.authority().certificate().as_bytes(), None);
    let mut new = webhook_client.connect(replica.webhook_address()).await.expect("the replica accepts new connections");
    let kept = String::from_utf8(webhook_client::request(2, b"{}")).unwrap().replace("Connection: close\r\n", "");
    webhook_client::send(&mut new, kept.as_bytes()).await.unwrap();
    let answer =
        timeout(TIMEOUT, webhook_client::answer(&mut new)).await.expect("the connection ends after the answer");
    assert_eq!(answer.expect("an answer").code, 400);
    ns.create("alice", json!({})).await.expect("the replica answers reviews");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_signal_ends_a_replica_at_once_with_an_error() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    // The drain delay is longer than the test.
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).flag("--drain-delay=10m");
    let cluster = Cluster::install(control_plane, &installation);
    let replica = cluster.installation.replica(0);
    replica.terminate();
    let is_draining = async {
        while is_ready(replica).await {
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(TIMEOUT, is_draining).await.expect("the probe fails");
    replica.interrupt();
    let status = tokio::task::block_in_place(|| replica.wait(TIMEOUT)).expect("the replica exits at once");
    assert_eq!(status.code(), Some(1), "{status}");
    let log = std::fs::read_to_string(replica.log()).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["fields"]["error"], "SIGINT during the shutdown: exiting immediately");
}
