//! Inbound messages while something fails: the API server, a watch, a request of the router. Tier: processes.

use crate::common::cluster::{Cluster, TIMEOUT};
use crate::common::proxy::{Call, Fault, Proxy, Stage};
use crate::common::routing::{Answered, Inbound, builder, token};
use crate::common::sink::Answer;
use control_plane::Router;
use futures::future::join_all;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use switchboard::api::{Conversation, ConversationStatus};
use tokio::time::Instant;

/// A router behind a proxy, and a proxy address that it knows.
struct RouterBehindProxy {
    proxy: Proxy,
    router: Router,
    inbound: Inbound,
}

impl RouterBehindProxy {
    async fn start(changes: Value) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let control_plane = &Cluster::shared().control_plane;
        let proxy = Proxy::to_api_server(control_plane, 0).await;
        let kubeconfig = std::fs::read_to_string(proxy.kubeconfig(control_plane, &token(control_plane))).unwrap();
        let name = format!("router-behind-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let router = builder(&name).kubeconfig(kubeconfig).start(control_plane).unwrap();
        let inbound = Inbound::new(changes).await;
        Self { proxy, router, inbound }
    }

    async fn send(&self, id: &str) -> Answered {
        self.inbound.message(id).send(self.router.inbound_address()).await
    }

    /// Sends a message again, as a provider does, until it is accepted.
    async fn send_until_accepted(&self, id: &str) {
        let deadline = Instant::now() + TIMEOUT;
        while self.send(id).await.status != StatusCode::OK {
            assert!(Instant::now() < deadline, "{id} is never accepted");
        }
    }

    /// Sends messages until the watches of the router show the ProxyAddress and who holds the binding, so that it reads nothing.
    async fn send_until_watched(&self) {
        let deadline = Instant::now() + TIMEOUT;
        for number in 0.. {
            // The claim of the binding, or the ProxyAddresses.
            let is_read = |call: &Call| {
                let is_of_router = call.path.contains("/addressbindings/") || call.path.ends_with("/proxyaddresses");
                is_of_router && !call.query.contains("watch=true")
            };
            let reads = self.proxy.inject(Stage::Before, Fault::Pass, is_read);
            self.send_until_accepted(&format!("watched-{number}")).await;
            if reads.count() == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "the watches do not show the binding");
        }
    }

    /// The conversations that the accepted messages with this ID went to.
    fn recipients(&self, id: &str) -> Vec<String> {
        let received = self.inbound.sink.accepted("received");
        let with_id = received.iter().filter(|event| event.attribute("id") == Some(id));
        with_id.map(|event| event.conversation().unwrap().to_owned()).collect()
    }

    async fn wait_until_reported(&self, name: &str) {
        let is_reported = |status: &ConversationStatus| status.reported_activity_time.is_some();
        let condition = |conversation: &Conversation| conversation.status.as_ref().is_some_and(is_reported);
        self.inbound.ns.wait_for(name, "reported", condition).await;
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.inbound.ns.namespace)
    }
}

fn is_report(call: &Call) -> bool {
    call.is("PATCH", "/status")
}

fn is_create(call: &Call) -> bool {
    call.is("POST", "/conversations")
}

#[tokio::test]
async fn known_binding_is_served_while_the_api_server_is_away() {
    let behind = RouterBehindProxy::start(json!({})).await;
    behind.inbound.ns.create("alice", json!({})).await.unwrap();
    behind.inbound.ns.bound("alice").await;
    behind.send_until_watched().await;
    for (number, fault) in [Fault::Cut, Fault::Answer(503), Fault::Answer(429)].into_iter().enumerate() {
        // The watches go on: they would be doubted otherwise.
        let is_request = |call: &Call| !call.query.contains("watch=true");
        let _away = behind.proxy.inject(Stage::Before, fault, is_request);
        let id = format!("known-{number}");
        assert_eq!(behind.send(&id).await.status, StatusCode::OK);
        assert_eq!(behind.recipients(&id), [behind.full_name("alice")]);
        let mut unknown = behind.inbound.message("unknown");
        unknown.data["contact"] = json!(behind.inbound.ns.contact.replacen("+1555", "+1557", 1));
        let answered = unknown.send(behind.router.inbound_address()).await;
        assert_eq!(answered.status, StatusCode::SERVICE_UNAVAILABLE, "{fault:?}");
        assert!(answered.headers.contains_key("retry-after"));
        println!("an unknown binding while the API server is away ({fault:?}): 503 after {:?}", answered.took);
    }
    assert!(behind.recipients("unknown").is_empty());
}

#[tokio::test]
async fn report_that_hangs_does_not_hold_up_messages() {
    let behind = RouterBehindProxy::start(json!({})).await;
    behind.inbound.ns.create("alice", json!({})).await.unwrap();
    behind.inbound.ns.bound("alice").await;
    let mut held = behind.proxy.hold(Stage::Before, is_report);
    behind.send_until_accepted("m0").await;
    let report = held.next().await;
    for number in 1..5 {
        assert_eq!(behind.send(&format!("m{number}")).await.status, StatusCode::OK);
    }
    report.resolve(Fault::Pass);
    behind.wait_until_reported("alice").await;
}

#[tokio::test]
async fn failed_report_is_made_at_the_end_of_the_window() {
    let behind = RouterBehindProxy::start(json!({})).await;
    behind.inbound.ns.create("alice", json!({"timers": {"inactiveAfter": "6s"}})).await.unwrap();
    behind.inbound.ns.bound("alice").await;
    let failing = behind.proxy.inject(Stage::Before, Fault::Answer(500), is_report);
    behind.send_until_accepted("m0").await;
    failing.wait_for(1).await;
    drop(failing);
    behind.wait_until_reported("alice").await;
}

#[tokio::test]
async fn stalled_watch_sends_no_message_to_a_closed_conversation() {
    let behind = RouterBehindProxy::start(json!({})).await;
    let ns = &behind.inbound.ns;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    behind.send_until_watched().await;
    let mut other = behind.inbound.message("other");
    other.data["contact"] = json!(ns.contact.replacen("+1555", "+1557", 1));
    assert_eq!(other.send(behind.router.inbound_address()).await.status, StatusCode::OK);
    let opened = behind.recipients("other").pop().unwrap().rsplit('/').next().unwrap().to_owned();
    // It has no activity window, since it was created by the message.
    behind.proxy.freeze_watches(true);
    ns.change(&opened, json!({"state": "Closed"})).await.unwrap();
    other.id = "other-2".to_owned();
    let answered = other.send(behind.router.inbound_address()).await;
    behind.proxy.freeze_watches(false);
    assert_eq!(answered.status, StatusCode::OK);
    let second = behind.recipients("other-2");
    assert_eq!(second.len(), 1);
    assert_ne!(second, [behind.full_name(&opened)]);
}

#[tokio::test]
async fn stalled_watch_lets_no_message_overtake_a_conversation() {
    let behind = RouterBehindProxy::start(json!({})).await;
    let ns = &behind.inbound.ns;
    let mut other = behind.inbound.message("other");
    other.data["contact"] = json!(ns.contact.replacen("+1555", "+1557", 1));
    ns.create("first", json!({"contact": {"address": other.data["contact"]}})).await.unwrap();
    ns.bound("first").await;
    ns.create("alice", json!({})).await.unwrap();
    ns.bound("alice").await;
    // Since alice is younger, the router has seen both. It sees neither the one that waits nor the close.
    behind.send_until_watched().await;
    behind.proxy.freeze_watches(true);
    ns.create("next", json!({"contact": {"address": other.data["contact"]}, "onConflict": "Wait"})).await.unwrap();
    ns.change("first", json!({"state": "Closed"})).await.unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while other.send(behind.router.inbound_address()).await.status != StatusCode::OK {
        assert!(Instant::now() < deadline, "it is never delivered");
    }
    behind.proxy.freeze_watches(false);
    assert_eq!(behind.recipients("other"), [behind.full_name("next")]);
}

#[tokio::test]
async fn refused_create_does_not_make_a_held_binding_unroutable() {
    // The router may not create conversations there.
    let behind = RouterBehindProxy::start(json!({"autocreate": {"namespace": "default"}})).await;
    let ns = &behind.inbound.ns;
    ns.create("alice", json!({})).await.unwrap();
    behind.send_until_watched().await;
    behind.proxy.freeze_watches(true);
    let mut other = behind.inbound.message("other");
    other.data["contact"] = json!(ns.contact.replacen("+1555", "+1557", 1));
    ns.create("bob", json!({"contact": {"address": other.data["contact"]}})).await.unwrap();
    assert_eq!(other.send(behind.router.inbound_address()).await.status, StatusCode::OK);
    behind.proxy.freeze_watches(false);
    assert_eq!(behind.recipients("other"), [behind.full_name("bob")]);
}

#[tokio::test]
async fn create_of_unknown_outcome_opens_one_conversation() {
    for (stage, fault) in
        [(Stage::After, Fault::Cut), (Stage::After, Fault::Answer(503)), (Stage::Before, Fault::Twice)]
    {
        let behind = RouterBehindProxy::start(json!({})).await;
        let failing = behind.proxy.inject(stage, fault, is_create);
        let first = tokio::spawn({
            let (message, address) = (behind.inbound.message("m"), behind.router.inbound_address());
            async move { message.try_send(address).await }
        });
        failing.wait_for(1).await;
        drop(failing);
        let answered = first.await.unwrap().unwrap();
        if answered.status != StatusCode::OK {
            behind.send_until_accepted("m").await;
        }
        let names = behind.inbound.conversations().await;
        assert_eq!(names.len(), 1, "{stage:?} {fault:?}");
        assert_eq!(behind.recipients("m"), [behind.full_name(&names[0])], "{stage:?} {fault:?}");
        let created = behind.inbound.sink.accepted("created");
        assert!(!created.is_empty(), "{stage:?} {fault:?}: whoever assigns conversations is not asked");
    }
}

#[tokio::test]
async fn client_that_disconnects_leaves_its_binding_usable() {
    let behind = RouterBehindProxy::start(json!({})).await;
    let mut held = behind.proxy.hold(Stage::Before, is_create);
    let sending = tokio::spawn({
        let (message, address) = (behind.inbound.message("m"), behind.router.inbound_address());
        async move { message.try_send(address).await }
    });
    let create = held.next().await;
    sending.abort();
    create.resolve(Fault::Pass);
    drop(held);
    behind.send_until_accepted("m").await;
    assert_eq!(behind.inbound.conversations().await.len(), 1);
}

#[tokio::test]
async fn message_during_a_delivery_waits_for_its_turn() {
    let behind = RouterBehindProxy::start(json!({})).await;
    behind.inbound.ns.create("alice", json!({})).await.unwrap();
    behind.inbound.ns.bound("alice").await;
    behind.send_until_accepted("before").await;
    behind.inbound.sink.answer(|event| match event.attribute("id") {
        Some("m0") => Answer::Never,
        _ => Answer::Status(202),
    });
    let send = |id: String| {
        let (message, address) = (behind.inbound.message(&id), behind.router.inbound_address());
        tokio::spawn(async move { message.send(address).await })
    };
    let first = send("m0".to_owned());
    behind.inbound.sink.wait_until(|events| events.iter().any(|event| event.attribute("id") == Some("m0"))).await;
    let others: Vec<_> = (1..4).map(|number| send(format!("m{number}"))).collect();
    // A message of another contact does not wait.
    let mut other = behind.inbound.message("other");
    other.data["contact"] = json!(behind.inbound.ns.contact.replacen("+1555", "+1557", 1));
    assert_eq!(other.send(behind.router.inbound_address()).await.status, StatusCode::OK);
    assert!(behind.recipients("m1").is_empty(), "it has overtaken another one");
    behind.inbound.sink.answer(|_| Answer::Status(202));
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    assert!(join_all(others).await.into_iter().all(|answered| answered.unwrap().status == StatusCode::OK));
    let received = behind.inbound.sink.received();
    let order: Vec<_> =
        received.iter().filter_map(|event| event.attribute("id")).filter(|id| id.starts_with('m')).collect();
    assert_eq!(order[0], "m0");
    assert_eq!(order.len(), 4);
}

#[tokio::test]
async fn shutdown_answers_the_messages_in_flight() {
    let behind = RouterBehindProxy::start(json!({})).await;
    behind.inbound.ns.create("alice", json!({})).await.unwrap();
    behind.send_until_accepted("before").await;
    behind.inbound.sink.answer(|_| Answer::Never);
    let sending = tokio::spawn({
        let (message, address) = (behind.inbound.message("m"), behind.router.inbound_address());
        async move { message.send(address).await }
    });
    behind.inbound.sink.wait_until(|events| events.iter().any(|event| event.attribute("id") == Some("m"))).await;
    behind.router.terminate();
    behind.inbound.sink.answer(|_| Answer::Status(202));
    assert_eq!(sending.await.unwrap().status, StatusCode::OK);
    let ended = behind.router.wait(crate::common::cluster::TIMEOUT);
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}
