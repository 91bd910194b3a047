//! The admission webhook, which the API server calls before it stores a conversation.
//!
//! The protocol of claims has no cache: each answer depends on what `claims` reads from etcd. Only a grant is taken from a watch. It does
//! not import the controller.
//!
//! - `server` is the transport: connections, TLS and HTTP/1.1; `connections` enforces the limits on connections;
//! - `router` is the HTTP interface, `bodies` reads bodies within a memory budget, and `outcome` maps each outcome to its HTTP status;
//! - `handler` decides a review, `grants` decides whether it may use its proxy address, and `review` parses and writes reviews.

mod bodies;
mod connections;
mod grants;
mod handler;
mod metrics;
mod outcome;
mod review;
mod router;
mod server;
#[cfg(test)]
mod test_server;

pub use grants::Grants;
pub use handler::AdmissionHandler;
pub use metrics::WebhookMetrics;
pub use outcome::AdmissionOutcome;
pub use review::{InvalidReview, Review, ReviewKind, respond};
pub use router::Router;
pub use server::{Limits, Shutdown, Tls, serve};
