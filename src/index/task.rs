//! The tasks of the controller: the keys of its queue.

use super::keys::{NamespacedName, ProxyKey};
use crate::core::binding::BindingName;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

/// An object to reconcile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Bring the status of a conversation up to date.
    Conversation(NamespacedName),
    /// Release or prune a claim if possible.
    Claim(BindingName),
    /// Bring the status of the ProxyAddress of this name up to date.
    ProxyAddress(Arc<str>),
    /// Read the default timers of a proxy address live, for the conversations that they are about to close.
    Defaults(ProxyKey),
}

impl Display for Task {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conversation(key) => write!(f, "conversation {key}"),
            Self::Claim(name) => write!(f, "claim {name}"),
            Self::ProxyAddress(name) => write!(f, "ProxyAddress {name}"),
            // Logs contain no addresses.
            Self::Defaults(key) => write!(f, "default timers of a proxy address on {}", key.channel()),
        }
    }
}
