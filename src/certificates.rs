//! The serving certificate of the webhook: made and renewed by the operator itself, or read from files that somebody else renews.
//! Either way a new one is served without a restart.
//!
//! [`rotation`] decides, purely; [`issue`] makes certificates; [`keeper`] and [`files`] carry out. Nobody else touches the Secret
//! or the `caBundle`.

mod files;
mod issue;
mod rotation;
mod self_managed;
mod tls;

pub use files::Files;
pub use self_managed::{SelfManagedCertificate, Settings};
pub use tls::{Clients, Publisher, TlsError};
