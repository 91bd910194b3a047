//! Single faults around a create. After each of them at most one conversation holds the binding. The same name can use the binding
//! again at once, and other names within the grace period. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace, until};
use crate::common::fake_webhook::{FakeWebhook, Verdict};
use crate::common::fault_cluster::{
    FaultCluster, GRACE_PERIOD, HistoryChecker, POLL_INTERVAL, WAITING, assert_handed_over, claim_create, claim_delete,
    claim_replace, claim_use, create_denied, create_waiting, create_with_retries, is_retryable, shared, status_write,
    waiting, waits,
};
use crate::common::oracle::Oracle;
use crate::common::proxy::{Call, Fault, InForce, Stage};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use switchboard::api::{AddressBinding, ConditionReason, ConditionStatus, ConditionType, Conversation, State};
use tokio::sync::{Barrier, Notify};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// A namespace on the shared cluster.
async fn shared_namespace() -> (Arc<FaultCluster>, TestNamespace, HistoryChecker) {
    let cluster = shared().await;
    let (ns, checker) = cluster.checked_namespace().await;
    (cluster, ns, checker)
}

/// The number of UIDs in the claim.
async fn admissions(ns: &TestNamespace) -> usize {
    ns.claim().await.map_or(0, |claim| claim.spec.admissions.len())
}

/// Returns true at the first call only.
fn once() -> impl Fn() -> bool + Send + 'static {
    let is_over = AtomicBool::new(false);
    move || !is_over.swap(true, Ordering::SeqCst)
}

/// A shared namespace in which the claim names `alice`, whose create the other webhook then denied.
async fn namespace_with_denied_alice() -> (Arc<FaultCluster>, TestNamespace, HistoryChecker, FakeWebhook) {
    let (cluster, ns, checker) = shared_namespace().await;
    let other_webhook = cluster.deny_some(&ns).await;
    create_denied(&ns, "alice").await;
    (cluster, ns, checker, other_webhook)
}

/// Waits until everything is at rest, and asserts that the claim names `holder` and records one UID.
async fn assert_claimed_once_at_rest(ns: &TestNamespace, checker: &mut HistoryChecker, holder: &str) {
    checker.wait_until_at_rest().await;
    assert_eq!(ns.held_by().await.as_deref(), Some(holder));
    assert_eq!(admissions(ns).await, 1);
}

#[tokio::test]
async fn denied_create_leaves_the_binding_to_the_same_name_at_once() {
    let (_cluster, ns, mut checker, _other_webhook) = namespace_with_denied_alice().await;
    assert_eq!(admissions(&ns).await, 1, "the operator's webhook had allowed it");
    let (alice, ()) = tokio::join!(ns.create("alice", json!({})), create_waiting(&ns));
    alice.expect("the same name at once");
    assert_claimed_once_at_rest(&ns, &mut checker, "alice").await;
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn denied_create_leaves_the_binding_after_the_grace_period() {
    let (_cluster, ns, mut checker, _other_webhook) = namespace_with_denied_alice().await;
    let refusal = ns.create("bob", json!({})).await.expect_err("alice might still be stored");
    assert!(is_retryable(&refusal), "{refusal:?}");
    create_with_retries(&ns, "bob", json!({})).await;
    assert_claimed_once_at_rest(&ns, &mut checker, "bob").await;
}

#[tokio::test]
async fn denied_create_leaves_the_binding_to_the_oldest_waiting() {
    let (_cluster, ns, mut checker, _other_webhook) = namespace_with_denied_alice().await;
    create_waiting(&ns).await;
    let refusal = ns.create("bob", json!({})).await.expect_err("alice might still be stored");
    assert!(is_retryable(&refusal), "{refusal:?}");
    ns.bound(WAITING[0]).await;
    assert_claimed_once_at_rest(&ns, &mut checker, WAITING[0]).await;
    assert_handed_over(&ns, &mut checker, WAITING[0]).await;
}

#[tokio::test]
async fn unused_claim_of_a_denied_create_is_collected() {
    let (_cluster, ns, mut checker, _other_webhook) = namespace_with_denied_alice().await;
    checker.wait_until_at_rest().await;
    assert_eq!(ns.claim().await, None);
}

#[tokio::test]
async fn create_refused_by_a_quota_leaves_the_binding_usable() {
    let (_cluster, ns, mut checker) = shared_namespace().await;
    let resource = "count/conversations.switchboard.dev";
    let quotas = Api::<ResourceQuota>::namespaced(ns.client.clone(), &ns.namespace);
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {resource: "0"}}});
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    // The controller manager would write this status, but does not run.
    let status = Patch::Merge(json!({"status": {"hard": {resource: "0"}, "used": {resource: "0"}}}));
    quotas.patch_status("none", &PatchParams::default(), &status).await.unwrap();
    let deadline = Instant::now() + TIMEOUT;
    let probe = json!({"contact": null});
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    while ns.create_object(&ns.conversation("probe", probe.clone()), &dry_run).await.is_ok() {
        assert!(Instant::now() < deadline, "the API server does not enforce the quota");
        sleep(POLL_INTERVAL).await;
    }
    let refusal = ns.create("alice", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("exceeded quota"), "{refusal:?}");
    assert_eq!(admissions(&ns).await, 1, "the claim was made before the quota refused");
    quotas.delete("none", &kube::api::DeleteParams::default()).await.unwrap();
    create_with_retries(&ns, "bob", json!({})).await;
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn create_with_an_existing_name_leaves_the_binding_usable() {
    let (_cluster, ns, mut checker) = shared_namespace().await;
    ns.create("alice", json!({"state": "Closed"})).await.unwrap();
    for changes in [json!({}), waits(json!({}))] {
        let refusal = ns.create("alice", changes).await.unwrap_err();
        assert_eq!((refusal.code, refusal.reason.as_str()), (409, "AlreadyExists"));
        assert_eq!(admissions(&ns).await, 0, "the name was read before the binding was claimed");
    }
    create_with_retries(&ns, "bob", json!({})).await;
    create_waiting(&ns).await;
    assert_claimed_once_at_rest(&ns, &mut checker, "bob").await;
    assert_handed_over(&ns, &mut checker, "bob").await;
}

/// A namespace in which the client of a create of `alice` disconnected while the operator made its claim. The API server may have stored
/// alice or not. If `is_contended`, conversations that wait were created meanwhile.
async fn namespace_after_a_disconnect(is_contended: bool) -> (TestNamespace, HistoryChecker) {
    let (cluster, ns, checker) = shared_namespace().await;
    let mut held = cluster.proxy.hold(Stage::After, claim_create(&ns));
    let (client, _rest) = cluster.checked_namespace().await;
    let client = TestNamespace { client: client.client, ..ns.clone() };
    let create = tokio::spawn(async move { client.create("alice", json!({})).await });
    let request = held.next().await;
    drop(held);
    if is_contended {
        create_waiting(&ns).await;
    }
    create.abort();
    assert!(create.await.unwrap_err().is_cancelled());
    request.resolve(Fault::Pass);
    (ns, checker)
}

#[tokio::test]
async fn client_disconnect_during_review_leaves_the_binding_usable() {
    let (ns, mut checker) = namespace_after_a_disconnect(false).await;
    let began = Instant::now();
    let refusal_or_bob = loop {
        match ns.create("bob", json!({})).await {
            Err(status) if is_retryable(&status) && began.elapsed() < TIMEOUT => sleep(POLL_INTERVAL).await,
            other => break other,
        }
    };
    match refusal_or_bob {
        Ok(_) => {}
        Err(refusal) => assert!(refusal.message.contains("48031"), "{refusal:?}"),
    }
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn waiting_conversations_survive_a_disconnect_during_review() {
    let (ns, mut checker) = namespace_after_a_disconnect(true).await;
    checker.wait_until_at_rest().await;
    let holder = ns.held_by().await.expect("alice was stored, or the oldest that waits has the binding");
    assert!(["alice", WAITING[0]].contains(&holder.as_str()), "{holder}");
    assert_handed_over(&ns, &mut checker, &holder).await;
}

#[tokio::test]
async fn lost_answer_to_a_claim_create_leads_to_a_retryable_503() {
    let (cluster, ns, mut checker) = shared_namespace().await;
    let lost = cluster.proxy.inject(Stage::After, Fault::Cut, claim_create(&ns));
    let refusal = ns.create("alice", json!({})).await.unwrap_err();
    assert!(is_retryable(&refusal), "{refusal:?}");
    assert!(lost.count() > 0);
    drop(lost);
    let (alice, ()) = tokio::join!(ns.create("alice", json!({})), create_waiting(&ns));
    alice.expect("the same name at once");
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn waiting_create_holds_the_claim_whose_answer_was_lost() {
    let (cluster, ns, mut checker) = shared_namespace().await;
    let lost = cluster.proxy.inject(Stage::After, Fault::Cut, claim_create(&ns));
    create_waiting(&ns).await;
    assert!(lost.count() > 0);
    drop(lost);
    assert_claimed_once_at_rest(&ns, &mut checker, WAITING[0]).await;
    assert_handed_over(&ns, &mut checker, WAITING[0]).await;
}

#[tokio::test]
async fn duplicated_claim_create_makes_one_claim() {
    for (name, changes) in [("alice", json!({})), (WAITING[0], waits(json!({})))] {
        let (cluster, ns, mut checker) = shared_namespace().await;
        let twice = cluster.proxy.inject(Stage::Before, Fault::Twice, claim_create(&ns));
        ns.create(name, changes).await.unwrap();
        assert!(twice.count() > 0);
        assert_claimed_once_at_rest(&ns, &mut checker, name).await;
    }
}

#[tokio::test]
async fn duplicated_writes_and_lost_answers_do_not_change_the_result() {
    let (cluster, ns, mut checker) = shared_namespace().await;
    for fault in [Fault::Twice, Fault::Cut, Fault::Answer(500), Fault::Answer(429)] {
        let stage = if matches!(fault, Fault::Twice) { Stage::Before } else { Stage::After };
        let (is_claim, is_status) = (claim_use(&ns), status_write(&ns, "alice"));
        let (first_claim, first_status) = (once(), once());
        let writes = cluster.proxy.inject(stage, fault, move |call| {
            call.method != "GET" && ((is_claim(call) && first_claim()) || (is_status(call) && first_status()))
        });
        create_with_retries(&ns, "alice", json!({})).await;
        ns.bound("alice").await;
        writes.wait_for(2).await;
        drop(writes);
        create_waiting(&ns).await;
        let (is_hand_over, hand_over) = (claim_replace(&ns), once());
        let hand_overs = cluster.proxy.inject(stage, fault, move |call| is_hand_over(call) && hand_over());
        ns.delete("alice").await;
        ns.bound(WAITING[0]).await;
        hand_overs.wait_for(1).await;
        drop(hand_overs);
        ns.delete(WAITING[1]).await;
        let release = once();
        let is_delete = claim_delete(&ns);
        let releases = cluster.proxy.inject(stage, fault, move |call| is_delete(call) && release());
        ns.delete(WAITING[0]).await;
        ns.wait_until_free().await;
        releases.wait_for(1).await;
        checker.wait_until_at_rest().await;
    }
}

#[tokio::test]
async fn repeatedly_denied_create_does_not_block_other_creates() {
    for changes in [json!({}), waits(json!({}))] {
        let (_cluster, ns, mut checker, _other_webhook) = namespace_with_denied_alice().await;
        let bound = Notify::new();
        let deny_repeatedly = async {
            let mut count = 0_u32;
            while timeout(GRACE_PERIOD / 8, bound.notified()).await.is_err() {
                create_denied(&ns, "alice").await;
                count += 1;
            }
            count
        };
        let create_bob = async {
            create_with_retries(&ns, "bob", changes).await;
            ns.bound("bob").await;
            bound.notify_one();
        };
        let (denied, ()) = tokio::join!(deny_repeatedly, create_bob);
        assert!(denied > 2, "{denied}");
        checker.wait_until_at_rest().await;
    }
}

/// Creates a conversation with a generated name, while another conversation takes the first such name.
async fn create_with_a_name_conflict(changes: Value) {
    let (_cluster, ns, mut checker) = shared_namespace().await;
    let for_reviews = ns.clone();
    let other = FakeWebhook::start(&ns.client, &ns.namespace, 10, move |review| {
        let ns = for_reviews.clone();
        async move {
            // Another conversation takes the first generated name during its review.
            if review.number == 0 {
                ns.create(review.object_name(), json!({"contact": null})).await.unwrap();
            }
            Verdict::Allow
        }
    })
    .await;
    let mut object = ns.conversation("", changes);
    object.metadata.name = None;
    object.metadata.generate_name = Some("inbound-".to_owned());
    let began = Instant::now();
    let stored = loop {
        match ns.create_object(&object, &PostParams::default()).await {
            Ok(stored) => break stored,
            Err(status) => {
                assert!(is_retryable(&status) && began.elapsed() < TIMEOUT, "{status:?}");
                sleep(POLL_INTERVAL).await;
            }
        }
    };
    let name = stored.metadata.name.unwrap();
    assert_ne!(name, other.reviews()[0].object_name());
    ns.bound(&name).await;
    create_waiting(&ns).await;
    assert_handed_over(&ns, &mut checker, &name).await;
}

#[tokio::test]
async fn generated_name_conflict_delays_by_at_most_the_grace_period() {
    create_with_a_name_conflict(json!({})).await;
}

#[tokio::test]
async fn generated_name_conflict_delays_a_waiting_create() {
    create_with_a_name_conflict(waits(json!({}))).await;
}

/// A shared namespace in which `alice` is bound and the release of its claim is held.
async fn bound_alice_with_held_release() -> (Arc<FaultCluster>, TestNamespace, HistoryChecker, InForce) {
    let (cluster, ns, checker) = shared_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    let release = cluster.proxy.hold(Stage::Before, claim_delete(&ns));
    (cluster, ns, checker, release)
}

/// A shared namespace in which `alice` is bound, another conversation waits, and the hand-over to it is held.
async fn bound_alice_with_held_hand_over() -> (Arc<FaultCluster>, TestNamespace, HistoryChecker, InForce) {
    let (cluster, ns, checker) = shared_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    ns.create(WAITING[0], waits(json!({}))).await.unwrap();
    waiting(&ns, WAITING[0]).await;
    let is_replace = claim_replace(&ns);
    let hand_over = cluster.proxy.hold(Stage::Before, move |call| is_replace(call) && call.mentions(WAITING[0]));
    (cluster, ns, checker, hand_over)
}

#[tokio::test]
async fn release_after_a_stale_read_keeps_a_recreated_conversation() {
    let (_cluster, ns, mut checker, mut release) = bound_alice_with_held_release().await;
    ns.delete("alice").await;
    let request = release.next().await;
    let again = ns.create("alice", json!({})).await.expect("the same name at once");
    request.resolve(Fault::Pass);
    drop(release);
    ns.bound("alice").await;
    checker.wait_until_at_rest().await;
    let claim = ns.claim().await.expect("the claim of the second alice");
    assert_eq!(Some(&claim.spec.admissions[0].uid), again.metadata.uid.as_ref());
}

#[tokio::test]
async fn hand_over_after_a_stale_read_keeps_a_recreated_conversation() {
    let (_cluster, ns, mut checker, mut hand_over) = bound_alice_with_held_hand_over().await;
    ns.delete("alice").await;
    let request = hand_over.next().await;
    ns.create("alice", json!({})).await.expect("the same name at once");
    request.resolve(Fault::Pass);
    drop(hand_over);
    ns.create(WAITING[1], waits(json!({}))).await.unwrap();
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn release_after_a_stale_read_keeps_a_replaced_claim() {
    let (_cluster, ns, mut checker, mut release) = bound_alice_with_held_release().await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    let request = release.next().await;
    ns.create("bob", json!({})).await.expect("closing frees the binding at once, without the leader");
    request.resolve(Fault::Pass);
    drop(release);
    ns.bound("bob").await;
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn hand_over_after_a_stale_read_keeps_a_replaced_claim() {
    let (_cluster, ns, mut checker, mut hand_over) = bound_alice_with_held_hand_over().await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    let request = hand_over.next().await;
    ns.create("bob", json!({})).await.expect("closing frees the binding at once, without the leader");
    request.resolve(Fault::Pass);
    drop(hand_over);
    ns.create(WAITING[1], waits(json!({}))).await.unwrap();
    assert_handed_over(&ns, &mut checker, "bob").await;
}

fn spawn_create(
    ns: &TestNamespace,
    name: &'static str,
    changes: Value,
) -> JoinHandle<Result<Conversation, Box<Status>>> {
    let ns = ns.clone();
    tokio::spawn(async move { ns.create(name, changes).await })
}

#[tokio::test]
async fn create_with_a_delayed_claim_is_refused_for_the_first_holder() {
    let (cluster, ns, mut checker) = shared_namespace().await;
    let mut late = cluster.proxy.hold(Stage::Before, claim_create(&ns));
    let bob = spawn_create(&ns, "bob", json!({}));
    let waiting = spawn_create(&ns, WAITING[0], waits(json!({})));
    let requests = [late.next().await, late.next().await];
    drop(late);
    ns.create("alice", json!({})).await.unwrap();
    for request in requests {
        request.resolve(Fault::Pass);
    }
    let refusal = bob.await.unwrap().expect_err("alice holds the binding");
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    waiting.await.unwrap().expect("it is stored without its binding");
    ns.create(WAITING[1], waits(json!({}))).await.unwrap();
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn one_of_two_concurrent_claim_replacements_wins() {
    let (cluster, ns, mut checker, mut release) = bound_alice_with_held_release().await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    let to_release = release.next().await;
    let mut replace = cluster.proxy.hold(Stage::Before, claim_replace(&ns));
    let (bob, carol) = (spawn_create(&ns, "bob", json!({})), spawn_create(&ns, "carol", json!({})));
    let (one, other) = (replace.next().await, replace.next().await);
    drop(replace);
    one.resolve(Fault::Pass);
    other.resolve(Fault::Pass);
    to_release.resolve(Fault::Pass);
    drop(release);
    let outcomes = [bob.await.unwrap(), carol.await.unwrap()];
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn first_of_concurrent_replacements_of_both_kinds_wins() {
    for winner in ["bob", WAITING[0]] {
        let (cluster, ns, mut checker, mut release) = bound_alice_with_held_release().await;
        ns.change("alice", json!({"state": "Closed"})).await.unwrap();
        let to_release = release.next().await;
        let mut replace = cluster.proxy.hold(Stage::Before, claim_replace(&ns));
        let bob = spawn_create(&ns, "bob", json!({}));
        let waiting = spawn_create(&ns, WAITING[0], waits(json!({})));
        let requests = [replace.next().await, replace.next().await];
        drop(replace);
        let (first, second): (Vec<_>, Vec<_>) =
            requests.into_iter().partition(|request| request.call.mentions(&format!("{winner:?}")));
        for request in first {
            request.resolve(Fault::Pass);
        }
        let is_winners =
            |claim: Option<&AddressBinding>| claim.is_some_and(|claim| claim.spec.conversation_ref.name == winner);
        assert!(until(ns.claims(), ns.binding().as_str(), is_winners).await.is_some(), "{winner} claims the binding");
        for request in second {
            request.resolve(Fault::Pass);
        }
        to_release.resolve(Fault::Pass);
        drop(release);
        let bob = bob.await.unwrap();
        assert!(bob.as_ref().err().is_none_or(|refusal| refusal.message.contains("48031")), "{bob:?}");
        assert_eq!(bob.is_ok(), winner == "bob");
        waiting.await.unwrap().expect("it is stored in any case");
        ns.create(WAITING[1], waits(json!({}))).await.unwrap();
        assert_handed_over(&ns, &mut checker, winner).await;
    }
}

/// Lets two server-side applies of `alice` race, and returns the number of those that must be repeated.
async fn race_applies(changes: Value) -> usize {
    let (_cluster, ns, mut checker) = shared_namespace().await;
    let both = Arc::new(Barrier::new(2));
    let _other = FakeWebhook::start(&ns.client, &ns.namespace, 10, move |review| {
        let both = both.clone();
        async move {
            if review.number < 2 {
                both.wait().await;
            }
            Verdict::Allow
        }
    })
    .await;
    let apply = |manager: &'static str| {
        let (ns, changes) = (ns.clone(), changes.clone());
        async move {
            let object: Conversation = ns.conversation("alice", changes);
            ns.conversations().patch("alice", &PatchParams::apply(manager).force(), &Patch::Apply(&object)).await
        }
    };
    let (one, other) = tokio::join!(apply("one"), apply("other"));
    let is_repeated =
        |outcome: &kube::Result<Conversation>| matches!(outcome, Err(kube::Error::Api(status)) if is_retryable(status));
    let repeated = [&one, &other].map(|outcome| usize::from(is_repeated(outcome))).iter().sum();
    assert_eq!([&one, &other].iter().filter(|outcome| outcome.is_ok()).count() + repeated, 2, "{one:?} {other:?}");
    let (one, other) = (apply("one").await.unwrap(), apply("other").await.unwrap());
    assert_eq!(one.metadata.uid, other.metadata.uid);
    assert_eq!(admissions(&ns).await, 1, "the second one left no UID behind");
    checker.wait_until_at_rest().await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.create("bob", json!({})).await.expect("a later close frees the binding at once");
    create_waiting(&ns).await;
    assert_handed_over(&ns, &mut checker, "bob").await;
    repeated
}

#[tokio::test]
async fn unused_uid_of_racing_applies_is_pruned_from_the_claim() {
    // The one that comes second is told to repeat its request, which is an update then.
    assert_eq!(race_applies(json!({})).await, 1);
}

#[tokio::test]
async fn racing_applies_that_wait_need_no_repetition() {
    assert_eq!(race_applies(waits(json!({}))).await, 0);
}

#[tokio::test]
async fn conversation_stored_after_the_grace_period_is_not_bound() {
    let cluster = FaultCluster::start_late().await;
    let (ns, _) = cluster.checked_namespace().await;
    let mut checker =
        cluster.checker(&ns, Oracle::default().unseen_by_webhooks(|conversation| conversation.name == "alice"));
    let late = Arc::new(Notify::new());
    let for_reviews = late.clone();
    // This webhook delays the create as if the API server were suspended after the operator's webhook has allowed it.
    let other = FakeWebhook::start(&ns.client, &ns.namespace, 30, move |review| {
        let late = for_reviews.clone();
        async move {
            if review.object_name() == "alice" {
                late.notified().await;
            }
            Verdict::Allow
        }
    })
    .await;
    let alice = tokio::spawn({
        let ns = ns.clone();
        async move { ns.create("alice", json!({})).await }
    });
    other.wait_for(1).await;
    create_with_retries(&ns, "bob", json!({})).await;
    create_waiting(&ns).await;
    late.notify_one();
    alice.await.unwrap().expect("alice is stored although its claim was collected");
    let (alice, reason) = ns.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::AddressAlreadyBound, "{alice:?}");
    ns.bound("bob").await;
    checker.wait_until_at_rest().await;
    assert_eq!(ns.claim().await.unwrap().spec.conversation_ref.name, "bob");
    ns.change("bob", json!({"state": "Closed"})).await.unwrap();
    // It is older than those that wait.
    ns.bound("alice").await;
    assert_handed_over(&ns, &mut checker, "alice").await;
}

#[tokio::test]
async fn creates_of_an_existing_name_do_not_delay_a_later_close() {
    let (_cluster, ns, mut checker) = shared_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    for _ in 0..10 {
        for changes in [json!({}), waits(json!({}))] {
            assert_eq!(ns.create("alice", changes).await.unwrap_err().reason, "AlreadyExists");
        }
    }
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.create("bob", json!({})).await.expect("a close frees the binding at once");
    create_waiting(&ns).await;
    assert_handed_over(&ns, &mut checker, "bob").await;
}

#[tokio::test]
async fn admission_reads_from_etcd_and_not_from_a_cache() {
    let (cluster, ns, mut checker) = shared_namespace().await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    let reads = |is_cached: bool| {
        let (binding, conversations) =
            (ns.binding().to_string(), format!("/namespaces/{}/conversations", ns.namespace));
        let is_read = move |call: &Call| {
            let is_in_namespace =
                call.path.contains(&conversations) || (call.path.clone() + &call.query).contains(&binding);
            call.method == "GET" && is_in_namespace && call.query.contains("resourceVersion") == is_cached
        };
        cluster.proxy.inject(Stage::Before, Fault::Pass, is_read)
    };
    let (live, cached) = (reads(false), reads(true));
    let refusal = ns.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    assert_eq!(live.count(), 2, "reads of the claim and of its holder");
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.create("bob", json!({})).await.unwrap();
    assert_eq!(cached.count(), 2, "reads of the name of each create, which decide nothing unless it exists");
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn create_gets_a_503_while_claims_are_unreachable() {
    let (cluster, ns, mut checker) = shared_namespace().await;
    let (unclaimed, mut unclaimed_checker) = cluster.checked_namespace().await;
    for (fault, name) in [(Fault::Cut, WAITING[0]), (Fault::Answer(500), WAITING[1])] {
        let _faults = [&ns, &unclaimed].map(|ns| cluster.proxy.inject(Stage::Before, fault, claim_use(ns)));
        let refusal = ns.create("alice", json!({})).await.unwrap_err();
        assert!(is_retryable(&refusal), "{refusal:?}");
        unclaimed.create(name, waits(json!({}))).await.expect("one that may wait is stored without its binding");
    }
    assert_handed_over(&unclaimed, &mut unclaimed_checker, WAITING[0]).await;
    checker.wait_until_at_rest().await;
    assert_eq!(ns.conversations().get_opt("alice").await.unwrap(), None);
    ns.create("alice", json!({})).await.unwrap();
    ns.wait_for_state("alice", State::Active).await;
    checker.wait_until_at_rest().await;
}
