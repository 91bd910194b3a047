//! What the process tells of itself. It must not decide anything.

pub mod client_metrics;
pub mod error_chain;
pub mod health;
pub mod logs;
pub mod metrics;
pub mod traces;
