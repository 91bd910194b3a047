//! What kstatus makes of a conversation, by its own library, and Argo CD, by the chart's `files/health.lua` in the Lua
//! that Argo CD runs it in. Tier: chart.

use crate::common;
use control_plane::tools::{self, Tool};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use switchboard::api::{ConditionStatus, ConditionType, Conversation};
use switchboard::core::lifecycle::{BindingStatus, LifecycleInput, decide};

/// What both make of an object: kstatus and Argo CD, and the text that the latter shows.
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

/// The situations of `tests/testdata/health`: each file is an object, and says in its comments what must be made of it.
fn situations() -> Vec<(PathBuf, String)> {
    let directory = "tests/testdata/health";
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn kstatus_and_argo_cd_read_every_situation_rightly() {
    let situations = situations();
    assert!(situations.len() >= 8);
    for (path, text) in situations {
        let said = |tool: &str| text.lines().find_map(|line| line.strip_prefix(tool)).unwrap().trim();
        let verdict = judge(&path);
        let expected = (said("# kstatus:"), said("# Argo CD:"));
        assert_eq!((verdict.kstatus.as_str(), verdict.argo.as_str()), expected, "{}", path.display());
        assert!(!verdict.message.is_empty(), "{}", path.display());
    }
}

fn is_unbound(conversation: &Conversation) -> bool {
    let conditions = conversation.status.iter().flat_map(|status| &status.conditions);
    let mut bound = conditions.filter(|condition| condition.type_ == ConditionType::Bound);
    bound.any(|condition| condition.status == ConditionStatus::False)
}

/// The data are what the operator writes, and not what somebody thought it would.
#[test]
fn every_situation_is_one_that_the_operator_brings_about() {
    for (path, text) in situations() {
        let stored: Conversation = serde_saphyr::from_str(&text).unwrap();
        let input = LifecycleInput::of(&stored).unwrap();
        if !input.is_observed() {
            continue;
        }
        let held = input.binding.clone().map(BindingStatus::Held);
        let holding = if is_unbound(&stored) { Some(BindingStatus::HeldByAnother) } else { held };
        let status = stored.status.clone().unwrap();
        let decided = decide(&input, holding.as_ref(), status.state_transition_time.unwrap());
        assert_eq!(decided.status, status, "{}", path.display());
    }
}

/// The one situation that the operator does not bring about: what the API server stores before the operator has seen it.
#[tokio::test]
async fn a_conversation_is_in_progress_from_the_moment_of_its_creation_on() {
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
