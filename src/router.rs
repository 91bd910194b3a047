//! The router: takes messages from sources, finds their conversation by the binding or creates one, and delivers them to sinks. It never
//! answers that a message was accepted before a sink has accepted it, and it stores nothing.
//!
//! - `handler` is the HTTP interface, on the transport of [`server`](crate::server); `outcome` has the outcomes and their HTTP status;
//! - [`source`] authenticates and parses requests; `sources` has the configured ones with their keys;
//! - `messages` delivers messages, and `data` has what their events say; `lanes` keeps the order of messages of one binding, and `delivered` recognises repeated ones;
//! - `way` executes the way of a message to its conversation, which [`inbound`](crate::core::inbound) decides;
//! - `known` has what the watches have shown, and `watcher` runs them;
//! - `conversations` reads, creates and reports the activity of conversations; `activity` tells when that is due.
//!
//! Sinks receive [`cloud_events`](crate::cloud_events). It does not import the webhook or the controller.

mod activity;
mod conversations;
mod data;
mod delivered;
mod handler;
mod known;
mod lanes;
mod messages;
mod metrics;
mod outcome;
pub mod source;
mod sources;
mod watcher;
mod way;

pub use conversations::Conversations;
pub use handler::{Handler, Limits};
pub use messages::Messages;
pub use metrics::RouterMetrics;
pub use sources::{Error as SourcesError, Settings as SourceSettings, Sources};
pub use watcher::{SharedKnown, run as watch};
pub use way::Ways;
