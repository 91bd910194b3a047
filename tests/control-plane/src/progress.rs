//! Shows the progress of a long task on stderr, and its usual duration.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// Updates one line each second on a terminal. Writes a line every 30 seconds otherwise, so that it does not fill a log.
pub(crate) struct Progress {
    name: &'static str,
    state: &'static str,
    usual: Duration,
    started: Instant,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    /// Starts to show a task with this name, in this state (such as `building`) until it ends.
    pub(crate) fn new(name: &'static str, state: &'static str, usual: Duration) -> Self {
        let now = Instant::now();
        let progress = Self { name, state, usual, started: now, shown: now, terminal: io::stderr().is_terminal() };
        progress.write(state);
        progress
    }

    /// Updates the line if the interval has passed. The caller calls it often.
    pub(crate) fn show(&mut self) {
        let interval = Duration::from_secs(if self.terminal { 1 } else { 30 });
        if self.shown.elapsed() >= interval {
            self.shown = Instant::now();
            self.write(self.state);
        }
    }

    /// Shows the outcome of the task.
    pub(crate) fn end(&self, outcome: &str) {
        self.write(outcome);
        if self.terminal {
            say("");
        }
    }

    fn write(&self, state: &str) {
        let line = format!(
            "  {:23} {state:9} {:4} s  (usually {})",
            self.name,
            self.started.elapsed().as_secs(),
            about(self.usual)
        );
        if self.terminal {
            let _ = write!(io::stderr(), "\r{line}");
        } else {
            say(&line);
        }
    }
}

/// An approximate duration as text.
pub(crate) fn about(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..90 => format!("about {seconds} s"),
        seconds => format!("about {} min", seconds.div_ceil(60)),
    }
}

/// Writes a line to stderr. A test shows the output of `eprintln!` only after its end, but the user waits now.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
