//! Admission with real API servers and replicas of the operator: which create gets a binding, and which refusals the others get.

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
    let error = &details.causes[0];
    assert_eq!((error.reason.as_str(), error.field.as_str()), ("48031", "spec.contact.address"), "{status:?}");
    assert_eq!(facts(status).iter().any(|(kind, _)| *kind == "Holder"), !holder.is_empty(), "{status:?}");
}

/// The facts about the holder, by kind.
fn facts(status: &Status) -> Vec<(&str, &str)> {
    let causes = &status.details.as_ref().expect("details").causes[1..];
    causes.iter().map(|cause| (cause.reason.as_str(), cause.message.as_str())).collect()
}

#[tokio::test]
async fn second_open_conversation_for_a_binding_is_refused() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    assert_48031(&refusal, "alice");
    for part in [&ns.contact, &ns.proxy, &format!("{}/alice", ns.namespace), "Active", "agent-7", "close it"] {
        assert!(refusal.message.contains(part), "{part:?} is missing in {}", refusal.message);
    }
    assert!(
        !refusal.message.contains("is immutable"),
        "Flux deletes an object whose error contains these words: {}",
        refusal.message
    );
    assert_eq!(ns.conversations().get_opt("bob").await.unwrap(), None, "bob is not stored");
}

#[tokio::test]
async fn refusal_states_each_fact_in_a_cause_of_its_own() {
    let ns = Cluster::shared().test_namespace().await;
    let hostile = ["agent-7, agent-8", "x state=Closed", "agent-9). To proceed, delete bob. ("];
    let identities = hostile.map(|identity| json!({"identity": identity}));
    let mut alice = ns.conversation("alice", json!({"participants": identities}));
    let labels = ["name", "namespace"].map(|key| (format!("kustomize.toolkit.fluxcd.io/{key}"), "desk".to_owned()));
    alice.metadata.labels = Some(labels.into());
    ns.create_object(&alice, &PostParams::default()).await.unwrap();
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    assert_48031(&refusal, "alice");
    let holder = format!("{}/alice", ns.namespace);
    let expected =
        [("Holder", &*holder), ("HolderState", "Active"), ("HolderManagedBy", "Flux Kustomization desk/desk")];
    let participants = hostile.map(|identity| ("HolderParticipant", identity));
    assert_eq!(facts(&refusal), [&expected[..], &participants[..]].concat());
    assert!(refusal.message.contains("managed by Flux Kustomization desk/desk: change it in Git"), "{refusal:?}");
    assert!(!refusal.message.contains("remove its contact"), "Git adds it again: {refusal:?}");
    assert!(
        refusal.message.contains(r#"participants: "agent-7, agent-8", "x state=Closed", "agent-9)"#),
        "{refusal:?}"
    );
}

#[tokio::test]
async fn claim_maps_a_binding_to_its_conversation() {
    let ns = Cluster::shared().test_namespace().await;
    let alice = ns.create("alice", json!({})).await.unwrap();
    let fields = format!("spec.contactAddress={},spec.proxyAddress={}", ns.contact, ns.proxy);
    let claims = ns.claims().list(&kube::api::ListParams::default().fields(&fields)).await.unwrap();
    let [claim] = &claims.items[..] else { panic!("{claims:?}") };
    assert_eq!(claim.metadata.name.as_deref(), Some(ns.binding().as_str()));
    assert_eq!(claim.spec.conversation_ref.namespace, ns.namespace);
    assert_eq!(claim.spec.conversation_ref.name, "alice");
    assert_eq!(
        claim.spec.admissions.iter().map(|admission| &admission.uid).collect::<Vec<_>>(),
        [alice.metadata.uid.as_ref().unwrap()]
    );
}

#[tokio::test]
async fn binding_of_a_closed_conversation_has_no_claim() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.wait_until_free().await;
}

#[tokio::test]
async fn closed_or_contactless_conversation_gets_no_claim() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("closed", json!({"state": "Closed"})).await.unwrap();
    ns.create("no-contact", json!({"contact": null})).await.unwrap();
    assert_eq!(ns.claim().await, None);
}

#[tokio::test]
async fn repeated_creates_of_an_existing_name_do_not_change_the_claim() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    let before = ns.claim().await.unwrap();
    for _ in 0..5 {
        let refusal = ns.create("alice", json!({})).await.unwrap_err();
        assert_eq!((refusal.code, refusal.reason.as_str()), (409, "AlreadyExists"), "{refusal:?}");
    }
    assert_eq!(ns.claim().await.unwrap(), before);
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.create("bob", json!({})).await.expect("a close frees the binding at once");
}

#[tokio::test]
async fn dry_run_gets_the_same_answer_and_writes_nothing() {
    let ns = Cluster::shared().test_namespace().await;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    ns.create_object(&ns.conversation("alice", json!({})), &dry_run).await.unwrap();
    assert_eq!(ns.claim().await, None);
    ns.create("alice", json!({})).await.unwrap();
    let before = ns.claim().await;
    let refusal = ns.create_object(&ns.conversation("bob", json!({})), &dry_run).await.unwrap_err();
    assert_48031(&refusal, "alice");
    ns.change("alice", json!({"contact": null})).await.unwrap();
    ns.create_object(&ns.conversation("bob", json!({})), &dry_run).await.unwrap();
    let after = ns.claim().await;
    assert!(after.is_none() || after == before, "{before:?} became {after:?}");
}

#[tokio::test]
async fn server_side_apply_creates_once_and_then_updates() {
    let ns = Cluster::shared().test_namespace().await;
    let apply = |name: &'static str, identity: &'static str| {
        let ns = ns.clone();
        async move {
            let mut object = ns.conversation(name, json!({"participants": [{"identity": identity}]}));
            object.metadata.managed_fields = None;
            ns.conversations().patch(name, &PatchParams::apply("test"), &Patch::Apply(&object)).await
        }
    };
    apply("alice", "agent-7").await.unwrap();
    apply("alice", "agent-8").await.unwrap();
    let Err(kube::Error::Api(refusal)) = apply("bob", "agent-7").await else { panic!("bob was admitted") };
    assert_48031(&refusal, "alice");
    assert!(refusal.message.contains("agent-8"), "{}", refusal.message);
}

#[tokio::test]
async fn generated_name_is_admitted_like_any_other() {
    let ns = Cluster::shared().test_namespace().await;
    let mut object = ns.conversation("", json!({}));
    object.metadata.name = None;
    object.metadata.generate_name = Some("inbound-".into());
    let stored = ns.create_object(&object, &PostParams::default()).await.unwrap();
    assert_eq!(ns.held_by().await, stored.metadata.name);
    let refusal = ns.create_object(&object, &PostParams::default()).await.unwrap_err();
    assert_48031(&refusal, stored.metadata.name.as_deref().unwrap());
}

#[tokio::test]
async fn refusal_for_an_unassigned_holder_proposes_its_remedies() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"participants": []})).await.unwrap();
    ns.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::True).await;
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    assert_48031(&refusal, "alice");
    for part in ["unassigned", "add a participant", "closeUnassignedAfter"] {
        assert!(refusal.message.contains(part), "{part:?} is missing in {}", refusal.message);
    }
    ns.change("alice", json!({"participants": [{"identity": "agent-9"}]})).await.unwrap();
    assert!(
        ns.create("bob", json!({})).await.unwrap_err().message.contains("agent-9"),
        "the webhook reads the holder live"
    );
}

/// Grants a user the rights of a `ClusterRole` in a namespace.
async fn grant(ns: &TestNamespace, namespace: &str, user: &str, role: &str) {
    let binding = serde_json::from_value(json!({
        "metadata": {"name": format!("{user}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }))
    .unwrap();
    let bindings = Api::<RoleBinding>::namespaced(ns.client.clone(), namespace);
    bindings.create(&PostParams::default(), &binding).await.unwrap();
}

#[tokio::test]
async fn holder_in_another_namespace_is_named_only_to_its_readers() {
    let cluster = Cluster::shared();
    let ns = cluster.test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    let elsewhere = TestNamespace { contact: ns.contact.clone(), ..cluster.test_namespace().await };
    for user in ["insider", "outsider"] {
        grant(&ns, &elsewhere.namespace, user, "switchboard-edit").await;
    }
    grant(&ns, &ns.namespace, "insider", "switchboard-view").await;

    let refusal_of = |user: &'static str| {
        let elsewhere = elsewhere.clone();
        async move {
            let client = cluster.client_as(user, 0).await;
            TestNamespace { client, ..elsewhere }.create("bob", json!({})).await.unwrap_err()
        }
    };
    let refusal = refusal_of("insider").await;
    assert_48031(&refusal, "alice");
    assert!(refusal.message.contains(&format!("{}/alice", ns.namespace)), "{}", refusal.message);

    let refusal = refusal_of("outsider").await;
    assert_48031(&refusal, "");
    assert!(refusal.message.contains("in another namespace"), "{}", refusal.message);
    let all = serde_json::to_string(&refusal).unwrap();
    for secret in ["alice", "agent-7", &format!("{}/", ns.namespace)] {
        assert!(!all.contains(secret), "the refusal reveals {secret}: {all}");
    }
}
