//! The observability of real replicas: metrics, traces, the self-check, and the reload of certificates.

use crate::common::cluster::{Cluster, TIMEOUT, metrics};
use crate::common::routing::{Inbound, TOKEN, builder, request, request_once, routers};
use crate::common::webhook_client::{self, WebhookClient};
use control_plane::{ControlPlane, Installation};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Api;
use kube::api::DeleteParams;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
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

/// The description of one metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Metric {
    type_: String,
    labels: BTreeSet<String>,
    meaning: String,
}

/// The metrics in a text in Prometheus format, by the name of their samples in a query (of a histogram, without `_bucket`).
fn served(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::<String, Metric>::new();
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
    let named = |(name, metric): (String, Metric)| {
        let suffix = match metric.type_.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        (name + suffix, metric)
    };
    metrics.into_iter().map(named).collect()
}

/// The metrics of the table in a section of METRICS.md.
fn documented(section: &str) -> BTreeMap<String, Metric> {
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let (_, text) = include_str!("../../../METRICS.md").split_once(&format!("\n## {section}\n")).unwrap();
    let rows = text.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
    let metrics = rows.map(|row| {
        let [_, name, type_, labels, meaning, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        let labels = words(labels).into_iter().collect();
        (words(name)[0].clone(), Metric { type_: type_.to_owned(), labels, meaning: meaning.to_owned() })
    });
    metrics.collect()
}

#[tokio::test]
async fn served_metrics_are_exactly_the_documented_ones() {
    let cluster = Cluster::shared();
    let ns = cluster.test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    // Only the leader serves this metric, after its first self-check.
    let in_force = "switchboard_webhook_in_force";
    wait_for(cluster, in_force, 1.0).await;
    let documented = documented("Operator");
    let mut all = BTreeSet::new();
    for replica in cluster.installation.replicas() {
        for (name, metric) in served(&metrics(replica).await) {
            assert_eq!(documented.get(&name), Some(&metric), "{name}");
            all.insert(name);
        }
    }
    assert_eq!(all, documented.into_keys().collect());
}

#[tokio::test]
async fn router_serves_exactly_the_documented_metrics() {
    let mut documented = documented("Router");
    let of_operator = self::documented("Operator");
    for name in ["switchboard_api_requests_total", "switchboard_panics_total", "switchboard_build_info"] {
        documented.insert(name.to_owned(), of_operator[name].clone());
    }
    // So that each has its labels.
    let inbound = Inbound::new(json!({})).await;
    inbound.send(0, "m").await;
    assert_eq!(served(&metrics(&routers()[0]).await), documented);
}

/// Waits until the sum of a sample over the replicas has this value.
async fn wait_for(cluster: &Cluster, sample: &str, value: f64) {
    let is_so = async {
        while (sum(cluster, sample).await - value).abs() > f64::EPSILON {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, is_so).await.unwrap_or_else(|_| panic!("{sample} does not become {value} within {TIMEOUT:?}"));
}

/// A cluster with one replica that sends its traces to a [`Collector`], for tests that need only one replica or disturb the cluster.
fn single_replica_cluster() -> &'static (Cluster, Collector) {
    static CLUSTER: OnceLock<(Cluster, Collector)> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
        let collector = Collector::start();
        let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard"));
        let installation = installation.flag(format!("--otlp-endpoint=http://{}", collector.address));
        (Cluster::install(control_plane, &installation), collector)
    })
}

/// Receives OTLP requests until the process ends.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self { address: listener.local_addr().unwrap(), spans: Arc::default() };
        let spans = collector.spans.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let spans = spans.clone();
                std::thread::spawn(move || receive(stream, &spans));
            }
        });
        collector
    }

    /// The spans of a trace so far.
    fn trace(&self, id: u128) -> Vec<Span> {
        let spans = self.spans.lock().unwrap();
        spans.iter().filter(|span| span.trace_id == id.to_be_bytes()).cloned().collect()
    }

    /// Waits until a trace has a span of this name and outcome whose parent is `parent`, and a child of that span for each of `calls`, which
    /// are the verb and the resource of requests to the API server.
    async fn wait_for(&self, id: u128, parent: u64, (name, outcome): (&str, &str), calls: &[(&str, &str)]) {
        let is_complete = || {
            let spans = self.trace(id);
            let is_root = |span: &&Span| span.parent_span_id == parent.to_be_bytes() && span.name == name;
            let roots: Vec<_> = spans.iter().filter(is_root).filter(|span| texts(span).contains(&outcome)).collect();
            let is_made = |(verb, resource): &(&str, &str)| {
                spans.iter().any(|span| {
                    span.name == "api_call"
                        && roots.iter().any(|root| root.span_id == span.parent_span_id)
                        && texts(span).contains(verb)
                        && texts(span).contains(resource)
                })
            };
            !roots.is_empty() && calls.iter().all(is_made)
        };
        let arrived = async {
            while !is_complete() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let is_over = timeout(TIMEOUT, arrived).await.is_ok();
        assert!(is_over, "no {name} with a span for each of {calls:?}: {:#?}", self.trace(id));
    }

    /// Whether a span has this text anywhere.
    fn has(&self, text: &str) -> bool {
        self.spans.lock().unwrap().iter().any(|span| format!("{span:?}").contains(text))
    }
}

/// The attributes of a span that are texts.
fn texts(span: &Span) -> Vec<&str> {
    let values = span.attributes.iter().filter_map(|attribute| attribute.value.as_ref()?.value.as_ref());
    values
        .filter_map(|value| match value {
            Value::StringValue(text) => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

/// Records the spans of each request of a connection, and answers with an empty 200.
fn receive(stream: TcpStream, spans: &Mutex<Vec<Span>>) -> Option<()> {
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
        let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        spans.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

#[tokio::test]
async fn callers_trace_continues_in_api_calls_and_is_exported() {
    let (cluster, collector) = single_replica_cluster();
    let ns = cluster.test_namespace().await;
    let body = webhook_client::review(&ns, "alice", "u1").to_string();
    let traceparent = "Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = String::from_utf8(webhook_client::request(body.len(), body.as_bytes())).unwrap();
    let request = request.replace("Host: webhook", &format!("Host: webhook\r\n{traceparent}"));
    let webhook_client = WebhookClient::new(cluster.installation.authority().certificate().as_bytes(), None);
    let mut stream = webhook_client.connect(cluster.installation.replica(0).webhook_address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(webhook_client::answer(&mut stream).await.unwrap().code, 200);
    let (trace, parent) = (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7);
    collector.wait_for(trace, parent, ("admission", "allowed"), &[("create", "addressbindings")]).await;
    assert!(!collector.has(&ns.contact), "the trace contains the address of the contact");
}

#[tokio::test]
async fn senders_trace_continues_if_its_request_is_authenticated() {
    let collector = Collector::start();
    let inbound = Inbound::new(json!({})).await;
    let router = builder("router-traced").flag(format!("--otlp-endpoint=http://{}", collector.address));
    let router = router.start(&Cluster::shared().control_plane).unwrap();
    let known = inbound.message("known").send_until_known(router.inbound_address()).await;
    assert_eq!(known.status, 200);
    let (stranger, sender, parent) =
        (0x5bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128, 0x6bf9_2f35_u128 << 96, 0xf067_u64);
    let status = async |trace: u128, token: &str, id: &str| {
        let mut message = inbound.message(id);
        message.data["contact"] = json!(inbound.ns.contact.replacen("+1555", "+1557", 1));
        let mut request = request(router.inbound_address(), "gateway", token, &message.body());
        let traceparent = format!("00-{trace:032x}-{parent:016x}-01");
        request.headers_mut().insert("traceparent", traceparent.parse().unwrap());
        request_once(request).await.unwrap().status
    };
    assert_eq!(status(stranger, "another token", "m").await, 403);
    // The first one creates a conversation, and the second one reports its activity.
    assert_eq!(status(sender, TOKEN, "m").await, 200);
    assert_eq!(status(sender, TOKEN, "n").await, 200);
    let calls = [("create", "conversations"), ("patch", "conversations/status")];
    collector.wait_for(sender, parent, ("inbound", "accepted"), &calls).await;
    let received = inbound.sink.accepted("received");
    let continued = format!("00-{sender:032x}-");
    for id in ["m", "n"] {
        let event = received.iter().find(|event| event.attribute("id") == Some(id)).unwrap();
        assert!(event.headers["traceparent"].to_str().unwrap().starts_with(&continued), "{event:?}");
    }
    assert!(collector.trace(stranger).is_empty(), "a stranger chooses what is traced");
    assert!(!collector.has(&inbound.ns.contact[5..]), "the trace contains the address of the contact");
}

#[tokio::test]
async fn metrics_show_a_webhook_that_is_unreachable_or_not_in_force() {
    let (cluster, _) = single_replica_cluster();
    let (webhook, balancer) = (cluster.installation.replica(0).webhook_address(), cluster.installation.balancer());
    let ns = cluster.test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    let in_force = "switchboard_webhook_in_force";
    wait_for(cluster, in_force, 1.0).await;
    balancer.cut(webhook);
    let self_check_fails = async {
        while sum(cluster, "switchboard_self_check_failures_total").await < 1.0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, self_check_fails).await.expect("the self-check fails");
    assert!(!metrics(cluster.installation.replica(0)).await.contains(in_force), "a replica serves no outdated result");
    balancer.add(webhook);
    wait_for(cluster, in_force, 1.0).await;
    let configurations = Api::<ValidatingWebhookConfiguration>::all(ns.client.clone());
    configurations.delete("switchboard", &DeleteParams::default()).await.unwrap();
    let is_reported = async {
        while !metrics(cluster.installation.replica(0)).await.contains("switchboard_webhook_in_force 0\n") {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, is_reported).await.expect("the metric shows that the webhook is not in force");
}

/// The sum of a sample over the replicas. A missing sample counts as 0.
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
async fn metrics_count_the_life_of_a_conversation() {
    let cluster = Cluster::shared();
    let ns = cluster.test_namespace().await;
    // No other test in this file uses this channel, so the gauge counts only this test.
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
    ns.create("alice", on_rcs.clone()).await.unwrap();
    ns.create("bob", on_rcs).await.unwrap_err();
    let open = r#"switchboard_conversations{channel="RCS",state="Active"}"#;
    ns.wait_for_state("alice", State::Active).await;
    assert!(sum(cluster, open).await >= 1.0, "the leader counts the conversation, since it has written its status");
    ns.wait_for_state("alice", State::Closed).await;
    ns.wait_until_free().await;
    for (sample, before) in samples.into_iter().zip(before) {
        let after = sum(cluster, sample).await;
        assert!(after > before, "{sample} was {before} and is {after}");
    }
    assert!((sum(cluster, "switchboard_leader").await - 1.0).abs() < f64::EPSILON, "exactly one replica leads");
}

#[tokio::test]
async fn changed_certificate_file_is_served_without_a_restart() {
    let cluster = Cluster::shared();
    let authority = cluster.installation.authority();
    let renewed = authority.issue("renewed").unwrap();
    let directory = cluster.control_plane.data_dir();
    // One file after the other: the replicas ignore a certificate without its key.
    std::fs::write(directory.join("webhook.crt"), &renewed.certificate).unwrap();
    std::fs::write(directory.join("webhook.key"), &renewed.key).unwrap();
    let renewed = CertificateDer::from_pem_slice(renewed.certificate.as_bytes()).unwrap();
    let webhook_client = WebhookClient::new(authority.certificate().as_bytes(), None);
    for replica in cluster.installation.replicas() {
        let is_served = async {
            loop {
                let stream = webhook_client.connect(replica.webhook_address()).await.unwrap();
                if stream.get_ref().1.peer_certificates().unwrap()[0] == renewed {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(TIMEOUT, is_served).await.expect("the replica serves the renewed certificate");
    }
}
