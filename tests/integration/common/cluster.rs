//! One control plane with switchboard installed from its chart, for all tests of a process: two API servers, two replicas.
//! Each test has its own namespace and addresses, so that no test depends on another. If the environment names a running
//! playground, it replaces this control plane, for tests that harm nothing and need no process of it.

use control_plane::{ControlPlane, Installation, Server, TEST_CLUSTER};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::future::ready;
use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread;
use std::time::Duration;
use switchboard::api::{
    AddressBinding, ConditionReason, ConditionStatus, ConditionType, Conversation, ConversationSpec, State,
};
use switchboard::core::binding::{Binding, BindingName};
use tokio::time::timeout;

/// The deadline of every wait. It is far longer than any wait takes, so that no test fails on a slow machine.
pub const TIMEOUT: Duration = Duration::from_mins(2);

/// API servers with an installation of switchboard. Its control plane and its installation are those of [`Own`]; a test that uses them
/// on a playground fails.
pub struct Cluster {
    kubeconfig: PathBuf,
    own: Option<Own>,
}

/// A control plane of this process, and what is installed on it.
pub struct Own {
    pub control_plane: ControlPlane,
    pub installation: Installation,
}

impl Deref for Cluster {
    type Target = Own;

    #[track_caller]
    fn deref(&self) -> &Own {
        let Some(own) = &self.own else { panic!("{}", control_plane::Error::TestCluster) };
        own
    }
}

impl Cluster {
    /// The cluster that the tests of this process share, or the playground. Its user `outsider` has no rights at first.
    pub fn shared() -> &'static Self {
        static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
        let start = || {
            if let Some(kubeconfig) = control_plane::test_cluster() {
                assert!(
                    kubeconfig.is_file(),
                    "{TEST_CLUSTER}: there is no {}; is `make run` up?",
                    kubeconfig.display()
                );
                return Self { kubeconfig, own: None };
            }
            // Some tests read the whole history, however late in the run they start.
            let control_plane = ControlPlane::builder().api_server_flag("--etcd-compaction-interval=0");
            let control_plane = control_plane.api_servers(2).user("outsider", &[]);
            let control_plane = control_plane.start().unwrap_or_else(|error| panic!("{error}"));
            Self::install(control_plane, &installation_with_router().replicas(2))
        };
        // If the start fails for the first test, the other tests do not try again.
        let cluster = CLUSTER.get_or_init(|| std::panic::catch_unwind(start).ok());
        cluster.as_ref().expect("no cluster: see the first test that failed")
    }

    /// A cluster for a single test.
    pub fn install(control_plane: ControlPlane, installation: &control_plane::InstallationBuilder) -> Self {
        let installation = installation.install(&control_plane).unwrap_or_else(|error| panic!("{error}"));
        Self { kubeconfig: control_plane.kubeconfig().to_owned(), own: Some(Own { control_plane, installation }) }
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self) -> Command {
        match &self.own {
            Some(own) => own.control_plane.kubectl(),
            None => control_plane::kubectl(&self.kubeconfig).unwrap_or_else(|error| panic!("{error}")),
        }
    }

    /// A client of an API server, for this user. Each test needs its own, since a connection belongs to a runtime.
    pub async fn client_as(&self, user: &str, api_server: usize) -> Client {
        client_of(&self.kubeconfig, api_server, Some(user)).await
    }

    /// A client of an API server, for the administrator.
    pub async fn client(&self, api_server: usize) -> Client {
        client_of(&self.kubeconfig, api_server, None).await
    }

    /// Creates a namespace for one test, with addresses that no other test uses, nor another run on the same playground.
    pub async fn test_namespace(&self) -> TestNamespace {
        static NEXT: LazyLock<AtomicU64> =
            LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(0) % 10_000_000_000));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let client = self.client(0).await;
        let namespace = format!("test-{number}");
        create_namespace(&client, &namespace).await;
        let (kubeconfig, name) = (self.kubeconfig.clone(), namespace.clone());
        let cleanup = self.own.is_none().then(|| Arc::new(Cleanup { kubeconfig, namespace: name }));
        TestNamespace {
            client,
            namespace,
            contact: format!("+1555{number:011}"),
            proxy: "+15017122661".to_owned(),
            _cleanup: cleanup,
        }
    }
}

/// An installation of the chart with the router, whose replicas a test starts.
pub fn installation_with_router() -> control_plane::InstallationBuilder {
    Installation::builder(env!("CARGO_BIN_EXE_switchboard"))
        .set("router.enabled", "true")
        .set("router.sources.gateway.type", "CloudEvents")
        .set("router.sources.gateway.secretName", "gateway")
}

/// A client of an API server for the administrator, or for the user that it impersonates.
async fn client_of(kubeconfig: &Path, api_server: usize, user: Option<&str>) -> Client {
    let context = Some(format!("api-{}", api_server + 1));
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.auth_info.impersonate = user.map(str::to_owned);
    Client::try_from(config).unwrap()
}

/// Removes the namespace of a test from a playground.
pub struct Cleanup {
    kubeconfig: PathBuf,
    namespace: String,
}

impl Cleanup {
    async fn remove(&self) {
        let client = client_of(&self.kubeconfig, 0, None).await;
        let conversations = Api::<Conversation>::namespaced(client.clone(), &self.namespace);
        conversations.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
        let namespaces = Api::<Namespace>::all(client);
        namespaces.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
        // In a cluster kube-controller-manager does this, which no playground has.
        let finalized =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}, "spec": {}});
        namespaces.replace_subresource("finalize", &self.namespace, &PostParams::default(), &finalized).await.unwrap();
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // Not on the runtime of the test, which waits here. If it fails, the panic is printed, and the test is judged by itself.
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = thread::scope(|scope| scope.spawn(|| runtime().block_on(self.remove())).join());
    }
}

/// Creates a namespace.
pub async fn create_namespace(client: &Client, name: &str) {
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
}

/// The namespace of a test, with its contact and its proxy address. The methods are the requests that tests make there.
#[derive(Clone)]
pub struct TestNamespace {
    pub client: Client,
    pub namespace: String,
    pub contact: String,
    pub proxy: String,
    /// Runs when the last clone is dropped.
    pub _cleanup: Option<Arc<Cleanup>>,
}

impl TestNamespace {
    pub fn conversations(&self) -> Api<Conversation> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn claims(&self) -> Api<AddressBinding> {
        Api::all(self.client.clone())
    }

    pub fn binding(&self) -> BindingName {
        Binding::parse(switchboard::api::Channel::Sms, &self.contact, &self.proxy).unwrap().name()
    }

    /// A conversation for this namespace's binding with one participant. `changes` is a merge patch of the spec.
    pub fn conversation(&self, name: &str, changes: Value) -> Conversation {
        let spec: ConversationSpec = serde_json::from_value(self.spec(changes)).unwrap();
        Conversation::new(name, spec)
    }

    /// The same as a manifest, with the namespace.
    pub fn manifest(&self, name: &str, changes: Value) -> Value {
        json!({
            "apiVersion": Conversation::api_version(&()),
            "kind": Conversation::kind(&()),
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": self.spec(changes),
        })
    }

    fn spec(&self, changes: Value) -> Value {
        let mut spec = json!({
            "channel": "SMS",
            "contact": {"address": self.contact},
            "proxy": {"address": self.proxy},
            "participants": [{"identity": "agent-7"}],
        });
        merge(&mut spec, changes);
        spec
    }

    /// Creates a conversation. The error is the API server's refusal.
    pub async fn create(&self, name: &str, changes: Value) -> Result<Conversation, Box<Status>> {
        self.create_object(&self.conversation(name, changes), &PostParams::default()).await
    }

    /// As [`TestNamespace::create`], with a given object and parameters.
    pub async fn create_object(
        &self,
        object: &Conversation,
        parameters: &PostParams,
    ) -> Result<Conversation, Box<Status>> {
        refused(self.conversations().create(parameters, object).await)
    }

    /// Applies a merge patch to the spec.
    pub async fn change(&self, name: &str, changes: Value) -> Result<Conversation, Box<Status>> {
        let patch = Patch::Merge(json!({"spec": changes}));
        refused(self.conversations().patch(name, &PatchParams::default(), &patch).await)
    }

    /// Reports activity, as the messaging gateway does.
    pub async fn report_activity(&self, name: &str, time: &str) -> Result<Conversation, Box<Status>> {
        let patch = Patch::Merge(json!({"status": {"reportedActivityTime": time}}));
        refused(self.conversations().patch_status(name, &PatchParams::default(), &patch).await)
    }

    pub async fn delete(&self, name: &str) {
        self.conversations().delete(name, &kube::api::DeleteParams::default()).await.unwrap();
    }

    /// Waits until `is_so` is true of the conversation, and returns the conversation. `what` names the condition in the error message.
    pub async fn wait_for(&self, name: &str, what: &str, is_so: impl Fn(&Conversation) -> bool) -> Conversation {
        let condition = |object: Option<&Conversation>| object.is_some_and(&is_so);
        if let Some(Some(object)) = until(self.conversations(), name, condition).await {
            return object;
        }
        let now = self.conversations().get_opt(name).await.unwrap();
        panic!("{name} did not become {what} within {TIMEOUT:?}; it is {now:#?}")
    }

    pub async fn wait_for_state(&self, name: &str, state: State) -> Conversation {
        self.wait_for(name, &format!("{state:?}"), |conversation| {
            conversation.status.as_ref().is_some_and(|status| status.state == Some(state))
        })
        .await
    }

    pub async fn wait_for_condition(
        &self,
        name: &str,
        type_: ConditionType,
        status: ConditionStatus,
    ) -> (Conversation, ConditionReason) {
        let conversation = self
            .wait_for(name, &format!("{type_:?}={status:?}"), |conversation| {
                condition(conversation, type_).is_some_and(|(is, _)| is == status)
            })
            .await;
        let reason = condition(&conversation, type_).unwrap().1;
        (conversation, reason)
    }

    /// Waits for an Event with this reason about the conversation, and returns all its Events so far.
    pub async fn wait_for_event(&self, name: &str, reason: &str) -> Vec<Event> {
        let events = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
        let regards = |event: &Event| event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(name);
        let matching = watcher(events.clone(), watcher::Config::default())
            .applied_objects()
            .try_filter(|event| ready(regards(event) && event.reason.as_deref() == Some(reason)));
        let first = timeout(TIMEOUT, Box::pin(matching).try_next()).await;
        first.unwrap_or_else(|_| panic!("no event {reason} about {name} within {TIMEOUT:?}")).unwrap();
        events.list(&ListParams::default()).await.unwrap().items.into_iter().filter(regards).collect()
    }

    /// The claim on this namespace's binding.
    pub async fn claim(&self) -> Option<AddressBinding> {
        self.claims().get_opt(self.binding().as_str()).await.unwrap()
    }

    /// The name of the conversation that the claim on this namespace's binding names.
    pub async fn held_by(&self) -> Option<String> {
        self.claim().await.map(|claim| claim.spec.conversation_ref.name)
    }

    /// Waits until the conversation has `Bound=True`, and returns it.
    pub async fn bound(&self, name: &str) -> Conversation {
        self.wait_for_condition(name, ConditionType::Bound, ConditionStatus::True).await.0
    }

    /// Waits until this namespace's binding has no claim.
    pub async fn wait_until_free(&self) {
        let name = self.binding();
        let gone = until(self.claims(), name.as_str(), |claim: Option<&AddressBinding>| claim.is_none()).await;
        assert!(gone.is_some(), "{name} is still claimed");
    }
}

/// Waits until `is_so` is true of the object with that name, or of its absence, and returns the object. Returns `None` after
/// [`TIMEOUT`]. Unlike kube's `await_condition`, it continues after the API server was unavailable.
pub async fn until<K>(api: Api<K>, name: &str, is_so: impl Fn(Option<&K>) -> bool) -> Option<Option<K>>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let states = watch_object(api, name).default_backoff().filter_map(|state| ready(state.ok()));
    let mut so = pin!(states.filter(|state| ready(is_so(state.as_ref()))));
    timeout(TIMEOUT, so.next()).await.ok().flatten()
}

/// The text that a replica of the operator or a router serves at `/metrics`.
pub async fn metrics(server: &Server) -> String {
    let client = Client::try_from(Config::new(format!("http://{}", server.address()).parse().unwrap())).unwrap();
    client.request_text(hyper::Request::get("/metrics").body(Vec::new()).unwrap()).await.unwrap()
}

/// The status and the reason of a condition, if the conversation has it.
pub fn condition(conversation: &Conversation, type_: ConditionType) -> Option<(ConditionStatus, ConditionReason)> {
    let conditions = &conversation.status.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.type_ == type_).map(|condition| (condition.status, condition.reason))
}

fn refused<T>(result: kube::Result<T>) -> Result<T, Box<Status>> {
    match result {
        Ok(value) => Ok(value),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("the API server did not answer: {error}"),
    }
}

fn merge(object: &mut Value, changes: Value) {
    let Value::Object(changes) = changes else { return };
    for (key, change) in changes {
        match change {
            Value::Null => drop(object.as_object_mut().unwrap().remove(&key)),
            change => object[&key] = change,
        }
    }
}
