//! The tool that owns a field of a conversation: a change beside it does not last, or blocks the tool. Pure.

use super::change::Field;
use crate::core::manager::{Manager, Tool};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The tool whose field manager is `name`: the names under which these tools write.
fn tool(name: &str) -> Option<Tool> {
    match name {
        "kustomize-controller" => Some(Tool::FluxKustomization),
        "helm-controller" => Some(Tool::FluxHelmRelease),
        "helm" => Some(Tool::Helm),
        // argocd-controller, and argocd-application-controller of older versions.
        name if name.starts_with("argocd-") => Some(Tool::ArgoCd),
        _ => None,
    }
}

/// The tool that owns `field` of the spec, according to the managed fields.
fn owner(metadata: &ObjectMeta, field: Field) -> Option<Tool> {
    let key = format!("f:{}", field.as_str());
    let entries = metadata.managed_fields.iter().flatten().filter(|entry| entry.subresource.is_none());
    let mut owners =
        entries.filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| fields.0["f:spec"].get(&key).is_some()));
    owners.find_map(|entry| tool(entry.manager.as_deref()?))
}

/// The warning about a change of `field`, if a GitOps tool or Helm owns it: what becomes of the change, and where to make it.
pub fn warning(metadata: &ObjectMeta, field: Field) -> Option<String> {
    let tool = owner(metadata, field)?;
    let manager = Manager::of(metadata).filter(|manager| manager.tool() == tool).map(|manager| manager.to_string());
    let manager = manager.unwrap_or_else(|| {
        match tool {
            Tool::FluxKustomization => "a Flux Kustomization",
            Tool::FluxHelmRelease => "a Flux HelmRelease",
            Tool::ArgoCd => "an Argo CD application",
            Tool::Helm => "a Helm release",
        }
        .to_owned()
    });
    let (place, occasion) = match tool {
        Tool::FluxKustomization | Tool::ArgoCd => ("in Git", "when it reconciles"),
        Tool::FluxHelmRelease => ("in the values of the HelmRelease", "when it reconciles"),
        Tool::Helm => ("in the values of the release", "at the next upgrade"),
    };
    let consequence = match field {
        Field::Participants => format!("sets it again {occasion}. Change it {place} instead"),
        Field::State => {
            format!("is not told of this close. It is final nevertheless; close it {place} too, or remove its manifest")
        }
        Field::Contact => format!(
            "adds the contact again {occasion}: that is refused while the conversation is open, with all else that it applies. \
             Remove the contact {place} instead"
        ),
    };
    let people = match (field, tool) {
        (Field::Participants, Tool::FluxKustomization) => {
            ". To leave participants to people, annotate the manifest with kustomize.toolkit.fluxcd.io/ssa: IfNotPresent"
        }
        (Field::Participants, Tool::ArgoCd) => {
            ". To leave participants to people, add /spec/participants to ignoreDifferences of the application, with \
             RespectIgnoreDifferences=true"
        }
        _ => "",
    };
    Some(format!("spec.{} belongs to {manager}, which {consequence}{people}", field.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metadata(manager: &str, fields: &serde_json::Value) -> ObjectMeta {
        serde_json::from_value(json!({
            "labels": {"kustomize.toolkit.fluxcd.io/namespace": "flux-system", "kustomize.toolkit.fluxcd.io/name": "desk"},
            "managedFields": [
                {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:spec": {"f:contact": {}}}},
                {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": fields}},
                {"manager": "helm", "operation": "Update", "subresource": "status", "fieldsV1": {"f:spec": {"f:state": {}}}},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn owner_is_the_tool_that_wrote_the_field() {
        let participants = json!({"f:participants": {"k:{\"identity\":\"agent-7\"}": {"f:identity": {}}}});
        for (manager, expected) in [
            ("kustomize-controller", Some(Tool::FluxKustomization)),
            ("helm-controller", Some(Tool::FluxHelmRelease)),
            ("argocd-controller", Some(Tool::ArgoCd)),
            ("argocd-application-controller", Some(Tool::ArgoCd)),
            ("helm", Some(Tool::Helm)),
            ("crm", None),
            ("switchboard-cli", None),
        ] {
            let metadata = metadata(manager, &participants);
            assert_eq!(owner(&metadata, Field::Participants), expected, "{manager}");
            assert_eq!(owner(&metadata, Field::Contact), None, "kubectl owns the contact");
            assert_eq!(owner(&metadata, Field::State), None, "only a subresource has it");
        }
    }

    #[test]
    fn warning_names_the_tool_the_consequence_and_the_place() {
        let flux = metadata("kustomize-controller", &json!({"f:participants": {}, "f:state": {}, "f:contact": {}}));
        for (field, expected) in [
            (
                Field::Participants,
                "spec.participants belongs to Flux Kustomization flux-system/desk, which sets it again when it reconciles. Change it \
                 in Git instead. To leave participants to people, annotate the manifest with \
                 kustomize.toolkit.fluxcd.io/ssa: IfNotPresent",
            ),
            (
                Field::State,
                "spec.state belongs to Flux Kustomization flux-system/desk, which is not told of this close. It is final \
                 nevertheless; close it in Git too, or remove its manifest",
            ),
            (
                Field::Contact,
                "spec.contact belongs to Flux Kustomization flux-system/desk, which adds the contact again when it reconciles: that \
                 is refused while the conversation is open, with all else that it applies. Remove the contact in Git instead",
            ),
        ] {
            assert_eq!(warning(&flux, field).as_deref(), Some(expected));
        }
        let helm = warning(&metadata("helm", &json!({"f:participants": {}})), Field::Participants).unwrap();
        assert!(
            helm.starts_with("spec.participants belongs to a Helm release, which sets it again at the next upgrade."),
            "{helm}"
        );
        assert_eq!(warning(&ObjectMeta::default(), Field::State), None);
    }
}
