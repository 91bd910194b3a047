//! The events that the leader sends to its sink: the same as those that it records in Kubernetes. Tier: processes.

use super::faults_lifecycle::closing;
use super::faults_unseen::create_unseen;
use super::inbound_interop::verify;
use crate::common::cluster::{TIMEOUT, TestNamespace, metrics};
use crate::common::fault_cluster::FaultCluster;
use crate::common::proxy::{Fault, Stage};
use crate::common::routing::SIGNING_SECRET;
use crate::common::sink::{Answer, Received, Sink};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use switchboard::api::{State, Time};
use switchboard::clock::Clock;
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio::time::Instant;

/// The type of the event of each reason.
const TYPES: [(&str, &str); 7] = [
    ("AddressAlreadyBound", "dev.switchboard.conversation.already_bound.v1"),
    ("Bound", "dev.switchboard.conversation.bound.v1"),
    ("Unassigned", "dev.switchboard.conversation.unassigned.v1"),
    ("Inactive", "dev.switchboard.conversation.inactive.v1"),
    ("Reactivated", "dev.switchboard.conversation.reactivated.v1"),
    ("Closed", "dev.switchboard.conversation.closed.v1"),
    ("TTLExpired", "dev.switchboard.conversation.expired.v1"),
];

/// The directory of the signing secrets.
const SECRETS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/events-signing");

/// A cluster whose operator sends events to `sink`, for one test at a time.
struct Events {
    cluster: FaultCluster,
    sink: Sink,
}

/// The cluster, whose sink accepts every event.
async fn events() -> MutexGuard<'static, Events> {
    static EVENTS: OnceCell<Mutex<Events>> = OnceCell::const_new();
    let start = async || {
        let (sink, secrets) = (Sink::start(), Path::new(SECRETS));
        std::fs::create_dir_all(secrets).unwrap();
        std::fs::write(secrets.join("secret"), SIGNING_SECRET).unwrap();
        let flags = [
            "--lease-duration=2s".to_owned(),
            format!("--events-sink={}", sink.url()),
            format!("--signing-secrets-directory={}", secrets.display()),
        ];
        let cluster = FaultCluster::start_with(1, &flags.each_ref().map(String::as_str)).await;
        Mutex::new(Events { cluster, sink })
    };
    let events = EVENTS.get_or_init(start).await.lock().await;
    events.sink.answer(|_| Answer::Status(202));
    events
}

impl Events {
    async fn namespace(&self) -> TestNamespace {
        self.cluster.checked_namespace().await.0
    }

    /// How often the replica has become the leader.
    fn leaderships(&self) -> usize {
        let log = std::fs::read_to_string(self.cluster.replica().log()).unwrap();
        log.matches(r#""message":"leading""#).count()
    }

    /// The events about a namespace so far, in the order of their arrival.
    fn received(&self, ns: &TestNamespace) -> Vec<Received> {
        let all = self.sink.received();
        all.into_iter().filter(|event| is_in(ns, event)).collect()
    }

    /// Waits until the sink has accepted an event for each Event of the namespace, and returns the accepted ones.
    async fn wait_until_all_are_accepted(&self, ns: &TestNamespace) -> Vec<Received> {
        let expected: BTreeSet<_> = recorded(ns).await.into_keys().collect();
        let accepted = |all: &[Received]| -> BTreeSet<String> {
            let accepted = all.iter().filter(|event| is_in(ns, event) && event.is_accepted());
            accepted.map(|event| event.attribute("id").unwrap().to_owned()).collect()
        };
        self.sink.wait_until(|all| accepted(all).is_superset(&expected)).await;
        self.received(ns).into_iter().filter(Received::is_accepted).collect()
    }
}

fn is_in(ns: &TestNamespace, event: &Received) -> bool {
    event.conversation().unwrap().starts_with(&format!("{}/", ns.namespace))
}

/// The Events that the operator has recorded in a namespace, by the ID that the event of each must have.
async fn recorded(ns: &TestNamespace) -> BTreeMap<String, Event> {
    let events = Api::<Event>::namespaced(ns.client.clone(), &ns.namespace).list(&ListParams::default()).await.unwrap();
    let id = |event: &Event| {
        let (uid, reason) = (event.regarding.clone().unwrap().uid.unwrap(), event.reason.clone().unwrap());
        format!("{uid}/{reason}/{}", Time::new(event.event_time.as_ref().unwrap().0))
    };
    events.items.into_iter().map(|event| (id(&event), event)).collect()
}

#[tokio::test]
async fn each_event_reaches_the_sink_once_as_it_is_recorded() {
    let events = events().await;
    let leaderships = events.leaderships();
    let ns = events.namespace().await;
    let alice = json!({"participants": [], "timers": {"inactiveAfter": "2s"}, "ttlAfterClosed": "1s"});
    ns.create("alice", alice).await.unwrap();
    ns.bound("alice").await;
    create_unseen(&events.cluster, &ns, &[("unseen", json!({}))]).await;
    ns.wait_for_event("unseen", "AddressAlreadyBound").await;
    ns.wait_for_event("alice", "Inactive").await;
    ns.report_activity("alice", &Clock.now().to_string()).await.unwrap();
    ns.wait_for_event("alice", "Reactivated").await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.wait_for_event("unseen", "Bound").await;
    ns.wait_for_event("alice", "TTLExpired").await;

    let accepted = events.wait_until_all_are_accepted(&ns).await;
    let recorded = recorded(&ns).await;
    let ids: BTreeSet<_> = accepted.iter().map(|event| event.attribute("id").unwrap().to_owned()).collect();
    assert_eq!(ids, recorded.keys().cloned().collect());
    // A new leader repeats them. On a busy machine, the replica may lose the Lease of two seconds.
    if events.leaderships() == leaderships {
        assert_eq!(accepted.len(), recorded.len(), "{accepted:?}");
    }
    for event in &accepted {
        let attribute = |name: &str| event.attribute(name).unwrap();
        let recorded = &recorded[attribute("id")];
        let (reason, regarding) = (recorded.reason.as_deref().unwrap(), recorded.regarding.as_ref().unwrap());
        let type_ = TYPES.iter().find(|(of, _)| *of == reason).unwrap().1;
        assert_eq!((attribute("type"), attribute("source")), (type_, "/conversations"));
        let (uid, name) = (regarding.uid.as_deref().unwrap(), regarding.name.as_deref().unwrap());
        assert_eq!(
            (attribute("partitionkey"), attribute("subject")),
            (uid, format!("{}/{name}", ns.namespace).as_str())
        );
        assert_eq!(attribute("time"), Time::new(recorded.event_time.as_ref().unwrap().0).to_string());
        assert_eq!(event.data["message"].as_str(), recorded.note.as_deref());
        assert_eq!(event.data["conversation"]["uid"].as_str(), Some(uid));
        let has_addresses = reason != "TTLExpired";
        assert_eq!(event.data["contact"].as_str(), Some(ns.contact.as_str()).filter(|_| has_addresses), "{reason}");
        assert!(event.is_signed_by(SIGNING_SECRET), "{event:?}");
        let logged_by_intermediaries = format!("{:?}", event.headers);
        assert!(!logged_by_intermediaries.contains(&ns.contact[1..]), "{logged_by_intermediaries}");
    }
    let of = |name: &str, kind: &str| {
        let subject = format!("{}/{name}", ns.namespace);
        accepted.iter().find(|event| event.conversation() == Some(&subject) && event.kind() == kind).unwrap()
    };
    let closed = &of("alice", "closed").data;
    assert_eq!((&closed["reason"], &closed["conversation"]["state"]), (&json!("Spec"), &json!("Closed")));
    assert_eq!(of("alice", "reactivated").data["reason"], "Activity");
    assert_eq!(of("unseen", "bound").data["conversation"]["participants"], json!(["agent-7"]));
    let kinds: BTreeSet<_> = accepted.iter().map(|event| event.attribute("type").unwrap()).collect();
    assert_eq!(kinds, TYPES.iter().map(|(_, type_)| *type_).collect(), "each of them");
    let read = verify(SIGNING_SECRET, &accepted);
    assert!(read.iter().zip(&accepted).all(|(read, event)| read["id"].as_str() == event.attribute("id")), "{read:?}");
    let log = std::fs::read_to_string(events.cluster.replica().log()).unwrap();
    assert!(!log.contains(&ns.contact[1..]), "the log contains the address of the contact");
}

#[tokio::test]
async fn failing_sink_delays_no_work_and_gets_each_event_later() {
    let events = events().await;
    let ns = events.namespace().await;
    events.sink.answer(|_| Answer::Never);
    for number in 0..12 {
        ns.create(&format!("c{number}"), json!({"contact": null, "participants": []})).await.unwrap();
    }
    ns.create("alice", json!({"participants": []})).await.unwrap();
    ns.bound("alice").await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.wait_until_free().await;
    ns.wait_for_event("alice", "Closed").await;
    assert!(events.received(&ns).iter().all(|event| event.status == 0), "the sink has answered nothing");

    // An event that fails delays only the later ones of its conversation.
    let subject = format!("{}/alice", ns.namespace);
    let of_alice = subject.clone();
    events.sink.answer(move |event| {
        let fails = event.conversation() == Some(&of_alice) && event.kind() == "unassigned";
        Answer::Status(if fails { 500 } else { 202 })
    });
    let failures = |all: &[Received]| all.iter().filter(|event| is_in(&ns, event) && event.status == 500).count();
    let others = |all: &[Received]| all.iter().filter(|event| is_in(&ns, event) && event.is_accepted()).count();
    events.sink.wait_until(|all| failures(all) >= 2 && others(all) >= 12).await;
    events.sink.answer(|_| Answer::Status(202));
    let accepted = events.wait_until_all_are_accepted(&ns).await;
    let of_alice: Vec<_> = accepted.iter().filter(|event| event.conversation() == Some(&subject)).collect();
    assert_eq!(of_alice.iter().map(|event| event.kind()).collect::<Vec<_>>(), ["unassigned", "closed"]);

    // An event that the sink refuses for good is not sent again, and delays no other.
    events.sink.answer(|event| Answer::Status(if event.kind() == "unassigned" { 422 } else { 202 }));
    ns.create("bob", json!({"contact": null, "participants": []})).await.unwrap();
    ns.wait_for_event("bob", "Unassigned").await;
    ns.change("bob", json!({"state": "Closed"})).await.unwrap();
    let of_bob = |all: &[Received]| -> Vec<(String, u16)> {
        let subject = format!("{}/bob", ns.namespace);
        let of_bob = all.iter().filter(|event| event.conversation() == Some(&subject));
        of_bob.map(|event| (event.kind().to_owned(), event.status)).collect()
    };
    let expected = [("unassigned".to_owned(), 422), ("closed".to_owned(), 202)];
    events.sink.wait_until(|all| of_bob(all) == expected).await;
    // The refusal was counted before the next event of bob was sent.
    let served = metrics(events.cluster.replica()).await;
    assert!(served.contains(r#"switchboard_lifecycle_events_total{outcome="refused"} "#), "{served}");
    for outcome in ["accepted", "retried", "refused"] {
        let sample = format!(r#"switchboard_lifecycle_events_total{{outcome="{outcome}"}} 0"#);
        assert!(!served.contains(&sample), "{sample}");
    }
}

#[tokio::test]
async fn event_of_a_killed_leader_is_repeated_under_its_id() {
    let events = events().await;
    let ns = events.namespace().await;
    ns.create("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    events.sink.answer(|event| if event.kind() == "closed" { Answer::Never } else { Answer::Status(202) });
    ns.wait_for_state("alice", State::Closed).await;
    events.sink.wait_until(|all| all.iter().any(|event| is_in(&ns, event))).await;
    events.cluster.replica().kill();
    let before = events.received(&ns).len();
    events.sink.answer(|_| Answer::Status(202));
    events.cluster.replica().start().unwrap();
    events.sink.wait_until(|all| all.iter().filter(|event| is_in(&ns, event)).count() > before).await;
    let accepted = events.wait_until_all_are_accepted(&ns).await;
    let ids: BTreeSet<_> = events.received(&ns).iter().map(|event| event.attribute("id").unwrap().to_owned()).collect();
    assert_eq!(ids, recorded(&ns).await.into_keys().collect(), "one ID for each Event");
    let repeated = accepted.last().unwrap();
    assert_eq!((repeated.kind(), &repeated.data["reason"]), ("closed", &json!("CloseTimer")));
    assert_eq!(repeated.data["contact"], json!(ns.contact), "the data too is read again");
}

#[tokio::test]
async fn event_of_a_write_whose_answer_is_lost_is_sent() {
    let events = events().await;
    let ns = events.namespace().await;
    let lost = events.cluster.proxy.inject(Stage::After, Fault::Cut, closing(&ns, "alice"));
    ns.create("alice", json!({"timers": {"closeAfter": "1s"}})).await.unwrap();
    lost.wait_for(1).await;
    drop(lost);
    ns.wait_for_event("alice", "Closed").await;
    let accepted = events.wait_until_all_are_accepted(&ns).await;
    assert_eq!(accepted.last().map(Received::kind), Some("closed"), "{accepted:?}");
}

#[tokio::test]
async fn changed_signing_secret_is_taken_up_without_a_restart() {
    let events = events().await;
    let ns = events.namespace().await;
    let second = Path::new(SECRETS).join("second");
    std::fs::write(&second, "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX").unwrap();
    let signatures = |event: &Received| event.headers["webhook-signature"].to_str().unwrap().split(' ').count();
    let deadline = Instant::now() + TIMEOUT;
    for number in 0.. {
        let name = format!("c{number}");
        ns.create(&name, json!({"contact": null, "participants": []})).await.unwrap();
        let subject = format!("{}/{name}", ns.namespace);
        let is_of = |event: &Received| event.conversation() == Some(subject.as_str()) && event.is_accepted();
        events.sink.wait_until(|all| all.iter().any(is_of)).await;
        if events.received(&ns).iter().any(|event| signatures(event) == 2) {
            break;
        }
        assert!(Instant::now() < deadline, "the second secret signs nothing");
    }
    std::fs::remove_file(second).unwrap();
}
