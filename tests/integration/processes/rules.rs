//! The rules of a conversation, each with a test that names it, and every remedy for a 48031, with the commands of a user. Rule 8, about
//! timers that expire while no operator runs, is in `faults_lifecycle.rs`. Tier: processes.

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

/// A user with a shell and kubectl. In the user's namespace, `alice` holds the binding and the user wants it for `bob`.
struct User {
    ns: TestNamespace,
}

impl User {
    async fn new() -> Self {
        Self { ns: Cluster::shared().test_namespace().await }
    }

    /// The manifest of a conversation for this namespace's binding. `rest` holds more fields of the spec, one per line.
    fn manifest(&self, name: &str, rest: &str) -> String {
        let TestNamespace { contact, proxy, .. } = &self.ns;
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
        let function = format!("kubectl() {{ {program} {arguments} --namespace {} \"$@\"; }}", self.ns.namespace);
        shell.arg("-c").arg(format!("set -eu\n{function}\n{line}"));
        shell
    }

    /// Runs a command that must succeed, and returns its output.
    fn runs(&self, line: &str) -> String {
        common::succeed(&mut self.shell(line))
    }

    /// Runs a command that must be refused, and returns the refusal.
    fn is_refused(&self, line: &str) -> String {
        common::fail(&mut self.shell(line))
    }

    fn creates(&self, name: &str, rest: &str) {
        self.runs(&format!("kubectl create --filename=- <<'END'\n{}END", self.manifest(name, rest)));
    }

    /// Creates `bob`, and returns the refusal, which must name the holder.
    fn gets_48031(&self) -> String {
        let refusal =
            self.is_refused(&format!("kubectl create --filename=- <<'END'\n{}END", self.manifest("bob", BOB)));
        assert!(refusal.contains("48031: "), "{refusal}");
        assert!(
            refusal.contains(&format!("{}/alice", self.ns.namespace)),
            "the refusal does not name the holder: {refusal}"
        );
        refusal
    }

    fn patches_alice(&self, spec: &str) {
        self.runs(&format!("kubectl patch conversation alice --type=merge --patch='{{\"spec\":{spec}}}'"));
    }

    /// The name of the holder, by a look-up of the claim with field selectors.
    fn sees_holder(&self) -> String {
        let TestNamespace { contact, proxy, .. } = &self.ns;
        self.runs(&format!(
            "kubectl get ab --field-selector=spec.contactAddress={contact},spec.proxyAddress={proxy} \
             --output=jsonpath='{{.items[*].spec.conversationRef.name}}'"
        ))
    }
}

const ALICE: &str = "participants:\n- identity: agent-7";
const BOB: &str = "participants:\n- identity: agent-8";
const UNASSIGNED: &str = "participants: []";

// ---- The rules ----

#[tokio::test]
async fn rule_1_a_binding_has_at_most_one_holder() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    let refusal = user.gets_48031();
    let reason = "an outgoing conversation already exists for contact address";
    assert!(refusal.contains(reason) && refusal.contains("proxy address"), "{refusal}");
    assert_eq!(user.sees_holder(), "alice");
    assert_eq!(user.ns.conversations().get_opt("bob").await.unwrap(), None);
}

#[tokio::test]
async fn rule_2_inactive_still_holds_its_binding() {
    let user = User::new().await;
    user.creates("alice", &format!("{ALICE}\nstate: Inactive"));
    user.runs("kubectl wait conversation/alice --for=jsonpath='{.status.state}'=Inactive --timeout=60s");
    assert!(user.gets_48031().contains("Inactive"));
}

#[tokio::test]
async fn rule_3_another_proxy_or_another_channel_is_another_binding() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("sms", json!({})).await.unwrap();
    ns.create("other-proxy", json!({"proxy": {"address": "+15017122662"}})).await.unwrap();
    ns.create("other-channel", json!({"channel": "WhatsApp"})).await.unwrap();
    for name in ["sms", "other-proxy", "other-channel"] {
        ns.wait_for_condition(name, ConditionType::Bound, ConditionStatus::True).await;
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
    assert_eq!(user.sees_holder(), "alice");
}

#[tokio::test]
async fn rule_5_active_and_inactive_change_freely() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    for state in ["Inactive", "Active", "Inactive", "Active"] {
        user.patches_alice(&format!(r#"{{"state":"{state}"}}"#));
        user.runs(&format!("kubectl wait conversation/alice --for=jsonpath='{{.status.state}}'={state} --timeout=60s"));
    }
}

#[tokio::test]
async fn rule_5_closed_is_final_even_after_a_timer() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    ns.wait_for_state("alice", State::Closed).await;
    let changes = json!({"state": "Active", "participants": null, "timers": null});
    let edited = ns.change("alice", changes).await.expect("a change without effect is allowed");
    let observed = |alice: &Conversation| status(alice).observed_generation == edited.metadata.generation;
    let alice = ns.wait_for("alice", "observed", observed).await;
    assert_eq!(
        (status(&alice).state, status(&alice).state_reason),
        (Some(State::Closed), Some(StateReason::CloseTimer))
    );
    ns.create("bob", json!({})).await.expect("alice has not come back");
}

#[tokio::test]
async fn rule_6_timers_make_a_conversation_inactive_and_then_close_it() {
    let ns = Cluster::shared().test_namespace().await;
    let created = ns.create("alice", json!({"timers": {"inactiveAfter": "1s", "closeAfter": "3s"}})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let alice = ns.wait_for_state("alice", State::Inactive).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::InactiveTimer));
    let deadlines = status(&alice).deadlines.clone().unwrap();
    assert_eq!((deadlines.inactive_time, deadlines.close_time), (None, Some(created.after(Duration::from_secs(3)))));
    assert_eq!(condition(&alice, ConditionType::Bound), Some((ConditionStatus::True, ConditionReason::BindingHeld)));

    let alice = ns.wait_for_state("alice", State::Closed).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::CloseTimer));
    assert!(
        status(&alice).closed_time.unwrap() >= created.after(Duration::from_secs(3)),
        "the timer does not expire early"
    );
    for (type_, expected) in
        [(ConditionType::Ready, ConditionStatus::True), (ConditionType::Bound, ConditionStatus::False)]
    {
        assert_eq!(condition(&alice, type_), Some((expected, ConditionReason::Closed)));
    }
    assert_eq!(alice.spec.state, None, "the operator does not write the spec");
    ns.wait_until_free().await;
}

#[tokio::test]
async fn rule_6_both_timers_count_from_the_last_activity() {
    let ns = Cluster::shared().test_namespace().await;
    let timers = json!({"inactiveAfter": "10m", "closeAfter": "30m"});
    let created = ns.create("alice", json!({"timers": timers})).await.unwrap();
    let created = Time::from(created.metadata.creation_timestamp.as_ref().unwrap());
    let alice = ns.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await.0;
    let deadlines = status(&alice).deadlines.clone().unwrap();
    let minute = Duration::from_mins(1);
    assert_eq!(deadlines.inactive_time, Some(created.after(10 * minute)));
    assert_eq!(deadlines.close_time, Some(created.after(30 * minute)), "not 40 minutes: the timers do not add up");
}

#[tokio::test]
async fn rule_7_activity_reactivates_and_moves_the_deadlines() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({"timers": {"inactiveAfter": "1s", "closeAfter": "1h"}})).await.unwrap();
    ns.wait_for_state("alice", State::Inactive).await;
    // A longer timer keeps the conversation Active long enough for the checks.
    ns.change("alice", json!({"timers": {"inactiveAfter": "50m"}})).await.unwrap();
    let now = Clock.now();
    ns.report_activity("alice", &now.to_string()).await.unwrap();
    let alice = ns.wait_for_state("alice", State::Active).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::Activity));
    assert_eq!(status(&alice).last_activity_time, Some(now));
    let deadlines = status(&alice).deadlines.clone().unwrap();
    let minute = Duration::from_mins(1);
    assert_eq!(deadlines.inactive_time, Some(now.after(50 * minute)));
    assert_eq!(deadlines.close_time, Some(now.after(60 * minute)));
}

#[tokio::test]
async fn rule_7_change_of_participants_or_metadata_is_no_activity() {
    let user = User::new().await;
    user.creates("alice", &format!("{ALICE}\ntimers:\n  inactiveAfter: 1s\n  closeAfter: 1h"));
    let before = user.ns.wait_for_state("alice", State::Inactive).await;
    user.runs("kubectl label conversation alice team=sales && kubectl annotate conversation alice note=called");
    user.patches_alice(r#"{"participants":[{"identity":"agent-8"}]}"#);
    let observed = |alice: &Conversation| status(alice).observed_generation == Some(2);
    let after = user.ns.wait_for("alice", "observed", observed).await;
    assert_eq!(status(&after).state, Some(State::Inactive), "the changes are not activity");
    assert_eq!(status(&after).last_activity_time, None);
    assert_eq!(status(&after).deadlines, status(&before).deadlines);
}

#[tokio::test]
async fn rule_9_conversation_without_participants_is_unassigned() {
    let ns = Cluster::shared().test_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::False).await;
    ns.change("alice", json!({"participants": null})).await.unwrap();
    let (alice, reason) = ns.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::True).await;
    assert_eq!(reason, ConditionReason::NoParticipants);
    assert!(status(&alice).unassigned_time.unwrap() > Time::from(alice.metadata.creation_timestamp.as_ref().unwrap()));
    ns.change("alice", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    let (alice, _) = ns.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::False).await;
    assert_eq!(status(&alice).unassigned_time, None);
}

#[tokio::test]
async fn rule_9_unassigned_timer_closes_the_conversation() {
    let ns = Cluster::shared().test_namespace().await;
    let changes = json!({"participants": [], "timers": {"closeUnassignedAfter": "1s", "closeAfter": "1h"}});
    ns.create("alice", changes).await.unwrap();
    let alice = ns.wait_for_state("alice", State::Closed).await;
    assert_eq!(status(&alice).state_reason, Some(StateReason::UnassignedTimer));
}

#[tokio::test]
async fn rule_9_kubectl_shows_unassigned_conversations() {
    let user = User::new().await;
    user.creates("alice", UNASSIGNED);
    user.runs("kubectl wait conversation/alice --for=condition=Unassigned --timeout=60s");
    let listed = user.runs("kubectl get conversations --output=wide");
    let columns: Vec<_> = listed.lines().next().unwrap().split_whitespace().collect();
    assert!(columns.contains(&"ASSIGNED-TO") && columns.contains(&"UNASSIGNED"), "{listed}");
    let events = user.ns.wait_for_event("alice", "Unassigned").await;
    assert_eq!(events[0].type_.as_deref(), Some("Warning"));
    let described = user.runs("kubectl events --for=conversation/alice");
    assert!(described.contains("no user receives its inbound messages"), "{described}");
}

// ---- Remedies for a 48031: the holder has a participant ----

#[tokio::test]
async fn remedy_for_48031_a_participant_closes_the_holder() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    let refusal = user.gets_48031();
    assert!(
        refusal.contains("participants: agent-7") && refusal.contains("ask a participant to close it"),
        "{refusal}"
    );
    user.patches_alice(r#"{"state":"Closed"}"#);
    user.creates("bob", BOB);
    assert_eq!(user.sees_holder(), "bob");
}

#[tokio::test]
async fn remedy_for_48031_holder_is_transferred_to_the_user() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    assert!(user.gets_48031().contains("or to transfer it to you"));
    user.patches_alice(r#"{"participants":[{"identity":"agent-8"}]}"#);
    let listed = user.runs("kubectl get conversation alice");
    assert!(listed.contains("agent-8"), "{listed}");
    assert!(user.gets_48031().contains("participants: agent-8"));
}

// ---- Remedies for a 48031: the holder is unassigned ----

#[tokio::test]
async fn remedy_for_48031_user_joins_the_unassigned_holder() {
    let user = User::new().await;
    user.creates("alice", UNASSIGNED);
    let refusal = user.gets_48031();
    assert!(refusal.contains("unassigned") && refusal.contains("add a participant to it"), "{refusal}");
    user.patches_alice(r#"{"participants":[{"identity":"agent-8"}]}"#);
    user.runs("kubectl wait conversation/alice --for=condition=Unassigned=False --timeout=60s");
}

#[tokio::test]
async fn remedy_for_48031_unassigned_holder_is_closed() {
    let user = User::new().await;
    user.creates("alice", UNASSIGNED);
    assert!(user.gets_48031().contains("If it is no longer needed, close it"));
    user.patches_alice(r#"{"state":"Closed"}"#);
    user.creates("bob", BOB);
}

// ---- Remedies for a 48031: the holder is not needed, and the binding is free at once ----

#[tokio::test]
async fn remedy_for_48031_contact_of_an_unneeded_holder_is_removed() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    assert!(user.gets_48031().contains("remove its contact"));
    user.runs(
        "kubectl patch conversation alice --type=json --patch='[{\"op\":\"remove\",\"path\":\"/spec/contact\"}]'",
    );
    user.creates("bob", BOB);
    assert_eq!(user.sees_holder(), "bob");
}

#[tokio::test]
async fn remedy_for_48031_unneeded_holder_is_deleted() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    assert!(user.gets_48031().contains("or delete it; this frees the binding immediately"));
    user.runs("kubectl delete conversation alice");
    user.creates("bob", BOB);
    assert_eq!(user.sees_holder(), "bob");
}

// ---- Remedies for a 48031: a concurrent conversation is needed ----

#[tokio::test]
async fn remedy_for_48031_another_proxy_address_is_used() {
    let user = User::new().await;
    user.creates("alice", ALICE);
    assert!(user.gets_48031().contains("For a concurrent conversation, use a different proxy address"));
    let other_proxy = User { ns: TestNamespace { proxy: "+15017122662".to_owned(), ..user.ns.clone() } };
    other_proxy.creates("bob", BOB);
    assert_eq!((user.sees_holder(), other_proxy.sees_holder()), ("alice".into(), "bob".into()));
}

// ---- Remedies for a 48031: unassigned conversations keep appearing ----

#[tokio::test]
async fn remedy_for_48031_timer_closes_an_unassigned_holder() {
    let user = User::new().await;
    user.creates("alice", UNASSIGNED);
    let refusal = user.gets_48031();
    let advice = ["check the inbound routing (autocreation) of the proxy", "set spec.timers.closeUnassignedAfter"];
    assert!(advice.iter().all(|advice| refusal.contains(advice)), "{refusal}");
    user.patches_alice(r#"{"timers":{"closeUnassignedAfter":"1s"}}"#);
    user.runs("kubectl wait conversation/alice --for=jsonpath='{.status.state}'=Closed --timeout=60s");
    user.creates("bob", BOB);
}
