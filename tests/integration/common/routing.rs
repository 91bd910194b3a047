//! Two routers on the shared cluster, and the means to send them messages as a gateway does.

use super::cluster::{Cluster, TestNamespace};
use super::sink::Sink;
use crate::common::succeed;
use control_plane::ControlPlane;
use control_plane::installation::NAMESPACE;
use control_plane::router::{Builder, ROUTER, Router};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HeaderMap};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use switchboard::api::ProxyAddress;
use tokio::time::timeout;

/// The token of the source `gateway`.
pub const TOKEN: &str = "a token of forty characters, or so, or so";
/// The secret by which events are signed.
pub const SIGNING_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A router with the source `gateway`, which a test may change before it starts it.
pub fn builder(name: &str) -> Builder {
    Router::builder(env!("CARGO_BIN_EXE_switchboard"), name)
        .source("gateway", "{type: CloudEvents}")
        .key("gateway", "token", TOKEN)
        .signing_secret(SIGNING_SECRET)
}

/// The routers that tests share. Each talks to another API server.
pub fn routers() -> &'static [Router] {
    static ROUTERS: OnceLock<Option<Vec<Router>>> = OnceLock::new();
    let start = || {
        let start = |index| {
            let builder = builder(&format!("router-{}", index + 1)).api_server(index);
            builder.start(&Cluster::shared().control_plane).unwrap_or_else(|error| panic!("{error}"))
        };
        (0..2).map(start).collect()
    };
    // If the start fails for the first test, the other tests do not try again.
    let routers = ROUTERS.get_or_init(|| std::panic::catch_unwind(start).ok());
    routers.as_ref().expect("no router: see the first test that failed")
}

/// The token of the router's service account.
pub fn token(control_plane: &ControlPlane) -> String {
    let arguments = ["create", "token", "switchboard-router", "--duration=8760h", "-n", NAMESPACE];
    succeed(control_plane.kubectl().args(arguments)).trim().to_owned()
}

/// A namespace with a proxy address of its own, whose messages go to `sink`.
pub struct Inbound {
    pub ns: TestNamespace,
    pub sink: Sink,
}

impl Inbound {
    /// Declares the proxy address. `changes` replaces fields of `spec.inbound`; by default it accepts the source `gateway` and creates
    /// conversations in the namespace.
    pub async fn new(changes: Value) -> Self {
        Self::on(Cluster::shared(), changes).await
    }

    /// The same on another cluster.
    pub async fn on(cluster: &Cluster, changes: Value) -> Self {
        let ns = cluster.test_namespace().await;
        let ns = TestNamespace { proxy: ns.contact.replacen("+1555", "+1556", 1), ..ns };
        let sink = Sink::start();
        let mut inbound = json!({
            "sources": ["gateway"],
            "autocreate": {"namespace": ns.namespace, "maxPerMinute": 1000},
            "sink": {"uri": sink.url()},
        });
        for (field, value) in changes.as_object().unwrap() {
            inbound[field] = value.clone();
        }
        if inbound["autocreate"].is_null() {
            inbound.as_object_mut().unwrap().remove("autocreate");
        }
        let object = json!({
            "apiVersion": "switchboard.dev/v1alpha1",
            "kind": "ProxyAddress",
            "metadata": {"name": ns.namespace},
            "spec": {"channel": "SMS", "address": ns.proxy, "inbound": inbound},
        });
        let inbound = Self { ns, sink };
        inbound.allow_creates(cluster).await;
        let object = serde_json::from_value(object).unwrap();
        inbound.proxy_addresses().create(&PostParams::default(), &object).await.unwrap();
        inbound
    }

    pub fn proxy_addresses(&self) -> Api<ProxyAddress> {
        Api::all(self.ns.client.clone())
    }

    /// Lets the router create conversations in the namespace, as `router.autocreateNamespaces` does.
    async fn allow_creates(&self, cluster: &Cluster) {
        let binding = json!({
            "metadata": {"name": "switchboard-router-create"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "switchboard-router-create"},
            "subjects": [{"kind": "ServiceAccount", "name": "switchboard-router", "namespace": NAMESPACE}],
        });
        let bindings = Api::<RoleBinding>::namespaced(self.ns.client.clone(), &self.ns.namespace);
        bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
        // Each API server takes it up a moment later.
        for api_server in 0..cluster.control_plane.api_servers().len() {
            let reviews = Api::<SubjectAccessReview>::all(cluster.client(api_server).await);
            let review = serde_json::from_value(json!({"spec": {
                "user": ROUTER,
                "resourceAttributes": {
                    "namespace": self.ns.namespace, "verb": "create", "group": "switchboard.dev", "resource": "conversations",
                },
            }}))
            .unwrap();
            let is_allowed = async {
                while !reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed {}
            };
            timeout(super::cluster::TIMEOUT, is_allowed).await.expect("the router may create conversations");
        }
    }

    /// A message from the contact of the namespace.
    pub fn message(&self, id: &str) -> Message {
        Message {
            id: id.to_owned(),
            source: format!("/tests/{}", self.ns.namespace),
            data: json!({"channel": "SMS", "contact": self.ns.contact, "proxy": self.ns.proxy, "text": id}),
        }
    }

    /// Sends a message to a router until a ProxyAddress is known there, since its watch shows it a moment later.
    pub async fn send(&self, router: usize, id: &str) -> Answered {
        self.message(id).send_until_known(routers()[router].inbound_address()).await
    }

    /// The conversations in the namespace, by name.
    pub async fn conversations(&self) -> Vec<String> {
        let all = self.ns.conversations().list(&kube::api::ListParams::default()).await.unwrap();
        all.items.into_iter().filter_map(|conversation| conversation.metadata.name).collect()
    }
}

/// A message as a gateway sends it: a `CloudEvent` in structured mode.
#[derive(Clone, Debug)]
pub struct Message {
    pub id: String,
    pub source: String,
    pub data: Value,
}

/// The answer of a router.
#[derive(Clone, Debug)]
pub struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
    pub at: Instant,
    pub took: Duration,
}

impl Message {
    pub fn body(&self) -> Value {
        json!({
            "specversion": "1.0", "type": "dev.switchboard.message.v1", "source": self.source, "id": self.id,
            "datacontenttype": "application/json", "data": self.data,
        })
    }

    /// Sends it to a router once. Returns `None` if there is no answer.
    pub async fn try_send(&self, router: SocketAddr) -> Option<Answered> {
        post(router, "gateway", TOKEN, &self.body()).await
    }

    /// Sends it to a router once.
    pub async fn send(&self, router: SocketAddr) -> Answered {
        self.try_send(router).await.expect("an answer")
    }

    /// Sends it to a router until its ProxyAddress is known there.
    pub async fn send_until_known(&self, router: SocketAddr) -> Answered {
        let sending = async {
            loop {
                let answered = self.send(router).await;
                if answered.status != StatusCode::NOT_FOUND {
                    return answered;
                }
            }
        };
        timeout(super::cluster::TIMEOUT, sending).await.expect("the ProxyAddress is known")
    }
}

/// Posts a `CloudEvent` in structured mode to a source of a router.
pub async fn post(router: SocketAddr, source: &str, token: &str, event: &Value) -> Option<Answered> {
    request_once(request(router, source, token, event)).await
}

/// A request with a `CloudEvent` in structured mode, or with a batch of them.
pub fn request(router: SocketAddr, source: &str, token: &str, events: &Value) -> Request<Full<Bytes>> {
    let mode = if events.is_array() { "cloudevents-batch" } else { "cloudevents" };
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://{router}/v1/sources/{source}"))
        .header("content-type", format!("application/{mode}+json"))
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .body(Full::from(events.to_string()))
        .unwrap()
}

/// Makes a request on a connection of its own. Returns `None` if there is no answer.
pub async fn request_once(request: Request<Full<Bytes>>) -> Option<Answered> {
    let began = Instant::now();
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let response = client.request(request).await.ok()?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    Some(Answered {
        status: parts.status,
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
        at: Instant::now(),
        took: began.elapsed(),
    })
}
