//! `/livez`, `/readyz` and `/metrics`, on a port of their own.

use super::error_chain::ErrorChain;
use super::metrics::{self, Metrics};
use crate::listener::accept;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;

/// What must be so before the process is ready. Each part reports for itself.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    first_contact: Mutex<FirstContact>,
    has_certificate: AtomicBool,
    has_synced: AtomicBool,
    is_draining: AtomicBool,
}

/// Whether the API server has ever answered.
#[derive(Debug, Default)]
enum FirstContact {
    /// No attempt has ended yet.
    #[default]
    Pending,
    /// The last attempt failed, for this reason.
    Failed(String),
    /// It has answered.
    Made,
}

impl Readiness {
    /// The API server has not been reached yet, because of `cause`.
    pub fn unreached(&self, cause: String) {
        self.first_contact(FirstContact::Failed(cause));
    }

    /// The API server has been reached.
    pub fn reached(&self) {
        self.first_contact(FirstContact::Made);
    }

    fn first_contact(&self, contact: FirstContact) {
        *self.0.first_contact.lock().unwrap_or_else(PoisonError::into_inner) = contact;
    }

    /// The webhook serves a certificate.
    pub fn serving(&self) {
        self.0.has_certificate.store(true, Ordering::Release);
    }

    /// The watches have shown everything that is stored.
    pub fn synced(&self) {
        self.0.has_synced.store(true, Ordering::Release);
    }

    /// The process is about to end.
    pub fn draining(&self) {
        self.0.is_draining.store(true, Ordering::Release);
    }

    /// Why the process is not ready; nothing where it is.
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

/// Answers probes, and whoever collects the metrics, for as long as the process lives.
pub async fn serve(listener: TcpListener, readiness: Readiness, metrics: Metrics) {
    loop {
        let stream = accept(&listener, "probes").await;
        let (readiness, metrics) = (readiness.clone(), metrics.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = route(&request, &readiness, &metrics);
                async { Ok::<_, Infallible>(response) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(5));
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(error = %ErrorChain(&error), "a probe's connection ended badly");
            }
        });
    }
}

fn route(request: &Request<Incoming>, readiness: &Readiness, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, text): (_, Cow<'static, str>) = match request.uri().path() {
        "/livez" => (StatusCode::OK, "ok\n".into()),
        "/metrics" => match metrics.encode() {
            Ok(text) => {
                let mut response = Response::new(Full::from(text));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
                return response;
            }
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n".into()),
        },
        "/readyz" => match readiness.missing() {
            None => (StatusCode::OK, "ok\n".into()),
            Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing),
        },
        _ => (StatusCode::NOT_FOUND, "here are /livez, /readyz and /metrics\n".into()),
    };
    let mut response = Response::new(Full::from(Bytes::from(text.into_owned())));
    *response.status_mut() = status;
    response
}
