//! State, times and conditions of a conversation as a function of its spec, its previous status, the default timers, its binding
//! and the time.

mod conditions;
mod decide;
#[cfg(test)]
mod fixtures;
mod input;
mod notices;
mod timers;

pub use conditions::BindingStatus;
pub use decide::{Decision, decide, due};
pub use input::{LifecycleInput, PreviousStatus};
pub use notices::{Notice, NoticeReason, expired, invalid_object, new_notices, notices_since};
pub use timers::{Defaults, is_contradiction, with_defaults};
