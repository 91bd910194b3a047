//! State, times and conditions of a conversation as a function of its spec, its previous status, its binding and the time.

mod conditions;
mod decide;
#[cfg(test)]
mod fixtures;
mod input;
mod notices;

pub use conditions::BindingStatus;
pub use decide::{Decision, decide, due};
pub use input::{LifecycleInput, PreviousStatus};
pub use notices::{Notice, NoticeReason, expired, invalid_object, new_notices, notices_since};
