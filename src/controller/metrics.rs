//! The metrics of the controller.

use crate::clock::Clock;
use crate::index::{Stats, StatsCollector};
use crate::kube_error;
use crate::telemetry::metrics::{REQUEST_BUCKETS, counters, registered};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;
use strum::{IntoStaticStr, VariantArray};

/// Bucket boundaries, in seconds, for delays that may include an outage.
const LATENESS_BUCKETS: [f64; 11] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0, 300.0, 3600.0];

/// The kind of object that a task reconciles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum TaskKind {
    /// A conversation.
    Conversation,
    /// A claim.
    Claim,
    /// A ProxyAddress.
    ProxyAddress,
    /// The default timers of a proxy address.
    Defaults,
}

/// The class of the error of a reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ErrorClass {
    /// The API server could not be reached, or its response could not be decoded.
    Transport,
    /// The API server did not answer in time.
    TimedOut,
    /// The API server limits the rate of requests (429).
    Throttled,
    /// The operator lacks a permission (401, 403).
    Forbidden,
    /// The API server rejected the request for another reason (other 4xx).
    Rejected,
    /// The API server failed (5xx).
    Server,
    /// An AddressBinding does not have the name of its binding.
    NameMismatch,
}

impl ErrorClass {
    /// The name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl From<&kube::Error> for ErrorClass {
    fn from(error: &kube::Error) -> Self {
        use kube_error::ErrorClass as Class;
        match Class::of(error) {
            Class::Transport | Class::InvalidResponse => Self::Transport,
            Class::Throttled => Self::Throttled,
            Class::Unauthorized | Class::Forbidden => Self::Forbidden,
            Class::NotFound
            | Class::AlreadyExists
            | Class::Conflict
            | Class::BadRequest
            | Class::Invalid
            | Class::Expired
            | Class::Rejected => Self::Rejected,
            Class::Server => Self::Server,
        }
    }
}

/// What has become of a lifecycle event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum EventOutcome {
    /// The sink accepted it.
    Accepted,
    /// The sink did not accept it, and it is sent again.
    Retried,
    /// The sink refused it for good.
    Refused,
    /// It was given up: the backlog was full, or the sink did not accept it for too long.
    Dropped,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabels {
    task: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabels {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// The metrics of the controller. Clones share their values.
#[derive(Clone, Debug)]
pub struct ControllerMetrics {
    released: Counter,
    orphans: Counter,
    stats: Stats,
    lateness: Histogram,
    reconcile_duration: Family<TaskLabels, Histogram>,
    reconcile_errors: Family<ClassLabels, Counter>,
    lifecycle_events: Family<OutcomeLabels, Counter>,
    pending_lifecycle_events: Gauge,
}

impl ControllerMetrics {
    /// Registers the metrics.
    #[must_use]
    pub fn new(registry: &mut Registry, clock: Clock) -> Self {
        let lateness = Histogram::new(LATENESS_BUCKETS);
        registry.register(
            "timer_lateness_seconds",
            "Delay from the deadline of a timer to the write of the new state",
            lateness.clone(),
        );
        let new_histogram: fn() -> Histogram = || Histogram::new(REQUEST_BUCKETS);
        let reconcile_duration = Family::<TaskLabels, Histogram>::new_with_constructor(new_histogram);
        for kind in TaskKind::VARIANTS {
            drop(reconcile_duration.get_or_create(&TaskLabels { task: kind.into() }));
        }
        registry.register(
            "reconcile_duration_seconds",
            "Duration of reconciliations by task",
            reconcile_duration.clone(),
        );
        let stats = Stats::default();
        registry.register_collector(Box::new(StatsCollector::new(stats.clone(), clock)));
        Self {
            released: registered(registry, "claims_released", "Claims that the leader released"),
            orphans: registered(
                registry,
                "orphans_collected",
                "Claims that the leader released because their create was admitted but never stored",
            ),
            stats,
            lateness,
            reconcile_duration,
            reconcile_errors: counters(
                registry,
                "reconcile_errors",
                "Failed reconciliations by error class",
                ErrorClass::VARIANTS.iter().map(|class| ClassLabels { class: class.into() }),
            ),
            lifecycle_events: counters(
                registry,
                "lifecycle_events",
                "Attempts to send lifecycle events to their sink, and events that were dropped, by outcome",
                EventOutcome::VARIANTS.iter().map(|outcome| OutcomeLabels { outcome: outcome.into() }),
            ),
            pending_lifecycle_events: registered(
                registry,
                "pending_lifecycle_events",
                "Lifecycle events that their sink has not accepted yet",
            ),
        }
    }

    /// Records a released claim; `is_orphan` if its create was never stored.
    pub fn released(&self, is_orphan: bool) {
        self.released.inc();
        if is_orphan {
            self.orphans.inc();
        }
    }

    /// The counts of the stored conversations, which a scrape reads.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Records the delay of a state change by a timer.
    pub fn late(&self, by: Duration) {
        self.lateness.observe(by.as_secs_f64());
    }

    /// Records a reconciliation.
    pub fn reconciled(&self, kind: TaskKind, duration: Duration, error: Option<ErrorClass>) {
        self.reconcile_duration.get_or_create(&TaskLabels { task: kind.into() }).observe(duration.as_secs_f64());
        if let Some(class) = error {
            self.reconcile_errors.get_or_create(&ClassLabels { class: class.into() }).inc();
        }
    }

    /// Records what has become of a lifecycle event.
    pub fn event_sent(&self, outcome: EventOutcome) {
        self.lifecycle_events.get_or_create(&OutcomeLabels { outcome: outcome.into() }).inc();
    }

    /// Sets the number of lifecycle events that the sink has not accepted yet.
    pub fn set_pending_events(&self, count: usize) {
        self.pending_lifecycle_events.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
