//! What is sent to the webhook by others than an API server: it answers, and neither ends nor gives anything away. Tier: processes.

use crate::common::cluster::{Cluster, TIMEOUT};
use crate::common::fault_cluster::{self, FaultCluster};
use crate::common::webhook_client::{self, WebhookClient, review};
use control_plane::{ControlPlane, Installation};
use serde_json::{Value, json};
use switchboard::api::{ConditionStatus, ConditionType, State};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

fn caller(faulty: &FaultCluster) -> WebhookClient {
    WebhookClient::new(faulty.cluster.installation.authority().certificate().as_bytes(), None)
}

async fn ask(faulty: &FaultCluster, body: &[u8]) -> webhook_client::Answer {
    caller(faulty).review(faulty.replica().webhook_address(), body).await.expect("an answer")
}

/// The answer in the body of an answer.
fn response(answer: &webhook_client::Answer) -> Value {
    assert_eq!(answer.code, 200, "{answer:?}");
    serde_json::from_str::<Value>(&answer.body).unwrap()["response"].take()
}

fn deep(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

#[tokio::test]
async fn what_is_no_review_of_a_conversation_is_told_so() {
    let faulty = fault_cluster::shared().await;
    let (desk, _) = faulty.desk().await;
    let good = review(&desk, "alice", "u1");
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
    for (what, body, expected) in [
        ("empty", Vec::new(), "cannot read the body"),
        ("no JSON", b"\xff\xfe\x00".to_vec(), "cannot read the body"),
        ("truncated", text.as_bytes()[..text.len() / 2].to_vec(), "cannot read the body"),
        ("twice", [text.as_bytes(), text.as_bytes()].concat(), "cannot read the body"),
        ("nothing but brackets", deep(10_000).into_bytes(), "cannot read the body"),
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
        ("a channel that there is not", with("/request/object/spec/channel", "Fax".into()), "cannot read the body"),
        (
            "a participant of a wrong type",
            with("/request/object/spec/participants", json!(["a"])),
            "cannot read the body",
        ),
        (
            "a spec longer than any",
            with("/request/object/spec/participants", json!([{"identity": "a".repeat(256 << 10)}])),
            "the request.object.spec of the AdmissionReview is longer than the maximum",
        ),
    ] {
        let answer = ask(&faulty, &body).await;
        assert!(answer.code == 400 && answer.body.contains(expected), "{what}: {answer:?}");
        assert!(answer.body.lines().count() == 1 && !answer.body.contains(&desk.contact), "{what}: {answer:?}");
        assert!(answer.body.len() < 3000, "{what} is not sent back");
    }
    assert_eq!(desk.claim().await, None, "nothing of that has claimed anything");
}

#[tokio::test]
async fn what_an_api_server_might_send_some_day_is_a_review_all_the_same() {
    let faulty = fault_cluster::shared().await;
    let (desk, _) = faulty.desk().await;
    let mut good = review(&desk, "alice", "u1");
    good["request"]["dryRun"] = true.into();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut review = good.clone();
        change(&mut review);
        review.to_string().into_bytes()
    };
    let nested = good.to_string().replacen("\"options\":null", &format!("\"options\":{}", deep(1_000_000)), 1);
    for (what, body) in [
        ("a part that is not read, nested a million deep", nested.into_bytes()),
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
        let answer = response(&ask(&faulty, &body).await);
        assert_eq!(answer["allowed"], true, "{what}: {answer}");
        assert_eq!(answer["uid"], good["request"]["uid"], "{what}: {answer}");
    }
    for operation in ["UPDATE", "DELETE", "CONNECT"] {
        let answer =
            response(&ask(&faulty, &changed(&|review| review["request"]["operation"] = operation.into())).await);
        assert_eq!(answer["allowed"], true, "{operation} needs no claim: {answer}");
    }
    assert_eq!(desk.claim().await, None, "a dry run claims nothing");
}

#[tokio::test]
async fn webhook_speaks_http_1_1_alone() {
    let faulty = fault_cluster::shared().await;
    let address = faulty.replica().webhook_address();
    let stream = caller(&faulty).offering(&["h2", "http/1.1"]).connect(address).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "so that the API server speaks it here too");
    caller(&faulty).offering(&["h2"]).connect(address).await.expect_err("nothing else is spoken");
}

#[tokio::test]
async fn a_body_that_is_too_large_or_too_slow_is_told_so() {
    let faulty = fault_cluster::shared().await;
    let (caller, address) = (caller(&faulty), faulty.replica().webhook_address());
    let mut large = caller.connect(address).await.unwrap();
    webhook_client::send(&mut large, &webhook_client::request(9 << 20, b"{")).await.unwrap();
    assert_eq!(
        webhook_client::answer(&mut large).await.unwrap().code,
        413,
        "what says that it is too large is not waited for"
    );
    let mut slow = caller.connect(address).await.unwrap();
    webhook_client::send(&mut slow, &webhook_client::request(1000, b"{")).await.unwrap();
    let (mut answers, mut sends) = tokio::io::split(slow);
    let drip = async {
        while sends.write_all(b" ").await.is_ok() && sends.flush().await.is_ok() {
            sleep(std::time::Duration::from_secs(1)).await;
        }
    };
    let mut bytes = Vec::new();
    let answer = async {
        // The connection may be broken in the end, by the byte that came after the answer.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut answers, &mut bytes).await;
    };
    timeout(TIMEOUT, async { tokio::join!(drip, answer) }).await.expect("it is not waited for without end");
    assert!(bytes.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&bytes));
}

/// The chart's limit of a replica's memory, in bytes.
fn memory_limit() -> u64 {
    let values: Value = serde_saphyr::from_str(include_str!("../../../charts/switchboard/values.yaml")).unwrap();
    let limit = values["resources"]["limits"]["memory"].as_str().unwrap();
    limit.strip_suffix("Mi").unwrap().parse::<u64>().unwrap() << 20
}

/// The most memory that a process has ever had, in bytes.
fn peak_memory(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// `frame` with an array of so many `element` in place of `[]` that it has `length` bytes.
fn filled(frame: &str, element: &str, length: usize) -> Vec<u8> {
    let count = (length - frame.len() - element.len()) / (element.len() + 1);
    let array = format!("[{}{element}]", format!("{element},").repeat(count));
    frame.replacen("[]", &array, 1).into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_largest_bodies_stay_within_the_charts_memory_limit() {
    const LARGEST: usize = 8 << 20;
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    // As on a node with many processors: an allocator may keep something for each thread.
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).env("TOKIO_WORKER_THREADS", "32");
    let image = include_str!("../../../image/Containerfile")
        .lines()
        .filter_map(|line| line.strip_prefix("ENV ")?.split_once('='));
    let installation = image.fold(installation, |installation, (name, value)| installation.env(name, value));
    let cluster = Cluster::install(control_plane, &installation);
    let (desk, replica) = (cluster.desk().await, cluster.installation.replica(0));
    let mut good = review(&desk, "alice", "u1");
    good["request"]["dryRun"] = true.into();
    let with = |pointer: &str, value: Value| {
        let mut review = good.clone();
        *review.pointer_mut(pointer).unwrap() = value;
        review.to_string()
    };
    let mut padded = good.clone();
    padded["request"]["object"]["metadata"]["annotations"] = json!({"a": "a".repeat(LARGEST - (64 << 10))});
    let authority = cluster.installation.authority().certificate();
    for (what, body) in [
        ("one long string", padded.to_string().into_bytes()),
        ("objects among the options", filled(&with("/request/options", json!([])), "{\"\":0}", LARGEST)),
        ("participants", filled(&with("/request/object/spec/participants", json!([])), "{\"identity\":\"\"}", LARGEST)),
        ("groups", filled(&with("/request/userInfo", json!({"groups": []})), "\"\"", LARGEST)),
        ("a string for a request", format!("{{\"request\":\"{}\"}}", "\\u0061".repeat(LARGEST / 6 - 8)).into_bytes()),
        ("managers", filled(&with("/request/object/metadata", json!({"managedFields": []})), "{}", LARGEST)),
    ] {
        assert!((LARGEST - (64 << 10)..=LARGEST).contains(&body.len()), "{what}: {}", body.len());
        let body = std::sync::Arc::new(body);
        let senders: Vec<_> = (0..64)
            .map(|_| {
                let (caller, body) = (WebhookClient::new(authority.as_bytes(), None), body.clone());
                let address = replica.webhook_address();
                tokio::spawn(async move { caller.review(address, &body).await })
            })
            .collect();
        desk.create(&format!("honest-{}", what.len()), json!({}))
            .await
            .expect("an honest create is answered meanwhile");
        desk.delete(&format!("honest-{}", what.len())).await;
        desk.wait_until_free().await;
        let mut answers = std::collections::BTreeMap::<_, usize>::new();
        for sender in senders {
            *answers.entry(sender.await.unwrap().expect("an answer").code).or_default() += 1;
        }
        let peak = peak_memory(replica.id().expect("it runs"));
        println!("64 largest bodies at once, {what}: answers {answers:?}, at most {} MiB", peak >> 20);
        assert!(answers.keys().all(|code| [200, 400, 408, 413, 429, 503].contains(code)), "{what}: {answers:?}");
        assert!(peak < memory_limit(), "{what}: {} MiB", peak >> 20);
    }
}

#[tokio::test]
async fn a_forged_review_makes_at_most_a_claim_that_is_collected() {
    let faulty = fault_cluster::shared().await;
    let (desk, mut witness) = faulty.desk().await;
    let answer = response(&ask(&faulty, review(&desk, "nobody", "forged").to_string().as_bytes()).await);
    assert_eq!(answer["allowed"], true, "{answer}");
    assert_eq!(desk.claim().await.expect("a claim").spec.conversation_ref.name, "nobody");
    desk.wait_until_free().await;
    desk.create("alice", json!({})).await.expect("it is free");
    witness.show_rest().await;
}

#[tokio::test]
async fn a_forged_review_never_takes_a_claim_from_its_holder() {
    let faulty = fault_cluster::shared().await;
    let (desk, mut witness) = faulty.desk().await;
    let alice = desk.create("alice", json!({})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Bound, ConditionStatus::True).await;
    let before = desk.claim().await.unwrap();
    let applied = |mut review: Value| {
        review["request"]["object"]["metadata"]["managedFields"] = json!([{"manager": "m", "operation": "Apply"}]);
        review
    };
    let uid = alice.metadata.uid.as_deref().unwrap();
    for (what, review, code) in [
        ("another conversation", review(&desk, "bob", "forged-1"), 403),
        ("another conversation, with the holder's uid", review(&desk, "bob", uid), 403),
        ("the holder, as if it were created", review(&desk, "alice", "forged-2"), 409),
        ("another conversation, applied", applied(review(&desk, "bob", "forged-3")), 403),
    ] {
        let answer = response(&ask(&faulty, review.to_string().as_bytes()).await);
        assert_eq!((&answer["allowed"], &answer["status"]["code"]), (&false.into(), &code.into()), "{what}: {answer}");
        assert_eq!(desk.claim().await.unwrap(), before, "{what}");
    }
    // The holder, as if it were applied: that is what every update by server-side apply looks like.
    let review = applied(review(&desk, "alice", "forged-4"));
    assert_eq!(response(&ask(&faulty, review.to_string().as_bytes()).await)["allowed"], true);
    let names = |claim: &switchboard::api::AddressBinding| claim.spec.conversation_ref.name.clone();
    assert_eq!(names(&desk.claim().await.unwrap()), "alice");
    witness.show_rest().await;
    let after = desk.claim().await.unwrap();
    assert_eq!((names(&after), after.spec.admissions.len()), ("alice".to_owned(), 1), "the forged uid was pruned");
    desk.change("alice", json!({"state": "Closed"})).await.unwrap();
    desk.wait_for_state("alice", State::Closed).await;
    desk.create("bob", json!({})).await.expect("it is free at once");
}
