//! Admission, by real API servers and replicas of the operator: who gets a binding, and what the others are told.

use crate::common::cluster::{Cluster, TestNamespace};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::json;
use switchboard::api::{ConditionStatus, ConditionType};

fn assert_48031(status: &Status, holder: &str) {
    assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"), "{status:?}");
    assert!(status.message.contains("denied the request: 48031: "), "{status:?}");
    let details = status.details.as_ref().expect("details");
    assert_eq!((details.kind.as_str(), details.name.as_str()), ("Conversation", holder), "{status:?}");
    let causes: Vec<_> = details.causes.iter().map(|cause| (cause.reason.as_str(), cause.field.as_str())).collect();
    assert_eq!(causes, [("48031", "spec.contact.address")], "{status:?}");
}

#[tokio::test]
async fn a_second_open_conversation_for_a_binding_is_refused_with_48031() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({})).await.unwrap();
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    assert_48031(&refusal, "alice");
    for part in [&desk.contact, &desk.proxy, &format!("{}/alice", desk.namespace), "Active", "agent-7", "close it"] {
        assert!(refusal.message.contains(part), "{part} is missing in {}", refusal.message);
    }
    assert!(!refusal.message.contains("is immutable"), "Flux deletes the object on these words: {}", refusal.message);
    assert_eq!(desk.conversations().get_opt("bob").await.unwrap(), None, "and is not stored");
}

#[tokio::test]
async fn the_claim_is_the_routing_table() {
    let desk = Cluster::shared().desk().await;
    let alice = desk.create("alice", json!({})).await.unwrap();
    let fields = format!("spec.contactAddress={},spec.proxyAddress={}", desk.contact, desk.proxy);
    let claims = desk.claims().list(&kube::api::ListParams::default().fields(&fields)).await.unwrap();
    let [claim] = &claims.items[..] else { panic!("{claims:?}") };
    assert_eq!(claim.metadata.name.as_deref(), Some(desk.binding().as_str()));
    assert_eq!(claim.spec.conversation_ref.namespace, desk.namespace);
    assert_eq!(claim.spec.conversation_ref.name, "alice");
    assert_eq!(
        claim.spec.admissions.iter().map(|a| &a.uid).collect::<Vec<_>>(),
        [alice.metadata.uid.as_ref().unwrap()]
    );
}

#[tokio::test]
async fn a_binding_that_nobody_wants_any_more_has_no_claim() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.wait_until_free().await;
}

#[tokio::test]
async fn what_needs_no_claim_gets_none() {
    let desk = Cluster::shared().desk().await;
    desk.create("closed", json!({"state": "Closed"})).await.unwrap();
    desk.create("no-contact", json!({"contact": null})).await.unwrap();
    assert_eq!(desk.claim().await, None);
}

#[tokio::test]
async fn creating_an_existing_name_again_and_again_leaves_nothing_behind() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({})).await.unwrap();
    let before = desk.claim().await.unwrap();
    for _ in 0..5 {
        let refusal = desk.create("alice", json!({})).await.unwrap_err();
        assert_eq!((refusal.code, refusal.reason.as_str()), (409, "AlreadyExists"), "{refusal:?}");
    }
    assert_eq!(desk.claim().await.unwrap(), before);
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.create("bob", json!({})).await.expect("a later close frees the binding at once");
}

#[tokio::test]
async fn a_dry_run_gets_the_same_answer_and_writes_nothing() {
    let desk = Cluster::shared().desk().await;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    desk.create_object(&desk.conversation("alice", json!({})), &dry_run).await.unwrap();
    assert_eq!(desk.claim().await, None);
    desk.create("alice", json!({})).await.unwrap();
    let before = desk.claim().await;
    let refusal = desk.create_object(&desk.conversation("bob", json!({})), &dry_run).await.unwrap_err();
    assert_48031(&refusal, "alice");
    desk.change("alice", json!({"contact": null})).await.unwrap();
    desk.create_object(&desk.conversation("bob", json!({})), &dry_run).await.unwrap();
    let after = desk.claim().await;
    assert!(after.is_none() || after == before, "{before:?} became {after:?}");
}

#[tokio::test]
async fn server_side_apply_creates_once_and_then_updates() {
    let desk = Cluster::shared().desk().await;
    let apply = |name: &'static str, identity: &'static str| {
        let desk = desk.clone();
        async move {
            let mut object = desk.conversation(name, json!({"participants": [{"identity": identity}]}));
            object.metadata.managed_fields = None;
            desk.conversations().patch(name, &PatchParams::apply("test"), &Patch::Apply(&object)).await
        }
    };
    apply("alice", "agent-7").await.unwrap();
    apply("alice", "agent-8").await.unwrap();
    let Err(kube::Error::Api(refusal)) = apply("bob", "agent-7").await else { panic!("bob was admitted") };
    assert_48031(&refusal, "alice");
    assert!(refusal.message.contains("agent-8"), "{}", refusal.message);
}

#[tokio::test]
async fn a_generated_name_is_admitted_like_any_other() {
    let desk = Cluster::shared().desk().await;
    let mut object = desk.conversation("", json!({}));
    object.metadata.name = None;
    object.metadata.generate_name = Some("inbound-".into());
    let stored = desk.create_object(&object, &PostParams::default()).await.unwrap();
    assert_eq!(desk.held_by().await, stored.metadata.name);
    let refusal = desk.create_object(&object, &PostParams::default()).await.unwrap_err();
    assert_48031(&refusal, stored.metadata.name.as_deref().unwrap());
}

#[tokio::test]
async fn an_unassigned_holder_is_named_with_the_ways_out_that_apply() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"participants": []})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::True).await;
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    assert_48031(&refusal, "alice");
    for part in ["unassigned", "add a participant", "closeUnassignedAfter"] {
        assert!(refusal.message.contains(part), "{part} is missing in {}", refusal.message);
    }
    desk.change("alice", json!({"participants": [{"identity": "agent-9"}]})).await.unwrap();
    assert!(desk.create("bob", json!({})).await.unwrap_err().message.contains("agent-9"), "the holder is read live");
}

/// Lets a user do in a namespace what a `ClusterRole` says.
async fn grant(desk: &TestNamespace, namespace: &str, user: &str, role: &str) {
    let binding = serde_json::from_value(json!({
        "metadata": {"name": format!("{user}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }))
    .unwrap();
    let bindings = Api::<RoleBinding>::namespaced(desk.client.clone(), namespace);
    bindings.create(&PostParams::default(), &binding).await.unwrap();
}

#[tokio::test]
async fn a_holder_in_another_namespace_is_named_only_to_those_who_may_read_it() {
    let cluster = Cluster::shared();
    let desk = cluster.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    let elsewhere = TestNamespace { contact: desk.contact.clone(), ..cluster.desk().await };
    for user in ["insider", "outsider"] {
        grant(&desk, &elsewhere.namespace, user, "switchboard-edit").await;
    }
    grant(&desk, &desk.namespace, "insider", "switchboard-view").await;

    let refusal_of = |user: &'static str| {
        let elsewhere = elsewhere.clone();
        async move {
            let client = cluster.client_as(user, 0).await;
            TestNamespace { client, ..elsewhere }.create("bob", json!({})).await.unwrap_err()
        }
    };
    let told = refusal_of("insider").await;
    assert_48031(&told, "alice");
    assert!(told.message.contains(&format!("{}/alice", desk.namespace)), "{}", told.message);

    let told = refusal_of("outsider").await;
    assert_48031(&told, "");
    assert!(told.message.contains("in another namespace"), "{}", told.message);
    let all = serde_json::to_string(&told).unwrap();
    for secret in ["alice", "agent-7", &format!("{}/", desk.namespace)] {
        assert!(!all.contains(secret), "{secret} is told in {all}");
    }
}
