//! Shows on stderr how far something is that takes long, and how long it usually takes.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// One line a second that is written over on a terminal; a line every half a minute where that would fill a log.
pub(crate) struct Progress {
    name: &'static str,
    state: &'static str,
    usual: Duration,
    started: Instant,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    /// Something called `name` begins; until it ends it is in this state (`building`).
    pub(crate) fn new(name: &'static str, state: &'static str, usual: Duration) -> Self {
        let now = Instant::now();
        let progress = Self { name, state, usual, started: now, shown: now, terminal: io::stderr().is_terminal() };
        progress.write(state);
        progress
    }

    /// It still goes on. To be called often.
    pub(crate) fn show(&mut self) {
        let interval = Duration::from_secs(if self.terminal { 1 } else { 30 });
        if self.shown.elapsed() >= interval {
            self.shown = Instant::now();
            self.write(self.state);
        }
    }

    /// It has ended like that.
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

/// A duration, as roughly as it is known.
pub(crate) fn about(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..90 => format!("about {seconds} s"),
        seconds => format!("about {} min", seconds.div_ceil(60)),
    }
}

/// To stderr itself: what `eprintln!` prints in a test is shown only after the test, and this is for who waits.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
