//! Tests that need no process and no network.

mod api_reference;
mod book;
mod examples;
mod names;
mod oracle;
mod schema;
mod telephone_numbers;
