//! Assembles the components into one supervised process: the operator, or the router. If a component ends, the process exits.

mod route;
mod sinks;

pub use route::{RouteSettings, route};
pub use sinks::SinkSettings;

use crate::admin::{self, Readiness};
use crate::api::Timers;
use crate::certificates::{self, CertificateMetrics, Clients, Files, Publisher, SelfManagedCertificate, TlsError};
use crate::claims::{ClaimMetrics, Claims};
use crate::client::{self, ApiServer, ClientMetrics};
use crate::clock::Clock;
use crate::cloud_events::SigningError;
use crate::controller::{self, Controller, ControllerMetrics, EventsSinkSettings};
use crate::export;
use crate::leader::{self, LeaderElector};
use crate::listener;
use crate::proxy_addresses::ProxyAddressWatcher;
use crate::router;
use crate::self_check::{self, SelfCheck, SelfCheckMetrics};
use crate::server::{Endpoint, Security, Shutdown};
use crate::supervisor::{self, Supervisor};
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::metrics;
use crate::webhook::{AdmissionHandler, Grants, Limits, Router, WebhookMetrics};
use futures::{Stream, stream};
use hyper::Uri;
use hyper::body::Bytes;
use sinks::sinks;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The settings of the process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address of the webhook.
    pub webhook_address: SocketAddr,
    /// The source of the serving certificate.
    pub certificate: Certificate,
    /// The clients that may call the webhook; `None` for any client.
    pub clients: Option<Clients>,
    /// The namespace of the self-check.
    pub namespace: String,
    /// The address of the admin server.
    pub health_address: SocketAddr,
    /// The Lease.
    pub lease: leader::Settings,
    /// The maximum time between the admission of a create and its storage.
    pub grace_period: Duration,
    /// Whether an address must be declared by a ProxyAddress to be used.
    pub requires_proxy_addresses: bool,
    /// The default timers of the conversations.
    pub default_timers: Timers,
    /// The time from the observation of a default timer until it closes a conversation.
    pub defaults_delay: Duration,
    /// The sink of the lifecycle events, and its client; `None` if there is none.
    pub events_sink: Option<(Uri, SinkSettings)>,
    /// How long new connections are accepted after a SIGTERM, until they are no longer routed to this replica.
    pub drain_delay: Duration,
}

/// The source of the serving certificate.
#[derive(Clone, Debug)]
pub enum Certificate {
    /// The operator issues it.
    SelfManaged(certificates::Settings),
    /// Another controller renews it in files.
    Files(Files),
}

/// Why the process cannot run, with the remedy, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no client of an API server.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// Conversations could not be exported.
    #[error(transparent)]
    Export(#[from] export::Error),
    /// The API server did not answer.
    #[error(
        "the API server at {url} cannot be reached: {cause}; check that it runs, and the address and the credentials"
    )]
    Unreachable {
        /// The address of the API server.
        url: String,
        /// The cause.
        cause: String,
    },
    /// A listener cannot be bound.
    #[error("cannot listen on {address} for {what}: {source}; choose another address by {flag}")]
    Listen {
        /// The service.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The flag that sets the address.
        flag: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// The serving certificate is not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The sources are not usable.
    #[error(transparent)]
    Sources(#[from] router::SourcesError),
    /// The signing secrets are not usable.
    #[error(transparent)]
    SigningSecrets(#[from] SigningError),
    /// A certificate authority of the sinks is not usable.
    #[error("cannot use the certificate authorities in {}: {cause}; check --sink-ca-file", .path.display())]
    SinkAuthorities {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        cause: String,
    },
    /// A conversation cannot be created.
    #[error(
        "no conversation can be created in the namespace {namespace}: {}; check that the operator's pods are ready, and that you may create conversations there",
        ErrorChain(.source)
    )]
    NotAdmitted {
        /// The namespace.
        namespace: String,
        /// The error of the API server.
        source: kube::Error,
    },
    /// The signal handlers cannot be installed.
    #[error("cannot handle signals: {0}")]
    Signals(std::io::Error),
    /// The supervisor ends the process.
    #[error(transparent)]
    Supervisor(#[from] supervisor::Error),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If the process cannot start, or a task ends.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let clock = Clock;
    let (mut registry, readiness) = (metrics::registry(), Readiness::default());
    let certificate_metrics = CertificateMetrics::new(&mut registry);
    let (mut publisher, tls) = Publisher::new(settings.clients, readiness.clone(), certificate_metrics);
    if let Certificate::Files(files) = &settings.certificate {
        files.publish(&mut publisher)?;
    }
    let events_sink = settings.events_sink.map(|(uri, client)| Ok::<_, Error>((uri, sinks(client, clock)?)));
    let (events_sink, signing_secrets) = match events_sink.transpose()? {
        Some((uri, (sinks, signing_secrets))) => (Some(EventsSinkSettings { uri, sinks }), Some(signing_secrets)),
        None => (None, None),
    };
    let webhook = listen(settings.webhook_address, "the webhook", "--webhook-address").await?;
    let admin = listen(settings.health_address, "probes", "--health-address").await?;
    let api_server = ApiServer::from_environment(&ClientMetrics::new(&mut registry)).await?;
    let client = api_server.client.clone();
    let instance = settings.lease.identity.clone();
    let (elector, leadership) = LeaderElector::new(client.clone(), settings.lease, clock);
    leader::register_metrics(&mut registry, leadership.clone());
    let claim_metrics = ClaimMetrics::new(&mut registry);
    let webhook_metrics = WebhookMetrics::new(&mut registry);
    let controller_metrics = ControllerMetrics::new(&mut registry, clock);
    let self_check_metrics = SelfCheckMetrics::new(&mut registry, leadership.clone());

    let mut supervisor = Supervisor::new(signals().map_err(Error::Signals)?, settings.drain_delay);
    supervisor.background("the admin server", admin::serve(admin, readiness.clone(), Arc::new(registry)));
    // Everything below needs the API server, and would only log again that it cannot be reached.
    if supervisor.run_until(api_server.wait_until_reachable(&readiness)).await?.is_none() {
        return Ok(());
    }

    let claims = |client| Claims::new(client, clock, settings.grace_period, claim_metrics.clone());
    let (proxy_address_watcher, proxy_addresses) = ProxyAddressWatcher::new(client.clone(), clock);
    let retrying = api_server.retrying;
    let grants = Grants::new(retrying.clone(), proxy_addresses.clone(), settings.requires_proxy_addresses);
    let handler = AdmissionHandler::new(retrying.clone(), claims(retrying), grants);
    let claims = claims(client.clone());
    let controller = Controller::new(
        controller::Settings {
            instance,
            default_timers: settings.default_timers,
            defaults_delay: settings.defaults_delay,
            events_sink,
        },
        client.clone(),
        claims.clone(),
        proxy_addresses,
        leadership.clone(),
        readiness.clone(),
        controller_metrics,
    );
    let (shutdown, closing, stopped) = (supervisor.shutdown(), supervisor.closing(), CancellationToken::new());
    let self_check = SelfCheck::new(client.clone(), claims.clone(), settings.namespace, leadership, self_check_metrics);
    supervisor.background("the watch of the ProxyAddresses", proxy_address_watcher.run());
    supervisor.background("the self-check", self_check.run());
    if let Some(signing_secrets) = signing_secrets {
        supervisor.background("the signing secrets", signing_secrets.run());
    }
    supervisor.background("the certificate manager", async move {
        match settings.certificate {
            Certificate::SelfManaged(settings) => {
                SelfManagedCertificate::new(client, settings, clock, publisher).run().await;
            }
            Certificate::Files(files) => files.run(publisher).await,
        }
    });
    let stages = Shutdown { draining: shutdown.clone(), closing: closing.clone() };
    supervisor.critical("the webhook", closing, async move {
        let handle = move |body: Bytes, deadline| {
            let handler = handler.clone();
            async move { handler.answer(&body, deadline).await }
        };
        let limits = Limits::default();
        let router = Router::new(handle, clock, &limits, webhook_metrics.clone());
        let endpoint = Endpoint {
            name: "the webhook",
            listener: webhook,
            security: Security::Tls(tls),
            limits: limits.transport(),
            metrics: webhook_metrics.connections(),
        };
        endpoint.serve(router, clock, stages).await;
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

    // The Lease is released immediately. Reviews are answered until they are no longer routed to this replica.
    supervisor.run(|| readiness.draining()).await?;
    tracing::info!("stopped");
    Ok(())
}

/// The names of the signals that shut the process down, as they arrive.
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

/// Checks once, by a dry run, that a conversation can be created in `namespace`.
///
/// # Errors
/// If it cannot, with the cause.
pub async fn check(namespace: &str) -> Result<(), Error> {
    let api_server = ApiServer::from_environment(&ClientMetrics::new(&mut metrics::registry())).await?;
    api_server.version().await.map_err(|cause| Error::Unreachable { url: api_server.url.clone(), cause })?;
    let result = self_check::try_once(api_server.client, namespace).await;
    result.map_err(|source| Error::NotAdmitted { namespace: namespace.to_owned(), source })
}

/// Writes the selected conversations to stdout as manifests, for a backup.
///
/// # Errors
/// If they cannot be read or written, with the cause.
pub async fn export(selection: &export::Selection) -> Result<(), Error> {
    let api_server = ApiServer::from_environment(&ClientMetrics::new(&mut metrics::registry())).await?;
    Ok(export::export(api_server.client, selection, std::io::stdout()).await?)
}
