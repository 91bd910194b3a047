//! How replicas end, by real API servers: nobody who creates a conversation notices, and another leads at once.

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

/// Whether a replica answers its readiness probe by a 200.
async fn is_ready(replica: &Replica) -> bool {
    let url = format!("http://{}", replica.address()).parse().unwrap();
    // A probe that fails is an answer, and no reason to ask again.
    let mut config = kube::Config::new(url);
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    client.request_text(hyper::Request::get("/readyz").body(Vec::new()).unwrap()).await.is_ok()
}

async fn holder(cluster: &Cluster, is_it: impl Fn(&str) -> bool) -> String {
    let leases = Api::<Lease>::namespaced(cluster.client(0).await, "switchboard-system");
    let holder = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    let held = until(leases, "switchboard", |lease: Option<&Lease>| {
        lease.is_some_and(|lease| !holder(lease).is_empty() && is_it(&holder(lease)))
    });
    holder(&held.await.flatten().expect("a leader in time"))
}

/// Ends a replica as a rollout does: it is told, fails its probe, gets no new connection from then on, and ends.
async fn roll(cluster: &Cluster, replica: &Replica, name: &str) -> Option<Duration> {
    let leads = holder(cluster, |_| true).await.starts_with(&format!("{name}_"));
    let told = Instant::now();
    replica.terminate();
    let failover = async {
        if !leads {
            return None;
        }
        holder(cluster, |holder| !holder.starts_with(&format!("{name}_"))).await;
        Some(told.elapsed())
    };
    let drain = async {
        while is_ready(replica).await {
            sleep(POLL_INTERVAL).await;
        }
        cluster.installation.balancer().remove(replica.webhook_address());
    };
    let (failover, ()) = tokio::join!(failover, drain);
    let status = tokio::task::block_in_place(|| replica.wait(TIMEOUT)).expect("it ends");
    assert!(status.success(), "{status}");
    tokio::task::block_in_place(|| replica.start()).unwrap();
    cluster.installation.balancer().add(replica.webhook_address());
    failover
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_constant_creates_fails_none_and_what_is_in_flight_is_answered() {
    let control_plane = ControlPlane::builder().api_servers(2).start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2).flag("--drain-delay=2s");
    let cluster = Arc::new(Cluster::install(control_plane, &installation));
    let desk = cluster.desk().await;
    let done = CancellationToken::new();
    // Tasks of their own: whoever waits for a process to end blocks what is joined with it. So many that each API server has a
    // pool of connections, of which some are idle at any moment.
    let creates: Vec<_> = (0..16)
        .map(|client| {
            let (cluster, desk, done) = (cluster.clone(), desk.clone(), done.clone());
            tokio::spawn(async move { count_until(&cluster, &desk, client % 2, &done).await })
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
        "{} creates during four restarts, {} failed; another led after {failovers:?}",
        sent.iter().sum::<usize>(),
        failures.len()
    );
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(sent.iter().all(|count| *count > 0) && !failovers.is_empty());

    let replica = cluster.installation.replica(0);
    let caller = WebhookClient::new(cluster.installation.authority().certificate().as_bytes(), None);
    let mut in_flight = caller.connect(replica.webhook_address()).await.unwrap();
    let body = b"no review, which is an answer too";
    webhook_client::send(&mut in_flight, &webhook_client::request(body.len(), &body[..8])).await.unwrap();
    replica.terminate();
    // It takes nobody in any more: now it waits for what is in flight alone.
    while TcpStream::connect(replica.webhook_address()).await.is_ok() {
        sleep(POLL_INTERVAL).await;
    }
    webhook_client::send(&mut in_flight, &body[8..]).await.unwrap();
    assert_eq!(webhook_client::answer(&mut in_flight).await.expect("an answer").code, 400);
    assert!(tokio::task::block_in_place(|| replica.wait(TIMEOUT)).expect("it ends").success());
}

/// The server's limit for a header, after which it once cut idle connections. The API server does not repeat a create that meets that.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CREATES: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_five_seconds_apart_fail_none() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let cluster = Cluster::install(control_plane, &Installation::builder(env!("CARGO_BIN_EXE_switchboard")));
    let desk = without_retries(&cluster, &cluster.desk().await, 0).await;
    let clients = (0..20).map(|number| {
        let desk = desk.clone();
        // From one answer of the webhook to the next review it is five seconds and a few milliseconds less or more.
        let pause = HEADER_TIMEOUT + Duration::from_millis(2 * number);
        tokio::spawn(async move {
            let mut failures = Vec::new();
            for _ in 0..CREATES {
                let next = tokio::time::Instant::now() + pause;
                failures.extend(create_once(&desk).await.err().map(|error| error.to_string()));
                // Nothing is waited for: that nothing happens for so long is what the test is about.
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
async fn a_replica_that_is_to_end_says_so_by_its_probe_and_goes_on_answering_until_nobody_routes_to_it() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    // Longer than anything here takes.
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).flag("--drain-delay=10m");
    let cluster = Cluster::install(control_plane, &installation);
    let desk = cluster.desk().await;
    let replica = cluster.installation.replica(0);
    replica.terminate();
    let is_told = async {
        while is_ready(replica).await {
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(TIMEOUT, is_told).await.expect("the probe fails");
    let caller = WebhookClient::new(cluster.installation.authority().certificate().as_bytes(), None);
    let mut new = caller.connect(replica.webhook_address()).await.expect("new connections are still taken");
    let kept = String::from_utf8(webhook_client::request(2, b"{}")).unwrap().replace("Connection: close\r\n", "");
    webhook_client::send(&mut new, kept.as_bytes()).await.unwrap();
    let answer = timeout(TIMEOUT, webhook_client::answer(&mut new)).await.expect("the connection ends with its answer");
    assert_eq!(answer.expect("an answer").code, 400);
    desk.create("alice", json!({})).await.expect("and reviews answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_signal_ends_a_replica_at_once_with_an_error() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    // Longer than anything here takes.
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
    let status = tokio::task::block_in_place(|| replica.wait(TIMEOUT)).expect("it ends at once");
    assert_eq!(status.code(), Some(1), "{status}");
    let log = std::fs::read_to_string(replica.log()).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["fields"]["error"], "SIGINT during the shutdown: exiting immediately");
}
