//! Exports conversations as manifests for a backup. A timer's effect is in the status, which a restore drops, so the exported spec
//! contains it. It reads the API and writes nothing.

use crate::api::{Conversation, State};
use crate::core::effective::state_in_effect;
use crate::core::lifecycle::LifecycleInput;
use kube::api::{ListParams, ObjectMeta};
use kube::{Api, Client, ResourceExt};
use std::io::Write;

/// The number of conversations that are read at once.
const PAGE: u32 = 500;

/// The annotation that `kubectl apply` writes anew.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The conversations to export, and the form of their manifests.
#[derive(Debug)]
pub struct Selection {
    /// The namespace; `None` for all namespaces.
    pub namespace: Option<String>,
    /// Whether to omit the contacts, so that the copies need no binding.
    pub without_contacts: bool,
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request to the API server failed.
    #[error("cannot list the conversations: {0}")]
    Api(#[from] kube::Error),
    /// A manifest could not be serialized.
    #[error("cannot write the manifest: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
    /// The output could not be written.
    #[error("cannot write: {0}")]
    Io(#[from] std::io::Error),
}

/// Writes the selected conversations to `output`, one YAML document for each. The conversations that wait for a binding come last,
/// the oldest first, so that `kubectl apply` gives each binding to the conversation that held it.
///
/// # Errors
/// If the conversations cannot be read, or `output` cannot be written.
pub async fn export(client: Client, selection: &Selection, mut output: impl Write) -> Result<(), Error> {
    let conversations: Api<Conversation> = match &selection.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let mut waiting = Vec::new();
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = conversations.list(&parameters).await?;
        for conversation in page.items {
            let Some(manifest) = manifest(&conversation, selection.without_contacts) else { continue };
            if LifecycleInput::of(&conversation).is_ok_and(|input| input.waiting_since().is_some()) {
                waiting.push((conversation.creation_timestamp().map(|time| time.0), manifest));
            } else {
                write(&mut output, &manifest)?;
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => break,
        }
    }
    waiting.sort_by_key(|(created, _)| *created);
    waiting.iter().try_for_each(|(_, manifest)| write(&mut output, manifest))
}

fn write(output: &mut impl Write, manifest: &Conversation) -> Result<(), Error> {
    Ok(write!(output, "---\n{}", serde_saphyr::to_string(manifest)?)?)
}

/// The manifest of a stored conversation; `None` if it is being deleted. Its spec is Closed if the conversation is closed. Owners,
/// finalizers and all other metadata of the stored object are omitted.
fn manifest(stored: &Conversation, without_contacts: bool) -> Option<Conversation> {
    if stored.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let mut spec = stored.spec.clone();
    if state_in_effect(spec.state, stored.status.as_ref().and_then(|status| status.state)) == State::Closed {
        spec.state = Some(State::Closed);
    }
    spec.contact = spec.contact.filter(|_| !without_contacts);
    let annotations = stored.annotations().iter().filter(|(name, _)| *name != LAST_APPLIED);
    let annotations = annotations.map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut manifest = Conversation::new(&stored.name_any(), spec);
    manifest.metadata = ObjectMeta {
        name: stored.metadata.name.clone(),
        namespace: stored.metadata.namespace.clone(),
        labels: stored.metadata.labels.clone(),
        annotations: Some(annotations).filter(|annotations: &std::collections::BTreeMap<_, _>| !annotations.is_empty()),
        ..ObjectMeta::default()
    };
    Some(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(changes: &serde_json::Value) -> Conversation {
        let mut object = json!({
            "metadata": {
                "name": "alice", "namespace": "sales", "uid": "u1", "resourceVersion": "7", "labels": {"team": "sales"},
                "annotations": {LAST_APPLIED: "{}", "example.com/ticket": "4711"}, "finalizers": ["example.com/archive"],
            },
            "spec": {"channel": "SMS", "contact": {"address": "+15558675310"}, "proxy": {"address": "+15017122661"}},
        });
        for (part, fields) in changes.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                object[part][field] = value.clone();
            }
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn manifest_has_what_a_user_writes_and_no_more() {
        let manifest = manifest(&stored(&json!({})), false).unwrap();
        assert_eq!(
            serde_json::to_value(manifest).unwrap(),
            json!({
                "apiVersion": "switchboard.dev/v1alpha1",
                "kind": "Conversation",
                "metadata": {
                    "name": "alice", "namespace": "sales", "labels": {"team": "sales"},
                    "annotations": {"example.com/ticket": "4711"},
                },
                "spec": {"channel": "SMS", "contact": {"address": "+15558675310"}, "proxy": {"address": "+15017122661"}},
            })
        );
    }

    #[test]
    fn conversation_that_a_timer_closed_is_closed_in_its_spec() {
        for (status, expected) in [("Active", None), ("Inactive", None), ("Closed", Some(State::Closed))] {
            let manifest = manifest(&stored(&json!({"status": {"state": status}})), false).unwrap();
            assert_eq!((manifest.spec.state, manifest.status), (expected, None), "{status}");
        }
    }

    #[test]
    fn conversation_being_deleted_is_left_out() {
        assert!(
            manifest(&stored(&json!({"metadata": {"deletionTimestamp": "2026-11-24T10:00:00Z"}})), false).is_none()
        );
    }

    #[test]
    fn copy_without_contact_needs_no_binding() {
        assert_eq!(manifest(&stored(&json!({})), true).unwrap().spec.contact, None);
    }
}
