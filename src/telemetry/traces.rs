//! Traces. Each review, and each authenticated request of a source, has a span, whose parent is the caller's span if the request has a
//! `traceparent`. Each request to the API server has a span too; it and the events for sinks are sent with a `traceparent`. The spans are
//! exported by OTLP (HTTP, protobuf) if an endpoint is set.
//!
//! Spans are named after the operation. They contain no address and no name of an object that users create.

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
    /// An exporter that sends to the collector at `endpoint`, such as `http://collector:4318`, from a task of the current runtime. A trace of
    /// the API server is sampled if the API server samples it; `OTEL_TRACES_SAMPLER` determines the sampling of all others.
    ///
    /// # Errors
    /// If `endpoint` is not an address.
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

    /// A layer that sends the spans of switchboard, and no others, to this exporter.
    #[must_use]
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let is_ours = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target().starts_with(NAME);
        tracing_opentelemetry::layer().with_tracer(self.0.tracer(NAME)).with_filter(filter_fn(is_ours))
    }

    /// Sends the remaining spans. It blocks, so it must not be called from a task.
    pub fn shutdown(&self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(error = %ErrorChain(&error), "cannot send the last spans");
        }
    }
}

/// Sets the parent of `span` to the caller's span in `headers`.
pub fn set_parent(span: &Span, headers: &HeaderMap) {
    // Without an exporter, spans are disabled.
    if span.is_disabled() {
        return;
    }
    let caller = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // It fails only for a span that has begun already.
    let _ = span.set_parent(caller);
}

/// Adds `span` to `headers` as the parent of the receiver's spans.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    if span.is_disabled() {
        return;
    }
    TraceContextPropagator::new().inject_context(&span.context(), &mut HeaderInjector(headers));
}
