//! `kubectl switchboard explain`.

use super::start::unconfigured;
use super::{plugin, run, stable, words};
use crate::common::cluster::Cluster;
use serde_json::json;
use switchboard::api::{ConditionStatus, ConditionType, State};

#[test]
fn code_is_explained_without_a_cluster() {
    let explain = |code| run(&mut unconfigured(&["explain", code]));
    let ran = explain("50433");
    let expected = "50433: an identity stands twice among the participants\n\
                    \n\
                    Each identity must be unique among spec.participants.\n\
                    \n\
                    Ways out:\n  \
                      - Remove the duplicate. kubectl switchboard assign and transfer never add an identity twice.\n";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), expected, ""));
    let ran = explain("48030");
    assert!(ran.code == Some(2) && ran.stderr.contains("the codes are 48025, 48026,"), "{}", ran.stderr);
}

#[tokio::test]
async fn waiting_conversation_is_explained_with_its_holder() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    namespace.bound("alice").await;
    namespace.create("bob", json!({"onConflict": "Wait", "participants": null})).await.unwrap();
    namespace.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::False).await;
    let name = &namespace.namespace;
    let ran = run(&mut plugin(cluster, &["explain", "bob", "--namespace", name]));
    let expected = format!(
        "Conversation {name}/bob is Active\n\
         \n\
         It has waited for its binding since TIME (AGE ago): another conversation holds it. It receives no messages, and its timers do not run. \
         The oldest conversation that waits gets the binding as soon as it is free\n\
         \n\
         48031: an outgoing conversation already exists for contact address {} and proxy address +15017122661 on SMS: conversation \
         {name}/alice holds the binding (Active, participants: agent-7). To proceed, ask a participant to close it or to transfer it to \
         you. If it is no longer needed, close it, remove its contact or delete it; this frees the binding immediately. For a concurrent \
         conversation, use a different proxy address.\n\
         \n\
         It has been unassigned since TIME (AGE ago): it has no participant, so no user receives its messages\n  \
           - Add a participant: kubectl switchboard assign {name}/bob --to IDENTITY\n  \
           - Or close it: kubectl switchboard close {name}/bob\n  \
           - If unassigned conversations keep appearing, check the inbound routing (autocreation) of the proxy, and set \
         spec.timers.closeUnassignedAfter\n",
        namespace.contact
    );
    assert_eq!((ran.code, words(&stable(&ran.stdout)), ran.stderr.as_str()), (Some(0), words(&expected), ""));
}

#[tokio::test]
async fn deadlines_and_their_timers_are_explained() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    let timers = json!({"inactiveAfter": "30m", "closeAfter": "24h", "closeUnassignedAfter": "4h"});
    namespace.create("alice", json!({"timers": timers})).await.unwrap();
    namespace.bound("alice").await;
    let place = format!("{}/alice", namespace.namespace);
    let ran = run(&mut plugin(cluster, &["explain", &place]));
    let expected = format!(
        "Conversation {place} is Active\n\
         \n\
         It holds its binding: inbound messages for it are routed here\n\
         \n\
         It becomes Inactive TIME (in AGE), unless there is activity: inactiveAfter is AGE\n\
         \n\
         It closes TIME (in AGE), which is final: closeAfter is AGE without activity\n  \
           - Activity postpones closeAfter\n  \
           - A timer that is set to never in spec.timers does not run, whatever the defaults are\n"
    );
    assert_eq!((ran.code, words(&stable(&ran.stdout))), (Some(0), words(&expected)));
    assert!(ran.stdout.contains("inactiveAfter is 30m") && ran.stdout.contains("closeAfter is 24h"), "{}", ran.stdout);
}

#[tokio::test]
async fn closed_and_unbound_conversations_are_explained() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({"timers": {"closeAfter": "1s"}, "ttlAfterClosed": "1h"})).await.unwrap();
    namespace.wait_for_state("alice", State::Closed).await;
    namespace.create("bob", json!({"contact": null, "state": "Inactive"})).await.unwrap();
    namespace.wait_for_state("bob", State::Inactive).await;
    let explain = |name: &str| {
        let ran = run(&mut plugin(cluster, &["explain", name, "--namespace", &namespace.namespace]));
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        words(&stable(&ran.stdout))
    };
    let alice = "It was closed TIME (AGE ago), because the timer closeAfter expired. It will be deleted TIME (in AGE)\n  \
                   - Closed is final. To continue with the contact, create another conversation: kubectl switchboard explain 50377\n";
    assert_eq!(explain("alice"), words(&format!("Conversation {}/alice is Closed {alice}", namespace.namespace)));
    let bob = "It is unbound: it has no contact, so no inbound message reaches it\n  \
                 - A contact cannot be added. To reach the contact, create another conversation\n\
               \n\
               It is Inactive, because spec.state says so\n  \
                 - Only a change of spec.state makes it Active; activity does not\n";
    assert_eq!(explain("bob"), words(&format!("Conversation {}/bob is Inactive {bob}", namespace.namespace)));

    let ran = run(&mut plugin(cluster, &["explain", "carol", "--namespace", &namespace.namespace]));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""));
    assert!(ran.stderr.contains("`kubectl switchboard explain CODE`"), "{}", ran.stderr);
}
