//! HTTPS in and out: accepts connections, keeps to the limits, and hands bodies to whoever answers reviews.
//!
//! It speaks HTTP/1.1 alone, since that is what an API server speaks to a Service, and to every address that is not loopback.

use super::bodies::{Bodies, BodyLimits, NoBody};
use super::connections::{Connection, ConnectionLimits, Connections, Phase};
use super::review::Unreadable;
use crate::clock::Clock;
use crate::listener::accept;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::metrics::{Admission, ConnectionClose, Metrics};
use crate::telemetry::traces;
use futures::FutureExt;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// The one path that is served.
const PATH: &str = "/admit";

/// The most that is buffered of a connection's header, in bytes: an API server's has some hundreds.
const HEADER_BYTES: usize = 16 << 10;

/// The most that is said of what is wrong with a review.
const ERROR_CHARACTERS: usize = 1000;

/// What connections are served with; nothing while there is no certificate. A change is for the connections that come after it.
pub type Tls = watch::Receiver<Option<Arc<ServerConfig>>>;

/// What a caller may cost.
///
/// In memory, if everything is at its bound at the same time: reviews of [`small_body_bytes`](Self::small_body_bytes) on all
/// [`concurrency`](Self::concurrency) permits, 16 MiB; the others, [`large_bodies_bytes`](Self::large_bodies_bytes), 16 MiB; what a parser
/// makes of a body for a moment, at most three times as much, where somebody writes one to that end; and 768 connections, each with some
/// 40 KiB for TLS, header and task, or with a handshake of 64 KiB, 60 MiB. That is 188 MiB, and the chart's limit is 256 MiB.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest body, in bytes; beyond it the answer is 413. A review carries an object of at most 3 MiB, and may carry
    /// the one before it.
    pub body_bytes: usize,
    /// The largest body that takes nothing of `large_bodies_bytes`. Ordinary reviews have two or three KiB.
    pub small_body_bytes: usize,
    /// How many bytes the larger bodies may have together; beyond it the answer is 429.
    pub large_bodies_bytes: usize,
    /// How long a TLS handshake, the header of a request that has begun, or its body may take; beyond it the connection is cut, or
    /// the answer is 408.
    pub read: Duration,
    /// How long a connection is kept on which nothing comes. An API server keeps it for 90 s, and does not repeat a review that meets
    /// the end of it.
    pub idle: Duration,
    /// How long an answer may take where the review does not say: the webhook's time-out is 10 s, and less is left of it.
    pub answer: Duration,
    /// How many reviews are worked on at once; beyond it the answer is 429.
    pub concurrency: usize,
    /// How many connections there may be; beyond it one that waits makes room. More than `concurrency`, so that there is always one,
    /// and fewer than the 1,024 files that a process may have open where nobody has raised that.
    pub connections: usize,
    /// How long open connections may go on at the end of a shutdown.
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

/// The two steps of an end.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Each answer is the last one of its connection, so that its client takes another replica for the next. New connections are taken.
    pub draining: CancellationToken,
    /// What is in flight is answered, and nothing comes after it.
    pub closing: CancellationToken,
}

struct Server<A> {
    answer: A,
    clock: Clock,
    limits: Limits,
    metrics: Metrics,
    shutdown: Shutdown,
    permits: Semaphore,
    bodies: Bodies,
}

/// Serves until the end of `shutdown`. `answer` makes of the body of a review, by a deadline, that of the answer; where it panics, that
/// is one 500.
pub async fn serve<A, F>(
    listener: TcpListener,
    tls: Tls,
    answer: A,
    clock: Clock,
    limits: Limits,
    metrics: Metrics,
    shutdown: Shutdown,
) where
    A: Fn(Bytes, Instant) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(Admission, Vec<u8>), Unreadable>> + Send + 'static,
{
    let Limits { read, idle, connections: count, .. } = limits;
    let connections = Connections::new(ConnectionLimits { read, idle, count }, clock, metrics.clone());
    let Limits { body_bytes: largest, small_body_bytes: small, large_bodies_bytes: budget, .. } = limits;
    let bodies = Bodies::new(BodyLimits { largest, small, budget, read });
    let (permits, closing) = (Semaphore::new(limits.concurrency), shutdown.closing.clone());
    let server = Arc::new(Server { answer, clock, limits, metrics, shutdown, permits, bodies });
    let tasks = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener, "the API server") => stream,
            () = closing.cancelled() => break,
        };
        // Who has no address has gone.
        let (Some(config), Ok(peer)) = (tls.borrow().clone(), stream.peer_addr()) else { continue };
        tasks.spawn(server.clone().carry(stream, config, connections.open(peer.ip())));
    }
    drop(listener);
    tasks.close();
    let _ = timeout(limits.drain, tasks.wait()).await;
}

impl<A, F> Server<A>
where
    A: Fn(Bytes, Instant) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(Admission, Vec<u8>), Unreadable>> + Send + 'static,
{
    /// Serves a connection to its end.
    async fn carry(self: Arc<Self>, stream: TcpStream, config: Arc<ServerConfig>, connection: Connection) {
        let connection = Arc::new(connection);
        let _ = stream.set_nodelay(true);
        let stream = tokio::select! {
            accepted = TlsAcceptor::from(config).accept(stream) => match accepted {
                Ok(stream) => stream,
                Err(error) => return tracing::debug!(error = %ErrorChain(&error), "a TLS handshake failed"),
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
            connection.enter(Phase::Request);
            let (server, connection) = (self.clone(), connection.clone());
            async move {
                let response = server.respond(request).await;
                connection.enter(Phase::Idle);
                Ok::<_, Infallible>(response)
            }
        });
        let mut http = http1::Builder::new();
        // hyper's own limit of a header counts the wait for it.
        http.header_read_timeout(None).max_buf_size(HEADER_BYTES);
        let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
        // What has come is read before anything is closed: a request that is left unread is lost to its client.
        let ended = tokio::select! {
            biased;
            ended = served.as_mut() => ended,
            reason = connection.must_close() => {
                self.closes(reason);
                if reason == ConnectionClose::HeaderTimeout {
                    return;
                }
                served.as_mut().graceful_shutdown();
                match served.as_mut().now_or_never() {
                    Some(ended) => ended,
                    // A request came at the last moment.
                    None if connection.has_request() => served.await,
                    // It does not even take the end of TLS.
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
            tracing::debug!(error = %ErrorChain(&error), "a connection ended badly");
        }
    }

    fn closes(&self, reason: ConnectionClose) {
        tracing::debug!(reason = reason.as_str(), "closing a connection");
        self.metrics.webhook_connection_closed(reason);
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = self.route(request).await;
        if self.shutdown.draining.is_cancelled() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return text(StatusCode::NOT_FOUND, "reviews are answered at /admit alone");
        }
        if request.method() != Method::POST {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "a review comes by POST");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let began = self.clock.monotonic();
        let span = tracing::info_span!("admission", outcome = Empty, code = Empty);
        traces::continue_from(&span, request.headers());
        let review = self.review(request, began).instrument(span.clone());
        let mut count = Count { metrics: &self.metrics, clock: self.clock, began, span, outcome: Admission::Cancelled };
        let answered = AssertUnwindSafe(review).catch_unwind().await;
        let (outcome, response) = answered.unwrap_or_else(|_| {
            self.metrics.panicked();
            (Admission::Panicked, text(StatusCode::INTERNAL_SERVER_ERROR, "switchboard failed: its log says where"))
        });
        count.outcome = outcome;
        response
    }

    async fn review(&self, request: Request<Incoming>, began: Instant) -> (Admission, Response<Full<Bytes>>) {
        let too_many = |what| (Admission::TooMany, text(StatusCode::TOO_MANY_REQUESTS, what));
        let Ok(_permit) = self.permits.try_acquire() else {
            return too_many("too many reviews at once");
        };
        let deadline = began + self.limits.answer.min(time_left(request.uri().query()));
        // The share is kept until the answer, since what was read of the body may be as large as it.
        let (body, _share) = match self.bodies.read(request.into_body()).await {
            Ok(body) => body,
            Err(NoBody::TooMany) => return too_many("too many large reviews at once"),
            Err(NoBody::TooLarge) => {
                let refusal = text(StatusCode::PAYLOAD_TOO_LARGE, "the review is larger than any object can be");
                return (Admission::TooLarge, refusal);
            }
            Err(NoBody::TooSlow) => {
                let refusal = text(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
                return (Admission::TooSlow, refusal);
            }
            Err(NoBody::Malformed) => {
                return (Admission::Unreadable, text(StatusCode::BAD_REQUEST, "the body could not be read"));
            }
            // Nobody is there to read it.
            Err(NoBody::Cancelled) => {
                return (Admission::Cancelled, text(StatusCode::BAD_REQUEST, "the body did not arrive"));
            }
        };
        match (self.answer)(body, deadline).await {
            Ok((outcome, review)) => {
                let mut response = Response::new(Full::from(review));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                (outcome, response)
            }
            Err(error) => {
                // It may quote what was sent.
                let error: String = error.to_string().chars().take(ERROR_CHARACTERS).collect();
                (Admission::Unreadable, text(StatusCode::BAD_REQUEST, &error))
            }
        }
    }
}

/// Counts a review when it is dropped: by then it was answered, or its client has gone and hyper has dropped whatever was to answer it.
struct Count<'a> {
    metrics: &'a Metrics,
    clock: Clock,
    began: Instant,
    span: Span,
    outcome: Admission,
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.span.record("outcome", self.outcome.as_str()).record("code", self.outcome.code());
        self.metrics.admission(self.outcome, self.clock.monotonic().duration_since(self.began));
    }
}

/// What the API server says of its patience, `timeout=10s`, less what the answer needs to travel.
fn time_left(query: Option<&str>) -> Duration {
    query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .find_map(|pair| pair.strip_prefix("timeout=")?.strip_suffix('s')?.parse::<u64>().ok())
        .map_or(Duration::MAX, |seconds| Duration::from_secs(seconds).mul_f64(0.8))
}

fn text(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{message}\n")));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    /// A server whose handler panics at `panic` and answers `fine` to everything else, and what is needed to call it.
    struct Served {
        address: SocketAddr,
        connector: TlsConnector,
        metrics: Metrics,
        shutdown: Shutdown,
        ended: tokio::task::JoinHandle<()>,
    }

    impl Served {
        async fn with(limits: Limits) -> Self {
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
            let (metrics, shutdown) = (Metrics::default(), Shutdown::default());
            let answer = |body: Bytes, _| async move {
                assert!(*body != b"panic"[..], "as asked");
                if *body == b"never"[..] {
                    std::future::pending::<()>().await;
                }
                Ok((Admission::NoClaim, b"fine".to_vec()))
            };
            let serving = serve(listener, tls, answer, Clock, limits, metrics.clone(), shutdown.clone());
            let ended = tokio::spawn(serving);
            Self { address, connector: TlsConnector::from(Arc::new(client)), metrics, shutdown, ended }
        }

        async fn connect(&self) -> TlsStream<TcpStream> {
            let stream = TcpStream::connect(self.address).await.unwrap();
            self.connector.connect(ServerName::from(self.address.ip()), stream).await.unwrap()
        }

        /// What is answered to those bytes on a connection of their own, until it ends.
        async fn ask(&self, bytes: &str) -> String {
            let mut stream = self.connect().await;
            send(&mut stream, bytes.as_bytes()).await;
            all(&mut stream).await
        }

        /// A connection whose request has the one place there is, until it gets the second half of its body: `dy`.
        async fn in_flight(&self) -> TlsStream<TcpStream> {
            let mut stream = self.connect().await;
            send(&mut stream, last("body").replace("body", "bo").as_bytes()).await;
            self.until_refused(&last("else")).await;
            stream
        }

        /// Waits until there is no place for that request.
        async fn until_refused(&self, request: &str) {
            let is_refused = async { while !self.ask(request).await.starts_with("HTTP/1.1 429 ") {} };
            timeout(Duration::from_secs(5), is_refused).await.expect("others have all that there is");
        }

        fn has_counted(&self, sample: &str) -> bool {
            self.metrics.encode().unwrap().lines().any(|line| line == sample)
        }

        async fn until_counted(&self, sample: &str) {
            let is_counted = async {
                while !self.has_counted(sample) {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(30), is_counted).await.unwrap_or_else(|_| panic!("never {sample}"));
        }
    }

    async fn send(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
        // TLS keeps what the socket did not take at once.
        stream.flush().await.unwrap();
    }

    /// What arrives until the connection ends, however it ends.
    async fn all(stream: &mut TlsStream<TcpStream>) -> String {
        let mut bytes = Vec::new();
        // A connection that stays open is what some of these tests look for.
        let ended = timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes)).await;
        drop(ended.expect("the connection ends"));
        String::from_utf8(bytes).unwrap()
    }

    /// The next answer on a connection that stays open.
    async fn next(stream: &mut TlsStream<TcpStream>) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"fine") {
            bytes.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(bytes).unwrap()
    }

    /// The next line on a connection.
    async fn next_line(stream: &mut TlsStream<TcpStream>) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\n") {
            bytes.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(bytes).unwrap()
    }

    /// Whether the connection ends as TLS and TCP want it: nobody who reads it sees an error.
    async fn is_closed_in_order(stream: &mut TlsStream<TcpStream>) -> bool {
        timeout(Duration::from_secs(30), stream.read(&mut [0])).await.is_ok_and(|read| matches!(read, Ok(0)))
    }

    fn request(body: &str) -> String {
        format!("POST /admit HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn last(body: &str) -> String {
        request(body).replace("Host: h", "Host: h\r\nConnection: close")
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_one_500_and_its_connection_goes_on() {
        let served = Served::with(Limits::default()).await;
        let answers = served.ask(&format!("{}{}", request("panic"), last("else"))).await;
        let codes: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(codes, ["500", "200"], "{answers}");
        assert!(answers.ends_with("fine"), "{answers}");
        assert!(served.has_counted("switchboard_panics_total 1"));
        assert!(served.has_counted(r#"switchboard_admission_requests_total{outcome="panicked",code="500"} 1"#));
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_a_413_whether_or_not_it_says_so() {
        let served = Served::with(Limits { body_bytes: 8, ..Limits::default() }).await;
        let answer = served.ask(&last("123456789")).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        let chunked = "POST /admit HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                       9\r\n123456789\r\n0\r\n\r\n";
        let answer = served.ask(chunked).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        let answer = served.ask(&last("12345678")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn a_slow_client_is_cut_or_told_so_at_every_stage() {
        let read = Duration::from_millis(200);
        let served = Served::with(Limits { read, ..Limits::default() }).await;
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
        // Nothing has come on it yet: it is idle, and kept for longer.
        let served = Served::with(Limits { idle: read, ..Limits::default() }).await;
        assert!(is_closed_in_order(&mut served.connect().await).await, "no request");
        assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="idle_timeout"} 1"#));
    }

    #[tokio::test]
    async fn idle_connection_survives_the_api_servers_90_seconds() {
        let served = Served::with(Limits::default()).await;
        let (mut used, mut unused) = (served.connect().await, served.connect().await);
        send(&mut used, request("else").as_bytes()).await;
        next(&mut used).await;
        served.until_counted("switchboard_webhook_connections 2").await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(100)).await;
        for _ in 0..100 {
            // Whoever had to close something has the time to do it.
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
    async fn connection_beyond_the_bound_is_taken_and_an_idle_one_closed() {
        let served = Served::with(Limits { connections: 2, concurrency: 1, ..Limits::default() }).await;
        let mut idle = served.connect().await;
        send(&mut idle, request("else").as_bytes()).await;
        next(&mut idle).await;
        let mut in_flight = served.connect().await;
        send(&mut in_flight, last("body").replace("body", "bo").as_bytes()).await;
        // It has the place before another connection is made.
        let is_refused = async {
            loop {
                send(&mut idle, request("else").as_bytes()).await;
                if !next_line(&mut idle).await.starts_with("HTTP/1.1 200 ") {
                    break;
                }
                next(&mut idle).await;
            }
        };
        timeout(Duration::from_secs(30), is_refused).await.expect("it has the place");
        let mut newcomer = served.connect().await;
        send(&mut newcomer, request("else").as_bytes()).await;
        assert!(next_line(&mut newcomer).await.starts_with("HTTP/1.1 429 "));
        all(&mut idle).await;
        assert!(served.has_counted(r#"switchboard_webhook_connections_closed_total{reason="evicted"} 1"#));
        send(&mut in_flight, b"dy").await;
        assert!(all(&mut in_flight).await.starts_with("HTTP/1.1 200 "), "what is in flight is answered");
    }

    #[tokio::test]
    async fn large_bodies_beyond_the_budget_are_refused_and_small_ones_answered() {
        let served = Served::with(Limits { small_body_bytes: 4, large_bodies_bytes: 16, ..Limits::default() }).await;
        let large = last("a large body");
        let (mut first, half) = (served.connect().await, large.len() - 6);
        send(&mut first, &large.as_bytes()[..half]).await;
        served.until_refused(&last("large")).await;
        // Of the length that it does not say, it may become the largest.
        let chunked =
            "POST /admit HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert!(served.ask(chunked).await.starts_with("HTTP/1.1 429 "));
        assert!(served.ask(&last("4444")).await.starts_with("HTTP/1.1 200 "), "there is room for small ones");
        send(&mut first, &large.as_bytes()[half..]).await;
        assert!(all(&mut first).await.starts_with("HTTP/1.1 200 "));
        assert!(served.ask(&large).await.starts_with("HTTP/1.1 200 "), "its share is free again");
    }

    #[tokio::test]
    async fn review_whose_client_goes_away_is_counted_as_cancelled() {
        let served = Served::with(Limits { concurrency: 1, ..Limits::default() }).await;
        // Before its body has come, and while it is answered.
        drop(served.in_flight().await);
        served.until_counted(r#"switchboard_admission_requests_total{outcome="cancelled",code="0"} 1"#).await;
        let mut stream = served.connect().await;
        send(&mut stream, request("never").as_bytes()).await;
        served.until_refused(&last("else")).await;
        drop(stream);
        served.until_counted(r#"switchboard_admission_requests_total{outcome="cancelled",code="0"} 2"#).await;
        let answered = served.metrics.encode().unwrap();
        let count = |name: &str| answered.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let refused = count(r#"switchboard_admission_requests_total{outcome="too_many",code="429"}"#);
        assert_eq!(count("switchboard_admission_duration_seconds_count"), refused, "no answer took any time");
    }

    #[tokio::test]
    async fn every_answer_while_draining_closes_its_connection() {
        let served = Served::with(Limits::default()).await;
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
        assert!(idle.read(&mut [0]).now_or_never().is_none(), "what is idle stays until the end");
        served.shutdown.closing.cancel();
        assert!(is_closed_in_order(&mut idle).await);
        served.ended.await.unwrap();
    }

    #[tokio::test]
    async fn more_at_once_than_there_are_places_is_a_429() {
        let served = Served::with(Limits { concurrency: 1, ..Limits::default() }).await;
        let mut first = served.in_flight().await;
        send(&mut first, b"dy").await;
        assert!(all(&mut first).await.starts_with("HTTP/1.1 200 "));
        assert!(served.ask(&last("else")).await.starts_with("HTTP/1.1 200 "), "its place is free again");
    }

    #[tokio::test]
    async fn what_is_in_flight_at_a_shutdown_is_answered_and_nothing_comes_after_it() {
        let served = Served::with(Limits { concurrency: 1, ..Limits::default() }).await;
        let mut in_flight = served.in_flight().await;
        let mut idle = served.connect().await;
        send(&mut idle, request("else").as_bytes()).await;
        idle.read_exact(&mut [0]).await.unwrap();
        served.shutdown.draining.cancel();
        served.shutdown.closing.cancel();
        // The idle one is closed at once, which tells that the other one's turn has come, too.
        all(&mut idle).await;
        assert!(TcpStream::connect(served.address).await.is_err(), "nobody new");
        send(&mut in_flight, b"dy").await;
        let answer = all(&mut in_flight).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("fine"), "{answer}");
        served.ended.await.unwrap();
    }

    #[test]
    fn the_patience_of_the_api_server_is_heeded() {
        assert_eq!(time_left(Some("timeout=10s")), Duration::from_secs(8));
        assert_eq!(time_left(Some("a=b&timeout=1s")), Duration::from_millis(800));
        assert_eq!(time_left(Some("timeout=soon")), Duration::MAX);
        assert_eq!(time_left(None), Duration::MAX);
    }
}
