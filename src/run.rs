//! Wires everything into one supervised process: whatever part ends, ends the process.

use crate::certificates::{self, Clients, Files, Keeper, Publisher, TlsError};
use crate::claims::Claims;
use crate::clock::Clock;
use crate::controller::Controller;
use crate::leader::{self, Elector};
use crate::listener;
use crate::self_check::{self, SelfCheck};
use crate::telemetry::calls::CallLayer;
use crate::telemetry::events::Events;
use crate::telemetry::health::{self, Readiness};
use crate::telemetry::metrics::Metrics;
use crate::webhook::{Admitter, Limits, Shutdown, serve};
use hyper::body::Bytes;
use kube::client::ClientBuilder;
use kube::{Client, Config};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long the API server may take to answer for the first time.
const FIRST_CONTACT: Duration = Duration::from_secs(10);

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
    #[error("the configuration for the API server cannot be used: {0}")]
    BadConfig(kube::Error),
    /// The API server did not answer.
    #[error("the API server at {url} cannot be reached: {why}; check that it runs and that the address is right")]
    Unreachable {
        /// Its address.
        url: String,
        /// What happened.
        why: String,
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
        "no conversation can be created in the namespace {namespace}: {source}; look whether the operator's pods are ready"
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
    /// A part that runs for as long as the process does has ended.
    #[error("{0} ended unexpectedly; the process ends with it, to be started anew")]
    Ended(String),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Where it cannot start, or a part of it ends.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let clock = Clock;
    let (metrics, readiness) = (Metrics::new(clock), Readiness::default());
    let (mut publisher, tls) = Publisher::new(settings.clients, readiness.clone(), metrics.clone());
    if let Certificate::Files(files) = &settings.certificate {
        files.publish(&mut publisher)?;
    }
    let webhook = listen(settings.webhook_address, "the webhook", "--webhook-address").await?;
    let health = listen(settings.health_address, "probes", "--health-address").await?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let Connections { client, persistent } = connect(&metrics).await?;

    let claims = |client| Claims::new(client, clock, settings.grace_period, metrics.clone());
    let admitter = Admitter::new(persistent.clone(), claims(persistent));
    let claims = claims(client.clone());
    let events = Events::new(client.clone(), settings.lease.identity.clone());
    let (elector, leadership) = Elector::new(client.clone(), settings.lease, clock);
    metrics.leadership(leadership.clone());
    let controller = Controller::new(
        client.clone(),
        claims.clone(),
        clock,
        leadership.clone(),
        events,
        readiness.clone(),
        metrics.clone(),
    );
    let (shutdown, closing, stopped) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());

    // What ends at a shutdown, and what does not.
    let (mut parts, mut endless) = (JoinSet::<&'static str>::new(), JoinSet::<&'static str>::new());
    endless.spawn({
        let (readiness, metrics) = (readiness.clone(), metrics.clone());
        async move {
            health::serve(health, readiness, metrics).await;
            "the probes' listener"
        }
    });
    let self_check = SelfCheck::new(client.clone(), claims.clone(), settings.namespace, leadership, metrics.clone());
    endless.spawn(async move {
        self_check.run().await;
        "the self-check"
    });
    endless.spawn(async move {
        match settings.certificate {
            Certificate::Kept(settings) => Keeper::new(client, settings, clock, publisher).run().await,
            Certificate::Files(files) => files.run(publisher).await,
        }
        "the keeper of the certificate"
    });
    parts.spawn({
        let shutdown = Shutdown { draining: shutdown.clone(), closing: closing.clone() };
        async move {
            let answer = move |body: Bytes, deadline| {
                let admitter = admitter.clone();
                async move { admitter.answer(&body, deadline).await }
            };
            serve(webhook, tls, answer, clock, Limits::default(), metrics, shutdown).await;
            "the webhook"
        }
    });
    parts.spawn({
        let (shutdown, stopped) = (shutdown.clone(), stopped.clone());
        async move {
            controller.run(shutdown).await;
            stopped.cancel();
            "the controller"
        }
    });
    parts.spawn({
        let shutdown = shutdown.clone();
        async move {
            if let Err(error) = elector.run(shutdown, stopped).await {
                tracing::error!(%error, "what this process knows is of another history: it begins anew");
            }
            "the elector"
        }
    });
    tracing::info!(webhook = %settings.webhook_address, health = %settings.health_address, "started");

    let ended = |ended: Option<Result<&'static str, JoinError>>| {
        Error::Ended(match ended {
            Some(Ok(part)) => part.to_owned(),
            Some(Err(error)) => error.to_string(),
            None => "everything".to_owned(),
        })
    };
    tokio::select! {
        part = parts.join_next() => return Err(ended(part)),
        part = endless.join_next() => return Err(ended(part)),
        _ = terminate.recv() => tracing::info!("SIGTERM: shutting down"),
        _ = interrupt.recv() => tracing::info!("SIGINT: shutting down"),
    }
    readiness.draining();
    // The Lease is given back at once, while reviews are still answered until nobody routes any here.
    shutdown.cancel();
    sleep(settings.drain_delay).await;
    closing.cancel();
    while parts.join_next().await.is_some() {}
    tracing::info!("stopped");
    Ok(())
}

async fn listen(address: SocketAddr, what: &'static str, flag: &'static str) -> Result<TcpListener, Error> {
    listener::bind(address).await.map_err(|source| Error::Listen { what, address, flag, source })
}

/// Asks once, by a dry run, whether a conversation can be created in `namespace`.
///
/// # Errors
/// Where none can, with what stands in the way.
pub async fn check(namespace: &str) -> Result<(), Error> {
    let connections = connect(&Metrics::new(Clock)).await?;
    let result = self_check::try_once(connections.client, namespace).await;
    result.map_err(|source| Error::NotAdmitted { namespace: namespace.to_owned(), source })
}

/// What there is to call the API server by.
struct Connections {
    /// For whoever begins anew by itself, with pauses of its own, which those of a persistent one would multiply.
    client: Client,
    /// For whoever has an answer to give: what the API server is too busy for is asked again, within the time that is left for it.
    persistent: Client,
}

async fn connect(metrics: &Metrics) -> Result<Connections, Error> {
    let config = Config::infer().await?;
    let url = config.cluster_url.to_string();
    let client = |default_retry| {
        let mut config = config.clone();
        config.default_retry = default_retry;
        let builder = ClientBuilder::try_from(config).map_err(Error::BadConfig)?;
        Ok::<_, Error>(builder.with_layer(&CallLayer::new(metrics.clone())).build())
    };
    let connections = Connections { client: client(false)?, persistent: client(true)? };
    let why = match timeout(FIRST_CONTACT, connections.client.apiserver_version()).await {
        Ok(Ok(version)) => {
            tracing::info!(%url, version = version.git_version, "reached the API server");
            return Ok(connections);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", FIRST_CONTACT.as_secs()),
    };
    Err(Error::Unreachable { url, why })
}
