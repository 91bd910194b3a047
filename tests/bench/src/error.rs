//! The errors of the benchmark.

use std::{io, path::Path};

/// The reason why a scenario could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control plane or the operator did not start.
    #[error("{0}")]
    ControlPlane(#[from] control_plane::Error),
    /// A request to the API server or to etcd failed.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// The kubeconfig of the control plane cannot be used.
    #[error("the kubeconfig of the control plane cannot be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// An object or an answer is not the expected JSON.
    #[error("an object or an answer cannot be parsed: {0}")]
    Json(#[from] serde_json::Error),
    /// An operation on a file or a process failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// The operation, as in "write /some/file".
        doing: String,
        /// The system's error.
        source: io::Error,
    },
    /// A task of the benchmark panicked.
    #[error("a task panicked: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// The measured behaviour did not occur.
    #[error("{0}")]
    Unexpected(String),
}

/// The result of a part of the benchmark.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: adds the operation and the file to an error of the system.
    pub fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let doing = format!("{doing} {}", path.display());
        move |source| Self::Io { doing, source }
    }
}
