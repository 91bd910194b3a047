//! The command line: commands, flags and the environment, made into settings, and the CRDs and completions written out. Nothing here
//! knows an API server.

use crate::api::{address_binding_crd, conversation_crd};
use crate::certificates::{self, Clients, Files};
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::logs;
use crate::telemetry::metrics::{COMMIT, VERSION};
use crate::telemetry::traces::Exporter;
use crate::{leader, run};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use data_encoding::BASE32_NOPAD;
use ring::rand::{SecureRandom, SystemRandom};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

/// The shortest grace period. An API server stores what it admitted within min(34 s, `--request-timeout`) and etcd's commit, or
/// never: anything shorter could let a second holder in.
const SHORTEST_GRACE_PERIOD: Duration = Duration::from_secs(40);

/// The shortest lease. A Lease records whole seconds.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// How long tasks may take to notice that the process ends.
const LAST_TASKS_TIMEOUT: Duration = Duration::from_secs(1);

/// Gives every open conversation its binding alone.
///
/// switchboard keeps Conversations (switchboard.dev/v1alpha1): a second open one for the same channel, contact and proxy address
/// is refused with error 48031, timers make conversations Inactive and Closed, and conditions tell what is in effect.
#[derive(Debug, Parser)]
#[command(name = "switchboard", version, long_version = LONG_VERSION.as_str(), max_term_width = 120, after_long_help = MORE)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The versions of Kubernetes on which the tests passed, the oldest first: `make test` runs on the last one, `make test-versions` on
/// all of them. A test compares them with what those build.
const TESTED_WITH: [&str; 4] = ["1.31.14", "1.33.13", "1.35.4", "1.37.2"];

/// The first Kubernetes that has all that is used of it, as the chart says.
const OLDEST: &str = "1.31";

/// What `--version` says.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let tested_with = TESTED_WITH.join(", ");
    format!("{VERSION}\ncommit {COMMIT}\nfor Kubernetes {OLDEST} and later, tested with {tested_with}")
});

const MORE: &str = "\
Examples:
  switchboard run                                what the chart's Deployment runs
  switchboard run --log=info,switchboard=debug   the same, and more of what it decides
  switchboard crds | kubectl apply --server-side --filename=-
  switchboard completions bash > /etc/bash_completion.d/switchboard

Each flag of `run` can be given by an environment variable instead, which `switchboard run --help` names.

Exit codes:
  0  the work is done: for `run`, a SIGTERM or SIGINT came, and the shutdown went well
  1  it cannot go on: the last line on stderr says why
     `run`: also a second SIGTERM or SIGINT, or a shutdown that goes on for 18s after the drain delay
  2  the command line cannot be read

While the API server cannot be reached, `run` tries again and does not end: /readyz says why.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the admission webhook, and keep conversations while this replica leads.
    Run(Box<Run>),
    /// Ask the API server by a dry run whether a conversation can be created: whether the webhook answers it. Nothing is stored.
    Check {
        /// The namespace in which to ask; whoever asks must be allowed to create conversations there.
        #[arg(long, env = "SWITCHBOARD_NAMESPACE", default_value = "switchboard-system")]
        namespace: String,
    },
    /// Write the CustomResourceDefinitions as YAML.
    Crds {
        /// Write a file for each kind into this directory instead of printing them.
        #[arg(long)]
        directory: Option<PathBuf>,
    },
    /// Write a script that completes this command line in a shell.
    Completions {
        /// For which shell.
        shell: Shell,
    },
}

#[derive(Args, Debug)]
struct Run {
    /// Where the API server's reviews are answered, by HTTPS, at the path /admit.
    #[arg(long, env = "SWITCHBOARD_WEBHOOK_ADDRESS", default_value = "[::]:9443")]
    webhook_address: SocketAddr,
    /// The serving certificate with what it rests on, PEM, where somebody else renews it: cert-manager, say. It is read again
    /// when it changes. Without it the operator makes a certificate, keeps it in a Secret, and writes the caBundle.
    #[arg(long, env = "SWITCHBOARD_TLS_CERT_FILE", requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// The key of that certificate, PEM.
    #[arg(long, env = "SWITCHBOARD_TLS_KEY_FILE", requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,
    /// The Secret in which the operator keeps the certificate that it makes.
    #[arg(long, env = "SWITCHBOARD_TLS_SECRET_NAME", default_value = "switchboard-webhook-tls")]
    tls_secret_name: String,
    /// How long a certificate that the operator makes is valid, such as 2160h. It is renewed at two thirds of that.
    #[arg(long, env = "SWITCHBOARD_CERTIFICATE_LIFE", default_value = "2160h", value_parser = duration)]
    certificate_life: Duration,
    /// The ValidatingWebhookConfiguration whose caBundle the operator writes.
    #[arg(long, env = "SWITCHBOARD_WEBHOOK_CONFIGURATION", default_value = "switchboard")]
    webhook_configuration: String,
    /// The DNS names and IP addresses at which the API server calls the webhook, separated by commas
    /// [default: switchboard.NAMESPACE.svc]
    #[arg(long, env = "SWITCHBOARD_WEBHOOK_DNS_NAME", value_delimiter = ',')]
    webhook_dns_name: Vec<String>,
    /// The CA of those who may call the webhook, PEM: whoever has no certificate of its is turned away. Without it, everybody
    /// who reaches the port may call. The API server shows a certificate only where it was configured to.
    #[arg(long, env = "SWITCHBOARD_CLIENT_CA_FILE")]
    client_ca_file: Option<PathBuf>,
    /// The common names that their certificates may have, separated by commas; none given: any.
    #[arg(long, env = "SWITCHBOARD_CLIENT_NAME", value_delimiter = ',', requires = "client_ca_file")]
    client_name: Vec<String>,
    /// Where /livez, /readyz and /metrics are answered, by HTTP.
    #[arg(long, env = "SWITCHBOARD_HEALTH_ADDRESS", default_value = "[::]:8080")]
    health_address: SocketAddr,
    /// The namespace that the operator runs in: of its Secret, and of its Lease.
    #[arg(long, env = "SWITCHBOARD_NAMESPACE", default_value = "switchboard-system")]
    namespace: String,
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
    /// Where traces are sent by OTLP (HTTP, protobuf), such as `http://collector.observability:4318`. Without it nowhere.
    #[arg(long, env = "SWITCHBOARD_OTLP_ENDPOINT", value_parser = endpoint)]
    otlp_endpoint: Option<String>,
    /// How the log is written.
    #[arg(long, env = "SWITCHBOARD_LOG_FORMAT", default_value = "json")]
    log_format: logs::Format,
    /// What the log tells: a level (off, error, warn, info, debug, trace) or directives such as info,switchboard=debug.
    #[arg(long, env = "SWITCHBOARD_LOG", default_value = "info")]
    log: String,
}

impl Cli {
    /// Does what the command line asks for.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run(run) => {
                let format = run.log_format;
                return match run.run() {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(error) => {
                        logs::fatal(format, error.as_ref());
                        ExitCode::FAILURE
                    }
                };
            }
            Command::Check { namespace } => check(&namespace),
            Command::Crds { directory } => crds(directory.as_deref()),
            Command::Completions { shell } => completions(shell),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "switchboard: {}", ErrorChain(error.as_ref()));
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
        if self.lease_duration < SHORTEST_LEASE || self.lease_duration.subsec_nanos() != 0 {
            return Err("--lease-duration must be whole seconds, and at least 2s: a leader has to renew several times within it".into());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let entered = runtime.enter();
        let exporter = self.otlp_endpoint.as_deref().map(Exporter::new).transpose();
        let exporter = exporter.map_err(|error| format!("--otlp-endpoint cannot be used: {error}"))?;
        logs::init(self.log_format, &self.log, exporter.as_ref()).map_err(|error| {
            format!("--log cannot be read: {error}; give a level such as info, or info,switchboard=debug")
        })?;
        drop(entered);
        let certificate = match self.tls_cert_file.zip(self.tls_key_file) {
            Some((certificate, key)) => run::Certificate::Files(Files { certificate, key }),
            None => run::Certificate::Kept(certificates::Settings {
                namespace: self.namespace.clone(),
                secret: self.tls_secret_name,
                configuration: self.webhook_configuration,
                names: match &self.webhook_dns_name[..] {
                    [] => vec![format!("switchboard.{}.svc", self.namespace)],
                    names => names.to_vec(),
                },
                life: self.certificate_life,
            }),
        };
        let settings = run::Settings {
            webhook_address: self.webhook_address,
            certificate,
            clients: self.client_ca_file.map(|authority| Clients { authority, names: self.client_name }),
            namespace: self.namespace.clone(),
            health_address: self.health_address,
            lease: leader::Settings {
                namespace: self.namespace,
                name: self.lease_name,
                identity: format!("{}_{}", self.identity, random_suffix()?),
                duration: self.lease_duration,
                renew_deadline: self.lease_duration * 2 / 3,
                retry_period: self.lease_duration * 2 / 15,
            },
            grace_period: self.grace_period,
            drain_delay: self.drain_delay,
        };
        let ended = runtime.block_on(run::run(settings));
        if let Some(exporter) = exporter {
            exporter.shutdown();
        }
        // Nothing is to be logged after the last line, and nothing that blocks, as a look-up of a name does, is waited for.
        runtime.shutdown_timeout(LAST_TASKS_TIMEOUT);
        Ok(ended?)
    }
}

fn random_suffix() -> Result<String, Error> {
    let mut bytes = [0; 5];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random numbers")?;
    Ok(BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

fn check(namespace: &str) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run::check(namespace))?;
    writeln!(std::io::stdout(), "a conversation can be created in the namespace {namespace}")?;
    Ok(())
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

fn completions(shell: Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "switchboard", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

fn endpoint(text: &str) -> Result<String, String> {
    if text.starts_with("http://") {
        Ok(text.to_owned())
    } else {
        Err("must be an address such as http://collector.observability:4318: TLS is not spoken to collectors"
            .to_owned())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration: crate::api::Duration = text.parse().map_err(|error: crate::api::DurationError| error.to_string())?;
    Ok(duration.as_std())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_of_run_has_its_environment_variable() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        let run = command.find_subcommand("run").unwrap();
        for flag in run.get_arguments().filter(|flag| flag.get_id() != "help") {
            let long = flag.get_long().unwrap();
            let expected = format!("SWITCHBOARD_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(flag.get_env().and_then(std::ffi::OsStr::to_str), Some(expected.as_str()));
            assert!(flag.get_help().is_some(), "--{long} says nothing of itself");
        }
    }

    #[test]
    fn what_the_schema_of_the_charts_values_lets_through_is_read() {
        for flag in [
            "--drain-delay=1s",
            "--drain-delay=999s",
            "--certificate-life=20h",
            "--certificate-life=79999h",
            "--lease-duration=5s",
            "--lease-duration=999s",
            "--grace-period=40s",
            "--grace-period=9999s",
            "--otlp-endpoint=http://c",
            "--otlp-endpoint=http://[fd00::1]:4318/v1",
        ] {
            let read = Cli::try_parse_from(["switchboard", "run", flag]);
            assert!(read.is_ok(), "{flag}: {}", read.unwrap_err());
        }
    }

    #[test]
    fn the_version_tells_the_kubernetes_of_the_tests_and_of_the_chart() {
        let modules = [
            include_str!("../tests/control-plane/kubernetes-1.31/go.mod"),
            include_str!("../tests/control-plane/kubernetes-1.33/go.mod"),
            include_str!("../tests/control-plane/kubernetes-1.35/go.mod"),
            include_str!("../tests/control-plane/go.mod"),
        ];
        let readme = include_str!("../README.md");
        for (version, module) in TESTED_WITH.iter().zip(modules) {
            assert!(module.contains(&format!("\tk8s.io/kubernetes v{version} ")), "go.mod has another than {version}");
            assert!(readme.contains(&format!("\n| {version} |")), "README's table lacks {version}");
        }
        assert!(TESTED_WITH[0].starts_with(&format!("{OLDEST}.")), "it was not tested with the oldest");
        let chart = include_str!("../charts/switchboard/Chart.yaml");
        assert!(chart.contains(&format!("\nkubeVersion: \">={OLDEST}.0-0\"\n")), "Chart.yaml has another");
    }
}
