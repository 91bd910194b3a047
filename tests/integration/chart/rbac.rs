//! The operator's permissions, held against what it asks for: the API server's audit log of a run that exercises all that it does is
//! compared with the chart's roles, both ways.

use crate::common;
use crate::common::chart::NAMESPACE;
use crate::common::cluster::{Cluster, TIMEOUT, metrics};
use crate::common::fake_webhook::{FakeWebhook, Verdict};
use crate::common::succeed;
use control_plane::installation::OPERATOR;
use control_plane::{ControlPlane, Installation};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use switchboard::api::{ConditionStatus, ConditionType};
use tokio::time::{sleep, timeout};

/// Between two looks at something that tells nobody that it has changed.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Everything that the operator asks for, and nothing that others do.
const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ['system:serviceaccount:switchboard-system:switchboard']
  - level: None
";

/// What one verb of one rule permits.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    /// The operator's own namespace alone, or the cluster with all namespaces.
    is_namespaced: bool,
    group: String,
    /// With the subresource: `conversations/status`.
    resource: String,
    /// Of which object; of all where there is none.
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

/// A request of the operator, as the audit log tells it.
#[derive(Debug)]
struct Request {
    verb: String,
    group: String,
    resource: String,
    namespace: String,
    name: String,
    /// Whether RBAC let it pass.
    is_allowed: bool,
}

/// What the log has of the operator so far. Besides what the roles permit it asks for the server's version and for who it is, which
/// everybody may by the roles system:public-info-viewer and system:basic-user.
fn requests(log: &Path) -> Vec<Request> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written.
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let request = |event: Value| {
        assert_eq!(event["user"]["username"], OPERATOR);
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
    events.filter_map(request).collect()
}

fn start(directory: &Path) -> (ControlPlane, PathBuf) {
    let (policy, log) = (directory.join("audit-policy.yaml"), directory.join("audit.log"));
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(&policy, AUDIT_POLICY).unwrap();
    // Of an earlier run.
    let _ = std::fs::remove_file(&log);
    let control_plane = ControlPlane::builder()
        // As on servers that do not stream lists, so that the operator falls back to asking for them.
        .api_server_flag("--feature-gates=WatchList=false")
        .api_server_flag(format!("--audit-policy-file={}", policy.display()))
        .api_server_flag(format!("--audit-log-path={}", log.display()));
    (control_plane.start().unwrap_or_else(|error| panic!("{error}")), log)
}

#[tokio::test]
async fn the_operator_may_do_what_it_does_and_nothing_else() {
    let (control_plane, log) = start(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("rbac"));
    // Two replicas that make their certificate: the Lease, the Secret that the release brings, and the caBundle.
    let cluster = Cluster::install(
        control_plane,
        &Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2).self_managed(),
    );
    let desk = cluster.test_namespace().await;

    // A conversation from its creation to its end, with all that is told of it.
    desk.create("alice", json!({})).await.unwrap();
    desk.wait_for_condition("alice", ConditionType::Ready, ConditionStatus::True).await;
    // A holder in another namespace is named only to those who may read it.
    let elsewhere = common::cluster::TestNamespace { contact: desk.contact.clone(), ..cluster.test_namespace().await };
    assert_eq!(elsewhere.create("mallory", json!({})).await.unwrap_err().code, 403);
    desk.change("alice", json!({"state": "Closed", "ttlAfterClosed": "1s"})).await.unwrap();
    desk.wait_for_event("alice", "Closed").await;
    desk.wait_until_free().await;

    // A create that another webhook denies leaves a claim behind, to which the next one of its name is added. And the leader tries
    // whether the webhook refuses a second holder of what bob holds.
    let _other = FakeWebhook::start(&desk.client, &desk.namespace, 10, |review| async move {
        if review.number == 0 { Verdict::Deny(403, "Forbidden") } else { Verdict::Allow }
    })
    .await;
    desk.create("bob", json!({})).await.unwrap_err();
    desk.create("bob", json!({})).await.unwrap();

    // The Secret is deleted, so that new keys are made.
    let secret = ["delete", "secret", "switchboard-webhook-tls", "--namespace", NAMESPACE];
    succeed(cluster.control_plane.kubectl().args(secret));
    cluster.installation.replica(0).restart().unwrap();

    // Nothing else waits for what the self-check finds out.
    let has_found_out = async {
        loop {
            for replica in cluster.installation.replicas() {
                if metrics(replica).await.contains("switchboard_webhook_in_force 1\n") {
                    return;
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(TIMEOUT, has_found_out).await.expect("the self-check finds out that the webhook is in force");

    let role = |kind: &str| -> Value {
        let mut kubectl = cluster.control_plane.kubectl();
        kubectl.args(["get", kind, "switchboard", "--namespace", NAMESPACE, "--output=json"]);
        serde_json::from_str(&succeed(&mut kubectl)).unwrap()
    };
    let roles = [role("clusterrole"), role("role")];
    let permissions: Vec<_> = roles.iter().flat_map(Permission::of_role).collect();
    let unused = |requests: &[Request]| -> Vec<&Permission> {
        permissions.iter().filter(|permission| !requests.iter().any(|request| permission.permits(request))).collect()
    };
    let deadline = Instant::now() + TIMEOUT;
    while !unused(&requests(&log)).is_empty() && Instant::now() < deadline {
        sleep(POLL_INTERVAL).await;
    }
    let requests = requests(&log);
    assert_eq!(unused(&requests), Vec::<&Permission>::new(), "permissions that the operator has no use for");
    let mut relying = BTreeMap::<&Permission, usize>::new();
    for request in &requests {
        assert!(request.is_allowed, "the API server refused {request:?}");
        let permission = permissions.iter().find(|permission| permission.permits(request));
        *relying
            .entry(permission.unwrap_or_else(|| panic!("no rule of the chart permits {request:?}")))
            .or_default() += 1;
    }
    // With `--nocapture`: how many requests would have failed without each.
    for (permission, requests) in relying {
        println!("{requests:6} {permission:?}");
    }
}
