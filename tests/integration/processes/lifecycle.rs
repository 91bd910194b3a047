//! The life of a conversation, by real API servers and replicas of the operator: conditions, timers, activity, closing.

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
async fn a_new_conversation_becomes_ready_and_bound() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({})).await.unwrap();
    let (alice, reason) = desk.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    assert_eq!(reason, ConditionReason::Bound);
    assert_eq!(condition(&alice, ConditionType::Bound), Some((ConditionStatus::True, ConditionReason::BindingHeld)));
    assert_eq!(condition(&alice, ConditionType::Unassigned), Some((ConditionStatus::False, ConditionReason::Assigned)));
    assert_eq!(condition(&alice, ConditionType::Stalled), None);
    assert_eq!(status(&alice).observed_generation, alice.metadata.generation);
    assert_eq!(status(&alice).address_binding_name.as_deref(), Some(desk.binding().as_str()));
    assert_eq!((status(&alice).state, status(&alice).state_reason), (Some(State::Active), Some(StateReason::Spec)));
}

#[tokio::test]
async fn activity_reported_from_the_future_counts_as_the_moment_at_which_it_was_seen() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"timers": {"closeAfter": "1h"}})).await.unwrap();
    desk.report_activity("alice", "9999-12-31T23:59:59Z").await.unwrap();
    let alice = desk.wait_for("alice", "counted", |alice| status(alice).last_activity_time.is_some()).await;
    assert!(status(&alice).last_activity_time.unwrap() <= Clock.now());
    // What cannot even be an instant here is passed over, and the next report counts.
    desk.report_activity("alice", "9999-12-31T23:59:59-14:00").await.unwrap();
    let now = Clock.now();
    desk.report_activity("alice", &now.to_string()).await.unwrap();
    desk.wait_for("alice", "corrected", |alice| status(alice).last_activity_time == Some(now)).await;
}

#[tokio::test]
async fn a_parked_conversation_stays_parked_until_its_spec_says_otherwise() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"state": "Inactive"})).await.unwrap();
    desk.wait_for_state("alice", State::Inactive).await;
    let now = Clock.now();
    desk.report_activity("alice", &now.to_string()).await.unwrap();
    let alice = desk.wait_for("alice", "counted", |alice| status(alice).last_activity_time == Some(now)).await;
    assert_eq!(status(&alice).state, Some(State::Inactive));
    desk.change("alice", json!({"state": "Active"})).await.unwrap();
    desk.wait_for_state("alice", State::Active).await;
}

#[tokio::test]
async fn a_longer_timer_moves_the_deadline() {
    let desk = Cluster::shared().desk().await;
    let created = desk.create("alice", json!({"timers": {"closeAfter": "30s"}})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let due = |after: Duration| {
        move |alice: &Conversation| {
            status(alice).deadlines.as_ref().is_some_and(|deadlines| deadlines.close_time == Some(created.after(after)))
        }
    };
    desk.wait_for("alice", "due in 30 s", due(Duration::from_secs(30))).await;
    desk.change("alice", json!({"timers": {"closeAfter": "87600h"}})).await.unwrap();
    desk.wait_for("alice", "due in ten years", due(Duration::from_hours(87_600))).await;
}

#[tokio::test]
async fn what_has_been_reported_before_the_creation_or_after_the_closing_moves_nothing() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"timers": {"closeAfter": "1h"}})).await.unwrap();
    for no_instant in ["yesterday", "2026-02-30T00:00:00Z", ""] {
        let refusal = desk.report_activity("alice", no_instant).await.unwrap_err();
        assert_eq!(refusal.code, 422, "{no_instant}: {refusal:?}");
    }
    desk.report_activity("alice", "2020-01-01T00:00:00Z").await.unwrap();
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    let closed = desk.wait_for_state("alice", State::Closed).await;
    assert_eq!(status(&closed).last_activity_time, None);
    desk.report_activity("alice", &Clock.now().to_string()).await.unwrap();
    // A change that the operator follows, after the report.
    let changed = desk.change("alice", json!({"ttlAfterClosed": "87600h"})).await.unwrap();
    let observed = |alice: &Conversation| status(alice).observed_generation == changed.metadata.generation;
    let after = desk.wait_for("alice", "observed", observed).await;
    assert_eq!((status(&after).state, status(&after).last_activity_time), (Some(State::Closed), None));
    assert_eq!(status(&after).closed_time, status(&closed).closed_time);
}

/// Applies what stands in `path`, which changes nothing and shows no difference, by this kind of apply.
async fn assert_applied_without_drift(desk: &TestNamespace, name: &str, path: &Path, arguments: &[&str]) {
    let kubectl = |verb: &str| {
        let mut command = Cluster::shared().kubectl();
        command.arg(verb).args(arguments).arg("--filename").arg(path);
        command
    };
    let before = desk.conversations().get(name).await.unwrap();
    common::succeed(&mut kubectl("diff"));
    common::succeed(&mut kubectl("apply"));
    let after = desk.conversations().get(name).await.unwrap();
    assert_eq!(before.metadata.resource_version, after.metadata.resource_version, "{name} {arguments:?}: {after:?}");
}

#[tokio::test]
async fn applying_the_same_manifest_again_shows_no_drift_and_writes_nothing_whatever_the_operator_did_in_between() {
    let cluster = Cluster::shared();
    for arguments in [&[][..], &["--server-side"]] {
        let desk = cluster.desk().await;
        let situations = [
            ("bound", json!({})),
            ("counted", json!({"contact": null, "timers": {"closeAfter": "1h"}})),
            ("idle", json!({"contact": null, "timers": {"inactiveAfter": "1s"}})),
            ("parked", json!({"contact": null, "state": "Inactive"})),
            ("closed", json!({"contact": null, "participants": null, "timers": {"closeAfter": "1s"}})),
        ];
        for (name, changes) in situations {
            let mut manifest = desk.conversation(name, changes);
            manifest.metadata.namespace = Some(desk.namespace.clone());
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.yaml"));
            std::fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
            let mut apply = cluster.kubectl();
            common::succeed(apply.arg("apply").args(arguments).arg("--filename").arg(&path));
            let alice = match name {
                "bound" => desk.wait_for_condition(name, ConditionType::Bound, ConditionStatus::True).await.0,
                "counted" => {
                    desk.wait_for_state(name, State::Active).await;
                    desk.report_activity(name, &Clock.now().to_string()).await.unwrap();
                    desk.wait_for(name, "counted", |object| status(object).last_activity_time.is_some()).await
                }
                "idle" | "parked" => desk.wait_for_state(name, State::Inactive).await,
                _ => desk.wait_for_state(name, State::Closed).await,
            };
            assert_applied_without_drift(&desk, name, &path, arguments).await;
            assert_eq!(alice.spec, manifest.spec, "the spec belongs to its author");
        }
    }
}

#[tokio::test]
async fn a_closed_conversation_is_deleted_when_its_time_to_live_is_over() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"ttlAfterClosed": "1s"})).await.unwrap();
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    let told = desk.wait_for_event("alice", "TTLExpired").await;
    assert!(told.iter().any(|event| event.reason.as_deref() == Some("Closed")), "{told:?}");
    assert_eq!(desk.conversations().get_opt("alice").await.unwrap(), None);
}

#[tokio::test]
async fn a_time_to_live_that_is_set_after_the_closing_counts_from_the_closing() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"state": "Closed"})).await.unwrap();
    desk.wait_for_state("alice", State::Closed).await;
    let changed = desk.change("alice", json!({"ttlAfterClosed": "87600h"})).await.unwrap();
    // The status follows the spec, so that who waits for it sees that nothing is in progress.
    let observed = |alice: &Conversation| status(alice).observed_generation == changed.metadata.generation;
    desk.wait_for("alice", "observed", observed).await;
    desk.change("alice", json!({"ttlAfterClosed": "1s"})).await.unwrap();
    desk.wait_for_event("alice", "TTLExpired").await;
}

#[tokio::test]
async fn people_are_told_each_fact_once() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"participants": [], "timers": {"inactiveAfter": "1s", "closeAfter": "2s"}}))
        .await
        .unwrap();
    let events = desk.wait_for_event("alice", "Closed").await;
    let mut told: Vec<_> = events
        .iter()
        .map(|event| {
            (event.reason.as_deref().unwrap(), event.type_.as_deref().unwrap(), event.note.as_deref().unwrap())
        })
        .collect();
    told.sort_unstable();
    let expected = [
        ("Closed", "Normal", "The conversation became Closed: the timer closeAfter expired"),
        ("Inactive", "Normal", "The conversation became Inactive: the timer inactiveAfter expired"),
        ("Unassigned", "Warning", "The conversation has no participants; no user receives its inbound messages"),
    ];
    assert_eq!(told, expected);
}
