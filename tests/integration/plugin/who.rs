//! `kubectl switchboard who`.

use super::{grant, plugin, rule, run, stable};
use crate::common::cluster::{Cluster, TestNamespace};
use crate::common::proxy::{Fault, Proxy, Stage};
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use switchboard::api::{ConditionStatus, ConditionType};

/// alice holds the binding, bob waits for it.
async fn held(cluster: &Cluster) -> TestNamespace {
    let namespace = cluster.test_namespace().await;
    namespace.create("alice", json!({"timers": {"inactiveAfter": "30m", "closeAfter": "24h"}})).await.unwrap();
    namespace.bound("alice").await;
    namespace.create("bob", json!({"onConflict": "Wait", "participants": null})).await.unwrap();
    namespace.wait_for_condition("bob", ConditionType::Bound, ConditionStatus::False).await;
    namespace
}

/// The arguments of `who` for the binding of the namespace.
fn who(namespace: &TestNamespace) -> [&str; 4] {
    ["who", "SMS", &namespace.contact, &namespace.proxy]
}

/// The table for [`held`], with this text about waiting conversations.
fn table(namespace: &TestNamespace, waiting: &str) -> String {
    let TestNamespace { namespace: name, contact, proxy, .. } = namespace;
    format!(
        "Holder:           {name}/alice\n\
         State:            Active\n\
         Participants:     agent-7\n\
         Managed by:       <none>\n\
         Inactive at:      TIME (in AGE)\n\
         Closes at:        TIME (in AGE)\n\
         Waiting:          {waiting}\n\
         Binding:          SMS {contact} {proxy}\n\
         AddressBinding:   {}\n",
        namespace.binding()
    )
}

#[tokio::test]
async fn holder_and_waiting_conversations_are_shown() {
    let cluster = Cluster::shared();
    let namespace = held(cluster).await;
    let ran = run(&mut plugin(cluster, &who(&namespace)));
    let waiting = format!("{}/bob, created TIME (AGE ago)", namespace.namespace);
    assert_eq!((ran.code, stable(&ran.stdout), ran.stderr.as_str()), (Some(0), table(&namespace, &waiting), ""));

    let wide = stable(&run(plugin(cluster, &who(&namespace)).arg("-owide")).stdout);
    let uid = namespace.conversations().get("alice").await.unwrap().metadata.uid.unwrap();
    for line in ["Contact name:     <none>", "Created:          TIME (AGE ago)", &format!("UID:              {uid}")] {
        assert!(wide.lines().any(|shown| shown == line), "{line} is not in {wide}");
    }
    assert_eq!(run(plugin(cluster, &who(&namespace)).arg("-oname")).stdout, format!("{}/alice\n", namespace.namespace));
}

#[tokio::test]
async fn kubectl_runs_it_as_a_plugin() {
    let cluster = Cluster::shared();
    let namespace = held(cluster).await;
    let directory = std::path::Path::new(env!("CARGO_BIN_EXE_kubectl-switchboard")).parent().unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let ran = run(cluster.kubectl().env("PATH", path).arg("switchboard").args(who(&namespace)));
    assert!(ran.code == Some(0) && ran.stdout.starts_with(&format!("Holder:           {}/alice", namespace.namespace)));
}

#[tokio::test]
async fn any_clear_spelling_finds_the_holder_in_three_requests() {
    let cluster = Cluster::shared();
    let namespace = held(cluster).await;
    let proxy = Proxy::to_api_server(&cluster.control_plane, 0).await;
    let requests = Arc::new(Mutex::new(Vec::new()));
    let recorded = requests.clone();
    let _recording = proxy.inject(Stage::Before, Fault::Pass, move |call| {
        recorded.lock().unwrap().push((call.method.to_string(), call.path.clone(), call.query.clone()));
        true
    });
    let token = Kubeconfig::read_from(cluster.control_plane.kubeconfig()).unwrap();
    let token = serde_json::to_value(token).unwrap()["users"][0]["user"]["token"].as_str().unwrap().to_owned();
    let kubeconfig = proxy.kubeconfig(&cluster.control_plane, &token);

    let digits = &namespace.contact[2..];
    let contact = format!("tel:+1 ({}) {}-{}", &digits[..3], &digits[3..6], &digits[6..]);
    let ran = run(plugin(cluster, &["who", "sms", &contact, "+1 501 712 2661"]).env("KUBECONFIG", kubeconfig));
    let notes = format!(
        "Note: the contact address {contact:?} is looked up by its canonical spelling, {}\n\
         Note: the proxy address \"+1 501 712 2661\" is looked up by its canonical spelling, +15017122661\n",
        namespace.contact
    );
    let waiting = format!("{}/bob, created TIME (AGE ago)", namespace.namespace);
    assert_eq!((ran.code, stable(&ran.stdout), ran.stderr), (Some(0), table(&namespace, &waiting), notes));

    let requests = requests.lock().unwrap().clone();
    let api = "/apis/switchboard.dev/v1alpha1";
    let get = |path: String| ("GET".to_owned(), format!("{api}/{path}"), String::new());
    let claim = get(format!("addressbindings/{}", namespace.binding()));
    let holder = get(format!("namespaces/{}/conversations/alice", namespace.namespace));
    assert_eq!(requests[..2], [claim, holder], "{requests:?}");
    let [(method, path, query)] = &requests[2..] else { panic!("{requests:?}") };
    assert_eq!((method.as_str(), path.as_str()), ("GET", format!("{api}/conversations").as_str()));
    assert!(query.contains("fieldSelector=") && !query.contains("watch"), "{query}");
}

#[tokio::test]
async fn json_and_yaml_have_every_fact_as_a_field() {
    let cluster = Cluster::shared();
    let namespace = held(cluster).await;
    let text = run(plugin(cluster, &who(&namespace)).arg("-ojson")).stdout;
    let mut report: Value = serde_json::from_str(&text).unwrap();
    let yaml = run(plugin(cluster, &who(&namespace)).arg("-oyaml")).stdout;
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), report);
    let alice = namespace.conversations().get("alice").await.unwrap();
    let deadlines = serde_json::to_value(alice.status.unwrap().deadlines).unwrap();
    for (pointer, kind) in [("/holder/creationTime", "a time"), ("/waiting/0/creationTime", "a time")] {
        let time = report.pointer_mut(pointer).unwrap().take();
        assert!(time.as_str().is_some_and(|time| time.ends_with('Z')), "{pointer} is not {kind}: {time}");
    }
    let expected = json!({
        "addressBinding": namespace.binding().to_string(),
        "channel": "SMS",
        "contactAddress": namespace.contact,
        "proxyAddress": namespace.proxy,
        "status": "Held",
        "holder": {
            "namespace": namespace.namespace,
            "name": "alice",
            "uid": alice.metadata.uid,
            "state": "Active",
            "participants": ["agent-7"],
            "managedBy": null,
            "contact": {"address": namespace.contact},
            "creationTime": null,
            "lastActivityTime": null,
            "unassignedTime": null,
            "timers": {"inactiveAfter": "30m", "closeAfter": "24h"},
            "deadlines": deadlines,
        },
        "waiting": [{
            "namespace": namespace.namespace, "name": "bob", "creationTime": null, "reason": "WaitingForBinding",
        }],
    });
    assert_eq!(report, expected);
}

#[tokio::test]
async fn free_binding_has_an_exit_code_of_its_own() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    let ran = run(&mut plugin(cluster, &who(&namespace)));
    let expected = format!(
        "Holder:           <none>, the binding is free\n\
         Waiting:          <none>\n\
         Binding:          SMS {} {}\n\
         AddressBinding:   {}\n",
        namespace.contact,
        namespace.proxy,
        namespace.binding()
    );
    assert_eq!((ran.code, ran.stdout, ran.stderr.as_str()), (Some(3), expected, ""));
    let ran = run(plugin(cluster, &who(&namespace)).arg("--output=name"));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""));
}

#[tokio::test]
async fn unassigned_holder_and_its_manager_are_shown() {
    let cluster = Cluster::shared();
    let namespace = cluster.test_namespace().await;
    let mut conversation = namespace.conversation("alice", json!({"participants": null}));
    let flux = |key: &str, value: &str| (format!("kustomize.toolkit.fluxcd.io/{key}"), value.to_owned());
    conversation.metadata.labels = Some([flux("namespace", "flux-system"), flux("name", "desk")].into());
    namespace.create_object(&conversation, &kube::api::PostParams::default()).await.unwrap();
    namespace.wait_for_condition("alice", ConditionType::Unassigned, ConditionStatus::True).await;
    let shown = stable(&run(&mut plugin(cluster, &who(&namespace))).stdout);
    let expected = "Participants:       <none>\n\
                    Unassigned since:   TIME (AGE ago)\n\
                    Managed by:         Flux Kustomization flux-system/desk\n";
    assert!(shown.contains(expected), "{shown}");
}

#[tokio::test]
async fn facts_that_the_user_may_not_read_are_named_as_unknown() {
    let cluster = Cluster::shared();
    let namespace = held(cluster).await;
    let name = &namespace.namespace;
    let (nobody, reader, local) = (format!("nobody-{name}"), format!("reader-{name}"), format!("local-{name}"));
    let claims = [rule("addressbindings", &["get"])];
    grant(cluster, &namespace, &reader, &claims, &[]);
    grant(cluster, &namespace, &local, &claims, &[rule("conversations", &["get", "list"])]);

    let ran = run(plugin(cluster, &who(&namespace)).args(["--as", &nobody]));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    let expected = format!("error: cannot read AddressBinding {}: ", namespace.binding());
    assert!(ran.stderr.starts_with(&expected) && ran.stderr.contains("switchboard-view"), "{}", ran.stderr);

    let unlisted = "Warning: you may not list the conversations of all namespaces, so it is not known which ones wait for the binding\n";
    let ran = run(plugin(cluster, &who(&namespace)).args(["--as", &local]));
    assert_eq!(
        (ran.code, stable(&ran.stdout), ran.stderr.as_str()),
        (Some(0), table(&namespace, "<unknown>"), unlisted)
    );

    let ran = run(plugin(cluster, &who(&namespace)).args(["--as", &reader]));
    let unread = format!(
        "Warning: you may not read conversations in the namespace {name}, so nothing else is known about alice there\n"
    );
    assert_eq!((ran.code, ran.stderr), (Some(0), unread + unlisted));
    assert!(ran.stdout.starts_with(&format!("Holder:           {name}/alice\nWaiting:          <unknown>\n")));
    let ran = run(plugin(cluster, &who(&namespace)).args(["--as", &nobody, "--as-group=system:masters"]));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[tokio::test]
async fn invalid_binding_is_refused_with_its_code() {
    let cluster = Cluster::shared();
    for (arguments, expected) in [
        (["SMS", "0049 30 1234", "+15017122661"], "error: 48025: the contact address must be an E.164 number"),
        (["sms", "+15558675310", "alice@example.com"], "error: 48026: the proxy address must be an E.164 number"),
        (["Chat", "desk", "desk"], "error: 48027: "),
        (["Fax", "1", "2"], "must be one of SMS, WhatsApp, RCS,"),
    ] {
        let ran = run(plugin(cluster, &["who"]).args(arguments));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
}
