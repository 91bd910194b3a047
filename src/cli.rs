//! The command line: converts commands, flags and environment variables into settings, and writes the CRDs and completions. It makes no
//! requests to an API server.

mod process;
mod route;
mod sinks;

use crate::api::{self, Timer, Timers};
use crate::certificates::{self, Clients, Files};
use crate::core::lifecycle::is_contradiction;
use crate::export::Selection;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::logs;
use crate::telemetry::metrics::{COMMIT, VERSION};
use crate::{leader, run};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use data_encoding::BASE32_NOPAD;
use hyper::Uri;
use process::Process;
use ring::rand::{SecureRandom, SystemRandom};
use route::Route;
use sinks::{SinkClient, sink};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

/// The minimum grace period. An API server stores an admitted create within min(34 s, `--request-timeout`) plus the time of an etcd commit, or
/// never. With a shorter grace period, a second holder could be admitted.
const MIN_GRACE_PERIOD: Duration = Duration::from_secs(40);

/// The minimum delay of a close by a changed default timer, so that a mistake can be corrected.
const MIN_DEFAULTS_DELAY: Duration = Duration::from_mins(10);

/// The minimum lease duration. A Lease records whole seconds.
const MIN_LEASE_DURATION: Duration = Duration::from_secs(2);

/// Guarantees that each binding has at most one open conversation.
///
/// switchboard is a Kubernetes operator for Conversations (switchboard.dev/v1alpha1). A binding consists of a channel, a contact address and a
/// proxy address. The create of a second open conversation for the same binding is denied with error 48031. Timers make conversations Inactive
/// or Closed, and conditions report the state.
#[derive(Debug, Parser)]
#[command(name = "switchboard", version, long_version = LONG_VERSION.as_str(), max_term_width = 120, after_long_help = MORE)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The versions of Kubernetes on which the tests passed, oldest first: `make test` uses the last one, `make test-versions` all of them. A test
/// compares them with the go.mod files of these targets.
const TESTED_WITH: [&str; 4] = ["1.31.14", "1.33.13", "1.35.4", "1.37.2"];

/// The oldest supported version of Kubernetes, as in the chart.
const OLDEST: &str = "1.31";

/// The output of `--version`.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let tested_with = TESTED_WITH.join(", ");
    format!("{VERSION}\ncommit {COMMIT}\nfor Kubernetes {OLDEST} and later, tested with {tested_with}")
});

const MORE: &str = "\
Examples:
  switchboard run                                run the operator
  switchboard run --log=info,switchboard=debug   run the operator and log each decision
  switchboard route                              run the router of inbound messages
  switchboard crds | kubectl apply --server-side --filename=-
  switchboard export --all-namespaces > conversations.yaml
  switchboard completions bash > /etc/bash_completion.d/switchboard

Each flag of `run` and `route` can also be set by an environment variable; see `switchboard run --help`.

Exit codes:
  0  success; for `run` and `route`: the shutdown after a SIGTERM or SIGINT is complete
  1  failure; the last line on stderr has the cause
     `run`, `route`: also after a second SIGTERM or SIGINT, or if the shutdown takes more than 18s after the drain delay
  2  invalid command line

If the API server cannot be reached, `run` and `route` do not exit, but retry; /readyz has the cause.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the admission webhook, and reconcile conversations while this replica is the leader.
    Run(Box<Run>),
    /// Route inbound messages: find the conversation of each message or create one, and deliver the message to a sink.
    Route(Box<Route>),
    /// Check by a dry run that a conversation can be created and that the webhook answers. Nothing is stored.
    Check {
        /// The namespace of the dry run. You must be allowed to create conversations there.
        #[arg(long, env = "SWITCHBOARD_NAMESPACE", default_value = "switchboard-system")]
        namespace: String,
    },
    /// Write conversations as manifests to stdout, for a backup. A conversation that a timer closed is closed in its manifest.
    Export(Export),
    /// Write the CustomResourceDefinitions as YAML.
    Crds {
        /// Write one file per kind to this directory instead of stdout.
        #[arg(long)]
        directory: Option<PathBuf>,
    },
    /// Write a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Args, Debug)]
struct Export {
    /// The namespace whose conversations to export.
    #[arg(long, short, required_unless_present = "all_namespaces")]
    namespace: Option<String>,
    /// Export the conversations of all namespaces.
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Omit the contacts. Use this for a copy beside the original: conversations without a contact need no binding.
    #[arg(long)]
    without_contacts: bool,
}

#[derive(Args, Debug)]
struct Run {
    /// Address on which the webhook serves admission reviews over HTTPS, at the path /admit.
    #[arg(long, env = "SWITCHBOARD_WEBHOOK_ADDRESS", default_value = "[::]:9443")]
    webhook_address: SocketAddr,
    /// Path of the serving certificate with its intermediates, as PEM. Set it if another controller, such as cert-manager, renews the
    /// certificate. Changes are loaded without a restart. If not set, the operator issues a certificate, stores it in a Secret, and writes the
    /// caBundle.
    #[arg(long, env = "SWITCHBOARD_TLS_CERT_FILE", requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Path of the private key of the serving certificate, as PEM.
    #[arg(long, env = "SWITCHBOARD_TLS_KEY_FILE", requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,
    /// Name of the Secret in which the operator stores the certificate that it issues.
    #[arg(long, env = "SWITCHBOARD_TLS_SECRET_NAME", default_value = "switchboard-webhook-tls")]
    tls_secret_name: String,
    /// Lifetime of the certificates that the operator issues, such as 2160h. A certificate is renewed after two thirds of its lifetime.
    #[arg(long, env = "SWITCHBOARD_CERTIFICATE_LIFE", default_value = "2160h", value_parser = duration)]
    certificate_life: Duration,
    /// Name of the ValidatingWebhookConfiguration whose caBundle the operator writes.
    #[arg(long, env = "SWITCHBOARD_WEBHOOK_CONFIGURATION", default_value = "switchboard")]
    webhook_configuration: String,
    /// DNS names and IP addresses at which the API server calls the webhook, separated by commas
    /// [default: switchboard.NAMESPACE.svc]
    #[arg(long, env = "SWITCHBOARD_WEBHOOK_DNS_NAME", value_delimiter = ',')]
    webhook_dns_name: Vec<String>,
    /// Path of the CA of the webhook's clients, as PEM. Clients without a certificate of this CA are rejected. If not set, every client that
    /// can connect to the port is accepted. An API server presents a certificate only if it is configured to do so.
    #[arg(long, env = "SWITCHBOARD_CLIENT_CA_FILE")]
    client_ca_file: Option<PathBuf>,
    /// Common names of the clients' certificates, separated by commas [default: any]
    #[arg(long, env = "SWITCHBOARD_CLIENT_NAME", value_delimiter = ',', requires = "client_ca_file")]
    client_name: Vec<String>,
    /// Namespace of the operator's Secret and Lease, and of the self-check.
    #[arg(long, env = "SWITCHBOARD_NAMESPACE", default_value = "switchboard-system")]
    namespace: String,
    /// Name of the Lease.
    #[arg(long, env = "SWITCHBOARD_LEASE_NAME", default_value = "switchboard")]
    lease_name: String,
    /// Duration that standby replicas wait before taking over a lease that is not renewed, in whole seconds such as 15s.
    #[arg(long, env = "SWITCHBOARD_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    lease_duration: Duration,
    /// Name of this replica in the Lease. A random suffix is added, so that each start has a unique identity.
    #[arg(long, env = "SWITCHBOARD_IDENTITY", default_value = "switchboard")]
    identity: String,
    /// Duration after which the claim of a create that was admitted but not stored is released, at least 40s. An API server stores an admitted
    /// create within 34 s plus the time of an etcd commit, or never; its claim must not be released before.
    #[arg(long, env = "SWITCHBOARD_GRACE_PERIOD", default_value = "60s", value_parser = duration)]
    grace_period: Duration,
    /// Accept a grace period below 40s, for tests with a shorter --request-timeout. Unsafe: a binding may get two holders.
    #[arg(long, env = "SWITCHBOARD_UNSAFE_GRACE_PERIOD")]
    unsafe_grace_period: bool,
    /// Deny the create of a conversation whose proxy address no ProxyAddress declares. If not set, every namespace may use such an address.
    #[arg(long, env = "SWITCHBOARD_REQUIRE_PROXY_ADDRESSES")]
    require_proxy_addresses: bool,
    /// Default of the timer inactiveAfter, such as 30m, or never. It applies to conversations without one of their own, and without one of
    /// their ProxyAddress. If not set, there is no default.
    #[arg(long, env = "SWITCHBOARD_DEFAULT_INACTIVE_AFTER")]
    default_inactive_after: Option<Timer>,
    /// Default of the timer closeAfter, such as 24h, or never. It must be longer than that of inactiveAfter.
    #[arg(long, env = "SWITCHBOARD_DEFAULT_CLOSE_AFTER")]
    default_close_after: Option<Timer>,
    /// Default of the timer closeUnassignedAfter, such as 1h, or never.
    #[arg(long, env = "SWITCHBOARD_DEFAULT_CLOSE_UNASSIGNED_AFTER")]
    default_close_unassigned_after: Option<Timer>,
    /// Duration for which a new or changed default timer closes no conversation, at least 10m. A mistake can be corrected within it. After a
    /// start, all defaults count as new.
    #[arg(long, env = "SWITCHBOARD_DEFAULTS_DELAY", default_value = "10m", value_parser = duration)]
    defaults_delay: Duration,
    /// Accept a delay of default timers below 10m, for tests. Unsafe: a mistake in a default closes conversations at once, which is final.
    #[arg(long, env = "SWITCHBOARD_UNSAFE_DEFAULTS_DELAY")]
    unsafe_defaults_delay: bool,
    /// URL of the sink to which the leader sends an event for each change in the life of a conversation. If not set, it sends none.
    #[arg(long, env = "SWITCHBOARD_EVENTS_SINK", value_parser = sink)]
    events_sink: Option<Uri>,
    #[command(flatten)]
    sink_client: SinkClient,
    #[command(flatten)]
    process: Process,
}

impl Cli {
    /// Runs the command.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run(run) => return logged(run.process.log_format, run.run()),
            Command::Route(route) => return logged(route.process.log_format, route.run()),
            Command::Check { namespace } => check(&namespace),
            Command::Export(export) => export.run(),
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

/// The exit code of a process that logs. The error is its last line.
fn logged(format: logs::Format, result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logs::fatal(format, error.as_ref());
            ExitCode::FAILURE
        }
    }
}

impl Run {
    fn run(self) -> Result<(), Error> {
        if self.grace_period < MIN_GRACE_PERIOD && !self.unsafe_grace_period {
            return Err(
                "--grace-period must be at least 40s: an API server can store a create up to 34 s after its admission, and \
                        if its claim is released before, a second holder can be admitted"
                    .into(),
            );
        }
        if self.defaults_delay < MIN_DEFAULTS_DELAY && !self.unsafe_defaults_delay {
            return Err("--defaults-delay must be at least 10m: a close is final, and a mistake in a default timer can only be \
                        corrected before it closes conversations"
                .into());
        }
        let default_timers = Timers {
            inactive_after: self.default_inactive_after,
            close_after: self.default_close_after,
            close_unassigned_after: self.default_close_unassigned_after,
        };
        if default_timers
            .close_after
            .is_some_and(|close_after| is_contradiction(default_timers.inactive_after, close_after))
        {
            return Err("--default-close-after must be longer than --default-inactive-after, since both are counted from the last \
                        activity; set another one, or never"
                .into());
        }
        if self.lease_duration < MIN_LEASE_DURATION || self.lease_duration.subsec_nanos() != 0 {
            return Err(
                "--lease-duration must be whole seconds, at least 2s: the leader renews the lease several times within it"
                    .into(),
            );
        }
        if self.events_sink.is_none() && self.sink_client.is_set() {
            return Err("--signing-secrets-directory and --sink-ca-file have no effect without --events-sink; set it, or remove them"
                .into());
        }
        let certificate = match self.tls_cert_file.zip(self.tls_key_file) {
            Some((certificate, key)) => run::Certificate::Files(Files { certificate, key }),
            None => run::Certificate::SelfManaged(certificates::Settings {
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
            health_address: self.process.health_address,
            lease: leader::Settings {
                namespace: self.namespace,
                name: self.lease_name,
                identity: format!("{}_{}", self.identity, random_suffix()?),
                duration: self.lease_duration,
                renew_deadline: self.lease_duration * 2 / 3,
                retry_period: self.lease_duration * 2 / 15,
            },
            grace_period: self.grace_period,
            requires_proxy_addresses: self.require_proxy_addresses,
            default_timers,
            defaults_delay: self.defaults_delay,
            events_sink: self.events_sink.map(|uri| (uri, self.sink_client.settings())),
            drain_delay: self.process.drain_delay,
        };
        self.process.run(run::run(settings))
    }
}

impl Export {
    fn run(self) -> Result<(), Error> {
        let Self { namespace, all_namespaces: _, without_contacts } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(run::export(&Selection { namespace, without_contacts }))?)
    }
}

fn random_suffix() -> Result<String, Error> {
    let mut bytes = [0; 5];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system provides no random numbers")?;
    Ok(BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

fn check(namespace: &str) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run::check(namespace))?;
    writeln!(std::io::stdout(), "a conversation can be created in the namespace {namespace}")?;
    Ok(())
}

fn crds(directory: Option<&Path>) -> Result<(), Error> {
    for crd in api::crds()? {
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

fn duration(text: &str) -> Result<Duration, String> {
    let duration: crate::api::Duration = text.parse().map_err(|error: crate::api::DurationError| error.to_string())?;
    Ok(duration.as_std())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_run_has_an_environment_variable_and_help() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        let run = command.find_subcommand("run").unwrap();
        for flag in run.get_arguments().filter(|flag| flag.get_id() != "help") {
            let long = flag.get_long().unwrap();
            let expected = format!("SWITCHBOARD_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(flag.get_env().and_then(std::ffi::OsStr::to_str), Some(expected.as_str()));
            assert!(flag.get_help().is_some(), "--{long} has no help");
        }
    }

    #[test]
    fn durations_that_the_charts_schema_allows_are_accepted() {
        for flag in [
            "--drain-delay=1s",
            "--drain-delay=999s",
            "--certificate-life=20h",
            "--certificate-life=79999h",
            "--lease-duration=5s",
            "--lease-duration=999s",
            "--grace-period=40s",
            "--grace-period=9999s",
            "--defaults-delay=10m",
            "--defaults-delay=9999m",
            "--default-inactive-after=1s",
            "--default-close-after=87600h",
            "--default-close-unassigned-after=never",
            "--otlp-endpoint=http://c",
            "--otlp-endpoint=http://[fd00::1]:4318/v1",
        ] {
            let read = Cli::try_parse_from(["switchboard", "run", flag]);
            assert!(read.is_ok(), "{flag}: {}", read.unwrap_err());
        }
    }

    #[test]
    fn version_names_the_kubernetes_of_the_tests_and_the_chart() {
        let modules = [
            include_str!("../tests/control-plane/kubernetes-1.31/go.mod"),
            include_str!("../tests/control-plane/kubernetes-1.33/go.mod"),
            include_str!("../tests/control-plane/kubernetes-1.35/go.mod"),
            include_str!("../tests/control-plane/go.mod"),
        ];
        let readme = include_str!("../README.md");
        for (version, module) in TESTED_WITH.iter().zip(modules) {
            assert!(module.contains(&format!("\tk8s.io/kubernetes v{version} ")), "go.mod does not have {version}");
            assert!(readme.contains(&format!("\n| {version} |")), "README's table lacks {version}");
        }
        assert!(TESTED_WITH[0].starts_with(&format!("{OLDEST}.")), "the oldest version was not tested");
        let chart = include_str!("../charts/switchboard/Chart.yaml");
        assert!(chart.contains(&format!("\nkubeVersion: \">={OLDEST}.0-0\"\n")), "Chart.yaml has another version");
    }
}
