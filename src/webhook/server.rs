//! HTTPS transport: accepts connections, enforces their limits, and passes each request to the router. It does not depend on reviews.
//!
//! It supports only HTTP/1.1, which API servers use for a Service and for every address except loopback.

use super::connections::{Connection, ConnectionClose, ConnectionLimits, Connections, Phase};
use super::metrics::WebhookMetrics;
use super::outcome::AdmissionOutcome;
use super::review::InvalidReview;
use super::router::Router;
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
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The maximum number of header bytes that are buffered per connection. An API server sends some hundreds.
const HEADER_BYTES: usize = 16 << 10;

/// The TLS configuration of new connections; `None` while there is no certificate.
pub type Tls = watch::Receiver<Option<Arc<ServerConfig>>>;

/// Limits on the resources that clients use.
///
/// If all limits are reached at the same time, the memory is at most 196 MiB; the chart's limit is 256 MiB:
///
/// - 24 MiB for small bodies: [`small_body_bytes`](Self::small_body_bytes) on each of the [`connections`](Self::connections);
/// - 16 MiB for larger bodies: [`large_bodies_bytes`](Self::large_bodies_bytes);
/// - three times these two while bodies that are crafted for this are parsed;
/// - 60 MiB for 768 connections: about 40 KiB each for TLS, header and task, or 64 KiB during the handshake.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum size of a body, in bytes. A larger one is answered with 413. A review contains an object of at most 3 MiB, and can also
    /// contain the previous version of the object.
    pub body_bytes: usize,
    /// The maximum size of a small body, in bytes. Small bodies do not count for `large_bodies_bytes`. Usual reviews have two or three KiB.
    pub small_body_bytes: usize,
    /// The maximum total size of larger bodies, in bytes. Above it, the answer is 429.
    pub large_bodies_bytes: usize,
    /// The timeout of a TLS handshake, of a header (from its first byte), and of a body. Then the connection is closed; a body that is late is
    /// answered with 408.
    pub read: Duration,
    /// How long a connection without a request is kept. It must be longer than the 90 s of an API server, which does not retry a review if
    /// the connection is closed meanwhile.
    pub idle: Duration,
    /// The maximum time until the answer, if the API server's timeout allows so much. It is shorter than the timeout in the chart (10 s), because
    /// the network takes time too.
    pub answer: Duration,
    /// The maximum number of simultaneous reviews. Above it, the answer is 429.
    pub concurrency: usize,
    /// The maximum number of connections. Above it, a waiting connection is evicted. It is higher than `concurrency`, so that there is always
    /// a waiting connection, and lower than 1,024, the usual limit on the open files of a process.
    pub connections: usize,
    /// The timeout of the requests in flight at the end of a shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            small_body_bytes: 32 << 10,
            large_bodies_bytes: 16 << 20,
            read: Duration::from_secs(5),
            idle: Duration::from_mins(5),
            answer: Duration::from_secs(8),
            concurrency: 512,
            connections: 768,
            drain: Duration::from_secs(12),
        }
    }
}

/// The two stages of a shutdown.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// New connections are still accepted. Every answer closes its connection, so that the client's next request goes to another replica.
    pub draining: CancellationToken,
    /// Requests in flight are answered; no other requests or connections are accepted.
    pub closing: CancellationToken,
}

struct Server<H> {
    router: Router<H>,
    metrics: WebhookMetrics,
    shutdown: Shutdown,
}

/// Serves `router` until the end of `shutdown`.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: Tls,
    router: Router<H>,
    clock: Clock,
    limits: Limits,
    metrics: WebhookMetrics,
    shutdown: Shutdown,
) where
    H: Fn(Bytes, Instant) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(AdmissionOutcome, Vec<u8>), InvalidReview>> + Send + 'static,
{
    let Limits { read, idle, connections: count, .. } = limits;
    let connections = Connections::new(ConnectionLimits { read, idle, count }, clock, metrics.clone());
    let closing = shutdown.closing.clone();
    let server = Arc::new(Server { router, metrics, shutdown });
    let tasks = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener, "the webhook") => stream,
            () = closing.cancelled() => break,
        };
        // A client without an address has disconnected.
        let (Some(config), Ok(peer)) = (tls.borrow().clone(), stream.peer_addr()) else { continue };
        tasks.spawn(server.clone().serve_connection(stream, config, connections.open(peer.ip())));
    }
    drop(listener);
    tasks.close();
    let _ = timeout(limits.drain, tasks.wait()).await;
}

impl<H, F> Server<H>
where
    H: Fn(Bytes, Instant) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(AdmissionOutcome, Vec<u8>), InvalidReview>> + Send + 'static,
{
    /// Serves a connection until it is closed.
    async fn serve_connection(self: Arc<Self>, stream: TcpStream, config: Arc<ServerConfig>, connection: Connection) {
        let connection = Arc::new(connection);
        let _ = stream.set_nodelay(true);
        let stream = tokio::select! {
            accepted = TlsAcceptor::from(config).accept(stream) => match accepted {
                Ok(stream) => stream,
                Err(error) => return tracing::debug!(error = %ErrorChain(&error), "TLS handshake failed"),
            },
            reason = connection.must_close() => return self.closes(reason),
        };
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
                served.as_mut().graceful_shutdown();
                match served.as_mut().now_or_never() {
                    Some(ended) => ended,
                    // A request, or the rest of its body, has just arrived.
                    None if connection.phase() == Phase::Request => served.await,
                    None if connection.phase() == Phase::Body && !was_receiving => served.await,
                    // The client does not read, so TLS cannot be closed in order.
                    None => return,
                }
            }
            () = self.shutdown.closing.cancelled() => {
                served.as_mut().graceful_shutdown();
                tokio::select! {
                    biased;
                    ended = served.as_mut() => ended,
                    reason = connection.must_close() => return self.closes(reason),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = %ErrorChain(&error), "connection failed");
        }
    }

    fn closes(&self, reason: ConnectionClose) {
        tracing::debug!(reason = reason.as_str(), "closing a connection");
        self.metrics.connection_closed(reason);
    }

    async fn respond(&self, request: Request<Incoming>, on_permit: impl FnOnce()) -> Response<Full<Bytes>> {
        let mut response = self.router.respond(request, on_permit).await;
        if self.shutdown.draining.is_cancelled() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::test_server::{TestServer, all, is_closed_in_order, last, next, next_line, request, send};
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn slow_client_is_disconnected_or_answered_408_at_every_stage() {
        let read = Duration::from_millis(200);
        let served = TestServer::start(Limits { read, ..Limits::default() }).await;
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "no handshake");
        assert_eq!(served.ask("P").await, "", "the first byte of a header");
        assert_eq!(served.ask("POST /admit HTTP/1.1\r\nHost:").await, "", "half a header");
        let mut second = served.connect().await;
        send(&mut second, request("else").as_bytes()).await;
        next(&mut second).await;
        send(&mut second, b"POST").await;
        assert_eq!(all(&mut second).await, "", "a part of the second header");
        assert!(served.ask("PRI * HTTP/2.0\r\n\r\n").await.starts_with("HTTP/1.1 400 "), "HTTP/2");
        let answer = served.ask(&last("body").replace("body", "bo")).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "half a body: {answer}");
        assert!(served.has_counted(r#"switchboard_admission_requests_total{outcome="too_slow",code="408"} 1"#));
        assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="handshake_timeout"} 1"#));
        assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="header_timeout"} 3"#));
        // A connection without a request is idle, and has a longer timeout.
        let served = TestServer::start(Limits { idle: read, ..Limits::default() }).await;
        assert!(is_closed_in_order(&mut served.connect().await).await, "no request");
        assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="idle_timeout"} 1"#));
    }

    #[tokio::test]
    async fn idle_connection_survives_the_api_servers_90_seconds() {
        let served = TestServer::start(Limits::default()).await;
        let (mut used, mut unused) = (served.connect().await, served.connect().await);
        send(&mut used, request("else").as_bytes()).await;
        next(&mut used).await;
        served.until_counted("switchboard_webhook_connections 2").await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(100)).await;
        for _ in 0..100 {
            // Give the server time to close connections.
            tokio::task::yield_now().await;
        }
        tokio::time::resume();
        for idle in [&mut used, &mut unused] {
            send(idle, request("else").as_bytes()).await;
            assert!(next(idle).await.starts_with("HTTP/1.1 200 "));
        }
        tokio::time::pause();
        tokio::time::advance(Limits::default().idle).await;
        tokio::time::resume();
        assert!(is_closed_in_order(&mut used).await && is_closed_in_order(&mut unused).await);
        served.until_counted("switchboard_webhook_connections 0").await;
        assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="idle_timeout"} 2"#));
    }

    #[tokio::test]
    async fn connection_above_the_limit_is_accepted_and_idle_one_closed() {
        let served = TestServer::start(Limits { connections: 2, concurrency: 1, ..Limits::default() }).await;
        let mut idle = served.connect().await;
        send(&mut idle, request("else").as_bytes()).await;
        next(&mut idle).await;
        let mut in_flight = served.connect().await;
        send(&mut in_flight, last("wait").as_bytes()).await;
        // It has the permit before another connection is made.
        let is_refused = async {
            loop {
                send(&mut idle, request("else").as_bytes()).await;
                if !next_line(&mut idle).await.starts_with("HTTP/1.1 200 ") {
                    break;
                }
                next(&mut idle).await;
            }
        };
        timeout(Duration::from_secs(30), is_refused).await.expect("the request in flight has the permit");
        let mut newcomer = served.connect().await;
        send(&mut newcomer, request("else").as_bytes()).await;
        assert!(next_line(&mut newcomer).await.starts_with("HTTP/1.1 429 "));
        all(&mut idle).await;
        assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="evicted"} 1"#));
        served.release.notify_one();
        assert!(all(&mut in_flight).await.starts_with("HTTP/1.1 200 "), "the request in flight is answered");
    }

    #[tokio::test]
    async fn every_answer_while_draining_closes_its_connection() {
        let served = TestServer::start(Limits::default()).await;
        let mut open = served.connect().await;
        send(&mut open, request("else").as_bytes()).await;
        assert!(!next(&mut open).await.to_lowercase().contains("connection:"));
        let mut idle = served.connect().await;
        served.shutdown.draining.cancel();
        let mut new = served.connect().await;
        for stream in [&mut open, &mut new] {
            send(stream, request("else").as_bytes()).await;
            let answer = next(stream).await.to_lowercase();
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
            assert!(is_closed_in_order(stream).await);
        }
        let not_found = served.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.to_lowercase();
        assert!(not_found.contains("\r\nconnection: close\r\n"), "{not_found}");
        assert!(idle.read(&mut [0]).now_or_never().is_none(), "idle connections stay open while draining");
        served.shutdown.closing.cancel();
        assert!(is_closed_in_order(&mut idle).await);
        served.ended.await.unwrap();
    }

    #[tokio::test]
    async fn shutdown_answers_requests_in_flight_and_accepts_no_others() {
        let served = TestServer::start(Limits { concurrency: 1, ..Limits::default() }).await;
        let mut in_flight = served.in_flight().await;
        let mut idle = served.connect().await;
        send(&mut idle, request("else").as_bytes()).await;
        idle.read_exact(&mut [0]).await.unwrap();
        served.shutdown.draining.cancel();
        served.shutdown.closing.cancel();
        // The idle connection is closed immediately, so the server is closing.
        all(&mut idle).await;
        assert!(TcpStream::connect(served.address).await.is_err(), "no new connections are accepted");
        served.release.notify_one();
        let answer = all(&mut in_flight).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("fine"), "{answer}");
        served.ended.await.unwrap();
    }
}
