//! The start of a replica before its API server. The replica waits for the API server, `/readyz` gives the reason, and a signal ends it.

use crate::common::cluster::{Cluster, TIMEOUT};
use crate::common::fault_cluster::FaultCluster;
use crate::common::proxy::{Fault, Stage};
use control_plane::{ControlPlane, Installation, Replica};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tokio::task::block_in_place;
use tokio::time::sleep;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The answer of a replica at `path`, head and body. Empty if there is none.
fn probe(replica: &Replica, path: &str) -> String {
    let get = || {
        let mut stream = TcpStream::connect(replica.address())?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: replica\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    get().unwrap_or_default()
}

/// Waits until the answer of a replica at `path` contains all of `parts`.
pub(super) async fn wait_for_answer(replica: &Replica, path: &str, parts: &[&str]) -> String {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let answer = block_in_place(|| probe(replica, path));
        if parts.iter().all(|part| answer.contains(part)) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{path}: {answer:?} does not contain {parts:?}");
        sleep(POLL_INTERVAL).await;
    }
}

/// The number of failed requests to the API server.
fn failed_attempts(replica: &Replica) -> u32 {
    let sample = r#"switchboard_api_requests_total{verb="list",resource="other",code="0"} "#;
    let metrics = block_in_place(|| probe(replica, "/metrics"));
    metrics.lines().find_map(|line| line.strip_prefix(sample)?.parse().ok()).unwrap_or_default()
}

/// The log lines of a replica after the first `length` bytes.
fn log_after(replica: &Replica, length: usize) -> Vec<Value> {
    let log = std::fs::read_to_string(replica.log()).unwrap();
    log[length..].lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn log_length(replica: &Replica) -> usize {
    std::fs::read_to_string(replica.log()).unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_waits_for_an_unavailable_api_server() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let cluster = Cluster::install(control_plane, &Installation::builder(env!("CARGO_BIN_EXE_switchboard")));
    let (replica, api_server) = (cluster.installation.replica(0), cluster.control_plane.api_server(0));
    replica.stop();
    api_server.kill();
    let before = log_length(replica);
    replica.start_without_waiting().unwrap();
    let parts = ["503", "the API server has not been reached yet: ", "Connection refused"];
    wait_for_answer(replica, "/readyz", &parts).await;
    assert!(probe(replica, "/livez").contains("200 OK"), "the replica is alive");
    let id = replica.id();
    while failed_attempts(replica) < 6 {
        sleep(POLL_INTERVAL).await;
    }
    let restarted = Instant::now();
    block_in_place(|| api_server.start()).unwrap();
    let served = restarted.elapsed();
    block_in_place(|| replica.wait_until_ready()).unwrap();
    println!("the API server was ready {served:?} after its start, the replica {:?}", restarted.elapsed());
    assert_eq!(replica.id(), id, "the process has not restarted");
    let failures: Vec<_> =
        log_after(replica, before).into_iter().filter(|line| line["fields"]["url"].is_string()).collect();
    let refused =
        |line: &&Value| line["fields"]["error"].as_str().is_some_and(|text| text.contains("Connection refused"));
    assert_eq!(failures.iter().filter(refused).count(), 1, "one log line for each kind of failure: {failures:?}");
    cluster.test_namespace().await.create("alice", json!({})).await.expect("the replica admits creates");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_waits_until_it_gets_its_rights() {
    let cluster = FaultCluster::start(1).await;
    let replica = cluster.replica();
    replica.stop();
    for code in [401, 403] {
        let refusals = cluster.proxy.inject(Stage::Before, Fault::Answer(code), |call| call.path == "/version");
        replica.start_without_waiting().unwrap();
        refusals.wait_for(3).await;
        let parts = ["503", "the API server has not been reached yet: ", &code.to_string()];
        wait_for_answer(replica, "/readyz", &parts).await;
        let id = replica.id();
        drop(refusals);
        block_in_place(|| replica.wait_until_ready()).unwrap();
        assert_eq!(replica.id(), id, "the process has not restarted");
        replica.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signal_ends_the_wait_for_the_api_server() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let cluster = Cluster::install(control_plane, &Installation::builder(env!("CARGO_BIN_EXE_switchboard")));
    let (replica, api_server) = (cluster.installation.replica(0), cluster.control_plane.api_server(0));
    replica.stop();
    // First the connection is refused, then it is accepted without an answer.
    for is_suspended in [false, true] {
        if is_suspended {
            block_in_place(|| api_server.start()).unwrap();
            api_server.pause();
        } else {
            api_server.kill();
        }
        replica.start_without_waiting().unwrap();
        wait_for_answer(replica, "/readyz", &["503", "the API server has not been reached yet"]).await;
        let terminated = Instant::now();
        replica.terminate();
        let status = block_in_place(|| replica.wait(TIMEOUT)).expect("the replica exits within the timeout");
        println!("ended {:?} after SIGTERM", terminated.elapsed());
        assert!(status.success(), "{status}");
    }
}
