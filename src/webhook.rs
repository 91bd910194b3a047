//! The admission webhook, which the API server calls before it stores a conversation.
//!
//! The protocol of claims has no cache: each answer depends on what `claims` reads from etcd. Only a grant is taken from a watch. It does
//! not import the controller.
//!
//! - `router` is the HTTP interface, on the transport of [`server`](crate::server); `outcome` maps each outcome to its HTTP status, and
//!   `limits` has the limits on what clients use;
//! - `handler` decides a review, `grants` decides whether it may use its proxy address, and `review` parses and writes reviews.

#[cfg(test)]
mod connection_tests;
mod grants;
mod handler;
mod limits;
mod metrics;
mod outcome;
mod review;
mod router;
#[cfg(test)]
mod test_server;

pub use grants::Grants;
pub use handler::AdmissionHandler;
pub use limits::Limits;
pub use metrics::WebhookMetrics;
pub use outcome::AdmissionOutcome;
pub use review::{InvalidReview, Review, ReviewKind, respond};
pub use router::Router;
