//! The serving certificate of the webhook. The operator issues and renews it, or reads it from files that another controller renews. A new
//! certificate is served without a restart.
//!
//! `rotation` decides the steps, as a pure function; `issue` issues certificates; `self_managed` and `files` do the I/O; `tls` configures the
//! listener.
//! No other module writes the Secret or the `caBundle`.

mod files;
mod issue;
mod metrics;
mod rotation;
mod self_managed;
mod tls;

pub use files::Files;
pub use metrics::CertificateMetrics;
pub use self_managed::{SelfManagedCertificate, Settings};
pub use tls::{Clients, Publisher, TlsError};
