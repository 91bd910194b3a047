//! Why a command failed, with the next step, and the exit code.

use super::change::Refused;
use crate::core::binding::InvalidBinding;
use crate::kube_error::ErrorClass;
use crate::telemetry::error_chain::ErrorChain;
use kube::config::{InferConfigError, KubeconfigError};
use std::process::ExitCode;

/// The exit code of a command that failed.
pub const FAILED: u8 = 1;
/// The exit code of an invalid command line, as clap's.
pub const INVALID_USAGE: u8 = 2;
/// The exit code if the conversation does not exist, or no conversation holds the binding.
pub const NOT_FOUND: u8 = 3;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is invalid in a way that clap does not see.
    #[error("{0}")]
    Usage(String),
    /// No cluster is configured.
    #[error("no cluster is configured: set KUBECONFIG, or pass --kubeconfig ({0})")]
    NoConfig(#[from] InferConfigError),
    /// The kubeconfig cannot be read, or lacks the context.
    #[error("the kubeconfig cannot be used: {}; check --kubeconfig, --context and KUBECONFIG", ErrorChain(.0))]
    Kubeconfig(#[from] KubeconfigError),
    /// The configuration of the client is invalid.
    #[error("the configuration for the API server is invalid: {}; check the kubeconfig", ErrorChain(.0))]
    BadConfig(#[source] kube::Error),
    /// The API server refused a request, or did not answer.
    #[error("cannot {action}: {}{}", cause(.source), remedy(.source))]
    Request {
        /// The purpose of the request, as in "read conversation sales/alice".
        action: String,
        /// The error.
        source: kube::Error,
    },
    /// The conversation does not exist.
    #[error(
        "there is no conversation {0}. `kubectl switchboard list --all-namespaces` lists the open ones. If its create was refused, the \
         refusal starts with a code, which `kubectl switchboard explain CODE` explains"
    )]
    NotFound(String),
    /// The conversation has changed since it was read.
    #[error(
        "conversation {0} has changed since it was read, so the API server refused this change. Run the command again: it starts from \
         the current state"
    )]
    Conflict(String),
    /// The change is not possible.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// An object cannot be decoded.
    #[error(
        "{what} cannot be decoded: {cause}; the plugin may be older than the installation: `kubectl switchboard --version`"
    )]
    Undecodable {
        /// The object.
        what: String,
        /// The error.
        cause: serde_json::Error,
    },
    /// A stored conversation is invalid, because somebody bypassed the schema.
    #[error("conversation {place} is invalid: {cause}")]
    Invalid {
        /// The conversation.
        place: String,
        /// The error.
        cause: InvalidBinding,
    },
    /// Another object stands in the way.
    #[error("{0}")]
    Claim(#[from] crate::claims::Error),
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
    /// An object could not be serialized.
    #[error("cannot write the output: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
    /// An object could not be serialized.
    #[error("cannot write the output: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// The error of a request with this purpose.
    pub fn request(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |source| Self::Request { action, source }
    }

    /// The exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => INVALID_USAGE,
            Self::NotFound(_) => NOT_FOUND,
            _ => FAILED,
        }
        .into()
    }
}

/// The error in the API server's words, which may quote addresses: the user may read them.
fn cause(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.trim_end_matches('.').to_owned(),
        error => ErrorChain(error).to_string(),
    }
}

/// Whether the API server does not know the kind, because the CRDs are not installed. The error about a missing object names the object.
pub fn is_unknown_kind(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    status.is_not_found() && status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

fn remedy(error: &kube::Error) -> &'static str {
    match ErrorClass::of(error) {
        ErrorClass::Transport => "; check that the API server runs, and its address in the kubeconfig",
        ErrorClass::Unauthorized => "; check the credentials in the kubeconfig",
        // The authorizer's words; an admission policy has its own remedy in its message.
        ErrorClass::Forbidden if cause(error).contains("\" cannot ") => {
            "; ask an administrator for this permission, which the ClusterRoles switchboard-view (to read) and switchboard-edit (to \
             change) contain"
        }
        ErrorClass::NotFound if is_unknown_kind(error) => {
            "; install switchboard in this cluster, or choose another one by --context"
        }
        ErrorClass::Throttled | ErrorClass::Expired | ErrorClass::Server => "; try again in a moment",
        _ => "",
    }
}
