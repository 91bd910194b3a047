//! An HTTPS proxy that injects faults into chosen requests, as a bad network, a slow server or a crash would. It holds requests before
//! or after the server has processed them, cuts their connections, answers instead of the server, or sends them twice.

use super::cluster::TIMEOUT;
use super::https::{self, Body, json};
use control_plane::{Authority, ControlPlane};
use data_encoding::BASE64;
use futures::{StreamExt, stream};
use http_body_util::{BodyDataStream, BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use hyper::{Method, Request, Response, StatusCode};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// The parts of a request by which a fault is chosen.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub body: Bytes,
}

impl Call {
    /// Whether it has this method, and its path ends with `path`.
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method.as_str() == method && self.path.ends_with(path)
    }

    /// Whether its body contains `text`.
    pub fn mentions(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.body).contains(text)
    }

    fn is_watch(&self) -> bool {
        self.query.split('&').any(|pair| pair == "watch=true")
    }
}

/// The moment at which a fault applies to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The server has not received the request.
    Before,
    /// The server has answered, and the client has not received the answer.
    After,
}

/// The fault that is injected into a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// None: the request continues.
    Pass,
    /// The connection to the client is cut.
    Cut,
    /// The client gets this status code instead of the answer of the server.
    Answer(u16),
    /// The server receives the request twice, and the client gets the second answer.
    Twice,
}

struct Rule {
    number: usize,
    stage: Stage,
    applies: Box<dyn Fn(&Call) -> bool + Send>,
    matched: watch::Sender<usize>,
    effect: Effect,
}

enum Effect {
    Inject(Fault),
    Hold(mpsc::UnboundedSender<Held>),
}

/// A request that waits for the decision about its fault. If this is dropped, the request continues.
#[derive(Debug)]
pub struct Held {
    pub call: Call,
    fault: oneshot::Sender<Fault>,
}

impl Held {
    pub fn resolve(self, fault: Fault) {
        // The request no longer waits if the proxy has ended.
        let _ = self.fault.send(fault);
    }
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    numbers: AtomicUsize,
    /// Whether watches deliver nothing.
    are_watches_frozen: watch::Sender<bool>,
    /// The number of watches so far. The first `dead_watches` of them never deliver anything again.
    watches: AtomicUsize,
    dead_watches: AtomicUsize,
}

/// A fault that is in force until this is dropped.
pub struct InForce {
    shared: Arc<Shared>,
    number: usize,
    matched: watch::Sender<usize>,
    held: mpsc::UnboundedReceiver<Held>,
}

impl InForce {
    /// The number of requests that it has matched.
    pub fn count(&self) -> usize {
        *self.matched.borrow()
    }

    /// Waits until it has matched `count` requests.
    pub async fn wait_for(&self, count: usize) {
        let mut matched = self.matched.subscribe();
        let reached = timeout(TIMEOUT, matched.wait_for(|matched| *matched >= count)).await;
        drop(reached.unwrap_or_else(|_| panic!("fewer than {count} matching requests within {TIMEOUT:?}")));
    }

    /// Waits for the next request that it holds.
    pub async fn next(&mut self) -> Held {
        timeout(TIMEOUT, self.held.recv()).await.expect("a matching request within the timeout").unwrap()
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        self.shared.rules.lock().unwrap().retain(|rule| rule.number != self.number);
    }
}

/// A proxy that forwards requests until it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    authority: Authority,
    server: https::Server,
}

impl Proxy {
    /// A proxy in front of an API server. It forwards the client's token, so that the API server sees the same user.
    pub async fn to_api_server(control_plane: &ControlPlane, index: usize) -> Self {
        let kubeconfig = Kubeconfig::from_yaml(&control_plane.kubeconfig_for_token("nobody", index)).unwrap();
        let mut upstream = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        upstream.auth_info = AuthInfo::default();
        Self::to(upstream, Authority::new("proxy").unwrap())
    }

    /// A proxy in front of a webhook whose clients trust `authority`.
    pub fn to_webhook(webhook: SocketAddr, authority: &Authority) -> Self {
        let mut upstream = Config::new(format!("https://{webhook}").parse().unwrap());
        let trusted = CertificateDer::from_pem_slice(authority.certificate().as_bytes()).unwrap();
        upstream.root_cert = Some(vec![trusted.to_vec()]);
        Self::with_certificate(upstream, &authority.issue("proxy").unwrap(), Authority::new("nobody's").unwrap())
    }

    fn to(upstream: Config, authority: Authority) -> Self {
        let certificate = authority.issue("proxy").unwrap();
        Self::with_certificate(upstream, &certificate, authority)
    }

    fn with_certificate(
        mut upstream: Config,
        certificate: &control_plane::ServingCertificate,
        authority: Authority,
    ) -> Self {
        // The client must see each fault, so the proxy does not retry.
        upstream.default_retry = false;
        upstream.read_timeout = None;
        upstream.write_timeout = None;
        let shared = Arc::new(Shared::default());
        let (for_calls, upstream) = (shared.clone(), Arc::new(upstream));
        // The first request creates the client, because a client belongs to the runtime in which it is created.
        let client = Arc::new(OnceLock::new());
        let server = https::serve(certificate, move |request| {
            let (shared, upstream, client) = (for_calls.clone(), upstream.clone(), client.clone());
            async move {
                let client: &Client = client.get_or_init(|| Client::try_from((*upstream).clone()).unwrap());
                // A task of its own continues when the client disconnects.
                tokio::spawn(process(shared, client.clone(), request)).await.ok().flatten()
            }
        });
        Self { shared, authority, server }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Writes a kubeconfig with this token that reaches the API server through the proxy.
    pub fn kubeconfig(&self, control_plane: &ControlPlane, token: &str) -> PathBuf {
        let authority = BASE64.encode(self.authority.certificate().as_bytes());
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxy",
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "user"}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "clusters": [{
                "name": "proxy",
                "cluster": {"server": format!("https://{}", self.address()), "certificate-authority-data": authority},
            }],
        });
        let path = control_plane.data_dir().join(format!("proxy-{}.kubeconfig", self.address().port()));
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        path
    }

    /// Injects `fault` into each matching request.
    pub fn inject(&self, stage: Stage, fault: Fault, applies: impl Fn(&Call) -> bool + Send + 'static) -> InForce {
        self.add(stage, Effect::Inject(fault), applies, mpsc::unbounded_channel().1)
    }

    /// Holds each matching request until the test decides about it.
    pub fn hold(&self, stage: Stage, applies: impl Fn(&Call) -> bool + Send + 'static) -> InForce {
        let (sender, held) = mpsc::unbounded_channel();
        self.add(stage, Effect::Hold(sender), applies, held)
    }

    fn add(
        &self,
        stage: Stage,
        effect: Effect,
        applies: impl Fn(&Call) -> bool + Send + 'static,
        held: mpsc::UnboundedReceiver<Held>,
    ) -> InForce {
        let number = self.shared.numbers.fetch_add(1, Ordering::SeqCst);
        let matched = watch::Sender::new(0);
        let rule = Rule { number, stage, applies: Box::new(applies), matched: matched.clone(), effect };
        self.shared.rules.lock().unwrap().push(rule);
        InForce { shared: self.shared.clone(), number, matched, held }
    }

    /// Freezes all watches, or releases them again. A frozen watch stays open and delivers nothing.
    pub fn freeze_watches(&self, freeze: bool) {
        self.shared.are_watches_frozen.send_replace(freeze);
    }

    /// Kills the current watches: they stay open for ever and never deliver anything again, not even their end.
    pub fn kill_watches(&self) {
        self.shared.dead_watches.store(self.shared.watches.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

async fn process(shared: Arc<Shared>, client: Client, request: Request<Bytes>) -> Option<Response<Body>> {
    let call = Call {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        body: request.body().clone(),
    };
    match shared.fault(Stage::Before, &call).await {
        Fault::Pass => {}
        Fault::Cut => return None,
        Fault::Answer(code) => return Some(failure(code)),
        Fault::Twice => drop(forward(&shared, &client, &call, request.clone()).await),
    }
    let response = forward(&shared, &client, &call, request).await;
    match shared.fault(Stage::After, &call).await {
        Fault::Pass | Fault::Twice => response,
        Fault::Cut => None,
        Fault::Answer(code) => Some(failure(code)),
    }
}

impl Shared {
    async fn fault(&self, stage: Stage, call: &Call) -> Fault {
        let decided = {
            let rules = self.rules.lock().unwrap();
            let Some(rule) = rules.iter().find(|rule| rule.stage == stage && (rule.applies)(call)) else {
                return Fault::Pass;
            };
            rule.matched.send_modify(|matched| *matched += 1);
            match &rule.effect {
                Effect::Inject(fault) => return *fault,
                Effect::Hold(held) => {
                    let (fault, decided) = oneshot::channel();
                    let _ = held.send(Held { call: call.clone(), fault });
                    decided
                }
            }
        };
        decided.await.unwrap_or(Fault::Pass)
    }
}

/// Forwards a request, and returns the answer of the server, if any.
async fn forward(
    shared: &Arc<Shared>,
    client: &Client,
    call: &Call,
    request: Request<Bytes>,
) -> Option<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    for name in [HOST, CONNECTION, TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    let request = Request::from_parts(parts, kube::client::Body::from(body));
    let (mut parts, body) = client.send(request).await.ok()?.into_parts();
    for name in [CONNECTION, TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    let body = if call.is_watch() {
        let (shared, number) = (shared.clone(), shared.watches.fetch_add(1, Ordering::SeqCst));
        let frozen = shared.are_watches_frozen.subscribe();
        let chunks = stream::unfold((BodyDataStream::new(body), frozen), move |(mut chunks, mut frozen)| {
            let shared = shared.clone();
            async move {
                let chunk = chunks.next().await;
                frozen.wait_for(|frozen| !frozen).await.ok()?;
                if number < shared.dead_watches.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                Some((chunk?.map(Frame::data), (chunks, frozen)))
            }
        });
        StreamBody::new(chunks).map_err(Into::into).boxed_unsync()
    } else {
        let bytes = body.collect().await.ok()?.to_bytes();
        Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
    };
    Some(Response::from_parts(parts, body))
}

fn failure(code: u16) -> Response<Body> {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "by the proxy"});
    json(StatusCode::from_u16(code).unwrap(), &status)
}
