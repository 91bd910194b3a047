//! Claims about faults of the processes and of the network between them: the operator killed around each write that it makes,
//! suspended, cut off or blind; the API server and etcd killed. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace};
use crate::common::fake_webhook::{FakeWebhook, Verdict};
use crate::common::fault_cluster::{
    FaultCluster, POLL_INTERVAL, claim_create, claim_delete, claim_replace, create_as_soon_as_possible, create_denied,
    exclusive_cluster, is_to_be_repeated, kill_around, status_write,
};
use crate::common::proxy::{Call, Fault, Proxy, Stage};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType, State};
use tokio::time::{sleep, timeout};

/// A create that is under way when the operator is killed fails, or is stored.
async fn create_while_it_dies(desk: &TestNamespace, name: &str) {
    let answer = desk.create(name, json!({})).await;
    assert!(answer.is_err(), "a create that nobody answered was admitted: {answer:?}");
}

#[tokio::test]
async fn killed_before_a_claim_is_made_nothing_is_claimed() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    kill_around(&faulty, Stage::Before, claim_create(&desk), create_while_it_dies(&desk, "alice")).await;
    desk.create("bob", json!({})).await.expect("nothing was claimed");
    witness.show_rest().await;
    assert_eq!(desk.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn killed_after_a_claim_was_made_the_same_name_has_it_at_once() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    kill_around(&faulty, Stage::After, claim_create(&desk), create_while_it_dies(&desk, "alice")).await;
    let refusal = desk.create("bob", json!({})).await.expect_err("alice may still be stored");
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    desk.create("alice", json!({})).await.expect("the same name at once");
    witness.show_rest().await;
}

#[tokio::test]
async fn killed_after_a_claim_was_made_others_have_it_after_the_grace_period() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    kill_around(&faulty, Stage::After, claim_create(&desk), create_while_it_dies(&desk, "alice")).await;
    // The lease of the one that was killed has to expire, too.
    create_as_soon_as_possible(&desk, "bob", json!({})).await;
    witness.show_rest().await;
}

async fn killed_around_an_addition(stage: Stage) {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let _other = faulty.deny_some(&desk).await;
    create_denied(&desk, "alice").await;
    kill_around(&faulty, stage, claim_replace(&desk), create_while_it_dies(&desk, "alice")).await;
    desk.create("alice", json!({})).await.expect("the same name at once");
    witness.show_rest().await;
    assert_eq!(desk.claim().await.unwrap().spec.admissions.len(), 1);
}

#[tokio::test]
async fn killed_before_a_uid_is_added_the_same_name_has_the_claim_at_once() {
    killed_around_an_addition(Stage::Before).await;
}

#[tokio::test]
async fn killed_after_a_uid_was_added_the_same_name_has_the_claim_at_once() {
    killed_around_an_addition(Stage::After).await;
}

async fn killed_around_a_replacement(stage: Stage) {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    // The leader cannot release it, so that it is replaced.
    let no_release = faulty.proxy.inject(Stage::Before, Fault::Answer(500), claim_delete(&desk));
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    kill_around(&faulty, stage, claim_replace(&desk), create_while_it_dies(&desk, "bob")).await;
    drop(no_release);
    desk.create("bob", json!({})).await.expect("the same name at once");
    desk.bound("bob").await;
    witness.show_rest().await;
}

#[tokio::test]
async fn killed_before_a_claim_is_replaced_the_same_name_has_it_at_once() {
    killed_around_a_replacement(Stage::Before).await;
}

#[tokio::test]
async fn killed_after_a_claim_was_replaced_the_same_name_has_it_at_once() {
    killed_around_a_replacement(Stage::After).await;
}

async fn killed_around_a_status(stage: Stage) {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let create = async { drop(desk.create("alice", json!({})).await.unwrap()) };
    kill_around(&faulty, stage, status_write(&desk, "alice"), create).await;
    desk.bound("alice").await;
    witness.show_rest().await;
}

#[tokio::test]
async fn killed_before_a_status_is_written_it_is_written_after_the_restart() {
    killed_around_a_status(Stage::Before).await;
}

#[tokio::test]
async fn killed_after_a_status_was_written_it_stays_true() {
    killed_around_a_status(Stage::After).await;
}

async fn killed_around_a_release(stage: Stage) {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    kill_around(&faulty, stage, claim_delete(&desk), desk.delete("alice")).await;
    create_as_soon_as_possible(&desk, "bob", json!({})).await;
    witness.show_rest().await;
    assert_eq!(desk.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn killed_before_a_claim_is_released_it_is_released_after_the_restart() {
    killed_around_a_release(Stage::Before).await;
}

#[tokio::test]
async fn killed_after_a_claim_was_released_it_is_free() {
    killed_around_a_release(Stage::After).await;
}

async fn killed_around_a_pruning(stage: Stage) {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let _other = faulty.deny_some(&desk).await;
    create_denied(&desk, "alice").await;
    desk.create("alice", json!({})).await.unwrap();
    assert_eq!(desk.claim().await.unwrap().spec.admissions.len(), 2);
    kill_around(&faulty, stage, claim_replace(&desk), std::future::ready(())).await;
    witness.show_rest().await;
    assert_eq!(desk.claim().await.unwrap().spec.admissions.len(), 1);
}

#[tokio::test]
async fn killed_before_a_claim_is_pruned_it_is_pruned_after_the_restart() {
    killed_around_a_pruning(Stage::Before).await;
}

#[tokio::test]
async fn killed_after_a_claim_was_pruned_it_stays_as_it_is() {
    killed_around_a_pruning(Stage::After).await;
}

async fn killed_around_a_renewal(stage: Stage) {
    let faulty = exclusive_cluster().await;
    let before = faulty.wait_for_leader_other_than("").await;
    let (desk, mut witness) = faulty.desk().await;
    let is_lease = |call: &Call| call.is("PUT", "/leases/switchboard");
    kill_around(&faulty, stage, is_lease, std::future::ready(())).await;
    desk.create("alice", json!({})).await.expect("admission needs no leader");
    faulty.wait_for_leader_other_than(&before).await;
    desk.bound("alice").await;
    witness.show_rest().await;
}

#[tokio::test]
async fn killed_before_the_lease_is_renewed_another_leads_once_it_has_expired() {
    killed_around_a_renewal(Stage::Before).await;
}

#[tokio::test]
async fn killed_after_the_lease_was_renewed_another_leads_once_it_has_expired() {
    killed_around_a_renewal(Stage::After).await;
}

#[tokio::test]
async fn an_api_server_that_is_killed_between_admission_and_storage_leaves_the_binding_usable() {
    for winner in ["alice", "bob"] {
        let faulty = exclusive_cluster().await;
        let (desk, mut witness) = faulty.desk().await;
        // Ours allows, and the API server waits for the other one.
        let other = FakeWebhook::start(&desk.client, &desk.namespace, 10, |review| async move {
            if review.number == 0 { std::future::pending().await } else { Verdict::Allow }
        })
        .await;
        let allowed = faulty.proxy.hold(Stage::After, claim_create(&desk));
        let create = tokio::spawn({
            let desk = desk.clone();
            let alice = desk.conversation("alice", json!({}));
            async move { desk.conversations().create(&PostParams::default(), &alice).await }
        });
        allowed.wait_for(1).await;
        drop(allowed);
        other.wait_for(1).await;
        assert_eq!(desk.held_by().await.as_deref(), Some("alice"));
        let api_server = faulty.cluster.control_plane.api_server(0);
        api_server.kill();
        create.await.unwrap().unwrap_err();
        api_server.start().unwrap();
        let desk = TestNamespace { client: faulty.client().await, ..desk };
        create_as_soon_as_possible(&desk, winner, json!({})).await;
        witness.show_rest().await;
        assert_eq!(desk.held_by().await.as_deref(), Some(winner));
    }
}

#[tokio::test]
async fn a_review_that_arrives_twice_and_an_answer_that_is_lost_do_no_harm() {
    let faulty = exclusive_cluster().await;
    let installation = &faulty.cluster.installation;
    let webhook = faulty.replica().webhook_address();
    let between = Proxy::to_webhook(webhook, installation.authority());
    installation.balancer().remove(webhook);
    installation.balancer().add(between.address());
    // Connections that are open already go past the proxy.
    faulty.replica().kill();
    faulty.replica().start().unwrap();

    let (desk, mut witness) = faulty.desk().await;
    let twice = between.inject(Stage::Before, Fault::Twice, |call| call.is("POST", "/admit"));
    desk.create("alice", json!({})).await.unwrap();
    assert_eq!(twice.count(), 1);
    drop(twice);
    witness.show_rest().await;
    assert_eq!(desk.claim().await.unwrap().spec.admissions.len(), 1);

    let (desk, mut witness) = faulty.desk().await;
    let lost = between.inject(Stage::After, Fault::Cut, |call| call.is("POST", "/admit"));
    create_while_it_dies(&desk, "alice").await;
    drop(lost);
    assert_eq!(desk.held_by().await.as_deref(), Some("alice"));
    desk.create("alice", json!({})).await.expect("the same name at once");
    witness.show_rest().await;
    installation.balancer().add(webhook);
    installation.balancer().remove(between.address());
    drop(between);
    faulty.replica().kill();
    faulty.replica().start().unwrap();
}

#[tokio::test]
async fn a_leader_that_is_suspended_in_the_middle_of_a_write_undoes_nothing_that_its_successor_decided() {
    let faulty = FaultCluster::start(2).await;
    let identity = faulty.wait_for_leader_other_than("").await;
    let leader = faulty.replica_of(&identity);
    let (desk, mut witness) = faulty.desk().await;
    let (other, mut other_witness) = faulty.desk().await;
    for desk in [&desk, &other] {
        desk.create("alice", json!({})).await.unwrap();
        desk.bound("alice").await;
    }
    faulty.cluster.installation.balancer().cut(leader.webhook_address());

    let mut release = faulty.proxy.hold(Stage::Before, claim_delete(&desk));
    let mut status = faulty.proxy.hold(Stage::Before, status_write(&other, "alice"));
    desk.delete("alice").await;
    other.change("alice", json!({"participants": []})).await.unwrap();
    let (release_of_old, status_of_old) = (release.next().await, status.next().await);
    drop((release, status));
    leader.pause();
    faulty.wait_for_leader_other_than(&identity).await;
    create_as_soon_as_possible(&desk, "alice", json!({})).await;
    desk.bound("alice").await;
    other.change("alice", json!({"state": "Closed"})).await.unwrap();
    other.wait_for_state("alice", State::Closed).await;
    create_as_soon_as_possible(&other, "bob", json!({})).await;

    release_of_old.resolve(Fault::Pass);
    status_of_old.resolve(Fault::Pass);
    leader.resume();
    leader.wait_until_ready().unwrap();
    other.bound("bob").await;
    witness.show_rest().await;
    other_witness.show_rest().await;
    assert_eq!(desk.held_by().await.as_deref(), Some("alice"));
    assert_eq!(other.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn with_watches_that_are_open_and_dead_admission_stays_right_and_the_rest_follows_when_they_live_again() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    faulty.proxy.freeze_watches(true);
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.create("bob", json!({})).await.expect("closing frees the binding at once, without the leader");
    desk.delete("bob").await;
    let refusal = desk.create("carol", json!({})).await.expect_err("the leader does not know that bob is gone");
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    desk.create("bob", json!({})).await.expect("the same name at once");
    witness.show().await;
    faulty.proxy.freeze_watches(false);
    desk.bound("bob").await;
    witness.show_rest().await;
    desk.delete("bob").await;
    create_as_soon_as_possible(&desk, "carol", json!({})).await;
    witness.show_rest().await;
}

#[tokio::test]
async fn watches_that_die_without_a_word_are_missed_and_begun_anew() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let (other, mut other_witness) = faulty.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    faulty.proxy.kill_watches();
    desk.delete("alice").await;
    other.create("bob", json!({})).await.unwrap();
    other.bound("bob").await;
    desk.wait_until_free().await;
    witness.show_rest().await;
    other_witness.show_rest().await;
}

#[tokio::test]
async fn who_stands_by_with_a_dead_watch_and_can_open_no_other_leads_all_the_same() {
    let faulty = FaultCluster::start(2).await;
    let identity = faulty.wait_for_leader_other_than("").await;
    let leader = faulty.replica_of(&identity);
    faulty.cluster.installation.balancer().remove(leader.webhook_address());
    let is_watch = |call: &Call| call.path.ends_with("/leases") && call.query.contains("watch=true");
    let refused = faulty.proxy.inject(Stage::Before, Fault::Answer(403), is_watch);
    faulty.proxy.kill_watches();
    // The silence is noticed, and another watch is asked for again and again.
    refused.wait_for(3).await;
    leader.terminate();
    faulty.wait_for_leader_other_than(&identity).await;
}

#[tokio::test]
async fn an_operator_that_is_cut_off_for_longer_than_its_lease_admits_nothing_and_recovers() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let (other, mut other_witness) = faulty.desk().await;
    other.create("alice", json!({})).await.unwrap();
    other.bound("alice").await;
    faulty.proxy.freeze_watches(true);
    let cut = faulty.proxy.inject(Stage::Before, Fault::Cut, |call| !call.path.contains("/leases/"));
    let cut_from_lease = faulty.proxy.inject(Stage::Before, Fault::Cut, |call| call.path.contains("/leases/"));
    let refusal = desk.create("alice", json!({})).await.unwrap_err();
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    other.delete("alice").await;
    // Eight attempts to renew, of which seven and a half make up a lease.
    cut_from_lease.wait_for(9).await;
    assert_eq!(other.held_by().await.as_deref(), Some("alice"), "nobody has released it");
    drop((cut, cut_from_lease));
    faulty.proxy.freeze_watches(false);
    create_as_soon_as_possible(&desk, "alice", json!({})).await;
    other.wait_until_free().await;
    witness.show_rest().await;
    other_witness.show_rest().await;
}

/// Creates and deletes for ever, whatever the answers are.
async fn be_busy(desk: TestNamespace) {
    for round in 0.. {
        let name = ["alice", "bob"][round % 2];
        let conversation = desk.conversation(name, json!({}));
        if desk.conversations().create(&PostParams::default(), &conversation).await.is_err() {
            sleep(POLL_INTERVAL).await;
        }
        let _ = desk.conversations().delete(name, &kube::api::DeleteParams::default()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_killed_under_load_and_started_again_finds_all_in_order() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let busy = tokio::spawn(be_busy(desk.clone()));
    witness.wait_for_tenures(&desk, 3).await;
    let api_server = faulty.cluster.control_plane.api_server(0);
    api_server.kill();
    api_server.start().unwrap();
    busy.abort();
    desk.until_it_answers().await;
    create_as_soon_as_possible(&desk, "carol", json!({})).await;
    desk.bound("carol").await;
    witness.show_rest().await;
}

#[tokio::test]
async fn an_etcd_that_is_killed_and_started_again_finds_all_in_order() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.bound("alice").await;
    let etcd = faulty.cluster.control_plane.etcd();
    etcd.kill();
    let (conversations, bob) = (desk.conversations(), desk.conversation("bob", json!({})));
    let undecided = timeout(TIMEOUT, conversations.create(&PostParams::default(), &bob)).await;
    let undecided = undecided.expect("an answer in time");
    assert!(undecided.is_err(), "admitted without a look at the claims: {undecided:?}");
    etcd.start().unwrap();
    desk.until_it_answers().await;
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    create_as_soon_as_possible(&desk, "bob", json!({})).await;
    let (bob, reason) = desk.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::True).await;
    assert_eq!(reason, ConditionReason::BindingHeld, "{bob:?}");
    witness.show_rest().await;
}

#[tokio::test]
async fn while_its_rights_are_withdrawn_nothing_is_admitted_and_what_was_missed_follows_when_they_are_given_back() {
    let faulty = exclusive_cluster().await;
    let (desk, mut witness) = faulty.desk().await;
    let (other, mut other_witness) = faulty.desk().await;
    desk.create("alice", json!({})).await.unwrap();
    other.create("alice", json!({"timers": {"closeAfter": "8s"}})).await.unwrap();
    desk.bound("alice").await;
    other.bound("alice").await;
    let api = Api::<ClusterRoleBinding>::all(desk.client.clone());
    let mut rights = api.get("switchboard").await.unwrap();
    api.delete("switchboard", &DeleteParams::default()).await.unwrap();
    // An open watch stays open whatever becomes of the right to it: one that begins now is refused.
    let watches = faulty.proxy.inject(Stage::Before, Fault::Pass, |call| call.query.contains("watch=true"));
    let closings = faulty.proxy.inject(Stage::Before, Fault::Pass, status_write(&other, "alice"));
    let api_server = faulty.cluster.control_plane.api_server(0);
    api_server.kill();
    api_server.start().unwrap();
    let desk = TestNamespace { client: faulty.client().await, ..desk };
    let other = TestNamespace { client: faulty.client().await, ..other };
    watches.wait_for(2).await;
    closings.wait_for(1).await;
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    desk.change("alice", json!({"state": "Closed"})).await.expect("what opens nothing is not held up");
    witness.show().await;
    other_witness.show().await;

    (rights.metadata.uid, rights.metadata.resource_version) = (None, None);
    let api = Api::all(desk.client.clone());
    api.create(&PostParams::default(), &rights).await.unwrap();
    create_as_soon_as_possible(&desk, "bob", json!({})).await;
    desk.bound("bob").await;
    other.wait_for_state("alice", State::Closed).await;
    other.wait_until_free().await;
    witness.show_rest().await;
    other_witness.show_rest().await;
}
