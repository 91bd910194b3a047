//! Errors of the nodes, and failed expectations about the product. No I/O.

use std::{io, time::Duration};

/// The error of a step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command, a tool or a process failed.
    #[error(transparent)]
    ControlPlane(#[from] control_plane::Error),
    /// A request to the API server failed.
    #[error("the API server answers: {0}")]
    Api(#[from] kube::Error),
    /// The operating system returned an error.
    #[error("cannot {doing}: {source}")]
    Io {
        /// The operation.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
    /// A condition did not become true in time.
    #[error("waited {} s for {what}; the last check returned: {last}", within.as_secs())]
    Timeout {
        /// The condition.
        what: String,
        /// The time limit.
        within: Duration,
        /// The result of the last check.
        last: String,
    },
    /// The product did not behave as expected.
    #[error("{0}")]
    Unexpected(String),
}

/// The result of a step.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Adds the operation to an error of the system.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }
}
