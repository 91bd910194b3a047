//! Faults of the processes and of the network between them. The operator is killed around each of its writes, suspended, disconnected, or
//! left without watches; the API server and etcd are killed. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace};
use crate::common::fake_webhook::{FakeWebhook, Verdict};
use crate::common::fault_cluster::{
    ExclusiveCluster, FaultCluster, HistoryChecker, POLL_INTERVAL, WAITING, assert_handed_over, claim_create,
    claim_delete, claim_replace, create_denied, create_waiting, create_with_retries, exclusive_cluster, is_retryable,
    kill_around, status_write, waiting, waits,
};
use crate::common::proxy::{Call, Fault, Proxy, Stage};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType, State};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Creates a conversation whose review gets no answer, and asserts that the create fails.
async fn create_without_answer(ns: &TestNamespace, name: &str) {
    let answer = ns.create(name, json!({})).await;
    assert!(answer.is_err(), "a create was admitted without an answer of the webhook: {answer:?}");
}

#[tokio::test]
async fn kill_before_a_claim_create_leaves_no_claim() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    kill_around(&cluster, Stage::Before, claim_create(&ns), create_without_answer(&ns, "alice")).await;
    ns.create("bob", json!({})).await.expect("there is no claim");
    create_waiting(&ns).await;
    assert_handed_over(&ns, &mut checker, "bob").await;
}

/// A namespace in which the operator was killed after it had made the claim for `alice`, and then restarted.
async fn killed_after_claim_for_alice() -> (ExclusiveCluster, TestNamespace, HistoryChecker) {
    let cluster = exclusive_cluster().await;
    let (ns, checker) = cluster.checked_namespace().await;
    kill_around(&cluster, Stage::After, claim_create(&ns), create_without_answer(&ns, "alice")).await;
    (cluster, ns, checker)
}

#[tokio::test]
async fn kill_after_a_claim_create_leaves_it_to_the_same_name() {
    let (_cluster, ns, mut checker) = killed_after_claim_for_alice().await;
    let refusal = ns.create("bob", json!({})).await.expect_err("alice may still be stored");
    assert!(is_retryable(&refusal), "{refusal:?}");
    let (alice, ()) = tokio::join!(ns.create("alice", json!({})), create_waiting(&ns));
    alice.expect("the same name at once");
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn kill_after_a_claim_create_frees_it_after_the_grace_period() {
    let (_cluster, ns, mut checker) = killed_after_claim_for_alice().await;
    // The Lease of the killed replica must expire, too.
    create_with_retries(&ns, "bob", json!({})).await;
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn kill_after_a_claim_create_leaves_it_to_the_oldest_waiting() {
    let (_cluster, ns, mut checker) = killed_after_claim_for_alice().await;
    create_waiting(&ns).await;
    assert_handed_over(&ns, &mut checker, WAITING[0]).await;
}

async fn kill_around_uid_addition(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let _other = cluster.deny_some(&ns).await;
    create_denied(&ns, "alice").await;
    kill_around(&cluster, stage, claim_replace(&ns), create_without_answer(&ns, "alice")).await;
    let (alice, ()) = tokio::join!(ns.create("alice", json!({})), create_waiting(&ns));
    alice.expect("the same name at once");
    checker.wait_until_at_rest().await;
    assert_eq!(ns.claim().await.unwrap().spec.admissions.len(), 1);
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn kill_before_a_uid_addition_leaves_the_claim_to_its_name() {
    kill_around_uid_addition(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_a_uid_addition_leaves_the_claim_to_its_name() {
    kill_around_uid_addition(Stage::After).await;
}

async fn kill_around_replacement(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    // The leader cannot release the claim, so the next create replaces it.
    let no_release = cluster.proxy.inject(Stage::Before, Fault::Answer(500), claim_delete(&ns));
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    kill_around(&cluster, stage, claim_replace(&ns), create_without_answer(&ns, "bob")).await;
    drop(no_release);
    ns.create("bob", json!({})).await.expect("the same name at once");
    create_waiting(&ns).await;
    ns.bound("bob").await;
    assert_handed_over(&ns, &mut checker, "bob").await;
}

#[tokio::test]
async fn kill_before_a_claim_replacement_leaves_it_to_the_new_name() {
    kill_around_replacement(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_a_claim_replacement_leaves_it_to_the_new_name() {
    kill_around_replacement(Stage::After).await;
}

async fn kill_around_hand_over(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.contended_namespace().await;
    let claim = ns.claim().await.unwrap().metadata.uid;
    let close = async { drop(ns.change("alice", json!({"state": "Closed"})).await.unwrap()) };
    kill_around(&cluster, stage, claim_replace(&ns), close).await;
    ns.bound(WAITING[0]).await;
    assert_eq!(ns.claim().await.unwrap().metadata.uid, claim, "the claim was replaced");
    // A deletion hands the binding over, too.
    kill_around(&cluster, stage, claim_replace(&ns), ns.delete(WAITING[0])).await;
    assert_handed_over(&ns, &mut checker, WAITING[1]).await;
}

#[tokio::test]
async fn kill_before_a_hand_over_delays_the_hand_over() {
    kill_around_hand_over(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_a_hand_over_keeps_the_new_holder() {
    kill_around_hand_over(Stage::After).await;
}

async fn kill_around_status_write(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let create = async { drop(ns.create("alice", json!({})).await.unwrap()) };
    kill_around(&cluster, stage, status_write(&ns, "alice"), create).await;
    ns.bound("alice").await;
    // The status by which a conversation is told that it waits, and the one by which it is told that it is bound.
    let create = async { drop(ns.create(WAITING[0], waits(json!({}))).await.unwrap()) };
    kill_around(&cluster, stage, status_write(&ns, WAITING[0]), create).await;
    waiting(&ns, WAITING[0]).await;
    ns.create(WAITING[1], waits(json!({}))).await.unwrap();
    let close = async { drop(ns.change("alice", json!({"state": "Closed"})).await.unwrap()) };
    kill_around(&cluster, stage, status_write(&ns, WAITING[0]), close).await;
    assert_handed_over(&ns, &mut checker, WAITING[0]).await;
}

#[tokio::test]
async fn kill_before_a_status_write_delays_the_status() {
    kill_around_status_write(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_a_status_write_keeps_the_status() {
    kill_around_status_write(Stage::After).await;
}

async fn kill_around_release(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    kill_around(&cluster, stage, claim_delete(&ns), ns.delete("alice")).await;
    create_with_retries(&ns, "bob", json!({})).await;
    checker.wait_until_at_rest().await;
    assert_eq!(ns.held_by().await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn kill_before_a_release_delays_the_release() {
    kill_around_release(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_a_release_leaves_the_binding_free() {
    kill_around_release(Stage::After).await;
}

async fn kill_around_pruning(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let _other = cluster.deny_some(&ns).await;
    create_denied(&ns, "alice").await;
    ns.create("alice", json!({})).await.unwrap();
    assert_eq!(ns.claim().await.unwrap().spec.admissions.len(), 2);
    kill_around(&cluster, stage, claim_replace(&ns), create_waiting(&ns)).await;
    checker.wait_until_at_rest().await;
    assert_eq!(ns.claim().await.unwrap().spec.admissions.len(), 1);
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn kill_before_a_claim_is_pruned_delays_the_pruning() {
    kill_around_pruning(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_a_claim_is_pruned_keeps_the_claim() {
    kill_around_pruning(Stage::After).await;
}

async fn kill_around_renewal(stage: Stage) {
    let cluster = exclusive_cluster().await;
    let before = cluster.wait_for_leader_other_than("").await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let is_lease = |call: &Call| call.is("PUT", "/leases/switchboard");
    kill_around(&cluster, stage, is_lease, std::future::ready(())).await;
    ns.create("alice", json!({})).await.expect("admission needs no leader");
    create_waiting(&ns).await;
    cluster.wait_for_leader_other_than(&before).await;
    ns.bound("alice").await;
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn kill_before_a_lease_renewal_leads_to_a_new_leader() {
    kill_around_renewal(Stage::Before).await;
}

#[tokio::test]
async fn kill_after_a_lease_renewal_leads_to_a_new_leader() {
    kill_around_renewal(Stage::After).await;
}

#[tokio::test]
async fn api_server_killed_before_storing_leaves_the_binding_usable() {
    for winner in ["alice", "bob", WAITING[0]] {
        let cluster = exclusive_cluster().await;
        let (ns, mut checker) = cluster.checked_namespace().await;
        // The operator's webhook allows the create, and the API server waits for the other webhook.
        let other_webhook = FakeWebhook::start(&ns.client, &ns.namespace, 10, |review| async move {
            if review.number == 0 { std::future::pending().await } else { Verdict::Allow }
        })
        .await;
        let allowed = cluster.proxy.hold(Stage::After, claim_create(&ns));
        let create = tokio::spawn({
            let ns = ns.clone();
            let alice = ns.conversation("alice", json!({}));
            async move { ns.conversations().create(&PostParams::default(), &alice).await }
        });
        allowed.wait_for(1).await;
        drop(allowed);
        other_webhook.wait_for(1).await;
        assert_eq!(ns.held_by().await.as_deref(), Some("alice"));
        let api_server = cluster.control_plane().api_server(0);
        api_server.kill();
        create.await.unwrap().unwrap_err();
        api_server.start().unwrap();
        let ns = TestNamespace { client: cluster.client().await, ..ns };
        if winner != WAITING[0] {
            create_with_retries(&ns, winner, json!({})).await;
        }
        create_waiting(&ns).await;
        assert_handed_over(&ns, &mut checker, winner).await;
    }
}

#[tokio::test]
async fn duplicated_review_and_lost_answer_do_no_harm() {
    let cluster = exclusive_cluster().await;
    let installation = cluster.installation();
    let webhook = cluster.replica().webhook_address();
    let webhook_proxy = Proxy::to_webhook(webhook, installation.authority());
    installation.balancer().remove(webhook);
    installation.balancer().add(webhook_proxy.address());
    // A restart closes the connections that bypass the proxy.
    cluster.replica().kill();
    cluster.replica().start().unwrap();

    let (ns, mut checker) = cluster.checked_namespace().await;
    let twice = webhook_proxy.inject(Stage::Before, Fault::Twice, |call| call.is("POST", "/admit"));
    ns.create("alice", json!({})).await.unwrap();
    assert_eq!(twice.count(), 1);
    create_waiting(&ns).await;
    assert!(twice.count() >= 3);
    drop(twice);
    checker.wait_until_at_rest().await;
    assert_eq!(ns.claim().await.unwrap().spec.admissions.len(), 1);
    assert_handed_over(&ns, &mut checker, "alice").await;

    let (ns, mut checker) = cluster.checked_namespace().await;
    let lost = webhook_proxy.inject(Stage::After, Fault::Cut, |call| call.is("POST", "/admit"));
    create_without_answer(&ns, "alice").await;
    drop(lost);
    assert_eq!(ns.held_by().await.as_deref(), Some("alice"));
    let (alice, ()) = tokio::join!(ns.create("alice", json!({})), create_waiting(&ns));
    alice.expect("the same name at once");
    assert_handed_over(&ns, &mut checker, "alice").await;
    installation.balancer().add(webhook);
    installation.balancer().remove(webhook_proxy.address());
    drop(webhook_proxy);
    cluster.replica().kill();
    cluster.replica().start().unwrap();
}

#[tokio::test]
async fn leader_suspended_during_a_write_does_not_undo_later_writes() {
    let cluster = FaultCluster::start(2).await;
    let identity = cluster.wait_for_leader_other_than("").await;
    let leader = cluster.replica_of(&identity);
    let (ns, mut checker) = cluster.checked_namespace().await;
    let (other, mut other_checker) = cluster.checked_namespace().await;
    for ns in [&ns, &other] {
        ns.create("alice", json!({})).await.unwrap();
        ns.bound("alice").await;
    }
    let (contended, mut contended_checker) = cluster.contended_namespace().await;
    cluster.installation().balancer().cut(leader.webhook_address());

    let mut release = cluster.proxy.hold(Stage::Before, claim_delete(&ns));
    let mut status = cluster.proxy.hold(Stage::Before, status_write(&other, "alice"));
    let mut hand_over = cluster.proxy.hold(Stage::Before, claim_replace(&contended));
    ns.delete("alice").await;
    other.change("alice", json!({"participants": []})).await.unwrap();
    contended.delete("alice").await;
    let (release_of_old, status_of_old) = (release.next().await, status.next().await);
    let hand_over_of_old = hand_over.next().await;
    drop((release, status, hand_over));
    leader.pause();
    cluster.wait_for_leader_other_than(&identity).await;
    create_with_retries(&ns, "alice", json!({})).await;
    ns.bound("alice").await;
    other.change("alice", json!({"state": "Closed"})).await.unwrap();
    other.wait_for_state("alice", State::Closed).await;
    create_with_retries(&other, "bob", json!({})).await;
    contended.bound(WAITING[0]).await;
    contended.change(WAITING[0], json!({"state": "Closed"})).await.unwrap();
    contended.bound(WAITING[1]).await;

    release_of_old.resolve(Fault::Pass);
    status_of_old.resolve(Fault::Pass);
    hand_over_of_old.resolve(Fault::Pass);
    leader.resume();
    leader.wait_until_ready().unwrap();
    other.bound("bob").await;
    checker.wait_until_at_rest().await;
    other_checker.wait_until_at_rest().await;
    assert_eq!(ns.held_by().await.as_deref(), Some("alice"));
    assert_eq!(other.held_by().await.as_deref(), Some("bob"));
    assert_handed_over(&contended, &mut contended_checker, WAITING[1]).await;
}

#[tokio::test]
async fn admission_is_correct_while_watches_deliver_nothing() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    cluster.proxy.freeze_watches(true);
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    create_waiting(&ns).await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.create("bob", json!({})).await.expect("closing frees the binding at once, without the leader");
    ns.delete("bob").await;
    let refusal = ns.create("carol", json!({})).await.expect_err("the leader has not seen that bob is deleted");
    assert!(is_retryable(&refusal), "{refusal:?}");
    ns.create("bob", json!({})).await.expect("the same name at once");
    checker.check().await;
    cluster.proxy.freeze_watches(false);
    ns.bound("bob").await;
    checker.wait_until_at_rest().await;
    ns.delete("bob").await;
    assert_handed_over(&ns, &mut checker, WAITING[0]).await;
    ns.create("bob", json!({})).await.unwrap();
    ns.bound("bob").await;
    ns.delete("bob").await;
    create_with_retries(&ns, "carol", json!({})).await;
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn silent_watches_are_detected_and_restarted() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let (other, mut other_checker) = cluster.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    let (contended, mut contended_checker) = cluster.contended_namespace().await;
    cluster.proxy.kill_watches();
    ns.delete("alice").await;
    contended.delete("alice").await;
    other.create("bob", json!({})).await.unwrap();
    other.bound("bob").await;
    ns.wait_until_free().await;
    checker.wait_until_at_rest().await;
    other_checker.wait_until_at_rest().await;
    assert_handed_over(&contended, &mut contended_checker, WAITING[0]).await;
}

#[tokio::test]
async fn standby_without_a_working_watch_becomes_leader() {
    let cluster = FaultCluster::start(2).await;
    let identity = cluster.wait_for_leader_other_than("").await;
    let leader = cluster.replica_of(&identity);
    cluster.installation().balancer().remove(leader.webhook_address());
    let is_watch = |call: &Call| call.path.ends_with("/leases") && call.query.contains("watch=true");
    let refused = cluster.proxy.inject(Stage::Before, Fault::Answer(403), is_watch);
    cluster.proxy.kill_watches();
    // The standby detects the silent watch, and tries to open another one repeatedly.
    refused.wait_for(3).await;
    leader.terminate();
    cluster.wait_for_leader_other_than(&identity).await;
}

#[tokio::test]
async fn disconnected_operator_admits_nothing_and_recovers() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let (other, mut other_checker) = cluster.checked_namespace().await;
    other.create("alice", json!({})).await.unwrap();
    other.bound("alice").await;
    let (contended, mut contended_checker) = cluster.contended_namespace().await;
    let (unclaimed, mut unclaimed_checker) = cluster.checked_namespace().await;
    cluster.proxy.freeze_watches(true);
    let cut = cluster.proxy.inject(Stage::Before, Fault::Cut, |call| !call.path.contains("/leases/"));
    let cut_from_lease = cluster.proxy.inject(Stage::Before, Fault::Cut, |call| call.path.contains("/leases/"));
    let refusal = ns.create("alice", json!({})).await.unwrap_err();
    assert!(is_retryable(&refusal), "{refusal:?}");
    other.delete("alice").await;
    contended.delete("alice").await;
    // A conversation that may wait is stored without its binding.
    create_waiting(&unclaimed).await;
    // Nine attempts to renew span eight retry periods. The lease duration is seven and a half.
    cut_from_lease.wait_for(9).await;
    for ns in [&other, &contended] {
        assert_eq!(ns.held_by().await.as_deref(), Some("alice"), "the claim is not released");
    }
    assert_eq!(unclaimed.claim().await, None);
    drop((cut, cut_from_lease));
    cluster.proxy.freeze_watches(false);
    create_with_retries(&ns, "alice", json!({})).await;
    other.wait_until_free().await;
    checker.wait_until_at_rest().await;
    other_checker.wait_until_at_rest().await;
    assert_handed_over(&contended, &mut contended_checker, WAITING[0]).await;
    assert_handed_over(&unclaimed, &mut unclaimed_checker, WAITING[0]).await;
}

/// Creates and deletes conversations with these names and changes until `done`, whatever the answers are. Leaves none.
async fn create_and_delete(ns: TestNamespace, names: [&str; 2], changes: Value, done: CancellationToken) {
    let delete = async |name| drop(ns.conversations().delete(name, &DeleteParams::default()).await);
    while !done.is_cancelled() {
        for name in names {
            let conversation = ns.conversation(name, changes.clone());
            if ns.conversations().create(&PostParams::default(), &conversation).await.is_err() {
                sleep(POLL_INTERVAL).await;
            }
            delete(name).await;
        }
    }
    // The API server may have been away during the last round.
    for name in names {
        delete(name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_server_restart_under_load_keeps_the_invariants() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let done = CancellationToken::new();
    let load = [(["alice", "bob"], json!({})), (WAITING, waits(json!({})))];
    let load = load.map(|(names, changes)| tokio::spawn(create_and_delete(ns.clone(), names, changes, done.clone())));
    checker.wait_for_hold_intervals(&ns, 6).await;
    let api_server = cluster.control_plane().api_server(0);
    api_server.kill();
    api_server.start().unwrap();
    ns.wait_until_api_server_answers().await;
    done.cancel();
    for load in load {
        load.await.unwrap();
    }
    create_with_retries(&ns, "carol", json!({})).await;
    ns.bound("carol").await;
    create_waiting(&ns).await;
    assert_handed_over(&ns, &mut checker, "carol").await;
}

#[tokio::test]
async fn etcd_restart_keeps_the_invariants() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    let (contended, mut contended_checker) = cluster.contended_namespace().await;
    let etcd = cluster.control_plane().etcd();
    etcd.kill();
    let (conversations, bob) = (ns.conversations(), ns.conversation("bob", json!({})));
    let answer = timeout(TIMEOUT, conversations.create(&PostParams::default(), &bob)).await;
    let answer = answer.expect("an answer within the timeout");
    assert!(answer.is_err(), "the create was admitted without a read of the claims: {answer:?}");
    etcd.start().unwrap();
    ns.wait_until_api_server_answers().await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    create_with_retries(&ns, "bob", json!({})).await;
    let (bob, reason) = ns.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::True).await;
    assert_eq!(reason, ConditionReason::BindingHeld, "{bob:?}");
    checker.wait_until_at_rest().await;
    assert_handed_over(&contended, &mut contended_checker, "alice").await;
}

#[tokio::test]
async fn operator_without_rights_admits_nothing_and_recovers() {
    let cluster = exclusive_cluster().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let (other, mut other_checker) = cluster.checked_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    other.create("alice", json!({"timers": {"closeAfter": "8s"}})).await.unwrap();
    ns.bound("alice").await;
    other.bound("alice").await;
    let (contended, mut contended_checker) = cluster.contended_namespace().await;
    let api = Api::<ClusterRoleBinding>::all(ns.client.clone());
    let mut rights = api.get("switchboard").await.unwrap();
    api.delete("switchboard", &DeleteParams::default()).await.unwrap();
    // Open watches continue without the rights, and new ones are refused. The restart of the API server closes the open ones.
    let watches = cluster.proxy.inject(Stage::Before, Fault::Pass, |call| call.query.contains("watch=true"));
    let closings = cluster.proxy.inject(Stage::Before, Fault::Pass, status_write(&other, "alice"));
    let api_server = cluster.control_plane().api_server(0);
    api_server.kill();
    api_server.start().unwrap();
    let ns = TestNamespace { client: cluster.client().await, ..ns };
    let other = TestNamespace { client: cluster.client().await, ..other };
    let contended = TestNamespace { client: cluster.client().await, ..contended };
    watches.wait_for(2).await;
    closings.wait_for(1).await;
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    assert!(is_retryable(&refusal), "{refusal:?}");
    ns.change("alice", json!({"state": "Closed"})).await.expect("a change that opens no conversation needs no webhook");
    contended.change("alice", json!({"state": "Closed"})).await.unwrap();
    checker.check().await;
    other_checker.check().await;
    contended_checker.check().await;

    (rights.metadata.uid, rights.metadata.resource_version) = (None, None);
    let api = Api::all(ns.client.clone());
    api.create(&PostParams::default(), &rights).await.unwrap();
    create_with_retries(&ns, "bob", json!({})).await;
    ns.bound("bob").await;
    other.wait_for_state("alice", State::Closed).await;
    other.wait_until_free().await;
    checker.wait_until_at_rest().await;
    other_checker.wait_until_at_rest().await;
    assert_handed_over(&contended, &mut contended_checker, WAITING[0]).await;
}
