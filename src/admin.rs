//! The admin server: `/livez`, `/readyz` and `/metrics` over HTTP, on a port of their own.

use crate::listener::accept;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::metrics;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long `/readyz` waits for a start that is in progress. It is shorter than the `timeoutSeconds` of the readiness probe in the chart,
/// so that the kubelet gets an answer, and long enough that a normal start on a busy node fails no probe.
const START_TIMEOUT: Duration = Duration::from_secs(3);

/// The conditions of readiness. Each component reports its own.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<Conditions>>);

#[derive(Debug, Default)]
struct Conditions {
    first_contact: FirstContact,
    has_certificate: bool,
    has_synced: bool,
    is_draining: bool,
}

/// Whether the API server has answered since the start.
#[derive(Debug, Default)]
enum FirstContact {
    /// The first attempt is in progress.
    #[default]
    Pending,
    /// The last attempt failed, with this cause.
    Failed(String),
    /// It has answered.
    Made,
}

impl Readiness {
    /// Reports that the API server has not been reached yet.
    pub fn unreached(&self, cause: String) {
        self.0.send_modify(|conditions| conditions.first_contact = FirstContact::Failed(cause));
    }

    /// Reports that the API server has been reached.
    pub fn reached(&self) {
        self.0.send_modify(|conditions| conditions.first_contact = FirstContact::Made);
    }

    /// Reports that the webhook serves a certificate.
    pub fn serving(&self) {
        self.set(|conditions| &mut conditions.has_certificate);
    }

    /// Reports that the watches have synced.
    pub fn synced(&self) {
        self.set(|conditions| &mut conditions.has_synced);
    }

    /// Reports that the process is shutting down.
    pub fn draining(&self) {
        self.set(|conditions| &mut conditions.is_draining);
    }

    fn set(&self, condition: impl FnOnce(&mut Conditions) -> &mut bool) {
        self.0.send_if_modified(|conditions| !std::mem::replace(condition(conditions), true));
    }

    /// Why the process is not ready; `None` if it is. If a start is in progress, this waits for it, up to [`START_TIMEOUT`], because the
    /// kubelet records a Warning Event for each failed probe.
    async fn missing(&self) -> Option<Cow<'static, str>> {
        let mut conditions = self.0.subscribe();
        // The sender lives as long as `self`.
        let _ = timeout(START_TIMEOUT, conditions.wait_for(|conditions| !conditions.is_starting())).await;
        self.0.borrow().missing()
    }
}

impl Conditions {
    /// Whether the process is about to become ready, and nothing has failed.
    fn is_starting(&self) -> bool {
        let has_failed = matches!(self.first_contact, FirstContact::Failed(_));
        !self.is_draining && !has_failed && self.missing().is_some()
    }

    fn missing(&self) -> Option<Cow<'static, str>> {
        if self.is_draining {
            return Some("shutting down\n".into());
        }
        match &self.first_contact {
            FirstContact::Pending => return Some("the API server has not been reached yet\n".into()),
            FirstContact::Failed(cause) => {
                return Some(format!("the API server has not been reached yet: {cause}\n").into());
            }
            FirstContact::Made => {}
        }
        if !self.has_certificate {
            Some("the webhook has no certificate yet\n".into())
        } else if !self.has_synced {
            Some("the watches have not synced\n".into())
        } else {
            None
        }
    }
}

/// Serves probes and metrics until the process exits.
pub async fn serve(listener: TcpListener, readiness: Readiness, registry: Arc<Registry>) {
    loop {
        let stream = accept(&listener, "the admin server").await;
        let (readiness, registry) = (readiness.clone(), registry.clone());
        tokio::spawn(async move {
            let service = service_fn(async |request| Ok::<_, Infallible>(route(&request, &readiness, &registry).await));
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(5));
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(error = %ErrorChain(&error), "connection to the admin server failed");
            }
        });
    }
}

async fn route(request: &Request<Incoming>, readiness: &Readiness, registry: &Registry) -> Response<Full<Bytes>> {
    let (status, text): (_, Cow<'static, str>) = match request.uri().path() {
        "/livez" => (StatusCode::OK, "ok\n".into()),
        "/metrics" => match metrics::encode(registry) {
            Ok(text) => {
                let mut response = Response::new(Full::from(text));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
                return response;
            }
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded\n".into()),
        },
        "/readyz" => match readiness.missing().await {
            None => (StatusCode::OK, "ok\n".into()),
            Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing),
        },
        _ => (StatusCode::NOT_FOUND, "the paths are /livez, /readyz and /metrics\n".into()),
    };
    let mut response = Response::new(Full::from(Bytes::from(text.into_owned())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn probe_waits_for_a_start_that_is_in_progress() {
        let readiness = Readiness::default();
        let probe = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.missing().await }
        });
        tokio::time::sleep(START_TIMEOUT / 2).await;
        readiness.reached();
        readiness.serving();
        readiness.synced();
        assert_eq!(probe.await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn start_that_takes_too_long_is_not_ready() {
        let (readiness, started) = (Readiness::default(), Instant::now());
        readiness.reached();
        assert_eq!(readiness.missing().await.as_deref(), Some("the webhook has no certificate yet\n"));
        assert_eq!(started.elapsed(), START_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_start_and_shutdown_are_answered_at_once() {
        let (readiness, started) = (Readiness::default(), Instant::now());
        readiness.unreached("timeout".to_owned());
        assert_eq!(readiness.missing().await.as_deref(), Some("the API server has not been reached yet: timeout\n"));
        readiness.draining();
        assert_eq!(readiness.missing().await.as_deref(), Some("shutting down\n"));
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
