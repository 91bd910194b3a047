//! What can go wrong with a control plane, each told with what to do about it. No I/O.

use std::{io, path::PathBuf, time::Duration};

use crate::TEST_CLUSTER;

/// Why a control plane, or a part of it, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Go is missing or too old; the text says what to install.
    #[error("{0}")]
    Toolchain(String),

    /// No API server of that version is pinned here.
    #[error("there is no API server of Kubernetes {asked_for:?} here; there are {available}")]
    UnknownKubernetes {
        /// What was asked for.
        asked_for: String,
        /// What could have been.
        available: String,
    },

    /// A control plane or a process of it is needed, and the environment names a playground for tests to run on.
    #[error("this needs a control plane of its own: unset {TEST_CLUSTER}, which names one that is up")]
    TestCluster,

    /// `go build` failed; its output is in `output`.
    #[error(
        "building {tool} failed. `go build` needs the module proxy (GOPROXY) on its first run, and about 4 GB \
         of disk and of memory. It said:\n{output}"
    )]
    Build {
        /// The binary that was to be built.
        tool: &'static str,
        /// What `go build` printed.
        output: String,
    },

    /// A server ended before it was ready.
    #[error("{name} ended before it was ready ({status}).\n{log_tail}\nThe whole log is in {}", log.display())]
    Ended {
        /// What was started.
        name: String,
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log_tail: String,
        /// Where the log is kept.
        log: PathBuf,
    },

    /// A server runs, but did not become ready in time.
    #[error(
        "{name} was not ready within {} s: {reason}.\n{log_tail}\nThe whole log is in {}",
        within.as_secs(), log.display()
    )]
    NotReady {
        /// What was started.
        name: String,
        /// How long it was waited for.
        within: Duration,
        /// What the last look at it gave.
        reason: String,
        /// The last lines of its log.
        log_tail: String,
        /// Where the log is kept.
        log: PathBuf,
    },

    /// A kubectl or helm command did not do what it was to do.
    #[error("`{command}` failed:\n{output}")]
    Command {
        /// The command as one would type it.
        command: String,
        /// What it printed.
        output: String,
    },

    /// An API server cannot be called as its administrator.
    #[error("cannot make a client of the API server: {0}")]
    Client(String),

    /// A request that prepares a test did not do what it was to do.
    #[error("{request} failed: {answer}")]
    Request {
        /// What was asked.
        request: String,
        /// What was answered.
        answer: String,
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

    /// The operating system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done, as in "write /some/file".
        doing: String,
        /// The system's error.
        source: io::Error,
    },

    /// A key or a certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),

    /// A program runs outside a checkout.
    #[error("{} is in no checkout of switchboard: run this in one, as `make` does", directory.display())]
    NoCheckout {
        /// Where it runs.
        directory: PathBuf,
    },

    /// A step of the tour did not come out as told.
    #[error("the tour stops here: expected {0}")]
    Tour(String),
}

impl Error {
    /// For `map_err`: says what was being done when the system refused.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
