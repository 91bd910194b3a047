//! `kubectl switchboard list`.

use super::{Ran, plugin, run, stable, words};
use crate::common::cluster::{Cluster, TestNamespace};
use crate::common::succeed;
use serde_json::{Value, json};
use switchboard::api::{ConditionStatus, ConditionType, State};

/// alice holds the binding, bob waits for it, carol is unassigned, and dave is closed.
async fn desk(cluster: &Cluster) -> TestNamespace {
    let namespace = cluster.test_namespace().await;
    namespace.create("dave", json!({"state": "Closed"})).await.unwrap();
    namespace.wait_for_state("dave", State::Closed).await;
    namespace.create("alice", json!({"timers": {"closeAfter": "24h"}})).await.unwrap();
    namespace.bound("alice").await;
    namespace.create("bob", json!({"onConflict": "Wait", "participants": [{"identity": "agent-9"}]})).await.unwrap();
    namespace.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::False).await;
    let carol =
        json!({"proxy": {"address": "Helpline"}, "participants": null, "timers": {"closeUnassignedAfter": "4h"}});
    namespace.create("carol", carol).await.unwrap();
    namespace.bound("carol").await;
    namespace
}

fn list(cluster: &Cluster, namespace: &TestNamespace, flags: &[&str]) -> Ran {
    run(plugin(cluster, &["list", "--namespace", &namespace.namespace]).args(flags))
}

/// The lines of a table, with one space between the cells.
fn rows(table: &str) -> Vec<String> {
    stable(table).lines().map(words).collect()
}

#[tokio::test]
async fn open_conversations_are_listed_as_a_table() {
    let cluster = Cluster::shared();
    let namespace = desk(cluster).await;
    let Ran { code, stdout, stderr } = list(cluster, &namespace, &[]);
    let contact = &namespace.contact;
    let header = "NAME CHANNEL CONTACT PROXY STATE ASSIGNED-TO BOUND CLOSES AGE";
    let expected = [
        header.to_owned(),
        format!("alice SMS {contact} +15017122661 Active agent-7 True in AGE AGE"),
        format!("bob SMS {contact} +15017122661 Active agent-9 False <none> AGE"),
        format!("carol SMS {contact} Helpline Active <none> True in AGE AGE"),
    ];
    assert_eq!((code, rows(&stdout), stderr.as_str()), (Some(0), expected.to_vec(), ""));

    let wide = rows(&list(cluster, &namespace, &["-owide"]).stdout);
    assert_eq!(wide[0], format!("{header} REASON INACTIVE UNASSIGNED MANAGED-BY"));
    assert!(wide[2].ends_with(" WaitingForBinding <none> <none> <none>"), "{wide:?}");
    assert!(wide[3].ends_with(" BindingHeld <none> AGE ago <none>"), "{wide:?}");
}

#[tokio::test]
async fn each_filter_selects_its_conversations() {
    let cluster = Cluster::shared();
    let namespace = desk(cluster).await;
    for (flags, expected) in [
        (&[][..], &["alice", "bob", "carol"][..]),
        (&["--unassigned"], &["carol"]),
        (&["--waiting"], &["bob"]),
        (&["--closing-within=25h"], &["carol", "alice"]),
        (&["--closing-within=5h"], &["carol"]),
        (&["--closing-within=1h"], &[]),
        (&["--held-by=agent-9"], &["bob"]),
        (&["--held-by=agent-7", "--closing-within=25h"], &["alice"]),
        (&["--held-by=agent-7", "--unassigned"], &[]),
    ] {
        let ran = list(cluster, &namespace, &[flags, &["--output=name"]].concat());
        let expected: Vec<_> = expected.iter().map(|name| format!("{}/{name}", namespace.namespace)).collect();
        let shown: Vec<_> = ran.stdout.lines().collect();
        assert_eq!(
            (ran.code, shown, ran.stderr.as_str()),
            (Some(0), expected.iter().map(String::as_str).collect(), ""),
            "{flags:?}"
        );
    }
    let ran = list(cluster, &namespace, &["--held-by=nobody"]);
    let note = format!("Note: no open conversation in {} matches\n", namespace.namespace);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr), (Some(0), "", note));
    let ran = list(cluster, &namespace, &["--closing-within=soon"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("must be a duration such as 90s"), "{}", ran.stderr);
}

#[tokio::test]
async fn all_namespaces_are_listed_with_theirs() {
    let cluster = Cluster::shared();
    let namespace = desk(cluster).await;
    let table = rows(&run(&mut plugin(cluster, &["list", "-A", "--waiting"])).stdout);
    assert!(table[0].starts_with("NAMESPACE NAME CHANNEL "), "{table:?}");
    let bob = format!("{} bob SMS {} ", namespace.namespace, namespace.contact);
    assert!(table.iter().any(|row| row.starts_with(&bob)), "{table:?}");
    let ran = run(&mut plugin(cluster, &["list", "-A", "--as=nobody"]));
    assert!(ran.code == Some(1) && ran.stderr.starts_with("error: cannot list the conversations of all namespaces: "));
}

#[tokio::test]
async fn json_and_yaml_are_those_of_kubectl() {
    let cluster = Cluster::shared();
    let namespace = desk(cluster).await;
    let kubectl =
        succeed(cluster.kubectl().args(["get", "conversations", "-ojson", "--namespace", &namespace.namespace]));
    let mut expected: Value = serde_json::from_str(&kubectl).unwrap();
    let items = expected["items"].as_array_mut().unwrap();
    items.retain(|item| item["metadata"]["name"] != "dave");
    let items = items.clone();
    let shown: Value = serde_json::from_str(&list(cluster, &namespace, &["-ojson"]).stdout).unwrap();
    assert_eq!(shown, json!({"apiVersion": "v1", "kind": "List", "items": items}));
    let yaml: Value = serde_saphyr::from_str(&list(cluster, &namespace, &["-oyaml"]).stdout).unwrap();
    assert_eq!(yaml, shown);
}
