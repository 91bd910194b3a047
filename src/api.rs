//! What users write and read: the types of group `switchboard.dev`, version `v1alpha1`, and the rules of their schemas.
//!
//! No logic lives here beyond what a type needs to be read and written, and nothing of the rest of the crate is imported.

mod address_binding;
mod condition;
mod conversation;
mod duration;
mod rules;
mod schema;
mod time;

pub use address_binding::{AddressBinding, AddressBindingSpec, Admission, ConversationReference};
pub use condition::{Condition, ConditionReason, ConditionStatus, ConditionType};
pub use conversation::{
    Channel, Contact, Conversation, ConversationSpec, ConversationStatus, Deadlines, Participant, Proxy, State,
    StateReason, Timers,
};
pub use duration::{Duration, DurationError};
pub use schema::{address_binding_crd, conversation_crd};
pub use time::Time;

/// The API group of both kinds.
pub const GROUP: &str = "switchboard.dev";
/// The one API version of both kinds.
pub const VERSION: &str = "v1alpha1";
/// The field manager of every write of the operator.
pub const FIELD_MANAGER: &str = "switchboard";
/// The most characters that an address, or the identity of a participant, may have.
pub const MAX_ADDRESS_LENGTH: usize = 256;
/// The most admissions that one claim records. A create beyond them is answered with a 503 until the claim is released.
pub const MAX_ADMISSIONS: usize = 64;
/// The most participants that one conversation may have.
pub const MAX_PARTICIPANTS: usize = 100;
