//! `/livez` and `/readyz`, on a port of their own.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// What must be so before the process is ready. Each part reports for itself.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    has_synced: AtomicBool,
    is_draining: AtomicBool,
}

impl Readiness {
    /// The watches have shown everything that is stored.
    pub fn synced(&self) {
        self.0.has_synced.store(true, Ordering::Release);
    }

    /// The process is about to end.
    pub fn draining(&self) {
        self.0.is_draining.store(true, Ordering::Release);
    }

    /// Why the process is not ready; nothing where it is.
    fn missing(&self) -> Option<&'static str> {
        if self.0.is_draining.load(Ordering::Acquire) {
            Some("shutting down\n")
        } else if self.0.has_synced.load(Ordering::Acquire) {
            None
        } else {
            Some("the watches have not synced\n")
        }
    }
}

/// Answers probes for as long as the process lives.
///
/// # Errors
/// Where connections can no longer be accepted.
pub async fn serve(listener: TcpListener, readiness: Readiness) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let readiness = readiness.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = route(&request, &readiness);
                async { Ok::<_, Infallible>(response) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(5));
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "a probe's connection ended badly");
            }
        });
    }
}

fn route(request: &Request<Incoming>, readiness: &Readiness) -> Response<Full<Bytes>> {
    let (status, text) = match request.uri().path() {
        "/livez" => (StatusCode::OK, "ok\n"),
        "/readyz" => match readiness.missing() {
            None => (StatusCode::OK, "ok\n"),
            Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing),
        },
        _ => (StatusCode::NOT_FOUND, "here are /livez and /readyz\n"),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}
