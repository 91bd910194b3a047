//! The chart's admission policies and roles, on real API servers: who may write claims and status, and who may not.

use crate::common;
use crate::common::cluster::{Cluster, TestNamespace};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use switchboard::api::{ConditionStatus, ConditionType, State};

/// What the API server refuses, with the words that say why.
fn assert_forbidden<T: std::fmt::Debug>(result: kube::Result<T>, words: &[&str]) {
    let Err(kube::Error::Api(status)) = result else { panic!("it was not refused: {result:?}") };
    assert_eq!(status.code, 403, "{status:?}");
    for word in words {
        assert!(status.message.contains(word), "{word} is missing in {}", status.message);
    }
}

async fn ready(desk: &TestNamespace) {
    desk.create("alice", json!({})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
}

#[tokio::test]
async fn nobody_but_the_operator_writes_claims_not_even_an_administrator() {
    let desk = Cluster::shared().desk().await;
    ready(&desk).await;
    let claim = desk.claim().await.unwrap();
    let name = claim.name_any();
    let why = ["switchboard-claims", "must be written only by the switchboard operator", "close the conversation"];
    assert_forbidden(desk.claims().delete(&name, &DeleteParams::default()).await, &why);
    let patch = Patch::Merge(json!({"spec": {"conversationRef": {"name": "mallory"}}}));
    assert_forbidden(desk.claims().patch(&name, &PatchParams::default(), &patch).await, &why);
    let patch = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/stay"]}}));
    assert_forbidden(desk.claims().patch(&name, &PatchParams::default(), &patch).await, &why);
    let mut another = claim.clone();
    another.metadata = kube::core::ObjectMeta { name: Some(format!("{name}-x")), ..kube::core::ObjectMeta::default() };
    assert_forbidden(desk.claims().create(&PostParams::default(), &another).await, &why);
    assert_eq!(desk.claim().await.unwrap(), claim);
}

#[tokio::test]
async fn nobody_but_the_operator_writes_a_status_but_for_the_reported_activity() {
    let desk = Cluster::shared().desk().await;
    ready(&desk).await;
    let before = desk.conversations().get("alice").await.unwrap();
    for forged in [
        json!({"state": "Closed"}),
        json!({"observedGeneration": 7}),
        json!({"addressBindingName": null}),
        json!({"conditions": []}),
        json!({"deadlines": {"closeTime": "2027-01-01T00:00:00Z"}}),
        json!({"reportedActivityTime": "2027-01-01T00:00:00Z", "state": "Closed"}),
    ] {
        let patch = Patch::Merge(json!({"status": forged}));
        let result = desk.conversations().patch_status("alice", &PatchParams::default(), &patch).await;
        assert_forbidden(result, &["switchboard-status", "reportedActivityTime"]);
    }
    let wiped = Patch::Merge(json!({"status": null}));
    let result = desk.conversations().patch_status("alice", &PatchParams::default(), &wiped).await;
    assert_forbidden(result, &["switchboard-status"]);
    assert_eq!(desk.conversations().get("alice").await.unwrap().status, before.status);
    desk.report_activity("alice", "2026-01-01T00:00:00Z").await.unwrap();
}

#[tokio::test]
async fn edit_of_a_closed_conversation_is_admitted_with_a_warning() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"state": "Closed"})).await.unwrap();
    desk.wait_for_state("alice", State::Closed).await;
    let patch = r#"--patch={"spec":{"state":"Active"}}"#;
    let mut kubectl = Cluster::shared().control_plane.kubectl();
    kubectl.args(["patch", "conversation", "alice", "--namespace", &desk.namespace, "--type=merge", patch]);
    common::await_warning(kubectl.arg("--dry-run=server"), "50377: the conversation is closed");
}

/// Gives `user` a role of the chart in the namespace of `desk`, and returns the desk as that user sees it.
async fn desk_as(desk: &TestNamespace, user: &str, role: &str) -> TestNamespace {
    let binding = serde_json::from_value(json!({
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }))
    .unwrap();
    let bindings = Api::<RoleBinding>::namespaced(desk.client.clone(), &desk.namespace);
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    TestNamespace { client: Cluster::shared().client_as(user, 0).await, ..desk.clone() }
}

#[tokio::test]
async fn a_gateway_reports_activity_and_reads_and_does_nothing_else() {
    let desk = Cluster::shared().desk().await;
    ready(&desk).await;
    let gateway = desk_as(&desk, "insider", "switchboard-gateway").await;
    gateway.report_activity("alice", "2026-01-01T00:00:00Z").await.unwrap();
    gateway.conversations().get("alice").await.unwrap();
    let refusal = gateway.change("alice", json!({"state": "Closed"})).await.unwrap_err();
    assert_eq!(refusal.code, 403, "{refusal:?}");
    assert_forbidden(gateway.conversations().delete("alice", &DeleteParams::default()).await, &[]);
}

#[tokio::test]
async fn an_editor_keeps_conversations_and_touches_no_claim() {
    let desk = Cluster::shared().desk().await;
    let editor = desk_as(&desk, "outsider", "switchboard-edit").await;
    editor.create("alice", json!({})).await.unwrap();
    editor.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.wait_for_state("alice", State::Closed).await;
    editor.delete("alice").await;
    let name = desk.binding();
    assert_forbidden(editor.claims().delete(name.as_str(), &DeleteParams::default()).await, &["cannot delete"]);
}

/// What the pod of `helm test` runs, as the operator's account; anybody else is told what stands in the way.
#[tokio::test]
async fn a_check_as_the_operator_finds_that_conversations_can_be_created() {
    let cluster = Cluster::shared();
    let check = |kubeconfig: &std::path::Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_switchboard"));
        command.arg("check").env("KUBECONFIG", kubeconfig);
        command
    };
    let said = common::succeed(&mut check(&cluster.control_plane.data_dir().join("replica-1.kubeconfig")));
    assert_eq!(said, "a conversation can be created in the namespace switchboard-system\n");

    let outsider = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("outsider.kubeconfig");
    std::fs::write(&outsider, cluster.control_plane.kubeconfig_for_token("outsider", 0)).unwrap();
    let complaint = common::fail(&mut check(&outsider));
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(complaint.contains("no conversation can be created") && complaint.contains("cannot create"), "{complaint}");
}
