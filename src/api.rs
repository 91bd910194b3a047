//! The API: the types of group `switchboard.dev`, version `v1alpha1`, and the rules of their schemas.
//!
//! This module has no logic beyond reading and writing the types, and imports nothing from the rest of the crate.

mod address_binding;
pub(crate) mod address_format;
mod condition;
mod conversation;
mod duration;
mod proxy_address;
mod rules;
mod schema;
mod time;
mod timer;

pub use address_binding::{AddressBinding, AddressBindingSpec, Admission, ConversationReference};
pub use condition::{Condition, ConditionReason, ConditionStatus, ConditionType};
pub use conversation::{
    Channel, Contact, Conversation, ConversationSpec, ConversationStatus, Deadlines, OnConflict, Participant, Proxy,
    State, StateReason, Timers, TimersInEffect,
};
pub use duration::{Duration, DurationError};
pub use proxy_address::{
    Assignment, AssignmentStrategy, Autocreate, ConversationDefaults, Inbound, LabelOperator, LabelSelector,
    LabelSelectorRequirement, Namespaces, ProxyAddress, ProxyAddressCondition, ProxyAddressConditionReason,
    ProxyAddressConditionType, ProxyAddressSpec, ProxyAddressStatus, Sink, SinkService,
};
pub use schema::{address_binding_crd, conversation_crd, crds, proxy_address_crd};
pub use time::Time;
pub use timer::{Timer, TimerError};

/// The API group of all kinds.
pub const GROUP: &str = "switchboard.dev";
/// The API version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// The field manager of every write of the operator.
pub const FIELD_MANAGER: &str = "switchboard";
/// The maximum number of characters of an address, or of the identity of a participant.
pub const MAX_ADDRESS_LENGTH: usize = 256;
/// The maximum number of admissions that a claim records. Further creates get a 503 until the claim is released.
pub const MAX_ADMISSIONS: usize = 64;
/// The maximum number of participants of a conversation.
pub const MAX_PARTICIPANTS: usize = 100;
