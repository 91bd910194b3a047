//! The facts about the API server on which the protocol of claims rests. A test fails if a new version of Kubernetes changes one. Only
//! switchboard's CRDs are installed; nothing else of it runs. Tier: API server.

use crate::common;
use crate::common::cluster::{TIMEOUT, TestNamespace, create_namespace};
use crate::common::fake_webhook::{FakeWebhook, Review, Verdict};
use crate::common::shared_control_plane;
use control_plane::{ControlPlane, Kubernetes};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use switchboard::api::{AddressBinding, AddressBindingSpec, Admission, Channel, Conversation, ConversationReference};
use tokio::sync::{Barrier, Notify};
use tokio::time::timeout;

/// A client that does not retry.
async fn client_of(control_plane: &ControlPlane) -> Client {
    let kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// A namespace on `control_plane`, with addresses that no other test uses.
async fn test_namespace_on(control_plane: &ControlPlane) -> TestNamespace {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let client = client_of(control_plane).await;
    let namespace = format!("fact-{number}");
    create_namespace(&client, &namespace).await;
    let contact = format!("+1555{number:07}");
    TestNamespace { client, namespace, contact, proxy: "+15017122661".to_owned(), _cleanup: None }
}

/// A namespace on the shared control plane.
async fn test_namespace() -> TestNamespace {
    test_namespace_on(shared_control_plane()).await
}

/// A webhook that answers the first `count` reviews with `verdict`, and allows all others.
async fn answer_first(ns: &TestNamespace, count: usize, verdict: Verdict) -> FakeWebhook {
    let decide = move |review: Review| async move { if review.number < count { verdict } else { Verdict::Allow } };
    FakeWebhook::start(&ns.client, &ns.namespace, 10, decide).await
}

#[tokio::test]
async fn api_server_has_the_requested_version() {
    let expected = match Kubernetes::asked_for().unwrap() {
        // These binaries may have any version.
        None if std::env::var_os("KUBEBUILDER_ASSETS").is_some() => return,
        requested => requested.unwrap_or_else(Kubernetes::current),
    };
    let version = client_of(shared_control_plane()).await.apiserver_version().await.unwrap();
    assert_eq!(version.git_version, format!("v{expected}"));
}

async fn apply(ns: &TestNamespace, name: &str, manager: &str, identity: &str) -> Result<Conversation, Box<Status>> {
    let object = ns.conversation(name, json!({"participants": [{"identity": identity}]}));
    match ns.conversations().patch(name, &PatchParams::apply(manager).force(), &Patch::Apply(&object)).await {
        Ok(object) => Ok(object),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("{error}"),
    }
}

fn with_generated_name(ns: &TestNamespace) -> Conversation {
    let mut object = ns.conversation("", json!({}));
    object.metadata.name = None;
    object.metadata.generate_name = Some("inbound-".to_owned());
    object
}

fn object_uids(reviews: &[Review]) -> BTreeSet<&str> {
    reviews.iter().map(Review::object_uid).collect()
}

fn operations(review: &Review) -> BTreeSet<&str> {
    let managers = review.request["object"]["metadata"]["managedFields"].as_array().into_iter().flatten();
    managers.map(|manager| manager["operation"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn each_create_attempt_has_its_own_uid_before_admission() {
    let ns = test_namespace().await;
    let webhook = answer_first(&ns, 1, Verdict::Deny(403, "Forbidden")).await;
    ns.create("alice", json!({})).await.unwrap_err();
    let alice = ns.create("alice", json!({})).await.unwrap();
    let reviews = webhook.reviews();
    let [denied, allowed] = &reviews[..] else { panic!("{reviews:?}") };
    assert_ne!(denied.object_uid(), allowed.object_uid());
    assert_eq!(alice.metadata.uid.as_deref(), Some(allowed.object_uid()));
}

#[tokio::test]
async fn admission_runs_before_the_name_is_checked() {
    let ns = test_namespace().await;
    let webhook = answer_first(&ns, 0, Verdict::Allow).await;
    let alice = ns.create("alice", json!({})).await.unwrap();
    let refusal = ns.create("alice", json!({})).await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (409, "AlreadyExists"));
    let reviews = webhook.reviews();
    assert_eq!(object_uids(&reviews).len(), 2, "the API server also sends a review for the failed create: {reviews:?}");
    assert_eq!(ns.conversations().get("alice").await.unwrap().metadata.uid, alice.metadata.uid);
}

#[tokio::test]
async fn generated_name_conflict_leads_to_a_new_name_uid_and_review() {
    let ns = test_namespace().await;
    let (reviewed, taken) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (for_reviewed, for_taken) = (reviewed.clone(), taken.clone());
    let webhook = FakeWebhook::start(&ns.client, &ns.namespace, 10, move |review| {
        let (reviewed, taken) = (for_reviewed.clone(), for_taken.clone());
        async move {
            if review.number == 0 {
                reviewed.notify_one();
                taken.notified().await;
            }
            Verdict::Allow
        }
    })
    .await;
    let create = async { ns.create_object(&with_generated_name(&ns), &PostParams::default()).await };
    let take_name = async {
        reviewed.notified().await;
        let name = webhook.reviews()[0].object_name().to_owned();
        ns.create(&name, json!({"contact": null})).await.unwrap();
        taken.notify_one();
        name
    };
    let (stored, taken) = tokio::join!(create, take_name);
    let (stored, reviews) = (stored.unwrap(), webhook.reviews());
    let [first, conflicting, second] = &reviews[..] else { panic!("{reviews:?}") };
    assert_eq!((first.object_name(), conflicting.object_name()), (taken.as_str(), taken.as_str()));
    assert_eq!(stored.metadata.name.as_deref(), Some(second.object_name()));
    assert_ne!(second.object_name(), taken);
    assert_eq!(stored.metadata.uid.as_deref(), Some(second.object_uid()));
    assert_ne!(second.object_uid(), first.object_uid());
}

#[tokio::test]
async fn generated_name_is_replaced_after_a_webhook_denies_with_409() {
    let ns = test_namespace().await;
    let webhook = answer_first(&ns, 1, Verdict::Deny(409, "AlreadyExists")).await;
    let stored = ns.create_object(&with_generated_name(&ns), &PostParams::default()).await.unwrap();
    let reviews = webhook.reviews();
    let [refused, allowed] = &reviews[..] else { panic!("{reviews:?}") };
    assert_ne!(refused.object_name(), allowed.object_name());
    assert_ne!(refused.object_uid(), allowed.object_uid());
    assert_eq!(stored.metadata.uid.as_deref(), Some(allowed.object_uid()));
}

#[tokio::test]
async fn http_503_with_retry_after_repeats_the_same_review() {
    let ns = test_namespace().await;
    let webhook = answer_first(&ns, 1, Verdict::Http(503, Some("1"))).await;
    let alice = ns.create("alice", json!({})).await.unwrap();
    let reviews = webhook.reviews();
    assert_eq!(reviews.len(), 2, "{reviews:?}");
    assert_eq!(object_uids(&reviews), BTreeSet::from([alice.metadata.uid.as_deref().unwrap()]));
    assert_eq!(reviews[0].request["uid"], reviews[1].request["uid"], "the review has the same uid");
}

#[tokio::test]
async fn http_503_without_retry_after_fails_the_create_like_a_cut() {
    for verdict in [Verdict::Http(503, None), Verdict::Cut] {
        let ns = test_namespace().await;
        let webhook = answer_first(&ns, 1, verdict).await;
        let refusal = ns.create("alice", json!({})).await.unwrap_err();
        assert_eq!(refusal.code, 500, "{verdict:?}: {refusal:?}");
        assert!(refusal.message.contains("failed calling webhook"), "{verdict:?}: {refusal:?}");
        assert_eq!(webhook.reviews().len(), 1, "{verdict:?}");
        assert_eq!(ns.conversations().get_opt("alice").await.unwrap(), None, "{verdict:?}");
    }
}

#[tokio::test]
async fn denial_with_503_reaches_the_client_and_is_not_repeated() {
    let ns = test_namespace().await;
    let webhook = answer_first(&ns, 1, Verdict::Deny(503, "ServiceUnavailable")).await;
    let refusal = ns.create("alice", json!({})).await.unwrap_err();
    assert_eq!((refusal.code, webhook.reviews().len()), (503, 1), "{refusal:?}");
}

#[tokio::test]
async fn second_of_two_racing_applies_of_one_name_is_an_update() {
    let ns = test_namespace().await;
    let both = Arc::new(Barrier::new(2));
    let webhook = FakeWebhook::start(&ns.client, &ns.namespace, 10, move |_| {
        let both = both.clone();
        async move {
            both.wait().await;
            Verdict::Allow
        }
    })
    .await;
    let (one, other) = tokio::join!(apply(&ns, "alice", "one", "agent-1"), apply(&ns, "alice", "other", "agent-2"));
    let (one, other) = (one.unwrap(), other.unwrap());
    let reviews = webhook.reviews();
    assert_eq!(object_uids(&reviews).len(), 2, "each apply is reviewed as a create with its own UID: {reviews:?}");
    assert_eq!(one.metadata.uid, other.metadata.uid, "both applies succeed, and one UID is stored");
    assert!(object_uids(&reviews).contains(one.metadata.uid.as_deref().unwrap()));
    let later = if one.metadata.generation > other.metadata.generation { one } else { other };
    assert_eq!(later.spec.participants.unwrap().len(), 2, "the second apply updates the object of the first");
}

#[tokio::test]
async fn racing_apply_fails_if_a_webhook_denies_it_with_409() {
    let ns = test_namespace().await;
    let both = Arc::new(Barrier::new(2));
    let webhook = FakeWebhook::start(&ns.client, &ns.namespace, 10, move |review| {
        let both = both.clone();
        async move {
            both.wait().await;
            if review.number == 0 { Verdict::Allow } else { Verdict::Deny(409, "AlreadyExists") }
        }
    })
    .await;
    let (one, other) = tokio::join!(apply(&ns, "alice", "one", "agent-1"), apply(&ns, "alice", "other", "agent-2"));
    let (stored, refusal) = match (one, other) {
        (Ok(stored), Err(refusal)) | (Err(refusal), Ok(stored)) => (stored, refusal),
        both => panic!("{both:?}"),
    };
    assert_eq!((refusal.code, refusal.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(stored.metadata.uid.as_deref(), Some(webhook.reviews()[0].object_uid()));
}

#[tokio::test]
async fn managed_fields_distinguish_an_apply_from_a_forged_create() {
    let ns = test_namespace().await;
    let webhook = answer_first(&ns, 0, Verdict::Allow).await;
    apply(&ns, "applied", "somebody", "agent-7").await.unwrap();
    ns.create("created", json!({})).await.unwrap();
    let mut forged = ns.conversation("forged", json!({}));
    forged.metadata.managed_fields = Some(vec![ManagedFieldsEntry {
        manager: Some("somebody".to_owned()),
        operation: Some("Apply".to_owned()),
        api_version: Some("switchboard.dev/v1alpha1".to_owned()),
        fields_type: Some("FieldsV1".to_owned()),
        fields_v1: Some(
            serde_json::from_value(json!({"f:spec": {
                ".": {},
                "f:channel": {},
                "f:contact": {".": {}, "f:address": {}},
                "f:proxy": {".": {}, "f:address": {}},
                "f:participants": {".": {}, "k:{\"identity\":\"agent-7\"}": {".": {}, "f:identity": {}}},
            }}))
            .unwrap(),
        ),
        ..ManagedFieldsEntry::default()
    }]);
    ns.create_object(&forged, &PostParams::default()).await.unwrap();
    let reviews = webhook.reviews();
    let [applied, created, forged] = &reviews[..] else { panic!("{reviews:?}") };
    assert_eq!(operations(applied), BTreeSet::from(["Apply"]));
    assert_eq!(operations(created), BTreeSet::from(["Update"]));
    assert!(operations(forged).contains("Update"), "{:?}", forged.request["object"]["metadata"]);
}

fn claim(ns: &TestNamespace) -> AddressBinding {
    let spec = AddressBindingSpec {
        channel: Channel::Sms,
        contact_address: ns.contact.clone(),
        proxy_address: ns.proxy.clone(),
        conversation_ref: ConversationReference { namespace: ns.namespace.clone(), name: "alice".to_owned() },
        admissions: vec![Admission { uid: "a-1".to_owned(), time: switchboard::api::Time::EPOCH }],
    };
    AddressBinding::new(ns.binding().as_str(), spec)
}

#[tokio::test]
async fn update_without_changes_keeps_the_resource_version() {
    let ns = test_namespace().await;
    let name = ns.binding();
    let before = ns.claims().create(&PostParams::default(), &claim(&ns)).await.unwrap();
    let same = ns.claims().replace(name.as_str(), &PostParams::default(), &before).await.unwrap();
    assert_eq!(same.metadata.resource_version, before.metadata.resource_version);
    let mut changed = before.clone();
    changed.spec.admissions.clear();
    let changed = ns.claims().replace(name.as_str(), &PostParams::default(), &changed).await.unwrap();
    assert_ne!(changed.metadata.resource_version, before.metadata.resource_version);
}

#[tokio::test]
async fn object_being_deleted_accepts_updates_until_it_is_gone() {
    let ns = test_namespace().await;
    let name = ns.binding();
    let mut object = claim(&ns);
    object.metadata.finalizers = Some(vec!["example.com/held".to_owned()]);
    ns.claims().create(&PostParams::default(), &object).await.unwrap();
    ns.claims().delete(name.as_str(), &DeleteParams::default()).await.unwrap();
    let mut dying = ns.claim().await.unwrap();
    assert!(dying.metadata.deletion_timestamp.is_some());
    dying.spec.conversation_ref.name = "bob".to_owned();
    let mut updated = ns.claims().replace(name.as_str(), &PostParams::default(), &dying).await.unwrap();
    assert_eq!(updated.spec.conversation_ref.name, "bob", "the update of a claim in deletion succeeds");
    updated.metadata.finalizers = None;
    ns.claims().replace(name.as_str(), &PostParams::default(), &updated).await.unwrap();
    assert_eq!(ns.claim().await, None);
}

#[tokio::test]
async fn filtered_watch_reports_a_close_as_deleted_with_old_content() {
    let ns = test_namespace().await;
    let alice = ns.create("alice", json!({})).await.unwrap();
    let parameters = WatchParams::default().fields("status.state!=Closed");
    let version = alice.metadata.resource_version.clone().unwrap();
    let conversations = ns.conversations();
    let mut events = conversations.watch(&parameters, &version).await.unwrap().boxed();
    let closed = Patch::Merge(json!({"status": {"state": "Closed"}}));
    ns.conversations().patch_status("alice", &PatchParams::default(), &closed).await.unwrap();
    let event = timeout(TIMEOUT, events.try_next()).await.unwrap().unwrap();
    let Some(WatchEvent::Deleted(left)) = event else { panic!("{event:?}") };
    assert_eq!(left.metadata.uid, alice.metadata.uid);
    assert_eq!(left.metadata.deletion_timestamp, None, "the event looks like a deletion, but nothing was deleted");
    assert_eq!(left.status, alice.status, "the event has the content from before the close");
    assert!(ns.conversations().get_opt("alice").await.unwrap().is_some());
}

#[tokio::test]
async fn create_that_outlasts_the_request_timeout_is_never_stored() {
    let control_plane = ControlPlane::builder().api_server_flag("--request-timeout=3s").start().unwrap();
    common::install_crds(&control_plane);
    let ns = test_namespace_on(&control_plane).await;
    let webhook = FakeWebhook::start(&ns.client, &ns.namespace, 30, |review| async move {
        if review.number == 0 { std::future::pending().await } else { Verdict::Allow }
    })
    .await;
    let failure = ns.conversations().create(&PostParams::default(), &ns.conversation("alice", json!({}))).await;
    // The API server answers 504, or cuts the connection. After the webhook's timeout it would answer 500.
    match failure.unwrap_err() {
        kube::Error::Api(status) => assert_eq!(status.code, 504, "{status:?}"),
        error => println!("{error}"),
    }
    webhook.wait_until_given_up(1).await;
    let alice = ns.create("alice", json!({})).await.expect("the name is free");
    assert_eq!(alice.metadata.uid.as_deref(), Some(webhook.reviews()[1].object_uid()));
}
