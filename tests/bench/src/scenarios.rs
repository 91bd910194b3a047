//! The scenarios, one per file.

mod alternatives;
mod calls;
mod creates;
mod deadlines;
mod inbound;
mod latency;
mod memory;
mod proxy_addresses;
mod races;
mod ready;
mod restart;

use crate::{error::Result, report::Row, world::Bench};

/// A scenario of the benchmark.
pub struct Scenario {
    /// The number that selects it.
    pub number: u8,
    /// A short description.
    pub title: &'static str,
    /// Runs the measurement.
    pub run: fn(&Bench) -> Result<Vec<Row>>,
}

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario { number: 1, title: "creates a second", run: creates::run },
    Scenario { number: 2, title: "created and Ready", run: ready::run },
    Scenario { number: 3, title: "latency by stored conversations", run: latency::run },
    Scenario { number: 4, title: "races for one binding", run: races::run },
    Scenario { number: 5, title: "memory", run: memory::run },
    Scenario { number: 6, title: "restart", run: restart::run },
    Scenario { number: 7, title: "deadlines", run: deadlines::run },
    Scenario { number: 8, title: "API calls", run: calls::run },
    Scenario { number: 9, title: "alternatives", run: alternatives::run },
    Scenario { number: 10, title: "proxy addresses", run: proxy_addresses::run },
    Scenario { number: 11, title: "inbound messages", run: inbound::run },
];
