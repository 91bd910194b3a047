//! Default timers of ProxyAddresses and of the installation, and the statuses of ProxyAddresses. Closing is final, so most tests are about
//! a default that must not close anything. Tier: processes.

use crate::common::chart::CHART;
use crate::common::cluster::{TIMEOUT, TestNamespace, until};
use crate::common::fault_cluster::{FaultCluster, POLL_INTERVAL, shared, status_write};
use crate::common::proxy::{Call, Fault, InForce, Stage};
use crate::common::recorder::Recorder;
use crate::processes::start::wait_for_answer;
use control_plane::tools::{self, Tool};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use switchboard::api::{
    ConditionStatus, Conversation, ConversationStatus, ProxyAddress, ProxyAddressConditionReason as Reason,
    ProxyAddressConditionType as Type, State, StateReason, Time, TimersInEffect,
};
use switchboard::clock::Clock;
use tokio::sync::OnceCell;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

/// The delay of a close by a changed default in the clusters of these tests, and a default of the installation.
const DELAY: Duration = Duration::from_secs(2);
const FLAGS: &[&str] =
    &["--lease-duration=2s", "--defaults-delay=2s", "--unsafe-defaults-delay", "--default-close-unassigned-after=12h"];

/// One cluster with a short delay, for the tests that do not disturb each other.
async fn impatient() -> Arc<FaultCluster> {
    static CLUSTER: OnceCell<Arc<FaultCluster>> = OnceCell::const_new();
    CLUSTER.get_or_init(|| async { Arc::new(FaultCluster::start_with(1, FLAGS).await) }).await.clone()
}

/// A namespace with a proxy address that no other test uses.
async fn test_namespace(cluster: &FaultCluster) -> TestNamespace {
    let (ns, _) = cluster.checked_namespace().await;
    let number = ns.contact.trim_start_matches("+1555").trim_start_matches('0').to_owned();
    TestNamespace { proxy: format!("+1{number}"), ..ns }
}

fn proxy_addresses(ns: &TestNamespace) -> Api<ProxyAddress> {
    Api::all(ns.client.clone())
}

/// Creates a ProxyAddress for the proxy address of the namespace, and of its name.
async fn declare(ns: &TestNamespace, timers: Value) -> ProxyAddress {
    declare_as(ns, &ns.namespace, json!({"defaults": {"timers": timers}})).await
}

async fn declare_as(ns: &TestNamespace, name: &str, fields: Value) -> ProxyAddress {
    let mut spec = json!({"channel": "SMS", "address": ns.proxy});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let object = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    proxy_addresses(ns).create(&PostParams::default(), &object).await.unwrap()
}

async fn change_defaults(ns: &TestNamespace, timers: Value) {
    let patch = Patch::Merge(json!({"spec": {"defaults": {"timers": timers}}}));
    proxy_addresses(ns).patch(&ns.namespace, &PatchParams::default(), &patch).await.unwrap();
}

async fn delete_defaults(ns: &TestNamespace) {
    proxy_addresses(ns).delete(&ns.namespace, &DeleteParams::default()).await.unwrap();
}

fn status(conversation: &Conversation) -> &ConversationStatus {
    conversation.status.as_ref().unwrap()
}

/// Waits until the status of the conversation has these timers in effect.
async fn wait_for_timers(ns: &TestNamespace, name: &str, expected: Value) -> Conversation {
    let what = format!("with the timers {expected}");
    let expected: TimersInEffect = serde_json::from_value(expected).unwrap();
    ns.wait_for(name, &what, |conversation| {
        conversation.status.as_ref().is_some_and(|status| status.timers == Some(expected))
    })
    .await
}

fn close_time(conversation: &Conversation) -> Option<Time> {
    status(conversation).deadlines.as_ref()?.close_time
}

fn created(conversation: &Conversation) -> Time {
    Time::from(conversation.metadata.creation_timestamp.as_ref().unwrap())
}

/// Matches the live reads of the ProxyAddress of this namespace's address.
fn live_read(ns: &TestNamespace) -> impl Fn(&Call) -> bool + Send + 'static {
    let address = ns.proxy.trim_start_matches('+').to_owned();
    move |call| {
        call.is("GET", "/proxyaddresses") && call.query.contains("fieldSelector") && call.query.contains(&address)
    }
}

/// Matches the requests of the watch of the ProxyAddresses.
fn watch(call: &Call) -> bool {
    call.is("GET", "/proxyaddresses") && !call.query.contains("fieldSelector")
}

// ---- Which timers are in effect ----

#[tokio::test]
async fn default_applies_unless_the_conversation_sets_the_timer() {
    let ns = test_namespace(&*impatient().await).await;
    declare(&ns, json!({"inactiveAfter": "1h", "closeAfter": "24h"})).await;
    for (name, own, expected) in [
        ("absent", json!({}), json!({"inactiveAfter": "1h", "closeAfter": "24h", "closeUnassignedAfter": "12h"})),
        (
            "own",
            json!({"closeAfter": "2h"}),
            json!({"inactiveAfter": "1h", "closeAfter": "2h", "closeUnassignedAfter": "12h"}),
        ),
        ("never", json!({"closeAfter": "never", "closeUnassignedAfter": "never"}), json!({"inactiveAfter": "1h"})),
        (
            "contradicting",
            json!({"inactiveAfter": "24h"}),
            json!({"inactiveAfter": "24h", "closeUnassignedAfter": "12h"}),
        ),
    ] {
        ns.create(name, json!({"contact": null, "timers": own})).await.unwrap();
        let stored = wait_for_timers(&ns, name, expected).await;
        let close_after = status(&stored).timers.unwrap().close_after;
        assert_eq!(close_time(&stored), close_after.map(|after| created(&stored).after(after.as_std())), "{name}");
    }
}

#[tokio::test]
async fn changed_default_moves_the_deadlines_of_open_conversations() {
    let ns = test_namespace(&*impatient().await).await;
    declare(&ns, json!({"closeAfter": "24h", "closeUnassignedAfter": "never"})).await;
    let names = ["alice", "bob", "carol"];
    for name in names {
        ns.create(name, json!({"contact": null})).await.unwrap();
        wait_for_timers(&ns, name, json!({"closeAfter": "24h"})).await;
    }
    change_defaults(&ns, json!({"closeAfter": "48h"})).await;
    for name in names {
        let stored = wait_for_timers(&ns, name, json!({"closeAfter": "48h"})).await;
        assert_eq!(close_time(&stored), Some(created(&stored).after(Duration::from_hours(48))));
    }
}

#[tokio::test]
async fn removed_default_takes_its_timers_away() {
    let ns = test_namespace(&*impatient().await).await;
    declare(&ns, json!({"closeAfter": "24h"})).await;
    ns.create("alice", json!({})).await.unwrap();
    wait_for_timers(&ns, "alice", json!({"closeAfter": "24h", "closeUnassignedAfter": "12h"})).await;
    delete_defaults(&ns).await;
    let alice = wait_for_timers(&ns, "alice", json!({"closeUnassignedAfter": "12h"})).await;
    assert_eq!((status(&alice).state, close_time(&alice)), (Some(State::Active), None));
}

#[tokio::test]
async fn defaults_of_several_addresses_change_at_once_and_apart() {
    /// The number of conversations behind each address.
    const COUNT: usize = 5;
    let cluster = impatient().await;
    let timers = |close_after: Option<&str>| {
        let timers = json!({"closeAfter": close_after, "closeUnassignedAfter": "12h"});
        serde_json::from_value::<TimersInEffect>(timers).unwrap()
    };
    // Two defaults change, one is removed, and one changes so that it closes.
    let mut changes = Vec::new();
    for (before, after) in [("24h", Some("48h")), ("25h", Some("49h")), ("26h", None), ("27h", Some("1s"))] {
        changes.push((test_namespace(&cluster).await, before, after));
    }
    for (ns, before, _) in &changes {
        declare(ns, json!({"closeAfter": before})).await;
        for number in 0..COUNT {
            ns.create(&format!("alice-{number}"), json!({"contact": null})).await.unwrap();
        }
    }
    for (ns, before, _) in &changes {
        for number in 0..COUNT {
            wait_for_timers(ns, &format!("alice-{number}"), json!(timers(Some(before)))).await;
        }
    }
    let reads: Vec<_> = changes
        .iter()
        .filter(|(_, _, after)| *after != Some("1s"))
        .map(|(ns, ..)| cluster.proxy.inject(Stage::Before, Fault::Pass, live_read(ns)))
        .collect();
    join_all(changes.iter().map(async |(ns, _, after)| match after {
        Some(after) => change_defaults(ns, json!({"closeAfter": after})).await,
        None => delete_defaults(ns).await,
    }))
    .await;
    for (ns, _, after) in &changes {
        for number in 0..COUNT {
            let name = format!("alice-{number}");
            if *after == Some("1s") {
                ns.wait_for_state(&name, State::Closed).await;
                continue;
            }
            let alice = wait_for_timers(ns, &name, json!(timers(*after))).await;
            let close_after = status(&alice).timers.unwrap().close_after;
            assert_eq!(close_time(&alice), close_after.map(|after| created(&alice).after(after.as_std())), "{after:?}");
        }
    }
    // No conversation ever had the timers of another address, or was closed by them.
    let mut seen = 0;
    for event in Recorder::start(cluster.control_plane()).new_events().await {
        let Some((_, before, after)) = changes.iter().find(|(ns, ..)| ns.namespace == event.namespace) else {
            continue;
        };
        let status = event.object.map(|object| object["status"].clone()).unwrap_or_default();
        assert!(status["state"] != "Closed" || *after == Some("1s"), "{before}: {status}");
        if status["timers"].is_object() {
            let in_effect = serde_json::from_value::<TimersInEffect>(status["timers"].clone()).unwrap();
            // The watch may show a new ProxyAddress after its first conversation.
            let own = [timers(None), timers(Some(before)), timers(*after)];
            assert!(own.contains(&in_effect), "{before}: {status}");
            seen += 1;
        }
    }
    assert!(seen >= 2 * COUNT * changes.len() - COUNT, "{seen} statuses with timers are in the history");
    assert_eq!(reads.iter().map(InForce::count).sum::<usize>(), 0, "the close of others needs no read of these");
}

// ---- Closes by a default ----

#[tokio::test]
async fn default_closes_after_its_delay_and_a_live_read() {
    let cluster = impatient().await;
    let ns = test_namespace(&cluster).await;
    let reads = cluster.proxy.inject(Stage::Before, Fault::Pass, live_read(&ns));
    let declared = declare(&ns, json!({"closeAfter": "1s"})).await;
    ns.create("alice", json!({})).await.unwrap();
    let alice = ns.wait_for_state("alice", State::Closed).await;
    assert_eq!((status(&alice).state_reason, status(&alice).timers), (Some(StateReason::CloseTimer), None));
    let declared = Time::from(declared.metadata.creation_timestamp.as_ref().unwrap());
    assert!(status(&alice).closed_time.unwrap() >= declared.after(DELAY), "{alice:?}");
    assert!(reads.count() >= 1, "a default closes after a live read");
}

#[tokio::test]
async fn own_timer_closes_without_a_live_read() {
    let cluster = impatient().await;
    let ns = test_namespace(&cluster).await;
    let reads = cluster.proxy.inject(Stage::Before, Fault::Pass, live_read(&ns));
    declare(&ns, json!({"closeAfter": "24h"})).await;
    ns.create("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    ns.wait_for_state("alice", State::Closed).await;
    assert_eq!(reads.count(), 0);
}

#[tokio::test]
async fn live_read_confirms_the_closes_of_a_batch() {
    let cluster = impatient().await;
    let ns = test_namespace(&cluster).await;
    declare(&ns, json!({"closeAfter": "24h"})).await;
    let names: Vec<_> = (0..20).map(|number| format!("alice-{number}")).collect();
    for name in &names {
        ns.create(name, json!({"contact": null})).await.unwrap();
        wait_for_timers(&ns, name, json!({"closeAfter": "24h", "closeUnassignedAfter": "12h"})).await;
    }
    // All are due at the same time, since they have the same delay.
    let reads = cluster.proxy.inject(Stage::Before, Fault::Pass, live_read(&ns));
    change_defaults(&ns, json!({"closeAfter": "1s"})).await;
    for name in &names {
        ns.wait_for_state(name, State::Closed).await;
    }
    let count = reads.count();
    assert!((1..names.len()).contains(&count), "{count} reads for {} conversations", names.len());
}

/// Ends the leader when a default is about to close a conversation. The next leader, which observes the default from its start on, closes
/// the conversation after its own delay and its own live read. With one replica, it is the same one, started again.
async fn assert_next_leader_observes_a_default_anew(replicas: usize) {
    // The delay is not over yet when the Lease of the killed leader has expired.
    const DELAY: Duration = Duration::from_secs(8);
    let flags = ["--lease-duration=2s", "--defaults-delay=8s", "--unsafe-defaults-delay"];
    let cluster = FaultCluster::start_with(replicas, &flags).await;
    let identity = cluster.wait_for_leader_other_than("").await;
    let leader = cluster.replica_of(&identity);
    let all = cluster.installation().replicas();
    let next = all.iter().find(|replica| replica.webhook_address() != leader.webhook_address()).unwrap_or(leader);
    if replicas > 1 {
        cluster.installation().balancer().remove(next.webhook_address());
        next.kill();
    }
    let ns = test_namespace(&cluster).await;
    let mut reads = cluster.proxy.hold(Stage::Before, live_read(&ns));
    declare(&ns, json!({"closeAfter": "1s"})).await;
    ns.create("alice", json!({})).await.unwrap();
    let read = reads.next().await;
    let ended = Clock.now();
    if replicas > 1 {
        next.start().unwrap();
    }
    leader.kill();
    read.resolve(Fault::Cut);
    if replicas == 1 {
        next.start().unwrap();
    }
    let read = reads.next().await;
    assert_eq!(status(&ns.conversations().get("alice").await.unwrap()).state, Some(State::Active));
    read.resolve(Fault::Pass);
    let alice = ns.wait_for_state("alice", State::Closed).await;
    assert!(status(&alice).closed_time.unwrap() >= ended.after(DELAY), "{ended}: {alice:?}");
    cluster.wait_for_leader_other_than(&identity).await;
}

#[tokio::test]
async fn restarted_leader_observes_a_default_anew() {
    assert_next_leader_observes_a_default_anew(1).await;
}

#[tokio::test]
async fn new_standby_that_takes_over_observes_a_default_anew() {
    assert_next_leader_observes_a_default_anew(2).await;
}

/// Changes the defaults of a cluster with the usual delay of ten minutes to a typo, by `change`, and corrects them. Nothing closes.
async fn mistake_closes_nothing(change: impl AsyncFn(&TestNamespace, Value)) {
    let ns = test_namespace(&*shared().await).await;
    declare(&ns, json!({"closeAfter": "24h"})).await;
    ns.create("alice", json!({})).await.unwrap();
    wait_for_timers(&ns, "alice", json!({"closeAfter": "24h"})).await;
    change(&ns, json!({"closeAfter": "1s"})).await;
    let alice = wait_for_timers(&ns, "alice", json!({"closeAfter": "1s"})).await;
    assert_eq!(status(&alice).state, Some(State::Active));
    let ten_minutes = created(&alice).after(Duration::from_mins(10));
    assert!(close_time(&alice).is_some_and(|time| time >= ten_minutes), "{alice:?}");
    change(&ns, json!({"closeAfter": "24h"})).await;
    let alice = wait_for_timers(&ns, "alice", json!({"closeAfter": "24h"})).await;
    assert_eq!(status(&alice).state, Some(State::Active));
    assert_eq!(close_time(&alice), Some(created(&alice).after(Duration::from_hours(24))));
}

#[tokio::test]
async fn typo_in_a_default_closes_nothing_until_corrected() {
    mistake_closes_nothing(async |ns: &TestNamespace, timers| change_defaults(ns, timers).await).await;
}

#[tokio::test]
async fn recreated_proxy_address_closes_nothing_at_once() {
    mistake_closes_nothing(async |ns: &TestNamespace, timers| {
        delete_defaults(ns).await;
        declare(ns, timers).await;
    })
    .await;
}

#[tokio::test]
async fn default_that_the_watch_shows_late_closes_nothing() {
    let cluster = FaultCluster::start_with(1, FLAGS).await;
    let ns = test_namespace(&cluster).await;
    let mut reads = cluster.proxy.hold(Stage::Before, live_read(&ns));
    declare(&ns, json!({"closeAfter": "1s"})).await;
    ns.create("alice", json!({})).await.unwrap();
    // The default is due to close alice. It is raised before it is read, and the watch does not show this.
    let read = reads.next().await;
    cluster.proxy.freeze_watches(true);
    change_defaults(&ns, json!({"closeAfter": "24h"})).await;
    read.resolve(Fault::Pass);
    // The read is repeated, because the watch may be right after all.
    reads.next().await.resolve(Fault::Pass);
    let again = reads.next().await;
    assert_eq!(status(&ns.conversations().get("alice").await.unwrap()).state, Some(State::Active));
    drop((again, reads));
    cluster.proxy.freeze_watches(false);
    let alice = wait_for_timers(&ns, "alice", json!({"closeAfter": "24h", "closeUnassignedAfter": "12h"})).await;
    assert_eq!(status(&alice).state, Some(State::Active));
}

#[tokio::test]
async fn failed_live_read_closes_nothing_and_delays_no_other_status() {
    let cluster = impatient().await;
    let ns = test_namespace(&cluster).await;
    let failures = cluster.proxy.inject(Stage::Before, Fault::Answer(500), live_read(&ns));
    declare(&ns, json!({"closeAfter": "1s"})).await;
    ns.create("alice", json!({})).await.unwrap();
    failures.wait_for(2).await;
    let changed = ns.change("alice", json!({"participants": []})).await.unwrap();
    let observed = |alice: &Conversation| status(alice).observed_generation == changed.metadata.generation;
    let alice = ns.wait_for("alice", "observed", observed).await;
    assert_eq!(status(&alice).state, Some(State::Active));
    drop(failures);
    ns.wait_for_state("alice", State::Closed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_timer_is_decided_before_the_proxy_addresses_are_known() {
    let cluster = FaultCluster::start_with(1, FLAGS).await;
    let ns = test_namespace(&cluster).await;
    ns.create("alice", json!({"timers": {"closeAfter": "1h"}})).await.unwrap();
    ns.bound("alice").await;
    let replica = cluster.replica();
    replica.stop();
    ns.change("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    let writes = cluster.proxy.inject(Stage::Before, Fault::Pass, status_write(&ns, "alice"));
    for code in [403, 500] {
        let failures = cluster.proxy.inject(Stage::Before, Fault::Answer(code), watch);
        replica.start_without_waiting().unwrap();
        // Its Lease, and the other watches, are far quicker than the third attempt of a watch.
        failures.wait_for(3).await;
        wait_for_answer(replica, "/readyz", &["503", "the watches have not synced"]).await;
        let alice = ns.conversations().get("alice").await.unwrap();
        assert_eq!((status(&alice).state, writes.count()), (Some(State::Active), 0), "{code}");
        if code == 500 {
            drop(failures);
            block_in_place(|| replica.wait_until_ready()).unwrap();
        } else {
            replica.kill();
        }
    }
    ns.wait_for_state("alice", State::Closed).await;
}

// ---- The statuses of ProxyAddresses ----

fn reasons(proxy_address: &ProxyAddress) -> Vec<(Type, ConditionStatus, Reason)> {
    let conditions = proxy_address.status.iter().flat_map(|status| &status.conditions);
    conditions.map(|condition| (condition.type_, condition.status, condition.reason)).collect()
}

/// Waits until the ProxyAddress has this reason of the condition Ready.
async fn wait_for_reason(ns: &TestNamespace, name: &str, reason: Reason) -> ProxyAddress {
    let has_reason = |object: Option<&ProxyAddress>| {
        object.is_some_and(|object| reasons(object).iter().any(|(type_, _, is)| *type_ == Type::Ready && *is == reason))
    };
    let found = until(proxy_addresses(ns), name, has_reason).await.flatten();
    found.unwrap_or_else(|| panic!("{name} did not become {reason:?} within {TIMEOUT:?}"))
}

/// The health of a stored ProxyAddress according to kstatus.
fn kstatus(cluster: &FaultCluster, proxy_address: &ProxyAddress) -> String {
    let [health] = tools::ensure([Tool::Health]).unwrap_or_else(|error| panic!("{error}"));
    let name = proxy_address.metadata.name.as_deref().unwrap();
    let path = cluster.control_plane().data_dir().join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_string(proxy_address).unwrap()).unwrap();
    let script = Path::new(CHART).join("files/health.lua");
    let verdict = crate::common::succeed(Command::new(health).arg(script).arg(path));
    serde_json::from_str::<Value>(&verdict).unwrap()["kstatus"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn older_of_two_proxy_addresses_is_ready_until_it_goes() {
    use ConditionStatus::{False, True};
    let cluster = impatient().await;
    let ns = test_namespace(&cluster).await;
    let [older, younger] = ["older", "younger"].map(|age| format!("{}-{age}", ns.namespace));
    let new = declare_as(&ns, &older, json!({})).await;
    assert_eq!(kstatus(&cluster, &new), "InProgress");
    let ready = wait_for_reason(&ns, &older, Reason::Ready).await;
    assert_eq!(reasons(&ready), [(Type::Accepted, True, Reason::Accepted), (Type::Ready, True, Reason::Ready)]);
    assert_eq!(kstatus(&cluster, &ready), "Current");
    // Creation timestamps have whole seconds. Of two equal ones the name decides, and "older" comes first.
    declare_as(&ns, &younger, json!({})).await;
    let conflicted = wait_for_reason(&ns, &younger, Reason::Conflicted).await;
    let expected = [
        (Type::Accepted, False, Reason::Conflicted),
        (Type::Ready, False, Reason::Conflicted),
        (Type::Stalled, True, Reason::Conflicted),
    ];
    assert_eq!(reasons(&conflicted), expected);
    assert_eq!(kstatus(&cluster, &conflicted), "Failed");
    proxy_addresses(&ns).delete(&older, &DeleteParams::default()).await.unwrap();
    let ready = wait_for_reason(&ns, &younger, Reason::Ready).await;
    assert_eq!(reasons(&ready).len(), 2, "it is no longer stalled");
    let patch = Patch::Merge(json!({"spec": {"defaults": {"timers": {"closeAfter": "24h"}}}}));
    let changed = proxy_addresses(&ns).patch(&younger, &PatchParams::default(), &patch).await.unwrap();
    let is_observed = |object: Option<&ProxyAddress>| {
        let observed = object.and_then(|object| object.status.as_ref()?.observed_generation);
        observed == changed.metadata.generation
    };
    assert!(until(proxy_addresses(&ns), &younger, is_observed).await.is_some(), "the change is observed");
}

#[tokio::test]
async fn autocreate_namespace_must_be_selected_by_its_labels() {
    let ns = test_namespace(&*impatient().await).await;
    let fields = json!({
        "namespaces": {"selector": {"matchLabels": {"team": "sales"}}},
        "inbound": {"sources": ["twilio"], "sink": {"uri": "http://desk"}, "autocreate": {"namespace": ns.namespace}},
    });
    declare_as(&ns, &ns.namespace, fields).await;
    wait_for_reason(&ns, &ns.namespace, Reason::Invalid).await;
    let patch = Patch::Merge(json!({"metadata": {"labels": {"team": "sales"}}}));
    let namespaces = Api::<Namespace>::all(ns.client.clone());
    namespaces.patch(&ns.namespace, &PatchParams::default(), &patch).await.unwrap();
    wait_for_reason(&ns, &ns.namespace, Reason::Ready).await;
}

#[tokio::test]
async fn status_of_a_proxy_address_is_not_written_at_rest() {
    let cluster = impatient().await;
    let ns = test_namespace(&cluster).await;
    let status = format!("/proxyaddresses/{}/status", ns.namespace);
    let writes = cluster.proxy.inject(Stage::Before, Fault::Pass, move |call| call.is("PATCH", &status));
    declare(&ns, json!({"closeAfter": "24h"})).await;
    wait_for_reason(&ns, &ns.namespace, Reason::Ready).await;
    let patch = Patch::Merge(json!({"metadata": {"labels": {"team": "sales"}}}));
    proxy_addresses(&ns).patch(&ns.namespace, &PatchParams::default(), &patch).await.unwrap();
    // A later change is observed after the labels.
    let after = format!("{}-after", ns.namespace);
    declare_as(&ns, &after, json!({})).await;
    wait_for_reason(&ns, &after, Reason::Conflicted).await;
    let deadline = Instant::now() + TIMEOUT;
    while writes.count() == 0 && Instant::now() < deadline {
        sleep(POLL_INTERVAL).await;
    }
    assert_eq!(writes.count(), 1);
}
