//! The process around admission and lifecycle, by real replicas: what it tells of itself.

use crate::common::cluster::{Cluster, TIMEOUT, metrics};
use crate::common::webhook_client::{self, WebhookClient};
use control_plane::{ControlPlane, Installation};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Api;
use kube::api::DeleteParams;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use switchboard::api::State;
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

/// What is known of one metric.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    type_: String,
    labels: BTreeSet<String>,
    meaning: String,
}

/// The metrics of a text for Prometheus, by the name that their samples have in a query: that of a histogram without `_bucket`.
fn served(text: &str) -> BTreeMap<String, Told> {
    let mut metrics = BTreeMap::<String, Told>::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, meaning) = help.split_once(' ').unwrap();
            meaning.trim_end_matches('.').clone_into(&mut metrics.entry(name.to_owned()).or_default().meaning);
        } else if let Some(type_) = line.strip_prefix("# TYPE ") {
            let (name, type_) = type_.split_once(' ').unwrap();
            type_.clone_into(&mut metrics.entry(name.to_owned()).or_default().type_);
        } else if let Some((sample, labels)) = line.split_once('{') {
            let owner = metrics.keys().filter(|name| sample.starts_with(*name)).max_by_key(|name| name.len());
            let owner = owner.unwrap_or_else(|| panic!("{line}")).clone();
            let labels = labels.split('}').next().unwrap().split("\",").filter_map(|label| label.split_once('='));
            let labels = labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le");
            metrics.get_mut(&owner).unwrap().labels.extend(labels);
        }
    }
    let named = |(name, told): (String, Told)| {
        let suffix = match told.type_.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        (name + suffix, told)
    };
    metrics.into_iter().map(named).collect()
}

/// The metrics of the table in METRICS.md.
fn documented() -> BTreeMap<String, Told> {
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = include_str!("../../../METRICS.md").lines().filter(|line| line.starts_with("| `"));
    let metrics = rows.map(|row| {
        let [_, name, type_, labels, meaning, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        let labels = words(labels).into_iter().collect();
        (words(name)[0].clone(), Told { type_: type_.to_owned(), labels, meaning: meaning.to_owned() })
    });
    metrics.collect()
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_metric_is_served() {
    let cluster = Cluster::shared();
    let desk = cluster.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    // Only the leader tells this one, and only once it has tried.
    let in_force = "switchboard_webhook_in_force";
    wait_for(cluster, in_force, 1.0).await;
    let documented = documented();
    let mut told = BTreeSet::new();
    for replica in cluster.installation.replicas() {
        for (name, of_this) in served(&metrics(replica).await) {
            assert_eq!(documented.get(&name), Some(&of_this), "{name}");
            told.insert(name);
        }
    }
    assert_eq!(told, documented.into_keys().collect());
}

/// Waits until a sample, summed over the replicas, has this value.
async fn wait_for(cluster: &Cluster, sample: &str, value: f64) {
    let is_so = async {
        while (sum(cluster, sample).await - value).abs() > f64::EPSILON {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, is_so).await.unwrap_or_else(|_| panic!("{sample} is not {value}"));
}

/// A cluster with one replica, which sends its traces to a collector of ours, for the tests that need no more or do it harm.
fn lone() -> &'static (Cluster, Collector) {
    static LONE: OnceLock<(Cluster, Collector)> = OnceLock::new();
    LONE.get_or_init(|| {
        let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
        let collector = Collector::start();
        let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard"));
        let installation = installation.flag(format!("--otlp-endpoint=http://{}", collector.address));
        (Cluster::install(control_plane, &installation), collector)
    })
}

/// Takes what is sent by OTLP, as long as the process lives.
struct Collector {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self { address: listener.local_addr().unwrap(), bodies: Arc::default() };
        let bodies = collector.bodies.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let bodies = bodies.clone();
                std::thread::spawn(move || take(stream, &bodies));
            }
        });
        collector
    }

    fn has(&self, parts: &[&[u8]]) -> bool {
        let bodies = self.bodies.lock().unwrap();
        bodies.iter().any(|body| parts.iter().all(|part| body.windows(part.len()).any(|window| window == *part)))
    }
}

/// Answers each request of a connection by a 200 without a body.
fn take(stream: TcpStream, bodies: &Mutex<Vec<Vec<u8>>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        bodies.lock().unwrap().push(body);
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

#[tokio::test]
async fn a_trace_that_the_caller_began_goes_on_to_our_calls_and_to_the_collector() {
    let (cluster, collector) = lone();
    let desk = cluster.desk().await;
    let body = webhook_client::review(&desk, "alice", "u1").to_string();
    let traceparent = "Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = String::from_utf8(webhook_client::request(body.len(), body.as_bytes())).unwrap();
    let request = request.replace("Host: webhook", &format!("Host: webhook\r\n{traceparent}"));
    let caller = WebhookClient::new(cluster.installation.authority().certificate().as_bytes(), None);
    let mut stream = caller.connect(cluster.installation.replica(0).webhook_address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(webhook_client::answer(&mut stream).await.unwrap().code, 200);
    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes();
    let parent = 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes();
    let arrived = async {
        while !collector.has(&[&trace, &parent, b"admission", b"allowed"])
            || !collector.has(&[&trace, b"api_call", b"addressbindings"])
        {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, arrived).await.expect("the spans of the review and of its calls");
    assert!(!collector.has(&[desk.contact.as_bytes()]), "no address in a trace");
}

#[tokio::test]
async fn a_webhook_that_cannot_be_reached_or_is_taken_out_of_force_is_told() {
    let (cluster, _) = lone();
    let (webhook, balancer) = (cluster.installation.replica(0).webhook_address(), cluster.installation.balancer());
    let desk = cluster.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    let in_force = "switchboard_webhook_in_force";
    wait_for(cluster, in_force, 1.0).await;
    balancer.cut(webhook);
    let nothing_is_found_out = async {
        while sum(cluster, "switchboard_self_check_failures_total").await < 1.0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, nothing_is_found_out).await.expect("the self-check fails");
    assert!(!metrics(cluster.installation.replica(0)).await.contains(in_force), "what was found before is not told on");
    balancer.add(webhook);
    wait_for(cluster, in_force, 1.0).await;
    let configurations = Api::<ValidatingWebhookConfiguration>::all(desk.client.clone());
    configurations.delete("switchboard", &DeleteParams::default()).await.unwrap();
    let is_told = async {
        while !metrics(cluster.installation.replica(0)).await.contains("switchboard_webhook_in_force 0\n") {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, is_told).await.expect("it is told");
}

/// The value of a sample, summed over the replicas; a sample that is not there yet counts as 0.
async fn sum(cluster: &Cluster, sample: &str) -> f64 {
    let mut sum = 0.0;
    for replica in cluster.installation.replicas() {
        let text = metrics(replica).await;
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        sum += line.map_or(0.0, |value| value.parse::<f64>().unwrap());
    }
    sum
}

#[tokio::test]
async fn what_happens_to_a_conversation_is_counted() {
    let cluster = Cluster::shared();
    let desk = cluster.desk().await;
    // On a channel that no other test of this file uses, so that the gauge is this test's alone.
    let on_rcs = json!({"channel": "RCS", "timers": {"closeAfter": "2s"}});
    let samples = [
        r#"switchboard_admission_requests_total{outcome="allowed",code="200"}"#,
        r#"switchboard_admission_requests_total{outcome="denied",code="403"}"#,
        r#"switchboard_claim_writes_total{operation="create",outcome="applied"}"#,
        r#"switchboard_api_requests_total{verb="patch",resource="conversations/status",code="200"}"#,
        r#"switchboard_reconcile_duration_seconds_count{task="conversation"}"#,
        "switchboard_timer_lateness_seconds_count",
        "switchboard_claims_released_total",
    ];
    let mut before = Vec::new();
    for sample in samples {
        before.push(sum(cluster, sample).await);
    }
    desk.create("alice", on_rcs.clone()).await.unwrap();
    desk.create("bob", on_rcs).await.unwrap_err();
    let open = r#"switchboard_conversations{channel="RCS",state="Active"}"#;
    desk.wait_for_state("alice", State::Active).await;
    assert!(sum(cluster, open).await >= 1.0, "the leader has seen it, for it has written its status");
    desk.wait_for_state("alice", State::Closed).await;
    desk.wait_until_free().await;
    for (sample, before) in samples.into_iter().zip(before) {
        let after = sum(cluster, sample).await;
        assert!(after > before, "{sample} was {before} and is {after}");
    }
    assert!((sum(cluster, "switchboard_leader").await - 1.0).abs() < f64::EPSILON, "one leads");
}

#[tokio::test]
async fn a_certificate_that_changes_in_its_file_is_served_without_a_restart() {
    let cluster = Cluster::shared();
    let authority = cluster.installation.authority();
    let renewed = authority.issue("renewed").unwrap();
    let directory = cluster.control_plane.data_dir();
    // One after the other, as a careless hand does: a certificate without its key is passed over.
    std::fs::write(directory.join("webhook.crt"), &renewed.certificate).unwrap();
    std::fs::write(directory.join("webhook.key"), &renewed.key).unwrap();
    let renewed = CertificateDer::from_pem_slice(renewed.certificate.as_bytes()).unwrap();
    let caller = WebhookClient::new(authority.certificate().as_bytes(), None);
    for replica in cluster.installation.replicas() {
        let is_served = async {
            loop {
                let stream = caller.connect(replica.webhook_address()).await.unwrap();
                if stream.get_ref().1.peer_certificates().unwrap()[0] == renewed {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(TIMEOUT, is_served).await.expect("the renewed one");
    }
}
