//! Delivers events to sinks over HTTP, within a budget of time. It does not know what the events are about, and never follows a redirect.

use super::event::Event;
use super::signer::Signer;
use crate::api::{Sink, SinkService};
use crate::clock::Clock;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::traces;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::Span;

/// How long an unused connection to a sink is kept. It is shorter than the 60 s after which many servers close one, so that a request is
/// seldom sent on a connection that is about to be closed.
const IDLE: Duration = Duration::from_secs(30);
/// The maximum number of unused connections to a sink.
const MAX_IDLE: usize = 32;
/// The first delay between two attempts. It doubles each time.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// The maximum size of the body of a response that is read, in bytes, so that the connection can be used again. The content is not used.
const RESPONSE_BYTES: usize = 64 << 10;
/// The time in which it is read.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of simultaneous requests to sinks. Each has a connection, and a process has 1,024 open files by default.
const MAX_REQUESTS: usize = 384;

/// The answer of a sink that has seen an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It accepted it (2xx).
    Accepted,
    /// It refused the event for good (400, 410, 413, 415 or 422).
    Refused,
}

/// Why a sink has no verdict on an event, which may be sent again. The text has no address, and not the URL of the sink, which may contain a
/// secret.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Another code. It comes from what stands before a sink, such as a proxy that has no route during a rollout.
    #[error("status {0}")]
    Status(StatusCode),
    /// There is no response.
    #[error(transparent)]
    Transport(#[from] hyper_util::client::legacy::Error),
    /// There is no response in time.
    #[error("no response in time")]
    TimedOut,
}

/// How a sink took an event in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It accepted it.
    Accepted,
    /// It refused the event for good.
    Refused,
    /// It did not accept it in time.
    Failed,
}

/// Sends events to sinks.
#[derive(Clone)]
pub struct Sinks {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    signer: watch::Receiver<Arc<Signer>>,
    requests: Arc<Semaphore>,
    clock: Clock,
}

impl Sinks {
    /// A client that trusts the public certificate authorities, and those of `authorities`. Events are signed by the current signer.
    ///
    /// # Errors
    /// If an authority is not a valid certificate.
    pub fn new(
        authorities: Vec<rustls::pki_types::CertificateDer<'static>>,
        signer: watch::Receiver<Arc<Signer>>,
        clock: Clock,
    ) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for authority in authorities {
            roots.add(authority)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = tls.with_root_certificates(roots).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(MAX_IDLE)
            .build(connector);
        Ok(Self { client, signer, requests: Arc::new(Semaphore::new(MAX_REQUESTS)), clock })
    }

    /// Posts `event` to `sink` until it is accepted or refused, at the latest by `until`.
    pub async fn post(&self, sink: &Uri, event: &Event, until: Instant) -> Delivery {
        let mut backoff = MIN_BACKOFF;
        loop {
            let failure = match self.try_post(sink, event, until).await {
                Ok(Verdict::Accepted) => return Delivery::Accepted,
                Ok(Verdict::Refused) => return Delivery::Refused,
                Err(failure) => failure,
            };
            let cause = ErrorChain(&failure).to_string();
            if self.clock.monotonic() + backoff >= until {
                tracing::warn!(host = sink.host(), cause, "a sink did not accept an event");
                return Delivery::Failed;
            }
            tracing::debug!(host = sink.host(), cause, "a sink did not accept an event; trying again");
            sleep(backoff).await;
            backoff *= 2;
        }
    }

    /// Posts `event` to `sink` once.
    ///
    /// # Errors
    /// If it is neither accepted nor refused by `until`.
    pub async fn try_post(&self, sink: &Uri, event: &Event, until: Instant) -> Result<Verdict, Failure> {
        match timeout_at(until, self.request(sink, event)).await.map_err(|_| Failure::TimedOut)?? {
            status if status.is_success() => Ok(Verdict::Accepted),
            status if is_final(status) => Ok(Verdict::Refused),
            status => Err(Failure::Status(status)),
        }
    }

    async fn request(&self, sink: &Uri, event: &Event) -> Result<StatusCode, hyper_util::client::legacy::Error> {
        // The semaphore is never closed.
        let permit = self.requests.clone().acquire_owned().await;
        let signer = self.signer.borrow().clone();
        let headers = event.headers(&signer, self.clock.now());
        let mut request = Request::new(Full::from(event.data.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = sink.clone();
        *request.headers_mut() = headers;
        traces::inject(&Span::current(), request.headers_mut());
        let response = self.client.request(request).await?;
        let status = response.status();
        if !response.body().is_end_stream() {
            // The connection can be used again only after the body. A sink that never ends it has answered all the same.
            tokio::spawn(async move {
                let _permit = permit;
                let _ = timeout(RESPONSE_TIMEOUT, Limited::new(response.into_body(), RESPONSE_BYTES).collect()).await;
            });
        }
        Ok(status)
    }
}

/// Whether a sink with this status would refuse the event again.
fn is_final(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::GONE
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// The URL of a sink; `None` if it has none, which the schema rejects.
#[must_use]
pub fn url(sink: &Sink) -> Option<Uri> {
    if let Some(uri) = &sink.uri {
        return uri.parse().ok().filter(|uri: &Uri| uri.host().is_some());
    }
    let SinkService { namespace, name, port, path } = sink.service.as_ref()?;
    let (port, path) = (port.unwrap_or(80), path.as_deref().unwrap_or("/"));
    format!("http://{name}.{namespace}.svc:{port}{path}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_that_of_the_uri_or_of_the_service() {
        let service = |port, path: Option<&str>| Sink {
            uri: None,
            service: Some(SinkService {
                namespace: "sales".to_owned(),
                name: "desk".to_owned(),
                port,
                path: path.map(str::to_owned),
            }),
        };
        let text = |sink: &Sink| url(sink).map(|url| url.to_string());
        assert_eq!(text(&service(None, None)).as_deref(), Some("http://desk.sales.svc:80/"));
        assert_eq!(text(&service(Some(8080), Some("/in?x=1"))).as_deref(), Some("http://desk.sales.svc:8080/in?x=1"));
        let uri = |uri: &str| Sink { uri: Some(uri.to_owned()), service: None };
        assert_eq!(text(&uri("https://example.com/messages")).as_deref(), Some("https://example.com/messages"));
        assert_eq!((text(&uri("/messages")), text(&Sink::default())), (None, None));
    }

    #[test]
    fn only_refusals_of_the_event_itself_are_final() {
        let finals: Vec<u16> = [200, 302, 400, 401, 403, 404, 408, 409, 410, 413, 415, 422, 425, 429, 500, 503]
            .into_iter()
            .filter(|code| is_final(StatusCode::from_u16(*code).unwrap()))
            .collect();
        assert_eq!(finals, [400, 410, 413, 415, 422]);
    }
}
