//! The health of a conversation as kstatus computes it, with its own library, and as Argo CD computes it, with the chart's
//! `files/health.lua` in the Lua interpreter of Argo CD. Tier: chart.

use crate::common;
use control_plane::tools::{self, Tool};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use switchboard::api::{ConditionStatus, ConditionType, Conversation};
use switchboard::core::lifecycle::{BindingStatus, Defaults, LifecycleInput, decide};

/// The health of an object according to kstatus and to Argo CD, and the message that Argo CD shows.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    kstatus: String,
    argo: String,
    message: String,
}

fn judge(file: &Path) -> Verdict {
    let [health] = tools::ensure([Tool::Health]).unwrap_or_else(|error| panic!("{error}"));
    let script = Path::new(common::chart::CHART).join("files/health.lua");
    let verdict: Value = serde_json::from_str(&common::succeed(Command::new(health).arg(script).arg(file))).unwrap();
    let field = |name: &str| verdict[name].as_str().unwrap().to_owned();
    Verdict { kstatus: field("kstatus"), argo: field("argo"), message: field("message") }
}

/// The files of `tests/testdata/health`. Each is an object, and its comments state the expected health.
fn situations() -> Vec<(PathBuf, String)> {
    let directory = "tests/testdata/health";
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn kstatus_and_argo_cd_report_the_expected_health() {
    let situations = situations();
    assert!(situations.len() >= 8);
    for (path, text) in situations {
        let expected_of = |tool: &str| text.lines().find_map(|line| line.strip_prefix(tool)).unwrap().trim();
        let verdict = judge(&path);
        let expected = (expected_of("# kstatus:"), expected_of("# Argo CD:"));
        assert_eq!((verdict.kstatus.as_str(), verdict.argo.as_str()), expected, "{}", path.display());
        assert!(!verdict.message.is_empty(), "{}", path.display());
    }
}

fn is_unbound(conversation: &Conversation) -> bool {
    let conditions = conversation.status.iter().flat_map(|status| &status.conditions);
    let mut bound = conditions.filter(|condition| condition.type_ == ConditionType::Bound);
    bound.any(|condition| condition.status == ConditionStatus::False)
}

/// The files contain the status that the operator writes, not one that somebody assumed.
#[test]
fn health_testdata_has_the_status_that_the_operator_writes() {
    for (path, text) in situations() {
        let stored: Conversation = serde_saphyr::from_str(&text).unwrap();
        let input = LifecycleInput::of(&stored).unwrap();
        if !input.is_observed() {
            continue;
        }
        let held = input.binding.clone().map(|name| BindingStatus::Held { name, since: input.creation_time });
        let binding_status = if is_unbound(&stored) { Some(BindingStatus::HeldByAnother) } else { held };
        let status = stored.status.clone().unwrap();
        let time = status.state_transition_time.unwrap();
        let decided = decide(&input, &Defaults::default(), binding_status.as_ref(), time);
        assert_eq!(decided.status, status, "{}", path.display());
    }
}

/// The API server stores this status before the operator has observed the conversation.
#[tokio::test]
async fn new_conversation_is_in_progress_before_it_is_observed() {
    let conversations = Api::<Conversation>::namespaced(common::client().await, "default");
    let spec = json!({"channel": "SMS", "contact": {"address": "+15558675310"}, "proxy": {"address": "+15017122661"}});
    let object: Conversation = serde_json::from_value(json!({"metadata": {"name": "alice"}, "spec": spec})).unwrap();
    let stored = conversations.create(&PostParams::default(), &object).await.unwrap();
    let path = common::shared_control_plane().data_dir().join("alice.yaml");
    std::fs::write(&path, serde_json::to_string(&stored).unwrap()).unwrap();
    let expected = ["InProgress", "Progressing", "Waiting for controller"].map(str::to_owned);
    let Verdict { kstatus, argo, message } = judge(&path);
    assert_eq!([kstatus, argo, message], expected);
}
