//! The conversations of the benchmark, and a bare client that writes the same objects, claims, statuses and events as the operator, with
//! the functions of the operator.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use switchboard::{
    api::{AddressBinding, Admission, Conversation, ConversationReference, FIELD_MANAGER},
    claims::{ClaimMetrics, Claims, Outcome},
    clock::Clock,
    controller::EventPublisher,
    core::{
        binding::Binding,
        claim::Write,
        lifecycle::{BindingStatus, Defaults, LifecycleInput, decide, new_notices},
    },
    telemetry::metrics,
};

use crate::error::{Error, Result};

/// The prefix in the names of the claims of these conversations: their channel.
pub const CLAIM_PREFIX: &str = "sms";

/// Conversations of one namespace, each for a binding that no other batch uses.
#[derive(Clone, Debug)]
pub struct Batch {
    namespace: Arc<str>,
    serial: u32,
    close_after: Option<Arc<str>>,
    /// Every conversation with a multiple of this number has no participant; 0 if all have one.
    unassigned: usize,
    is_closed: bool,
}

impl Batch {
    /// Creates a batch. Each of its conversations has a participant and no timer.
    pub fn new(namespace: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        Self { namespace: namespace.into(), serial, close_after: None, unassigned: 0, is_closed: false }
    }

    /// The batch of a seeded state. It is the same at each call.
    pub fn seeded(namespace: &str) -> Self {
        Self { namespace: namespace.into(), serial: 0, close_after: None, unassigned: 0, is_closed: false }
    }

    /// Makes each conversation Closed at its creation.
    pub fn closed(self) -> Self {
        Self { is_closed: true, ..self }
    }

    /// Sets `spec.timers.closeAfter` of each conversation.
    pub fn close_after(self, duration: &str) -> Self {
        Self { close_after: Some(duration.into()), ..self }
    }

    /// Removes the participant of every second conversation, which causes another Event.
    pub fn half_unassigned(self) -> Self {
        Self { unassigned: 2, ..self }
    }

    /// The conversation with this number, below ten million.
    pub fn conversation(&self, number: usize) -> Result<Conversation> {
        let has_participant = self.unassigned == 0 || !number.is_multiple_of(self.unassigned);
        let participants = if has_participant { json!([{"identity": "agent-7"}]) } else { json!([]) };
        let mut spec = json!({
            "channel": "SMS",
            "contact": {"address": format!("+1{:05}{number:07}", self.serial)},
            "proxy": {"address": "+15017122661"},
            "participants": participants,
        });
        if let Some(close_after) = &self.close_after {
            spec["timers"] = json!({"closeAfter": &**close_after});
        }
        if self.is_closed {
            spec["state"] = json!("Closed");
        }
        Ok(Conversation::new(&format!("conversation-{}-{number}", self.serial), serde_json::from_value(spec)?))
    }

    /// A reference to the conversation.
    pub fn reference(&self, conversation: &Conversation) -> ConversationReference {
        ConversationReference {
            namespace: self.namespace.to_string(),
            name: conversation.metadata.name.clone().unwrap_or_default(),
        }
    }

    /// Creates the conversation with this number.
    pub async fn create(&self, client: Client, number: usize) -> Result<Conversation> {
        let conversations = Api::namespaced(client, &self.namespace);
        Ok(conversations.create(&PostParams::default(), &self.conversation(number)?).await?)
    }
}

/// A conversation for the binding that tests whether the webhook is in force.
pub fn sentinel(name: &str) -> Result<Conversation> {
    let spec = json!({"channel": "Chat", "contact": {"address": "sentinel"}, "proxy": {"address": "sentinel-proxy"}});
    Ok(Conversation::new(name, serde_json::from_value(spec)?))
}

/// A claim that only the operator may create.
pub fn foreign_claim() -> Result<AddressBinding> {
    let spec = json!({
        "channel": "Chat", "contactAddress": "a", "proxyAddress": "b", "conversationRef": {"namespace": "a", "name": "a"},
    });
    Ok(AddressBinding::new("bench-probe", serde_json::from_value(spec)?))
}

/// Makes the same writes as the operator, without reads and watches.
#[derive(Clone)]
pub struct BareClient {
    client: Client,
    claims: Claims,
    events: EventPublisher,
}

impl BareClient {
    /// Creates a bare client for each client.
    pub fn each(clients: Vec<Client>) -> Vec<Self> {
        clients.into_iter().map(Self::new).collect()
    }

    /// Creates a bare client that uses `client`.
    pub fn new(client: Client) -> Self {
        let claims = Claims::new(
            client.clone(),
            Clock,
            std::time::Duration::from_mins(1),
            ClaimMetrics::new(&mut metrics::registry()),
        );
        Self { events: EventPublisher::new(client.clone(), "bench".to_owned()), client, claims }
    }

    /// Creates the conversation with this number of a batch.
    pub async fn create(&self, batch: &Batch, number: usize) -> Result<Conversation> {
        batch.create(self.client.clone(), number).await
    }

    /// Creates the claim on the binding of a conversation.
    pub async fn claim(&self, batch: &Batch, conversation: &Conversation) -> Result<()> {
        let binding = binding(conversation)?;
        let admission = Admission { uid: "00000000-0000-4000-8000-000000000000".to_owned(), time: Clock.now() };
        let write = Write::Create { holder: batch.reference(conversation), admissions: vec![admission] };
        match self.claims.write(&binding, write).await {
            Ok(Outcome::Applied) => Ok(()),
            Ok(Outcome::Conflict) => Err(Error::Unexpected(format!("{} already has a claim", binding.name()))),
            Err(error) => Err(Error::Unexpected(error.to_string())),
        }
    }

    /// Writes the current status of a stored conversation, and its events.
    pub async fn status(&self, stored: &Conversation) -> Result<()> {
        let input = LifecycleInput::of(stored).map_err(|error| Error::Unexpected(error.to_string()))?;
        let binding_status =
            BindingStatus::Held { name: binding(stored)?.name(), since: switchboard::api::Time::EPOCH };
        let status = decide(&input, &Defaults::default(), Some(&binding_status), Clock.now()).status;
        let new_notices = new_notices(&input.status, &status);
        let metadata = &stored.metadata;
        let reference = ConversationReference {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        };
        let patch = json!({
            "apiVersion": Conversation::api_version(&()),
            "kind": Conversation::kind(&()),
            "metadata": {"name": reference.name, "namespace": reference.namespace, "resourceVersion": metadata.resource_version},
            "status": status,
        });
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), &reference.namespace);
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        conversations.patch_status(&reference.name, &parameters, &Patch::Apply(patch)).await?;
        for notice in new_notices {
            let uid = metadata.uid.as_deref().unwrap_or_default();
            self.events.publish(&reference.namespace, &reference.name, uid, &notice).await?;
        }
        Ok(())
    }

    /// Releases a claim with a known uid and resourceVersion.
    pub async fn release(&self, claim: &AddressBinding) -> Result<()> {
        let binding = Binding::claimed(&claim.spec).map_err(|error| Error::Unexpected(error.to_string()))?;
        let metadata = claim.metadata.clone();
        let write = Write::Delete {
            uid: metadata.uid.unwrap_or_default(),
            resource_version: metadata.resource_version.unwrap_or_default(),
        };
        match self.claims.write(&binding, write).await {
            Ok(Outcome::Applied) => Ok(()),
            Ok(Outcome::Conflict) => Err(Error::Unexpected(format!("{} has changed", binding.name()))),
            Err(error) => Err(Error::Unexpected(error.to_string())),
        }
    }
}

/// The binding of a conversation that has a contact.
pub fn binding(conversation: &Conversation) -> Result<Binding> {
    let binding = Binding::of(&conversation.spec).map_err(|error| Error::Unexpected(error.to_string()))?;
    binding.ok_or_else(|| Error::Unexpected("a conversation without a contact has no binding".to_owned()))
}
