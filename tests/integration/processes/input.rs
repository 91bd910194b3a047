//! Requests to the webhook from clients other than an API server. It answers them, keeps running, and reveals nothing. Tier: processes.

use crate::common::cluster::{Cluster, TIMEOUT};
use crate::common::fault_cluster::{self, FaultCluster};
use crate::common::webhook_client::{self, WebhookClient, review};
use control_plane::{ControlPlane, Installation};
use serde_json::{Value, json};
use switchboard::api::{ConditionStatus, ConditionType, State};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

fn webhook_client(cluster: &FaultCluster) -> WebhookClient {
    WebhookClient::new(cluster.installation().authority().certificate().as_bytes(), None)
}

async fn ask(cluster: &FaultCluster, body: &[u8]) -> webhook_client::Answer {
    webhook_client(cluster).review(cluster.replica().webhook_address(), body).await.expect("an answer")
}

/// The `response` in the `AdmissionReview` of an answer.
fn response(answer: &webhook_client::Answer) -> Value {
    assert_eq!(answer.code, 200, "{answer:?}");
    serde_json::from_str::<Value>(&answer.body).unwrap()["response"].take()
}

/// Arrays nested `depth` deep.
fn nested_arrays(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

#[tokio::test]
async fn body_that_is_no_conversation_review_gets_a_clear_400() {
    let cluster = fault_cluster::shared().await;
    let (ns, _) = cluster.checked_namespace().await;
    let good = review(&ns, "alice", "u1");
    let with = |pointer: &str, value: Value| {
        let mut review = good.clone();
        *review.pointer_mut(pointer).unwrap() = value;
        review.to_string().into_bytes()
    };
    let without = |parent: &str, key: &str| {
        let mut review = good.clone();
        review.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key).unwrap();
        review.to_string().into_bytes()
    };
    let text = good.to_string();
    let other_resource = json!({"group": "", "version": "v1", "resource": "pods"});
    for (case, body, expected) in [
        ("empty", Vec::new(), "cannot read the body"),
        ("not JSON", b"\xff\xfe\x00".to_vec(), "cannot read the body"),
        ("truncated", text.as_bytes()[..text.len() / 2].to_vec(), "cannot read the body"),
        ("twice", [text.as_bytes(), text.as_bytes()].concat(), "cannot read the body"),
        ("only brackets", nested_arrays(10_000).into_bytes(), "cannot read the body"),
        ("another kind", with("/kind", "ConversionReview".into()), "must be admission.k8s.io/v1 AdmissionReview"),
        (
            "another version",
            with("/apiVersion", "admission.k8s.io/v1beta1".into()),
            "the body is admission.k8s.io/v1beta1",
        ),
        ("no request", without("", "request"), "has no request"),
        ("another resource", with("/request/resource", other_resource), "must be about conversations.switchboard.dev"),
        ("no object", without("/request", "object"), "has no request.object"),
        ("an object of another kind", with("/request/object", json!({"kind": "Pod"})), "cannot read the body"),
        ("no namespace", without("/request", "namespace"), "has no request.namespace"),
        ("no uid of the object", without("/request/object/metadata", "uid"), "has no request.object.metadata.uid"),
        ("an empty uid", with("/request/object/metadata/uid", "".into()), "has no request.object.metadata.uid"),
        ("no name", without("/request/object/metadata", "name"), "has no request.object.metadata.name"),
        (
            "a long name",
            with("/request/object/metadata/name", "a".repeat(254).into()),
            "metadata.name of the AdmissionReview is longer than",
        ),
        (
            "a long uid of its own",
            with("/request/uid", "a".repeat(254).into()),
            "the request.uid of the AdmissionReview is longer than",
        ),
        ("a long string for a request", with("/request", "\u{e9}".repeat(100_000).into()), "invalid type: string"),
        ("an unknown channel", with("/request/object/spec/channel", "Fax".into()), "cannot read the body"),
        (
            "a participant of a wrong type",
            with("/request/object/spec/participants", json!(["a"])),
            "cannot read the body",
        ),
        (
            "a spec beyond the limit",
            with("/request/object/spec/participants", json!([{"identity": "a".repeat(256 << 10)}])),
            "the request.object.spec of the AdmissionReview is longer than the maximum",
        ),
    ] {
        let answer = ask(&cluster, &body).await;
        assert!(answer.code == 400 && answer.body.contains(expected), "{case}: {answer:?}");
        assert!(answer.body.lines().count() == 1 && !answer.body.contains(&ns.contact), "{case}: {answer:?}");
        assert!(answer.body.len() < 3000, "{case}: the answer repeats the body");
    }
    assert_eq!(ns.claim().await, None, "none of the requests makes a claim");
}

#[tokio::test]
async fn review_with_parts_of_a_future_api_server_is_answered() {
    let cluster = fault_cluster::shared().await;
    let (ns, _) = cluster.checked_namespace().await;
    let mut good = review(&ns, "alice", "u1");
    good["request"]["dryRun"] = true.into();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut review = good.clone();
        change(&mut review);
        review.to_string().into_bytes()
    };
    let deep = good.to_string().replacen("\"options\":null", &format!("\"options\":{}", nested_arrays(1_000_000)), 1);
    for (case, body) in [
        ("an ignored field, nested a million levels deep", deep.into_bytes()),
        (
            "unknown fields",
            changed(&|review| {
                review["shape"] = "round".into();
                review["request"]["shape"] = json!({"a": [1, 2.5, null]});
                review["request"]["object"]["spec"]["shape"] = "round".into();
            }),
        ),
        ("no oldObject", changed(&|review| drop(review["request"].as_object_mut().unwrap().remove("oldObject")))),
        ("a forged oldObject", changed(&|review| review["request"]["oldObject"] = review["request"]["object"].clone())),
        (
            "4 MiB",
            changed(&|review| {
                review["request"]["object"]["metadata"]["annotations"] = json!({"a": "a".repeat(4 << 20)});
            }),
        ),
    ] {
        let answer = response(&ask(&cluster, &body).await);
        assert_eq!(answer["allowed"], true, "{case}: {answer}");
        assert_eq!(answer["uid"], good["request"]["uid"], "{case}: {answer}");
    }
    for operation in ["UPDATE", "DELETE", "CONNECT"] {
        let answer =
            response(&ask(&cluster, &changed(&|review| review["request"]["operation"] = operation.into())).await);
        assert_eq!(answer["allowed"], true, "{operation} needs no claim: {answer}");
    }
    assert_eq!(ns.claim().await, None, "a dry run claims nothing");
}

#[tokio::test]
async fn webhook_speaks_only_http_1_1() {
    let cluster = fault_cluster::shared().await;
    let address = cluster.replica().webhook_address();
    let stream = webhook_client(&cluster).offering(&["h2", "http/1.1"]).connect(address).await.unwrap();
    assert_eq!(
        stream.get_ref().1.alpn_protocol(),
        Some(&b"http/1.1"[..]),
        "the API server then uses HTTP/1.1 on loopback too"
    );
    webhook_client(&cluster).offering(&["h2"]).connect(address).await.expect_err("the webhook speaks no HTTP/2");
}

#[tokio::test]
async fn too_large_or_too_slow_body_gets_413_or_408() {
    let cluster = fault_cluster::shared().await;
    let (webhook_client, address) = (webhook_client(&cluster), cluster.replica().webhook_address());
    let mut large = webhook_client.connect(address).await.unwrap();
    webhook_client::send(&mut large, &webhook_client::request(9 << 20, b"{")).await.unwrap();
    assert_eq!(
        webhook_client::answer(&mut large).await.unwrap().code,
        413,
        "the webhook does not wait for a body with a too large Content-Length"
    );
    let mut slow = webhook_client.connect(address).await.unwrap();
    webhook_client::send(&mut slow, &webhook_client::request(1000, b"{")).await.unwrap();
    let (mut answers, mut sends) = tokio::io::split(slow);
    let drip = async {
        while sends.write_all(b" ").await.is_ok() && sends.flush().await.is_ok() {
            sleep(std::time::Duration::from_secs(1)).await;
        }
    };
    let mut bytes = Vec::new();
    let answer = async {
        // A byte that arrives after the answer may break the connection.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut answers, &mut bytes).await;
    };
    timeout(TIMEOUT, async { tokio::join!(drip, answer) }).await.expect("the webhook does not wait for ever");
    assert!(bytes.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&bytes));
}

/// The memory limit of a replica in the chart, in bytes.
fn memory_limit() -> u64 {
    let values: Value = serde_saphyr::from_str(include_str!("../../../charts/switchboard/values.yaml")).unwrap();
    let limit = values["resources"]["limits"]["memory"].as_str().unwrap();
    limit.strip_suffix("Mi").unwrap().parse::<u64>().unwrap() << 20
}

/// The peak memory of a process, in bytes.
fn peak_memory(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// `frame` with an array in place of `[]`, filled with `element` so that the result has at most `length` bytes.
fn filled(frame: &str, element: &str, length: usize) -> Vec<u8> {
    let count = (length - frame.len() - element.len()) / (element.len() + 1);
    let array = format!("[{}{element}]", format!("{element},").repeat(count));
    frame.replacen("[]", &array, 1).into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn largest_bodies_stay_within_the_charts_memory_limit() {
    const LARGEST: usize = 8 << 20;
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    // As on a node with many processors: an allocator may keep memory for each thread.
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).env("TOKIO_WORKER_THREADS", "32");
    let image = include_str!("../../../image/Containerfile")
        .lines()
        .filter_map(|line| line.strip_prefix("ENV ")?.split_once('='));
    let installation = image.fold(installation, |installation, (name, value)| installation.env(name, value));
    let cluster = Cluster::install(control_plane, &installation);
    let (ns, replica) = (cluster.test_namespace().await, cluster.installation.replica(0));
    let mut good = review(&ns, "alice", "u1");
    good["request"]["dryRun"] = true.into();
    let with = |pointer: &str, value: Value| {
        let mut review = good.clone();
        *review.pointer_mut(pointer).unwrap() = value;
        review.to_string()
    };
    let mut padded = good.clone();
    padded["request"]["object"]["metadata"]["annotations"] = json!({"a": "a".repeat(LARGEST - (64 << 10))});
    let authority = cluster.installation.authority().certificate();
    for (case, body) in [
        ("one long string", padded.to_string().into_bytes()),
        ("objects among the options", filled(&with("/request/options", json!([])), "{\"\":0}", LARGEST)),
        ("participants", filled(&with("/request/object/spec/participants", json!([])), "{\"identity\":\"\"}", LARGEST)),
        ("groups", filled(&with("/request/userInfo", json!({"groups": []})), "\"\"", LARGEST)),
        ("a string for a request", format!("{{\"request\":\"{}\"}}", "\\u0061".repeat(LARGEST / 6 - 8)).into_bytes()),
        ("managers", filled(&with("/request/object/metadata", json!({"managedFields": []})), "{}", LARGEST)),
    ] {
        assert!((LARGEST - (64 << 10)..=LARGEST).contains(&body.len()), "{case}: {}", body.len());
        let body = std::sync::Arc::new(body);
        let senders: Vec<_> = (0..64)
            .map(|_| {
                let (webhook_client, body) = (WebhookClient::new(authority.as_bytes(), None), body.clone());
                let address = replica.webhook_address();
                tokio::spawn(async move { webhook_client.review(address, &body).await })
            })
            .collect();
        ns.create(&format!("honest-{}", case.len()), json!({}))
            .await
            .expect("the webhook answers an honest create meanwhile");
        ns.delete(&format!("honest-{}", case.len())).await;
        ns.wait_until_free().await;
        let mut answers = std::collections::BTreeMap::<_, usize>::new();
        for sender in senders {
            *answers.entry(sender.await.unwrap().expect("an answer").code).or_default() += 1;
        }
        let peak = peak_memory(replica.id().expect("a running process"));
        println!("64 largest bodies at once, {case}: answers {answers:?}, at most {} MiB", peak >> 20);
        assert!(answers.keys().all(|code| [200, 400, 408, 413, 429, 503].contains(code)), "{case}: {answers:?}");
        assert!(peak < memory_limit(), "{case}: {} MiB", peak >> 20);
    }
}

#[tokio::test]
async fn claim_of_a_forged_review_is_collected() {
    let cluster = fault_cluster::shared().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let answer = response(&ask(&cluster, review(&ns, "nobody", "forged").to_string().as_bytes()).await);
    assert_eq!(answer["allowed"], true, "{answer}");
    assert_eq!(ns.claim().await.expect("a claim").spec.conversation_ref.name, "nobody");
    ns.wait_until_free().await;
    ns.create("alice", json!({})).await.expect("the binding is free");
    checker.wait_until_at_rest().await;
}

#[tokio::test]
async fn forged_review_does_not_take_a_claim_from_its_holder() {
    let cluster = fault_cluster::shared().await;
    let (ns, mut checker) = cluster.checked_namespace().await;
    let alice = ns.create("alice", json!({})).await.unwrap();
    ns.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::True).await;
    let before = ns.claim().await.unwrap();
    let applied = |mut review: Value| {
        review["request"]["object"]["metadata"]["managedFields"] = json!([{"manager": "m", "operation": "Apply"}]);
        review
    };
    let uid = alice.metadata.uid.as_deref().unwrap();
    for (case, review, code) in [
        ("another conversation", review(&ns, "bob", "forged-1"), 403),
        ("another conversation, with the holder's uid", review(&ns, "bob", uid), 403),
        ("the holder, as a create", review(&ns, "alice", "forged-2"), 409),
        ("another conversation, applied", applied(review(&ns, "bob", "forged-3")), 403),
        ("the holder, applied", applied(review(&ns, "alice", "forged-4")), 503),
    ] {
        let answer = response(&ask(&cluster, review.to_string().as_bytes()).await);
        assert_eq!((&answer["allowed"], &answer["status"]["code"]), (&false.into(), &code.into()), "{case}: {answer}");
        assert_eq!(ns.claim().await.unwrap(), before, "{case}");
    }
    checker.wait_until_at_rest().await;
    ns.change("alice", json!({"state": "Closed"})).await.unwrap();
    ns.wait_for_state("alice", State::Closed).await;
    ns.create("bob", json!({})).await.expect("a close frees the binding at once");
}
