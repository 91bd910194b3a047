//! The CRDs as they are installed: what `kube` and `schemars` derive from the types, and what neither of them can say.

use super::{AddressBinding, Conversation, rules};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// The CRD of [`Conversation`].
///
/// # Errors
/// Where what is derived from the types is no CRD, which the tests exclude.
pub fn conversation_crd() -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut crd = settled(serde_json::to_value(Conversation::crd())?);
    for version in versions(&mut crd) {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        schema["x-kubernetes-validations"] = rules::conversation();
        schema["properties"]["status"]["default"] = undecided_status();
    }
    serde_json::from_value(crd)
}

/// The CRD of [`AddressBinding`].
///
/// # Errors
/// Where what is derived from the types is no CRD, which the tests exclude.
pub fn address_binding_crd() -> Result<CustomResourceDefinition, serde_json::Error> {
    serde_json::from_value(settled(serde_json::to_value(AddressBinding::crd())?))
}

/// The status of a conversation that has not been looked at, so that it counts as in progress from its creation on without a
/// write. It is the schema's one default.
fn undecided_status() -> Value {
    let conditions: Vec<Value> = ["Ready", "Bound", "Unassigned"]
        .iter()
        .map(|condition| {
            json!({
                "type": condition,
                "status": "Unknown",
                "reason": "Pending",
                "message": "Waiting for switchboard",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            })
        })
        .collect();
    json!({"observedGeneration": 0, "conditions": conditions})
}

fn versions(crd: &mut Value) -> &mut [Value] {
    crd["spec"]["versions"].as_array_mut().map_or(&mut [], Vec::as_mut_slice)
}

fn settled(mut crd: Value) -> Value {
    for version in versions(&mut crd) {
        settle(&mut version["schema"]["openAPIV3Schema"]);
    }
    crd
}

/// Takes away what is derived and not meant, and adds what holds for every field of a kind.
fn settle(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            // Derived for every optional field: the API server then takes a null for an absent field.
            fields.remove("nullable");
            // Derived where serde has a default: what is absent must stay absent in what is stored.
            fields.remove("default");
            if fields.get("format").is_some_and(|format| format == "date-time") {
                fields.insert("pattern".to_owned(), json!(rules::INSTANT));
            }
            fields.values_mut().for_each(settle);
        }
        Value::Array(items) => items.iter_mut().for_each(settle),
        _ => {}
    }
}

/// Takes the description of a type away where it would cover the better one of the field.
pub(super) fn described_by_the_field(schema: &mut schemars::Schema) {
    schema.remove("description");
}
