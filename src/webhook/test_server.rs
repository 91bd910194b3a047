//! A webhook server for tests, and the means to call it.

use super::limits::Limits;
use super::metrics::WebhookMetrics;
use super::outcome::AdmissionOutcome;
use super::router::Router;
use crate::clock::Clock;
use crate::server::{Endpoint, Security, Shutdown};
use crate::telemetry::metrics;
use hyper::body::Bytes;
use prometheus_client::registry::Registry;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A server whose handler panics on `panic`, never answers `never`, answers `wait` when it is released, and answers `fine` to everything
/// else.
pub struct TestServer {
    pub address: SocketAddr,
    connector: TlsConnector,
    registry: Registry,
    pub shutdown: Shutdown,
    /// Each notification lets one `wait` be answered.
    pub release: Arc<Notify>,
    pub ended: tokio::task::JoinHandle<()>,
}

impl TestServer {
    pub async fn start(limits: Limits) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(vec![cert.der().clone()], key.into());
        let (_, tls) = watch::channel(Some(Arc::new(config.unwrap())));
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut registry, shutdown) = (metrics::registry(), Shutdown::default());
        let metrics = WebhookMetrics::new(&mut registry);
        let release = Arc::new(Notify::new());
        let released = release.clone();
        let handler = move |body: Bytes, _| {
            let released = released.clone();
            async move {
                assert!(*body != b"panic"[..], "as asked");
                if *body == b"never"[..] {
                    std::future::pending::<()>().await;
                }
                if *body == b"wait"[..] {
                    released.notified().await;
                }
                Ok((AdmissionOutcome::NoClaim, b"fine".to_vec()))
            }
        };
        let router = Router::new(handler, Clock, &limits, metrics.clone());
        let endpoint = Endpoint {
            name: "the webhook",
            listener,
            security: Security::Tls(tls),
            limits: limits.transport(),
            metrics: metrics.connections(),
        };
        let serving = endpoint.serve(router, Clock, shutdown.clone());
        let ended = tokio::spawn(serving);
        Self { address, connector: TlsConnector::from(Arc::new(client)), registry, shutdown, release, ended }
    }

    pub async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        self.connector.connect(ServerName::from(self.address.ip()), stream).await.unwrap()
    }

    /// The answer to `bytes` on a connection of their own, until it is closed.
    pub async fn ask(&self, bytes: &str) -> String {
        let mut stream = self.connect().await;
        send(&mut stream, bytes.as_bytes()).await;
        all(&mut stream).await
    }

    /// A connection whose request has the only permit until it is released.
    pub async fn in_flight(&self) -> TlsStream<TcpStream> {
        let mut stream = self.connect().await;
        send(&mut stream, last("wait").as_bytes()).await;
        self.until_refused(&last("else")).await;
        stream
    }

    /// Waits until `request` is refused for lack of room.
    pub async fn until_refused(&self, request: &str) {
        let is_refused = async { while !self.ask(request).await.starts_with("HTTP/1.1 429 ") {} };
        timeout(Duration::from_secs(5), is_refused).await.expect("it is refused");
    }

    /// The metrics as they are served.
    pub fn metrics(&self) -> String {
        metrics::encode(&self.registry).unwrap()
    }

    pub fn has_counted(&self, sample: &str) -> bool {
        self.metrics().lines().any(|line| line == sample)
    }

    pub async fn until_counted(&self, sample: &str) {
        let is_counted = async {
            while !self.has_counted(sample) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), is_counted).await.unwrap_or_else(|_| panic!("never {sample}"));
    }
}

pub async fn send(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    // TLS buffers bytes that the socket did not accept.
    stream.flush().await.unwrap();
}

/// Reads until the connection is closed, in order or not.
pub async fn all(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = Vec::new();
    // Some tests fail if the connection stays open.
    let ended = timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes)).await;
    drop(ended.expect("the connection is closed"));
    String::from_utf8(bytes).unwrap()
}

/// Reads the next answer on a connection that stays open.
pub async fn next(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"fine") {
        bytes.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

/// Reads the next line.
pub async fn next_line(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\n") {
        bytes.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

/// Whether TLS and TCP are closed in order, so that the client sees no error.
pub async fn is_closed_in_order(stream: &mut TlsStream<TcpStream>) -> bool {
    timeout(Duration::from_secs(30), stream.read(&mut [0])).await.is_ok_and(|read| matches!(read, Ok(0)))
}

/// A request that keeps its connection open.
pub fn request(body: &str) -> String {
    format!("POST /admit HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A request that closes its connection.
pub fn last(body: &str) -> String {
    request(body).replace("Host: h", "Host: h\r\nConnection: close")
}
