//! The tasks of the controller: the keys of its queue.

use super::keys::NamespacedName;
use crate::core::binding::BindingName;
use std::fmt::{self, Display, Formatter};

/// An object to reconcile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Bring the status of a conversation up to date.
    Conversation(NamespacedName),
    /// Release or prune a claim if possible.
    Claim(BindingName),
}

impl Display for Task {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conversation(key) => write!(f, "conversation {key}"),
            Self::Claim(name) => write!(f, "claim {name}"),
        }
    }
}
