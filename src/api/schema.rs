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
    let mut crd = serde_json::to_value(Conversation::crd())?;
    for version in versions(&mut crd) {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        schema["x-kubernetes-validations"] = rules::conversation();
        schema["properties"]["status"]["default"] = undecided_status();
    }
    finish(crd)
}

/// The CRD of [`AddressBinding`].
///
/// # Errors
/// Where what is derived from the types is no CRD, which the tests exclude.
pub fn address_binding_crd() -> Result<CustomResourceDefinition, serde_json::Error> {
    finish(serde_json::to_value(AddressBinding::crd())?)
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

fn finish(mut crd: Value) -> Result<CustomResourceDefinition, serde_json::Error> {
    for version in versions(&mut crd) {
        refuse_null(&mut version["schema"]["openAPIV3Schema"]);
    }
    serde_json::from_value(crd)
}

/// Takes `nullable` away, which is derived for every optional field: the API server then takes a null for an absent field.
fn refuse_null(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("nullable");
            fields.values_mut().for_each(refuse_null);
        }
        Value::Array(items) => items.iter_mut().for_each(refuse_null),
        _ => {}
    }
}
