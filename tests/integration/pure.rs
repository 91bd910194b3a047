//! Tests that need no process and no network.

mod claims_model;
mod oracle;
mod schema;
