//! The metrics of the webhook.

use super::outcome::AdmissionOutcome;
use crate::server::ConnectionMetrics;
use crate::telemetry::metrics::{REQUEST_BUCKETS, counters, registered};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;
use strum::VariantArray;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
    code: u16,
}

impl From<AdmissionOutcome> for OutcomeLabels {
    fn from(outcome: AdmissionOutcome) -> Self {
        Self { outcome: outcome.as_str(), code: outcome.code() }
    }
}

/// The metrics of the webhook. Clones share their values.
#[derive(Clone, Debug)]
pub struct WebhookMetrics {
    requests: Family<OutcomeLabels, Counter>,
    duration: Histogram,
    connections: ConnectionMetrics,
    panics: Counter,
}

impl WebhookMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let duration = Histogram::new(REQUEST_BUCKETS);
        registry.register(
            "admission_duration_seconds",
            "Duration of admission reviews, from the request header to the response",
            duration.clone(),
        );
        Self {
            requests: counters(
                registry,
                "admission_requests",
                "Admission reviews by outcome and response code",
                AdmissionOutcome::VARIANTS.iter().map(|outcome| (*outcome).into()),
            ),
            duration,
            connections: ConnectionMetrics::new(registry, "webhook"),
            panics: registered(registry, "panics", "Panics of the request handler"),
        }
    }

    /// Records a review. A cancelled review has no answer, and therefore no duration.
    pub fn reviewed(&self, outcome: AdmissionOutcome, duration: Duration) {
        self.requests.get_or_create(&outcome.into()).inc();
        if outcome != AdmissionOutcome::Cancelled {
            self.duration.observe(duration.as_secs_f64());
        }
    }

    /// The metrics of the connections.
    #[must_use]
    pub fn connections(&self) -> ConnectionMetrics {
        self.connections.clone()
    }

    /// Records a handler that panicked.
    pub fn panicked(&self) {
        self.panics.inc();
    }
}
