//! Serves admission: the API server calls it before it stores a conversation.
//!
//! It has no cache: each answer depends on what `claims` reads from etcd. It does not know the controller.
//!
//! - `server` is the transport: connections, TLS and HTTP/1.1; `connections` enforces the limits on connections;
//! - `router` is the HTTP interface, `bodies` reads bodies within a budget, and `outcome` relates each outcome to its HTTP status;
//! - `handler` decides a review, and `review` parses and writes reviews.

mod bodies;
mod connections;
mod handler;
mod metrics;
mod outcome;
mod review;
mod router;
mod server;
#[cfg(test)]
mod test_server;

pub use handler::AdmissionHandler;
pub use metrics::WebhookMetrics;
pub use outcome::AdmissionOutcome;
pub use review::{Review, ReviewKind, InvalidReview, respond};
pub use router::Router;
pub use server::{Limits, Shutdown, Tls, serve};
