//! Conditions of a conversation: metav1's shape, and the types and reasons that are part of the API.

use super::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One aspect of a conversation as last observed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The aspect that this condition tells of.
    #[serde(rename = "type")]
    pub type_: ConditionType,
    /// Whether it holds: True, False, or Unknown while it has not been decided.
    pub status: ConditionStatus,
    /// The generation of the spec that the condition was decided on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// When `status` last changed.
    pub last_transition_time: Time,
    /// Why it holds or does not, in one word for programs.
    pub reason: ConditionReason,
    /// Why it holds or does not, for people.
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// The aspects of a conversation that conditions tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ConditionType {
    /// What the spec asks for is in effect.
    Ready,
    /// The conversation holds its binding.
    Bound,
    /// The conversation is open and has no participant: an inbound message reaches nobody.
    Unassigned,
    /// What the spec asks for cannot come into effect without a change of something else. Present only while True.
    Stalled,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It has not been decided yet.
    Unknown,
}

/// Why a condition has its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ConditionReason {
    /// Nothing has been decided yet.
    Pending,
    /// Ready: the conversation is open and holds its binding.
    Bound,
    /// Ready: the conversation is open and, without a contact, needs no binding.
    Unbound,
    /// The conversation is closed.
    Closed,
    /// Another conversation holds the binding.
    AddressAlreadyBound,
    /// Bound: the claim names this conversation.
    BindingHeld,
    /// Bound: there is no contact, and so no binding.
    NoContact,
    /// Unassigned: the list of participants is empty.
    NoParticipants,
    /// Unassigned: there is at least one participant.
    Assigned,
}
