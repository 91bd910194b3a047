//! The metrics of writes to claims.

use crate::telemetry::metrics::counters;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use strum::{IntoStaticStr, VariantArray};

/// The operation of a write to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Operation {
    /// It creates the claim.
    Create,
    /// It replaces the spec of the claim.
    Replace,
    /// It deletes the claim.
    Delete,
}

/// The outcome of a write to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum WriteOutcome {
    /// It was applied.
    Applied,
    /// A precondition failed.
    Conflict,
    /// The request to the API server failed.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    operation: &'static str,
    outcome: &'static str,
}

impl WriteLabels {
    fn new(operation: Operation, outcome: WriteOutcome) -> Self {
        Self { operation: operation.into(), outcome: outcome.into() }
    }
}

/// The metrics of writes to claims. Clones share their values.
#[derive(Clone, Debug)]
pub struct ClaimMetrics {
    writes: Family<WriteLabels, Counter>,
}

impl ClaimMetrics {
    /// Registers the metrics.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let outcomes =
            |operation| WriteOutcome::VARIANTS.iter().map(move |outcome| WriteLabels::new(operation, *outcome));
        Self {
            writes: counters(
                registry,
                "claim_writes",
                "Writes of claims by operation and outcome",
                Operation::VARIANTS.iter().flat_map(|operation| outcomes(*operation)),
            ),
        }
    }

    /// Records a write.
    pub fn written(&self, operation: Operation, outcome: WriteOutcome) {
        self.writes.get_or_create(&WriteLabels::new(operation, outcome)).inc();
    }
}
