//! The metrics of the self-check.

use crate::leader::Leadership;
use crate::telemetry::metrics::{encode_gauge, registered};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex, PoisonError};

/// The metrics of the self-check. Clones share their values.
#[derive(Clone, Debug)]
pub struct SelfCheckMetrics {
    failures: Counter,
    is_webhook_in_force: Arc<Mutex<Option<bool>>>,
}

#[derive(Debug)]
struct InForce {
    leadership: Leadership,
    is_webhook_in_force: Arc<Mutex<Option<bool>>>,
}

impl SelfCheckMetrics {
    /// Registers the metrics. Whether the webhook is in force is served only while this replica is the leader, according to `leadership`.
    #[must_use]
    pub fn new(registry: &mut Registry, leadership: Leadership) -> Self {
        let failures = registered(
            registry,
            "self_check_failures",
            "Self-checks that failed because the webhook or the API server could not be reached",
        );
        let is_webhook_in_force = Arc::default();
        registry.register_collector(Box::new(InForce {
            leadership,
            is_webhook_in_force: Arc::clone(&is_webhook_in_force),
        }));
        Self { failures, is_webhook_in_force }
    }

    /// Sets whether the webhook is in force; `None` if this is unknown.
    pub fn in_force(&self, is_in_force: Option<bool>) {
        *self.is_webhook_in_force.lock().unwrap_or_else(PoisonError::into_inner) = is_in_force;
    }

    /// Records a self-check without a result.
    pub fn failed(&self) {
        self.failures.inc();
        self.in_force(None);
    }
}

impl Collector for InForce {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let is_in_force = *self.is_webhook_in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(is_in_force) = is_in_force.filter(|_| self.leadership.is_leader()) else { return Ok(()) };
        encode_gauge(
            &mut encoder,
            "webhook_in_force",
            "1 if the webhook denied a second holder in the last self-check, 0 if it did not; absent on standby replicas, if no binding is \
             held, and after a failed self-check",
            u64::from(is_in_force),
        )
    }
}
