//! The metrics of the connections to a server.

use super::connections::ConnectionClose;
use crate::telemetry::metrics::{counters, registered};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use strum::VariantArray;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl From<ConnectionClose> for ReasonLabels {
    fn from(reason: ConnectionClose) -> Self {
        Self { reason: reason.as_str() }
    }
}

/// The metrics of the connections. Clones share their values.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    open: Gauge,
    closed: Family<ReasonLabels, Counter>,
}

impl ConnectionMetrics {
    /// Registers the metrics of the server `name`, such as `webhook`.
    pub fn new(registry: &mut Registry, name: &str) -> Self {
        Self {
            open: registered(registry, &format!("{name}_connections"), &format!("Open connections to the {name}")),
            closed: counters(
                registry,
                &format!("{name}_connections_closed"),
                &format!("Connections that the {name} closed, by the limit that they exceeded"),
                ConnectionClose::VARIANTS.iter().map(|reason| (*reason).into()),
            ),
        }
    }

    /// Sets the number of open connections.
    pub fn open(&self, count: usize) {
        self.open.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Records a connection that was closed because of a limit.
    pub fn closed(&self, reason: ConnectionClose) {
        self.closed.get_or_create(&reason.into()).inc();
    }
}
