//! The output of a replica and of `switchboard check`: lines that programs can parse, plain values, causes of errors.

use crate::common::cluster::{Cluster, TIMEOUT};
use control_plane::installation::NAMESPACE;
use control_plane::{ControlPlane, Installation, Replica};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};
use switchboard::api::{ConditionStatus, ConditionType};
use tokio::task::block_in_place;
use tokio::time::sleep;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The syntax of Rust's `{:?}`, which must not appear in the output.
const DEBUG_SYNTAX: [&str; 6] = ["Some(", "None", "Ok(", "Err(", "{ ", "[\\\""];

fn lines(replica: &Replica) -> Vec<Value> {
    let log = std::fs::read_to_string(replica.log()).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}

/// Waits for a log line with this message, and returns its fields.
async fn wait_for_line(replica: &Replica, message: &str) -> Value {
    wait_for_line_where(replica, message, |_| true).await
}

/// Waits for a log line with this message whose fields satisfy `is_match`, and returns its fields.
async fn wait_for_line_where(replica: &Replica, message: &str, is_match: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        // The last line may be incomplete.
        let log = std::fs::read_to_string(replica.log()).unwrap();
        let parsed = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut fields = parsed.map(|line| line["fields"].clone());
        if let Some(fields) = fields.find(|fields| fields["message"] == message && is_match(fields)) {
            return fields;
        }
        assert!(Instant::now() < deadline, "no matching line with the message {message:?}: {log}");
        sleep(POLL_INTERVAL).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_the_log_is_json_with_plain_values() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard"));
    // The drain delay is longer than the test.
    let installation = installation.flag("--log=debug").flag("--drain-delay=10m").flag("--lease-duration=5s");
    let cluster = Cluster::install(control_plane, &installation.flag("--grace-period=40s"));
    let (replica, api_server) = (cluster.installation.replica(0), cluster.control_plane.api_server(0));
    let ns = cluster.test_namespace().await;

    // The log now has a create, a refusal, a status write, a close, a release and a deletion.
    ns.create("alice", json!({})).await.unwrap();
    assert_eq!(ns.create("bob", json!({})).await.unwrap_err().code, 403);
    ns.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    ns.change("alice", json!({"state": "Closed", "ttlAfterClosed": "1s"})).await.unwrap();
    ns.wait_until_free().await;
    ns.wait_for_event("alice", "TTLExpired").await;
    for (message, field, value) in [
        ("wrote the status", "state", "Active"),
        ("wrote the status", "conversation", &format!("{}/alice", ns.namespace)),
        ("releasing a claim", "binding", ns.binding().as_str()),
        ("decided a create", "outcome", "allowed"),
    ] {
        assert_eq!(wait_for_line(replica, message).await[field], value, "{message}");
    }

    // The API server is killed, and started again.
    api_server.kill();
    // A renewal in progress may have failed with another error.
    let is_refused = |fields: &Value| fields["error"].as_str().unwrap().contains("Connection refused (os error 111)");
    wait_for_line_where(replica, "cannot reach the Lease", is_refused).await;
    block_in_place(|| api_server.start()).unwrap();

    // A second signal ends the replica with an error.
    replica.terminate();
    wait_for_line(replica, "SIGTERM: shutting down").await;
    replica.terminate();
    assert_eq!(block_in_place(|| replica.wait(TIMEOUT)).expect("the replica exits within the timeout").code(), Some(1));

    let lines = lines(replica);
    let last = &lines.last().unwrap()["fields"];
    assert_eq!(last["error"], "SIGTERM during the shutdown: exiting immediately");
    let mut levels = BTreeMap::<&str, usize>::new();
    for line in &lines {
        assert!(!line.to_string().contains(&ns.contact), "the line contains the address of a contact: {line}");
        if !line["target"].as_str().unwrap().starts_with("switchboard") {
            continue;
        }
        *levels.entry(line["level"].as_str().unwrap()).or_default() += 1;
        for (field, value) in line["fields"].as_object().unwrap() {
            let text = value.to_string();
            let found = DEBUG_SYNTAX.into_iter().find(|syntax| text.contains(syntax));
            assert_eq!(found, None, "{field} of {line}");
        }
        let is_of_a_conversation = line["fields"]["conversation"].is_string();
        assert!(!is_of_a_conversation || line["level"] != "INFO", "an INFO line for a single conversation: {line}");
    }
    println!("{} lines; switchboard's own by level: {levels:?}", lines.len());
}

/// Runs `switchboard check` as the administrator. Returns its exit code and its output.
fn check(cluster: &Cluster) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    command.args(["check", "--namespace", NAMESPACE]).env("KUBECONFIG", cluster.control_plane.kubeconfig());
    let output = block_in_place(|| command.output()).unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_explains_in_one_line_why_creates_fail() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let cluster = Cluster::install(control_plane, &Installation::builder(env!("CARGO_BIN_EXE_switchboard")));
    let (code, text) = check(&cluster);
    assert!(code == Some(0) && text.contains("can be created"), "{code:?} {text}");
    cluster.installation.replica(0).kill();
    cluster.installation.balancer().cut(cluster.installation.replica(0).webhook_address());
    let (code, text) = check(&cluster);
    println!("{text}");
    assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
    let expected = "switchboard: no conversation can be created in the namespace switchboard-system: ";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains("failed calling webhook") && text.contains("; check that the operator's pods are ready"));
    assert!(!DEBUG_SYNTAX.iter().any(|syntax| text.contains(syntax)), "debug syntax in the output: {text}");
}
