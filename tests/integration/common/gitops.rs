//! Manifests in a repository, and a Kustomization of it that Flux reconciles: here `flux-apply`, which has Flux's own libraries.

use super::cluster::TIMEOUT;
use super::succeed;
use control_plane::ControlPlane;
use control_plane::tools::{self, Tool};
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The namespace of every [`Kustomization`].
pub const FLUX_NAMESPACE: &str = "flux-system";

/// The pause after a reconciliation that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// A directory of manifests.
pub struct Repository {
    directory: PathBuf,
}

impl Repository {
    /// An empty one, in the directory of this name.
    pub fn new(control_plane: &ControlPlane, name: &str) -> Self {
        let directory = control_plane.data_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        Self { directory }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Replaces all manifests by these, each in a file of its own; the files are in this order by their names.
    pub fn commit(&self, manifests: &[Value]) {
        for entry in fs::read_dir(&self.directory).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (number, manifest) in manifests.iter().enumerate() {
            let name = manifest["metadata"]["name"].as_str().unwrap();
            fs::write(self.directory.join(format!("{number}-{name}.yaml")), manifest.to_string()).unwrap();
        }
    }
}

/// A Kustomization with `wait` and `prune`, whose repository is its own.
pub struct Kustomization {
    repository: Repository,
    kubeconfig: PathBuf,
    flags: Vec<String>,
}

impl Kustomization {
    pub fn new(control_plane: &ControlPlane, name: &str) -> Self {
        let repository = Repository::new(control_plane, &format!("{name}-manifests"));
        let inventory = control_plane.data_dir().join(format!("{name}-inventory.json"));
        let flags = [
            format!("-name={name}"),
            format!("-namespace={FLUX_NAMESPACE}"),
            format!("-directory={}", repository.directory().display()),
            format!("-inventory={}", inventory.display()),
        ];
        Self { repository, kubeconfig: control_plane.kubeconfig().to_owned(), flags: flags.into() }
    }

    /// With one more flag of `flux-apply`, as `-timeout=5s`.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Replaces the manifests.
    pub fn commit(&self, manifests: &[Value]) {
        self.repository.commit(manifests);
    }

    /// Reconciles once.
    pub async fn reconcile(&self) -> Reconciliation {
        let [flux_apply] = tools::ensure([Tool::FluxApply]).unwrap_or_else(|error| panic!("{error}"));
        let mut command = Command::new(flux_apply);
        command.args(&self.flags).env("KUBECONFIG", &self.kubeconfig);
        let output = tokio::task::spawn_blocking(move || succeed(&mut command)).await.unwrap();
        serde_json::from_str(&output).unwrap()
    }

    /// Reconciles until it succeeds, as Flux does; prints how long the `transition` to these manifests took.
    pub async fn apply(&self, transition: &str, manifests: &[Value]) -> Reconciliation {
        self.commit(manifests);
        let (start, mut failures) = (Instant::now(), Vec::<String>::new());
        loop {
            let reconciliation = self.reconcile().await;
            if reconciliation.is_ready() {
                println!("{transition}: {:.1} s, failures: {failures:?}", start.elapsed().as_secs_f64());
                return reconciliation;
            }
            let failure = reconciliation.to_string();
            if failures.last() != Some(&failure) {
                failures.push(failure);
            }
            assert!(start.elapsed() < TIMEOUT, "{transition} is not applied:\n{}", failures.join("\n"));
            sleep(RETRY_INTERVAL).await;
        }
    }
}

/// The outcome of a reconciliation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconciliation {
    /// Of the Ready condition.
    pub reason: String,
    pub message: String,
    changes: Vec<Change>,
    /// Of the API server.
    pub warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Change {
    /// `KIND/NAMESPACE/NAME`.
    subject: String,
    action: String,
}

impl Reconciliation {
    /// Everything is applied, pruned and healthy.
    pub fn is_ready(&self) -> bool {
        self.reason == "ReconciliationSucceeded"
    }

    /// What became of each object: its name and the action.
    pub fn changes(&self) -> Vec<(&str, &str)> {
        self.changes.iter().map(|change| (change.name(), change.action.as_str())).collect()
    }
}

impl fmt::Display for Reconciliation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.reason, self.message)
    }
}

impl Change {
    fn name(&self) -> &str {
        self.subject.rsplit('/').next().unwrap_or_default()
    }
}
