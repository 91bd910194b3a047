//! Logs: text for people or JSON for programs, by `SWITCHBOARD_LOG` or, by default, at level info.
//!
//! Addresses of contacts are personal data: log the name of the binding, which is a hash, and never an address. kube's client quotes
//! objects and answers, so that it logs nothing, whatever the filter says.

use super::error_chain::ErrorChain;
use super::traces::Exporter;
use std::panic::PanicHookInfo;
use tracing::Subscriber;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
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
    let quotes_no_object = filter_fn(|metadata| !metadata.target().starts_with("kube_client"));
    let logs = lines(format).with_filter(EnvFilter::try_new(filter)?.and(quotes_no_object));
    tracing_subscriber::registry().with(logs).with(exporter.map(Exporter::layer)).init();
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Writes why the process ends: one line in the form of the others, whatever the filter says, and also before [`init`].
pub fn fatal(format: Format, error: &(dyn std::error::Error + 'static)) {
    let unfiltered = tracing_subscriber::registry().with(lines(format));
    tracing::subscriber::with_default(unfiltered, || tracing::error!(error = %ErrorChain(error), "exiting"));
}

/// Writes lines to stderr.
fn lines<S>(format: Format) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        Format::Json => lines.json().boxed(),
    }
}

/// Logs a panic as one line like any other.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(ToString::to_string);
    tracing::error!(location, panic = message, "panicked");
}
