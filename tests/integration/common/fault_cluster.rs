//! A cluster whose operator reaches the API server through a proxy, and a checker of everything that happens in one namespace of it.

use super::cluster::{Cluster, TIMEOUT, TestNamespace, until};
use super::fake_webhook::{FakeWebhook, Verdict};
use super::oracle::{Event, Kind, Oracle};
use super::proxy::{Call, Fault, Held, Proxy, Stage};
use super::recorder::Recorder;
use control_plane::installation::{NAMESPACE, OPERATOR};
use control_plane::{ControlPlane, Installation, Replica};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use switchboard::api::{ConditionReason, ConditionStatus, ConditionType, Conversation};
use switchboard::core::binding::BindingName;
use tokio::time::{Instant, sleep};

/// The time for which a create that was admitted but never stored keeps the binding from others. It can be this short because the API
/// servers of these clusters give up a create after [`REQUEST_TIMEOUT`].
pub const GRACE_PERIOD: Duration = Duration::from_secs(4);
const REQUEST_TIMEOUT: &str = "--request-timeout=3s";

/// The annotation of the conversations that the webhook of [`FaultCluster::deny_some`] denies.
const DENIED: &str = "example.com/denied";

/// The pause between two checks of a condition that cannot be watched.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The conversations of [`create_waiting`], in the order in which they get the binding. Of those of the same second, the lower name is
/// the first.
pub const WAITING: [&str; 2] = ["waiting-1", "waiting-2"];

/// A cluster with one API server, and a proxy between the operator and that API server.
pub struct FaultCluster {
    cluster: Cluster,
    pub proxy: Proxy,
}

impl FaultCluster {
    /// Starts a cluster with `replicas` replicas, all behind the one proxy.
    pub async fn start(replicas: usize) -> Self {
        Self::start_with(replicas, &["--lease-duration=3s"]).await
    }

    /// As [`FaultCluster::start`], with flags of the operator. The grace period cannot be among them.
    pub async fn start_with(replicas: usize, flags: &[&str]) -> Self {
        Self::start_on(ControlPlane::builder().api_server_flag(REQUEST_TIMEOUT), replicas, flags).await
    }

    /// Starts a cluster with one replica, and an API server that may store a create long after the grace period. This is the one case
    /// against which claims do not protect.
    pub async fn start_late() -> Self {
        Self::start_on(ControlPlane::builder(), 1, &[]).await
    }

    async fn start_on(control_plane: control_plane::Builder, replicas: usize, flags: &[&str]) -> Self {
        let control_plane = control_plane
            .user(OPERATOR, &["system:serviceaccounts"])
            .api_server_flag("--etcd-compaction-interval=0")
            .start()
            .unwrap_or_else(|error| panic!("{error}"));
        let proxy = Proxy::to_api_server(&control_plane, 0).await;
        let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard"))
            .replicas(replicas)
            .flag(format!("--grace-period={}s", GRACE_PERIOD.as_secs()))
            .flag("--unsafe-grace-period")
            .flag("--drain-delay=1s")
            .env("SWITCHBOARD_LOG", "info,switchboard=debug,kube_client=debug")
            .env("KUBECONFIG", proxy.kubeconfig(&control_plane, OPERATOR));
        let installation = flags.iter().fold(installation, |installation, flag| installation.flag(*flag));
        Self { cluster: Cluster::install(control_plane, &installation), proxy }
    }

    pub fn control_plane(&self) -> &ControlPlane {
        &self.cluster.control_plane
    }

    pub fn installation(&self) -> &Installation {
        &self.cluster.installation
    }

    pub fn replica(&self) -> &Replica {
        self.installation().replica(0)
    }

    /// The replica with this identity in the Lease.
    pub fn replica_of(&self, identity: &str) -> &Replica {
        let installation = self.installation();
        installation.replica(installation.index_of(identity).expect("the identity of a replica"))
    }

    /// An administrator's client that does not retry.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.cluster.control_plane.kubeconfig()).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    /// A test namespace whose client does not retry, and a checker of its history.
    pub async fn checked_namespace(&self) -> (TestNamespace, HistoryChecker) {
        let ns = TestNamespace { client: self.client().await, ..self.cluster.test_namespace().await };
        let checker = self.checker(&ns, Oracle::default());
        (ns, checker)
    }

    /// A checked namespace in which `alice` is bound, and the conversations of [`create_waiting`] have been told that they wait.
    pub async fn contended_namespace(&self) -> (TestNamespace, HistoryChecker) {
        let (ns, checker) = self.checked_namespace().await;
        ns.create("alice", json!({})).await.unwrap();
        ns.bound("alice").await;
        create_waiting(&ns).await;
        for name in WAITING {
            waiting(&ns, name).await;
        }
        (ns, checker)
    }

    /// A checker that uses `oracle`.
    pub fn checker(&self, ns: &TestNamespace, oracle: Oracle) -> HistoryChecker {
        HistoryChecker {
            recorder: Recorder::start(&self.cluster.control_plane),
            oracle,
            namespace: ns.namespace.clone(),
            claims: HashSet::from([ns.binding()]),
        }
    }

    /// Registers another webhook, which denies the conversations of [`create_denied`] in this namespace. The operator's webhook has
    /// allowed them, since the API server calls all webhooks at the same time and waits for all of them.
    pub async fn deny_some(&self, ns: &TestNamespace) -> FakeWebhook {
        FakeWebhook::start(&ns.client, &ns.namespace, 10, |review| async move {
            let is_denied = review.request["object"]["metadata"]["annotations"].get(DENIED).is_some();
            if is_denied { Verdict::Deny(403, "Forbidden") } else { Verdict::Allow }
        })
        .await
    }

    /// Waits until the Lease has a holder other than `before`, and returns the identity of the holder.
    pub async fn wait_for_leader_other_than(&self, before: &str) -> String {
        let leases = Api::<Lease>::namespaced(self.client().await, NAMESPACE);
        let holder =
            |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        let is_another =
            |lease: Option<&Lease>| lease.is_some_and(|lease| !holder(lease).is_empty() && holder(lease) != before);
        let lease = until(leases, "switchboard", is_another).await;
        holder(&lease.flatten().expect("another leader within the timeout"))
    }
}

impl TestNamespace {
    /// Waits until the API server answers again, after it or etcd was unavailable.
    pub async fn wait_until_api_server_answers(&self) {
        let deadline = Instant::now() + TIMEOUT;
        while self.conversations().list(&ListParams::default()).await.is_err() {
            assert!(Instant::now() < deadline, "the API server does not answer again");
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Creates a conversation that the operator's webhook allows and the webhook of [`FaultCluster::deny_some`] denies.
pub async fn create_denied(ns: &TestNamespace, name: &str) -> Box<Status> {
    let mut object = ns.conversation(name, json!({}));
    object.metadata.annotations = Some([(DENIED.to_owned(), String::new())].into());
    ns.create_object(&object, &PostParams::default()).await.expect_err("the other webhook denies it")
}

/// Creates a conversation. Repeats the create while the answer is a 503 with a retry delay, as kubectl does.
pub async fn create_with_retries(ns: &TestNamespace, name: &str, changes: Value) -> Conversation {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match ns.create(name, changes.clone()).await {
            Ok(stored) => return stored,
            Err(status) if is_retryable(&status) && Instant::now() < deadline => sleep(POLL_INTERVAL).await,
            Err(status) => panic!("cannot create {name}: {status:?}"),
        }
    }
}

/// The same changes of the spec, for a conversation that waits for a binding that is not free.
pub fn waits(mut changes: Value) -> Value {
    changes["onConflict"] = json!("Wait");
    changes
}

/// Creates conversations that wait for this namespace's binding, which must not be free.
pub async fn create_waiting(ns: &TestNamespace) {
    for name in WAITING {
        ns.create(name, waits(json!({}))).await.expect("it is stored without its binding");
    }
}

/// Waits until the conversation is told that it waits, and returns it.
pub async fn waiting(ns: &TestNamespace, name: &str) -> Conversation {
    let (conversation, reason) = ns.wait_for_condition(name, ConditionType::Bound, ConditionStatus::False).await;
    assert_eq!(reason, ConditionReason::WaitingForBinding, "{conversation:?}");
    conversation
}

/// Closes the holder of the binding and each of its successors, and asserts that those that wait get the binding, the oldest first, that
/// other creates are refused meanwhile, and that the binding is free at the end. `holder` is the present holder, or gets the binding next.
pub async fn assert_handed_over(ns: &TestNamespace, checker: &mut HistoryChecker, holder: &str) {
    let waiting = WAITING.into_iter().filter(|name| *name > holder || !WAITING.contains(&holder));
    for holder in [holder].into_iter().chain(waiting) {
        ns.bound(holder).await;
        checker.wait_until_at_rest().await;
        assert_eq!(ns.held_by().await.as_deref(), Some(holder));
        let refusal = ns.create("refused", json!({})).await.expect_err("another conversation holds the binding");
        assert!(refusal.message.contains("48031"), "{refusal:?}");
        ns.change(holder, json!({"state": "Closed"})).await.unwrap();
    }
    ns.wait_until_free().await;
    checker.wait_until_at_rest().await;
}

/// Whether it is a 503 with a retry delay, after which clients retry by themselves.
pub fn is_retryable(status: &Status) -> bool {
    status.code == 503 && status.details.as_ref().is_some_and(|details| details.retry_after_seconds > 0)
}

/// Matches the request by which the operator creates the claim on this namespace's binding.
pub fn claim_create(ns: &TestNamespace) -> impl Fn(&Call) -> bool + Send + 'static {
    let binding = ns.binding().to_string();
    move |call| call.is("POST", "/addressbindings") && call.mentions(&binding)
}

/// Matches the requests by which the operator replaces the claim on this namespace's binding.
pub fn claim_replace(ns: &TestNamespace) -> impl Fn(&Call) -> bool + Send + 'static {
    let path = format!("/addressbindings/{}", ns.binding());
    move |call| call.is("PUT", &path)
}

/// Matches the requests by which the operator deletes the claim on this namespace's binding.
pub fn claim_delete(ns: &TestNamespace) -> impl Fn(&Call) -> bool + Send + 'static {
    let path = format!("/addressbindings/{}", ns.binding());
    move |call| call.is("DELETE", &path)
}

/// Matches the requests by which the operator writes the status of this conversation.
pub fn status_write(ns: &TestNamespace, name: &str) -> impl Fn(&Call) -> bool + Send + 'static {
    let path = format!("/namespaces/{}/conversations/{name}/status", ns.namespace);
    move |call| call.is("PATCH", &path)
}

/// Matches every request of the operator about the claim on this namespace's binding.
pub fn claim_use(ns: &TestNamespace) -> impl Fn(&Call) -> bool + Send + 'static {
    let (binding, path) = (ns.binding().to_string(), format!("/addressbindings/{}", ns.binding()));
    move |call| call.path.ends_with(&path) || (call.is("POST", "/addressbindings") && call.mentions(&binding))
}

/// Observes every change of the conversations and the claim of one test namespace, and checks the invariants.
pub struct HistoryChecker {
    recorder: Recorder,
    pub oracle: Oracle,
    namespace: String,
    claims: HashSet<BindingName>,
}

impl HistoryChecker {
    /// Checks these claims, and the conversations of a namespace, from now on.
    pub fn start(control_plane: &ControlPlane, namespace: &str, claims: HashSet<BindingName>) -> Self {
        let (recorder, oracle) = (Recorder::start(control_plane), Oracle::default());
        Self { recorder, oracle, namespace: namespace.to_owned(), claims }
    }

    /// Checks the history up to the present moment.
    pub async fn check(&mut self) {
        for event in self.recorder.new_events().await {
            if self.is_ours(&event) {
                self.oracle.observe(&event).unwrap_or_else(|violation| panic!("{violation}"));
            }
        }
    }

    /// As [`HistoryChecker::check`], and waits until everything is at rest.
    pub async fn wait_until_at_rest(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.check().await;
            let unrest = self.oracle.unrest();
            if unrest.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "not at rest after {TIMEOUT:?}:\n{}", unrest.join("\n"));
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until the namespace's binding has been held `count` times.
    pub async fn wait_for_hold_intervals(&mut self, ns: &TestNamespace, count: usize) {
        let binding = super::oracle::Binding::new("SMS", &ns.contact, &ns.proxy);
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.check().await;
            if self.oracle.hold_intervals(&binding).len() >= count {
                return;
            }
            assert!(Instant::now() < deadline, "{binding} was held fewer than {count} times within {TIMEOUT:?}");
            sleep(POLL_INTERVAL).await;
        }
    }

    fn is_ours(&self, event: &Event) -> bool {
        match event.kind {
            Kind::Conversation => event.namespace == self.namespace,
            Kind::Claim => self.claims.iter().any(|claim| claim.as_str() == event.name),
        }
    }
}

/// Kills the replica while its next matching request is right before or right after the API server, and starts it again.
pub async fn kill_around(
    cluster: &FaultCluster,
    stage: Stage,
    applies: impl Fn(&Call) -> bool + Send + 'static,
    trigger: impl Future<Output = ()>,
) {
    let mut held = cluster.proxy.hold(stage, applies);
    let kill = async {
        let request: Held = held.next().await;
        cluster.replica().kill();
        request.resolve(Fault::Cut);
    };
    tokio::join!(kill, trigger);
    drop(held);
    cluster.replica().start().unwrap();
}

/// A cluster that one test uses at a time. Another test gets it afterwards, unless the test has failed.
pub struct ExclusiveCluster(Option<FaultCluster>);

static IDLE: Mutex<Vec<FaultCluster>> = Mutex::new(Vec::new());

pub async fn exclusive_cluster() -> ExclusiveCluster {
    let idle = IDLE.lock().unwrap().pop();
    ExclusiveCluster(Some(match idle {
        Some(cluster) => cluster,
        None => FaultCluster::start_with(1, &["--lease-duration=2s"]).await,
    }))
}

impl std::ops::Deref for ExclusiveCluster {
    type Target = FaultCluster;

    fn deref(&self) -> &FaultCluster {
        self.0.as_ref().unwrap()
    }
}

impl Drop for ExclusiveCluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            IDLE.lock().unwrap().extend(self.0.take());
        }
    }
}

/// One cluster for the tests of a process that do not disturb each other.
pub async fn shared() -> Arc<FaultCluster> {
    static SHARED: tokio::sync::OnceCell<Arc<FaultCluster>> = tokio::sync::OnceCell::const_new();
    SHARED.get_or_init(|| async { Arc::new(FaultCluster::start(1).await) }).await.clone()
}
