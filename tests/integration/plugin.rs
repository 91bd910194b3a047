//! Tests of `kubectl switchboard` as users type it, on a real control plane with the chart installed.

mod change;
mod complete;
mod documentation;
mod explain;
mod list;
mod start;
mod watch;
mod who;

use crate::common::cluster::{Cluster, TIMEOUT, TestNamespace};
use crate::common::succeed;
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use switchboard::api::Time;

/// The plugin, as the administrator, without colours.
fn plugin(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-switchboard"));
    command.args(arguments).env("KUBECONFIG", cluster.control_plane.kubeconfig());
    command
}

/// The result of a command: its exit code, and what it wrote.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// `text` with TIME for each time, and AGE for each duration after `in` or before `ago`.
fn stable(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_matches(['(', ')', ',', '.', ';']);
        let is_age = bare.strip_suffix(['s', 'm', 'h', 'd']).is_some_and(|number| number.parse::<u64>().is_ok());
        match bare {
            _ if bare.parse::<Time>().is_ok() => word.replace(bare, "TIME"),
            _ if is_age => word.replace(bare, "AGE"),
            _ => word.to_owned(),
        }
    };
    text.split('\n').map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("\n")
}

/// `text` with one space between its words, however it is aligned and wrapped.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Gives `user` these rights: in all namespaces, and in the one of the test. Waits until they are in force.
fn grant(cluster: &Cluster, namespace: &TestNamespace, user: &str, everywhere: &[Value], here: &[Value]) {
    let name = &namespace.namespace;
    let object = |kind: &str, content: Value| {
        let mut object =
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": user}});
        object.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
        if !kind.starts_with("Cluster") {
            object["metadata"]["namespace"] = json!(name);
        }
        object
    };
    let subjects = json!([{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}]);
    let role = |kind: &str| json!({"kind": kind, "name": user, "apiGroup": "rbac.authorization.k8s.io"});
    let items = [
        object("ClusterRole", json!({"rules": everywhere})),
        object("ClusterRoleBinding", json!({"subjects": subjects, "roleRef": role("ClusterRole")})),
        object("Role", json!({"rules": here})),
        object("RoleBinding", json!({"subjects": subjects, "roleRef": role("Role")})),
    ];
    let path = cluster.control_plane.data_dir().join(format!("{user}.json"));
    std::fs::write(&path, json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).unwrap();
    succeed(cluster.kubectl().args(["apply", "--filename"]).arg(path));
    let deadline = Instant::now() + TIMEOUT;
    for (rules, scope) in [(everywhere, "--all-namespaces"), (here, "--namespace")] {
        for rule in rules {
            let (verb, resource) = (rule["verbs"][0].as_str().unwrap(), rule["resources"][0].as_str().unwrap());
            let mut can = cluster.kubectl();
            can.args(["auth", "can-i", verb, &format!("{resource}.switchboard.dev"), "--as", user, scope]);
            if scope == "--namespace" {
                can.arg(name);
            }
            while !can.output().unwrap().status.success() {
                assert!(Instant::now() < deadline, "{user} may not {verb} {resource}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// A rule of a role.
fn rule(resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": ["switchboard.dev"], "resources": [resource], "verbs": verbs})
}
