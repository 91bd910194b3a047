//! The command line: commands, flags and the environment, made into settings. It does no work of its own.

use crate::api::{address_binding_crd, conversation_crd};
use crate::telemetry::logs;
use crate::{leader, run};
use clap::{Args, Parser, Subcommand};
use data_encoding::BASE32_NOPAD;
use ring::rand::{SecureRandom, SystemRandom};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The shortest grace period. An API server stores what it admitted within min(34 s, `--request-timeout`) and etcd's commit, or
/// never: anything shorter could let a second holder in.
const SHORTEST_GRACE_PERIOD: Duration = Duration::from_secs(40);

/// Gives every open conversation its binding alone.
///
/// switchboard keeps Conversations (switchboard.dev/v1alpha1): a second open one for the same channel, contact and proxy address
/// is refused with error 48031, timers make conversations Inactive and Closed, and conditions tell what is in effect.
#[derive(Debug, Parser)]
#[command(name = "switchboard", version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the admission webhook, and keep conversations while this replica leads.
    Run(Box<Run>),
    /// Write the CustomResourceDefinitions as YAML.
    Crds {
        /// Write a file for each kind into this directory instead of printing them.
        #[arg(long)]
        directory: Option<PathBuf>,
    },
}

#[derive(Args, Debug)]
struct Run {
    /// Where the API server's reviews are answered, by HTTPS, at the path /admit.
    #[arg(long, env = "SWITCHBOARD_WEBHOOK_ADDRESS", default_value = "0.0.0.0:9443")]
    webhook_address: SocketAddr,
    /// The serving certificate with what it rests on, PEM.
    #[arg(long, env = "SWITCHBOARD_TLS_CERT_FILE", default_value = "/etc/switchboard/tls/tls.crt")]
    tls_cert_file: PathBuf,
    /// The key of the serving certificate, PEM.
    #[arg(long, env = "SWITCHBOARD_TLS_KEY_FILE", default_value = "/etc/switchboard/tls/tls.key")]
    tls_key_file: PathBuf,
    /// Where /livez and /readyz are answered, by HTTP.
    #[arg(long, env = "SWITCHBOARD_HEALTH_ADDRESS", default_value = "0.0.0.0:8080")]
    health_address: SocketAddr,
    /// The namespace of the Lease by which one replica leads.
    #[arg(long, env = "SWITCHBOARD_LEASE_NAMESPACE", default_value = "switchboard-system")]
    lease_namespace: String,
    /// The name of the Lease.
    #[arg(long, env = "SWITCHBOARD_LEASE_NAME", default_value = "switchboard")]
    lease_name: String,
    /// How long the other replicas wait for a leader that fell silent, in whole seconds such as 15s.
    #[arg(long, env = "SWITCHBOARD_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    lease_duration: Duration,
    /// What to call this replica in the Lease; something random is added, so that no two are the same.
    #[arg(long, env = "SWITCHBOARD_IDENTITY", default_value = "switchboard")]
    identity: String,
    /// How long a create that was admitted may take to be stored before its claim is collected. Not below 40s: what an API
    /// server admitted it stores within 34 s and etcd's commit, or never, and a claim must not be collected before.
    #[arg(long, env = "SWITCHBOARD_GRACE_PERIOD", default_value = "60s", value_parser = duration)]
    grace_period: Duration,
    /// Accept a grace period below 40s. For tests whose API server gives up sooner: it can cost the guarantee that a binding has
    /// one holder.
    #[arg(long, env = "SWITCHBOARD_UNSAFE_GRACE_PERIOD")]
    unsafe_grace_period: bool,
    /// How long after a SIGTERM reviews that are still routed here are answered, such as 5s.
    #[arg(long, env = "SWITCHBOARD_DRAIN_DELAY", default_value = "5s", value_parser = duration)]
    drain_delay: Duration,
    /// How the log is written.
    #[arg(long, env = "SWITCHBOARD_LOG_FORMAT", default_value = "json")]
    log_format: logs::Format,
    /// What the log tells: a level (off, error, warn, info, debug, trace) or directives such as info,switchboard=debug.
    #[arg(long, env = "SWITCHBOARD_LOG", default_value = "info,kube_client::client::builder=off")]
    log: String,
}

impl Cli {
    /// Does what the command line asks for.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run(run) => run.run(),
            Command::Crds { directory } => crds(directory.as_deref()),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "switchboard: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

type Error = Box<dyn std::error::Error>;

impl Run {
    fn run(self) -> Result<(), Error> {
        if self.grace_period < SHORTEST_GRACE_PERIOD && !self.unsafe_grace_period {
            return Err(
                "--grace-period must be at least 40s: what an API server admitted may be stored until 34 s later, and \
                        a claim that is collected before lets a second holder in"
                    .into(),
            );
        }
        logs::init(self.log_format, &self.log).map_err(|error| format!("--log cannot be read: {error}"))?;
        let settings = run::Settings {
            webhook_address: self.webhook_address,
            certificate: self.tls_cert_file,
            key: self.tls_key_file,
            health_address: self.health_address,
            lease: leader::Settings {
                namespace: self.lease_namespace,
                name: self.lease_name,
                identity: format!("{}_{}", self.identity, random_suffix()?),
                duration: self.lease_duration,
                renew_deadline: self.lease_duration * 2 / 3,
                retry_period: self.lease_duration * 2 / 15,
            },
            grace_period: self.grace_period,
            drain_delay: self.drain_delay,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(runtime.block_on(run::run(settings))?)
    }
}

fn random_suffix() -> Result<String, Error> {
    let mut bytes = [0; 5];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random numbers")?;
    Ok(BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

fn crds(directory: Option<&Path>) -> Result<(), Error> {
    for crd in [conversation_crd()?, address_binding_crd()?] {
        let yaml = serde_saphyr::to_string(&crd)?;
        match directory {
            Some(directory) => {
                let path = directory.join(format!("{}.yaml", crd.spec.names.plural));
                std::fs::write(&path, yaml).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            }
            None => write!(std::io::stdout(), "---\n{yaml}")?,
        }
    }
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration: crate::api::Duration = text.parse().map_err(|error: crate::api::DurationError| error.to_string())?;
    Ok(Duration::from_millis(duration.as_milliseconds()))
}
