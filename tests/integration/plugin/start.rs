//! Flags, the kubeconfig, colours and exit codes of the plugin. Most of these tests need no cluster.

use super::{plugin, run};
use crate::common::cluster::Cluster;
use std::path::PathBuf;
use std::process::Command;

const WHO: [&str; 4] = ["who", "Chat", "alice", "desk"];

/// A kubeconfig with a cluster that does not exist.
fn kubeconfig(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("plugin-{name}.kubeconfig"));
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
                clusters: [{name: here, cluster: {server: 'https://127.0.0.1:1'}}]\n\
                users: [{name: me, user: {token: t}}]\n\
                contexts: [{name: here, context: {cluster: here, user: me}}]\n";
    std::fs::write(&path, text).unwrap();
    path
}

/// The plugin without a kubeconfig.
pub fn unconfigured(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-switchboard"));
    command.args(arguments).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command
}

#[test]
fn failure_names_cause_and_next_step() {
    let path = kubeconfig("failure");
    let flag = format!("--kubeconfig={}", path.display());
    for (arguments, code, expected) in [
        (&[][..], 1, ["error: no cluster is configured", "set KUBECONFIG, or pass --kubeconfig"]),
        (&["--kubeconfig=/nonexistent"], 1, ["the kubeconfig cannot be used", "/nonexistent"]),
        (
            &[&flag, "--context=there"],
            1,
            ["the kubeconfig cannot be used", "check --kubeconfig, --context and KUBECONFIG"],
        ),
        (&[&flag], 1, ["Connection refused", "check that the API server runs, and its address in the kubeconfig"]),
        (&[&flag, "--as-group=desk"], 2, ["--as-group needs --as", "a user"]),
        (&["--output=xml"], 2, ["invalid value 'xml'", "table, wide, json, yaml, name"]),
    ] {
        let ran = run(unconfigured(&WHO).args(arguments));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{arguments:?}");
        assert!(expected.iter().all(|part| ran.stderr.contains(part)), "{}", ran.stderr);
    }
}

#[test]
fn help_documents_exit_codes_and_every_flag() {
    let help = run(&mut unconfigured(&["--help"])).stdout;
    for part in ["Usage: kubectl switchboard", "Exit codes:", "  3  ", "NO_COLOR", "--context", "--kubeconfig", "--as "]
    {
        assert!(help.contains(part), "{part} is not in {help}");
    }
    let version = run(&mut unconfigured(&["--version"])).stdout;
    assert!(version.contains(concat!(" ", env!("CARGO_PKG_VERSION"), "\n")), "{version}");
}

/// Runs a command on a terminal. Python has one in its library.
pub fn on_a_terminal(command: &Command) -> Command {
    let mut python = Command::new("python3");
    let script = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    python.args(["-c", script]).arg(command.get_program()).args(command.get_args()).env("TERM", "xterm");
    python.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env_remove("NO_COLOR");
    python
}

#[tokio::test]
async fn colours_are_used_on_a_terminal_only() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", serde_json::json!({})).await.unwrap();
    let command = plugin(cluster, &["who", "SMS", &namespace.contact, &namespace.proxy]);
    let shown = run(&mut on_a_terminal(&command));
    assert!(shown.stdout.contains("\u{1b}[32mActive\u{1b}[0m"), "{shown:?}");
    for plain in [run(on_a_terminal(&command).env("NO_COLOR", "1")), run(on_a_terminal(&command).env("TERM", "dumb"))] {
        assert!(plain.stdout.contains("Active") && !plain.stdout.contains('\u{1b}'), "{plain:?}");
    }
}
