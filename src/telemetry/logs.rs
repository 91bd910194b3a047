//! Logs: text for people or JSON for programs, by `SWITCHBOARD_LOG` or, by default, at level info.
//!
//! Addresses of contacts are personal data: log the name of the binding, which is a hash, and never an address. kube's client quotes
//! objects and answers, so that it logs nothing, whatever the filter says.

use super::traces::Exporter;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Starts logging to stderr, panics as well, and handing spans to `exporter`, where there is one. `filter` is a level, or directives
/// as of the crate `tracing-subscriber`.
///
/// # Errors
/// Where `filter` cannot be read.
pub fn init(
    format: Format,
    filter: &str,
    exporter: Option<&Exporter>,
) -> Result<(), tracing_subscriber::filter::ParseError> {
    // One line like any other, and not in a form of its own.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a panic")));
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match format {
        Format::Text => logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        Format::Json => logs.json().boxed(),
    };
    let quotes_no_object = filter_fn(|metadata| !metadata.target().starts_with("kube_client"));
    let logs = logs.with_filter(EnvFilter::try_new(filter)?.and(quotes_no_object));
    tracing_subscriber::registry().with(logs).with(exporter.map(Exporter::layer)).init();
    Ok(())
}
