//! The errors of a control plane, each with its remedy. No I/O.

use std::{io, path::PathBuf, time::Duration};

use crate::TEST_CLUSTER;

/// An error while a control plane, or a part of it, is built, started or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Go is missing or too old; the text says what to install.
    #[error("{0}")]
    Toolchain(String),

    /// No API server of that version is pinned here.
    #[error("no API server of Kubernetes {asked_for:?} is pinned here; available versions: {available}")]
    UnknownKubernetes {
        /// The requested version.
        asked_for: String,
        /// The available versions.
        available: String,
    },

    /// A control plane or a process of it is needed, and the environment names a playground for tests to run on.
    #[error("this needs a control plane of its own: unset {TEST_CLUSTER}, which names one that is up")]
    TestCluster,

    /// `go build` failed; its output is in `output`.
    #[error(
        "building {tool} failed. `go build` needs the module proxy (GOPROXY) on its first run, and about 4 GB \
         of disk and of memory. Its output:\n{output}"
    )]
    Build {
        /// The binary.
        tool: &'static str,
        /// The output of `go build`.
        output: String,
    },

    /// A server ended before it was ready.
    #[error("{name} ended before it was ready ({status}).\n{log_tail}\nThe whole log is in {}", log.display())]
    Ended {
        /// The server.
        name: String,
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log_tail: String,
        /// The path of the log.
        log: PathBuf,
    },

    /// A server runs, but did not become ready in time.
    #[error(
        "{name} was not ready within {} s: {reason}.\n{log_tail}\nThe whole log is in {}",
        within.as_secs(), log.display()
    )]
    NotReady {
        /// The server.
        name: String,
        /// The time limit.
        within: Duration,
        /// The result of the last check.
        reason: String,
        /// The last lines of its log.
        log_tail: String,
        /// The path of the log.
        log: PathBuf,
    },

    /// A kubectl or helm command failed.
    #[error("`{command}` failed:\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// Its output.
        output: String,
    },

    /// No client for the administrator of an API server could be created.
    #[error("cannot create a client of the API server: {0}")]
    Client(String),

    /// A request that prepares a test failed.
    #[error("{request} failed: {answer}")]
    Request {
        /// The request.
        request: String,
        /// The answer.
        answer: String,
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

    /// The operating system returned an error.
    #[error("cannot {doing}: {source}")]
    Io {
        /// The operation, as in "write /some/file".
        doing: String,
        /// The system's error.
        source: io::Error,
    },

    /// A key or a certificate could not be created.
    #[error("cannot create a certificate: {0}")]
    Certificate(#[from] rcgen::Error),

    /// A program runs outside a checkout.
    #[error("{} is outside a checkout of switchboard: run this inside one, as `make` does", directory.display())]
    NoCheckout {
        /// Its working directory.
        directory: PathBuf,
    },

    /// A step of the tour had an unexpected result.
    #[error("the tour stops here: expected {0}")]
    Tour(String),
}

impl Error {
    /// For `map_err`: adds the operation to an error of the system.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
