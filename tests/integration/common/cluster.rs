//! One control plane with switchboard installed from its chart, for all tests of a process: two API servers, two replicas.
//! Each test has a namespace and addresses of its own, so that none depends on another.

use control_plane::{ControlPlane, Installation, Replica};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::future::ready;
use std::pin::pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use switchboard::api::{
    AddressBinding, ConditionReason, ConditionStatus, ConditionType, Conversation, ConversationSpec, State,
};
use switchboard::core::binding::{Binding, BindingName};
use tokio::time::timeout;

/// How long anything that is waited for may take: far longer than it does, so that a slow machine fails no test.
pub const TIMEOUT: Duration = Duration::from_mins(2);

/// A control plane and what is installed on it.
pub struct Cluster {
    pub control_plane: ControlPlane,
    pub installation: Installation,
}

impl Cluster {
    /// The one that the tests of this process share. `insider` and `outsider` are users without any right of their own.
    pub fn shared() -> &'static Self {
        static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
        let start = || {
            let control_plane = ControlPlane::builder().api_servers(2).user("insider", &[]).user("outsider", &[]);
            let control_plane = control_plane.start().unwrap_or_else(|error| panic!("{error}"));
            Self::install(control_plane, &Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2))
        };
        // What fails for the first test is not tried once more by each of the others.
        let cluster = CLUSTER.get_or_init(|| std::panic::catch_unwind(start).ok());
        cluster.as_ref().expect("a cluster: see the first test that failed")
    }

    /// One that a test has for itself.
    pub fn install(control_plane: ControlPlane, installation: &control_plane::InstallationBuilder) -> Self {
        let installation = installation.install(&control_plane).unwrap_or_else(|error| panic!("{error}"));
        Self { control_plane, installation }
    }

    /// A client of an API server, for the user with this token; a connection belongs to a runtime, so each test has its own.
    pub async fn client_as(&self, token: &str, api_server: usize) -> Client {
        let kubeconfig = Kubeconfig::from_yaml(&self.control_plane.kubeconfig_for_token(token, api_server)).unwrap();
        client_of(kubeconfig, None).await
    }

    /// A client of an API server, for the administrator.
    pub async fn client(&self, api_server: usize) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.control_plane.kubeconfig()).unwrap();
        client_of(kubeconfig, Some(format!("api-{}", api_server + 1))).await
    }

    /// A namespace of its own for a test, with addresses that no other test uses.
    pub async fn desk(&self) -> TestNamespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let client = self.client(0).await;
        let namespace = format!("desk-{number}");
        create_namespace(&client, &namespace).await;
        let contact = format!("+1555{number:07}");
        TestNamespace { client, namespace, contact, proxy: "+15017122661".to_owned() }
    }
}

async fn client_of(kubeconfig: Kubeconfig, context: Option<String>) -> Client {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap()).unwrap()
}

/// Creates a namespace.
pub async fn create_namespace(client: &Client, name: &str) {
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
}

/// A namespace of a test, its contact and its proxy address, and what a test does there.
#[derive(Clone)]
pub struct TestNamespace {
    pub client: Client,
    pub namespace: String,
    pub contact: String,
    pub proxy: String,
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

    /// A conversation for this desk's binding with one participant, changed as by a merge patch of its spec.
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

    /// Creates a conversation; an error is what the API server refused it with.
    pub async fn create(&self, name: &str, changes: Value) -> Result<Conversation, Box<Status>> {
        self.create_object(&self.conversation(name, changes), &PostParams::default()).await
    }

    /// As [`TestNamespace::create`], with an object and parameters of one's own.
    pub async fn create_object(
        &self,
        object: &Conversation,
        parameters: &PostParams,
    ) -> Result<Conversation, Box<Status>> {
        refused(self.conversations().create(parameters, object).await)
    }

    /// Changes the spec by a merge patch.
    pub async fn change(&self, name: &str, changes: Value) -> Result<Conversation, Box<Status>> {
        let patch = Patch::Merge(json!({"spec": changes}));
        refused(self.conversations().patch(name, &PatchParams::default(), &patch).await)
    }

    /// Reports activity, as whoever carries the messages does.
    pub async fn report_activity(&self, name: &str, time: &str) -> Result<Conversation, Box<Status>> {
        let patch = Patch::Merge(json!({"status": {"reportedActivityTime": time}}));
        refused(self.conversations().patch_status(name, &PatchParams::default(), &patch).await)
    }

    pub async fn delete(&self, name: &str) {
        self.conversations().delete(name, &kube::api::DeleteParams::default()).await.unwrap();
    }

    /// Waits until the conversation is as `is_so` says, and returns it.
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

    /// Waits until people were told `reason` of the conversation, and returns what was told of it so far.
    pub async fn wait_for_event(&self, name: &str, reason: &str) -> Vec<Event> {
        let events = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
        let regards = |event: &Event| event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(name);
        let told = watcher(events.clone(), watcher::Config::default())
            .applied_objects()
            .try_filter(|event| ready(regards(event) && event.reason.as_deref() == Some(reason)));
        let first = timeout(TIMEOUT, Box::pin(told).try_next()).await;
        first.unwrap_or_else(|_| panic!("nobody was told {reason} of {name}")).unwrap();
        events.list(&ListParams::default()).await.unwrap().items.into_iter().filter(regards).collect()
    }

    /// The claim on this desk's binding.
    pub async fn claim(&self) -> Option<AddressBinding> {
        self.claims().get_opt(self.binding().as_str()).await.unwrap()
    }

    /// Whom the claim on this desk's binding names.
    pub async fn held_by(&self) -> Option<String> {
        self.claim().await.map(|claim| claim.spec.conversation_ref.name)
    }

    /// Waits until the conversation is bound, and returns it.
    pub async fn bound(&self, name: &str) -> Conversation {
        self.wait_for_condition(name, ConditionType::Bound, ConditionStatus::True).await.0
    }

    /// Waits until nobody has this desk's binding.
    pub async fn wait_until_free(&self) {
        let name = self.binding();
        let gone = until(self.claims(), name.as_str(), |claim: Option<&AddressBinding>| claim.is_none()).await;
        assert!(gone.is_some(), "{name} is still claimed");
    }
}

/// Waits until the object of that name, if there is one, is as `is_so` says, and returns it; nothing if it never is. An API
/// server that is away meanwhile is waited for, which kube's `await_condition` does not.
pub async fn until<K>(api: Api<K>, name: &str, is_so: impl Fn(Option<&K>) -> bool) -> Option<Option<K>>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let states = watch_object(api, name).default_backoff().filter_map(|state| ready(state.ok()));
    let mut so = pin!(states.filter(|state| ready(is_so(state.as_ref()))));
    timeout(TIMEOUT, so.next()).await.ok().flatten()
}

/// What `/metrics` of a replica says.
pub async fn metrics(replica: &Replica) -> String {
    let client = Client::try_from(Config::new(format!("http://{}", replica.address()).parse().unwrap())).unwrap();
    client.request_text(hyper::Request::get("/metrics").body(Vec::new()).unwrap()).await.unwrap()
}

/// The status and the reason of a condition.
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
