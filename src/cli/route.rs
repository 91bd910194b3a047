//! The flags of `switchboard route`.

use super::Error;
use super::process::Process;
use super::sinks::{SinkClient, sink};
use crate::router::SourceSettings;
use crate::run;
use clap::Args;
use hyper::Uri;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct Route {
    /// Address on which the router receives messages over HTTP, at the path /v1/sources/SOURCE. TLS ends before it, at an Ingress or a Gateway.
    #[arg(long, env = "SWITCHBOARD_INBOUND_ADDRESS", default_value = "[::]:8000")]
    inbound_address: SocketAddr,
    /// Path of the file that lists the sources as YAML: `NAME: {type: Twilio, publicURL: "https://…"}`. The types are `Twilio`, `Meta`
    /// and `CloudEvents`.
    #[arg(long, env = "SWITCHBOARD_SOURCES_FILE", default_value = "/etc/switchboard/sources.yaml")]
    sources_file: PathBuf,
    /// Path of the directory with one directory for each source, whose files are its keys. Changes are loaded without a restart.
    #[arg(long, env = "SWITCHBOARD_SECRETS_DIRECTORY", default_value = "/etc/switchboard/secrets")]
    secrets_directory: PathBuf,
    /// URL of the sink that is told about messages that no ProxyAddress accepts. If not set, they are answered with a 404.
    #[arg(long, env = "SWITCHBOARD_DEAD_LETTER_SINK", value_parser = sink)]
    dead_letter_sink: Option<Uri>,
    #[command(flatten)]
    sink_client: SinkClient,
    #[command(flatten)]
    pub process: Process,
}

impl Route {
    pub fn run(self) -> Result<(), Error> {
        let settings = run::RouteSettings {
            inbound_address: self.inbound_address,
            sources: SourceSettings { file: self.sources_file, secrets: self.secrets_directory },
            dead_letter_sink: self.dead_letter_sink,
            sinks: self.sink_client.settings(),
            health_address: self.process.health_address,
            drain_delay: self.process.drain_delay,
        };
        self.process.run(run::route(settings))
    }
}
