//! The examples that must be rendered first: a Kustomization, and a Helm chart of a user. And the `ProxyAddresses`, on an API server with the
//! chart.

#![allow(dead_code)] // This module uses only the examples of the testdata.

use crate::common::chart::{documents, helm};
use crate::common::cluster::Cluster;
use crate::common::succeed;
use crate::testdata::examples::{HELM_CHART, KUSTOMIZATION, assert_is_typed, manifests};
use control_plane::tools::{self, Tool};
use std::process::Command;

fn assert_renders_conversations(example: &str, rendered: &str) {
    let objects = documents(rendered);
    assert_eq!(objects.len(), 2, "{example}: {rendered}");
    for object in objects {
        assert!(assert_is_typed(example, &object).is_some(), "{example}: {object}");
    }
}

#[test]
fn kustomization_renders_conversations() {
    let [kubectl] = tools::ensure([Tool::Kubectl]).unwrap_or_else(|error| panic!("{error}"));
    let rendered = succeed(Command::new(kubectl).args(["kustomize", KUSTOMIZATION]));
    assert_eq!(rendered.matches("namespace: sales").count(), 2, "{rendered}");
    assert_renders_conversations(KUSTOMIZATION, &rendered);
}

#[test]
fn helm_chart_of_a_user_renders_conversations() {
    succeed(helm().args(["lint", "--strict", HELM_CHART]));
    assert_renders_conversations(HELM_CHART, &succeed(helm().args(["template", "team", HELM_CHART])));
}

#[test]
fn api_server_accepts_the_proxy_addresses() {
    let documents = manifests().into_iter().flat_map(|manifest| manifest.documents);
    let addresses: Vec<_> =
        documents.map(|document| document.object).filter(|object| object["kind"] == "ProxyAddress").collect();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("proxy-addresses.json");
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": addresses});
    std::fs::write(&path, list.to_string()).unwrap();
    let mut kubectl = Cluster::shared().kubectl();
    kubectl.args(["create", "--dry-run=server", "--validate=strict", "--filename"]);
    succeed(kubectl.arg(path));
}
