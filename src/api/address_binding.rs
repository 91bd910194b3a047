//! `AddressBinding`: the claim of one Conversation on one binding. All of them together are the routing table that gateways read.

use super::{Channel, MAX_ADDRESS_LENGTH, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Binding, and the Conversation that holds it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "switchboard.dev",
    version = "v1alpha1",
    kind = "AddressBinding",
    plural = "addressbindings",
    shortname = "ab",
    category = "switchboard",
    derive = "PartialEq",
    doc = "AddressBinding records which Conversation holds a binding: the triple of channel, contact address and proxy address. Its name is derived from the triple, so a binding has at most one AddressBinding in the cluster. Only switchboard writes AddressBindings; gateways and users read them.",
    selectable = ".spec.channel",
    selectable = ".spec.contactAddress",
    selectable = ".spec.proxyAddress",
    selectable = ".spec.conversationRef.namespace",
    selectable = ".spec.conversationRef.name",
    printcolumn(
        name = "Channel",
        type_ = "string",
        json_path = ".spec.channel",
        description = "Channel of the contact address and the proxy address."
    ),
    printcolumn(
        name = "Contact",
        type_ = "string",
        json_path = ".spec.contactAddress",
        description = "Address of the contact."
    ),
    printcolumn(
        name = "Proxy",
        type_ = "string",
        json_path = ".spec.proxyAddress",
        description = "Address of the business."
    ),
    printcolumn(
        name = "Namespace",
        type_ = "string",
        json_path = ".spec.conversationRef.namespace",
        description = "Namespace of the Conversation that holds the binding."
    ),
    printcolumn(
        name = "Conversation",
        type_ = "string",
        json_path = ".spec.conversationRef.name",
        description = "Name of the Conversation that holds the binding."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since creation."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct AddressBindingSpec {
    /// Channel of the contact address and the proxy address.
    pub channel: Channel,
    /// Address of the contact, in its canonical form. From 1 to 256 characters.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH))]
    pub contact_address: String,
    /// Address of the business, in its canonical form. From 1 to 256 characters.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH))]
    pub proxy_address: String,
    /// Conversation that holds the binding.
    pub conversation_ref: ConversationReference,
    /// Creates of the Conversation that were admitted for this binding, at most 64, each with a unique UID. An admitted create
    /// can still be in flight. The AddressBinding is kept until each create is known to have been stored or to have failed.
    #[serde(default)]
    #[schemars(length(max = super::MAX_ADMISSIONS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uid"]))]
    pub admissions: Vec<Admission>,
}

/// Reference to a Conversation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
pub struct ConversationReference {
    /// Namespace of the Conversation. From 1 to 63 characters.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the Conversation. From 1 to 253 characters.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl std::fmt::Display for ConversationReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Admission of a create.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub struct Admission {
    /// UID that the API server assigned to the Conversation in this create. From 1 to 128 characters.
    #[schemars(length(min = 1, max = 128))]
    pub uid: String,
    /// Time of the admission.
    pub time: Time,
}
