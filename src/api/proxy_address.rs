//! `ProxyAddress`: an address of the business, with the namespaces that may use it and the defaults of the conversations behind it.

use super::condition::Condition;
use super::{Channel, Duration, MAX_ADDRESS_LENGTH, Timers, rules};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Desired state of the ProxyAddress. Administrators write it; switchboard never changes it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "switchboard.dev",
    version = "v1alpha1",
    kind = "ProxyAddress",
    plural = "proxyaddresses",
    shortname = "pa",
    category = "switchboard",
    status = "ProxyAddressStatus",
    derive = "PartialEq",
    doc = "ProxyAddress represents an address of the business: which namespaces may open Conversations behind it, which timers these Conversations have by default, and how inbound messages are handled. If several ProxyAddresses have the same channel and address, the oldest is in effect.",
    selectable = ".spec.channel",
    selectable = ".spec.address",
    printcolumn(
        name = "Channel",
        type_ = "string",
        json_path = ".spec.channel",
        description = "Channel of the address."
    ),
    printcolumn(
        name = "Address",
        type_ = "string",
        json_path = ".spec.address",
        description = "Address of the business."
    ),
    printcolumn(
        name = "Namespaces",
        type_ = "string",
        json_path = ".spec.namespaces.selector",
        description = "Selector of the namespaces that may use the address. Empty if all may."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Status of the condition Ready: whether the ProxyAddress is in effect."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].reason",
        description = "Reason of the condition Accepted."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    ),
    printcolumn(
        name = "Close-After",
        type_ = "string",
        json_path = ".spec.defaults.timers.closeAfter",
        priority = 1,
        description = "Default of the timer closeAfter."
    ),
    printcolumn(
        name = "Autocreate-In",
        type_ = "string",
        json_path = ".spec.inbound.autocreate.namespace",
        priority = 1,
        description = "Namespace in which inbound messages create Conversations."
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::proxy_address()))]
pub struct ProxyAddressSpec {
    /// Channel of the address. It determines the format of the address and cannot be changed.
    pub channel: Channel,
    /// Address of the business, from 1 to 256 characters, in the canonical form that the channel requires of a proxy address. It
    /// cannot be changed.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH))]
    pub address: String,
    /// Namespaces in which Conversations may be created behind the address. If absent, it may be used in every namespace. A change
    /// affects new Conversations only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Namespaces>,
    /// Defaults for the fields that a Conversation behind the address does not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<ConversationDefaults>,
    /// Handling of inbound messages for the address. If absent, no inbound message is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Inbound>,
}

/// Selection of namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Namespaces {
    /// Selector of the labels of the namespaces. If absent or empty, it selects every namespace. Whoever may set the labels of a
    /// namespace decides whether it is selected; nobody can set the label `kubernetes.io/metadata.name`, which is the name of the
    /// namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub selector: Option<LabelSelector>,
}

/// Label selector, as `metav1.LabelSelector` with bounds. An object matches if it meets all requirements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::label_selector()))]
pub struct LabelSelector {
    /// Labels that an object must have, with these values. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "rules::labels")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on the labels of an object. At most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// Requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::label_requirement()))]
pub struct LabelSelectorRequirement {
    /// Key of the label. From 1 to 317 characters.
    #[schemars(length(min = 1, max = 317), extend("x-kubernetes-validations" = rules::label_key()))]
    pub key: String,
    /// Relation between the value of the label and `values`.
    pub operator: LabelOperator,
    /// Values of the label, at most 256. They must be set with In and NotIn, and must not be set with Exists and DoesNotExist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "rules::label_values")]
    pub values: Vec<String>,
}

/// Operator of a requirement on a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = super::schema::described_by_the_field)]
pub enum LabelOperator {
    /// The object has the label, with one of the values.
    In,
    /// The object does not have the label with one of the values.
    NotIn,
    /// The object has the label.
    Exists,
    /// The object does not have the label.
    DoesNotExist,
}

/// Defaults for the fields that a Conversation does not set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ConversationDefaults {
    /// Default timers. Each is used by the Conversations that do not set it themselves. It does not apply to a Conversation whose
    /// own timers contradict it. A changed default closes no Conversation within ten minutes of the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<Timers>,
}

/// Handling of inbound messages.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Inbound {
    /// Names of the sources from which messages for the address are accepted, from 1 to 16.
    #[schemars(schema_with = "rules::sources")]
    pub sources: Vec<String>,
    /// Creation of a Conversation for a message that no Conversation is bound for. If absent, such a message is unroutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autocreate: Option<Autocreate>,
    /// Receiver of the messages.
    pub sink: Sink,
    /// Receiver of the messages that the sink does not accept. If absent, they are answered with an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_sink: Option<Sink>,
}

/// Creation of Conversations by inbound messages.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::autocreate()))]
pub struct Autocreate {
    /// Namespace of the Conversations. `spec.namespaces` must select it.
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = rules::dns_label("namespace")))]
    pub namespace: String,
    /// Labels of the Conversations. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "rules::labels")]
    pub labels: BTreeMap<String, String>,
    /// Value of `spec.ttlAfterClosed` of the Conversations. It must be longer than the time for which the provider repeats a
    /// message. If absent, closed Conversations are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_closed: Option<Duration>,
    /// Maximum number of Conversations that each replica of the router creates in a minute, from 1 to 100000. Messages above it are
    /// unroutable. Defaults to 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_per_minute: Option<i32>,
    /// Assignment of the Conversations to users of the business. If absent, they are Unassigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment: Option<Assignment>,
}

/// Assignment of Conversations to users of the business.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Identities of the users, from 1 to 100.
    #[schemars(schema_with = "rules::identities")]
    pub identities: Vec<String>,
    /// Choice of the user.
    pub strategy: AssignmentStrategy,
    /// Maximum number of open Conversations that a user is assigned to, from 1 to 100000. Replicas of the router count apart, so it
    /// can be exceeded by a few. If all users have as many, the Conversation is Unassigned. If absent, there is no maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_open_per_identity: Option<i32>,
}

/// Choice of the user that a Conversation is assigned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = super::schema::described_by_the_field)]
pub enum AssignmentStrategy {
    /// The user with the fewest open Conversations behind the address.
    LeastOpen,
    /// The same user for each Conversation with a contact, as long as the list of identities stays the same.
    Sticky,
    /// No user: the Conversation is Unassigned.
    None,
}

/// Receiver of events over HTTP. Either `uri` or `service` must be set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules::sink()))]
pub struct Sink {
    /// URL of the receiver, with the scheme http or https. At most 2048 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), extend("x-kubernetes-validations" = rules::sink_uri()))]
    pub uri: Option<String>,
    /// Service in the cluster that receives events over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<SinkService>,
}

/// Service that receives events over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct SinkService {
    /// Namespace of the Service. From 1 to 63 characters.
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = rules::dns_label("namespace")))]
    pub namespace: String,
    /// Name of the Service. From 1 to 63 characters.
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = rules::dns_label("Service")))]
    pub name: String,
    /// Port of the Service, from 1 to 65535. Defaults to 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
    /// Path of the URL, which starts with `/`. At most 1024 characters. Defaults to `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = rules::sink_path()))]
    pub path: Option<String>,
}

/// Observed state of the ProxyAddress. It is written by switchboard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyAddressStatus {
    /// Value of `metadata.generation` that the status is based on. It is 0 until switchboard has processed the ProxyAddress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Conditions of the ProxyAddress: Accepted, Ready and, only while it is True, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<ProxyAddressCondition>,
}

/// Condition of a ProxyAddress.
pub type ProxyAddressCondition = Condition<ProxyAddressConditionType, ProxyAddressConditionReason>;

/// Type of a condition of a ProxyAddress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ProxyAddressConditionType {
    /// The spec is valid, and no older ProxyAddress has the same channel and address.
    Accepted,
    /// The spec is in effect.
    Ready,
    /// The spec cannot take effect until it or another object changes. This condition is present only while it is True.
    Stalled,
}

/// Reason for the status of a condition of a ProxyAddress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ProxyAddressConditionReason {
    /// Switchboard has not processed the ProxyAddress yet. Used with every condition whose status is Unknown.
    Pending,
    /// The spec is accepted. Used with Accepted.
    Accepted,
    /// The spec is in effect. Used with Ready.
    Ready,
    /// An older ProxyAddress has the same channel and address, so this one is not in effect. Used with Accepted, Ready and Stalled.
    Conflicted,
    /// The spec is not valid. Used with Accepted, Ready and Stalled.
    Invalid,
}
