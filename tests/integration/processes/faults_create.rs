//! Claims about faults around a create, one by one: whatever fails, and wherever, one conversation holds the binding, and it is usable
//! again at once by the same name and within the grace period by others. Tier: processes.

use crate::common::cluster::{TIMEOUT, TestNamespace};
use crate::common::fake_webhook::{FakeWebhook, Verdict};
use crate::common::fault_cluster::{
    FaultCluster, GRACE_PERIOD, HistoryChecker, POLL_INTERVAL, claim_create, claim_delete, claim_replace, claim_use,
    create_as_soon_as_possible, create_denied, is_to_be_repeated, shared, status_write,
};
use crate::common::oracle::Oracle;
use crate::common::proxy::{Call, Fault, Stage};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType, Conversation, State};
use tokio::sync::{Barrier, Notify};
use tokio::time::{Instant, sleep, timeout};

async fn desk() -> (Arc<FaultCluster>, TestNamespace, HistoryChecker) {
    let faulty = shared().await;
    let (desk, witness) = faulty.desk().await;
    (faulty, desk, witness)
}

async fn admissions(desk: &TestNamespace) -> usize {
    desk.claim().await.map_or(0, |claim| claim.spec.admissions.len())
}

/// True the first time.
fn once() -> impl Fn() -> bool + Send + 'static {
    let is_over = AtomicBool::new(false);
    move || !is_over.swap(true, Ordering::SeqCst)
}

/// A create of alice was admitted and never stored. She can be created at once, and somebody else when its grace period is over.
async fn alice_at_once_or_another_later(desk: &TestNamespace, witness: &mut HistoryChecker, alice_at_once: bool) {
    let winner = if alice_at_once { "alice" } else { "bob" };
    if alice_at_once {
        desk.create("alice", json!({})).await.expect("the same name at once");
    } else {
        create_as_soon_as_possible(desk, "bob", json!({})).await;
    }
    witness.show_rest().await;
    assert_eq!(desk.claim().await.unwrap().spec.conversation_ref.name, winner);
    assert_eq!(admissions(desk).await, 1);
}

#[tokio::test]
async fn a_create_that_another_webhook_denies_leaves_the_binding_to_the_same_name_at_once() {
    let (faulty, desk, mut witness) = desk().await;
    let _other = faulty.deny_some(&desk).await;
    create_denied(&desk, "alice").await;
    assert_eq!(admissions(&desk).await, 1, "ours had allowed it");
    alice_at_once_or_another_later(&desk, &mut witness, true).await;
}

#[tokio::test]
async fn a_create_that_another_webhook_denies_leaves_the_binding_to_others_within_the_grace_period() {
    let (faulty, desk, mut witness) = desk().await;
    let _other = faulty.deny_some(&desk).await;
    create_denied(&desk, "alice").await;
    let refusal = desk.create("bob", json!({})).await.expect_err("alice might still be stored");
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    alice_at_once_or_another_later(&desk, &mut witness, false).await;
}

#[tokio::test]
async fn a_claim_whose_create_failed_and_that_nobody_wants_is_collected() {
    let (faulty, desk, mut witness) = desk().await;
    let _other = faulty.deny_some(&desk).await;
    create_denied(&desk, "alice").await;
    witness.show_rest().await;
    assert_eq!(desk.claim().await, None);
}

#[tokio::test]
async fn a_quota_that_refuses_after_the_claim_was_made_leaves_the_binding_usable() {
    let (_faulty, desk, mut witness) = desk().await;
    let resource = "count/conversations.switchboard.dev";
    let quotas = Api::<ResourceQuota>::namespaced(desk.client.clone(), &desk.namespace);
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {resource: "0"}}});
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    // No controller manager runs, whose work this is.
    let status = Patch::Merge(json!({"status": {"hard": {resource: "0"}, "used": {resource: "0"}}}));
    quotas.patch_status("none", &PatchParams::default(), &status).await.unwrap();
    let deadline = Instant::now() + TIMEOUT;
    let probe = json!({"contact": null});
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    while desk.create_object(&desk.conversation("probe", probe.clone()), &dry_run).await.is_ok() {
        assert!(Instant::now() < deadline, "the quota does not come into force");
        sleep(POLL_INTERVAL).await;
    }
    let refusal = desk.create("alice", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("exceeded quota"), "{refusal:?}");
    assert_eq!(admissions(&desk).await, 1, "the claim was made before the quota refused");
    quotas.delete("none", &kube::api::DeleteParams::default()).await.unwrap();
    create_as_soon_as_possible(&desk, "bob", json!({})).await;
    witness.show_rest().await;
}

#[tokio::test]
async fn a_name_that_is_taken_by_a_closed_conversation_leaves_the_binding_usable() {
    let (_faulty, desk, mut witness) = desk().await;
    desk.create("alice", json!({"state": "Closed"})).await.unwrap();
    let refusal = desk.create("alice", json!({})).await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(admissions(&desk).await, 0, "the name was read before the binding was claimed");
    alice_at_once_or_another_later(&desk, &mut witness, false).await;
}

#[tokio::test]
async fn a_client_that_disconnects_while_its_create_is_reviewed_leaves_the_binding_usable() {
    let (faulty, desk, mut witness) = desk().await;
    let mut held = faulty.proxy.hold(Stage::After, claim_create(&desk));
    let began = Instant::now();
    let (client, _rest) = faulty.desk().await;
    let client = TestNamespace { client: client.client, ..desk.clone() };
    let create = tokio::spawn(async move { client.create("alice", json!({})).await });
    let request = held.next().await;
    create.abort();
    assert!(create.await.unwrap_err().is_cancelled());
    request.resolve(Fault::Pass);
    drop(held);
    // Whether alice was stored all the same is up to the API server.
    let refusal_or_bob = loop {
        match desk.create("bob", json!({})).await {
            Err(status) if is_to_be_repeated(&status) && began.elapsed() < TIMEOUT => sleep(POLL_INTERVAL).await,
            other => break other,
        }
    };
    match refusal_or_bob {
        Ok(_) => {}
        Err(refusal) => assert!(refusal.message.contains("48031"), "{refusal:?}"),
    }
    witness.show_rest().await;
}

#[tokio::test]
async fn an_answer_that_is_lost_after_the_claim_was_made_costs_one_503_and_no_binding() {
    let (faulty, desk, mut witness) = desk().await;
    let lost = faulty.proxy.inject(Stage::After, Fault::Cut, claim_create(&desk));
    let refusal = desk.create("alice", json!({})).await.unwrap_err();
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    assert!(lost.count() > 0);
    drop(lost);
    desk.create("alice", json!({})).await.expect("the same name at once");
    witness.show_rest().await;
}

#[tokio::test]
async fn a_claim_that_is_made_twice_by_the_network_is_made_once() {
    let (faulty, desk, mut witness) = desk().await;
    let twice = faulty.proxy.inject(Stage::Before, Fault::Twice, claim_create(&desk));
    desk.create("alice", json!({})).await.unwrap();
    assert!(twice.count() > 0);
    witness.show_rest().await;
    assert_eq!(admissions(&desk).await, 1);
}

#[tokio::test]
async fn every_write_that_is_carried_twice_or_whose_answer_is_lost_once_leads_to_the_same() {
    let (faulty, desk, mut witness) = desk().await;
    for fate in [Fault::Twice, Fault::Cut, Fault::Answer(500), Fault::Answer(429)] {
        let stage = if matches!(fate, Fault::Twice) { Stage::Before } else { Stage::After };
        let (is_claim, is_status) = (claim_use(&desk), status_write(&desk, "alice"));
        let (first_claim, first_status) = (once(), once());
        let writes = faulty.proxy.inject(stage, fate, move |call| {
            call.method != "GET" && ((is_claim(call) && first_claim()) || (is_status(call) && first_status()))
        });
        create_as_soon_as_possible(&desk, "alice", json!({})).await;
        desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::True).await;
        writes.wait_for(2).await;
        drop(writes);
        let release = once();
        let is_delete = claim_delete(&desk);
        let releases = faulty.proxy.inject(stage, fate, move |call| is_delete(call) && release());
        desk.delete("alice").await;
        desk.wait_until_free().await;
        releases.wait_for(1).await;
        witness.show_rest().await;
    }
}

#[tokio::test]
async fn the_same_create_denied_again_and_again_does_not_keep_the_binding_from_others() {
    let (faulty, desk, mut witness) = desk().await;
    let _other = faulty.deny_some(&desk).await;
    create_denied(&desk, "alice").await;
    let stored = Notify::new();
    let deny_again_and_again = async {
        let mut count = 0_u32;
        while timeout(GRACE_PERIOD / 8, stored.notified()).await.is_err() {
            create_denied(&desk, "alice").await;
            count += 1;
        }
        count
    };
    let want_it = async {
        create_as_soon_as_possible(&desk, "bob", json!({})).await;
        stored.notify_one();
    };
    let (denied, ()) = tokio::join!(deny_again_and_again, want_it);
    assert!(denied > 2, "{denied}");
    witness.show_rest().await;
}

#[tokio::test]
async fn a_generated_name_that_collides_costs_no_more_than_the_grace_period() {
    let (_faulty, desk, mut witness) = desk().await;
    let taker = desk.clone();
    let other = FakeWebhook::start(&desk.client, &desk.namespace, 10, move |review| {
        let desk = taker.clone();
        async move {
            // The name that was generated first is taken while its create is reviewed.
            if review.number == 0 {
                desk.create(review.object_name(), json!({"contact": null})).await.unwrap();
            }
            Verdict::Allow
        }
    })
    .await;
    let mut object = desk.conversation("", json!({}));
    object.metadata.name = None;
    object.metadata.generate_name = Some("inbound-".to_owned());
    let began = Instant::now();
    let stored = loop {
        match desk.create_object(&object, &PostParams::default()).await {
            Ok(stored) => break stored,
            Err(status) => {
                assert!(is_to_be_repeated(&status) && began.elapsed() < TIMEOUT, "{status:?}");
                sleep(POLL_INTERVAL).await;
            }
        }
    };
    assert_ne!(stored.metadata.name.as_deref(), Some(other.reviews()[0].object_name()));
    witness.show_rest().await;
}

#[tokio::test]
async fn a_release_that_rests_on_a_stale_read_takes_nothing_from_who_was_created_again_meanwhile() {
    let (faulty, desk, mut witness) = desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::True).await;
    let mut release = faulty.proxy.hold(Stage::Before, claim_delete(&desk));
    desk.delete("alice").await;
    let request = release.next().await;
    let again = desk.create("alice", json!({})).await.expect("the same name at once");
    request.resolve(Fault::Pass);
    drop(release);
    desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::True).await;
    witness.show_rest().await;
    let claim = desk.claim().await.expect("the claim of the second alice");
    assert_eq!(Some(&claim.spec.admissions[0].uid), again.metadata.uid.as_ref());
}

#[tokio::test]
async fn a_release_that_rests_on_a_stale_read_takes_nothing_from_who_replaced_the_claim_meanwhile() {
    let (faulty, desk, mut witness) = desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::True).await;
    let mut release = faulty.proxy.hold(Stage::Before, claim_delete(&desk));
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    let request = release.next().await;
    desk.create("bob", json!({})).await.expect("closing frees the binding at once, without the leader");
    request.resolve(Fault::Pass);
    drop(release);
    desk.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::True).await;
    witness.show_rest().await;
}

#[tokio::test]
async fn a_create_that_is_late_with_its_claim_meets_the_one_that_came_first() {
    let (faulty, desk, mut witness) = desk().await;
    let mut late = faulty.proxy.hold(Stage::Before, claim_create(&desk));
    let bobs = desk.clone();
    let bob = tokio::spawn(async move { bobs.create("bob", json!({})).await });
    let request = late.next().await;
    drop(late);
    desk.create("alice", json!({})).await.unwrap();
    request.resolve(Fault::Pass);
    let refusal = bob.await.unwrap().expect_err("alice was first");
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    witness.show_rest().await;
}

#[tokio::test]
async fn of_two_creates_that_replace_the_claim_of_a_closed_one_at_once_one_wins() {
    let (faulty, desk, mut witness) = desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::True).await;
    let mut release = faulty.proxy.hold(Stage::Before, claim_delete(&desk));
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    let to_release = release.next().await;
    let mut replace = faulty.proxy.hold(Stage::Before, claim_replace(&desk));
    let create = |name: &'static str| {
        let desk = desk.clone();
        tokio::spawn(async move { desk.create(name, json!({})).await })
    };
    let (bob, carol) = (create("bob"), create("carol"));
    let (one, other) = (replace.next().await, replace.next().await);
    drop(replace);
    one.resolve(Fault::Pass);
    other.resolve(Fault::Pass);
    to_release.resolve(Fault::Pass);
    drop(release);
    let outcomes = [bob.await.unwrap(), carol.await.unwrap()];
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    witness.show_rest().await;
}

#[tokio::test]
async fn of_two_racing_applies_of_one_name_the_uid_that_was_never_stored_does_not_stay_in_the_claim() {
    let (_faulty, desk, mut witness) = desk().await;
    let both = Arc::new(Barrier::new(2));
    let _other = FakeWebhook::start(&desk.client, &desk.namespace, 10, move |review| {
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
        let desk = desk.clone();
        async move {
            let object: Conversation = desk.conversation("alice", json!({}));
            desk.conversations().patch("alice", &PatchParams::apply(manager).force(), &Patch::Apply(&object)).await
        }
    };
    // The one that comes second is told to repeat its request, which is an update then.
    let (one, other) = tokio::join!(apply("one"), apply("other"));
    let is_repeated = |outcome: &kube::Result<Conversation>| matches!(outcome, Err(kube::Error::Api(status)) if is_to_be_repeated(status));
    assert_eq!(
        [&one, &other].map(|outcome| usize::from(is_repeated(outcome))).iter().sum::<usize>(),
        1,
        "{one:?} {other:?}"
    );
    let (one, other) = (apply("one").await.unwrap(), apply("other").await.unwrap());
    assert_eq!(one.metadata.uid, other.metadata.uid);
    assert_eq!(admissions(&desk).await, 1, "the second one left no UID behind");
    witness.show_rest().await;
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.create("bob", json!({})).await.expect("a later close frees the binding at once");
    witness.show_rest().await;
}

#[tokio::test]
async fn one_that_is_stored_after_the_grace_period_is_not_bound_and_the_claim_names_the_other() {
    let faulty = FaultCluster::start_late().await;
    let (desk, _) = faulty.desk().await;
    let mut witness = faulty.witness(&desk, Oracle::default().unseen_by_webhooks(|place| place.name == "alice"));
    let late = Arc::new(Notify::new());
    let for_reviews = late.clone();
    // Its answer comes as late as that of an API server would that was suspended after ours had allowed.
    let other = FakeWebhook::start(&desk.client, &desk.namespace, 30, move |review| {
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
        let desk = desk.clone();
        async move { desk.create("alice", json!({})).await }
    });
    other.wait_for(1).await;
    create_as_soon_as_possible(&desk, "bob", json!({})).await;
    late.notify_one();
    alice.await.unwrap().expect("it is stored, though its claim was collected");
    let (alice, reason) = desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::AddressAlreadyBound, "{alice:?}");
    desk.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::True).await;
    witness.show_rest().await;
    assert_eq!(desk.claim().await.unwrap().spec.conversation_ref.name, "bob");
    desk.change("bob", json!({"state": "Closed"})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::True).await;
    witness.show_rest().await;
}

#[tokio::test]
async fn creating_an_existing_name_in_a_loop_does_not_delay_a_later_close() {
    let (_faulty, desk, mut witness) = desk().await;
    desk.create("alice", json!({})).await.unwrap();
    for _ in 0..20 {
        assert_eq!(desk.create("alice", json!({})).await.unwrap_err().reason, "AlreadyExists");
    }
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.create("bob", json!({})).await.expect("a close frees the binding at once");
    witness.show_rest().await;
}

#[tokio::test]
async fn what_an_admission_reads_comes_from_etcd_and_no_cache() {
    let (faulty, desk, mut witness) = desk().await;
    desk.create("alice", json!({})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::True).await;
    let reads = |is_cached: bool| {
        let (binding, place) = (desk.binding().to_string(), format!("/namespaces/{}/conversations", desk.namespace));
        let is_read = move |call: &Call| {
            let is_of_desk = call.path.contains(&place) || (call.path.clone() + &call.query).contains(&binding);
            call.method == "GET" && is_of_desk && call.query.contains("resourceVersion") == is_cached
        };
        faulty.proxy.inject(Stage::Before, Fault::Pass, is_read)
    };
    let (live, cached) = (reads(false), reads(true));
    let refusal = desk.create("bob", json!({})).await.unwrap_err();
    assert!(refusal.message.contains("48031"), "{refusal:?}");
    assert_eq!(live.count(), 2, "the claim, and its holder");
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.create("bob", json!({})).await.unwrap();
    assert_eq!(cached.count(), 2, "the name of each create, which decides nothing unless it is found live");
    witness.show_rest().await;
}

#[tokio::test]
async fn while_the_claims_cannot_be_reached_the_answer_is_503_in_time_and_never_an_allow() {
    let (faulty, desk, mut witness) = desk().await;
    let is_claim = claim_use(&desk);
    let cut = faulty.proxy.inject(Stage::Before, Fault::Cut, is_claim);
    let refusal = desk.create("alice", json!({})).await.unwrap_err();
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    drop(cut);
    let refused = faulty.proxy.inject(Stage::Before, Fault::Answer(500), claim_use(&desk));
    let refusal = desk.create("alice", json!({})).await.unwrap_err();
    assert!(is_to_be_repeated(&refusal), "{refusal:?}");
    drop(refused);
    witness.show_rest().await;
    assert_eq!(desk.conversations().get_opt("alice").await.unwrap(), None);
    desk.create("alice", json!({})).await.unwrap();
    desk.wait_for_state("alice", State::Active).await;
    witness.show_rest().await;
}
