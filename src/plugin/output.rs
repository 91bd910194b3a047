//! Where a command writes: stdout for its result, stderr for notes and warnings, each with colours only on a terminal.

use super::error::Error;
use crate::api::State;
use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde::Serialize;
use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};

/// The format of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For people, with more columns or lines.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Only NAMESPACE/NAME of each conversation, one per line: the form in which the commands take a conversation.
    Name,
}

/// Whether a stream gets colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Styles {
    is_colored: bool,
}

impl Styles {
    /// The header of a table.
    pub const HEADER: Style = Style::new().bold();
    /// The word before a warning, and what needs attention soon.
    pub const ATTENTION: Style = AnsiColor::Yellow.on_default();
    /// The word before an error, and removed lines.
    pub const ERROR: Style = AnsiColor::Red.on_default();
    /// What is as it should be, and added lines.
    pub const GOOD: Style = AnsiColor::Green.on_default();
    /// What is over.
    pub const FADED: Style = Style::new().dimmed();

    /// Colours only on a terminal that has them, unless the user opts out: see <https://no-color.org>.
    pub fn of(is_terminal: bool, no_color: Option<OsString>, terminal: Option<OsString>) -> Self {
        let opts_out = no_color.is_some_and(|value| !value.is_empty());
        Self { is_colored: is_terminal && !opts_out && terminal.is_none_or(|name| name != "dumb") }
    }

    fn on(is_terminal: bool) -> Self {
        Self::of(is_terminal, std::env::var_os("NO_COLOR"), std::env::var_os("TERM"))
    }

    /// The styles of stdout.
    pub fn of_stdout() -> Self {
        Self::on(std::io::stdout().is_terminal())
    }

    fn of_stderr() -> Self {
        Self::on(std::io::stderr().is_terminal())
    }

    /// The style of a state.
    pub const fn of_state(state: State) -> Style {
        match state {
            State::Active => Self::GOOD,
            State::Inactive => Self::ATTENTION,
            State::Closed => Self::FADED,
        }
    }

    /// `style`, or none without colours.
    pub fn choose(self, style: Style) -> Style {
        if self.is_colored { style } else { Style::new() }
    }
}

/// Writes the result of a command. A reader that closes the pipe, as `head` does, is no error.
pub fn print(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// `value` as JSON, as kubectl writes it.
pub fn json(value: &impl Serialize) -> Result<String, Error> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// `value` as YAML.
pub fn yaml(value: &impl Serialize) -> Result<String, Error> {
    Ok(serde_saphyr::to_string(value)?)
}

/// Writes a line to stderr, after a word such as `Warning` in its style.
fn say(word: &str, style: Style, text: &str) {
    let style = Styles::of_stderr().choose(style);
    // There is nowhere to report it if this fails.
    let _ = writeln!(std::io::stderr(), "{style}{word}:{style:#} {text}");
}

/// Writes a remark that does not belong to the result.
pub fn note(text: &str) {
    say("Note", Styles::HEADER, text);
}

/// Writes a warning, as kubectl does.
pub fn warn(text: &str) {
    say("Warning", Styles::ATTENTION, text);
}

/// Writes the error with which the command ends.
pub fn fail(error: &Error) {
    say("error", Styles::ERROR, &error.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_need_a_terminal_and_no_objection() {
        let is_colored = |is_terminal, no_color: Option<&str>, terminal: Option<&str>| {
            Styles::of(is_terminal, no_color.map(Into::into), terminal.map(Into::into)).is_colored
        };
        assert!(is_colored(true, None, Some("xterm")) && is_colored(true, Some(""), None));
        assert!(!is_colored(false, None, Some("xterm")));
        assert!(!is_colored(true, Some("1"), Some("xterm")));
        assert!(!is_colored(true, None, Some("dumb")));
    }
}
