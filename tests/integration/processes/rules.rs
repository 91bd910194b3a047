//! The rules of what a conversation is, each by a test that names it, and every way out of a 48031, typed as a user types it.
//! Rule 8, what became due unseen, is in `faults_lifecycle.rs`. Tier: processes.

use crate::common;
use crate::common::cluster::{Cluster, TestNamespace, condition};
use serde_json::json;
use std::process::Command;
use std::time::Duration;
use switchboard::api::{
    ConditionReason, ConditionStatus, ConditionType, Conversation, ConversationStatus, State, StateReason, Time,
};
use switchboard::clock::Clock;

fn status(conversation: &Conversation) -> &ConversationStatus {
    conversation.status.as_ref().unwrap()
}

/// Somebody at a shell with kubectl, at whose desk `alice` holds the binding and `bob` wants it.
struct User {
    desk: TestNamespace,
}

impl User {
    async fn new() -> Self {
        Self { desk: Cluster::shared().desk().await }
    }

    /// A conversation for this desk's binding, as it stands in a file; `rest` is more of its spec, a field a line.
    fn manifest(&self, name: &str, rest: &str) -> String {
        let TestNamespace { contact, proxy, .. } = &self.desk;
        let rest = rest.replace('\n', "\n  ");
        format!(
            "apiVersion: switchboard.dev/v1alpha1\nkind: Conversation\nmetadata:\n  name: {name}\nspec:\n  channel: SMS\n  \
             contact:\n    address: \"{contact}\"\n  proxy:\n    address: \"{proxy}\"\n  {rest}\n"
        )
    }

    fn shell(&self, line: &str) -> Command {
        let kubectl = Cluster::shared().kubectl();
        let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap());
        let arguments: Vec<String> = kubectl.get_args().map(quoted).collect();
        let (program, arguments) = (quoted(kubectl.get_program()), arguments.join(" "));
        let mut shell = Command::new("sh");
        for (name, value) in kubectl.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        let function = format!("kubectl() {{ {program} {arguments} --namespace {} \"$@\"; }}", self.desk.namespace);
        shell.arg("-c").arg(format!("set -eu\n{function}\n{line}"));
        shell
    }

    /// Types a command that succeeds, and reads what it prints.
    fn types(&self, line: &str) -> String {
        common::succeed(&mut self.shell(line))
    }

    /// Types a command that is refused, and reads why.
    fn is_refused(&self, line: &str) -> String {
        common::fail(&mut self.shell(line))
    }

    fn creates(&self, name: &str, rest: &str) {
        self.types(&format!("kubectl create --filename=- <<'END'\n{}END", self.manifest(name, rest)));
    }

    /// Wants the binding for `bob`, and is told who has it.
    fn is_told_48031(&self) -> String {
        let refusal =
            self.is_refused(&format!("kubectl create --filename=- <<'END'\n{}END", self.manifest("bob", BOB)));
        assert!(refusal.contains("48031: "), "{refusal}");
        assert!(refusal.contains(&format!("{}/alice", self.desk.namespace)), "the holder is named: {refusal}");
        refusal
    }

    fn patches_alice(&self, spec: &str) {
        self.types(&format!("kubectl patch conversation alice --type=merge --patch='{{\"spec\":{spec}}}'"));
    }

    /// Who has the binding, by the exact look-up.
    fn sees_who_holds_it(&self) -> String {
        let TestNamespace { contact, proxy, .. } = &self.desk;
        self.types(&format!(
            "kubectl get ab --field-selector=spec.contactAddress={contact},spec.proxyAddress={proxy} \
             --output=jsonpath='{{.items[*].spec.conversationRef.name}}'"
        ))
    }
}

const ALICE: &str = "participants:\n- identity: agent-7";
const BOB: &str = "participants:\n- identity: agent-8";
const NOBODY: &str = "participants: []";

// ---- The rules ----

#[tokio::test]
async fn rule_1_a_binding_has_at_most_one_holder() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    let refusal = user.is_told_48031();
    let said = "an outgoing conversation already exists for contact address";
    assert!(refusal.contains(said) && refusal.contains("proxy address"), "{refusal}");
    assert_eq!(user.sees_who_holds_it(), "alice");
    assert_eq!(user.desk.conversations().get_opt("bob").await.unwrap(), None);
}

#[tokio::test]
async fn rule_2_inactive_still_holds_its_binding() {
    let user = User::new().await;
    user.creates("alice", &format!("{ALICE}\nstate: Inactive"));
    user.types("kubectl wait conversation/alice --for=jsonpath='{.status.state}'=Inactive --timeout=60s");
    assert!(user.is_told_48031().contains("Inactive"));
}

#[tokio::test]
async fn rule_3_another_proxy_or_another_channel_is_another_binding() {
    let desk = Cluster::shared().desk().await;
    desk.create("sms", json!({})).await.unwrap();
    desk.create("other-proxy", json!({"proxy": {"address": "+15017122662"}})).await.unwrap();
    desk.create("other-channel", json!({"channel": "WhatsApp"})).await.unwrap();
    for name in ["sms", "other-proxy", "other-channel"] {
        desk.wait_for_condition(name, ConditionType::Bound, ConditionStatus::True).await;
    }
}

#[tokio::test]
async fn rule_4_a_binding_does_not_change() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    for spec in [
        r#"{"channel":"WhatsApp"}"#,
        r#"{"contact":{"address":"+15550000001"}}"#,
        r#"{"proxy":{"address":"+15017122662"}}"#,
    ] {
        let line = format!("kubectl patch conversation alice --type=merge --patch='{{\"spec\":{spec}}}'");
        let refusal = user.is_refused(&line);
        assert!(refusal.contains("must not change") && refusal.contains("create another conversation"), "{refusal}");
    }
    assert_eq!(user.sees_who_holds_it(), "alice");
}

#[tokio::test]
async fn rule_5_active_and_inactive_change_freely() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    for state in ["Inactive", "Active", "Inactive", "Active"] {
        user.patches_alice(&format!(r#"{{"state":"{state}"}}"#));
        user.types(&format!(
            "kubectl wait conversation/alice --for=jsonpath='{{.status.state}}'={state} --timeout=60s"
        ));
    }
}

#[tokio::test]
async fn rule_5_closed_is_final_also_where_a_timer_closed_it() {
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
async fn rule_6_timers_make_it_inactive_and_then_close_it_both_counted_from_the_last_activity() {
    let desk = Cluster::shared().desk().await;
    let created = desk.create("alice", json!({"timers": {"inactiveAfter": "1s", "closeAfter": "3s"}})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let alice = desk.wait_for_state("alice", State::Inactive).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::InactiveTimer));
    let deadlines = status(&alice).deadlines.clone().unwrap();
    assert_eq!((deadlines.inactive_time, deadlines.close_time), (None, Some(created.after(Duration::from_secs(3)))));
    assert_eq!(condition(&alice, ConditionType::Bound), Some((ConditionStatus::True, ConditionReason::BindingHeld)));

    let alice = desk.wait_for_state("alice", State::Closed).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::CloseTimer));
    assert!(status(&alice).closed_time.unwrap() >= created.after(Duration::from_secs(3)), "no timer is early");
    for (type_, expected) in
        [(ConditionType::Ready, ConditionStatus::True), (ConditionType::Bound, ConditionStatus::False)]
    {
        assert_eq!(condition(&alice, type_), Some((expected, ConditionReason::Closed)));
    }
    assert_eq!(alice.spec.state, None, "the spec belongs to its author");
    desk.wait_until_free().await;
}

#[tokio::test]
async fn rule_6_both_timers_count_from_the_last_activity() {
    let desk = Cluster::shared().desk().await;
    let timers = json!({"inactiveAfter": "10m", "closeAfter": "30m"});
    let created = desk.create("alice", json!({"timers": timers})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let alice = desk.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await.0;
    let deadlines = status(&alice).deadlines.clone().unwrap();
    let minute = Duration::from_mins(1);
    assert_eq!(deadlines.inactive_time, Some(created.after(10 * minute)));
    assert_eq!(deadlines.close_time, Some(created.after(30 * minute)), "and not 40");
}

#[tokio::test]
async fn rule_7_activity_wakes_what_a_timer_made_inactive_and_moves_the_deadlines() {
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
    let minute = Duration::from_mins(1);
    assert_eq!(deadlines.inactive_time, Some(now.after(50 * minute)));
    assert_eq!(deadlines.close_time, Some(now.after(60 * minute)));
}

#[tokio::test]
async fn rule_7_a_change_of_participants_labels_or_annotations_is_no_activity() {
    let user = User::new().await;
    user.creates("alice", &format!("{ALICE}\ntimers:\n  inactiveAfter: 1s\n  closeAfter: 1h"));
    let before = user.desk.wait_for_state("alice", State::Inactive).await;
    user.types("kubectl label conversation alice team=sales && kubectl annotate conversation alice note=called");
    user.patches_alice(r#"{"participants":[{"identity":"agent-8"}]}"#);
    let observed = |alice: &Conversation| status(alice).observed_generation == Some(2);
    let after = user.desk.wait_for("alice", "observed", observed).await;
    assert_eq!(status(&after).state, Some(State::Inactive), "nothing has woken it");
    assert_eq!(status(&after).last_activity_time, None);
    assert_eq!(status(&after).deadlines, status(&before).deadlines);
}

#[tokio::test]
async fn rule_9_the_last_participant_who_leaves_makes_it_unassigned() {
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
async fn rule_9_an_unassigned_conversation_is_closed_by_a_timer_of_its_own() {
    let desk = Cluster::shared().desk().await;
    let changes = json!({"participants": [], "timers": {"closeUnassignedAfter": "1s", "closeAfter": "1h"}});
    desk.create("alice", changes).await.unwrap();
    let alice = desk.wait_for_state("alice", State::Closed).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::UnassignedTimer));
}

#[tokio::test]
async fn rule_9_unassigned_is_easy_to_see() {
    let user = User::new().await;
    user.creates("alice", NOBODY);
    user.types("kubectl wait conversation/alice --for=condition=Unassigned --timeout=60s");
    let listed = user.types("kubectl get conversations --output=wide");
    let columns: Vec<_> = listed.lines().next().unwrap().split_whitespace().collect();
    assert!(columns.contains(&"ASSIGNED-TO") && columns.contains(&"UNASSIGNED"), "{listed}");
    let told = user.desk.wait_for_event("alice", "Unassigned").await;
    assert_eq!(told[0].type_.as_deref(), Some("Warning"));
    let described = user.types("kubectl events --for=conversation/alice");
    assert!(described.contains("no user receives its inbound messages"), "{described}");
}

// ---- Out of a 48031: the holder has a participant ----

#[tokio::test]
async fn out_of_48031_a_participant_closes_the_holder() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    let refusal = user.is_told_48031();
    assert!(
        refusal.contains("participants: agent-7") && refusal.contains("ask a participant to close it"),
        "{refusal}"
    );
    user.patches_alice(r#"{"state":"Closed"}"#);
    user.creates("bob", BOB);
    assert_eq!(user.sees_who_holds_it(), "bob");
}

#[tokio::test]
async fn out_of_48031_the_holder_is_transferred_to_the_user_who_wanted_a_new_one() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    assert!(user.is_told_48031().contains("or to transfer it to you"));
    user.patches_alice(r#"{"participants":[{"identity":"agent-8"}]}"#);
    let listed = user.types("kubectl get conversation alice");
    assert!(listed.contains("agent-8"), "{listed}");
    assert!(user.is_told_48031().contains("participants: agent-8"));
}

// ---- Out of a 48031: the holder is unassigned ----

#[tokio::test]
async fn out_of_48031_the_user_is_added_to_the_unassigned_holder() {
    let user = User::new().await;
    user.creates("alice", NOBODY);
    let refusal = user.is_told_48031();
    assert!(refusal.contains("unassigned") && refusal.contains("add a participant to it"), "{refusal}");
    user.patches_alice(r#"{"participants":[{"identity":"agent-8"}]}"#);
    user.types("kubectl wait conversation/alice --for=condition=Unassigned=False --timeout=60s");
}

#[tokio::test]
async fn out_of_48031_the_unassigned_holder_is_closed() {
    let user = User::new().await;
    user.creates("alice", NOBODY);
    assert!(user.is_told_48031().contains("If it is no longer needed, close it"));
    user.patches_alice(r#"{"state":"Closed"}"#);
    user.creates("bob", BOB);
}

// ---- Out of a 48031: the holder is not needed, and the binding is free at once ----

#[tokio::test]
async fn out_of_48031_the_contact_of_a_holder_that_is_not_needed_is_removed() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    assert!(user.is_told_48031().contains("remove its contact"));
    user.types(
        "kubectl patch conversation alice --type=json --patch='[{\"op\":\"remove\",\"path\":\"/spec/contact\"}]'",
    );
    user.creates("bob", BOB);
    assert_eq!(user.sees_who_holds_it(), "bob");
}

#[tokio::test]
async fn out_of_48031_a_holder_that_is_not_needed_is_deleted() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    assert!(user.is_told_48031().contains("or delete it; this frees the binding immediately"));
    user.types("kubectl delete conversation alice");
    user.creates("bob", BOB);
    assert_eq!(user.sees_who_holds_it(), "bob");
}

// ---- Out of a 48031: a separate, simultaneous conversation is wanted ----

#[tokio::test]
async fn out_of_48031_another_proxy_address_is_used() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    assert!(user.is_told_48031().contains("For a concurrent conversation, use a different proxy address"));
    let by_another_proxy = User { desk: TestNamespace { proxy: "+15017122662".to_owned(), ..user.desk.clone() } };
    by_another_proxy.creates("bob", BOB);
    assert_eq!((user.sees_who_holds_it(), by_another_proxy.sees_who_holds_it()), ("alice".into(), "bob".into()));
}

// ---- Out of a 48031: unassigned conversations keep appearing ----

#[tokio::test]
async fn out_of_48031_a_close_timer_ends_what_nobody_takes() {
    let user = User::new().await;
    user.creates("alice", NOBODY);
    let refusal = user.is_told_48031();
    let advice = ["check the inbound routing (autocreation) of the proxy", "set spec.timers.closeUnassignedAfter"];
    assert!(advice.iter().all(|advice| refusal.contains(advice)), "{refusal}");
    user.patches_alice(r#"{"timers":{"closeUnassignedAfter":"1s"}}"#);
    user.types("kubectl wait conversation/alice --for=jsonpath='{.status.state}'=Closed --timeout=60s");
    user.creates("bob", BOB);
}
