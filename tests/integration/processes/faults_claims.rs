//! Claims about hands that change what the operator alone may change: refused where the chart's policies stand, and where somebody
//! has removed them, repaired, with never two conversations that are called bound. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace, condition};
use crate::common::fault_cluster::{FaultCluster, HistoryChecker, POLL_INTERVAL, create_as_soon_as_possible, shared};
use crate::common::oracle::Oracle;
use crate::common::proxy::{Fault, Stage};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use switchboard::api::{AddressBinding, ConditionReason, ConditionStatus, ConditionType, Conversation};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

/// A cluster on which somebody has removed what keeps hands off.
async fn unguarded() -> &'static FaultCluster {
    static UNGUARDED: OnceCell<FaultCluster> = OnceCell::const_new();
    UNGUARDED
        .get_or_init(|| async {
            let faulty = FaultCluster::start(1).await;
            let policies = Api::<ValidatingAdmissionPolicyBinding>::all(faulty.client().await);
            for policy in ["switchboard-claims", "switchboard-status"] {
                policies.delete(policy, &DeleteParams::default()).await.unwrap();
            }
            wait_until_hands_are_free(&faulty).await;
            faulty
        })
        .await
}

/// The API server takes the removal up a moment later.
async fn wait_until_hands_are_free(faulty: &FaultCluster) {
    let (desk, _) = faulty.desk().await;
    desk.create("probe", json!({})).await.unwrap();
    desk.bound("probe").await;
    let dry_run = DeleteParams { dry_run: true, ..DeleteParams::default() };
    let deadline = Instant::now() + TIMEOUT;
    while desk.claims().delete(desk.binding().as_str(), &dry_run).await.is_err()
        || patch_status(&desk, "probe", json!({"closedTime": "2020-01-01T00:00:00Z"}), true).await.is_err()
    {
        assert!(Instant::now() < deadline, "the policies stay in force");
        sleep(POLL_INTERVAL).await;
    }
}

async fn unguarded_desk() -> (&'static FaultCluster, TestNamespace, HistoryChecker) {
    let faulty = unguarded().await;
    let (desk, _) = faulty.desk().await;
    let witness = faulty.witness(&desk, Oracle::default().with_claims_changed_by_hand());
    (faulty, desk, witness)
}

async fn patch_status(desk: &TestNamespace, name: &str, status: Value, dry_run: bool) -> kube::Result<Conversation> {
    let parameters = PatchParams { dry_run, ..PatchParams::default() };
    desk.conversations().patch_status(name, &parameters, &Patch::Merge(json!({"status": status}))).await
}

async fn edit_claim(desk: &TestNamespace, spec: Value) -> kube::Result<AddressBinding> {
    let patch = Patch::Merge(json!({"spec": spec}));
    desk.claims().patch(desk.binding().as_str(), &PatchParams::default(), &patch).await
}

fn assert_forbidden<T: std::fmt::Debug>(result: kube::Result<T>, policy: &str) {
    let status = match result {
        Err(kube::Error::Api(status)) => status,
        other => panic!("{other:?}"),
    };
    assert!(status.code == 403 && status.message.contains(policy), "{status:?}");
}

#[tokio::test]
async fn a_claim_is_not_made_changed_or_deleted_by_hand_not_even_by_an_administrator() {
    let (desk, mut witness) = shared().await.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    let before = desk.claim().await.unwrap();
    let name = desk.binding();
    assert_forbidden(desk.claims().delete(name.as_str(), &DeleteParams::default()).await, "switchboard-claims");
    let all = desk.claims().delete_collection(&DeleteParams::default(), &kube::api::ListParams::default()).await;
    assert_forbidden(all, "switchboard-claims");
    let stolen = json!({"conversationRef": {"name": "mallory"}});
    assert_forbidden(edit_claim(&desk, stolen).await, "switchboard-claims");
    let mut forged = AddressBinding::new("forged", before.spec.clone());
    forged.metadata.labels = None;
    assert_forbidden(desk.claims().create(&PostParams::default(), &forged).await, "switchboard-claims");
    assert_eq!(desk.claim().await.unwrap(), before);
    witness.show_rest().await;
}

#[tokio::test]
async fn a_status_is_not_wiped_or_forged_by_hand_not_even_by_an_administrator() {
    let (desk, mut witness) = shared().await.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    let before = desk.bound("alice").await;
    for status in [json!({"conditions": []}), json!({"state": "Closed"}), json!({"addressBindingName": null})] {
        assert_forbidden(patch_status(&desk, "alice", status, false).await, "switchboard-status");
    }
    assert_eq!(desk.conversations().get("alice").await.unwrap().status, before.status);
    witness.show_rest().await;
}

#[tokio::test]
async fn a_claim_that_was_deleted_by_hand_is_made_again_for_its_holder() {
    let (_faulty, desk, mut witness) = unguarded_desk().await;
    let alice = desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    desk.claims().delete(desk.binding().as_str(), &DeleteParams::default()).await.unwrap();
    witness.show_rest().await;
    let claim = desk.claim().await.unwrap();
    assert_eq!(claim.spec.conversation_ref.name, "alice");
    assert_eq!(Some(&claim.spec.admissions[0].uid), alice.metadata.uid.as_ref());
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
}

#[tokio::test]
async fn who_gets_in_while_a_claim_is_missing_is_bound_and_the_former_holder_is_not_until_it_is_free() {
    let (faulty, desk, mut witness) = unguarded_desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    let mut again =
        faulty.proxy.hold(Stage::Before, |call| call.is("POST", "/addressbindings") && call.mentions("\"alice\""));
    desk.claims().delete(desk.binding().as_str(), &DeleteParams::default()).await.unwrap();
    let too_late = loop {
        let held = again.next().await;
        // Other desks have conversations of that name, too.
        if held.call.mentions(desk.binding().as_str()) {
            break held;
        }
        held.resolve(Fault::Pass);
    };
    desk.create("bob", json!({})).await.expect("nothing says that alice holds it");
    too_late.resolve(Fault::Pass);
    drop(again);
    let (alice, reason) = desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::AddressAlreadyBound);
    let conditions = alice.status.unwrap().conditions;
    assert!(conditions.iter().any(|condition| condition.message.starts_with("48031: ")), "{conditions:?}");
    desk.bound("bob").await;
    witness.show_rest().await;
    desk.change("bob", json!({"state": "Closed"})).await.unwrap();
    desk.bound("alice").await;
    witness.show_rest().await;
}

#[tokio::test]
async fn a_claim_that_was_edited_to_name_nobody_names_its_holder_again() {
    let (_faulty, desk, mut witness) = unguarded_desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    edit_claim(&desk, json!({"conversationRef": {"name": "nobody"}})).await.unwrap();
    witness.show_rest().await;
    assert_eq!(desk.claim().await.unwrap().spec.conversation_ref.name, "alice");
}

#[tokio::test]
async fn a_claim_whose_admissions_were_removed_by_hand_keeps_its_holder() {
    let (_faulty, desk, mut witness) = unguarded_desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    edit_claim(&desk, json!({"admissions": []})).await.unwrap();
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    witness.show_rest().await;
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    create_as_soon_as_possible(&desk, "bob", json!({})).await;
    witness.show_rest().await;
}

#[tokio::test]
async fn a_claim_with_a_forged_uid_is_cleaned_after_the_grace_period() {
    let (_faulty, desk, mut witness) = unguarded_desk().await;
    let alice = desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    let time = "2020-01-01T00:00:00.000Z";
    let uids = [alice.metadata.uid.unwrap(), "forged".to_owned()];
    let admissions: Vec<_> = uids.iter().map(|uid| json!({"uid": uid, "time": time})).collect();
    edit_claim(&desk, json!({"admissions": admissions})).await.unwrap();
    witness.show_rest().await;
    assert_eq!(desk.claim().await.unwrap().spec.admissions.len(), 1);
}

#[tokio::test]
async fn a_status_that_was_wiped_by_hand_is_written_again() {
    let (_faulty, desk, mut witness) = unguarded_desk().await;
    desk.create("alice", json!({})).await.unwrap();
    let before = desk.bound("alice").await;
    let wiped = json!({"conditions": [], "state": null, "addressBindingName": null, "observedGeneration": null});
    patch_status(&desk, "alice", wiped, false).await.unwrap();
    let after = desk.bound("alice").await;
    witness.show_rest().await;
    let name = |conversation: &Conversation| conversation.status.as_ref().unwrap().address_binding_name.clone();
    assert_eq!(name(&after), name(&before));
}

#[tokio::test]
async fn of_two_that_hold_a_binding_because_of_a_claim_that_was_edited_one_is_called_bound() {
    let (_faulty, desk, mut witness) = unguarded_desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    edit_claim(&desk, json!({"conversationRef": {"name": "bob"}, "admissions": []})).await.unwrap();
    // He is admitted where the leader has not repaired the claim yet.
    let bob = desk.create("bob", json!({})).await;
    witness.show_rest().await;
    let stored = desk.conversations().list(&kube::api::ListParams::default()).await.unwrap();
    assert_eq!(stored.items.len(), 1 + usize::from(bob.is_ok()));
    let is_bound = |conversation: &&Conversation| {
        condition(conversation, ConditionType::Bound).is_some_and(|(status, _)| status == ConditionStatus::True)
    };
    assert_eq!(stored.items.iter().filter(is_bound).count(), 1);
}
