//! docs/cli.md shows what the plugin prints: the test types each command of the guide, in its order. With UPDATE=1, it writes the outputs.

use super::{stable, words};
use crate::common::cluster::{Cluster, TestNamespace, create_namespace};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use switchboard::api::{ConditionStatus, ConditionType};

const GUIDE: &str = "docs/cli.md";

/// The conversations of the guide, in the namespace `helpdesk`: alice holds the binding for which bob waits, carol is unassigned.
async fn desk(cluster: &Cluster) -> TestNamespace {
    let namespace = TestNamespace {
        namespace: "helpdesk".to_owned(),
        contact: "+15557654321".to_owned(),
        ..cluster.test_namespace().await
    };
    create_namespace(&namespace.client, &namespace.namespace).await;
    namespace.create("alice", json!({"timers": {"inactiveAfter": "30m", "closeAfter": "24h"}})).await.unwrap();
    namespace.bound("alice").await;
    namespace.create("bob", json!({"onConflict": "Wait"})).await.unwrap();
    namespace.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::False).await;
    let carol = json!({
        "channel": "Email", "contact": {"address": "carol@example.com"}, "proxy": {"address": "desk@example.org"},
        "participants": null, "timers": {"closeUnassignedAfter": "4h"},
    });
    namespace.create("carol", carol).await.unwrap();
    namespace.bound("carol").await;
    namespace
}

/// `text` with times and ages replaced, and without alignment and line breaks, which depend on them.
fn comparable(text: &str) -> String {
    words(&stable(text))
}

/// The outputs of the guide that still hold, and new ones for the others.
fn answered(guide: &str, answer: impl Fn(&str) -> String) -> String {
    let mut text = String::new();
    for (index, part) in guide.split("```").enumerate() {
        let fence = if index == 0 { "" } else { "```" };
        text.push_str(fence);
        let Some(session) = part.strip_prefix("console\n") else {
            text.push_str(part);
            continue;
        };
        text.push_str("console\n");
        for step in session.split("$ ").filter(|step| !step.is_empty()) {
            let (command, shown) = step.split_once('\n').unwrap();
            let actual = answer(command);
            let is_so = comparable(shown) == comparable(&actual);
            let blank = if shown.ends_with("\n\n") { "\n" } else { "" };
            let output = if is_so { shown.to_owned() } else { format!("{actual}{blank}") };
            text.extend(["$ ", command, "\n", &output]);
        }
    }
    text
}

#[tokio::test]
async fn guide_shows_real_commands_and_outputs() {
    let cluster = Cluster::shared();
    let _desk = desk(cluster).await;
    let kubectl = cluster.kubectl();
    let directories = [Path::new(env!("CARGO_BIN_EXE_kubectl-switchboard")), Path::new(kubectl.get_program())];
    let path = directories.map(|program| program.parent().unwrap().display().to_string()).join(":");
    let path = format!("{path}:{}", std::env::var("PATH").unwrap());
    let answer = |command: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{command} 2>&1")]).env("PATH", &path);
        shell.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        String::from_utf8(shell.output().unwrap().stdout).unwrap()
    };
    let guide = std::fs::read_to_string(GUIDE).unwrap();
    let expected = answered(&guide, answer);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(GUIDE, &expected).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(GUIDE).unwrap(),
        expected,
        "run this test with UPDATE=1, and read what it wrote"
    );
}

#[test]
fn guide_names_every_command_and_exit_code() {
    let guide = std::fs::read_to_string(GUIDE).unwrap();
    let help = Command::new(env!("CARGO_BIN_EXE_kubectl-switchboard")).arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands = commands.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let commands: Vec<_> = commands.filter_map(|line| line.split(' ').next()).filter(|name| *name != "help").collect();
    assert!(commands.len() > 7, "{commands:?}");
    for command in commands {
        assert!(guide.contains(&format!("| `{command}")), "{GUIDE} lacks {command}");
    }
    let codes = help.split("Exit codes:\n").nth(1).unwrap();
    for line in codes.lines().filter(|line| !line.is_empty()) {
        let (code, meaning) = line.trim().split_once("  ").unwrap();
        assert!(guide.contains(&format!("| {code} | {meaning} |")), "{GUIDE} lacks the exit code: {line}");
    }
}
