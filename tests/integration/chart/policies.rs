//! The chart's admission policies and roles on real API servers: which users may write claims and status.

use crate::common;
use crate::common::chart::{Case, NAMESPACE, documents};
use crate::common::cluster::{Cluster, TestNamespace};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use switchboard::api::{ConditionStatus, ConditionType, Conversation, ProxyAddress, State};

/// The API server refused the request with 403, and its message contains `words`.
fn assert_forbidden<T: std::fmt::Debug>(result: kube::Result<T>, words: &[&str]) {
    let Err(kube::Error::Api(status)) = result else { panic!("it was not refused: {result:?}") };
    assert_eq!(status.code, 403, "{status:?}");
    for word in words {
        assert!(status.message.contains(word), "{word} is missing in {}", status.message);
    }
}

async fn ready(namespace: &TestNamespace) {
    namespace.create("alice", json!({})).await.unwrap();
    namespace.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
}

#[tokio::test]
async fn administrator_cannot_write_claims() {
    let namespace = Cluster::shared().test_namespace().await;
    ready(&namespace).await;
    let claim = namespace.claim().await.unwrap();
    let name = claim.name_any();
    let why = ["switchboard-claims", "must be written only by the switchboard operator", "close the conversation"];
    assert_forbidden(namespace.claims().delete(&name, &DeleteParams::default()).await, &why);
    let patch = Patch::Merge(json!({"spec": {"conversationRef": {"name": "mallory"}}}));
    assert_forbidden(namespace.claims().patch(&name, &PatchParams::default(), &patch).await, &why);
    let patch = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/stay"]}}));
    assert_forbidden(namespace.claims().patch(&name, &PatchParams::default(), &patch).await, &why);
    let mut another = claim.clone();
    another.metadata = kube::core::ObjectMeta { name: Some(format!("{name}-x")), ..kube::core::ObjectMeta::default() };
    assert_forbidden(namespace.claims().create(&PostParams::default(), &another).await, &why);
    assert_eq!(namespace.claim().await.unwrap(), claim);
}

#[tokio::test]
async fn administrator_can_write_only_reported_activity_in_the_status() {
    let namespace = Cluster::shared().test_namespace().await;
    ready(&namespace).await;
    let before = namespace.conversations().get("alice").await.unwrap();
    for forged in [
        json!({"state": "Closed"}),
        json!({"observedGeneration": 7}),
        json!({"addressBindingName": null}),
        json!({"conditions": []}),
        json!({"deadlines": {"closeTime": "2027-01-01T00:00:00Z"}}),
        json!({"reportedActivityTime": "2027-01-01T00:00:00Z", "state": "Closed"}),
    ] {
        let patch = Patch::Merge(json!({"status": forged}));
        let result = namespace.conversations().patch_status("alice", &PatchParams::default(), &patch).await;
        assert_forbidden(result, &["switchboard-status", "reportedActivityTime"]);
    }
    let wiped = Patch::Merge(json!({"status": null}));
    let result = namespace.conversations().patch_status("alice", &PatchParams::default(), &wiped).await;
    assert_forbidden(result, &["switchboard-status"]);
    assert_eq!(namespace.conversations().get("alice").await.unwrap().status, before.status);
    namespace.report_activity("alice", "2026-01-01T00:00:00Z").await.unwrap();
}

#[tokio::test]
async fn edit_of_a_closed_conversation_is_admitted_with_a_warning() {
    let namespace = Cluster::shared().test_namespace().await;
    namespace.create("alice", json!({"state": "Closed"})).await.unwrap();
    namespace.wait_for_state("alice", State::Closed).await;
    let patch = r#"--patch={"spec":{"state":"Active"}}"#;
    let mut kubectl = Cluster::shared().control_plane.kubectl();
    kubectl.args(["patch", "conversation", "alice", "--namespace", &namespace.namespace, "--type=merge", patch]);
    common::await_warning(kubectl.arg("--dry-run=server"), "50377: the conversation is closed");
}

/// Gives `user` a role of the chart in the test namespace, and returns the test namespace with a client of that user.
async fn with_role(namespace: &TestNamespace, user: &str, role: &str) -> TestNamespace {
    let binding = serde_json::from_value(json!({
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }))
    .unwrap();
    let bindings = Api::<RoleBinding>::namespaced(namespace.client.clone(), &namespace.namespace);
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    TestNamespace { client: Cluster::shared().client_as(user, 0).await, ..namespace.clone() }
}

#[tokio::test]
async fn gateway_can_only_read_and_report_activity() {
    let namespace = Cluster::shared().test_namespace().await;
    ready(&namespace).await;
    let gateway = with_role(&namespace, "insider", "switchboard-gateway").await;
    gateway.report_activity("alice", "2026-01-01T00:00:00Z").await.unwrap();
    gateway.conversations().get("alice").await.unwrap();
    let refusal = gateway.change("alice", json!({"state": "Closed"})).await.unwrap_err();
    assert_eq!(refusal.code, 403, "{refusal:?}");
    assert_forbidden(gateway.conversations().delete("alice", &DeleteParams::default()).await, &[]);
}

#[tokio::test]
async fn editor_can_write_conversations_but_not_claims() {
    let namespace = Cluster::shared().test_namespace().await;
    let editor = with_role(&namespace, "outsider", "switchboard-edit").await;
    editor.create("alice", json!({})).await.unwrap();
    editor.change("alice", json!({"state": "Closed"})).await.unwrap();
    namespace.wait_for_state("alice", State::Closed).await;
    editor.delete("alice").await;
    let name = namespace.binding();
    assert_forbidden(editor.claims().delete(name.as_str(), &DeleteParams::default()).await, &["cannot delete"]);
}

/// Applies the roles of the router from the chart, with autocreation in the test namespace only, and returns the test namespace with a
/// client of the router's account.
async fn with_the_roles_of_the_router(namespace: &TestNamespace) -> TestNamespace {
    let autocreate = format!("router.autocreateNamespaces={{{}}}", namespace.namespace);
    let mut objects = documents(&Case::named("router").render(&["--set", &autocreate]));
    objects.retain(|object| {
        object["metadata"]["labels"]["app.kubernetes.io/name"] == "switchboard-router"
            && ["ClusterRole", "ClusterRoleBinding", "RoleBinding"].contains(&object["kind"].as_str().unwrap())
    });
    assert_eq!(objects.len(), 4, "{objects:?}");
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("roles-of-the-router.json");
    std::fs::write(&path, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
    let control_plane = &Cluster::shared().control_plane;
    common::succeed(control_plane.kubectl().args(["apply", "--server-side", "--filename"]).arg(path));
    let user = format!("system:serviceaccount:{NAMESPACE}:switchboard-router");
    // The API server takes up roles and bindings with a delay.
    for verb in ["get", "create"] {
        let can = ["auth", "can-i", verb, "conversations", "--namespace", &namespace.namespace, "--as", &user];
        common::eventually(control_plane.kubectl().args(can));
    }
    TestNamespace { client: Cluster::shared().client_as(&user, 0).await, ..namespace.clone() }
}

/// The patch by which the router reports activity. It fails if the conversation was replaced by another one of the same name.
async fn report_by_json_patch(
    namespace: &TestNamespace,
    uid: &str,
    field: &str,
    value: &str,
) -> kube::Result<Conversation> {
    let patch = json!([
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "add", "path": format!("/status/{field}"), "value": value},
    ]);
    let url = format!("/apis/switchboard.dev/v1alpha1/namespaces/{}/conversations/alice/status", namespace.namespace);
    let request = hyper::Request::patch(url).header("content-type", "application/json-patch+json");
    namespace.client.request(request.body(patch.to_string().into_bytes()).unwrap()).await
}

#[tokio::test]
async fn router_can_only_read_report_activity_and_create() {
    let namespace = Cluster::shared().test_namespace().await;
    ready(&namespace).await;
    let router = with_the_roles_of_the_router(&namespace).await;
    let uid = router.conversations().get("alice").await.unwrap().uid().unwrap();
    let claim = router.claims().get(namespace.binding().as_str()).await.unwrap();

    let time = "2026-01-01T00:00:00Z";
    report_by_json_patch(&router, &uid, "reportedActivityTime", time).await.unwrap();
    let Err(kube::Error::Api(status)) = report_by_json_patch(&router, "another", "reportedActivityTime", time).await
    else {
        panic!("activity was reported for another conversation")
    };
    assert_eq!(status.code, 422, "{status:?}");
    assert_forbidden(report_by_json_patch(&router, &uid, "state", "Closed").await, &["switchboard-status"]);

    // It creates only where it is bound, and the webhook admits it as any other client.
    let refusal = router.create("again", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    router.create("bob", json!({"proxy": {"address": "+15017122669"}})).await.unwrap();
    let elsewhere = Cluster::shared().test_namespace().await;
    let elsewhere = TestNamespace { client: router.client.clone(), ..elsewhere };
    let refusal = elsewhere.create("carol", json!({})).await.unwrap_err();
    assert!(refusal.code == 403 && refusal.message.contains("cannot create"), "{refusal:?}");

    let refusal = router.change("alice", json!({"state": "Closed"})).await.unwrap_err();
    assert!(refusal.code == 403 && refusal.message.contains("cannot patch"), "{refusal:?}");
    assert_forbidden(router.conversations().delete("alice", &DeleteParams::default()).await, &["cannot delete"]);
    assert_forbidden(router.claims().delete(&claim.name_any(), &DeleteParams::default()).await, &["cannot delete"]);
    let secrets = Api::<Secret>::namespaced(router.client.clone(), NAMESPACE);
    assert_forbidden(secrets.list(&ListParams::default()).await, &["cannot list"]);
    let addresses = Api::<ProxyAddress>::all(router.client.clone());
    addresses.list(&ListParams::default()).await.unwrap();
    assert_forbidden(addresses.delete("any", &DeleteParams::default()).await, &["cannot delete"]);
}

/// The pod of `helm test` runs `switchboard check` with the operator's account. With another account, the command prints the reason
/// why it fails.
#[tokio::test]
async fn check_succeeds_with_the_operators_account_only() {
    let cluster = Cluster::shared();
    let check = |kubeconfig: &std::path::Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_switchboard"));
        command.arg("check").env("KUBECONFIG", kubeconfig);
        command
    };
    let output = common::succeed(&mut check(&cluster.control_plane.data_dir().join("replica-1.kubeconfig")));
    assert_eq!(output, "a conversation can be created in the namespace switchboard-system\n");

    let outsider = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("outsider.kubeconfig");
    std::fs::write(&outsider, cluster.control_plane.kubeconfig_for_token("outsider", 0)).unwrap();
    let complaint = common::fail(&mut check(&outsider));
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(complaint.contains("no conversation can be created") && complaint.contains("cannot create"), "{complaint}");
}
