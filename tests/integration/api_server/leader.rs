//! The properties of leader election on a real API server: exclusive, renews, expires, vacates, survives.

use crate::common;
use crate::common::cluster::{TIMEOUT, until};
use crate::common::{shared_control_plane, succeed};
use control_plane::ControlPlane;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use std::time::Duration;
use switchboard::clock::Clock;
use switchboard::leader::{LeaderElector, Leadership, Settings};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "default";
/// Short enough that a test does not wait long for it, and long enough that a busy machine renews in time.
const SHORT: Duration = Duration::from_secs(4);
/// So long that it does not expire during a test.
const LONG: Duration = Duration::from_hours(1);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A replica that takes part in the leader election.
struct Candidate {
    identity: String,
    leadership: Leadership,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Candidate {
    fn start(client: Client, lease: &str, identity: &str, duration: Duration) -> Self {
        Self::start_with(client, settings(lease, identity, duration))
    }

    fn start_with(client: Client, settings: Settings) -> Self {
        let identity = settings.identity.clone();
        let (elector, leadership) = LeaderElector::new(client, settings, Clock);
        let shutdown = CancellationToken::new();
        let stopped = CancellationToken::new();
        stopped.cancel();
        let ending = shutdown.clone();
        let task = tokio::spawn(async move { elector.run(ending, stopped).await.expect("history went back") });
        Self { identity, leadership, shutdown, task }
    }

    async fn wait_until(&self, leads: bool) {
        let is_so = async {
            while self.leadership.is_leader() != leads {
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(TIMEOUT, is_so)
            .await
            .unwrap_or_else(|_| panic!("{}: is_leader() does not become {leads}", self.identity));
    }
}

fn settings(lease: &str, identity: &str, duration: Duration) -> Settings {
    Settings {
        namespace: NAMESPACE.to_owned(),
        name: lease.to_owned(),
        identity: identity.to_owned(),
        duration,
        renew_deadline: duration * 2 / 3,
        retry_period: Duration::from_millis(300),
    }
}

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), NAMESPACE)
}

async fn spec(client: &Client, lease: &str) -> LeaseSpec {
    leases(client).get(lease).await.unwrap().spec.unwrap()
}

/// Waits until `is_so` is true of the Lease, and returns its spec.
async fn wait_for(client: &Client, lease: &str, is_so: impl Fn(&LeaseSpec) -> bool) -> LeaseSpec {
    let condition = |lease: Option<&Lease>| lease.and_then(|lease| lease.spec.as_ref()).is_some_and(&is_so);
    let lease = until(leases(client), lease, condition).await;
    lease.flatten().expect("the Lease reaches the expected state within the timeout").spec.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exclusive_and_expires() {
    let client = common::client().await;
    let start = |number| Candidate::start(client.clone(), "exclusive", &format!("candidate-{number}"), SHORT);
    let candidates: Vec<_> = (0..3).map(start).collect();
    let watched: Vec<_> = candidates.iter().map(|candidate| candidate.leadership.clone()).collect();
    let done = CancellationToken::new();
    let watching = tokio::spawn({
        let done = done.clone();
        async move {
            while !done.is_cancelled() {
                let leading = watched.iter().filter(|leadership| leadership.is_leader()).count();
                assert!(leading <= 1, "{leading} candidates lead at the same time");
                sleep(POLL_INTERVAL).await;
            }
        }
    });
    let mut led = Vec::new();
    for _ in 0..3 {
        let leader = async {
            loop {
                if let Some(leader) = candidates.iter().find(|candidate| candidate.leadership.is_leader()) {
                    return leader;
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        let leader = timeout(TIMEOUT, leader).await.expect("a leader within the timeout");
        assert!(!led.contains(&leader.identity), "a candidate leads that has ended");
        assert_eq!(leader.leadership.follows_another(), !led.is_empty(), "after {led:?}");
        led.push(leader.identity.clone());
        // The leader ends without releasing the Lease.
        leader.task.abort();
        leader.wait_until(false).await;
    }
    done.cancel();
    watching.await.expect("at most one candidate leads at any time");
    assert_eq!(spec(&client, "exclusive").await.lease_transitions, Some(2));
}

#[tokio::test]
async fn renews() {
    let client = common::client().await;
    let leader = Candidate::start(client.clone(), "renews", "leader", SHORT);
    leader.wait_until(true).await;
    let other = Candidate::start(client.clone(), "renews", "other", SHORT);
    let first = spec(&client, "renews").await;
    let mut last = first.clone();
    for _ in 0..5 {
        last = wait_for(&client, "renews", |spec| spec.renew_time > last.renew_time).await;
        assert!(leader.leadership.is_leader() && !other.leadership.is_leader());
    }
    assert_eq!(last, LeaseSpec { renew_time: last.renew_time.clone(), ..first }, "a renewal changes only renewTime");
}

#[tokio::test]
async fn vacates() {
    let client = common::client().await;
    let leader = Candidate::start(client.clone(), "vacates", "leader", LONG);
    leader.wait_until(true).await;
    // The watch of the Lease must wake this candidate: its retry period is too long.
    let other = Settings { retry_period: LONG, ..settings("vacates", "other", LONG) };
    let other = Candidate::start_with(client.clone(), other);
    leader.shutdown.cancel();
    leader.task.await.unwrap();
    assert!(!leader.leadership.is_leader());
    other.wait_until(true).await;
    assert!(other.leadership.follows_another());
    let spec = spec(&client, "vacates").await;
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("other"), Some(1)));
}

#[tokio::test]
async fn edited_lease_is_acquired_only_after_its_full_duration() {
    let client = common::client().await;
    for (lease, edited) in [
        // An elector that trusted this duration would acquire the Lease too early.
        ("given-away", json!({"holderIdentity": "somebody", "leaseDurationSeconds": 1})),
        ("emptied", json!({"holderIdentity": ""})),
    ] {
        let leader = Candidate::start(client.clone(), lease, "leader", SHORT);
        leader.wait_until(true).await;
        let edited_at = Instant::now();
        let edited = Patch::Merge(json!({"spec": edited}));
        leases(&client).patch(lease, &PatchParams::default(), &edited).await.unwrap();
        leader.wait_until(false).await;
        leader.wait_until(true).await;
        assert!(edited_at.elapsed() >= SHORT, "{lease}");
        let spec = spec(&client, lease).await;
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("leader"), Some(1)));
    }
}

#[tokio::test]
async fn deleted_lease_is_recreated_only_by_its_holder() {
    let client = common::client().await;
    let leader = Candidate::start(client.clone(), "deleted", "leader", LONG);
    leader.wait_until(true).await;
    let other = Candidate::start(client.clone(), "deleted", "other", LONG);
    // After three renewals the other candidate has seen the Lease.
    let mut renewed = spec(&client, "deleted").await;
    for _ in 0..3 {
        renewed = wait_for(&client, "deleted", |spec| spec.renew_time > renewed.renew_time).await;
    }
    for _ in 0..5 {
        leases(&client).delete("deleted", &DeleteParams::default()).await.unwrap();
        let made = wait_for(&client, "deleted", |spec| spec.renew_time > renewed.renew_time).await;
        assert_eq!(made.holder_identity.as_deref(), Some("leader"));
        assert!(leader.leadership.is_leader() && !other.leadership.is_leader());
        renewed = made;
    }
}

#[tokio::test]
async fn survives_an_api_server_outage_longer_than_the_lease() {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    let kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let leader = Candidate::start(client.clone(), "survives", "leader", SHORT);
    leader.wait_until(true).await;
    control_plane.api_server(0).kill();
    leader.wait_until(false).await;
    let restarted =
        tokio::task::spawn_blocking(move || control_plane.api_server(0).start().map(|()| control_plane)).await;
    let _control_plane = restarted.unwrap().unwrap();
    leader.wait_until(true).await;
    let spec = spec(&client, "survives").await;
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("leader"), Some(0)));
}

/// Creates a service account. Returns its uid, and a client that authenticates as it.
async fn service_account(control_plane: &ControlPlane, name: &str) -> (String, Client) {
    let run = |arguments: &[&str]| succeed(control_plane.kubectl().args(["--namespace", NAMESPACE]).args(arguments));
    run(&["create", "serviceaccount", name]);
    let uid = run(&["get", "serviceaccount", name, "--output=jsonpath={.metadata.uid}"]);
    let token = run(&["create", "token", name]);
    let kubeconfig = Kubeconfig::from_yaml(&control_plane.kubeconfig_for_token(token.trim(), 0)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    (uid, Client::try_from(config).unwrap())
}

/// Grants the service account with this name the rights of the chart's Role.
fn permit(control_plane: &ControlPlane, name: &str) {
    let run = |arguments: &[&str]| succeed(control_plane.kubectl().args(["--namespace", NAMESPACE]).args(arguments));
    run(&["create", "role", name, "--verb=create,get,watch,update", "--resource=leases.coordination.k8s.io"]);
    let account = format!("--serviceaccount={NAMESPACE}:{name}");
    run(&["create", "rolebinding", name, &format!("--role={name}"), &account]);
}

/// The owners of a Lease: kind, name and uid.
async fn owners(client: &Client, lease: &str) -> Vec<(String, String, String)> {
    let lease = leases(client).get(lease).await.unwrap();
    let owners = lease.metadata.owner_references.unwrap_or_default();
    owners.into_iter().map(|owner| (owner.kind, owner.name, owner.uid)).collect()
}

/// Acquires the Lease as `identity`, and releases it.
async fn lead_once(client: Client, lease: &str, identity: &str) {
    let candidate = Candidate::start(client, lease, identity, LONG);
    candidate.wait_until(true).await;
    candidate.shutdown.cancel();
    candidate.task.await.unwrap();
}

#[tokio::test]
async fn lease_is_owned_by_the_leaders_service_account() {
    let (control_plane, administrator) = (shared_control_plane(), common::client().await);
    // A leader that is not a service account sets no owner.
    lead_once(administrator.clone(), "owned", "administrator").await;
    assert_eq!(owners(&administrator, "owned").await, []);

    permit(control_plane, "owned");
    for round in ["first", "recreated"] {
        let (uid, client) = service_account(control_plane, "owned").await;
        let leader = Candidate::start(client.clone(), "owned", round, SHORT);
        leader.wait_until(true).await;
        let owned = vec![("ServiceAccount".to_owned(), "owned".to_owned(), uid)];
        assert_eq!(owners(&administrator, "owned").await, owned, "{round}");
        // Neither a renewal nor a release changes the owner.
        let first = spec(&administrator, "owned").await;
        wait_for(&administrator, "owned", |spec| spec.renew_time > first.renew_time).await;
        assert_eq!(owners(&administrator, "owned").await, owned, "{round}");
        leader.shutdown.cancel();
        leader.task.await.unwrap();
        assert_eq!(owners(&administrator, "owned").await, owned, "{round}");
        let accounts = Api::<ServiceAccount>::namespaced(administrator.clone(), NAMESPACE);
        accounts.delete("owned", &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn lease_keeps_its_owners_if_the_api_server_refuses_a_change() {
    let plugin = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement";
    let control_plane =
        ControlPlane::builder().api_server_flag(plugin).start().unwrap_or_else(|error| panic!("{error}"));
    let kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let administrator = Client::try_from(config).unwrap();
    lead_once(administrator.clone(), "refused", "administrator").await;

    permit(&control_plane, "refused");
    let (uid, client) = service_account(&control_plane, "refused").await;
    let leader = Candidate::start(client, "refused", "leader", LONG);
    leader.wait_until(true).await;
    let first = spec(&administrator, "refused").await;
    let renewed = wait_for(&administrator, "refused", |spec| spec.renew_time > first.renew_time).await;
    assert_eq!(owners(&administrator, "refused").await, [], "the leader continues without an owner");
    // The API server accepts a new Lease with an owner.
    leases(&administrator).delete("refused", &DeleteParams::default()).await.unwrap();
    wait_for(&administrator, "refused", |spec| spec.renew_time > renewed.renew_time).await;
    let owned = [("ServiceAccount".to_owned(), "refused".to_owned(), uid)];
    assert_eq!(owners(&administrator, "refused").await, owned);
}
