//! Accepts connections, with or without TLS, enforces their limits, and passes each request to a service.
//!
//! It supports only HTTP/1.1, which API servers use for a Service and for every address except loopback, and proxies use for a backend.

use super::connections::{Connection, ConnectionClose, ConnectionLimits, Connections, Phase};
use super::metrics::ConnectionMetrics;
use crate::clock::Clock;
use crate::listener::accept;
use crate::telemetry::error_chain::ErrorChain;
use futures::FutureExt;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The maximum number of header bytes that are buffered per connection. An API server sends some hundreds.
const HEADER_BYTES: usize = 16 << 10;

/// The TLS configuration of new connections; `None` while there is no certificate.
pub type Tls = watch::Receiver<Option<Arc<ServerConfig>>>;

/// Limits on the connections of clients.
#[derive(Clone, Copy, Debug)]
pub struct TransportLimits {
    /// The timeout of a TLS handshake, and of a header from its first byte. Then the connection is closed.
    pub read: Duration,
    /// How long a connection without a request is kept.
    pub idle: Duration,
    /// The maximum number of connections. Above it, a waiting connection is evicted.
    pub connections: usize,
    /// The timeout of the requests in flight at the end of a shutdown.
    pub drain: Duration,
}

/// The two stages of a shutdown.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// New connections are still accepted. Every answer closes its connection, so that the client's next request goes to another replica.
    pub draining: CancellationToken,
    /// Requests in flight are answered; no other requests or connections are accepted.
    pub closing: CancellationToken,
}

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. Calls `on_permit` when the request has a permit: from then on, its connection is not evicted.
    fn respond(
        &self,
        request: Request<Incoming>,
        on_permit: impl FnOnce() + Send,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// How connections are secured.
#[derive(Clone, Debug)]
pub enum Security {
    /// By TLS.
    Tls(Tls),
    /// Not at all: TLS ends before the server.
    None,
}

struct Server<S> {
    service: S,
    metrics: ConnectionMetrics,
    shutdown: Shutdown,
}

/// Where and how a server serves.
#[derive(Debug)]
pub struct Endpoint {
    /// The name of the server in logs.
    pub name: &'static str,
    /// Where it listens.
    pub listener: TcpListener,
    /// How its connections are secured.
    pub security: Security,
    /// The limits on its connections.
    pub limits: TransportLimits,
    /// The metrics of its connections.
    pub metrics: ConnectionMetrics,
}

impl Endpoint {
    /// Serves `service` until the end of `shutdown`.
    pub async fn serve<S: Service>(self, service: S, clock: Clock, shutdown: Shutdown) {
        let Self { name, listener, security, limits, metrics } = self;
        let TransportLimits { read, idle, connections: count, .. } = limits;
        let connections = Connections::new(ConnectionLimits { read, idle, count }, clock, metrics.clone());
        let closing = shutdown.closing.clone();
        let server = Arc::new(Server { service, metrics, shutdown });
        let tasks = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                stream = accept(&listener, name) => stream,
                () = closing.cancelled() => break,
            };
            // A client without an address has disconnected.
            let Ok(peer) = stream.peer_addr() else { continue };
            let _ = stream.set_nodelay(true);
            match &security {
                Security::None => {
                    tasks.spawn(server.clone().serve_connection(stream, Arc::new(connections.open(peer.ip()))));
                }
                Security::Tls(tls) => {
                    let Some(config) = tls.borrow().clone() else { continue };
                    tasks.spawn(server.clone().serve_tls(stream, config, connections.open(peer.ip())));
                }
            }
        }
        drop(listener);
        tasks.close();
        let _ = timeout(limits.drain, tasks.wait()).await;
    }
}

impl<S: Service> Server<S> {
    async fn serve_tls(self: Arc<Self>, stream: TcpStream, config: Arc<ServerConfig>, connection: Connection) {
        let connection = Arc::new(connection);
        let stream = tokio::select! {
            accepted = TlsAcceptor::from(config).accept(stream) => match accepted {
                Ok(stream) => stream,
                Err(error) => return tracing::debug!(error = %ErrorChain(&error), "TLS handshake failed"),
            },
            reason = connection.must_close() => return self.closes(reason),
        };
        self.serve_connection(stream, connection).await;
    }

    /// Serves a connection until it is closed.
    async fn serve_connection<T>(self: Arc<Self>, stream: T, connection: Arc<Connection>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        connection.enter(Phase::Idle);
        let receiving = connection.clone();
        let stream = InspectReader::new(stream, move |bytes: &[u8]| {
            if !bytes.is_empty() {
                receiving.received();
            }
        });
        let service = service_fn(|request| {
            connection.enter(Phase::Body);
            let (server, connection) = (self.clone(), connection.clone());
            async move {
                let response = server.respond(request, || connection.enter(Phase::Request)).await;
                connection.enter(Phase::Idle);
                Ok::<_, Infallible>(response)
            }
        });
        let mut http = http1::Builder::new();
        // hyper's own header timeout includes the time before the first byte.
        http.header_read_timeout(None).max_buf_size(HEADER_BYTES);
        let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
        // The connection is polled first, so that a request that has arrived is answered: the client would not retry it.
        let ended = tokio::select! {
            biased;
            ended = served.as_mut() => ended,
            reason = connection.must_close() => {
                self.closes(reason);
                if reason == ConnectionClose::HeaderTimeout {
                    return;
                }
                let was_receiving = connection.phase() == Phase::Body;
                let mut ended = poll_arrived(served.as_mut()).await;
                if ended.is_none() {
                    served.as_mut().graceful_shutdown();
                    ended = served.as_mut().now_or_never();
                }
                match ended {
                    Some(ended) => ended,
                    // A request, or the rest of its body, has just arrived.
                    None if connection.phase() == Phase::Request => served.await,
                    None if connection.phase() == Phase::Body && !was_receiving => served.await,
                    // The client does not read, so TLS cannot be closed in order.
                    None => return,
                }
            }
            () = self.shutdown.closing.cancelled() => {
                if let Some(ended) = poll_arrived(served.as_mut()).await {
                    ended
                } else {
                    served.as_mut().graceful_shutdown();
                    tokio::select! {
                        biased;
                        ended = served.as_mut() => ended,
                        reason = connection.must_close() => return self.closes(reason),
                    }
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = %ErrorChain(&error), "connection failed");
        }
    }

    fn closes(&self, reason: ConnectionClose) {
        tracing::debug!(reason = reason.as_str(), "closing a connection");
        self.metrics.closed(reason);
    }

    async fn respond(&self, request: Request<Incoming>, on_permit: impl FnOnce() + Send) -> Response<Full<Bytes>> {
        let mut response = self.service.respond(request, on_permit).await;
        if self.shutdown.draining.is_cancelled() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Polls a connection with all that has arrived. A shutdown closes an idle connection without another look at its socket, and the runtime may
/// not have learned yet of a request there: it does before it runs a task again that has yielded.
async fn poll_arrived<C: Future>(mut connection: Pin<&mut C>) -> Option<C::Output> {
    yield_now().await;
    connection.as_mut().now_or_never()
}
