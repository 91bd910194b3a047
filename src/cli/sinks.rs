//! The flags of the client of the sinks, which the operator and the router have.

use crate::run::SinkSettings;
use clap::Args;
use hyper::Uri;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct SinkClient {
    /// Path of the directory whose files are the secrets by which events are signed, as Standard Webhooks define them (whsec_…). Each of them
    /// signs, so that they can be replaced one after the other. If not set, events are not signed.
    #[arg(long, env = "SWITCHBOARD_SIGNING_SECRETS_DIRECTORY")]
    signing_secrets_directory: Option<PathBuf>,
    /// Path of certificate authorities, as PEM, that are trusted for sinks in addition to the public ones.
    #[arg(long, env = "SWITCHBOARD_SINK_CA_FILE")]
    sink_ca_file: Option<PathBuf>,
}

impl SinkClient {
    /// Whether a flag is set.
    pub fn is_set(&self) -> bool {
        let Self { signing_secrets_directory, sink_ca_file } = self;
        signing_secrets_directory.is_some() || sink_ca_file.is_some()
    }

    /// The settings of the client.
    pub fn settings(self) -> SinkSettings {
        let Self { signing_secrets_directory, sink_ca_file } = self;
        SinkSettings { signing_secrets: signing_secrets_directory, authorities: sink_ca_file }
    }
}

/// The URL of a sink.
pub fn sink(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    if is_http && uri.host().is_some() {
        Ok(uri)
    } else {
        Err("must be a URL such as http://desk.sales.svc/messages".to_owned())
    }
}
