//! The CRDs as they are installed: derived from the types by `kube` and `schemars`, with the rules that these cannot express added.

use super::{
    AddressBinding, AssignmentStrategy, Channel, ConditionReason, ConditionStatus, ConditionType, Conversation,
    LabelOperator, OnConflict, ProxyAddress, ProxyAddressConditionReason, ProxyAddressConditionType, State,
    StateReason, rules,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// Fields of the spec whose contents several field managers can own. If one of them set the field and the contents belong to another,
/// who removes them all, server-side apply leaves a null. If the schema refused it, that manifest could not be applied any more.
const NULLABLE: [&str; 2] = ["participants", "timers"];

/// The CRDs of all kinds.
///
/// # Errors
/// If a derived value is not a CRD, which the tests exclude.
pub fn crds() -> Result<[CustomResourceDefinition; 3], serde_json::Error> {
    Ok([conversation_crd()?, address_binding_crd()?, proxy_address_crd()?])
}

/// The CRD of [`Conversation`].
///
/// # Errors
/// If the derived value is not a CRD, which the tests exclude.
pub fn conversation_crd() -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut crd = completed(serde_json::to_value(Conversation::crd())?);
    for version in versions(&mut crd) {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        schema["x-kubernetes-validations"] = rules::conversation();
        schema["properties"]["status"]["default"] = pending_status(&["Ready", "Bound", "Unassigned"]);
        for field in NULLABLE {
            schema["properties"]["spec"]["properties"][field]["nullable"] = json!(true);
        }
    }
    serde_json::from_value(crd)
}

/// The CRD of [`AddressBinding`].
///
/// # Errors
/// If the derived value is not a CRD, which the tests exclude.
pub fn address_binding_crd() -> Result<CustomResourceDefinition, serde_json::Error> {
    serde_json::from_value(completed(serde_json::to_value(AddressBinding::crd())?))
}

/// The CRD of [`ProxyAddress`].
///
/// # Errors
/// If the derived value is not a CRD, which the tests exclude.
pub fn proxy_address_crd() -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut crd = completed(serde_json::to_value(ProxyAddress::crd())?);
    for version in versions(&mut crd) {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        schema["properties"]["status"]["default"] = pending_status(&["Accepted", "Ready"]);
    }
    serde_json::from_value(crd)
}

/// The status of an object that has not been processed. Because it is a default of the schema, tools report the object as in progress
/// from its creation on, before any write of the operator. The schema has no other default.
fn pending_status(conditions: &[&str]) -> Value {
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|condition| {
            json!({
                "type": condition,
                "status": "Unknown",
                "reason": "Pending",
                "message": "Waiting for controller",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            })
        })
        .collect();
    json!({"observedGeneration": 0, "conditions": conditions})
}

fn versions(crd: &mut Value) -> &mut [Value] {
    crd["spec"]["versions"].as_array_mut().map_or(&mut [], Vec::as_mut_slice)
}

fn completed(mut crd: Value) -> Value {
    let enums = documented_enums();
    for version in versions(&mut crd) {
        complete(&mut version["schema"]["openAPIV3Schema"], &enums);
    }
    crd
}

/// Removes keywords that are derived but not intended, and adds those that apply to every field of one kind.
fn complete(schema: &mut Value, enums: &[Value]) {
    match schema {
        Value::Object(fields) => {
            if let Some(description) = fields.get("description").and_then(Value::as_str) {
                let text = description.split("\n\n").map(on_one_line).collect::<Vec<_>>().join("\n\n");
                let values = fields.get("enum").map(|values| described_values(values, enums)).unwrap_or_default();
                fields.insert("description".to_owned(), json!(text + &values));
            }
            // Derived for every optional field. Without it, the API server drops a null that a client sends.
            fields.remove("nullable");
            // Derived for every field with a default in serde. Without it, an absent field stays absent in storage.
            fields.remove("default");
            if fields.get("format").is_some_and(|format| format == "date-time") {
                fields.insert("pattern".to_owned(), json!(rules::INSTANT));
            }
            fields.values_mut().for_each(|schema| complete(schema, enums));
        }
        Value::Array(items) => items.iter_mut().for_each(|schema| complete(schema, enums)),
        _ => {}
    }
}

fn on_one_line(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The schemas of the enums, with the documentation of their variants. `kube` drops it from the schemas of fields.
fn documented_enums() -> [Value; 11] {
    [
        schemars::schema_for!(Channel),
        schemars::schema_for!(State),
        schemars::schema_for!(OnConflict),
        schemars::schema_for!(StateReason),
        schemars::schema_for!(ConditionType),
        schemars::schema_for!(ConditionStatus),
        schemars::schema_for!(ConditionReason),
        schemars::schema_for!(LabelOperator),
        schemars::schema_for!(AssignmentStrategy),
        schemars::schema_for!(ProxyAddressConditionType),
        schemars::schema_for!(ProxyAddressConditionReason),
    ]
    .map(Value::from)
}

/// The paragraph that describes the values of a field. It is taken from the enum that has the same values.
fn described_values(values: &Value, enums: &[Value]) -> String {
    let variants = |schema: &Value| schema["oneOf"].as_array().cloned().unwrap_or_default();
    let is_of_field = |variants: &Vec<Value>| {
        let values_of_enum: Vec<&Value> = variants.iter().map(|variant| &variant["const"]).collect();
        values.as_array().is_some_and(|values| values.iter().eq(values_of_enum))
    };
    let lines = enums.iter().map(variants).find(is_of_field).unwrap_or_default();
    let lines = lines.iter().filter_map(|variant| {
        let (value, description) = (variant["const"].as_str()?, variant["description"].as_str()?);
        Some(format!("\n- `{value}`: {}", on_one_line(description)))
    });
    format!("\n\nPossible values:{}", lines.collect::<String>())
}

/// Removes the description of the type, so that the more specific description of the field is used.
pub(super) fn described_by_the_field(schema: &mut schemars::Schema) {
    schema.remove("description");
}
