//! The metrics of the router.

use super::outcome::{MessageOutcome, RequestOutcome};
use super::watcher::SharedKnown;
use crate::clock::Clock;
use crate::core::inbound::Unroutable;
use crate::server::ConnectionMetrics;
use crate::telemetry::metrics::{REQUEST_BUCKETS, counters, registered};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;
use strum::VariantArray;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    source: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// The metrics of the router. Clones share their values.
#[derive(Clone, Debug)]
pub struct RouterMetrics {
    requests: Family<RequestLabels, Counter>,
    messages: Family<OutcomeLabels, Counter>,
    duration: Histogram,
    created: Counter,
    unroutable: Family<ReasonLabels, Counter>,
    connections: ConnectionMetrics,
    panics: Counter,
}

impl RouterMetrics {
    /// Registers the metrics. The failures of the watches are those that `known` has seen.
    pub fn new(registry: &mut Registry, known: SharedKnown, clock: Clock) -> Self {
        let duration = Histogram::new(REQUEST_BUCKETS);
        let requests = Family::default();
        registry.register_collector(Box::new(Watches { known, clock }));
        registry.register("router_requests", "Requests of message providers by source and outcome", requests.clone());
        registry.register(
            "router_message_duration_seconds",
            "Duration from the arrival of a message until its outcome",
            duration.clone(),
        );
        Self {
            requests,
            messages: counters(
                registry,
                "router_messages",
                "Inbound messages by outcome",
                MessageOutcome::NAMES.iter().map(|outcome| OutcomeLabels { outcome }),
            ),
            duration,
            created: registered(
                registry,
                "router_conversations_created",
                "Conversations that inbound messages created",
            ),
            unroutable: counters(
                registry,
                "router_unroutable",
                "Inbound messages that no conversation gets, by reason",
                Unroutable::VARIANTS.iter().map(|reason| ReasonLabels { reason: reason.as_str() }),
            ),
            connections: ConnectionMetrics::new(registry, "router"),
            panics: registered(registry, "panics", "Panics of the request handler"),
        }
    }

    /// The metrics of the connections.
    #[must_use]
    pub fn connections(&self) -> ConnectionMetrics {
        self.connections.clone()
    }

    /// Records a request. `source` is the name of a configured source, or `unknown`.
    pub fn requested(&self, source: &str, outcome: RequestOutcome) {
        let labels = RequestLabels { source: source.to_owned(), outcome: outcome.as_str() };
        self.requests.get_or_create(&labels).inc();
    }

    /// Records the outcome of a message.
    pub fn routed(&self, outcome: MessageOutcome, duration: Duration) {
        self.messages.get_or_create(&OutcomeLabels { outcome: outcome.as_str() }).inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// Records a message that no conversation gets.
    pub fn unroutable(&self, reason: Unroutable) {
        self.unroutable.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc();
    }

    /// Records a conversation that a message created.
    pub fn created(&self) {
        self.created.inc();
    }

    /// Records a handler that panicked.
    pub fn panicked(&self) {
        self.panics.inc();
    }
}

/// Serves for how long the watches have been failing.
#[derive(Debug)]
struct Watches {
    known: SharedKnown,
    clock: Clock,
}

impl Collector for Watches {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let age = self.known.read().failing_for(self.clock.monotonic()).unwrap_or_default();
        let (name, help) =
            ("router_watch_failure_age_seconds", "Longest time that a watch has been failing; 0 if none fails");
        let gauge = ConstGauge::new(age.as_secs_f64());
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    }
}
