//! The metric of the serving certificate.

use crate::api::Time;
use crate::telemetry::metrics::encode_gauge;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex, PoisonError};

/// The metric of the serving certificate. It is absent until a certificate is served. Clones share its value.
#[derive(Clone, Debug, Default)]
pub struct CertificateMetrics {
    expiry: Arc<Mutex<Option<Time>>>,
}

impl CertificateMetrics {
    /// Registers the metric.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_collector(Box::new(metrics.clone()));
        metrics
    }

    /// Sets the expiry of the certificate that is served.
    pub fn expiry(&self, expiry: Time) {
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner) = Some(expiry);
    }
}

impl Collector for CertificateMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let expiry = *self.expiry.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(expiry) = expiry else { return Ok(()) };
        encode_gauge(
            &mut encoder,
            "certificate_expiry_timestamp_seconds",
            "Expiry of the certificate that the webhook serves, in seconds since 1970",
            u64::try_from(expiry.timestamp().as_second()).unwrap_or_default(),
        )
    }
}
