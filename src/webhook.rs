//! Serving admission: the API server asks here before it stores a conversation.
//!
//! It keeps no cache: each answer rests on what `claims` reads from etcd. It must not know the controller.

mod bodies;
mod connections;
mod review;
mod server;
mod service;

pub use review::{Review, ReviewKind, Unreadable, respond};
pub use server::{Limits, Shutdown, Tls, serve};
pub use service::AdmissionHandler;
