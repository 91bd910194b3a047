//! The flags of `switchboard route`.

use super::Error;
use super::process::Process;
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
    /// Path of the directory whose files are the secrets by which events are signed, as Standard Webhooks define them (whsec_…). Each of them
    /// signs, so that they can be replaced one after the other. If not set, events are not signed.
    #[arg(long, env = "SWITCHBOARD_SIGNING_SECRETS_DIRECTORY")]
    signing_secrets_directory: Option<PathBuf>,
    /// URL of the sink that is told about messages that no ProxyAddress accepts. If not set, they are answered with a 404.
    #[arg(long, env = "SWITCHBOARD_DEAD_LETTER_SINK", value_parser = sink)]
    dead_letter_sink: Option<Uri>,
    /// Path of certificate authorities, as PEM, that are trusted for sinks in addition to the public ones.
    #[arg(long, env = "SWITCHBOARD_SINK_CA_FILE")]
    sink_ca_file: Option<PathBuf>,
    #[command(flatten)]
    pub process: Process,
}

impl Route {
    pub fn run(self) -> Result<(), Error> {
        let settings = run::RouteSettings {
            inbound_address: self.inbound_address,
            sources: SourceSettings {
                file: self.sources_file,
                secrets: self.secrets_directory,
                signing: self.signing_secrets_directory,
            },
            dead_letter_sink: self.dead_letter_sink,
            sink_authorities: self.sink_ca_file,
            health_address: self.process.health_address,
            drain_delay: self.process.drain_delay,
        };
        self.process.run(run::route(settings))
    }
}

fn sink(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    if is_http && uri.host().is_some() {
        Ok(uri)
    } else {
        Err("must be a URL such as http://desk.sales.svc/messages".to_owned())
    }
}
