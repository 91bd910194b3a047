//! Claims about the API server itself, on which the protocol of claims rests: a new version that breaks one is noticed here. Nothing of
//! switchboard runs but its kinds. Tier: API server.

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

/// A client that repeats nothing by itself.
async fn client_of(control_plane: &ControlPlane) -> Client {
    let kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn desk_on(control_plane: &ControlPlane) -> TestNamespace {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let client = client_of(control_plane).await;
    let namespace = format!("fact-{number}");
    create_namespace(&client, &namespace).await;
    let contact = format!("+1555{number:07}");
    TestNamespace { client, namespace, contact, proxy: "+15017122661".to_owned(), _cleanup: None }
}

async fn desk() -> TestNamespace {
    desk_on(shared_control_plane()).await
}

/// A webhook that allows all but the first `count` reviews, which it answers with `verdict`.
async fn at_first(desk: &TestNamespace, count: usize, verdict: Verdict) -> FakeWebhook {
    let decide = move |review: Review| async move { if review.number < count { verdict } else { Verdict::Allow } };
    FakeWebhook::start(&desk.client, &desk.namespace, 10, decide).await
}

#[tokio::test]
async fn api_server_has_the_version_that_is_asked_for() {
    let expected = match Kubernetes::asked_for().unwrap() {
        // That one has whatever version it has.
        None if std::env::var_os("KUBEBUILDER_ASSETS").is_some() => return,
        asked_for => asked_for.unwrap_or_else(Kubernetes::current),
    };
    let version = client_of(shared_control_plane()).await.apiserver_version().await.unwrap();
    assert_eq!(version.git_version, format!("v{expected}"));
}

async fn apply(desk: &TestNamespace, name: &str, manager: &str, identity: &str) -> Result<Conversation, Box<Status>> {
    let object = desk.conversation(name, json!({"participants": [{"identity": identity}]}));
    match desk.conversations().patch(name, &PatchParams::apply(manager).force(), &Patch::Apply(&object)).await {
        Ok(object) => Ok(object),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("{error}"),
    }
}

fn generated(desk: &TestNamespace) -> Conversation {
    let mut object = desk.conversation("", json!({}));
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
async fn the_uid_is_set_before_validating_admission_and_each_attempt_has_its_own() {
    let desk = desk().await;
    let reviewer = at_first(&desk, 1, Verdict::Deny(403, "Forbidden")).await;
    desk.create("alice", json!({})).await.unwrap_err();
    let alice = desk.create("alice", json!({})).await.unwrap();
    let reviews = reviewer.reviews();
    let [denied, allowed] = &reviews[..] else { panic!("{reviews:?}") };
    assert_ne!(denied.object_uid(), allowed.object_uid());
    assert_eq!(alice.metadata.uid.as_deref(), Some(allowed.object_uid()));
}

#[tokio::test]
async fn admission_runs_before_the_name_is_checked() {
    let desk = desk().await;
    let reviewer = at_first(&desk, 0, Verdict::Allow).await;
    let alice = desk.create("alice", json!({})).await.unwrap();
    let refusal = desk.create("alice", json!({})).await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (409, "AlreadyExists"));
    let reviews = reviewer.reviews();
    assert_eq!(object_uids(&reviews).len(), 2, "the create that failed was asked about too: {reviews:?}");
    assert_eq!(desk.conversations().get("alice").await.unwrap().metadata.uid, alice.metadata.uid);
}

#[tokio::test]
async fn a_generated_name_that_exists_already_is_replaced_by_a_new_one_with_a_new_uid_and_a_new_review() {
    let desk = desk().await;
    let (asked, taken) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (for_asked, for_taken) = (asked.clone(), taken.clone());
    let reviewer = FakeWebhook::start(&desk.client, &desk.namespace, 10, move |review| {
        let (asked, taken) = (for_asked.clone(), for_taken.clone());
        async move {
            if review.number == 0 {
                asked.notify_one();
                taken.notified().await;
            }
            Verdict::Allow
        }
    })
    .await;
    let create = async { desk.create_object(&generated(&desk), &PostParams::default()).await };
    let take_the_name = async {
        asked.notified().await;
        let name = reviewer.reviews()[0].object_name().to_owned();
        desk.create(&name, json!({"contact": null})).await.unwrap();
        taken.notify_one();
        name
    };
    let (stored, taken) = tokio::join!(create, take_the_name);
    let (stored, reviews) = (stored.unwrap(), reviewer.reviews());
    let [first, of_the_taker, second] = &reviews[..] else { panic!("{reviews:?}") };
    assert_eq!((first.object_name(), of_the_taker.object_name()), (taken.as_str(), taken.as_str()));
    assert_eq!(stored.metadata.name.as_deref(), Some(second.object_name()));
    assert_ne!(second.object_name(), taken);
    assert_eq!(stored.metadata.uid.as_deref(), Some(second.object_uid()));
    assert_ne!(second.object_uid(), first.object_uid());
}

#[tokio::test]
async fn a_generated_name_is_replaced_also_where_a_webhook_says_that_it_exists() {
    let desk = desk().await;
    let reviewer = at_first(&desk, 1, Verdict::Deny(409, "AlreadyExists")).await;
    let stored = desk.create_object(&generated(&desk), &PostParams::default()).await.unwrap();
    let reviews = reviewer.reviews();
    let [refused, allowed] = &reviews[..] else { panic!("{reviews:?}") };
    assert_ne!(refused.object_name(), allowed.object_name());
    assert_ne!(refused.object_uid(), allowed.object_uid());
    assert_eq!(stored.metadata.uid.as_deref(), Some(allowed.object_uid()));
}

#[tokio::test]
async fn an_http_503_that_says_when_to_come_again_is_answered_by_the_same_review_with_the_same_uid() {
    let desk = desk().await;
    let reviewer = at_first(&desk, 1, Verdict::Http(503, Some("1"))).await;
    let alice = desk.create("alice", json!({})).await.unwrap();
    let reviews = reviewer.reviews();
    assert_eq!(reviews.len(), 2, "{reviews:?}");
    assert_eq!(object_uids(&reviews), BTreeSet::from([alice.metadata.uid.as_deref().unwrap()]));
    assert_eq!(reviews[0].request["uid"], reviews[1].request["uid"], "the review's own uid, too");
}

#[tokio::test]
async fn an_http_503_without_that_and_a_cut_connection_fail_the_create() {
    for verdict in [Verdict::Http(503, None), Verdict::Cut] {
        let desk = desk().await;
        let reviewer = at_first(&desk, 1, verdict).await;
        let refusal = desk.create("alice", json!({})).await.unwrap_err();
        assert_eq!(refusal.code, 500, "{verdict:?}: {refusal:?}");
        assert!(refusal.message.contains("failed calling webhook"), "{verdict:?}: {refusal:?}");
        assert_eq!(reviewer.reviews().len(), 1, "{verdict:?}");
        assert_eq!(desk.conversations().get_opt("alice").await.unwrap(), None, "{verdict:?}");
    }
}

#[tokio::test]
async fn a_review_that_answers_503_with_retry_after_reaches_the_client_as_such_and_is_not_repeated() {
    let desk = desk().await;
    let reviewer = at_first(&desk, 1, Verdict::Deny(503, "ServiceUnavailable")).await;
    let refusal = desk.create("alice", json!({})).await.unwrap_err();
    assert_eq!((refusal.code, reviewer.reviews().len()), (503, 1), "{refusal:?}");
}

#[tokio::test]
async fn of_two_racing_applies_of_one_name_the_second_becomes_an_update_and_its_uid_is_never_stored() {
    let desk = desk().await;
    let both = Arc::new(Barrier::new(2));
    let reviewer = FakeWebhook::start(&desk.client, &desk.namespace, 10, move |_| {
        let both = both.clone();
        async move {
            both.wait().await;
            Verdict::Allow
        }
    })
    .await;
    let (one, other) = tokio::join!(apply(&desk, "alice", "one", "agent-1"), apply(&desk, "alice", "other", "agent-2"));
    let (one, other) = (one.unwrap(), other.unwrap());
    let reviews = reviewer.reviews();
    assert_eq!(object_uids(&reviews).len(), 2, "each was asked about as a create, with a UID of its own: {reviews:?}");
    assert_eq!(one.metadata.uid, other.metadata.uid, "both succeed, and only one UID is stored");
    assert!(object_uids(&reviews).contains(one.metadata.uid.as_deref().unwrap()));
    let later = if one.metadata.generation > other.metadata.generation { one } else { other };
    assert_eq!(later.spec.participants.unwrap().len(), 2, "the second was an update of what the first made");
}

#[tokio::test]
async fn a_webhook_that_answers_one_of_two_racing_applies_with_already_exists_makes_it_fail() {
    let desk = desk().await;
    let both = Arc::new(Barrier::new(2));
    let reviewer = FakeWebhook::start(&desk.client, &desk.namespace, 10, move |review| {
        let both = both.clone();
        async move {
            both.wait().await;
            if review.number == 0 { Verdict::Allow } else { Verdict::Deny(409, "AlreadyExists") }
        }
    })
    .await;
    let (one, other) = tokio::join!(apply(&desk, "alice", "one", "agent-1"), apply(&desk, "alice", "other", "agent-2"));
    let (stored, refusal) = match (one, other) {
        (Ok(stored), Err(refusal)) | (Err(refusal), Ok(stored)) => (stored, refusal),
        both => panic!("{both:?}"),
    };
    assert_eq!((refusal.code, refusal.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(stored.metadata.uid.as_deref(), Some(reviewer.reviews()[0].object_uid()));
}

#[tokio::test]
async fn managed_fields_tell_an_apply_from_an_update_also_for_a_create_that_brings_its_own() {
    let desk = desk().await;
    let reviewer = at_first(&desk, 0, Verdict::Allow).await;
    apply(&desk, "applied", "somebody", "agent-7").await.unwrap();
    desk.create("created", json!({})).await.unwrap();
    let mut forged = desk.conversation("forged", json!({}));
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
    desk.create_object(&forged, &PostParams::default()).await.unwrap();
    let reviews = reviewer.reviews();
    let [applied, created, forged] = &reviews[..] else { panic!("{reviews:?}") };
    assert_eq!(operations(applied), BTreeSet::from(["Apply"]));
    assert_eq!(operations(created), BTreeSet::from(["Update"]));
    assert!(operations(forged).contains("Update"), "{:?}", forged.request["object"]["metadata"]);
}

fn claim(desk: &TestNamespace) -> AddressBinding {
    let spec = AddressBindingSpec {
        channel: Channel::Sms,
        contact_address: desk.contact.clone(),
        proxy_address: desk.proxy.clone(),
        conversation_ref: ConversationReference { namespace: desk.namespace.clone(), name: "alice".to_owned() },
        admissions: vec![Admission { uid: "a-1".to_owned(), time: switchboard::api::Time::EPOCH }],
    };
    AddressBinding::new(desk.binding().as_str(), spec)
}

#[tokio::test]
async fn an_update_with_identical_content_keeps_the_resource_version() {
    let desk = desk().await;
    let name = desk.binding();
    let before = desk.claims().create(&PostParams::default(), &claim(&desk)).await.unwrap();
    let same = desk.claims().replace(name.as_str(), &PostParams::default(), &before).await.unwrap();
    assert_eq!(same.metadata.resource_version, before.metadata.resource_version);
    let mut changed = before.clone();
    changed.spec.admissions.clear();
    let changed = desk.claims().replace(name.as_str(), &PostParams::default(), &changed).await.unwrap();
    assert_ne!(changed.metadata.resource_version, before.metadata.resource_version);
}

#[tokio::test]
async fn an_object_that_is_being_deleted_still_accepts_updates_and_then_vanishes() {
    let desk = desk().await;
    let name = desk.binding();
    let mut object = claim(&desk);
    object.metadata.finalizers = Some(vec!["example.com/held".to_owned()]);
    desk.claims().create(&PostParams::default(), &object).await.unwrap();
    desk.claims().delete(name.as_str(), &DeleteParams::default()).await.unwrap();
    let mut dying = desk.claim().await.unwrap();
    assert!(dying.metadata.deletion_timestamp.is_some());
    dying.spec.conversation_ref.name = "bob".to_owned();
    let mut updated = desk.claims().replace(name.as_str(), &PostParams::default(), &dying).await.unwrap();
    assert_eq!(updated.spec.conversation_ref.name, "bob", "a claim that is going away looks as if it were taken");
    updated.metadata.finalizers = None;
    desk.claims().replace(name.as_str(), &PostParams::default(), &updated).await.unwrap();
    assert_eq!(desk.claim().await, None);
}

#[tokio::test]
async fn on_a_watch_of_what_is_not_closed_closing_arrives_as_deleted_with_the_old_content() {
    let desk = desk().await;
    let alice = desk.create("alice", json!({})).await.unwrap();
    let parameters = WatchParams::default().fields("status.state!=Closed");
    let version = alice.metadata.resource_version.clone().unwrap();
    let conversations = desk.conversations();
    let mut events = conversations.watch(&parameters, &version).await.unwrap().boxed();
    let closed = Patch::Merge(json!({"status": {"state": "Closed"}}));
    desk.conversations().patch_status("alice", &PatchParams::default(), &closed).await.unwrap();
    let event = timeout(TIMEOUT, events.try_next()).await.unwrap().unwrap();
    let Some(WatchEvent::Deleted(left)) = event else { panic!("{event:?}") };
    assert_eq!(left.metadata.uid, alice.metadata.uid);
    assert_eq!(left.metadata.deletion_timestamp, None, "it looks as if it had been deleted, and was not");
    assert_eq!(left.status, alice.status, "with the content from before it was closed");
    assert!(desk.conversations().get_opt("alice").await.unwrap().is_some());
}

#[tokio::test]
async fn a_create_whose_admission_outlasts_the_request_timeout_is_given_up_and_never_stored() {
    let control_plane = ControlPlane::builder().api_server_flag("--request-timeout=3s").start().unwrap();
    common::install_crds(&control_plane);
    let desk = desk_on(&control_plane).await;
    let reviewer = FakeWebhook::start(&desk.client, &desk.namespace, 30, |review| async move {
        if review.number == 0 { std::future::pending().await } else { Verdict::Allow }
    })
    .await;
    let failure = desk.conversations().create(&PostParams::default(), &desk.conversation("alice", json!({}))).await;
    // It answers 504, or cuts the connection; after the time-out of the webhook it would answer 500.
    match failure.unwrap_err() {
        kube::Error::Api(status) => assert_eq!(status.code, 504, "{status:?}"),
        cut => println!("{cut}"),
    }
    reviewer.wait_until_given_up(1).await;
    let alice = desk.create("alice", json!({})).await.expect("the name is free");
    assert_eq!(alice.metadata.uid.as_deref(), Some(reviewer.reviews()[1].object_uid()));
}
