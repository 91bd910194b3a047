//! All tests of the operator that need more than one module of it: one binary, so that they share clusters.
//!
//! The module says on which tier a test stands: `pure` needs nothing, `api_server` a real API server, `chart` the chart and what it
//! asks of a cluster, `processes` the operator as real processes on a real control plane, `plugin` the kubectl plugin as a user types
//! it, on the same control plane. A test that only waits leaves the processor to others, so more of them run at once than there are
//! cores: see `.cargo/config.toml`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

mod api_server;
mod chart;
mod common;
mod plugin;
mod processes;
mod pure;
mod testdata;
