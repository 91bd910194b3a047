//! Wires everything into one supervised process: whatever part ends, ends the process.

use crate::certificates::{self, Clients, Files, Publisher, SelfManagedCertificate, TlsError};
use crate::claims::Claims;
use crate::clock::Clock;
use crate::controller::Controller;
use crate::leader::{self, LeaderElector};
use crate::listener;
use crate::self_check::{self, SelfCheck};
use crate::supervisor::{self, Supervisor};
use crate::telemetry::client_metrics::ClientMetricsLayer;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::health::{self, Readiness};
use crate::telemetry::metrics::Metrics;
use crate::webhook::{AdmissionHandler, Limits, Shutdown, serve};
use backon::{BackoffBuilder, ExponentialBuilder};
use futures::{Stream, stream};
use hyper::body::Bytes;
use kube::client::ClientBuilder;
use kube::{Client, Config};
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long the API server may take to answer for the first time.
const FIRST_CONTACT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause between two attempts to reach the API server for the first time. Jitter makes it up to twice as long.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The pauses between these attempts.
const RETRY_BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(MAX_RETRY_PAUSE)
    .with_jitter()
    .without_max_times();

/// How the process is to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where reviews are answered.
    pub webhook_address: SocketAddr,
    /// Where the serving certificate comes from.
    pub certificate: Certificate,
    /// Who may call the webhook; nothing: everybody.
    pub clients: Option<Clients>,
    /// The namespace in which the operator asks whether the webhook is in force.
    pub namespace: String,
    /// Where probes are answered.
    pub health_address: SocketAddr,
    /// The Lease.
    pub lease: leader::Settings,
    /// How long a create that was admitted may take to be stored.
    pub grace_period: Duration,
    /// How long after a SIGTERM new connections are still taken, so that those who route to this replica learn of it.
    pub drain_delay: Duration,
}

/// Where the serving certificate comes from.
#[derive(Clone, Debug)]
pub enum Certificate {
    /// The operator makes it.
    Kept(certificates::Settings),
    /// Somebody else renews it.
    Files(Files),
}

/// Why the process cannot run, in one line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no configuration for reaching an API server.
    #[error("no API server is configured: set KUBECONFIG, or run in a pod with a service account ({0})")]
    NoConfig(#[from] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error(
        "the configuration for the API server cannot be used: {}; check what KUBECONFIG, or the service account of the pod, provides",
        ErrorChain(.0)
    )]
    BadConfig(#[source] kube::Error),
    /// The API server did not answer.
    #[error(
        "the API server at {url} cannot be reached: {cause}; check that it runs, and the address and the credentials"
    )]
    Unreachable {
        /// Its address.
        url: String,
        /// What happened.
        cause: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {what}: {source}; choose another address by {flag}")]
    Listen {
        /// What is served there.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The flag that sets the address.
        flag: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The serving certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No conversation can be created.
    #[error(
        "no conversation can be created in the namespace {namespace}: {}; check that the operator's pods are ready, and that you may create conversations there",
        ErrorChain(.source)
    )]
    NotAdmitted {
        /// Where it was tried.
        namespace: String,
        /// What the API server said.
        source: kube::Error,
    },
    /// Signals cannot be listened for.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    /// The process has to end.
    #[error(transparent)]
    Supervisor(#[from] supervisor::Error),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Where it cannot start, or a part of it ends.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let clock = Clock;
    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    let (mut publisher, tls) = Publisher::new(settings.clients, readiness.clone(), metrics.clone());
    if let Certificate::Files(files) = &settings.certificate {
        files.publish(&mut publisher)?;
    }
    let webhook = listen(settings.webhook_address, "the webhook", "--webhook-address").await?;
    let health = listen(settings.health_address, "probes", "--health-address").await?;
    let Connections { client, retrying, url } = configure(&metrics).await?;
    let mut supervisor = Supervisor::new(signals().map_err(Error::Signals)?, settings.drain_delay);
    supervisor.background("the probes' listener", health::serve(health, readiness.clone(), metrics.clone()));
    // What follows needs the API server, and would only repeat why it is not there.
    if supervisor.run_until(reach(&client, &url, &readiness)).await?.is_none() {
        return Ok(());
    }

    let claims = |client| Claims::new(client, clock, settings.grace_period, metrics.clone());
    let admitter = AdmissionHandler::new(retrying.clone(), claims(retrying));
    let claims = claims(client.clone());
    let instance = settings.lease.identity.clone();
    let (elector, leadership) = LeaderElector::new(client.clone(), settings.lease, clock);
    metrics.leadership(leadership.clone());
    let controller = Controller::new(
        client.clone(),
        claims.clone(),
        clock,
        leadership.clone(),
        instance,
        readiness.clone(),
        metrics.clone(),
    );
    let (shutdown, closing, stopped) = (supervisor.shutdown(), supervisor.closing(), CancellationToken::new());
    let self_check = SelfCheck::new(client.clone(), claims.clone(), settings.namespace, leadership, metrics.clone());
    supervisor.background("the self-check", self_check.run());
    supervisor.background("the keeper of the certificate", async move {
        match settings.certificate {
            Certificate::Kept(settings) => SelfManagedCertificate::new(client, settings, clock, publisher).run().await,
            Certificate::Files(files) => files.run(publisher).await,
        }
    });
    let stages = Shutdown { draining: shutdown.clone(), closing: closing.clone() };
    supervisor.critical("the webhook", closing, async move {
        let answer = move |body: Bytes, deadline| {
            let admitter = admitter.clone();
            async move { admitter.answer(&body, deadline).await }
        };
        serve(webhook, tls, answer, clock, Limits::default(), metrics, stages).await;
        Ok(())
    });
    supervisor.critical("the controller", shutdown.clone(), {
        let (shutdown, stopped) = (shutdown.clone(), stopped.clone());
        async move {
            controller.run(shutdown).await?;
            stopped.cancel();
            Ok(())
        }
    });
    supervisor.critical("the elector", stopped.clone(), async move { Ok(elector.run(shutdown, stopped).await?) });
    tracing::info!(webhook = %settings.webhook_address, health = %settings.health_address, "started");

    // The Lease is given back at once, while reviews are still answered until nobody routes any here.
    supervisor.run(|| readiness.draining()).await?;
    tracing::info!("stopped");
    Ok(())
}

/// The names of the signals that ask the process to end, as they arrive.
fn signals() -> std::io::Result<impl Stream<Item = &'static str> + Unpin> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(stream::poll_fn(move |context| {
        if terminate.poll_recv(context).is_ready() {
            return Poll::Ready(Some("SIGTERM"));
        }
        interrupt.poll_recv(context).map(|_| Some("SIGINT"))
    }))
}

async fn listen(address: SocketAddr, what: &'static str, flag: &'static str) -> Result<TcpListener, Error> {
    listener::bind(address).await.map_err(|source| Error::Listen { what, address, flag, source })
}

/// Asks once, by a dry run, whether a conversation can be created in `namespace`.
///
/// # Errors
/// Where none can, with what stands in the way.
pub async fn check(namespace: &str) -> Result<(), Error> {
    let Connections { client, url, .. } = configure(&Metrics::default()).await?;
    version(&client).await.map_err(|cause| Error::Unreachable { url, cause })?;
    let result = self_check::try_once(client, namespace).await;
    result.map_err(|source| Error::NotAdmitted { namespace: namespace.to_owned(), source })
}

/// What there is to call the API server by.
struct Connections {
    /// For whoever begins anew by itself, with pauses of its own, which those of the retrying client would multiply.
    client: Client,
    /// For whoever has an answer to give: what the API server is too busy for is asked again, within the time that is left for it.
    retrying: Client,
    /// The address of the API server.
    url: String,
}

/// Reads the configuration. The API server is not called.
async fn configure(metrics: &Metrics) -> Result<Connections, Error> {
    let config = Config::infer().await?;
    let url = config.cluster_url.to_string();
    let client = |default_retry| {
        let mut config = config.clone();
        config.default_retry = default_retry;
        let builder = ClientBuilder::try_from(config).map_err(Error::BadConfig)?;
        Ok::<_, Error>(builder.with_layer(&ClientMetricsLayer::new(metrics.clone())).build())
    };
    Ok(Connections { client: client(false)?, retrying: client(true)?, url })
}

/// Calls the API server until it answers. Every failure may pass without a restart: a network or a role can come later than the pod.
/// A cause is logged when it is another one than that of the attempt before.
async fn reach(client: &Client, url: &str, readiness: &Readiness) {
    let mut pauses = RETRY_BACKOFF.build();
    let mut logged = None;
    loop {
        match version(client).await {
            Ok(version) => {
                tracing::info!(url, version, "reached the API server");
                return readiness.reached();
            }
            Err(cause) if logged.as_ref() == Some(&cause) => {}
            Err(cause) => {
                tracing::warn!(url, error = cause, "the API server has not been reached yet; trying again");
                readiness.unreached(cause.clone());
                logged = Some(cause);
            }
        }
        sleep(pauses.next().unwrap_or(MAX_RETRY_PAUSE)).await;
    }
}

/// The version of the API server; or why it did not answer.
async fn version(client: &Client) -> Result<String, String> {
    match timeout(FIRST_CONTACT_TIMEOUT, client.apiserver_version()).await {
        Ok(Ok(version)) => Ok(version.git_version),
        Ok(Err(error)) => Err(ErrorChain(&error).to_string()),
        Err(_) => Err(format!("no answer within {} s (timeout)", FIRST_CONTACT_TIMEOUT.as_secs())),
    }
}
