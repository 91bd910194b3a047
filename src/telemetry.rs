//! The registry of metrics, logs and traces. This module makes no decisions.

pub mod error_chain;
pub mod logs;
pub mod metrics;
pub mod traces;
