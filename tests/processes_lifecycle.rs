//! The life of a conversation, by real API servers and replicas of the operator: conditions, timers, activity, closing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

mod common;

use common::cluster::{Cluster, condition};
use serde_json::json;
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
async fn the_last_participant_who_leaves_makes_it_unassigned() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::False).await;
    desk.change("alice", json!({"participants": null})).await.unwrap();
    let (alice, reason) = desk.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::True).await;
    assert_eq!(reason, ConditionReason::NoParticipants);
    assert!(status(&alice).unassigned_time.unwrap() > Time::from(alice.metadata.creation_timestamp.as_ref().unwrap()));
    desk.change("alice", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    let (alice, _) = desk.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::False).await;
    assert_eq!(status(&alice).unassigned_time, None);
}

#[tokio::test]
async fn timers_make_it_inactive_and_then_close_it_and_free_its_binding() {
    let desk = Cluster::shared().desk().await;
    let created = desk.create("alice", json!({"timers": {"inactiveAfter": "1s", "closeAfter": "3s"}})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let alice = desk.wait_for_state("alice", State::Inactive).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::InactiveTimer));
    let deadlines = status(&alice).deadlines.clone().unwrap();
    assert_eq!((deadlines.inactive_time, deadlines.close_time), (None, Some(created.after(3_000))));
    assert_eq!(condition(&alice, ConditionType::Bound), Some((ConditionStatus::True, ConditionReason::BindingHeld)));

    let alice = desk.wait_for_state("alice", State::Closed).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::CloseTimer));
    assert!(status(&alice).closed_time.unwrap() >= created.after(3_000), "no timer is early");
    for (type_, expected) in
        [(ConditionType::Ready, ConditionStatus::True), (ConditionType::Bound, ConditionStatus::False)]
    {
        assert_eq!(condition(&alice, type_), Some((expected, ConditionReason::Closed)));
    }
    assert_eq!(alice.spec.state, None, "the spec belongs to its author");
    desk.wait_until_free().await;
}

#[tokio::test]
async fn an_unassigned_conversation_is_closed_by_its_own_timer() {
    let desk = Cluster::shared().desk().await;
    let changes = json!({"participants": [], "timers": {"closeUnassignedAfter": "1s", "closeAfter": "1h"}});
    desk.create("alice", changes).await.unwrap();
    let alice = desk.wait_for_state("alice", State::Closed).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::UnassignedTimer));
}

#[tokio::test]
async fn activity_wakes_what_a_timer_made_inactive_and_moves_the_deadlines() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"timers": {"inactiveAfter": "1s", "closeAfter": "1h"}})).await.unwrap();
    desk.wait_for_state("alice", State::Inactive).await;
    // A longer timer first, so that the conversation stays awake long enough to be looked at.
    desk.change("alice", json!({"timers": {"inactiveAfter": "50m"}})).await.unwrap();
    let now = Clock.now();
    desk.report_activity("alice", &now.to_string()).await.unwrap();
    let alice = desk.wait_for_state("alice", State::Active).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::Activity));
    assert_eq!(status(&alice).last_activity_time, Some(now));
    let deadlines = status(&alice).deadlines.clone().unwrap();
    let minute = 60_000;
    assert_eq!(deadlines.inactive_time, Some(now.after(50 * minute)));
    assert_eq!(deadlines.close_time, Some(now.after(60 * minute)));
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
async fn closed_by_a_timer_is_final() {
    let desk = Cluster::shared().desk().await;
    desk.create("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    desk.wait_for_state("alice", State::Closed).await;
    for changes in [json!({"state": "Active"}), json!({"contact": null}), json!({"participants": null})] {
        let refusal = desk.change("alice", changes).await.unwrap_err();
        assert!(refusal.message.contains("50377: "), "{refusal:?}");
    }
    desk.change("alice", json!({"state": "Closed", "timers": null})).await.expect("what has no effect may change");
}

#[tokio::test]
async fn a_longer_timer_moves_the_deadline() {
    let desk = Cluster::shared().desk().await;
    let created = desk.create("alice", json!({"timers": {"closeAfter": "30s"}})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let due = |after: u64| {
        move |alice: &Conversation| {
            status(alice).deadlines.as_ref().is_some_and(|deadlines| deadlines.close_time == Some(created.after(after)))
        }
    };
    desk.wait_for("alice", "due in 30 s", due(30_000)).await;
    desk.change("alice", json!({"timers": {"closeAfter": "87600h"}})).await.unwrap();
    desk.wait_for("alice", "due in ten years", due(315_360_000_000)).await;
}

#[tokio::test]
async fn applying_the_same_manifest_again_writes_nothing() {
    let desk = Cluster::shared().desk().await;
    let cluster = Cluster::shared();
    let path = cluster.control_plane.data_dir().join(format!("{}.yaml", desk.namespace));
    let mut manifest = desk.conversation("alice", json!({}));
    manifest.metadata.namespace = Some(desk.namespace.clone());
    std::fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
    let kubectl = |verb: &str| {
        let mut command = cluster.control_plane.kubectl();
        command.arg(verb).arg("--filename").arg(&path);
        command
    };
    common::succeed(&mut kubectl("apply"));
    let (alice, _) = desk.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    common::succeed(&mut kubectl("diff"));
    common::succeed(&mut kubectl("apply"));
    let again = desk.conversations().get("alice").await.unwrap();
    assert_eq!(again.metadata.resource_version, alice.metadata.resource_version);
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
        ("Closed", "Normal", "The conversation is Closed: the timer closeAfter elapsed"),
        ("Inactive", "Normal", "The conversation is Inactive: the timer inactiveAfter elapsed"),
        ("Unassigned", "Warning", "There is no participant: an inbound message reaches nobody"),
    ];
    assert_eq!(told, expected);
}
