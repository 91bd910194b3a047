//! HTTPS in and out: accepts connections, keeps to the limits, and hands bodies to whoever answers reviews.

use super::review::Unreadable;
use crate::clock::Clock;
use crate::listener::accept;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::metrics::{Admission, Metrics};
use crate::telemetry::traces;
use futures::FutureExt;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing::field::Empty;

/// The one path that is served.
const PATH: &str = "/admit";

/// What connections are served with; nothing while there is no certificate. A change is for the connections that come after it.
pub type Tls = watch::Receiver<Option<Arc<ServerConfig>>>;

/// What a caller may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest body, in bytes; beyond it the answer is 413. A review carries an object of at most 3 MiB, and may carry
    /// the one before it.
    pub body_bytes: usize,
    /// How long a TLS handshake, the header or the body of a request may take; beyond it the connection is cut, or the answer
    /// is 408.
    pub read: Duration,
    /// How long an answer may take where the review does not say: the webhook's time-out is 10 s, and less is left of it.
    pub answer: Duration,
    /// How many reviews are worked on at once; beyond it the answer is 429.
    pub concurrency: usize,
    /// How long open connections may go on after a shutdown was asked for.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            read: Duration::from_secs(5),
            answer: Duration::from_secs(8),
            concurrency: 512,
            drain: Duration::from_secs(12),
        }
    }
}

struct Server<A> {
    answer: A,
    clock: Clock,
    limits: Limits,
    metrics: Metrics,
    places: Semaphore,
}

/// Serves until `shutdown`, then answers what is in flight. `answer` makes of the body of a review, by a deadline, that of the
/// answer; where it panics, that is one 500.
pub async fn serve<A, F>(
    listener: TcpListener,
    tls: Tls,
    answer: A,
    clock: Clock,
    limits: Limits,
    metrics: Metrics,
    shutdown: CancellationToken,
) where
    A: Fn(Bytes, Instant) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(Admission, Vec<u8>), Unreadable>> + Send + 'static,
{
    let server = Arc::new(Server { answer, clock, limits, metrics, places: Semaphore::new(limits.concurrency) });
    let connections = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener, "the API server") => stream,
            () = shutdown.cancelled() => break,
        };
        let Some(config) = tls.borrow().clone() else { continue };
        let (server, watcher) = (server.clone(), connections.watcher());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let Ok(Ok(stream)) = timeout(limits.read, TlsAcceptor::from(config).accept(stream)).await else {
                return;
            };
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.read);
            builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
            let heard = Arc::new(AtomicBool::new(false));
            let has_asked = heard.clone();
            let service = service_fn(move |request| {
                has_asked.store(true, Ordering::Relaxed);
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.route(request).await) }
            });
            let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
            tokio::select! {
                ended = watcher.watch(connection) => if let Err(error) = ended {
                    tracing::debug!(error = %ErrorChain(error.as_ref()), "a connection ended badly");
                },
                () = silence(limits.read, &heard) => tracing::debug!("a connection without a request was cut"),
            }
        });
    }
    drop(listener);
    let _ = timeout(limits.drain, connections.shutdown()).await;
}

/// Ends when `patience` is over and nothing was `heard`. An HTTP/2 connection has no limit of its own for its first header.
async fn silence(patience: Duration, heard: &AtomicBool) {
    sleep(patience).await;
    if heard.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

impl<A, F> Server<A>
where
    A: Fn(Bytes, Instant) -> F,
    F: Future<Output = Result<(Admission, Vec<u8>), Unreadable>>,
{
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
        let answered = AssertUnwindSafe(review).catch_unwind().await;
        let (outcome, response) = answered.unwrap_or_else(|_| {
            self.metrics.panicked();
            (Admission::Panicked, text(StatusCode::INTERNAL_SERVER_ERROR, "switchboard failed: its log says where"))
        });
        span.record("outcome", outcome.as_str()).record("code", outcome.code());
        self.metrics.admission(outcome, self.clock.monotonic().duration_since(began));
        response
    }

    async fn review(&self, request: Request<Incoming>, began: Instant) -> (Admission, Response<Full<Bytes>>) {
        let Ok(_place) = self.places.try_acquire() else {
            let refusal = text(StatusCode::TOO_MANY_REQUESTS, "too many reviews at once");
            return (Admission::TooMany, refusal);
        };
        let deadline = began + self.limits.answer.min(time_left(request.uri().query()));
        let body = match self.read(request.into_body()).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        match (self.answer)(body, deadline).await {
            Ok((outcome, review)) => {
                let mut response = Response::new(Full::from(review));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                (outcome, response)
            }
            Err(error) => (Admission::Unreadable, text(StatusCode::BAD_REQUEST, &error.to_string())),
        }
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, (Admission, Response<Full<Bytes>>)> {
        let too_large = || {
            let refusal = text(StatusCode::PAYLOAD_TOO_LARGE, "the review is larger than any object can be");
            (Admission::TooLarge, refusal)
        };
        // What says that it is too large is not read first.
        if body.size_hint().lower() > self.limits.body_bytes as u64 {
            return Err(too_large());
        }
        match timeout(self.limits.read, Limited::new(body, self.limits.body_bytes).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err((Admission::Unreadable, text(StatusCode::BAD_REQUEST, "the body could not be read"))),
            Err(_) => {
                let refusal = text(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
                Err((Admission::TooSlow, refusal))
            }
        }
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
        shutdown: CancellationToken,
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
            let (metrics, shutdown) = (Metrics::new(Clock), CancellationToken::new());
            let answer = |body: Bytes, _| async move {
                assert!(*body != b"panic"[..], "as asked");
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
            let others_are_refused = async { while !self.ask(&last("else")).await.starts_with("HTTP/1.1 429 ") {} };
            timeout(Duration::from_secs(5), others_are_refused).await.expect("it has the place");
            stream
        }

        fn has_counted(&self, sample: &str) -> bool {
            self.metrics.encode().unwrap().lines().any(|line| line == sample)
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
        let served = Served::with(Limits { read: Duration::from_millis(200), ..Limits::default() }).await;
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "no handshake");
        assert_eq!(served.ask("").await, "", "no request");
        // The first bytes of HTTP/2 as well.
        assert_eq!(served.ask("P").await, "");
        assert_eq!(served.ask("PRI * HTTP/2.0\r\n\r\n").await, "");
        assert_eq!(served.ask("POST /admit HTTP/1.1\r\nHost:").await, "", "half a header");
        let answer = served.ask(&last("body").replace("body", "bo")).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "half a body: {answer}");
        assert!(served.has_counted(r#"switchboard_admission_requests_total{outcome="too_slow",code="408"} 1"#));
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
        served.shutdown.cancel();
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
