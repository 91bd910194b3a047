//! The flags that all processes have, and how a process runs: its runtime, log and traces.

use super::{Error, duration};
use crate::run;
use crate::telemetry::logs;
use crate::telemetry::traces::Exporter;
use clap::Args;
use std::net::SocketAddr;
use std::time::Duration;

/// The timeout of the runtime's shutdown.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub struct Process {
    /// Address on which the process serves /livez, /readyz and /metrics over HTTP.
    #[arg(long, env = "SWITCHBOARD_HEALTH_ADDRESS", default_value = "[::]:8080")]
    pub health_address: SocketAddr,
    /// Duration for which new connections are accepted after a SIGTERM, until they are no longer routed to this replica, such as 5s.
    #[arg(long, env = "SWITCHBOARD_DRAIN_DELAY", default_value = "5s", value_parser = duration)]
    pub drain_delay: Duration,
    /// Endpoint to which traces are sent by OTLP (HTTP, protobuf), such as `http://collector.observability:4318`. If not set, no traces are sent.
    #[arg(long, env = "SWITCHBOARD_OTLP_ENDPOINT", value_parser = endpoint)]
    pub otlp_endpoint: Option<String>,
    /// Format of the log.
    #[arg(long, env = "SWITCHBOARD_LOG_FORMAT", default_value = "json")]
    pub log_format: logs::Format,
    /// Level of the log (off, error, warn, info, debug, trace), or directives such as info,switchboard=debug.
    #[arg(long, env = "SWITCHBOARD_LOG", default_value = "info")]
    pub log: String,
}

impl Process {
    /// Runs `process` with a runtime, and with log and traces as the flags say.
    pub fn run(&self, process: impl Future<Output = Result<(), run::Error>>) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let entered = runtime.enter();
        let exporter = self.otlp_endpoint.as_deref().map(Exporter::new).transpose();
        let exporter = exporter.map_err(|error| format!("--otlp-endpoint is not valid: {error}"))?;
        logs::init(self.log_format, &self.log, exporter.as_ref()).map_err(|error| {
            format!("--log is not valid: {error}; set a level such as info, or info,switchboard=debug")
        })?;
        drop(entered);
        let ended = runtime.block_on(process);
        if let Some(exporter) = exporter {
            exporter.shutdown();
        }
        // After this, nothing is logged. Blocking tasks, such as a DNS lookup, may not end in time.
        runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
        Ok(ended?)
    }
}

fn endpoint(text: &str) -> Result<String, String> {
    if text.starts_with("http://") {
        Ok(text.to_owned())
    } else {
        Err("must be an address such as http://collector.observability:4318; TLS is not supported".to_owned())
    }
}
