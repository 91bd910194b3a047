//! Says on stderr what is being done: one line that is overwritten on a terminal, a line a step elsewhere.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Instant,
};

/// How wide the bar is, in characters.
const WIDTH: usize = 20;

/// What has been done of what there is to do.
pub struct Progress {
    started: Instant,
    is_terminal: bool,
    scenarios: usize,
    done: usize,
    scenario: String,
}

impl Progress {
    /// Nothing yet, of so many scenarios.
    pub fn new(scenarios: usize) -> Self {
        Self {
            started: Instant::now(),
            is_terminal: stderr().is_terminal(),
            scenarios,
            done: 0,
            scenario: String::new(),
        }
    }

    /// A scenario begins.
    pub fn begin(&mut self, number: u8, title: &str) {
        self.scenario = format!("{number}. {title}");
        self.step("starting");
    }

    /// A scenario has come to its end.
    pub fn end(&mut self) {
        self.done += 1;
        self.step("done");
        if self.is_terminal && self.done == self.scenarios {
            let _ = writeln!(stderr());
        }
    }

    /// A pair was measured: said at once, since the table comes late.
    pub fn pair(&self, pair: usize, (ours, baseline): (f64, f64)) {
        self.step(&format!("pair {pair}: {ours:.2} ÷ {baseline:.2} = {:.2}", ours / baseline));
    }

    /// The scenario goes on with this.
    pub fn step(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        let full = WIDTH * self.done / self.scenarios.max(1);
        let bar = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH - full));
        let line = format!("{bar} {:>2}:{:02} {}: {what}", seconds / 60, seconds % 60, self.scenario);
        // A progress line that cannot be written is no reason to stop.
        let _ = if self.is_terminal { write!(stderr(), "\r\x1b[K{line}") } else { writeln!(stderr(), "{line}") };
        let _ = stderr().flush();
    }
}
