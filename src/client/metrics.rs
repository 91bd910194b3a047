//! The metric of requests to the API server, and the layer that records each request in it and as a span.

use crate::telemetry::metrics::registered;
use crate::telemetry::traces;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::{Method, Request, Response, Uri};
use kube::client::Body;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::task::{Context, Poll};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

/// The metric of requests to the API server. Clones share its values.
#[derive(Clone, Debug)]
pub struct ClientMetrics {
    requests: Family<RequestLabels, Counter>,
}

impl ClientMetrics {
    /// Registers the metric.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let help = "Requests to the API server by verb, resource and response code; code 0 means no response in time";
        Self { requests: registered(registry, "api_requests", help) }
    }
}

/// Records the requests of a client in its metric.
#[derive(Clone, Debug)]
pub struct ClientMetricsLayer(ClientMetrics);

impl ClientMetricsLayer {
    /// A layer that records requests in `metrics`.
    #[must_use]
    pub fn new(metrics: ClientMetrics) -> Self {
        Self(metrics)
    }
}

impl<S> Layer<S> for ClientMetricsLayer {
    type Service = ClientMetricsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ClientMetricsService { inner, metrics: self.0.clone() }
    }
}

/// A client whose requests are recorded.
#[derive(Clone, Debug)]
pub struct ClientMetricsService<S> {
    inner: S,
    metrics: ClientMetrics,
}

impl<S, B> Service<Request<Body>> for ClientMetricsService<S>
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
        traces::inject(&span, request.headers_mut());
        let recorded = RecordedRequest { metrics, verb, resource, span: span.clone(), code: 0 };
        self.inner
            .call(request)
            .inspect(move |answer| recorded.answered(answer.as_ref().map_or(0, |response| response.status().as_u16())))
            .instrument(span)
            .boxed()
    }
}

/// A request that is recorded when dropped: after its response, or when its caller stops waiting.
struct RecordedRequest {
    metrics: ClientMetrics,
    verb: &'static str,
    resource: &'static str,
    span: Span,
    code: u16,
}

impl RecordedRequest {
    fn answered(mut self, code: u16) {
        self.code = code;
    }
}

impl Drop for RecordedRequest {
    fn drop(&mut self) {
        let Self { metrics, verb, resource, span, code } = self;
        metrics.requests.get_or_create(&RequestLabels { verb, resource, code: *code }).inc();
        span.record("code", *code);
    }
}

/// The resources that the operator uses. The label of all others is `other`, so that no path becomes a label.
const RESOURCES: [&str; 11] = [
    "addressbindings",
    "conversations",
    "conversations/status",
    "events",
    "leases",
    "namespaces",
    "proxyaddresses",
    "proxyaddresses/status",
    "secrets",
    "subjectaccessreviews",
    "validatingwebhookconfigurations",
];

/// The verb, as in RBAC, and the resource of a request.
fn call_of(method: &Method, uri: &Uri) -> (&'static str, &'static str) {
    let mut segments: Vec<_> = uri.path().trim_matches('/').split('/').collect();
    // `api/v1` or `apis/GROUP/VERSION`, then perhaps a namespace; the rest is `RESOURCE[/NAME[/SUBRESOURCE]]`.
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
    use crate::telemetry::metrics;
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

    fn is_recorded(registry: &Registry, code: u16) -> bool {
        let labels = format!("verb=\"patch\",resource=\"conversations/status\",code=\"{code}\"");
        metrics::encode(registry).unwrap().contains(&format!("switchboard_api_requests_total{{{labels}}} 1\n"))
    }

    #[tokio::test]
    async fn request_carries_the_trace_of_its_span() {
        let tracer = SdkTracerProvider::builder().build().tracer("test");
        let subscriber = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer));
        let _default = tracing::subscriber::set_default(subscriber);
        let review = tracing::info_span!("review");
        let trace = review.context().span().span_context().trace_id().to_string();
        let echo = service_fn(|request: Request<Body>| async move {
            Ok::<_, Infallible>(Response::new(request.headers()["traceparent"].to_str().unwrap().to_owned()))
        });
        // The first thread that reaches a span decides for all whether it is recorded; another test may have been the first.
        drop(ClientMetricsLayer::new(ClientMetrics::new(&mut metrics::registry())).layer(echo).call(patch()));
        tracing::callsite::rebuild_interest_cache();
        let mut registry = metrics::registry();
        let mut client = ClientMetricsLayer::new(ClientMetrics::new(&mut registry)).layer(echo);
        let parent = review.in_scope(|| client.call(patch())).await.unwrap().into_body();
        assert!(parent.contains(&trace), "{parent} is of trace {trace}");
        assert!(is_recorded(&registry, 200));
    }

    #[tokio::test]
    async fn abandoned_request_is_recorded() {
        let silent = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<()>, Infallible>>());
        let mut registry = metrics::registry();
        let mut client = ClientMetricsLayer::new(ClientMetrics::new(&mut registry)).layer(silent);
        let request = client.call(patch());
        assert!(!is_recorded(&registry, 0), "it is in flight");
        drop(request);
        assert!(is_recorded(&registry, 0));
    }

    #[test]
    fn request_is_labelled_by_the_verbs_of_rbac() {
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
            (Method::GET, "/api/v1/namespaces/sales", ("get", "namespaces")),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/s/leases/switchboard?", ("update", "leases")),
            (Method::GET, "/api/v1/namespaces/s/secrets/switchboard-webhook-tls", ("get", "secrets")),
            // A namespace, or an object, that is called like a resource.
            (Method::GET, "/api/v1/namespaces/secrets/secrets/leases", ("get", "secrets")),
            (Method::GET, "/version", ("list", "other")),
            (Method::GET, "/api/v1/nodes/node-1", ("get", "other")),
        ] {
            assert_eq!(call_of(&method, &uri.parse().unwrap()), expected, "{method} {uri}");
        }
    }
}
