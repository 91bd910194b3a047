//! The examples that must be rendered first: a Kustomization, and a Helm chart of a user.

#![allow(dead_code)] // This module uses only the examples of the testdata.

use crate::common::chart::{documents, helm};
use crate::common::succeed;
use crate::testdata::examples::{HELM_CHART, KUSTOMIZATION, assert_is_typed};
use control_plane::tools::{self, Tool};
use std::process::Command;

fn assert_renders_conversations(example: &str, rendered: &str) {
    let objects = documents(rendered);
    assert_eq!(objects.len(), 2, "{example}: {rendered}");
    for object in objects {
        assert!(assert_is_typed(example, &object).is_some(), "{example}: {object}");
    }
}

#[test]
fn kustomization_renders_conversations() {
    let [kubectl] = tools::ensure([Tool::Kubectl]).unwrap_or_else(|error| panic!("{error}"));
    let rendered = succeed(Command::new(kubectl).args(["kustomize", KUSTOMIZATION]));
    assert_eq!(rendered.matches("namespace: sales").count(), 2, "{rendered}");
    assert_renders_conversations(KUSTOMIZATION, &rendered);
}

#[test]
fn helm_chart_of_a_user_renders_conversations() {
    succeed(helm().args(["lint", "--strict", HELM_CHART]));
    assert_renders_conversations(HELM_CHART, &succeed(helm().args(["template", "team", HELM_CHART])));
}
