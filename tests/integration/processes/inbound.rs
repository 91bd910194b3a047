//! Inbound messages: they find their conversation by its binding, or create it, and reach the sink. Tier: processes.

use crate::common::cluster::{Cluster, create_namespace, metrics};
use crate::common::routing::{Inbound, SIGNING_SECRET, TOKEN, builder, post, request, request_once, routers};
use crate::common::sink::{Answer, Received, Sink};
use futures::future::join_all;
use hyper::StatusCode;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;
use switchboard::api::{Conversation, State};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// The `data.conversation` of an event, without its UID.
fn conversation(event: &Received) -> Value {
    let mut conversation = event.data["conversation"].clone();
    conversation.as_object_mut().unwrap().remove("uid");
    conversation
}

fn ids(events: &[Received]) -> Vec<&str> {
    events.iter().map(|event| event.attribute("id").unwrap()).collect()
}

#[tokio::test]
async fn message_reaches_the_conversation_that_holds_its_binding() {
    let inbound = Inbound::new(json!({})).await;
    let created = inbound.ns.create("alice", json!({})).await.unwrap();
    for router in 0..2 {
        let id = format!("m{router}");
        assert_eq!(inbound.send(router, &id).await.status, StatusCode::OK);
        let received = inbound.sink.accepted("received");
        let event = received.last().unwrap();
        assert_eq!(event.attribute("id"), Some(id.as_str()));
        let source = format!("/proxyaddresses/{0}#/tests/{0}", inbound.ns.namespace);
        assert_eq!(event.attribute("source"), Some(source.as_str()));
        assert_eq!(event.conversation(), Some(format!("{}/alice", inbound.ns.namespace).as_str()));
        assert_eq!(event.attribute("partitionkey"), created.metadata.uid.as_deref());
        assert_eq!(event.data["conversation"]["uid"].as_str(), created.metadata.uid.as_deref());
        assert_eq!(
            conversation(event),
            json!({
                "namespace": inbound.ns.namespace, "name": "alice", "state": "Active", "participants": ["agent-7"],
                "created": false,
            })
        );
        let fields = ["channel", "contact", "proxy"].map(|field| event.data[field].as_str().unwrap().to_owned());
        assert_eq!(fields, ["SMS".to_owned(), inbound.ns.contact.clone(), inbound.ns.proxy.clone()]);
        assert_eq!((&event.data["raw"]["text"], &event.data["kind"]), (&json!(id), &json!("message")));
        assert!(event.is_signed_by(SIGNING_SECRET), "{event:?}");
        let logged_by_intermediaries = format!("{:?}", event.headers);
        assert!(!logged_by_intermediaries.contains(&inbound.ns.contact[1..]), "{logged_by_intermediaries}");
    }
    assert_eq!(inbound.conversations().await, ["alice"]);
}

#[tokio::test]
async fn fifty_first_messages_open_one_conversation() {
    let assignment = json!({"identities": ["agent-7"], "strategy": "LeastOpen"});
    let inbound = Inbound::new(json!({})).await;
    let autocreate = json!({
        "namespace": inbound.ns.namespace, "labels": {"team": "sales"}, "ttlAfterClosed": "720h", "maxPerMinute": 1000,
        "assignment": assignment,
    });
    let patch = Patch::Merge(json!({"spec": {"inbound": {"autocreate": autocreate}}}));
    inbound.proxy_addresses().patch(&inbound.ns.namespace, &PatchParams::default(), &patch).await.unwrap();
    // Both routers know the address, and that it creates assigned conversations.
    for router in 0..2 {
        let mut probe = inbound.message("probe");
        probe.data["contact"] = json!(format!("{}7", inbound.ns.contact.replacen("+1555", "+1557", 1)));
        until_assigned(&inbound, router, &probe).await;
    }
    let before = inbound.conversations().await.len();
    let sent = join_all((0..50).map(|number| {
        let message = inbound.message(&format!("first-{number}"));
        async move { (message.id.clone(), message.send(routers()[number % 2].inbound_address()).await) }
    }));
    let sent = sent.await;
    assert!(sent.iter().all(|(_, answered)| answered.status == StatusCode::OK), "{sent:?}");
    assert_eq!(inbound.conversations().await.len(), before + 1);
    let received = inbound.sink.accepted("received");
    let of_contact: Vec<_> =
        received.iter().filter(|event| event.data["contact"] == json!(inbound.ns.contact)).collect();
    let subjects: HashSet<_> = of_contact.iter().map(|event| event.conversation().unwrap()).collect();
    assert_eq!((of_contact.len(), subjects.len()), (50, 1));
    assert_eq!(of_contact.iter().filter(|event| event.data["conversation"]["created"] == json!(true)).count(), 1);
    assert!(of_contact.iter().all(|event| event.data["conversation"]["participants"] == json!(["agent-7"])));
    for (id, answered) in &sent {
        let event = of_contact.iter().find(|event| event.attribute("id") == Some(id)).unwrap();
        assert!(event.answered <= answered.at, "{id} was answered before its delivery");
    }
    let created = inbound.sink.accepted("created");
    let of_contact = created.iter().filter(|event| event.data["contact"] == json!(inbound.ns.contact)).count();
    assert_eq!(of_contact, 1);
    let name = subjects.iter().next().unwrap().rsplit('/').next().unwrap();
    let stored = inbound.ns.conversations().get(name).await.unwrap();
    assert_eq!(stored.metadata.labels.unwrap()["team"], "sales");
    assert_eq!(stored.spec.ttl_after_closed, Some("720h".parse().unwrap()));
}

/// Sends messages of other contacts to a router until it creates an assigned conversation.
async fn until_assigned(inbound: &Inbound, router: usize, probe: &crate::common::routing::Message) {
    for number in 0..1000 {
        let mut probe = probe.clone();
        probe.id = format!("probe-{router}-{number}");
        probe.data["contact"] = json!(format!("+1557{router}{number:03}{}", &inbound.ns.contact[9..]));
        let answered = probe.send(routers()[router].inbound_address()).await;
        let received = inbound.sink.accepted("received");
        let event = received.iter().find(|event| event.attribute("id") == Some(&probe.id));
        if answered.status == StatusCode::OK
            && event.is_some_and(|event| event.data["conversation"]["participants"] == json!(["agent-7"]))
        {
            return;
        }
    }
    panic!("no conversation is assigned: {:?}", inbound.sink.received());
}

#[tokio::test]
async fn message_after_a_close_opens_another_conversation() {
    let inbound = Inbound::new(json!({})).await;
    assert_eq!(inbound.send(0, "first").await.status, StatusCode::OK);
    let first = inbound.conversations().await;
    assert_eq!(first.len(), 1);
    inbound.ns.bound(&first[0]).await;
    inbound.ns.change(&first[0], json!({"state": "Closed"})).await.unwrap();
    // The other router has not delivered it, so it looks for its conversation.
    let again = inbound.send(1, "first").await;
    assert_eq!(again.status, StatusCode::OK);
    let unroutable = inbound.sink.accepted("unroutable");
    assert_eq!(ids(&unroutable), ["first/unroutable"]);
    assert_eq!(unroutable[0].data["reason"], "ConversationClosed");
    assert_eq!(inbound.conversations().await, first, "the opening message opens no second conversation");
    assert_eq!(inbound.send(1, "second").await.status, StatusCode::OK);
    let both = inbound.conversations().await;
    assert_eq!(both.len(), 2);
    let received = inbound.sink.accepted("received");
    assert_eq!(ids(&received), ["first", "second"]);
    assert_ne!(received[0].conversation(), received[1].conversation());
    // The opening message goes to the present holder now.
    assert_eq!(inbound.send(0, "third").await.status, StatusCode::OK);
    let received = inbound.sink.accepted("received");
    assert_eq!(received[2].conversation(), received[1].conversation());
}

#[tokio::test]
async fn message_is_not_acknowledged_before_a_sink_accepts_it() {
    let inbound = Inbound::new(json!({})).await;
    inbound.ns.create("alice", json!({})).await.unwrap();
    assert_eq!(inbound.send(0, "known").await.status, StatusCode::OK);
    let elsewhere = Sink::start();
    for answer in [
        Answer::Status(500),
        Answer::Status(429),
        Answer::Status(404),
        Answer::Never,
        Answer::Redirect(elsewhere.url()),
    ] {
        let told = answer.clone();
        inbound.sink.answer(move |_| told.clone());
        let refused = inbound.send(0, "m").await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        assert!(refused.headers.contains_key("retry-after"));
        println!("a sink that answers {answer:?}: 503 after {:?}", refused.took);
    }
    assert!(elsewhere.received().is_empty(), "a redirect is not followed");
    assert_eq!(ids(&inbound.sink.accepted("received")), ["known"]);
    inbound.sink.answer(|_| Answer::Status(202));
    assert_eq!(inbound.send(0, "m").await.status, StatusCode::OK);
    assert_eq!(ids(&inbound.sink.accepted("received")).last(), Some(&"m"));
}

#[tokio::test]
async fn message_that_the_sink_refuses_goes_to_the_dead_letter_sink() {
    let inbound = Inbound::new(json!({})).await;
    inbound.ns.create("alice", json!({})).await.unwrap();
    inbound.sink.answer(|_| Answer::Status(422));
    assert_eq!(inbound.send(0, "refused").await.status, StatusCode::OK, "the sink has decided");
    assert_eq!(inbound.sink.received().len(), 1, "it is not asked again");

    let dead_letters = Sink::start();
    let inbound = Inbound::new(json!({"deadLetterSink": {"uri": dead_letters.url()}})).await;
    inbound.ns.create("alice", json!({})).await.unwrap();
    for (id, status) in [("refused", 422), ("failed", 500)] {
        inbound.sink.answer(move |_| Answer::Status(status));
        assert_eq!(inbound.send(0, id).await.status, StatusCode::OK);
        assert_eq!(ids(&dead_letters.accepted("received")).last(), Some(&id));
    }
    dead_letters.answer(|_| Answer::Status(500));
    assert_eq!(inbound.send(0, "lost").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn repeated_message_is_delivered_once() {
    let inbound = Inbound::new(json!({})).await;
    for _ in 0..3 {
        assert_eq!(inbound.send(0, "m").await.status, StatusCode::OK);
    }
    let at_once = join_all((0..5).map(|_| inbound.send(0, "n"))).await;
    assert!(at_once.iter().all(|answered| answered.status == StatusCode::OK));
    assert_eq!(ids(&inbound.sink.accepted("received")), ["m", "n"]);
    assert_eq!(inbound.conversations().await.len(), 1);
}

#[tokio::test]
async fn batch_that_half_failed_arrives_once_when_sent_again() {
    let inbound = Inbound::new(json!({})).await;
    assert_eq!(inbound.send(0, "known").await.status, StatusCode::OK);
    let contacts = ["+1557", "+1558", "+1558", "+1559"].map(|prefix| inbound.ns.contact.replacen("+1555", prefix, 1));
    let ids_sent = ["m0", "m1", "m2", "m3"];
    let events = ids_sent.iter().zip(&contacts).map(|(id, contact)| {
        let mut message = inbound.message(id);
        message.data["contact"] = json!(contact);
        message.body()
    });
    let batch = Value::Array(events.collect());
    let router = routers()[0].inbound_address();
    let send = async || request_once(request(router, "gateway", TOKEN, &batch)).await.unwrap();
    let delivered = |id: &str| {
        let accepted = inbound.sink.accepted("received");
        ids(&accepted).iter().filter(|accepted| **accepted == id).count()
    };
    inbound.sink.answer(|event| Answer::Status(if event.attribute("id") == Some("m1") { 500 } else { 202 }));
    assert_eq!(send().await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ids_sent.map(delivered), [1, 0, 0, 1], "the message after the failed one of its binding is held back");
    inbound.sink.answer(|_| Answer::Status(202));
    assert_eq!(send().await.status, StatusCode::OK);
    assert_eq!(ids_sent.map(delivered), [1; 4]);
    let accepted = inbound.sink.accepted("received");
    assert!(ids(&accepted).ends_with(&["m1", "m2"]), "the order of a binding is kept: {:?}", ids(&accepted));
    assert_eq!(inbound.conversations().await.len(), 4);
}

#[tokio::test]
async fn message_that_was_not_delivered_can_be_sent_again() {
    let inbound = Inbound::new(json!({"autocreate": null})).await;
    assert_eq!(inbound.send(0, "m").await.status, StatusCode::OK);
    assert_eq!(ids(&inbound.sink.accepted("unroutable")), ["m/unroutable"]);
    inbound.ns.create("alice", json!({})).await.unwrap();
    assert_eq!(inbound.send(0, "m").await.status, StatusCode::OK);
    assert_eq!(ids(&inbound.sink.accepted("received")), ["m"]);
}

#[tokio::test]
async fn message_without_a_conversation_is_unroutable_without_autocreate() {
    let inbound = Inbound::new(json!({"autocreate": null})).await;
    assert_eq!(inbound.send(0, "m").await.status, StatusCode::OK);
    let told = inbound.sink.accepted("unroutable");
    assert_eq!((ids(&told), &told[0].data["reason"]), (vec!["m/unroutable"], &json!("NoConversation")));
    assert_eq!(told[0].data["raw"]["text"], "m");
    inbound.sink.answer(|_| Answer::Status(500));
    assert_eq!(inbound.send(0, "n").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn create_that_is_not_admitted_is_unroutable() {
    let inbound = Inbound::new(json!({})).await;
    // The router has no RoleBinding there.
    let elsewhere = format!("{}-elsewhere", inbound.ns.namespace);
    create_namespace(&inbound.ns.client, &elsewhere).await;
    let patch = Patch::Merge(json!({"spec": {"inbound": {"autocreate": {"namespace": elsewhere}}}}));
    inbound.proxy_addresses().patch(&inbound.ns.namespace, &PatchParams::default(), &patch).await.unwrap();
    for number in 0..1000 {
        let mut message = inbound.message(&format!("m{number}"));
        message.data["contact"] = json!(format!("+1558{number:03}{}", &inbound.ns.contact[9..]));
        message.send(routers()[0].inbound_address()).await;
        if let Some(told) = inbound.sink.accepted("unroutable").first() {
            assert_eq!(told.data["reason"], "NotAdmitted");
            assert!(told.data["message"].as_str().unwrap().contains("forbidden"), "{told:?}");
            return;
        }
    }
    panic!("every message created a conversation: {:?}", inbound.sink.received());
}

#[tokio::test]
async fn autocreate_is_limited_and_the_rest_is_unroutable() {
    // The router may create in the namespace of the first.
    let other = Inbound::new(json!({})).await;
    let autocreate = json!({"namespace": other.ns.namespace, "maxPerMinute": 1});
    let inbound = Inbound::new(json!({"autocreate": autocreate})).await;
    for number in 0..6 {
        let mut message = inbound.message(&format!("m{number}"));
        message.data["contact"] = json!(format!("+1558{number:03}{}", &inbound.ns.contact[9..]));
        let answered = message.send(routers()[0].inbound_address()).await;
        assert_eq!(answered.status, StatusCode::OK);
    }
    assert_eq!(inbound.sink.accepted("created").len(), 1);
    let unroutable = inbound.sink.accepted("unroutable");
    assert_eq!(unroutable.len(), 5);
    assert!(unroutable.iter().all(|event| event.data["reason"] == "RateLimited"), "{unroutable:?}");
}

#[tokio::test]
async fn waiting_conversation_is_not_overtaken_by_a_message() {
    let inbound = Inbound::new(json!({})).await;
    assert_eq!(inbound.send(0, "known").await.status, StatusCode::OK);
    let opened = inbound.conversations().await.pop().unwrap();
    inbound.ns.bound(&opened).await;
    inbound.ns.create("next", json!({"onConflict": "Wait"})).await.unwrap();
    inbound.ns.change(&opened, json!({"state": "Closed"})).await.unwrap();
    // It is sent again until the binding is handed over, as a provider would.
    let deadline = Instant::now() + crate::common::cluster::TIMEOUT;
    while inbound.send(0, "m").await.status != StatusCode::OK {
        assert!(Instant::now() < deadline, "it is never delivered");
    }
    let received = inbound.sink.accepted("received");
    assert_eq!(received.last().unwrap().conversation(), Some(format!("{}/next", inbound.ns.namespace).as_str()));
    assert_eq!(inbound.conversations().await.len(), 2);
}

fn reported(conversation: &Conversation) -> Option<String> {
    conversation.status.as_ref()?.reported_activity_time.clone()
}

#[tokio::test]
async fn activity_is_reported_at_both_ends_of_a_window() {
    let inbound = Inbound::new(json!({})).await;
    // A third of 6 s is the window.
    let timers = json!({"timers": {"inactiveAfter": "6s", "closeAfter": "10m"}});
    inbound.ns.create("alice", timers).await.unwrap();
    let has_timers =
        |conversation: &Conversation| conversation.status.as_ref().is_some_and(|status| status.timers.is_some());
    inbound.ns.wait_for("alice", "with timers", has_timers).await;
    inbound.ns.wait_for_state("alice", State::Inactive).await;
    assert_eq!(inbound.send(0, "m0").await.status, StatusCode::OK);
    let first =
        inbound.ns.wait_for("alice", "active by a message", |conversation| reported(conversation).is_some()).await;
    let first = reported(&first).unwrap();
    inbound.ns.wait_for_state("alice", State::Active).await;
    for number in 1..=3 {
        assert_eq!(inbound.send(0, &format!("m{number}")).await.status, StatusCode::OK);
    }
    let stored = inbound.ns.conversations().get("alice").await.unwrap();
    println!("reported: {first}, and {:?} after three more messages", reported(&stored));
    let later = inbound
        .ns
        .wait_for("alice", "active until the end of the window", |conversation| {
            reported(conversation).is_some_and(|time| time != first)
        })
        .await;
    assert!(reported(&later).unwrap() > first);
}

#[tokio::test]
async fn known_binding_costs_no_request_within_a_window() {
    let cluster = Cluster::shared();
    let inbound = Inbound::new(json!({})).await;
    inbound.ns.create("alice", json!({})).await.unwrap();
    inbound.ns.bound("alice").await;
    let router = builder("router-alone").start(&cluster.control_plane).unwrap();
    assert_eq!(inbound.message("m0").send(router.inbound_address()).await.status, StatusCode::OK);
    let requests = |metrics: &str| -> Vec<String> {
        let counted = metrics.lines().filter(|line| line.starts_with("switchboard_api_requests_total"));
        // Its watches start again once a minute.
        counted.filter(|line| !line.contains("watch")).map(str::to_owned).collect()
    };
    let before = requests(&metrics(&router).await);
    for number in 1..100 {
        assert_eq!(inbound.message(&format!("m{number}")).send(router.inbound_address()).await.status, StatusCode::OK);
    }
    assert_eq!(requests(&metrics(&router).await), before);
    assert!(!before.is_empty(), "there is nothing to compare");
    assert_eq!(inbound.sink.accepted("received").len(), 100);
}

/// The first line of the answer to `request`.
async fn first_line(router: SocketAddr, request: &str) -> String {
    let mut stream = BufReader::new(TcpStream::connect(router).await.unwrap());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    line
}

#[tokio::test]
async fn request_that_is_not_accepted_says_why() {
    let inbound = Inbound::new(json!({})).await;
    assert_eq!(inbound.send(0, "known").await.status, StatusCode::OK);
    let (router, event) = (routers()[0].inbound_address(), inbound.message("m").body());
    let status =
        async |source: &str, token: &str, event: &Value| post(router, source, token, event).await.unwrap().status;
    assert_eq!(status("gateway", "another token", &event).await, StatusCode::FORBIDDEN);
    assert_eq!(status("elsewhere", TOKEN, &event).await, StatusCode::NOT_FOUND);
    let mut unknown = inbound.message("m");
    unknown.data["proxy"] = json!("+15550000000");
    let answered = unknown.send(router).await;
    assert_eq!(
        (answered.status, answered.body.as_str()),
        (StatusCode::NOT_FOUND, "no ProxyAddress accepts the message\n")
    );
    let mut malformed = inbound.message("m").body();
    malformed["id"] = json!(null);
    assert_eq!(status("gateway", TOKEN, &malformed).await, StatusCode::BAD_REQUEST);
    let too_large =
        format!("POST /v1/sources/gateway HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", (4 << 20) + 1);
    assert_eq!(first_line(router, &too_large).await, "HTTP/1.1 413 Payload Too Large\r\n");
    let mut invalid = inbound.message("invalid");
    invalid.data["contact"] = json!("tel:+15558675310");
    assert_eq!(invalid.send(router).await.status, StatusCode::OK);
    let told = inbound.sink.accepted("unroutable");
    assert_eq!((ids(&told), &told[0].data["reason"]), (vec!["invalid/unroutable"], &json!("InvalidAddress")));
    assert_eq!(ids(&inbound.sink.accepted("received")), ["known"]);
}

#[tokio::test]
async fn source_that_the_proxy_address_does_not_accept_is_not_routed() {
    let dead_letters = Sink::start();
    let inbound = Inbound::new(json!({"sources": ["twilio"]})).await;
    let router = builder("router-unaccepted").flag(format!("--dead-letter-sink={}", dead_letters.url()));
    let router = router.start(&Cluster::shared().control_plane).unwrap();
    assert_eq!(inbound.message("m").send(router.inbound_address()).await.status, StatusCode::OK);
    let told = dead_letters.accepted("unroutable");
    assert_eq!(told[0].data["reason"], "SourceNotAccepted");
    let mut unknown = inbound.message("n");
    unknown.data["proxy"] = json!("+15550000000");
    assert_eq!(unknown.send(router.inbound_address()).await.status, StatusCode::OK);
    let told = dead_letters.accepted("unroutable");
    assert_eq!(
        (told[1].attribute("source"), &told[1].data["reason"]),
        (Some(format!("/sources/gateway#/tests/{}", inbound.ns.namespace).as_str()), &json!("UnknownProxyAddress"))
    );
    assert!(inbound.sink.received().is_empty());
}

#[tokio::test]
async fn rotated_key_is_taken_up_without_a_restart() {
    let inbound = Inbound::new(json!({})).await;
    let router = builder("router-rotated").start(&Cluster::shared().control_plane).unwrap();
    let address = router.inbound_address();
    let status = async |token: &str, id: &str| {
        post(address, "gateway", token, &inbound.message(id).body()).await.unwrap().status
    };
    assert_eq!(status(TOKEN, "m0").await, StatusCode::OK);
    let (id, new) = (router.id(), "another token of forty characters, or so");
    router.set_key("gateway", "token-new", new).unwrap();
    let deadline = Instant::now() + crate::common::cluster::TIMEOUT;
    while status(new, "m1").await != StatusCode::OK {
        assert!(Instant::now() < deadline, "the new key is not taken up");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status(TOKEN, "m2").await, StatusCode::OK, "both keys are valid");
    router.remove_key("gateway", "token").unwrap();
    while status(TOKEN, "m3").await != StatusCode::FORBIDDEN {
        assert!(Instant::now() < deadline, "the old key stays valid");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status(new, "m4").await, StatusCode::OK);
    assert_eq!(router.id(), id, "it was not restarted");
}

#[tokio::test]
async fn message_whose_delivery_is_killed_is_delivered_when_sent_again() {
    let inbound = Inbound::new(json!({})).await;
    let router = builder("router-killed").start(&Cluster::shared().control_plane).unwrap();
    inbound.sink.answer(|_| Answer::Never);
    let message = inbound.message("m");
    let sending = tokio::spawn({
        let (message, address) = (message.clone(), router.inbound_address());
        async move { message.try_send(address).await }
    });
    inbound.sink.wait_until(|events| !events.is_empty()).await;
    router.kill();
    assert!(sending.await.unwrap().is_none(), "it is not acknowledged");
    inbound.sink.answer(|_| Answer::Status(202));
    assert_eq!(inbound.send(1, "m").await.status, StatusCode::OK);
    assert_eq!(inbound.conversations().await.len(), 1);
    let received = inbound.sink.accepted("received");
    let event = received.last().unwrap();
    assert_eq!((event.attribute("id"), &event.data["conversation"]["created"]), (Some("m"), &json!(true)));
}

#[tokio::test]
async fn metrics_and_logs_have_no_addresses() {
    let inbound = Inbound::new(json!({})).await;
    assert_eq!(inbound.send(0, "m").await.status, StatusCode::OK);
    inbound.sink.answer(|_| Answer::Status(500));
    assert_eq!(inbound.send(0, "failed").await.status, StatusCode::SERVICE_UNAVAILABLE);
    inbound.sink.answer(|_| Answer::Status(422));
    assert_eq!(inbound.send(0, "refused").await.status, StatusCode::OK);
    let mut invalid = inbound.message("invalid");
    invalid.data["contact"] = json!(format!("tel:{}", inbound.ns.contact));
    invalid.send(routers()[0].inbound_address()).await;
    let text = metrics(&routers()[0]).await;
    assert!(text.contains(r#"switchboard_router_requests_total{source="gateway",outcome="accepted"}"#), "{text}");
    assert!(!text.contains(&inbound.ns.contact[1..]) && !text.contains(&inbound.ns.proxy[1..]));
    let log = std::fs::read_to_string(routers()[0].log()).unwrap();
    assert!(!log.contains(&inbound.ns.contact[1..]) && !log.contains(&inbound.ns.proxy[1..]), "{log}");
}
