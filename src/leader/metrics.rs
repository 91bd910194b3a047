//! The metric of leader election.

use super::Leadership;
use crate::telemetry::metrics::encode_gauge;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

#[derive(Debug)]
struct LeaderMetrics(Leadership);

/// Registers the metric, which is read from `leadership` when it is collected.
pub fn register(registry: &mut Registry, leadership: Leadership) {
    registry.register_collector(Box::new(LeaderMetrics(leadership)));
}

impl Collector for LeaderMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        encode_gauge(&mut encoder, "leader", "1 on the leader, otherwise 0", u64::from(self.0.is_leader()))
    }
}
