//! Shows the progress on stderr: one line that is updated on a terminal, otherwise one line per step.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Instant,
};

/// The width of the bar in characters.
const WIDTH: usize = 20;

/// The progress of the run.
pub struct Progress {
    started: Instant,
    is_terminal: bool,
    scenarios: usize,
    done: usize,
    scenario: String,
}

impl Progress {
    /// Starts with this number of scenarios.
    pub fn new(scenarios: usize) -> Self {
        Self {
            started: Instant::now(),
            is_terminal: stderr().is_terminal(),
            scenarios,
            done: 0,
            scenario: String::new(),
        }
    }

    /// Shows that a scenario begins.
    pub fn begin(&mut self, number: u8, title: &str) {
        self.scenario = format!("{number}. {title}");
        self.step("starting");
    }

    /// Shows that the scenario is complete.
    pub fn end(&mut self) {
        self.done += 1;
        self.step("done");
        if self.is_terminal && self.done == self.scenarios {
            let _ = writeln!(stderr());
        }
    }

    /// Shows a measured pair immediately, because the table is printed at the end.
    pub fn pair(&self, pair: usize, (ours, baseline): (f64, f64)) {
        self.step(&format!("pair {pair}: {ours:.2} ÷ {baseline:.2} = {:.2}", ours / baseline));
    }

    /// Shows the current step of the scenario.
    pub fn step(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        let full = WIDTH * self.done / self.scenarios.max(1);
        let bar = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH - full));
        let line = format!("{bar} {:>2}:{:02} {}: {what}", seconds / 60, seconds % 60, self.scenario);
        // A failed write of a progress line must not stop the run.
        let _ = if self.is_terminal { write!(stderr(), "\r\x1b[K{line}") } else { writeln!(stderr(), "{line}") };
        let _ = stderr().flush();
    }
}
