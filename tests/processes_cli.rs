//! The command line, by the real binary: what it refuses, in one line with the remedy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::process::{Command, Output};

fn switchboard(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    command.args(arguments).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command.output().unwrap()
}

/// The one line that it complains in.
fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "it went well");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn an_api_server_that_is_not_there_is_named_with_the_remedy() {
    let directory = std::env::temp_dir().join(format!("switchboard-cli-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let authority = control_plane::Authority::new("test").unwrap();
    let serving = authority.issue("test").unwrap();
    let write = |name: &str, content: &str| {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let certificate = write("tls.crt", &serving.certificate);
    let key = write("tls.key", &serving.key);
    // Nobody listens on port 1.
    let kubeconfig = write(
        "kubeconfig",
        r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}"#,
    );
    let run = |key: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
        command.args(["run", "--webhook-address=127.0.0.1:0", "--health-address=127.0.0.1:0", "--log=off"]);
        command.arg(format!("--tls-cert-file={certificate}")).arg(format!("--tls-key-file={key}"));
        command.env("KUBECONFIG", &kubeconfig).output().unwrap()
    };
    let text = complaint(&run(&key));
    assert!(text.contains("https://127.0.0.1:1/ cannot be reached") && text.contains("check that it runs"), "{text}");
    let text = complaint(&run("/nonexistent/tls.key"));
    assert!(text.contains("/nonexistent/tls.key") && text.contains("--tls-key-file"), "{text}");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_grace_period_that_could_let_a_second_holder_in_is_refused() {
    let text = complaint(&switchboard(&["run", "--grace-period=39s"]));
    assert!(text.contains("at least 40s"), "{text}");
}

#[test]
fn a_lease_that_no_leader_can_renew_is_refused() {
    for lease in ["1s", "2500ms"] {
        let text = complaint(&switchboard(&["run", &format!("--lease-duration={lease}")]));
        assert!(text.contains("whole seconds, and at least 2s"), "{text}");
    }
}

#[test]
fn a_bad_flag_is_refused_with_what_is_allowed() {
    for (arguments, expected) in [
        (&["run", "--grace-period=soon"][..], "must be a duration such as 90s"),
        (&["run", "--webhook-address=here"][..], "--webhook-address"),
        (&["walk"][..], "unrecognized subcommand"),
        (&["run", "--otlp-endpoint=https://collector"][..], "http://collector"),
        (&["run", "--tls-cert-file=tls.crt"][..], "--tls-key-file"),
    ] {
        let output = switchboard(arguments);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn the_crds_are_printed_as_they_are_installed() {
    let output = switchboard(&["crds"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let kinds: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("  name: ")).collect();
    assert_eq!(kinds, ["conversations.switchboard.dev", "addressbindings.switchboard.dev"]);
}

#[test]
fn the_version_says_which_commit_and_which_kubernetes() {
    let text = String::from_utf8(switchboard(&["--version"]).stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], concat!("switchboard ", env!("CARGO_PKG_VERSION")));
    assert!(lines[1].starts_with("commit ") && lines[2].starts_with("for Kubernetes 1."), "{text}");
}

#[test]
fn a_shell_completes_what_there_is() {
    for shell in ["bash", "zsh", "fish"] {
        let output = switchboard(&["completions", shell]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("grace-period"), "{shell}: {text}");
    }
}

#[test]
fn a_check_that_cannot_reach_the_api_server_says_so_with_the_remedy() {
    let text = complaint(&switchboard(&["check"]));
    assert!(text.contains("no API server is configured") && text.contains("KUBECONFIG"), "{text}");
}
