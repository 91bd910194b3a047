//! What can go wrong with nodes, and with what is asserted of the product on them. No I/O.

use std::{io, time::Duration};

/// Why a step did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command, a tool or a process.
    #[error(transparent)]
    ControlPlane(#[from] control_plane::Error),
    /// The API server did not do what was asked.
    #[error("the API server answers: {0}")]
    Api(#[from] kube::Error),
    /// The operating system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
    /// Something was waited for and did not come.
    #[error("waited {} s for {what}; the last look gave: {last}", within.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        within: Duration,
        /// What the last look gave.
        last: String,
    },
    /// The product did not do what it must.
    #[error("{0}")]
    Unexpected(String),
}

/// The result of a step.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The system refused what was being done.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }
}
