//! The permissions of the operator and of the router match their requests. The tests exercise every feature of both, and compare the audit
//! log of the API server with the chart's roles in both directions.

use crate::common;
use crate::common::chart::NAMESPACE;
use crate::common::cluster::{Cluster, TIMEOUT, installation_with_router, metrics};
use crate::common::fake_webhook::{FakeWebhook, Verdict};
use crate::common::routing::{Inbound, builder};
use crate::common::succeed;
use control_plane::ControlPlane;
use control_plane::installation::OPERATOR;
use control_plane::router::ROUTER;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use switchboard::api::{ConditionStatus, ConditionType, ProxyAddress};
use tokio::time::{sleep, timeout};

/// Interval between two reads of a value that cannot be watched.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Logs every request of the operator and of the router, and no other request.
const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ['system:serviceaccount:switchboard-system:switchboard', 'system:serviceaccount:switchboard-system:switchboard-router']
  - level: None
";

/// One verb of one rule, for one resource and name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    /// Whether it applies only to the namespace of the release. Otherwise it applies to the whole cluster.
    is_namespaced: bool,
    group: String,
    /// Includes the subresource, as in `conversations/status`.
    resource: String,
    /// The name of the object; `None` permits all objects.
    name: Option<String>,
    verb: String,
}

impl Permission {
    fn of_role(role: &Value) -> impl Iterator<Item = Self> {
        let is_namespaced = role["kind"] == "Role";
        let words = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap_or_default() };
        role["rules"].as_array().unwrap().iter().flat_map(move |rule| {
            let mut permissions = Vec::new();
            let names = match words(&rule["resourceNames"]) {
                names if names.is_empty() => vec![None],
                names => names.into_iter().map(Some).collect(),
            };
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    for name in &names {
                        for verb in words(&rule["verbs"]) {
                            let (group, resource, name) = (group.clone(), resource.clone(), name.clone());
                            permissions.push(Self { is_namespaced, group, resource, name, verb });
                        }
                    }
                }
            }
            permissions
        })
    }

    fn permits(&self, request: &Request) -> bool {
        self.group == request.group
            && self.resource == request.resource
            && self.verb == request.verb
            && self.name.as_ref().is_none_or(|name| *name == request.name)
            && (!self.is_namespaced || request.namespace == NAMESPACE)
    }
}

/// A request in the audit log.
#[derive(Debug)]
struct Request {
    verb: String,
    group: String,
    resource: String,
    namespace: String,
    name: String,
    /// Whether RBAC allowed it.
    is_allowed: bool,
}

/// The permissions of a user, and the log of its requests.
struct Audit {
    log: &'static Path,
    user: &'static str,
    permissions: Vec<Permission>,
}

impl Audit {
    /// `roles` are those of the user, as kind and name.
    fn new((cluster, log): &'static (Cluster, PathBuf), user: &'static str, roles: &[(&str, &str)]) -> Self {
        let role = |(kind, name): &(&str, &str)| -> Value {
            let mut kubectl = cluster.control_plane.kubectl();
            kubectl.args(["get", kind, name, "--namespace", NAMESPACE, "--output=json"]);
            serde_json::from_str(&succeed(&mut kubectl)).unwrap()
        };
        let roles: Vec<_> = roles.iter().map(role).collect();
        Self { log, user, permissions: roles.iter().flat_map(Permission::of_role).collect() }
    }

    /// The user's requests in the log so far, except two that the roles system:public-info-viewer and system:basic-user permit to every
    /// user: the version of the server, and `SelfSubjectReview`s.
    fn requests(&self) -> Vec<Request> {
        let text = std::fs::read_to_string(self.log).unwrap_or_default();
        // The last line may be incomplete.
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let request = |event: Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let Some(object) = event.get("objectRef") else {
                assert_eq!(event["requestURI"], "/version", "{event}");
                return None;
            };
            let is_allowed = event["annotations"]["authorization.k8s.io/decision"] == "allow";
            if object["resource"] == "selfsubjectreviews" {
                assert!(is_allowed, "{event}");
                return None;
            }
            let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
            Some(Request {
                verb: text(&event["verb"]),
                group: text(&object["apiGroup"]),
                resource: text(&object["resource"]) + &subresource,
                namespace: text(&object["namespace"]),
                name: text(&object["name"]),
                is_allowed,
            })
        };
        events.filter(|event| event["user"]["username"] == self.user).filter_map(request).collect()
    }

    fn unused(&self) -> Vec<&Permission> {
        let requests = self.requests();
        let is_used = |permission: &Permission| requests.iter().any(|request| permission.permits(request));
        self.permissions.iter().filter(|permission| !is_used(permission)).collect()
    }

    /// Checks that each permission is used, and that each request was permitted.
    fn assert_match(&self) {
        assert_eq!(self.unused(), Vec::<&Permission>::new(), "permissions that {} does not use", self.user);
        let mut uses = BTreeMap::<&Permission, usize>::new();
        for request in &self.requests() {
            assert!(request.is_allowed, "the API server refused {request:?}");
            let permission = self.permissions.iter().find(|permission| permission.permits(request));
            *uses
                .entry(permission.unwrap_or_else(|| panic!("no rule of the chart permits {request:?}")))
                .or_default() += 1;
        }
        // `--nocapture` shows the number of requests that rely on each permission.
        for (permission, requests) in uses {
            println!("{requests:6} {permission:?}");
        }
    }
}

fn start(directory: &Path) -> (ControlPlane, PathBuf) {
    let (policy, log) = (directory.join("audit-policy.yaml"), directory.join("audit.log"));
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(&policy, AUDIT_POLICY).unwrap();
    // An earlier run may have left a log.
    let _ = std::fs::remove_file(&log);
    let control_plane = ControlPlane::builder()
        // Without streamed lists, the operator falls back to list requests.
        .api_server_flag("--feature-gates=WatchList=false")
        .api_server_flag(format!("--audit-policy-file={}", policy.display()))
        .api_server_flag(format!("--audit-log-path={}", log.display()));
    (control_plane.start().unwrap_or_else(|error| panic!("{error}")), log)
}

/// The cluster of these tests, and its audit log. Two replicas with self-managed certificates use the Lease, the Secret of the release, and
/// the caBundle.
fn audited() -> &'static (Cluster, PathBuf) {
    static AUDITED: OnceLock<(Cluster, PathBuf)> = OnceLock::new();
    AUDITED.get_or_init(|| {
        let (control_plane, log) = start(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("rbac"));
        (Cluster::install(control_plane, &installation_with_router().replicas(2).self_managed()), log)
    })
}

#[tokio::test]
async fn operator_uses_every_permission_and_lacks_none() {
    let (cluster, _) = audited();
    let namespace = cluster.test_namespace().await;

    // The life of a conversation, with its Events.
    namespace.create("alice", json!({})).await.unwrap();
    namespace.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    // The denial names a holder in another namespace only to users who may read it, so the operator asks for their permission.
    let elsewhere =
        common::cluster::TestNamespace { contact: namespace.contact.clone(), ..cluster.test_namespace().await };
    assert_eq!(elsewhere.create("mallory", json!({})).await.unwrap_err().code, 403);
    // A create that is not granted: the operator reads the ProxyAddress and the namespace live.
    let declared = json!({
        "apiVersion": "switchboard.dev/v1alpha1", "kind": "ProxyAddress", "metadata": {"name": "declared"},
        "spec": {
            "channel": "SMS", "address": "+15017122662", "namespaces": {"selector": {"matchLabels": {"team": "sales"}}},
        },
    });
    let declared: ProxyAddress = serde_json::from_value(declared).unwrap();
    Api::all(namespace.client.clone()).create(&PostParams::default(), &declared).await.unwrap();
    let proxy = json!({"proxy": {"address": "+15017122662"}});
    namespace.change("alice", json!({"state": "Closed", "ttlAfterClosed": "1s"})).await.unwrap();
    namespace.wait_for_event("alice", "Closed").await;
    namespace.wait_until_free().await;

    // Another webhook denies the first create, which leaves a claim. The second create of the same name adds its UID to this claim. The
    // leader's self-check then creates a rival of bob by dry run.
    let _other = FakeWebhook::start(&namespace.client, &namespace.namespace, 10, |review| async move {
        if review.number == 0 { Verdict::Deny(403, "Forbidden") } else { Verdict::Allow }
    })
    .await;
    namespace.create("bob", json!({})).await.unwrap_err();
    namespace.create("bob", json!({})).await.unwrap();

    // The operator issues new keys after its Secret is deleted.
    let secret = ["delete", "secret", "switchboard-webhook-tls", "--namespace", NAMESPACE];
    succeed(cluster.control_plane.kubectl().args(secret));
    cluster.installation.replica(0).restart().unwrap();

    // No earlier step waits for the self-check.
    let self_check_has_passed = async {
        loop {
            for replica in cluster.installation.replicas() {
                if metrics(replica).await.contains("switchboard_webhook_in_force 1\n") {
                    return;
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(TIMEOUT, self_check_has_passed).await.expect("the self-check reports that the webhook is in force");

    let audit = Audit::new(audited(), OPERATOR, &[("clusterrole", "switchboard"), ("role", "switchboard")]);
    let deadline = Instant::now() + TIMEOUT;
    while !audit.unused().is_empty() && Instant::now() < deadline {
        // Denied once the watch of the operator has shown the ProxyAddress.
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        drop(namespace.create_object(&namespace.conversation("mallory", proxy.clone()), &dry_run).await);
        sleep(POLL_INTERVAL).await;
    }
    audit.assert_match();
}

#[tokio::test]
async fn router_uses_every_permission_and_lacks_none() {
    let (cluster, _) = audited();
    let inbound = Inbound::on(cluster, json!({})).await;
    let router = builder("router").start(&cluster.control_plane).unwrap();
    let send = async |id: &str| inbound.message(id).send_until_known(router.inbound_address()).await.status;
    // The first message creates a conversation, and the second one reports its activity.
    assert_eq!([send("first").await, send("second").await], [200, 200]);
    let opened = inbound.conversations().await.pop().unwrap();
    inbound.ns.bound(&opened).await;
    // The router forgets that it has delivered the first one, and reads the conversation that it created.
    inbound.ns.change(&opened, json!({"state": "Closed"})).await.unwrap();
    router.restart().unwrap();
    assert_eq!(send("first").await, 200);
    let roles = [("clusterrole", "switchboard-router"), ("clusterrole", "switchboard-router-create")];
    let audit = Audit::new(audited(), ROUTER, &roles);
    let deadline = Instant::now() + TIMEOUT;
    while !audit.unused().is_empty() && Instant::now() < deadline {
        // The API server writes the log a moment later.
        sleep(POLL_INTERVAL).await;
    }
    audit.assert_match();
}
