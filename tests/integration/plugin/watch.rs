//! `kubectl switchboard watch`.

use super::start::on_a_terminal;
use super::{plugin, run};
use crate::common::cluster::{Cluster, TIMEOUT};
use serde_json::json;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

/// Waits until the screen shows `text`, and returns what it has shown until then.
fn shown_until(output: &Receiver<String>, text: &str) -> String {
    let deadline = Instant::now() + TIMEOUT;
    let mut shown = String::new();
    while !shown.contains(text) {
        let left = deadline.saturating_duration_since(Instant::now());
        shown += &output.recv_timeout(left).unwrap_or_else(|error| panic!("{error}: {text:?} is not in {shown:?}"));
    }
    shown
}

#[tokio::test]
async fn table_follows_changes_until_the_user_interrupts_it() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({})).await.unwrap();
    let command = plugin(cluster, &["watch", "--namespace", &namespace.namespace]);
    let mut terminal = on_a_terminal(&command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (sender, output) = mpsc::channel();
    let mut stdout = terminal.stdout.take().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut bytes) {
            if sender.send(String::from_utf8_lossy(&bytes[..count]).into_owned()).is_err() {
                return;
            }
        }
    });
    let first = shown_until(&output, "agent-7");
    assert!(first.starts_with("\u{1b}[?1049h") && first.contains("NAME") && first.contains("alice"), "{first:?}");
    namespace.change("alice", json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
    shown_until(&output, "agent-8");
    namespace.create("bob", json!({"onConflict": "Wait"})).await.unwrap();
    shown_until(&output, "bob");
    namespace.change("alice", json!({"state": "Closed"})).await.unwrap();
    namespace.bound("bob").await;
    shown_until(&output, &format!("Open conversations in {}: 1, ", namespace.namespace));

    terminal.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    shown_until(&output, "\u{1b}[?1049l");
    assert!(terminal.wait().unwrap().success());
}

#[tokio::test]
async fn watch_without_a_terminal_is_refused() {
    let cluster = Cluster::shared();
    let ran = run(&mut plugin(cluster, &["watch"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    assert!(
        ran.stderr.contains("use `kubectl switchboard list`, or `kubectl get conversations --watch`"),
        "{}",
        ran.stderr
    );
}
