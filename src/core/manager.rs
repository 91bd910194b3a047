//! The tool that manages a conversation from elsewhere: a GitOps tool, or Helm. It undoes what is changed beside it, so a refusal says
//! where to make a change. The chart's policy `switchboard-ttl` knows the same marks; the tests check both against the same data.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result};

/// A tool that manages a conversation, as the labels and annotations of the conversation tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    tool: Tool,
    /// The name of its object that contains the conversation, after the namespace if it has one.
    name: String,
}

/// A kind of tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Flux, by a Kustomization.
    FluxKustomization,
    /// Flux, by a `HelmRelease`.
    FluxHelmRelease,
    /// Argo CD, by an application.
    ArgoCd,
    /// Helm itself, by a release.
    Helm,
}

impl Manager {
    /// The tool that manages the object with this metadata. Flux comes before Helm, whose annotations a `HelmRelease` sets too.
    ///
    /// Anybody who may edit the object can write any text into an annotation, so what is not a name counts as no mark of a tool. The
    /// label `app.kubernetes.io/instance`, by which Argo CD tracks in some configurations, is none either: many others set it.
    #[must_use]
    pub fn of(metadata: &ObjectMeta) -> Option<Self> {
        let (labels, annotations) = (metadata.labels.as_ref(), metadata.annotations.as_ref());
        let namespaced = |marks: Option<&BTreeMap<String, String>>, namespace: &str, name: &str| {
            let (namespace, name) = (marks?.get(namespace)?, marks?.get(name)?);
            (is_name(namespace) && is_name(name)).then(|| format!("{namespace}/{name}"))
        };
        let flux = |group: &str| namespaced(labels, &format!("{group}/namespace"), &format!("{group}/name"));
        let application = || {
            let tracked = annotations.and_then(|annotations| annotations.get("argocd.argoproj.io/tracking-id"));
            let application = tracked.and_then(|id| id.split_once(':')).map(|(application, _)| application);
            let label = || labels?.get("argocd.argoproj.io/instance").map(String::as_str);
            application.or_else(label).filter(|name| is_name(name)).map(str::to_owned)
        };
        let found = |tool| move |name| Self { tool, name };
        flux("kustomize.toolkit.fluxcd.io")
            .map(found(Tool::FluxKustomization))
            .or_else(|| flux("helm.toolkit.fluxcd.io").map(found(Tool::FluxHelmRelease)))
            .or_else(|| application().map(found(Tool::ArgoCd)))
            .or_else(|| {
                namespaced(annotations, "meta.helm.sh/release-namespace", "meta.helm.sh/release-name")
                    .map(found(Tool::Helm))
            })
    }

    /// The tool.
    #[must_use]
    pub fn tool(&self) -> Tool {
        self.tool
    }
}

impl Display for Manager {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let kind = match self.tool {
            Tool::FluxKustomization => "Flux Kustomization",
            Tool::FluxHelmRelease => "Flux HelmRelease",
            Tool::ArgoCd => "Argo CD application",
            Tool::Helm => "Helm release",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// Whether `text` can be the name of an object of one of these tools.
fn is_name(text: &str) -> bool {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    (1..=253).contains(&text.len()) && text.chars().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_name_is_no_mark_of_a_tool() {
        let helm = |name: &str| {
            let mark = |(key, value): (&str, &str)| (format!("meta.helm.sh/{key}"), value.to_owned());
            let annotations = [("release-namespace", "sales"), ("release-name", name)].map(mark).into();
            Manager::of(&ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() })
        };
        assert_eq!(helm("desk").map(|manager| manager.to_string()).as_deref(), Some("Helm release sales/desk"));
        for forged in ["", "desk. Delete conversation sales/bob", "desk\n48031", "a/b", &"x".repeat(254)] {
            assert_eq!(helm(forged), None, "{forged:?}");
        }
    }
}
