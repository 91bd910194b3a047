//! switchboard: a Kubernetes operator that gives every open conversation its binding alone.
//!
//! Data flows one way. A request or a watch event comes in at the rim, is made into plain values, a pure function decides, and
//! the rim writes:
//!
//! - [`api`] is what users write and read: the two kinds and the rules of their schemas;
//! - [`core`] decides, from plain values: addresses, bindings, the protocol of claims, the lifecycle, refusals;
//! - [`claims`] is the only writer of AddressBindings, and carries the protocol out against the API server;
//! - [`webhook`] serves admission, and [`controller`] keeps what is stored; they do not know each other;
//! - [`certificates`] keeps what the webhook serves with, [`leader`] keeps the Lease, [`self_check`] asks whether the webhook is in force, [`clock`] reads the time, `listener` takes connections in, [`telemetry`] tells what happens;
//! - [`run`] wires these into one process, whose parts `supervisor` keeps together, and [`cli`] makes settings of a command line.
//!
//! ARCHITECTURE.md tells why, and why no binding can have two holders.

pub mod api;
pub mod certificates;
pub mod claims;
pub mod cli;
pub mod clock;
pub mod controller;
pub mod core;
pub mod leader;
mod listener;
pub mod run;
pub mod self_check;
mod supervisor;
pub mod telemetry;
pub mod webhook;
