//! HTTPS in and out: accepts connections, keeps to the limits, and hands bodies to the service.

use super::service::Admitter;
use crate::clock::Clock;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The one path that is served.
const PATH: &str = "/admit";

/// What a caller may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest body, in bytes; beyond it the answer is 413. A review carries an object of at most 3 MiB, and may carry
    /// the one before it.
    pub body_bytes: usize,
    /// How long a TLS handshake, the header or the body of a request may take; beyond it the connection is cut.
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

struct Server {
    admitter: Admitter,
    clock: Clock,
    limits: Limits,
    places: Semaphore,
}

/// Serves until `shutdown`, then answers what is in flight.
///
/// # Errors
/// Where connections can no longer be accepted.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    admitter: Admitter,
    clock: Clock,
    limits: Limits,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let server = Arc::new(Server { admitter, clock, limits, places: Semaphore::new(limits.concurrency) });
    let connections = GracefulShutdown::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // Of one connection that went away before it was accepted, or of the process being out of descriptors.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => break,
        };
        let (acceptor, server, watcher) = (acceptor.clone(), server.clone(), connections.watcher());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let Ok(Ok(stream)) = timeout(limits.read, acceptor.accept(stream)).await else {
                return;
            };
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.read);
            builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
            let service = service_fn(move |request| {
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.route(request).await) }
            });
            let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%error, "a connection ended badly");
            }
        });
    }
    drop(listener);
    let _ = timeout(limits.drain, connections.shutdown()).await;
    Ok(())
}

impl Server {
    async fn route(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return text(StatusCode::NOT_FOUND, "reviews are answered at /admit alone");
        }
        if request.method() != Method::POST {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "a review comes by POST");
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("POST"));
            return response;
        }
        let Ok(_place) = self.places.try_acquire() else {
            return text(StatusCode::TOO_MANY_REQUESTS, "too many reviews at once");
        };
        let deadline = self.clock.monotonic() + self.limits.answer.min(time_left(request.uri().query()));
        let body = Limited::new(request.into_body(), self.limits.body_bytes);
        let body = match timeout(self.limits.read, body.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return text(StatusCode::PAYLOAD_TOO_LARGE, "the review is larger than any object can be");
            }
            Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "the body could not be read"),
            Err(_) => {
                return text(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
            }
        };
        match self.admitter.answer(&body, deadline).await {
            Ok(review) => {
                let mut response = Response::new(Full::from(review));
                let json = hyper::header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, json);
                response
            }
            Err(error) => text(StatusCode::BAD_REQUEST, &error.to_string()),
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
    use super::time_left;
    use std::time::Duration;

    #[test]
    fn the_patience_of_the_api_server_is_heeded() {
        assert_eq!(time_left(Some("timeout=10s")), Duration::from_secs(8));
        assert_eq!(time_left(Some("a=b&timeout=1s")), Duration::from_millis(800));
        assert_eq!(time_left(Some("timeout=soon")), Duration::MAX);
        assert_eq!(time_left(None), Duration::MAX);
    }
}
