//! Metrics, logs, traces and Events. Nothing here makes decisions.

pub mod error_chain;
pub mod logs;
pub mod metrics;
pub mod traces;
