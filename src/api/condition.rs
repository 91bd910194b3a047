//! Conditions: like `metav1.Condition`, with the types and reasons of each kind as enums.

use super::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Condition of the object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition<Type = ConditionType, Reason = ConditionReason> {
    /// Type of the condition.
    #[serde(rename = "type")]
    pub type_: Type,
    /// Status of the condition.
    pub status: ConditionStatus,
    /// Value of `metadata.generation` that the condition is based on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Last time at which the status of the condition changed.
    pub last_transition_time: Time,
    /// Reason for the status of the condition, for programs.
    pub reason: Reason,
    /// Details of the status of the condition, for people. At most 4096 characters.
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// Type of a condition of a Conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ConditionType {
    /// The spec is in effect.
    Ready,
    /// The Conversation holds its binding.
    Bound,
    /// The Conversation is open and has no participants, so no user receives its inbound messages.
    Unassigned,
    /// The spec cannot take effect until another object changes. This condition is present only while it is True.
    Stalled,
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ConditionStatus {
    /// The condition is met.
    True,
    /// The condition is not met.
    False,
    /// Switchboard has not evaluated the condition yet.
    Unknown,
}

/// Reason for the status of a condition of a Conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ConditionReason {
    /// Switchboard has not processed the Conversation yet. Used with every condition whose status is Unknown.
    Pending,
    /// The Conversation is open and holds its binding. Used with Ready.
    Bound,
    /// The Conversation is open and has no contact, so it needs no binding. Used with Ready.
    Unbound,
    /// The Conversation is closed. Used with Ready, Bound and Unassigned.
    Closed,
    /// Another Conversation holds the binding. Used with Ready, Bound and Stalled.
    AddressAlreadyBound,
    /// Another Conversation holds the binding, and `spec.onConflict` is Wait. Used with Ready and Bound.
    WaitingForBinding,
    /// The Conversation is being deleted, and a finalizer keeps it. Used with Ready and Bound.
    Deleting,
    /// The AddressBinding names this Conversation. Used with Bound.
    BindingHeld,
    /// The Conversation has no contact, so it has no binding. Used with Bound.
    NoContact,
    /// The list of participants is absent or empty. Used with Unassigned.
    NoParticipants,
    /// The Conversation has at least one participant. Used with Unassigned.
    Assigned,
}
