//! Traces: a span for each review, below the API server's where its `traceparent` says which, and one for each call of the API server,
//! which it is told of in the same way. They go by OTLP (HTTP, protobuf) to an endpoint, where one is set.
//!
//! Spans are named after what is done and carry no address and no name of anything that users make.

use super::error_chain::ErrorChain;
use super::metrics::VERSION;
use hyper::HeaderMap;
use opentelemetry::KeyValue;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::runtime::Tokio;
use opentelemetry_sdk::trace::SdkTracerProvider;
use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

const NAME: &str = "switchboard";

/// Sends spans to an endpoint, in batches.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// One that sends to the collector at `endpoint`, `http://collector:4318` say, from a task of the runtime that is entered. Which
    /// traces are kept follows the API server's decision, and `OTEL_TRACES_SAMPLER` where it has made none.
    ///
    /// # Errors
    /// Where `endpoint` is no address.
    pub fn new(endpoint: &str) -> Result<Self, ExporterBuildError> {
        let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_endpoint(endpoint).build()?;
        let version = KeyValue::new("service.version", VERSION);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter, Tokio).build())
            .with_resource(Resource::builder().with_service_name(NAME).with_attribute(version).build())
            .build();
        Ok(Self(provider))
    }

    /// What hands our spans, and nothing else, to it.
    #[must_use]
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let is_ours = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target().starts_with(NAME);
        tracing_opentelemetry::layer().with_tracer(self.0.tracer(NAME)).with_filter(filter_fn(is_ours))
    }

    /// Sends what is left. It blocks, and so must not be called from a task.
    pub fn shutdown(&self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(error = %ErrorChain(&error), "cannot send the last spans");
        }
    }
}

/// `span` is a part of what the caller does who sent `headers`.
pub fn continue_from(span: &Span, headers: &HeaderMap) {
    let caller = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // Without an exporter there is nothing that would take it.
    let _ = span.set_parent(caller);
}

/// Whoever is sent `headers` is told that it works for `span`.
pub fn pass_on(span: &Span, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&span.context(), &mut HeaderInjector(headers));
}
