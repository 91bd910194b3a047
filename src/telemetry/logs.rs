//! Logs: text for people or JSON for programs. `SWITCHBOARD_LOG` sets the level, info by default.
//!
//! Addresses of contacts are personal data: log the name of the binding, which is a hash, and never an address. kube's client quotes objects
//! and responses, so its logs are always dropped.

use super::error_chain::ErrorChain;
use super::traces::Exporter;
use std::panic::PanicHookInfo;
use tracing::Subscriber;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Starts logging to stderr, including panics, and sends spans to `exporter`, if there is one. `filter` is a level, or directives in the
/// syntax of `tracing_subscriber::EnvFilter`; those for spans have no effect.
///
/// # Errors
/// If `filter` is not valid.
pub fn init(
    format: Format,
    filter: &str,
    exporter: Option<&Exporter>,
) -> Result<(), tracing_subscriber::filter::ParseError> {
    subscriber(format, filter, exporter)?.init();
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Writes logs, and sends spans to `exporter`. Without one, spans are disabled, so that they cost nothing: the filter of the logs rejects them.
/// The layers are a list, because an `Option` of a layer that is `None` would enable all spans.
fn subscriber(
    format: Format,
    filter: &str,
    exporter: Option<&Exporter>,
) -> Result<impl Subscriber + Send + Sync + use<>, tracing_subscriber::filter::ParseError> {
    let is_logged = filter_fn(|metadata| !metadata.is_span() && !metadata.target().starts_with("kube_client"));
    let mut layers = vec![lines(format).with_filter(EnvFilter::try_new(filter)?.and(is_logged)).boxed()];
    layers.extend(exporter.map(|exporter| exporter.layer().boxed()));
    Ok(tracing_subscriber::registry().with(layers))
}

/// Logs why the process exits, as one line in the same format. The filter does not apply, and [`init`] need not have been called.
pub fn fatal(format: Format, error: &(dyn std::error::Error + 'static)) {
    let unfiltered = tracing_subscriber::registry().with(lines(format));
    tracing::subscriber::with_default(unfiltered, || tracing::error!(error = %ErrorChain(error), "exiting"));
}

/// A layer that writes lines to stderr.
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

/// Logs a panic as one line.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(ToString::to_string);
    tracing::error!(location, panic = message, "panicked");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_is_disabled_without_an_exporter() {
        let subscriber = subscriber(Format::Json, "info", None).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            assert!(tracing::enabled!(tracing::Level::INFO));
            assert!(tracing::info_span!("span").is_disabled());
        });
    }
}
