//! Logs: text for people or JSON for programs, by `SWITCHBOARD_LOG` or, by default, at level info.
//!
//! Addresses of contacts are personal data: log the name of the binding, which is a hash, and never an address.

use tracing_subscriber::EnvFilter;

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Starts logging to stderr, panics as well. `filter` is a level, or directives as of the crate `tracing-subscriber`.
///
/// # Errors
/// Where `filter` cannot be read.
pub fn init(format: Format, filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let logs = tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(filter)?).with_writer(std::io::stderr);
    // One line like any other, and not in a form of its own.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a panic")));
    match format {
        Format::Text => logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        Format::Json => logs.json().init(),
    }
    Ok(())
}
