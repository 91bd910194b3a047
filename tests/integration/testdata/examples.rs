//! Reads the manifests of `examples/`, and compares each with the type of its kind.

use super::{Document, Manifest};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};
use switchboard::api::{Conversation, ProxyAddress};
use switchboard::core::binding::Binding;

/// The directory of the examples, relative to the root of the repository.
pub const EXAMPLES: &str = "examples";
/// A Kustomization, whose conversations must be rendered first.
pub const KUSTOMIZATION: &str = "examples/kustomization";
/// A Helm chart, whose conversations must be rendered first.
pub const HELM_CHART: &str = "examples/helm-chart";

/// The manifests of `examples/` that need no rendering: neither Kustomizations nor charts.
pub fn manifests() -> Vec<Manifest> {
    let mut paths = Vec::new();
    find(Path::new(EXAMPLES), &mut paths);
    paths.sort();
    paths.iter().map(|path| Manifest::read(EXAMPLES, path)).collect()
}

/// The manifests that contain conversations, without their other documents.
pub fn conversations() -> Vec<Manifest> {
    let mut manifests = manifests();
    for manifest in &mut manifests {
        manifest.documents.retain(|Document { object, .. }| object["kind"] == "Conversation");
    }
    manifests.retain(|manifest| !manifest.documents.is_empty());
    manifests
}

fn find(directory: &Path, paths: &mut Vec<PathBuf>) {
    if directory.join("Chart.yaml").is_file() {
        return;
    }
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "yaml") && !path.ends_with("kustomization.yaml")
        {
            paths.push(path);
        }
    }
}

/// Asserts that `object` survives a round trip through the type of its kind, so it has no unknown field. Returns the binding if it is
/// a conversation, and asserts that its addresses are canonical.
pub fn assert_is_typed(file: &str, object: &Value) -> Option<Binding> {
    match object["kind"].as_str().unwrap_or_default() {
        "Conversation" => {
            let conversation: Conversation = assert_same(file, object);
            let contact = conversation.spec.contact.unwrap_or_else(|| panic!("{file}: no contact"));
            let binding = Binding::parse(conversation.spec.channel, &contact.address, &conversation.spec.proxy.address);
            Some(binding.unwrap_or_else(|error| panic!("{file}: {error}")))
        }
        "ProxyAddress" => {
            assert_same::<ProxyAddress>(file, object);
            None
        }
        "ServiceAccount" => {
            assert_same::<ServiceAccount>(file, object);
            None
        }
        "Role" => {
            assert_same::<Role>(file, object);
            None
        }
        "RoleBinding" => {
            assert_same::<RoleBinding>(file, object);
            None
        }
        kind => panic!("{file}: this test has no type for the kind {kind:?}"),
    }
}

fn assert_same<T: Serialize + DeserializeOwned>(file: &str, object: &Value) -> T {
    let read: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(serde_json::to_value(&read).unwrap(), *object, "{file}");
    read
}
