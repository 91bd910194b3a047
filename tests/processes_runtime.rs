//! The process around admission and lifecycle, by real replicas: what it tells of itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

mod common;

use common::caller::Caller;
use common::cluster::{Cluster, PATIENCE};
use control_plane::{ControlPlane, Installation, Replica};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::api::DeleteParams;
use kube::{Api, Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use switchboard::api::State;
use tokio::time::{sleep, timeout};

/// What is known of one metric.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    type_: String,
    labels: BTreeSet<String>,
    meaning: String,
}

/// What `/metrics` of a replica says.
async fn metrics(replica: &Replica) -> String {
    let client = Client::try_from(Config::new(format!("http://{}", replica.address()).parse().unwrap())).unwrap();
    client.request_text(hyper::Request::get("/metrics").body(Vec::new()).unwrap()).await.unwrap()
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
    let rows = include_str!("../METRICS.md").lines().filter(|line| line.starts_with("| `"));
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
    timeout(PATIENCE, is_so).await.unwrap_or_else(|_| panic!("{sample} is not {value}"));
}

#[tokio::test]
async fn a_webhook_that_is_taken_out_of_force_is_told() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let cluster = Cluster::install(control_plane, &Installation::builder(env!("CARGO_BIN_EXE_switchboard")));
    let desk = cluster.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    wait_for(&cluster, "switchboard_webhook_in_force", 1.0).await;
    let configurations = Api::<ValidatingWebhookConfiguration>::all(desk.client.clone());
    configurations.delete("switchboard", &DeleteParams::default()).await.unwrap();
    let is_told = async {
        while !metrics(cluster.installation.replica(0)).await.contains("switchboard_webhook_in_force 0\n") {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, is_told).await.expect("it is told");
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
        r#"switchboard_admission_requests_total{outcome="refused",code="403"}"#,
        r#"switchboard_claim_writes_total{operation="create",outcome="done"}"#,
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
    let caller = Caller::new(authority.certificate().as_bytes(), None);
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
        timeout(PATIENCE, is_served).await.expect("the renewed one");
    }
}
