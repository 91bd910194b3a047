//! The registry of metrics and its encoding. Each component defines and registers its own metrics; METRICS.md documents all of them, and
//! a test compares it with the output of `/metrics`.
//!
//! docs/telemetry.md has the rules for names and labels.

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};
use std::fmt::{Debug, Error};
use std::hash::Hash;

/// The media type of the output of [`encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that was built, if the build sets `SWITCHBOARD_COMMIT`.
pub const COMMIT: &str = match option_env!("SWITCHBOARD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Bucket boundaries, in seconds, for durations that include one or two requests to the API server.
pub(crate) const REQUEST_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A registry that contains the build information only. Components register their metrics in it.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::with_prefix("switchboard");
    registry.register(
        "build",
        "Version and commit of the operator",
        Info::new([("version", VERSION), ("commit", COMMIT)]),
    );
    registry
}

/// Encodes the metrics as text of the type [`CONTENT_TYPE`].
///
/// # Errors
/// Never in practice: writing to a string does not fail.
pub fn encode(registry: &Registry) -> Result<String, Error> {
    let mut encoded = String::new();
    text::encode(&mut encoded, registry)?;
    Ok(encoded)
}

/// Registers a family of counters, and initializes the counter of each of `labels` to 0.
pub(crate) fn counters<L>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    labels: impl IntoIterator<Item = L>,
) -> Family<L, Counter>
where
    L: Clone + Debug + Eq + Hash + EncodeLabelSet + Send + Sync + 'static,
{
    let family: Family<L, Counter> = registered(registry, name, help);
    for labels in labels {
        drop(family.get_or_create(&labels));
    }
    family
}

/// Registers a new metric.
pub(crate) fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Encodes a gauge whose value is computed at scrape.
pub(crate) fn encode_gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> Result<(), Error> {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}
