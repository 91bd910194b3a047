//! `AddressBinding`: the claim of one conversation on one binding, and the routing table that gateways read.

use super::{Channel, MAX_ADDRESS_LENGTH, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The binding, the conversation that holds it, and the admissions given under that conversation's name.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "switchboard.dev",
    version = "v1alpha1",
    kind = "AddressBinding",
    plural = "addressbindings",
    shortname = "ab",
    category = "switchboard",
    derive = "PartialEq",
    doc = "AddressBinding says which conversation holds a binding: the triple of channel, contact address and proxy address. Its name is derived from the triple, so that one binding has one AddressBinding. It is written by switchboard alone; people and routers read it.",
    selectable = ".spec.channel",
    selectable = ".spec.contactAddress",
    selectable = ".spec.proxyAddress",
    selectable = ".spec.conversationRef.namespace",
    selectable = ".spec.conversationRef.name",
    printcolumn(
        name = "Channel",
        type_ = "string",
        json_path = ".spec.channel",
        description = "The channel of both addresses."
    ),
    printcolumn(
        name = "Contact",
        type_ = "string",
        json_path = ".spec.contactAddress",
        description = "The address of the person outside."
    ),
    printcolumn(
        name = "Proxy",
        type_ = "string",
        json_path = ".spec.proxyAddress",
        description = "The business's own address."
    ),
    printcolumn(
        name = "Namespace",
        type_ = "string",
        json_path = ".spec.conversationRef.namespace",
        description = "The namespace of the conversation that holds the binding."
    ),
    printcolumn(
        name = "Conversation",
        type_ = "string",
        json_path = ".spec.conversationRef.name",
        description = "The conversation that holds the binding."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since when the binding has been held."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct AddressBindingSpec {
    /// The channel of both addresses.
    pub channel: Channel,
    /// The address of the contact, in its canonical spelling.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH))]
    pub contact_address: String,
    /// The business's own address, in its canonical spelling.
    #[schemars(length(min = 1, max = MAX_ADDRESS_LENGTH))]
    pub proxy_address: String,
    /// The conversation that holds the binding.
    pub conversation_ref: ConversationReference,
    /// The creates of that conversation that were admitted under this claim. A create that has not been seen to be stored may
    /// still be in flight, so the claim is kept until all are decided.
    #[serde(default)]
    #[schemars(length(max = super::MAX_ADMISSIONS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uid"]))]
    pub admissions: Vec<Admission>,
}

/// A conversation by its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
pub struct ConversationReference {
    /// The namespace of the conversation.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name of the conversation.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl std::fmt::Display for ConversationReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One create that was admitted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub struct Admission {
    /// The UID that the API server gave to the object of that create.
    #[schemars(length(min = 1, max = 128))]
    pub uid: String,
    /// When it was admitted.
    pub time: Time,
}
