//! Conversations that an earlier version of the schema admitted, under an operator that admits less. Tier: processes.

use super::faults_unseen::without_webhook;
use crate::common;
use crate::common::cluster::{TIMEOUT, TestNamespace, until};
use crate::common::fault_cluster::{FaultCluster, POLL_INTERVAL, exclusive_cluster};
use crate::testdata;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use switchboard::api::{AddressBinding, Conversation, State};
use tokio::time::{Instant, sleep};

fn apply_crd(cluster: &FaultCluster, crd: &Value) {
    let path = cluster.control_plane().data_dir().join("conversation-crd.json");
    std::fs::write(&path, crd.to_string()).unwrap();
    let apply = ["apply", "--server-side", "--force-conflicts", "--filename"];
    common::succeed(cluster.control_plane().kubectl().args(apply).arg(path));
}

/// Waits until the schema admits a scheme in front of an address, or no longer does.
async fn wait_until_schemes_are_admitted(ns: &TestNamespace, is_admitted: bool) {
    let probe = ns.conversation("probe", json!({"channel": "Chat", "contact": {"address": "tel:1"}}));
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let deadline = Instant::now() + TIMEOUT;
    while ns.create_object(&probe, &dry_run).await.is_ok() != is_admitted {
        assert!(Instant::now() < deadline, "is_admitted does not become {is_admitted}");
        sleep(POLL_INTERVAL).await;
    }
}

/// The claim that the conversation holds.
async fn claim_of(ns: &TestNamespace, conversation: &Conversation) -> AddressBinding {
    let name = conversation.status.as_ref().unwrap().address_binding_name.as_deref().unwrap();
    ns.claims().get(name).await.unwrap()
}

#[tokio::test]
async fn stored_address_with_a_scheme_keeps_and_releases_its_claim() {
    let cluster = exclusive_cluster().await;
    let (ns, _) = cluster.checked_namespace().await;
    let address = |channel: &str, scheme: &str| {
        json!({
            "channel": channel,
            "contact": {"address": format!("{scheme}:{}", ns.contact)},
            "proxy": {"address": format!("{scheme}:{}-desk", ns.contact)},
        })
    };
    let conversations = [
        ("closed", address("Messenger", "messenger")),
        ("deleted", address("Instagram", "tel")),
        ("unbound", address("AppleMessages", "applemessages")),
        ("timed", address("Chat", "whatsapp")),
    ];
    without_webhook(&cluster, async || {
        apply_crd(&cluster, &testdata::former_conversation_crd());
        wait_until_schemes_are_admitted(&ns, true).await;
        for (name, spec) in &conversations {
            ns.create(name, spec.clone()).await.unwrap();
        }
        apply_crd(&cluster, &serde_json::to_value(switchboard::api::conversation_crd().unwrap()).unwrap());
        wait_until_schemes_are_admitted(&ns, false).await;
    })
    .await;

    let mut claims = Vec::new();
    for (name, spec) in &conversations {
        let claim = claim_of(&ns, &ns.bound(name).await).await;
        assert_eq!(claim.spec.contact_address, spec["contact"]["address"].as_str().unwrap(), "as it is spelled");
        assert_eq!(claim.spec.conversation_ref.name, *name);
        claims.push(claim.metadata.name.unwrap());
        let labels = json!({"metadata": {"labels": {"team": "sales"}}});
        ns.conversations().patch(name, &PatchParams::default(), &Patch::Merge(labels)).await.unwrap();
        ns.change(name, json!({"participants": [{"identity": "agent-8"}]})).await.unwrap();
        ns.report_activity(name, "2026-01-01T00:00:00Z").await.unwrap();
        ns.bound(name).await;
    }
    let refusal = ns.create("again", conversations[0].1.clone()).await.unwrap_err();
    assert!(refusal.message.contains("48025: ") && refusal.message.contains("no scheme"), "{}", refusal.message);

    ns.change("closed", json!({"state": "Closed"})).await.unwrap();
    ns.wait_for_state("closed", State::Closed).await;
    ns.delete("deleted").await;
    ns.change("unbound", json!({"contact": null})).await.unwrap();
    ns.change("timed", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    ns.wait_for_state("timed", State::Closed).await;
    for name in claims {
        let gone = until(ns.claims(), &name, |claim: Option<&AddressBinding>| claim.is_none()).await;
        assert!(gone.is_some(), "{name} is still claimed");
    }
}
