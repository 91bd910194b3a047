//! `kubectl switchboard transfer`, `assign`, `unassign`, `close` and `release`.

use super::{Ran, plugin, run};
use crate::common::cluster::{Cluster, TestNamespace};
use crate::common::gitops::{FLUX_NAMESPACE, Kustomization};
use crate::common::proxy::{Fault, Proxy, Stage};
use crate::common::succeed;
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use std::path::PathBuf;
use switchboard::api::{Conversation, State};

/// A proxy in front of the API server, and a kubeconfig of the administrator that goes through it.
async fn behind_a_proxy(cluster: &Cluster) -> (Proxy, PathBuf) {
    let proxy = Proxy::to_api_server(&cluster.control_plane, 0).await;
    let kubeconfig = Kubeconfig::read_from(cluster.control_plane.kubeconfig()).unwrap();
    let token = serde_json::to_value(kubeconfig).unwrap()["users"][0]["user"]["token"].as_str().unwrap().to_owned();
    let path = proxy.kubeconfig(&cluster.control_plane, &token);
    (proxy, path)
}

/// Runs a change of conversation alice, which must succeed, and returns what it did.
fn change(cluster: &Cluster, namespace: &TestNamespace, arguments: &[&str]) -> String {
    let [verb, flags @ ..] = arguments else { panic!("no verb") };
    let place = format!("{}/alice", namespace.namespace);
    let Ran { code, stdout, stderr } = run(plugin(cluster, &[verb, &place]).args(flags));
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{arguments:?}");
    let done = stdout.strip_prefix(&format!("conversation {place} ")).unwrap_or_else(|| panic!("{stdout}"));
    done.strip_suffix('\n').unwrap().to_owned()
}

async fn participants(namespace: &TestNamespace) -> Vec<String> {
    let spec = namespace.conversations().get("alice").await.unwrap().spec;
    spec.participants.unwrap_or_default().into_iter().map(|participant| participant.identity).collect()
}

#[tokio::test]
async fn participants_are_changed_as_named() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    for (arguments, done, after) in [
        (&["transfer", "--to=agent-9"][..], "transferred from agent-7 to agent-9", &["agent-9"][..]),
        (&["transfer", "--to", "agent-9"], "unchanged: agent-9 is a participant already", &["agent-9"]),
        (&["assign", "--to=agent-1", "--to=agent-9"], "assigned to agent-1", &["agent-9", "agent-1"]),
        (
            &["transfer", "--from=agent-1", "--to=agent-2"],
            "transferred from agent-1 to agent-2",
            &["agent-9", "agent-2"],
        ),
        (&["unassign", "--from=agent-9"], "unassigned from agent-9", &["agent-2"]),
        (&["unassign", "--all"], "unassigned from agent-2; it has no participants now", &[]),
        (&["assign", "--to=agent-3", "--dry-run=server"], "assigned to agent-3 (server dry run)", &[]),
    ] {
        assert_eq!(change(cluster, &namespace, arguments), done);
        assert_eq!(participants(&namespace).await, after, "{arguments:?}");
    }
}

#[tokio::test]
async fn close_and_release_free_the_binding() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    namespace.bound("alice").await;
    assert_eq!(change(cluster, &namespace, &["release"]), "released: its contact is removed");
    namespace.wait_until_free().await;
    assert_eq!(change(cluster, &namespace, &["release"]), "unchanged: it has no contact and holds no binding");
    assert_eq!(change(cluster, &namespace, &["close"]), "closed");
    namespace.wait_for_state("alice", State::Closed).await;
    assert_eq!(change(cluster, &namespace, &["close"]), "unchanged: it is Closed already");

    let place = format!("{}/alice", namespace.namespace);
    let ran = run(&mut plugin(cluster, &["assign", &place, "--to=agent-9"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    let expected =
        format!("error: conversation {place} is Closed, which is final: the change would have no effect (50377).");
    assert!(ran.stderr.starts_with(&expected), "{}", ran.stderr);
}

#[tokio::test]
async fn diff_shows_the_change_of_the_spec() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    let TestNamespace { namespace: name, contact, .. } = &namespace;
    let flags = ["transfer", "alice", "--namespace", name, "--to=agent-9", "--diff", "--dry-run=server"];
    let ran = run(&mut plugin(cluster, &flags));
    let expected = [
        format!("--- {name}/alice"),
        format!("+++ {name}/alice"),
        "@@ -3,6 +3,6 @@".to_owned(),
        "   contact:".to_owned(),
        format!("     address: \"{contact}\""),
        "   participants:".to_owned(),
        "-  - identity: agent-7".to_owned(),
        "+  - identity: agent-9".to_owned(),
        "   proxy:".to_owned(),
        "     address: \"+15017122661\"".to_owned(),
        format!("conversation {name}/alice transferred from agent-7 to agent-9 (server dry run)\n"),
    ];
    let expected = expected.join("\n");
    assert_eq!((ran.code, ran.stdout, ran.stderr.as_str()), (Some(0), expected, ""));
    assert_eq!(participants(&namespace).await, ["agent-7"]);
}

#[tokio::test]
async fn change_is_printed_as_kubectl_prints_it() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    namespace.bound("alice").await;
    let place = format!("{}/alice", namespace.namespace);
    let ran = run(&mut plugin(cluster, &["transfer", &place, "--to=agent-9", "-ojson"]));
    let shown: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(shown["spec"]["participants"], json!([{"identity": "agent-9"}]));
    assert!(shown["kind"] == "Conversation" && shown["metadata"].get("managedFields").is_none(), "{shown}");
    assert_eq!(run(&mut plugin(cluster, &["transfer", &place, "--to=agent-7", "-oname"])).stdout, format!("{place}\n"));
}

/// Transfers alice to agent-9, while `change` is made between the read and the write.
async fn transfer_during(
    cluster: &Cluster,
    namespace: &TestNamespace,
    change: impl Future<Output = Conversation>,
) -> Ran {
    namespace.create("alice", json!({})).await.unwrap();
    namespace.bound("alice").await;
    let (proxy, kubeconfig) = behind_a_proxy(cluster).await;
    let mut patches = proxy.hold(Stage::Before, |call| call.method == hyper::Method::PATCH);
    let mut command = plugin(cluster, &["transfer", "alice", "--namespace", &namespace.namespace, "--to=agent-9"]);
    command.env("KUBECONFIG", kubeconfig);
    let running = std::thread::spawn(move || run(&mut command));
    let held = patches.next().await;
    change.await;
    held.resolve(Fault::Pass);
    drop(patches);
    running.join().unwrap()
}

#[tokio::test]
async fn change_of_an_outdated_conversation_is_refused() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    let other = async { namespace.change("alice", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap() };
    let ran = transfer_during(cluster, &namespace, other).await;
    let expected = format!(
        "error: conversation {}/alice has changed since it was read, so the API server refused this change. Run the command again: it \
         starts from the current state\n",
        namespace.namespace
    );
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr), (Some(1), "", expected));
    assert_eq!(participants(&namespace).await, ["agent-8"]);
}

#[tokio::test]
async fn change_is_repeated_if_only_the_status_changed() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    let activity = async { namespace.report_activity("alice", "2026-01-01T10:00:00Z").await.unwrap() };
    let ran = transfer_during(cluster, &namespace, activity).await;
    let expected = format!("conversation {}/alice transferred from agent-7 to agent-9\n", namespace.namespace);
    assert_eq!((ran.code, ran.stdout, ran.stderr.as_str()), (Some(0), expected, ""));
    assert_eq!(participants(&namespace).await, ["agent-9"]);
}

#[tokio::test]
async fn impossible_change_names_the_next_step() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({"participants": null})).await.unwrap();
    let name = &namespace.namespace;
    let place = format!("{name}/alice");
    for (arguments, code, expected) in [
        (&["transfer", &place, "--to=agent-9"][..], 1, format!("`kubectl switchboard assign {place} --to agent-9`")),
        (&["unassign", &place, "--from=agent-7"], 0, String::new()),
        (&["close", "nobody", "--namespace", name], 3, format!("error: there is no conversation {name}/nobody.")),
        (&["close", &place, "--namespace=elsewhere"], 2, "is not in the namespace elsewhere of --namespace".to_owned()),
        (&["close", "Alice"], 2, "must be NAME or NAMESPACE/NAME".to_owned()),
        (&["unassign", &place], 2, "--from <IDENTITY>|--all".to_owned()),
        (&["assign", &place, "--to= "], 1, "must be printable ASCII".to_owned()),
        (&["close", &place, "--as=nobody"], 1, "ask an administrator for this permission".to_owned()),
    ] {
        let ran = run(&mut plugin(cluster, arguments));
        assert_eq!(ran.code, Some(code), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(&expected), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn change_of_a_field_that_flux_owns_warns() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    let name = &namespace.namespace;
    let flux = Kustomization::new(&cluster.control_plane, name);
    let manifest = |changes| [namespace.manifest("alice", changes)];
    flux.apply("open", &manifest(json!({"participants": null}))).await;

    // Git does not mention participants, so people may change them, and the next reconciliation leaves them.
    assert_eq!(change(cluster, &namespace, &["assign", "--to=agent-9"]), "assigned to agent-9");
    assert!(flux.reconcile().await.is_ready());
    assert_eq!(participants(&namespace).await, ["agent-9"]);

    flux.apply("assign", &manifest(json!({}))).await;
    let place = format!("{name}/alice");
    let ran = run(&mut plugin(cluster, &["unassign", &place, "--from=agent-7"]));
    let expected = format!(
        "Warning: spec.participants belongs to Flux Kustomization {FLUX_NAMESPACE}/{name}, which sets it again when it reconciles. Change \
         it in Git instead."
    );
    assert!(ran.code == Some(0) && ran.stderr.starts_with(&expected), "{ran:?}");
    assert!(flux.reconcile().await.is_ready());
    assert!(participants(&namespace).await.contains(&"agent-7".to_owned()), "Flux sets it again");

    let ran = run(&mut plugin(cluster, &["release", &place, "--dry-run=server"]));
    assert!(ran.stderr.contains("adds the contact again when it reconciles: that is refused"), "{}", ran.stderr);
    assert_eq!(change(cluster, &namespace, &["close"]), "closed", "Git does not mention the state");
}

#[tokio::test]
async fn change_of_a_field_that_helm_owns_warns() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    let name = &namespace.namespace;
    let chart = cluster.control_plane.data_dir().join(format!("{name}-chart"));
    std::fs::create_dir_all(chart.join("templates")).unwrap();
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: desk\nversion: 0.1.0\n").unwrap();
    std::fs::write(chart.join("templates/alice.yaml"), namespace.manifest("alice", json!({})).to_string()).unwrap();
    let mut helm = cluster.control_plane.helm().unwrap();
    succeed(helm.args(["install", "desk"]).arg(chart).args(["--namespace", name]));
    let ran = run(&mut plugin(cluster, &["transfer", &format!("{name}/alice"), "--to=agent-9"]));
    let expected = format!(
        "Warning: spec.participants belongs to Helm release {name}/desk, which sets it again at the next upgrade. Change it in the values of \
         the release instead\n"
    );
    assert_eq!((ran.code, ran.stderr), (Some(0), expected));
}
