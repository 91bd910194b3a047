//! A layer around the client of the API server: counts each call by verb, resource and answer, and makes a span of it.

use super::metrics::Metrics;
use super::traces;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::{Method, Request, Response, Uri};
use kube::client::Body;
use std::task::{Context, Poll};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

/// Counts the calls of a client.
#[derive(Clone, Debug)]
pub struct ClientMetricsLayer(Metrics);

impl ClientMetricsLayer {
    /// Counts into `metrics`.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self(metrics)
    }
}

impl<S> Layer<S> for ClientMetricsLayer {
    type Service = ClientMetrics<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ClientMetrics { inner, metrics: self.0.clone() }
    }
}

/// A client whose calls are counted.
#[derive(Clone, Debug)]
pub struct ClientMetrics<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B> Service<Request<Body>> for ClientMetrics<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (verb, resource) = call_of(request.method(), request.uri());
        let metrics = self.metrics.clone();
        let span = tracing::info_span!("api_call", verb, resource, code = tracing::field::Empty);
        traces::pass_on(&span, request.headers_mut());
        let counted = Counted { metrics, verb, resource, span: span.clone(), code: 0 };
        self.inner
            .call(request)
            .inspect(move |answer| counted.answered(answer.as_ref().map_or(0, |response| response.status().as_u16())))
            .instrument(span)
            .boxed()
    }
}

/// A call that is counted when it has ended: by its answer, or because whoever made it waits no longer.
struct Counted {
    metrics: Metrics,
    verb: &'static str,
    resource: &'static str,
    span: Span,
    code: u16,
}

impl Counted {
    fn answered(mut self, code: u16) {
        self.code = code;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.api_call(self.verb, self.resource, self.code);
        self.span.record("code", self.code);
    }
}

/// What the operator calls. Everything else is `other`, so that no path makes a label.
const RESOURCES: [&str; 8] = [
    "addressbindings",
    "conversations",
    "conversations/status",
    "events",
    "leases",
    "secrets",
    "subjectaccessreviews",
    "validatingwebhookconfigurations",
];

/// The verb, in the words of RBAC, and the resource of a request.
fn call_of(method: &Method, uri: &Uri) -> (&'static str, &'static str) {
    let mut segments: Vec<_> = uri.path().trim_matches('/').split('/').collect();
    // `api/v1` or `apis/GROUP/VERSION`, then perhaps a namespace; what is left is `RESOURCE[/NAME[/SUBRESOURCE]]`.
    let prefix = if segments.first() == Some(&"api") { 2 } else { 3 };
    segments.drain(..prefix.min(segments.len()));
    if segments.first() == Some(&"namespaces") && segments.len() > 2 {
        segments.drain(..2);
    }
    let resource = RESOURCES.into_iter().find(|known| {
        let (kind, subresource) = known.split_once('/').map_or((*known, None), |(kind, sub)| (kind, Some(sub)));
        (segments.first(), segments.get(2)) == (Some(&kind), subresource.as_ref())
    });
    let is_watch = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    let verb = match *method {
        Method::GET if is_watch => "watch",
        Method::GET if segments.len() > 1 => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource.unwrap_or("other"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use opentelemetry::trace::{TraceContextExt, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use std::convert::Infallible;
    use tower::service_fn;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::layer::SubscriberExt;

    fn patch() -> Request<Body> {
        let uri = "/apis/switchboard.dev/v1alpha1/namespaces/sales/conversations/alice/status";
        Request::builder().method(Method::PATCH).uri(uri).body(Body::empty()).unwrap()
    }

    fn is_counted(metrics: &Metrics, code: u16) -> bool {
        let labels = format!("verb=\"patch\",resource=\"conversations/status\",code=\"{code}\"");
        metrics.encode().unwrap().contains(&format!("switchboard_api_requests_total{{{labels}}} 1\n"))
    }

    #[tokio::test]
    async fn a_call_is_told_for_whose_trace_it_is_made() {
        let tracer = SdkTracerProvider::builder().build().tracer("test");
        let subscriber = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer));
        let _default = tracing::subscriber::set_default(subscriber);
        let review = tracing::info_span!("review");
        let trace = review.context().span().span_context().trace_id().to_string();
        let echo = service_fn(|request: Request<Body>| async move {
            Ok::<_, Infallible>(Response::new(request.headers()["traceparent"].to_str().unwrap().to_owned()))
        });
        // The first thread that comes by a span decides for all whether it is recorded; another test may have been the first.
        drop(ClientMetricsLayer::new(Metrics::new(Clock)).layer(echo).call(patch()));
        tracing::callsite::rebuild_interest_cache();
        let metrics = Metrics::new(Clock);
        let mut calls = ClientMetricsLayer::new(metrics.clone()).layer(echo);
        let told = review.in_scope(|| calls.call(patch())).await.unwrap().into_body();
        assert!(told.contains(&trace), "{told} is of trace {trace}");
        assert!(is_counted(&metrics, 200));
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_is_counted_too() {
        let silent = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<()>, Infallible>>());
        let metrics = Metrics::new(Clock);
        let mut calls = ClientMetricsLayer::new(metrics.clone()).layer(silent);
        let call = calls.call(patch());
        assert!(!is_counted(&metrics, 0), "it is under way");
        drop(call);
        assert!(is_counted(&metrics, 0));
    }

    #[test]
    fn a_call_is_told_by_the_words_of_rbac() {
        for (method, uri, expected) in [
            (Method::GET, "/apis/switchboard.dev/v1alpha1/conversations?&limit=500", ("list", "conversations")),
            (
                Method::GET,
                "/apis/switchboard.dev/v1alpha1/conversations?&watch=true&timeoutSeconds=290",
                ("watch", "conversations"),
            ),
            (
                Method::GET,
                "/apis/switchboard.dev/v1alpha1/namespaces/sales/conversations/alice",
                ("get", "conversations"),
            ),
            (
                Method::PATCH,
                "/apis/switchboard.dev/v1alpha1/namespaces/sales/conversations/alice/status?&fieldManager=switchboard",
                ("patch", "conversations/status"),
            ),
            (Method::POST, "/apis/switchboard.dev/v1alpha1/addressbindings?", ("create", "addressbindings")),
            (Method::DELETE, "/apis/switchboard.dev/v1alpha1/addressbindings/sms-a", ("delete", "addressbindings")),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/s/leases/switchboard?", ("update", "leases")),
            (Method::GET, "/api/v1/namespaces/s/secrets/switchboard-webhook-tls", ("get", "secrets")),
            // A namespace, or an object, that is called like a resource.
            (Method::GET, "/api/v1/namespaces/secrets/secrets/leases", ("get", "secrets")),
            (Method::GET, "/version", ("list", "other")),
            (Method::GET, "/api/v1/namespaces/sales", ("get", "other")),
        ] {
            assert_eq!(call_of(&method, &uri.parse().unwrap()), expected, "{method} {uri}");
        }
    }
}
