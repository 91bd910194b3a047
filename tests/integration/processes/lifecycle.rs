//! The life of a conversation, with real API servers and replicas of the operator: conditions, timers, activity, closing.

use crate::common;
use crate::common::cluster::{Cluster, TestNamespace, condition};
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType, Conversation, State, StateReason, Time};
use switchboard::clock::Clock;

fn status(conversation: &Conversation) -> &switchboard::api::ConversationStatus {
    conversation.status.as_ref().unwrap()
}

#[tokio::test]
async fn new_conversation_becomes_ready_and_bound() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    let (alice, reason) = ns.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    assert_eq!(reason, ConditionReason::Bound);
    assert_eq!(condition(&alice, ConditionType::Bound), Some((ConditionStatus::True, ConditionReason::BindingHeld)));
    assert_eq!(condition(&alice, ConditionType::Unassigned), Some((ConditionStatus::False, ConditionReason::Assigned)));
    assert_eq!(condition(&alice, ConditionType::Stalled), None);
    assert_eq!(status(&alice).observed_generation, alice.metadata.generation);
    assert_eq!(status(&alice).address_binding_name.as_deref(), Some(ns.binding().as_str()));
    assert_eq!((status(&alice).state, status(&alice).state_reason), (Some(State::Active), Some(StateReason::Spec)));
}

#[tokio::test]
async fn future_activity_time_is_clamped_to_the_observation() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"timers": {"closeAfter": "1h"}})).await.unwrap();
    ns.report_activity("alice", "9999-12-31T23:59:59Z").await.unwrap();
    let alice = ns.wait_for("alice", "counted", |alice| status(alice).last_activity_time.is_some()).await;
    assert!(status(&alice).last_activity_time.unwrap() <= Clock.now());
    // The operator ignores a time beyond its range, and uses the next report.
    ns.report_activity("alice", "9999-12-31T23:59:59-14:00").await.unwrap();
    let now = Clock.now();
    ns.report_activity("alice", &now.to_string()).await.unwrap();
    ns.wait_for("alice", "corrected", |alice| status(alice).last_activity_time == Some(now)).await;
}

#[tokio::test]
async fn parked_conversation_stays_inactive_until_its_spec_changes() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"state": "Inactive"})).await.unwrap();
    ns.wait_for_state("alice", State::Inactive).await;
    let now = Clock.now();
    ns.report_activity("alice", &now.to_string()).await.unwrap();
    let alice = ns.wait_for("alice", "counted", |alice| status(alice).last_activity_time == Some(now)).await;
    assert_eq!(status(&alice).state, Some(State::Inactive));
    ns.change("alice", json!({"state": "Active"})).await.unwrap();
    ns.wait_for_state("alice", State::Active).await;
}

#[tokio::test]
async fn longer_timer_moves_the_deadline() {
    let ns = Cluster::shared().test_namespace().await;
    let created = ns.create("alice", json!({"timers": {"closeAfter": "30s"}})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let due = |after: Duration| {
        move |alice: &Conversation| {
            status(alice).deadlines.as_ref().is_some_and(|deadlines| deadlines.close_time == Some(created.after(after)))
        }
    };
    ns.wait_for("alice", "due in 30 s", due(Duration::from_secs(30))).await;
    ns.change("alice", json!({"timers": {"closeAfter": "87600h"}})).await.unwrap();
    ns.wait_for("alice", "due in ten years", due(Duration::from_hours(87_600))).await;
}

#[tokio::test]
async fn activity_before_creation_or_after_closing_is_ignored() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"timers": {"closeAfter": "1h"}})).await.unwrap();
    for invalid in ["yesterday", "2026-02-30T00:00:00Z", ""] {
        let refusal = ns.report_activity("alice", invalid).await.unwrap_err();
        assert_eq!(refusal.code, 422, "{invalid}: {refusal:?}");
    }
    ns.report_activity("alice", "2020-01-01T00:00:00Z").await.unwrap();
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    let closed = ns.wait_for_state("alice", State::Closed).await;
    assert_eq!(status(&closed).last_activity_time, None);
    ns.report_activity("alice", &Clock.now().to_string()).await.unwrap();
    // The operator observes this change after the report.
    let changed = ns.change("alice", json!({"ttlAfterClosed": "87600h"})).await.unwrap();
    let observed = |alice: &Conversation| status(alice).observed_generation == changed.metadata.generation;
    let after = ns.wait_for("alice", "observed", observed).await;
    assert_eq!((status(&after).state, status(&after).last_activity_time), (Some(State::Closed), None));
    assert_eq!(status(&after).closed_time, status(&closed).closed_time);
}

/// Applies the manifest in `path` with these arguments. Asserts that `kubectl diff` is empty and that the apply changes nothing.
async fn assert_applied_without_drift(ns: &TestNamespace, name: &str, path: &Path, arguments: &[&str]) {
    let kubectl = |verb: &str| {
        let mut command = Cluster::shared().kubectl();
        command.arg(verb).args(arguments).arg("--filename").arg(path);
        command
    };
    let before = ns.conversations().get(name).await.unwrap();
    common::succeed(&mut kubectl("diff"));
    common::succeed(&mut kubectl("apply"));
    let after = ns.conversations().get(name).await.unwrap();
    assert_eq!(before.metadata.resource_version, after.metadata.resource_version, "{name} {arguments:?}: {after:?}");
}

#[tokio::test]
async fn reapplied_manifest_shows_no_drift_and_writes_nothing() {
    let cluster = Cluster::shared();
    for arguments in [&[][..], &["--server-side"]] {
        let ns = cluster.test_namespace().await;
        let situations = [
            ("bound", json!({})),
            ("counted", json!({"contact": null, "timers": {"closeAfter": "1h"}})),
            ("idle", json!({"contact": null, "timers": {"inactiveAfter": "1s"}})),
            ("parked", json!({"contact": null, "state": "Inactive"})),
            ("closed", json!({"contact": null, "participants": null, "timers": {"closeAfter": "1s"}})),
        ];
        for (name, changes) in situations {
            let mut manifest = ns.conversation(name, changes);
            manifest.metadata.namespace = Some(ns.namespace.clone());
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.yaml"));
            std::fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
            let mut apply = cluster.kubectl();
            common::succeed(apply.arg("apply").args(arguments).arg("--filename").arg(&path));
            let alice = match name {
                "bound" => ns.wait_for_condition(name, ConditionType::Bound, ConditionStatus::True).await.0,
                "counted" => {
                    ns.wait_for_state(name, State::Active).await;
                    ns.report_activity(name, &Clock.now().to_string()).await.unwrap();
                    ns.wait_for(name, "counted", |object| status(object).last_activity_time.is_some()).await
                }
                "idle" | "parked" => ns.wait_for_state(name, State::Inactive).await,
                _ => ns.wait_for_state(name, State::Closed).await,
            };
            assert_applied_without_drift(&ns, name, &path, arguments).await;
            assert_eq!(alice.spec, manifest.spec, "the operator does not write the spec");
        }
    }
}

#[tokio::test]
async fn closed_conversation_is_deleted_after_its_time_to_live() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"ttlAfterClosed": "1s"})).await.unwrap();
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    let events = ns.wait_for_event("alice", "TTLExpired").await;
    assert!(events.iter().any(|event| event.reason.as_deref() == Some("Closed")), "{events:?}");
    assert_eq!(ns.conversations().get_opt("alice").await.unwrap(), None);
}

#[tokio::test]
async fn time_to_live_set_after_closing_counts_from_the_closing() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"state": "Closed"})).await.unwrap();
    ns.wait_for_state("alice", State::Closed).await;
    let changed = ns.change("alice", json!({"ttlAfterClosed": "87600h"})).await.unwrap();
    // The operator still updates observedGeneration, so that clients which wait for it see that nothing is in progress.
    let observed = |alice: &Conversation| status(alice).observed_generation == changed.metadata.generation;
    ns.wait_for("alice", "observed", observed).await;
    ns.change("alice", json!({"ttlAfterClosed": "1s"})).await.unwrap();
    ns.wait_for_event("alice", "TTLExpired").await;
}

#[tokio::test]
async fn closed_conversation_is_edited_without_effect() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    let closed = ns.wait_for_state("alice", State::Closed).await;
    let events = ns.wait_for_event("alice", "Closed").await;
    ns.wait_until_free().await;
    let elsewhere = TestNamespace { proxy: "+15017122662".to_owned(), ..ns.clone() };
    let changes = json!({
        "state": "Active",
        "contact": {"address": ns.contact, "displayName": "Alice"},
        "proxy": {"address": elsewhere.proxy},
        "participants": [],
        "timers": {"inactiveAfter": "1s", "closeAfter": null, "closeUnassignedAfter": "1s"},
    });
    let edited = ns.change("alice", changes).await.unwrap();

    let observed = |alice: &Conversation| status(alice).observed_generation == edited.metadata.generation;
    let alice = ns.wait_for("alice", "observed", observed).await;
    let mut expected = status(&closed).clone();
    expected.observed_generation = edited.metadata.generation;
    for condition in &mut expected.conditions {
        condition.observed_generation = edited.metadata.generation;
    }
    assert_eq!(status(&alice), &expected, "only the generation is another");
    for (ns, name) in [(&ns, "bob"), (&elsewhere, "carol")] {
        ns.create(name, json!({})).await.expect("alice holds neither binding");
        ns.bound(name).await;
    }
    assert_eq!(ns.wait_for_event("alice", "Closed").await, events, "no new Event is recorded");

    ns.change("alice", json!({"ttlAfterClosed": "1s"})).await.unwrap();
    ns.wait_for_event("alice", "TTLExpired").await;
    assert_eq!((ns.held_by().await, elsewhere.held_by().await), (Some("bob".into()), Some("carol".into())));
}

#[tokio::test]
async fn each_change_is_recorded_in_one_event() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"participants": [], "timers": {"inactiveAfter": "1s", "closeAfter": "2s"}}))
        .await
        .unwrap();
    let events = ns.wait_for_event("alice", "Closed").await;
    let mut recorded: Vec<_> = events
        .iter()
        .map(|event| {
            (event.reason.as_deref().unwrap(), event.type_.as_deref().unwrap(), event.note.as_deref().unwrap())
        })
        .collect();
    recorded.sort_unstable();
    let expected = [
        ("Closed", "Normal", "The conversation became Closed: the timer closeAfter expired"),
        ("Inactive", "Normal", "The conversation became Inactive: the timer inactiveAfter expired"),
        ("Unassigned", "Warning", "The conversation has no participants; no user receives its inbound messages"),
    ];
    assert_eq!(recorded, expected);
}
