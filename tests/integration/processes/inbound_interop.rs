//! The router against what others wrote: Twilio's library, pywa, the SDK of `CloudEvents` and Standard Webhooks. Tier: processes.

use crate::common::cluster::Cluster;
use crate::common::routing::{Inbound, SIGNING_SECRET, builder, request_once};
use crate::common::sink::Received;
use crate::common::succeed;
use control_plane::tools::cache_directory;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use kube::api::PostParams;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const REQUIREMENTS: &str = include_str!("../../interop/requirements.txt");
const TOKEN: &str = "a token of Twilio";
const SHARED_KEY: &str = "a key that Twilio shares";
const APP_SECRET: &str = "a secret of Meta";
/// The URL that Twilio was told. The router is reached at another one, as behind a proxy.
const URL: &str = "https://inbound.example.com/v1/sources/twilio";

/// The interpreter of an environment with the libraries. It is made once, and again if they change.
fn python() -> PathBuf {
    let version = succeed(Command::new("python3").arg("--version"));
    let key =
        data_encoding::HEXLOWER.encode(&digest(&SHA256, format!("{version}{REQUIREMENTS}").as_bytes()).as_ref()[..8]);
    let directory = cache_directory().unwrap().join(format!("python-{key}"));
    let python = directory.join("bin/python");
    if !directory.join("complete").exists() {
        succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&directory));
        let install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary=:all:",
            "--requirement",
            "tests/interop/requirements.txt",
        ];
        succeed(Command::new(&python).args(install));
        std::fs::write(directory.join("complete"), "").unwrap();
    }
    python
}

/// The events as the SDK of `CloudEvents` and Standard Webhooks read them.
pub(super) fn verify(secret: &str, events: &[Received]) -> Vec<Value> {
    let event = |event: &Received| {
        let header = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
            (name.as_str().to_owned(), value.to_str().unwrap().to_owned())
        };
        let headers: BTreeMap<_, _> = event.headers.iter().map(header).collect();
        json!({"headers": headers, "body": String::from_utf8(event.body.to_vec()).unwrap()})
    };
    let events: Vec<_> = events.iter().map(event).collect();
    interop("verify", &json!({"secret": secret, "events": events})).as_array().unwrap().clone()
}

/// Runs a command of `interop.py`.
fn interop(command: &str, input: &Value) -> Value {
    let mut child = Command::new(python())
        .args(["tests/interop/interop.py", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn libraries_of_others_sign_requests_and_read_events() {
    let inbound = Inbound::new(json!({"sources": ["gateway", "twilio", "meta"]})).await;
    // The same address on another channel.
    let declared = inbound.proxy_addresses().get(&inbound.ns.namespace).await.unwrap();
    let mut spec = serde_json::to_value(&declared.spec).unwrap();
    spec["channel"] = json!("WhatsApp");
    let name = format!("{}-whatsapp", inbound.ns.namespace);
    let object = json!({"apiVersion": "switchboard.dev/v1alpha1", "kind": "ProxyAddress", "metadata": {"name": name}, "spec": spec});
    inbound.proxy_addresses().create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let router = builder("router-interop")
        .source("twilio", &format!("{{type: Twilio, publicURL: {URL:?}}}"))
        .key("twilio", "authToken", TOKEN)
        .key("twilio", "sharedKey.webhooks_sharedkey_1", SHARED_KEY)
        .source("meta", "{type: Meta}")
        .key("meta", "appSecret", APP_SECRET)
        .key("meta", "verifyToken", "a token to verify")
        .start(&Cluster::shared().control_plane)
        .unwrap();

    let given = json!({
        "url": URL, "token": TOKEN, "sharedKey": SHARED_KEY, "appSecret": APP_SECRET, "contact": inbound.ns.contact, "proxy": inbound.ns.proxy,
    });
    let requests = interop("sign", &given);
    for request in requests.as_array().unwrap() {
        let source = request["source"].as_str().unwrap();
        let url = format!("http://{}/v1/sources/{source}", router.inbound_address());
        let mut made = Request::builder().method(Method::POST).uri(url);
        for (name, value) in request["headers"].as_object().unwrap() {
            made = made.header(name, value.as_str().unwrap());
        }
        let body = Bytes::from(request["body"].as_str().unwrap().to_owned());
        let answered = request_once(made.body(Full::new(body)).unwrap()).await.unwrap();
        let is_genuine = request["ok"] == json!(true);
        let expected = if is_genuine { StatusCode::OK } else { StatusCode::FORBIDDEN };
        assert_eq!(answered.status, expected, "{source}: {}", request["name"]);
        if source == "twilio" && is_genuine {
            assert_eq!(
                (answered.headers["content-type"].to_str().unwrap(), answered.body.as_str()),
                ("text/xml", "<Response/>")
            );
        }
    }

    let read = verify(SIGNING_SECRET, &inbound.sink.accepted("received"));
    let read: Vec<_> = read.iter().map(|event| (event["id"].as_str().unwrap(), event)).collect();
    let ids: Vec<_> = read.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, ["SM1", "SM2", "SM3", "SM5", "wamid.1", "wamid.2"]);
    for (id, event) in read {
        let channel = if ["SM1", "SM3", "SM5"].contains(&id) { "SMS" } else { "WhatsApp" };
        assert_eq!(event["data"]["channel"], channel, "{id}");
        assert_eq!(event["data"]["contact"], json!(inbound.ns.contact), "{id}");
        assert_eq!(event["type"], "dev.switchboard.message.received.v1");
    }
    // One conversation for each channel.
    assert_eq!(inbound.conversations().await.len(), 2);
}
