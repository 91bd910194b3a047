//! Decisions, as functions of plain values: no client, no async, no clock, no logging.
//!
//! The webhook, the controller and the tests all call these functions; no rule exists twice.

pub mod address;
pub mod binding;
pub mod claim;
pub mod denial;
pub mod effective;
pub mod inbound;
pub mod lifecycle;
pub mod manager;
pub mod proxy_address;
