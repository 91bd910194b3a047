//! Conversations in a directory that kubectl applies, and in a chart that helm upgrades. Tier: processes.

use crate::common::cluster::{Cluster, TestNamespace};
use crate::common::gitops::Repository;
use crate::common::{fail, succeed};
use serde_json::{Value, json};
use std::process::Command;
use std::slice;
use std::time::Instant;
use switchboard::api::State;

/// A namespace, and the command that applies the manifests of a directory to it.
pub struct Applier {
    pub ns: TestNamespace,
    repository: Repository,
    command: fn(&Self) -> Command,
}

impl Applier {
    async fn new(directory: &str, command: fn(&Self) -> Command) -> Self {
        let cluster = Cluster::shared();
        let ns = cluster.test_namespace().await;
        let repository = Repository::new(&cluster.control_plane, &format!("{}-{directory}", ns.namespace));
        Self { ns, repository, command }
    }

    /// `kubectl apply -f DIRECTORY`.
    pub async fn kubectl() -> Self {
        Self::new("manifests", |this| {
            let mut kubectl = Cluster::shared().control_plane.kubectl();
            kubectl.args(["apply", "--namespace", &this.ns.namespace]);
            kubectl.arg("--filename").arg(this.repository.directory());
            kubectl
        })
        .await
    }

    /// The same, and deletes the conversations of the namespace that are not in the directory.
    pub async fn kubectl_with_prune() -> Self {
        Self::new("manifests", |this| {
            let mut kubectl = Cluster::shared().control_plane.kubectl();
            kubectl.args(["apply", "--namespace", &this.ns.namespace, "--prune", "--all"]);
            kubectl.arg("--prune-allowlist=switchboard.dev/v1alpha1/Conversation");
            kubectl.arg("--filename").arg(this.repository.directory());
            kubectl
        })
        .await
    }

    /// `helm upgrade --install --wait` of a chart whose templates these are.
    pub async fn helm() -> Self {
        let this = Self::new("chart/templates", |this| {
            let mut helm = Cluster::shared().control_plane.helm().unwrap_or_else(|error| panic!("{error}"));
            let namespace = &this.ns.namespace;
            helm.args(["upgrade", "--install", "--wait", "--timeout=60s", "--namespace", namespace, namespace]);
            helm.arg(this.repository.directory().parent().unwrap());
            helm
        })
        .await;
        let chart = json!({"apiVersion": "v2", "name": "conversations", "version": "0.1.0"}).to_string();
        std::fs::write(this.repository.directory().with_file_name("Chart.yaml"), chart).unwrap();
        this
    }

    /// Applies these instead of those before; prints how long the `transition` took.
    pub fn apply(&self, transition: &str, manifests: &[Value]) {
        self.repository.commit(manifests);
        let start = Instant::now();
        succeed(&mut (self.command)(self));
        println!("{transition}: {:.1} s", start.elapsed().as_secs_f64());
    }

    /// The same, which is refused; returns the message.
    fn apply_is_refused(&self, manifests: &[Value]) -> String {
        self.repository.commit(manifests);
        fail(&mut (self.command)(self))
    }
}

#[tokio::test]
async fn kubectl_apply_of_a_directory_closes_before_it_opens() {
    let kubectl = Applier::kubectl().await;
    let ns = &kubectl.ns;
    kubectl.apply("open", &[ns.manifest("alice", json!({}))]);
    let closed = ns.manifest("alice", json!({"state": "Closed"}));
    kubectl.apply("kubectl apply that closes and opens", &[closed, ns.manifest("bob", json!({}))]);
    ns.bound("bob").await;
}

/// kubectl applies the other manifests in spite of the refusal.
#[tokio::test]
async fn kubectl_apply_that_opens_first_succeeds_when_repeated() {
    let kubectl = Applier::kubectl().await;
    let ns = &kubectl.ns;
    kubectl.apply("open", &[ns.manifest("alice", json!({}))]);
    let manifests = [ns.manifest("bob", json!({})), ns.manifest("alice", json!({"state": "Closed"}))];
    let refusal = kubectl.apply_is_refused(&manifests);
    assert!(refusal.contains("denied the request: 48031: "), "{refusal}");
    kubectl.apply("kubectl apply that opens and closes, repeated", &manifests);
    ns.wait_for_state("alice", State::Closed).await;
    ns.bound("bob").await;
}

#[tokio::test]
async fn kubectl_apply_prune_frees_the_binding() {
    let kubectl = Applier::kubectl_with_prune().await;
    let ns = &kubectl.ns;
    let kept = ns.manifest("kept", json!({"contact": null}));
    kubectl.apply("open", &[ns.manifest("alice", json!({})), kept.clone()]);
    kubectl.apply("prune", &[kept]);
    assert_eq!(ns.conversations().get_opt("alice").await.unwrap(), None);
    ns.create("bob", json!({})).await.unwrap();
}

#[tokio::test]
async fn helm_upgrade_hands_over_where_an_earlier_one_closed() {
    let helm = Applier::helm().await;
    let ns = &helm.ns;
    let closed = ns.manifest("alice", json!({"state": "Closed"}));
    helm.apply("install", &[ns.manifest("alice", json!({}))]);
    helm.apply("helm upgrade that closes", slice::from_ref(&closed));
    helm.apply("helm upgrade that opens", &[ns.manifest("bob", json!({})), closed]);
    ns.bound("bob").await;
}

#[tokio::test]
async fn helm_upgrade_without_changes_writes_nothing() {
    let helm = Applier::helm().await;
    let ns = &helm.ns;
    let manifests = [ns.manifest("alice", json!({}))];
    helm.apply("install", &manifests);
    let before = ns.bound("alice").await;
    helm.apply("helm upgrade without changes", &manifests);
    let after = ns.conversations().get("alice").await.unwrap();
    assert_eq!(after.metadata.resource_version, before.metadata.resource_version);
}
