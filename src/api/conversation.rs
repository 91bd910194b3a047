//! `Conversation`: what a business declares of one conversation with one contact, and what switchboard reports of it.

use super::{Condition, Duration, MAX_ADDRESS_LENGTH, MAX_PARTICIPANTS, Time, rules};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is asked for. It belongs to its author: switchboard never writes it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "switchboard.dev",
    version = "v1alpha1",
    kind = "Conversation",
    plural = "conversations",
    shortname = "conv",
    category = "switchboard",
    namespaced,
    status = "ConversationStatus",
    derive = "PartialEq",
    doc = "Conversation is a conversation of a business with one contact through one proxy address on one channel. While it is open and has a contact it holds that binding alone: a second one is refused with error 48031.",
    selectable = ".spec.channel",
    selectable = ".spec.contact.address",
    selectable = ".spec.proxy.address",
    selectable = ".status.state",
    printcolumn(
        name = "Channel",
        type_ = "string",
        json_path = ".spec.channel",
        description = "The channel of both addresses."
    ),
    printcolumn(
        name = "Contact",
        type_ = "string",
        json_path = ".spec.contact.address",
        description = "The address of the person outside."
    ),
    printcolumn(
        name = "Proxy",
        type_ = "string",
        json_path = ".spec.proxy.address",
        description = "The business's own address."
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "The state in effect."),
    printcolumn(
        name = "Assigned-To",
        type_ = "string",
        json_path = ".spec.participants[*].identity",
        description = "The first participant."
    ),
    printcolumn(
        name = "Bound",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Bound\")].status",
        description = "Whether it holds its binding."
    ),
    printcolumn(
        name = "Closes",
        type_ = "string",
        json_path = ".status.deadlines.closeTime",
        description = "When a timer will close it."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since when it has existed."
    ),
    printcolumn(
        name = "Unassigned",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Unassigned\")].status",
        priority = 1,
        description = "Whether it is open without a participant."
    ),
    printcolumn(
        name = "State-Reason",
        type_ = "string",
        json_path = ".status.stateReason",
        priority = 1,
        description = "What brought the state about."
    ),
    printcolumn(
        name = "Last-Activity",
        type_ = "string",
        json_path = ".status.lastActivityTime",
        priority = 1,
        description = "The activity that the timers count from; empty: the creation."
    ),
    printcolumn(
        name = "Inactive-At",
        type_ = "string",
        json_path = ".status.deadlines.inactiveTime",
        priority = 1,
        description = "When a timer will make it Inactive."
    ),
    printcolumn(
        name = "Binding",
        type_ = "string",
        json_path = ".status.addressBindingName",
        priority = 1,
        description = "The AddressBinding that it holds."
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::spec()))]
pub struct ConversationSpec {
    /// The channel of both addresses. It must not change: to move a contact to another channel, open another conversation.
    pub channel: Channel,
    /// The person outside. Removing it releases the binding; it can neither be added later nor get another address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
    /// The business's own address, behind which the participants answer. It must not change.
    pub proxy: Proxy,
    /// The state that is asked for; absent means Active. Active and Inactive change freely, Closed is final. A timer may bring
    /// about a later state than this one: `status.state` is the one in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// The users of the business who take part. Absent or empty: the conversation is Unassigned, and an inbound message reaches
    /// nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_PARTICIPANTS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["identity"]))]
    pub participants: Option<Vec<Participant>>,
    /// What happens by itself when nothing happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<Timers>,
    /// How long after its closing the conversation is deleted; absent: it is kept. Do not set it on what Git owns: what is
    /// deleted and applied again is open again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_closed: Option<Duration>,
}

/// The channel by which messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
pub enum Channel {
    /// SMS. Addresses are E.164; a proxy may also be a short code.
    #[serde(rename = "SMS")]
    Sms,
    /// `WhatsApp`. Addresses are E.164.
    WhatsApp,
    /// RCS. Addresses are E.164.
    #[serde(rename = "RCS")]
    Rcs,
    /// Messenger. Addresses are the platform's opaque ids.
    Messenger,
    /// Instagram. Addresses are the platform's opaque ids.
    Instagram,
    /// Apple Messages for Business. Addresses are the platform's opaque ids.
    AppleMessages,
    /// E-mail. Addresses are lower-case `local@domain`.
    Email,
    /// Chat. Addresses are identities.
    Chat,
}

impl Channel {
    /// The channel as the API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sms => "SMS",
            Self::WhatsApp => "WhatsApp",
            Self::Rcs => "RCS",
            Self::Messenger => "Messenger",
            Self::Instagram => "Instagram",
            Self::AppleMessages => "AppleMessages",
            Self::Email => "Email",
            Self::Chat => "Chat",
        }
    }
}

impl std::fmt::Display for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a conversation, in the order in which a timer or a person may move it on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = super::schema::described_by_the_field)]
pub enum State {
    /// Open.
    #[default]
    Active,
    /// Open, without activity for a while or parked by hand. It still holds its binding.
    Inactive,
    /// Over, and final. It holds no binding.
    Closed,
}

impl State {
    /// The state as the API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "Active",
            Self::Inactive => "Inactive",
            Self::Closed => "Closed",
        }
    }
}

/// The person outside.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Contact {
    /// The address of the contact in its canonical spelling: E.164 on SMS, WhatsApp and RCS, lower-case `local@domain` on
    /// Email, an identity on Chat, the platform's id on the others.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH))]
    pub address: String,
    /// A name to show to participants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = rules::display_name()))]
    pub display_name: Option<String>,
}

/// The business's own address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Proxy {
    /// The address in its canonical spelling: as for a contact, and on SMS also a short code of 3 to 8 digits.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH))]
    pub address: String,
}

/// A user of the business who takes part.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Participant {
    /// The identity by which the business knows the user, such as `agent-7`.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH), extend("x-kubernetes-validations" = rules::identity()))]
    pub identity: String,
}

/// What happens by itself when nothing happens. Each timer is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::timers()))]
pub struct Timers {
    /// How long after the last activity the conversation becomes Inactive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactive_after: Option<Duration>,
    /// How long after the last activity the conversation becomes Closed; must be longer than `inactiveAfter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_after: Option<Duration>,
    /// How long after it lost its last participant the conversation becomes Closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_unassigned_after: Option<Duration>,
}

/// What is in effect. All of it is written by switchboard, except `reportedActivityTime`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::status()))]
pub struct ConversationStatus {
    /// The generation of the spec that this status was decided on; 0 until one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// The state in effect: the later of what the spec asks for and what the timers brought about. Closed is final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// What brought the state about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<StateReason>,
    /// When the state was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_transition_time: Option<Time>,
    /// The last message, as reported by whoever carries the messages: the one field of the status that others write. A time
    /// in the future counts as the moment at which it was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub reported_activity_time: Option<String>,
    /// The `reportedActivityTime` that lay in the future when it was seen, and has been counted as activity of that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_activity_time: Option<Time>,
    /// The activity in effect, which the timers count from; absent: the creation. It never moves back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity_time: Option<Time>,
    /// Since when there has been no participant; absent while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unassigned_time: Option<Time>,
    /// What the timers will do, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadlines: Option<Deadlines>,
    /// When the closing was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_time: Option<Time>,
    /// The name of the AddressBinding that this conversation holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub address_binding_name: Option<String>,
    /// Ready, Bound, Unassigned and, only while True, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What brought the state in effect about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = super::schema::described_by_the_field)]
pub enum StateReason {
    /// The spec.
    Spec,
    /// The timer `inactiveAfter`.
    InactiveTimer,
    /// The timer `closeAfter`.
    CloseTimer,
    /// The timer `closeUnassignedAfter`.
    UnassignedTimer,
    /// Activity, which woke what a timer had made Inactive.
    Activity,
}

/// Absolute instants at which timers will move the state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deadlines {
    /// When the conversation becomes Inactive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactive_time: Option<Time>,
    /// When the conversation becomes Closed: the earlier of `closeAfter` and `closeUnassignedAfter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_time: Option<Time>,
}
