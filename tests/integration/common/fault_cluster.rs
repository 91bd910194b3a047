//! A cluster whose operator reaches the API server through a proxy, and a witness of all that happens to one desk on it.

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
use switchboard::api::Conversation;
use switchboard::core::binding::BindingName;
use tokio::time::{Instant, sleep};

/// How long a create that was admitted and never stored keeps the binding from others. It may be so short because the API servers of
/// these clusters give a create up after [`REQUEST_TIMEOUT`].
pub const GRACE_PERIOD: Duration = Duration::from_secs(4);
const REQUEST_TIMEOUT: &str = "--request-timeout=3s";

/// The annotation of a conversation that another webhook denies; see [`FaultCluster::deny_some`].
const DENIED: &str = "example.com/denied";

/// The pause between two looks at something that tells nobody that it has changed.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A cluster with one API server, and a proxy before it for the operator.
pub struct FaultCluster {
    pub cluster: Cluster,
    pub proxy: Proxy,
}

impl FaultCluster {
    /// With that many replicas, all of them behind the one proxy.
    pub async fn start(replicas: usize) -> Self {
        Self::start_with(replicas, &["--lease-duration=3s"]).await
    }

    /// As [`FaultCluster::start`], with flags of the operator's that are not the grace period.
    pub async fn start_with(replicas: usize, flags: &[&str]) -> Self {
        Self::start_on(ControlPlane::builder().api_server_flag(REQUEST_TIMEOUT), replicas, flags).await
    }

    /// With one replica, and an API server that may store what it admitted long after the grace period: the one thing that claims do
    /// not survive unharmed.
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

    pub fn replica(&self) -> &Replica {
        self.cluster.installation.replica(0)
    }

    /// The replica that is called so in the Lease.
    pub fn replica_of(&self, identity: &str) -> &Replica {
        let installation = &self.cluster.installation;
        installation.replica(installation.index_of(identity).expect("a replica of ours"))
    }

    /// A client of the administrator's that repeats nothing by itself.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.cluster.control_plane.kubeconfig()).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    /// A desk, and the witness of what happens to its binding. Requests are not repeated.
    pub async fn desk(&self) -> (TestNamespace, HistoryChecker) {
        let desk = TestNamespace { client: self.client().await, ..self.cluster.desk().await };
        let witness = self.witness(&desk, Oracle::default());
        (desk, witness)
    }

    /// A witness that judges by `oracle`.
    pub fn witness(&self, desk: &TestNamespace, oracle: Oracle) -> HistoryChecker {
        HistoryChecker {
            recorder: Recorder::start(&self.cluster.control_plane),
            oracle,
            namespace: desk.namespace.clone(),
            claims: HashSet::from([desk.binding()]),
        }
    }

    /// Another webhook, by which the API server denies at that desk what [`create_denied`] creates, after ours has allowed it: it
    /// asks all webhooks at once, and waits for all of them.
    pub async fn deny_some(&self, desk: &TestNamespace) -> FakeWebhook {
        FakeWebhook::start(&desk.client, &desk.namespace, 10, |review| async move {
            let is_denied = review.request["object"]["metadata"]["annotations"].get(DENIED).is_some();
            if is_denied { Verdict::Deny(403, "Forbidden") } else { Verdict::Allow }
        })
        .await
    }

    /// Waits until a replica other than `before` leads, and returns its identity.
    pub async fn wait_for_leader_other_than(&self, before: &str) -> String {
        let leases = Api::<Lease>::namespaced(self.client().await, NAMESPACE);
        let holder =
            |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        let is_another =
            |lease: Option<&Lease>| lease.is_some_and(|lease| !holder(lease).is_empty() && holder(lease) != before);
        let lease = until(leases, "switchboard", is_another).await;
        holder(&lease.flatten().expect("a leader in time"))
    }
}

impl TestNamespace {
    /// Waits until the API server answers, after its store or itself was away.
    pub async fn until_it_answers(&self) {
        let deadline = Instant::now() + TIMEOUT;
        while self.conversations().list(&ListParams::default()).await.is_err() {
            assert!(Instant::now() < deadline, "the API server does not come back");
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Creates a conversation that our webhook admits and [`FaultCluster::deny_some`] does not.
pub async fn create_denied(desk: &TestNamespace, name: &str) -> Box<Status> {
    let mut object = desk.conversation(name, json!({}));
    object.metadata.annotations = Some([(DENIED.to_owned(), String::new())].into());
    desk.create_object(&object, &PostParams::default()).await.expect_err("another webhook denies it")
}

/// Creates a conversation, again and again where the answer is a 503 that says when to come again, as kubectl does.
pub async fn create_as_soon_as_possible(desk: &TestNamespace, name: &str, changes: Value) -> Conversation {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match desk.create(name, changes.clone()).await {
            Ok(stored) => return stored,
            Err(status) if is_to_be_repeated(&status) && Instant::now() < deadline => sleep(POLL_INTERVAL).await,
            Err(status) => panic!("{name} is not created: {status:?}"),
        }
    }
}

/// Whether it is a 503 that clients repeat by themselves.
pub fn is_to_be_repeated(status: &Status) -> bool {
    status.code == 503 && status.details.as_ref().is_some_and(|details| details.retry_after_seconds > 0)
}

/// The operator makes the claim of this desk.
pub fn claim_create(desk: &TestNamespace) -> impl Fn(&Call) -> bool + Send + 'static {
    let binding = desk.binding().to_string();
    move |call| call.is("POST", "/addressbindings") && call.mentions(&binding)
}

/// The operator changes the claim of this desk.
pub fn claim_replace(desk: &TestNamespace) -> impl Fn(&Call) -> bool + Send + 'static {
    let path = format!("/addressbindings/{}", desk.binding());
    move |call| call.is("PUT", &path)
}

/// The operator deletes the claim of this desk.
pub fn claim_delete(desk: &TestNamespace) -> impl Fn(&Call) -> bool + Send + 'static {
    let path = format!("/addressbindings/{}", desk.binding());
    move |call| call.is("DELETE", &path)
}

/// The operator writes the status of a conversation of this desk.
pub fn status_write(desk: &TestNamespace, name: &str) -> impl Fn(&Call) -> bool + Send + 'static {
    let path = format!("/namespaces/{}/conversations/{name}/status", desk.namespace);
    move |call| call.is("PATCH", &path)
}

/// The operator does anything with the claim of this desk.
pub fn claim_use(desk: &TestNamespace) -> impl Fn(&Call) -> bool + Send + 'static {
    let (binding, path) = (desk.binding().to_string(), format!("/addressbindings/{}", desk.binding()));
    move |call| call.path.ends_with(&path) || (call.is("POST", "/addressbindings") && call.mentions(&binding))
}

/// Sees all that happens to the conversations and the claim of one desk, and judges it.
pub struct HistoryChecker {
    recorder: Recorder,
    pub oracle: Oracle,
    namespace: String,
    claims: HashSet<BindingName>,
}

impl HistoryChecker {
    /// Judges what has happened up to the present moment.
    pub async fn show(&mut self) {
        for event in self.recorder.news().await {
            if self.is_ours(&event) {
                self.oracle.observe(&event).unwrap_or_else(|violation| panic!("{violation}"));
            }
        }
    }

    /// The same, until all is at rest.
    pub async fn show_rest(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.show().await;
            let unrest = self.oracle.unrest();
            if unrest.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "not at rest after {TIMEOUT:?}:\n{}", unrest.join("\n"));
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until the desk's binding has been held that many times.
    pub async fn wait_for_tenures(&mut self, desk: &TestNamespace, count: usize) {
        let binding = super::oracle::Binding::new("SMS", &desk.contact, &desk.proxy);
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.show().await;
            if self.oracle.tenures(&binding).len() >= count {
                return;
            }
            assert!(Instant::now() < deadline, "{binding} was held fewer than {count} times");
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

/// Kills the replica while the next such request of its is right before or right after the API server, and starts it again.
pub async fn kill_around(
    faulty: &FaultCluster,
    stage: Stage,
    applies: impl Fn(&Call) -> bool + Send + 'static,
    trigger: impl Future<Output = ()>,
) {
    let mut held = faulty.proxy.hold(stage, applies);
    let kill = async {
        let request: Held = held.next().await;
        faulty.replica().kill();
        request.resolve(Fault::Cut);
    };
    tokio::join!(kill, trigger);
    drop(held);
    faulty.replica().start().unwrap();
}

/// A cluster that a test has for itself as long as it runs; another one gets it afterwards, unless the test has failed.
pub struct Alone(Option<FaultCluster>);

static IDLE: Mutex<Vec<FaultCluster>> = Mutex::new(Vec::new());

pub async fn exclusive_cluster() -> Alone {
    let idle = IDLE.lock().unwrap().pop();
    Alone(Some(match idle {
        Some(faulty) => faulty,
        None => FaultCluster::start_with(1, &["--lease-duration=2s"]).await,
    }))
}

impl std::ops::Deref for Alone {
    type Target = FaultCluster;

    fn deref(&self) -> &FaultCluster {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            IDLE.lock().unwrap().extend(self.0.take());
        }
    }
}

/// One cluster for tests of a process that do not stand in each other's way.
pub async fn shared() -> Arc<FaultCluster> {
    static SHARED: tokio::sync::OnceCell<Arc<FaultCluster>> = tokio::sync::OnceCell::const_new();
    SHARED.get_or_init(|| async { Arc::new(FaultCluster::start(1).await) }).await.clone()
}
