//! switchboard: a Kubernetes operator that gives every open conversation its binding alone.
//!
#![doc = "See ARCHITECTURE.md."]

pub mod api;
pub mod core;
pub mod claims;
pub mod clock;
pub mod webhook;
