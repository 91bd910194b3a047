//! Stands between a client and a server of ours, by HTTPS, and does to chosen requests what a bad network, a slow server or a crash
//! would do: holds them before or after the server has seen them, cuts them, answers in the server's stead, or sends them twice.

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

/// A request, as far as a fault is chosen by it.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub body: Bytes,
}

impl Call {
    /// Whether it is of this method and its path ends like that.
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method.as_str() == method && self.path.ends_with(path)
    }

    /// Whether its body, as text, contains that.
    pub fn mentions(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.body).contains(text)
    }

    fn is_watch(&self) -> bool {
        self.query.split('&').any(|pair| pair == "watch=true")
    }
}

/// When something is done to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The server has not seen it.
    Before,
    /// The server has answered it, and the client does not know yet.
    After,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It goes on.
    Pass,
    /// The connection is cut.
    Cut,
    /// This is answered, whatever the server has said.
    Answer(u16),
    /// The server sees it twice, and what it says to the second is the answer.
    Twice,
}

struct Rule {
    number: usize,
    stage: Stage,
    applies: Box<dyn Fn(&Call) -> bool + Send>,
    met: watch::Sender<usize>,
    effect: Effect,
}

enum Effect {
    Inject(Fault),
    Hold(mpsc::UnboundedSender<Held>),
}

/// A request that waits for its fault to be decided; dropped, it goes on.
#[derive(Debug)]
pub struct Held {
    pub call: Call,
    fault: oneshot::Sender<Fault>,
}

impl Held {
    pub fn resolve(self, fault: Fault) {
        // Nobody waits any more where the proxy has ended.
        let _ = self.fault.send(fault);
    }
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    numbers: AtomicUsize,
    /// Whether nothing gets through a watch.
    are_watches_frozen: watch::Sender<bool>,
    /// How many watches there have been, and how many of them are dead.
    watches: AtomicUsize,
    dead_watches: AtomicUsize,
}

/// A fault that is in force until this is dropped.
pub struct InForce {
    shared: Arc<Shared>,
    number: usize,
    met: watch::Sender<usize>,
    held: mpsc::UnboundedReceiver<Held>,
}

impl InForce {
    /// How many requests it has met.
    pub fn count(&self) -> usize {
        *self.met.borrow()
    }

    /// Waits until it has met that many requests.
    pub async fn wait_for(&self, count: usize) {
        let mut met = self.met.subscribe();
        let reached = timeout(TIMEOUT, met.wait_for(|met| *met >= count)).await;
        drop(reached.unwrap_or_else(|_| panic!("fewer than {count} requests that the fault applies to")));
    }

    /// The next request that it holds.
    pub async fn next(&mut self) -> Held {
        timeout(TIMEOUT, self.held.recv()).await.expect("a request that is to be held").unwrap()
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        self.shared.rules.lock().unwrap().retain(|rule| rule.number != self.number);
    }
}

/// Carries requests until it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    authority: Authority,
    server: https::Server,
}

impl Proxy {
    /// In front of an API server. Who is behind it stays who he is: his token is handed on.
    pub async fn to_api_server(control_plane: &ControlPlane, index: usize) -> Self {
        let kubeconfig = Kubeconfig::from_yaml(&control_plane.kubeconfig_for_token("nobody", index)).unwrap();
        let mut upstream = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        upstream.auth_info = AuthInfo::default();
        Self::to(upstream, Authority::new("proxy").unwrap())
    }

    /// In front of a webhook, whose clients trust `authority`.
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
        // A fault reaches the client as it is.
        upstream.default_retry = false;
        upstream.read_timeout = None;
        upstream.write_timeout = None;
        let shared = Arc::new(Shared::default());
        let (for_calls, upstream) = (shared.clone(), Arc::new(upstream));
        // Made by the first request, because a client belongs to the runtime that it was made in.
        let client = Arc::new(OnceLock::new());
        let server = https::serve(certificate, move |request| {
            let (shared, upstream, client) = (for_calls.clone(), upstream.clone(), client.clone());
            async move {
                let client: &Client = client.get_or_init(|| Client::try_from((*upstream).clone()).unwrap());
                // In a task, so that it is treated also where its client is gone.
                tokio::spawn(carry(shared, client.clone(), request)).await.ok().flatten()
            }
        });
        Self { shared, authority, server }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Writes a kubeconfig by which whoever has this token reaches the API server through the proxy.
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

    /// This becomes of each such request.
    pub fn inject(&self, stage: Stage, fault: Fault, applies: impl Fn(&Call) -> bool + Send + 'static) -> InForce {
        self.add(stage, Effect::Inject(fault), applies, mpsc::unbounded_channel().1)
    }

    /// Each such request is held until the test says what becomes of it.
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
        let met = watch::Sender::new(0);
        let rule = Rule { number, stage, applies: Box::new(applies), met: met.clone(), effect };
        self.shared.rules.lock().unwrap().push(rule);
        InForce { shared: self.shared.clone(), number, met, held }
    }

    /// From now on nothing gets through a watch, which stays open all the same; or again everything does.
    pub fn freeze_watches(&self, freeze: bool) {
        self.shared.are_watches_frozen.send_replace(freeze);
    }

    /// The watches that there are stay open for ever, and nothing comes through them any more, not even that they have ended.
    pub fn kill_watches(&self) {
        self.shared.dead_watches.store(self.shared.watches.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

async fn carry(shared: Arc<Shared>, client: Client, request: Request<Bytes>) -> Option<Response<Body>> {
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
            rule.met.send_modify(|met| *met += 1);
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

/// What the server answers; nothing where it does not.
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
