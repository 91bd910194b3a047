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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;

/// The conditions of readiness. Each component reports its own.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Conditions>);

#[derive(Debug, Default)]
struct Conditions {
    first_contact: Mutex<FirstContact>,
    has_certificate: AtomicBool,
    has_synced: AtomicBool,
    is_draining: AtomicBool,
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
        self.first_contact(FirstContact::Failed(cause));
    }

    /// Reports that the API server has been reached.
    pub fn reached(&self) {
        self.first_contact(FirstContact::Made);
    }

    fn first_contact(&self, contact: FirstContact) {
        *self.0.first_contact.lock().unwrap_or_else(PoisonError::into_inner) = contact;
    }

    /// Reports that the webhook serves a certificate.
    pub fn serving(&self) {
        self.0.has_certificate.store(true, Ordering::Release);
    }

    /// Reports that the watches have synced.
    pub fn synced(&self) {
        self.0.has_synced.store(true, Ordering::Release);
    }

    /// Reports that the process is shutting down.
    pub fn draining(&self) {
        self.0.is_draining.store(true, Ordering::Release);
    }

    /// Why the process is not ready; `None` if it is.
    fn missing(&self) -> Option<Cow<'static, str>> {
        if self.0.is_draining.load(Ordering::Acquire) {
            return Some("shutting down\n".into());
        }
        match &*self.0.first_contact.lock().unwrap_or_else(PoisonError::into_inner) {
            FirstContact::Pending => return Some("the API server has not been reached yet\n".into()),
            FirstContact::Failed(cause) => {
                return Some(format!("the API server has not been reached yet: {cause}\n").into());
            }
            FirstContact::Made => {}
        }
        if !self.0.has_certificate.load(Ordering::Acquire) {
            Some("the webhook has no certificate yet\n".into())
        } else if !self.0.has_synced.load(Ordering::Acquire) {
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
            let service = service_fn(|request| {
                let response = route(&request, &readiness, &registry);
                async { Ok::<_, Infallible>(response) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(5));
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(error = %ErrorChain(&error), "connection to the admin server failed");
            }
        });
    }
}

fn route(request: &Request<Incoming>, readiness: &Readiness, registry: &Registry) -> Response<Full<Bytes>> {
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
        "/readyz" => match readiness.missing() {
            None => (StatusCode::OK, "ok\n".into()),
            Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing),
        },
        _ => (StatusCode::NOT_FOUND, "the paths are /livez, /readyz and /metrics\n".into()),
    };
    let mut response = Response::new(Full::from(Bytes::from(text.into_owned())));
    *response.status_mut() = status;
    response
}
