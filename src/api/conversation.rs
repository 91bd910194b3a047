//! `Conversation`: the desired state of a conversation of a business with one contact, and the status that switchboard reports.

use super::{Condition, Duration, MAX_ADDRESS_LENGTH, MAX_PARTICIPANTS, Time, Timer, rules};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Desired state of the Conversation. It is written by users; switchboard never changes it. Once `status.state` is Closed, changes
/// have no effect, except for those of `ttlAfterClosed`.
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
    doc = "Conversation represents a conversation of a business with one contact, on one channel and through one proxy address. An open Conversation with a contact holds its binding: the triple of channel, contact address and proxy address. A binding has at most one holder in the cluster; the creation of a second open Conversation for it is denied with error 48031.",
    selectable = ".spec.channel",
    selectable = ".spec.contact.address",
    selectable = ".spec.proxy.address",
    selectable = ".status.state",
    printcolumn(
        name = "Channel",
        type_ = "string",
        json_path = ".spec.channel",
        description = "Channel of the contact address and the proxy address."
    ),
    printcolumn(
        name = "Contact",
        type_ = "string",
        json_path = ".spec.contact.address",
        description = "Address of the contact."
    ),
    printcolumn(
        name = "Proxy",
        type_ = "string",
        json_path = ".spec.proxy.address",
        description = "Address of the business."
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "State in effect."),
    printcolumn(
        name = "Assigned-To",
        type_ = "string",
        json_path = ".spec.participants[*].identity",
        description = "Identity of the first participant."
    ),
    printcolumn(
        name = "Bound",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Bound\")].status",
        description = "Status of the condition Bound: whether the Conversation holds its binding."
    ),
    printcolumn(
        name = "Closes",
        type_ = "string",
        json_path = ".status.deadlines.closeTime",
        description = "Time at which a timer will close the Conversation."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    ),
    printcolumn(
        name = "Unassigned",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Unassigned\")].status",
        priority = 1,
        description = "Status of the condition Unassigned: whether the Conversation is open and has no participant."
    ),
    printcolumn(
        name = "State-Reason",
        type_ = "string",
        json_path = ".status.stateReason",
        priority = 1,
        description = "Reason for the state in effect."
    ),
    printcolumn(
        name = "Last-Activity",
        type_ = "string",
        json_path = ".status.lastActivityTime",
        priority = 1,
        description = "Time of the last activity. Empty if there has been none since creation."
    ),
    printcolumn(
        name = "Inactive-At",
        type_ = "string",
        json_path = ".status.deadlines.inactiveTime",
        priority = 1,
        description = "Time at which a timer will make the Conversation Inactive."
    ),
    printcolumn(
        name = "Close-After",
        type_ = "string",
        json_path = ".status.timers.closeAfter",
        priority = 1,
        description = "Timer closeAfter in effect."
    ),
    printcolumn(
        name = "Binding",
        type_ = "string",
        json_path = ".status.addressBindingName",
        priority = 1,
        description = "Name of the AddressBinding that the Conversation holds."
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::spec()))]
pub struct ConversationSpec {
    /// Channel of the contact address and the proxy address. It determines the format of both. The channel of an open
    /// Conversation cannot be changed; to use another channel, create another Conversation.
    pub channel: Channel,
    /// Contact with whom the business communicates. If absent, the Conversation holds no binding. Removing the contact releases
    /// the binding. While the Conversation is open, a contact cannot be added later, and its address cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
    /// Address of the business. Participants and contact exchange messages through it. It cannot be changed while the
    /// Conversation is open; to use another proxy address, create another Conversation.
    pub proxy: Proxy,
    /// Desired state. Defaults to Active. Active and Inactive can be changed freely. Closed is final: it cannot be changed back
    /// until `status.state` is Closed, and a later change has no effect. Timers can move the Conversation to a later state than
    /// the desired one; the state in effect is `status.state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Users of the business who take part, at most 100, each with a unique identity. If absent or empty, the Conversation is
    /// Unassigned and no user receives its inbound messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_PARTICIPANTS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["identity"]))]
    pub participants: Option<Vec<Participant>>,
    /// Timers that make the Conversation Inactive or Closed after a period without activity or participants. Each timer is
    /// optional. For one that is absent, the default of the ProxyAddress applies, or else that of the installation; `never` means
    /// no such timer, whatever the defaults are. `status.timers` shows the timers in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<Timers>,
    /// Period after which a closed Conversation is deleted, counted from `status.closedTime`. A duration from 1s to 87600h (ten
    /// years), such as `720h`. If absent, a closed Conversation is kept. Do not set it if a GitOps tool manages the
    /// Conversation: the tool would create it again, and it would be open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_closed: Option<Duration>,
    /// What happens if another Conversation holds the binding when this one is created. Defaults to Refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_conflict: Option<OnConflict>,
}

/// Handling of a create whose binding is not free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = super::schema::described_by_the_field)]
pub enum OnConflict {
    /// The create is refused with error 48031.
    #[default]
    Refuse,
    /// The Conversation is stored without its binding and gets it as soon as it is free: the oldest waiting Conversation
    /// first. Until then it receives no messages and its timers do not run.
    Wait,
}

/// Channel that carries the messages.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Deserialize,
    Serialize,
    JsonSchema,
    strum::Display,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
pub enum Channel {
    /// SMS. Addresses are E.164 numbers, short codes or alphanumeric sender IDs.
    #[serde(rename = "SMS")]
    #[strum(serialize = "SMS")]
    Sms,
    /// WhatsApp. Addresses are E.164 numbers; a contact address can also be a business-scoped user ID.
    WhatsApp,
    /// RCS. Contact addresses are E.164 numbers; proxy addresses are agent IDs or E.164 numbers.
    #[serde(rename = "RCS")]
    #[strum(serialize = "RCS")]
    Rcs,
    /// Messenger. Addresses are IDs issued by the platform.
    Messenger,
    /// Instagram. Addresses are IDs issued by the platform.
    Instagram,
    /// Apple Messages for Business. Addresses are IDs issued by the platform.
    AppleMessages,
    /// Email. Addresses have the form `local@domain`, in lower case.
    Email,
    /// Chat. Addresses are identities.
    Chat,
}

impl Channel {
    /// The channel as the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// State of a Conversation, in the order in which timers change it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Deserialize,
    Serialize,
    JsonSchema,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[schemars(transform = super::schema::described_by_the_field)]
pub enum State {
    /// The Conversation is open.
    #[default]
    Active,
    /// The Conversation is open, but has had no activity for some time, or `spec.state` is Inactive. It still holds its binding.
    Inactive,
    /// The Conversation is closed and holds no binding. This state is final.
    Closed,
}

impl State {
    /// The state as the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Contact with whom the business communicates.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Contact {
    /// Address of the contact on the channel, from 1 to 256 characters. It must be in canonical form, without a scheme such as
    /// `tel:` in front: an E.164 number on SMS, WhatsApp and RCS; on SMS also a short code of 3 to 6 digits, or a sender ID of at
    /// most 11 letters, digits, inner spaces, `-`, `+`, `_` and `&`, with at least one letter; on WhatsApp also a business-scoped
    /// user ID, such as `US.13491208655302741918`; lower-case `local@domain` of at most 254 characters on Email; an identity on
    /// Chat, in printable ASCII without leading or trailing spaces; on all other channels the ID issued by the platform, in
    /// printable ASCII without spaces. It must differ from the proxy address.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH))]
    pub address: String,
    /// Name of the contact that is shown to participants. At most 256 characters, without control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = rules::display_name()))]
    pub display_name: Option<String>,
}

/// Address of the business on the channel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Proxy {
    /// Proxy address, from 1 to 256 characters. It must be in the canonical form that the channel requires of a contact
    /// address, with these differences: on SMS a short code can have up to 8 digits; on WhatsApp it is an E.164 number; on RCS it
    /// can also be the ID of an agent, as its carrier spells it, in printable ASCII without spaces and without `+` in front.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH))]
    pub address: String,
}

/// User of the business who takes part in the Conversation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Participant {
    /// Identity of the user, such as `agent-7`. From 1 to 256 characters of printable ASCII, without leading or trailing
    /// spaces. It must be unique among the participants.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH), extend("x-kubernetes-validations" = rules::identity()))]
    pub identity: String,
}

/// Timers that change the state of a Conversation. Each of them is optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::timers()))]
pub struct Timers {
    /// Period without activity after which the Conversation becomes Inactive. A duration from 1s to 87600h (ten years), such as
    /// `30m`, or `never`. If absent, a default applies, if there is one; otherwise inactivity does not make it Inactive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactive_after: Option<Timer>,
    /// Period without activity after which the Conversation becomes Closed. A duration from 1s to 87600h (ten years), such as
    /// `24h`, or `never`. It must be longer than `inactiveAfter` if both are set, since both are counted from the last activity. If
    /// absent, a default applies, if there is one; otherwise inactivity does not close the Conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_after: Option<Timer>,
    /// Period without participants after which the Conversation becomes Closed. A duration from 1s to 87600h (ten years), such
    /// as `1h`, or `never`. If absent, a default applies, if there is one; otherwise a Conversation without participants stays open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_unassigned_after: Option<Timer>,
}

/// Observed state of the Conversation. It is written by switchboard, except for `reportedActivityTime`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::status()))]
pub struct ConversationStatus {
    /// Value of `metadata.generation` that the status is based on. It is 0 until switchboard has processed the Conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// State in effect: the later of `spec.state` and the state that the timers have reached, in the order Active, Inactive,
    /// Closed. Closed is final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Reason for the state in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<StateReason>,
    /// Time at which switchboard changed the state. It can be later than the deadline of the timer that caused the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_transition_time: Option<Time>,
    /// Time of the last message, set by the messaging gateway: RFC 3339 with seconds, such as `2026-01-01T10:00:00Z`. It is the
    /// only field of the status that clients other than switchboard can write. Future times are clamped to the time of
    /// observation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = rules::reported_instant()))]
    pub reported_activity_time: Option<String>,
    /// Value of `reportedActivityTime` that was clamped, because it was in the future when it was observed. It is stored so that
    /// the same value is not counted as activity again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_activity_time: Option<Time>,
    /// Time of the last activity. It is never set to an earlier time. `inactiveAfter` and `closeAfter` are counted from this
    /// time or, if it is absent, from the creation of the Conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity_time: Option<Time>,
    /// Time at which the Conversation became unassigned. `closeUnassignedAfter` is counted from this time. Absent while it has
    /// participants. If participants may have come and gone unobserved, it is the time of observation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unassigned_time: Option<Time>,
    /// Timers in effect: those of the spec and, for each one that is absent there, the default of the ProxyAddress, or else that of the
    /// installation. A default that contradicts a timer of the spec does not apply. Absent if there are none, and once it is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<TimersInEffect>,
    /// Times at which timers will change the state. Absent if no timer is running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadlines: Option<Deadlines>,
    /// Time at which switchboard closed the Conversation. `ttlAfterClosed` is counted from this time. Absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_time: Option<Time>,
    /// Name of the AddressBinding that the Conversation holds. Absent while it holds none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub address_binding_name: Option<String>,
    /// Conditions of the Conversation: Ready, Bound, Unassigned and, only while it is True, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Timers that are in effect for a Conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimersInEffect {
    /// Timer `inactiveAfter` in effect. Absent if inactivity does not make the Conversation Inactive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactive_after: Option<Duration>,
    /// Timer `closeAfter` in effect. Absent if inactivity does not close the Conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_after: Option<Duration>,
    /// Timer `closeUnassignedAfter` in effect. Absent if a Conversation without participants stays open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_unassigned_after: Option<Duration>,
}

/// Reason for the state in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = super::schema::described_by_the_field)]
pub enum StateReason {
    /// `spec.state` requests the state.
    Spec,
    /// The timer `inactiveAfter` expired.
    InactiveTimer,
    /// The timer `closeAfter` expired.
    CloseTimer,
    /// The timer `closeUnassignedAfter` expired.
    UnassignedTimer,
    /// Activity made the Conversation Active after a timer had made it Inactive.
    Activity,
}

/// Times at which timers will change the state, unless activity or participants postpone them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deadlines {
    /// Time at which the Conversation becomes Inactive. Absent if it is not Active or has no timer `inactiveAfter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactive_time: Option<Time>,
    /// Time at which the Conversation becomes Closed: the earlier of the deadlines of `closeAfter` and `closeUnassignedAfter`. A
    /// default does not close it within ten minutes of a change of the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_time: Option<Time>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::VariantArray;

    /// The names that serde writes are those of the API.
    #[test]
    fn names_match_the_serialized_values() {
        for channel in Channel::VARIANTS {
            assert_eq!(serde_json::to_value(channel).unwrap(), channel.as_str());
            assert_eq!(channel.to_string(), channel.as_str());
        }
        for state in State::VARIANTS {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
