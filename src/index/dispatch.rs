//! Applies watch events to the index. A generic function dispatches the events to a handler; each of the three watches has one.

use super::Index;
use super::keys::NamespacedName;
use super::task::Task;
use crate::api::{AddressBinding, Conversation, Time};
use crate::claims::claim_of;
use crate::core::binding::BindingName;
use crate::telemetry::error_chain::ErrorChain;
use crate::watch::{Guarded, InvalidObject, Watched, watch};
use futures::Stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Client, Resource};
use std::time::Duration;
use tokio::time::Instant;

/// The handler of the events of one watch. Each method returns the tasks that follow from the event.
pub trait EventHandler {
    /// The kind of the watched objects.
    type Object: Watched;
    /// The field selector of the watch; `None` for all objects.
    const SELECTOR: Option<&'static str>;
    /// The name of the watch in logs.
    const WATCH: &'static str;

    /// A list of the selected objects starts.
    fn list_started(&mut self);
    /// An object was listed, created or changed.
    fn applied(&mut self, object: &Self::Object) -> Vec<Task>;
    /// An object was listed, created or changed and cannot be decoded.
    fn invalid(&mut self, object: &InvalidObject) -> Vec<Task>;
    /// An object was deleted, or is no longer selected.
    fn deleted(&mut self, metadata: &ObjectMeta) -> Vec<Task>;
    /// The list is complete: an object that it did not contain is gone.
    fn list_completed(&mut self) -> Vec<Task>;
}

/// The watch whose events `H` handles.
pub fn watch_for<H: EventHandler>(
    client: Client,
) -> impl Stream<Item = watcher::Result<Event<Guarded<H::Object>>>> + Send + use<H> {
    watch(client, Config { field_selector: H::SELECTOR.map(str::to_owned), ..Config::default() })
}

/// Calls the method of `handler` for `event`. An error is logged; the watch retries by itself.
pub fn dispatch<H: EventHandler>(mut handler: H, event: watcher::Result<Event<Guarded<H::Object>>>) -> Vec<Task> {
    match event {
        Ok(Event::Init) => {
            handler.list_started();
            Vec::new()
        }
        Ok(Event::InitApply(Guarded(object)) | Event::Apply(Guarded(object))) => match object {
            Ok(object) => handler.applied(&object),
            Err(object) => handler.invalid(&object),
        },
        Ok(Event::Delete(object)) => handler.deleted(object.meta()),
        Ok(Event::InitDone) => handler.list_completed(),
        Err(error) => {
            tracing::warn!(watch = H::WATCH, error = %ErrorChain(&error), "watch interrupted; retrying");
            Vec::new()
        }
    }
}

/// Handles the watch of the open conversations. If a conversation closes, the watch shows it as deleted.
pub struct OpenConversations<'a> {
    /// The index to update.
    pub index: &'a mut Index,
    /// The current instant.
    pub now: Instant,
}

impl EventHandler for OpenConversations<'_> {
    type Object = Conversation;
    const SELECTOR: Option<&'static str> = Some("status.state!=Closed");
    const WATCH: &'static str = "open conversations";

    fn list_started(&mut self) {
        self.index.conversation_list_started();
    }

    fn applied(&mut self, conversation: &Conversation) -> Vec<Task> {
        self.index.conversation_applied(conversation, self.now)
    }

    fn invalid(&mut self, object: &InvalidObject) -> Vec<Task> {
        log_invalid(object);
        self.index.conversation_invalid(object, self.now)
    }

    fn deleted(&mut self, metadata: &ObjectMeta) -> Vec<Task> {
        self.index.conversation_deleted(metadata, self.now)
    }

    fn list_completed(&mut self) -> Vec<Task> {
        self.index.conversation_list_completed(self.now)
    }
}

/// Handles the watch of the closed conversations. The controller does not wait for its first list, and the index stores hardly
/// anything about these conversations.
pub struct ClosedConversations<'a> {
    /// The index to update.
    pub index: &'a mut Index,
    /// Events of conversations that were closed at this time or later may be missing.
    pub backfill_since: Time,
}

impl EventHandler for ClosedConversations<'_> {
    type Object = Conversation;
    const SELECTOR: Option<&'static str> = Some("status.state=Closed");
    const WATCH: &'static str = "closed conversations";

    fn list_started(&mut self) {
        self.index.closed_list_started();
    }

    fn applied(&mut self, conversation: &Conversation) -> Vec<Task> {
        self.index.closed_applied(conversation, self.backfill_since)
    }

    fn invalid(&mut self, object: &InvalidObject) -> Vec<Task> {
        log_invalid(object);
        self.index.closed_invalid(object)
    }

    fn deleted(&mut self, metadata: &ObjectMeta) -> Vec<Task> {
        self.index.closed_deleted(metadata);
        Vec::new()
    }

    fn list_completed(&mut self) -> Vec<Task> {
        self.index.closed_list_completed();
        Vec::new()
    }
}

/// Handles the watch of the AddressBindings.
pub struct AddressBindings<'a> {
    /// The index to update.
    pub index: &'a mut Index,
    /// Filled with the claims that record a create in flight. The leader checks them again at the end of its grace period.
    pub in_flight: Option<&'a mut Vec<BindingName>>,
    /// The current instant.
    pub now: Instant,
}

impl EventHandler for AddressBindings<'_> {
    type Object = AddressBinding;
    const SELECTOR: Option<&'static str> = None;
    const WATCH: &'static str = "AddressBindings";

    fn list_started(&mut self) {
        self.index.claim_list_started();
    }

    fn applied(&mut self, object: &AddressBinding) -> Vec<Task> {
        let Some(claim) = claim_of(object) else {
            return self.without_claim(&object.metadata);
        };
        let affected = self.index.claim_applied(&claim, self.now);
        if let Some(in_flight) = &mut self.in_flight
            && self.index.grace_end(&claim.name, Duration::ZERO).is_some()
        {
            in_flight.push(claim.name);
        }
        affected
    }

    fn invalid(&mut self, object: &InvalidObject) -> Vec<Task> {
        self.without_claim(&object.metadata)
    }

    fn deleted(&mut self, metadata: &ObjectMeta) -> Vec<Task> {
        self.index.claim_deleted(&name(metadata))
    }

    fn list_completed(&mut self) -> Vec<Task> {
        self.index.claim_list_completed()
    }
}

impl AddressBindings<'_> {
    fn without_claim(&mut self, metadata: &ObjectMeta) -> Vec<Task> {
        let name = name(metadata);
        tracing::error!(
            claim = %name,
            "an AddressBinding cannot be decoded, or its name is not that of its binding; delete it"
        );
        self.index.claim_deleted(&name)
    }
}

fn name(metadata: &ObjectMeta) -> BindingName {
    BindingName::existing(metadata.name.clone().unwrap_or_default())
}

/// Logs a conversation that cannot be decoded. The cause is only in its Event, because it may quote an address.
fn log_invalid(object: &InvalidObject) {
    let ObjectMeta { namespace, name, .. } = &object.metadata;
    tracing::error!(
        conversation = %NamespacedName::new(namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default()),
        "a stored conversation cannot be decoded and is not reconciled; correct or delete it; its Event InvalidObject has the cause"
    );
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{NAME, UID, address_binding, conversation, index};
    use super::*;
    use serde_json::json;

    fn apply(index: &mut Index, in_flight: Option<&mut Vec<BindingName>>, object: AddressBinding) {
        let handler = AddressBindings { index, in_flight, now: Instant::now() };
        dispatch(handler, Ok(Event::Apply(Guarded(Ok(object)))));
    }

    #[test]
    fn claim_with_a_create_in_flight_is_told_to_the_leader() {
        let (mut index, mut in_flight, name) = (index(), Vec::new(), BindingName::existing(NAME.into()));
        apply(&mut index, Some(&mut in_flight), address_binding("alice", &[UID]));
        assert_eq!(in_flight, [name]);
        index.conversation_applied(&conversation("alice", UID, json!({})), Instant::now());
        apply(&mut index, Some(&mut in_flight), address_binding("alice", &[UID]));
        assert_eq!(in_flight.len(), 1, "it is stored, so it is not in flight");
    }

    #[test]
    fn misnamed_address_binding_counts_as_deleted() {
        let (mut index, name) = (index(), BindingName::existing(NAME.into()));
        apply(&mut index, None, address_binding("alice", &[UID]));
        assert!(index.claim(&name).is_some());
        let mut misnamed = address_binding("alice", &[UID]);
        misnamed.spec.proxy_address = "+15017122662".into();
        apply(&mut index, None, misnamed);
        assert!(index.claim(&name).is_none());
    }
}
