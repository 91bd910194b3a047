//! Which namespaces may use a proxy address: error 48028. Tier: processes.

use crate::common;
use crate::common::cluster::{Cluster, TIMEOUT, TestNamespace, create_namespace, metrics};
use crate::common::fault_cluster::{FaultCluster, POLL_INTERVAL, exclusive_cluster, is_retryable, shared};
use crate::common::proxy::{Call, Fault, Stage};
use control_plane::{ControlPlane, Installation};
use futures::future::join_all;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::{Value, json};
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType, ProxyAddress, State};
use tokio::time::{Instant, sleep};

const API_VERSION: &str = "switchboard.dev/v1alpha1";

/// The same namespace with a proxy address that no other test uses.
fn with_own_proxy(namespace: TestNamespace) -> TestNamespace {
    TestNamespace { proxy: namespace.contact.replacen("+1555", "+1556", 1), ..namespace }
}

fn proxy_addresses(namespace: &TestNamespace) -> Api<ProxyAddress> {
    Api::all(namespace.client.clone())
}

/// Declares the proxy address of `namespace` for the namespaces with these labels. Returns the name of the ProxyAddress.
async fn declare(namespace: &TestNamespace, labels: Value) -> String {
    let name = format!("of-{}", namespace.namespace);
    let object = json!({
        "apiVersion": API_VERSION,
        "kind": "ProxyAddress",
        "metadata": {"name": name},
        "spec": {
            "channel": "SMS",
            "address": namespace.proxy,
            "namespaces": {"selector": {"matchLabels": labels}},
        },
    });
    let object = serde_json::from_value(object).unwrap();
    proxy_addresses(namespace).create(&PostParams::default(), &object).await.unwrap();
    name
}

/// The label that selects `namespace` alone.
fn own_name(namespace: &TestNamespace) -> Value {
    json!({"kubernetes.io/metadata.name": namespace.namespace})
}

/// Asserts that a create was denied with 48028, and returns the facts of the denial.
fn facts(denial: &Status) -> Vec<(String, String)> {
    assert_eq!((denial.code, denial.reason.as_str()), (403, "Forbidden"), "{denial:?}");
    assert!(denial.message.contains("48028: the namespace"), "{denial:?}");
    let causes = &denial.details.as_ref().unwrap().causes;
    assert_eq!((causes[0].reason.as_str(), causes[0].field.as_str()), ("48028", "spec.proxy.address"));
    causes[1..].iter().map(|cause| (cause.reason.clone(), cause.message.clone())).collect()
}

async fn namespace() -> (Arc<FaultCluster>, TestNamespace) {
    let cluster = shared().await;
    let (namespace, _) = cluster.checked_namespace().await;
    (cluster, with_own_proxy(namespace))
}

#[tokio::test]
async fn create_in_a_namespace_that_is_not_granted_is_denied() {
    let (_cluster, namespace) = namespace().await;
    let name = declare(&namespace, json!({"team": "sales"})).await;
    until_denied(&namespace).await;
    for spec in [json!({}), json!({"onConflict": "Wait"})] {
        let denial = namespace.create("alice", spec).await.unwrap_err();
        assert_eq!(facts(&denial), [("ProxyAddress".to_owned(), name.clone())], "an administrator may read it");
        assert!(denial.message.contains(&namespace.proxy) && denial.message.contains(&name), "{denial:?}");
    }
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let object = namespace.conversation("alice", json!({}));
    facts(&namespace.create_object(&object, &dry_run).await.unwrap_err());
    assert_eq!(namespace.claim().await, None, "a denied create claims nothing");
    for harmless in [json!({"contact": null}), json!({"state": "Closed"})] {
        let name = if harmless.get("contact").is_some() { "no-contact" } else { "closed" };
        namespace.create(name, harmless).await.expect("it needs no binding");
    }
}

#[tokio::test]
async fn denial_hides_the_proxy_address_from_others() {
    let cluster = Cluster::shared();
    let namespace = with_own_proxy(cluster.test_namespace().await);
    let name = declare(&namespace, json!({"team": "sales"})).await;
    until_denied(&namespace).await;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "outsider", "namespace": namespace.namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "switchboard-edit"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "outsider"}],
    });
    let bindings =
        Api::<k8s_openapi::api::rbac::v1::RoleBinding>::namespaced(namespace.client.clone(), &namespace.namespace);
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    let outsider = TestNamespace { client: cluster.client_as("outsider", 0).await, ..namespace.clone() };
    // RBAC takes effect a moment later.
    let deadline = Instant::now() + TIMEOUT;
    let denial = loop {
        let denial = outsider.create("alice", json!({})).await.unwrap_err();
        if denial.message.contains("48028: ") {
            break denial;
        }
        let is_early = denial.message.contains("cannot create resource") && Instant::now() < deadline;
        assert!(is_early, "{denial:?}");
        sleep(POLL_INTERVAL).await;
    };
    assert_eq!(facts(&denial), []);
    assert!(!format!("{denial:?}").contains(&name), "{denial:?}");
    proxy_addresses(&namespace).delete(&name, &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn grant_is_checked_before_the_binding() {
    let (cluster, granted) = namespace().await;
    let (other, _) = cluster.checked_namespace().await;
    let other = TestNamespace { contact: granted.contact.clone(), proxy: granted.proxy.clone(), ..other };
    declare(&granted, own_name(&granted)).await;
    granted.create("alice", json!({})).await.unwrap();
    until_denied(&other).await;
    let denial = other.create("alice", json!({})).await.unwrap_err();
    facts(&denial);
    assert!(!denial.message.contains("48031"), "it would tell that a conversation exists: {denial:?}");
    let denial = granted.create("bob", json!({})).await.unwrap_err();
    assert!(denial.message.contains("48031"), "{denial:?}");
}

#[tokio::test]
async fn withdrawn_grant_leaves_stored_conversations_alone() {
    let (_cluster, namespace) = namespace().await;
    let name = declare(&namespace, own_name(&namespace)).await;
    namespace.create("alice", json!({})).await.unwrap();
    namespace.create("waiting", json!({"onConflict": "Wait"})).await.unwrap();
    let (_, reason) = namespace.wait_for_condition("waiting", ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::WaitingForBinding);
    let withdrawn = Patch::Merge(json!({"spec": {"namespaces": {"selector": {"matchLabels": {"team": "sales"}}}}}));
    // A label of the old selector stays unless it is removed.
    let removed = Patch::Merge(
        json!({"spec": {"namespaces": {"selector": {"matchLabels": {"kubernetes.io/metadata.name": null}}}}}),
    );
    for patch in [&withdrawn, &removed] {
        proxy_addresses(&namespace).patch(&name, &PatchParams::default(), patch).await.unwrap();
    }
    until_denied(&namespace).await;
    let repeated = namespace.create("alice", json!({})).await.unwrap_err();
    assert_eq!(repeated.reason, "AlreadyExists", "it exists, whatever is granted by now: {repeated:?}");
    namespace.change("alice", json!({"participants": [{"identity": "agent-8"}]})).await.expect("it may be edited");
    namespace.change("alice", json!({"state": "Closed"})).await.expect("it may be closed");
    namespace.wait_for_state("alice", State::Closed).await;
    namespace.bound("waiting").await;
}

/// Waits until a create behind the proxy address is denied: the watch shows a new ProxyAddress, or a changed one, a moment later.
async fn until_denied(namespace: &TestNamespace) {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let mut object = namespace.conversation("probe", json!({"contact": {"address": "+15550000000"}}));
    let deadline = Instant::now() + TIMEOUT;
    loop {
        object.metadata.name = Some("probe".to_owned());
        match namespace.create_object(&object, &dry_run).await {
            Ok(_) => assert!(Instant::now() < deadline, "it is still granted"),
            Err(denial) => return drop(facts(&denial)),
        }
        sleep(POLL_INTERVAL).await;
    }
}

#[tokio::test]
async fn label_of_a_namespace_grants_and_withdraws() {
    let (_cluster, namespace) = namespace().await;
    declare(&namespace, json!({"team": namespace.namespace})).await;
    until_denied(&namespace).await;
    let namespaces = Api::<Namespace>::all(namespace.client.clone());
    let label = |value: Value| Patch::Merge(json!({"metadata": {"labels": {"team": value}}}));
    let parameters = PatchParams::default();
    namespaces.patch(&namespace.namespace, &parameters, &label(json!(namespace.namespace))).await.unwrap();
    namespace.create("alice", json!({})).await.expect("the live read sees the label at once");
    namespaces.patch(&namespace.namespace, &parameters, &label(Value::Null)).await.unwrap();
    until_denied(&namespace).await;
}

#[tokio::test]
async fn granted_create_reads_no_proxy_address() {
    let cluster = exclusive_cluster().await;
    let (namespace, _) = cluster.checked_namespace().await;
    let namespace = with_own_proxy(namespace);
    let other = format!("{}-other", namespace.namespace);
    create_namespace(&namespace.client, &other).await;
    let other = TestNamespace { namespace: other, contact: "+15550000002".to_owned(), ..namespace.clone() };
    declare(&namespace, own_name(&namespace)).await;
    // Until the watch shows the ProxyAddress, every namespace may use the address, and no create reads.
    until_denied(&other).await;
    // A watch has no field selector, and starts with a list of all namespaces.
    let is_read = |call: &Call| {
        let is_of_address = call.is("GET", "/proxyaddresses") && call.query.contains("fieldSelector=");
        is_of_address || (call.method == "GET" && call.path.starts_with("/api/v1/namespaces/test-"))
    };
    // The first creates may come before the watch has shown the namespace.
    let passed = cluster.proxy.inject(Stage::Before, Fault::Pass, is_read);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let before = passed.count();
        namespace.create_object(&namespace.conversation("probe", json!({})), &dry_run).await.unwrap();
        if passed.count() == before {
            break;
        }
        assert!(Instant::now() < deadline, "each create reads");
    }
    drop(passed);
    let reads = cluster.proxy.inject(Stage::Before, Fault::Answer(500), is_read);
    namespace.create("alice", json!({})).await.expect("it needs no read");
    assert_eq!(reads.count(), 0);
    let undecided = other.create("alice", json!({})).await.unwrap_err();
    assert_eq!(undecided.code, 503, "without a live read, it is not denied: {undecided:?}");
    assert!(reads.count() > 0, "{undecided:?}");
}

/// There is no catalog at the start, and none after the watch of the ProxyAddresses has failed for too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_rest_on_live_reads_while_the_watch_fails() {
    let cluster = exclusive_cluster().await;
    let (namespace, _) = cluster.checked_namespace().await;
    let namespace = with_own_proxy(namespace);
    declare(&namespace, own_name(&namespace)).await;
    let (other, _) = cluster.checked_namespace().await;
    let other = TestNamespace { proxy: namespace.proxy.clone(), ..other };
    let is_read = |call: &Call| call.is("GET", "/proxyaddresses") && call.query.contains("fieldSelector=");
    let is_watch = |call: &Call| call.is("GET", "/proxyaddresses") && !call.query.contains("fieldSelector=");
    let failures = cluster.proxy.inject(Stage::Before, Fault::Answer(500), is_watch);
    let replica = cluster.replica();
    replica.kill();
    replica.start_without_waiting().unwrap();
    failures.wait_for(1).await;
    let reads = cluster.proxy.inject(Stage::Before, Fault::Pass, is_read);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let deadline = Instant::now() + TIMEOUT;
    while let Err(failure) = namespace.create_object(&namespace.conversation("probe", json!({})), &dry_run).await {
        assert!(Instant::now() < deadline, "the replica answers no review: {failure:?}");
        sleep(POLL_INTERVAL).await;
    }
    facts(&other.create("alice", json!({})).await.expect_err("a live read shows that it is not granted"));
    let before = reads.count();
    namespace.create("alice", json!({})).await.expect("a live read shows the grant");
    assert!(reads.count() > before, "a live read decides");
    namespace.create("waiting", json!({"onConflict": "Wait"})).await.expect("a live read shows the grant");
    drop(reads);
    let unreadable = cluster.proxy.inject(Stage::Before, Fault::Answer(500), is_read);
    for changes in [json!({}), json!({"onConflict": "Wait"})] {
        let undecided = namespace.create("bob", changes).await.unwrap_err();
        assert!(is_retryable(&undecided), "{undecided:?}");
    }
    drop((unreadable, failures));
    tokio::task::block_in_place(|| replica.wait_until_ready()).unwrap();
    namespace.bound("alice").await;
    namespace.change("alice", json!({"state": "Closed"})).await.unwrap();
    namespace.bound("waiting").await;
    let reads = cluster.proxy.inject(Stage::Before, Fault::Pass, is_read);
    let contact = json!({"contact": {"address": "+15550000003"}});
    namespace.create("carol", contact).await.expect("it is granted");
    assert_eq!(reads.count(), 0, "the watch shows the grant again");
}

#[tokio::test]
async fn burst_meets_a_withdrawn_grant_with_48028_alone() {
    /// The grant is withdrawn when so many creates are stored.
    const STORED: usize = 20;
    let (_cluster, namespace) = namespace().await;
    let name = declare(&namespace, own_name(&namespace)).await;
    let withdrawn = Patch::Merge(json!({"spec": {"namespaces": {"selector": {"matchLabels": {"team": "sales"}}}}}));
    let (stored, denied, proxies) = (AtomicUsize::new(0), AtomicUsize::new(0), proxy_addresses(&namespace));
    let deadline = Instant::now() + TIMEOUT;
    // Until each of the sixteen has been denied, since the watch shows the withdrawal a moment later.
    let creates =
        stream::iter(0..).take_while(|_| ready(denied.load(Ordering::Relaxed) < 16)).map(async |number: usize| {
            assert!(Instant::now() < deadline, "{stored:?} were stored, {denied:?} denied");
            let contact = json!({"contact": {"address": format!("+15557{number:07}")}});
            match namespace.create(&format!("burst-{number}"), contact).await {
                Ok(_) if stored.fetch_add(1, Ordering::Relaxed) == STORED => {
                    proxies.patch(&name, &PatchParams::default(), &withdrawn).await.unwrap();
                }
                Ok(_) => {}
                // A busy API server, or one that could not be read: it is not refused, and clients repeat it.
                Err(failure) if failure.code >= 500 => {}
                Err(denial) => {
                    facts(&denial);
                    denied.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    creates.buffer_unordered(16).collect::<Vec<_>>().await;
    println!("{} were stored, {} denied", stored.into_inner(), denied.into_inner());
}

/// A cluster whose installation requires that addresses are declared.
async fn strict_cluster() -> (Cluster, TestNamespace) {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).flag("--require-proxy-addresses");
    let cluster = Cluster::install(control_plane, &installation);
    let namespace = with_own_proxy(cluster.test_namespace().await);
    (cluster, namespace)
}

#[tokio::test]
async fn undeclared_address_is_denied_only_where_one_is_required() {
    let (cluster, namespace) = strict_cluster().await;
    let denial = namespace.create("alice", json!({})).await.unwrap_err();
    assert_eq!(facts(&denial), []);
    assert!(denial.message.contains("no ProxyAddress declares it"), "{denial:?}");

    // A ProxyAddress and its first conversation in one directory.
    let directory = cluster.control_plane.data_dir().join("manifests");
    std::fs::create_dir(&directory).unwrap();
    for number in 0..20 {
        let address = format!("+15560000{number:03}");
        let proxy_address = json!({
            "apiVersion": API_VERSION, "kind": "ProxyAddress", "metadata": {"name": format!("number-{number}")},
            "spec": {"channel": "SMS", "address": address},
        });
        let conversation = namespace.manifest(&format!("alice-{number}"), json!({"proxy": {"address": address}}));
        std::fs::write(directory.join("1.json"), proxy_address.to_string()).unwrap();
        std::fs::write(directory.join("2.json"), conversation.to_string()).unwrap();
        common::succeed(cluster.kubectl().args(["apply", "--filename"]).arg(&directory));
    }

    // The self-check meets 48028, for the operator's own namespace is not granted the address of the claim that it finds.
    let restricted = declare(&namespace, own_name(&namespace)).await;
    namespace.create("bob", json!({})).await.expect("it is granted");
    for number in 0..20 {
        proxy_addresses(&namespace).delete(&format!("number-{number}"), &DeleteParams::default()).await.unwrap();
    }
    // Only the self-check creates conversations by now.
    let denied = r#"switchboard_admission_requests_total{outcome="not_granted",code="403"}"#;
    let count = async || -> u64 {
        let metrics = metrics(cluster.installation.replica(0)).await;
        metrics.lines().find_map(|line| line.strip_prefix(denied)?.trim().parse().ok()).unwrap_or(0)
    };
    let (before, deadline) = (count().await, Instant::now() + TIMEOUT);
    // The result of the first is in the metric when the second begins.
    while count().await < before + 2 {
        assert!(Instant::now() < deadline, "{restricted}: the self-check meets no 48028");
        sleep(POLL_INTERVAL).await;
    }
    let is_in_force = metrics(cluster.installation.replica(0)).await.contains("switchboard_webhook_in_force 1");
    assert!(is_in_force, "48028 comes from the webhook");
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_switchboard"));
    check.arg("check").env("KUBECONFIG", cluster.control_plane.kubeconfig());
    common::succeed(&mut check);
}

#[tokio::test]
async fn cluster_without_the_kind_admits_as_before() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard"));
    let cluster = Cluster::install(control_plane, &installation);
    let namespace = with_own_proxy(cluster.test_namespace().await);
    declare(&namespace, json!({"team": "sales"})).await;
    until_denied(&namespace).await;
    common::succeed(cluster.kubectl().args(["delete", "crd", "proxyaddresses.switchboard.dev"]));
    // The API server stops serving the kind a moment later.
    let deadline = Instant::now() + TIMEOUT;
    while let Err(refusal) = namespace.create("alice", json!({})).await {
        assert!(Instant::now() < deadline, "{refusal:?}");
        sleep(POLL_INTERVAL).await;
    }
    cluster.installation.replica(0).restart().unwrap();
    let others = join_all((0..3).map(|number| {
        let namespace = &namespace;
        async move {
            let contact = json!({"contact": {"address": format!("+1555600000{number}")}});
            namespace.create(&format!("other-{number}"), contact).await
        }
    }));
    for created in others.await {
        created.expect("a replica that started without the kind is ready");
    }

    // The kind is installed again, and the replica takes it up without a restart.
    common::install_crds(&cluster.control_plane);
    declare(&namespace, json!({"team": "sales"})).await;
    until_denied(&namespace).await;
}
