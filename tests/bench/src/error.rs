//! What can end a benchmark.

use std::{io, path::Path};

/// Why a scenario could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control plane or the operator did not start.
    #[error("{0}")]
    ControlPlane(#[from] control_plane::Error),
    /// The API server or etcd did not do what was asked.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// The kubeconfig of the control plane cannot be used.
    #[error("the kubeconfig of the control plane cannot be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// Something is no JSON, or another one than expected.
    #[error("what was stored or answered cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A file or a process could not be had.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done, as in "write /some/file".
        doing: String,
        /// The system's error.
        source: io::Error,
    },
    /// A task of the benchmark panicked.
    #[error("a task ended badly: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// What was to be measured did not come about.
    #[error("{0}")]
    Unexpected(String),
}

/// What a part of the benchmark comes to.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: says what was being done to a file when the system refused.
    pub fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let doing = format!("{doing} {}", path.display());
        move |source| Self::Io { doing, source }
    }
}
