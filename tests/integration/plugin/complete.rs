//! Completion, as kubectl asks for it.

use super::run;
use crate::common::cluster::{Cluster, TestNamespace};
use serde_json::json;
use std::path::PathBuf;

/// The lines that kubectl passes to the shell for the last of `words`, without the help of each.
fn completed(cluster: &Cluster, namespace: &TestNamespace, words: &[&str]) -> Vec<String> {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(&namespace.namespace);
    if !directory.exists() {
        std::fs::create_dir(&directory).unwrap();
        for name in ["kubectl-switchboard", "kubectl_complete-switchboard"] {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kubectl-switchboard"), directory.join(name)).unwrap();
        }
    }
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let ran = run(cluster.kubectl().env("PATH", path).args(["__complete", "switchboard"]).args(words));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    ran.stdout.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn kubectl_completes_commands_flags_and_conversations() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    let name = namespace.namespace.as_str();
    let alice = format!("{name}/alice");
    for (words, expected) in [
        (&["tr"][..], &["transfer", ":4"][..]),
        (&["who", "S"], &["SMS", ":4"]),
        (&["explain", "5"], &["50377", "50433", ":4"]),
        (&["close", &format!("{name}/")], &[&alice, ":4"]),
        (&["close", "--namespace", name, ""], &["alice", ":4"]),
        (&["close", "--namespace", name, "b"], &[":4"]),
        (&["list", "--closing"], &["--closing-within", ":4"]),
    ] {
        assert_eq!(completed(cluster, &namespace, words), expected, "{words:?}");
    }
}
