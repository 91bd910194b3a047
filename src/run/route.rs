//! Assembles the router.

use super::sinks::{SinkSettings, sinks};
use super::{Error, listen, signals};
use crate::admin::{self, Readiness};
use crate::client::{ApiServer, ClientMetrics};
use crate::clock::Clock;
use crate::proxy_addresses::ProxyAddressWatcher;
use crate::router::{
    Conversations, Handler, Limits, Messages, RouterMetrics, SharedKnown, SourceSettings, Sources, Ways, watch,
};
use crate::server::{Endpoint, Security, Shutdown};
use crate::supervisor::Supervisor;
use crate::telemetry::metrics;
use hyper::Uri;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The settings of the router.
#[derive(Clone, Debug)]
pub struct RouteSettings {
    /// The address at which messages arrive.
    pub inbound_address: SocketAddr,
    /// Where the sources are configured.
    pub sources: SourceSettings,
    /// The sink that is told about messages that no ProxyAddress accepts.
    pub dead_letter_sink: Option<Uri>,
    /// The client of the sinks.
    pub sinks: SinkSettings,
    /// The address of the admin server.
    pub health_address: SocketAddr,
    /// How long new connections are accepted after a SIGTERM, until they are no longer routed to this replica.
    pub drain_delay: Duration,
}

/// Routes inbound messages until SIGTERM or SIGINT.
///
/// # Errors
/// If the process cannot start, or a task ends.
pub async fn route(settings: RouteSettings) -> Result<(), Error> {
    let clock = Clock;
    let (mut registry, readiness) = (metrics::registry(), Readiness::default());
    let sources = Sources::read(settings.sources)?;
    let (sinks, signing_secrets) = sinks(settings.sinks, clock)?;
    let inbound = listen(settings.inbound_address, "messages", "--inbound-address").await?;
    let admin = listen(settings.health_address, "probes", "--health-address").await?;
    // No certificate is needed.
    readiness.serving();
    let api_server = ApiServer::from_environment(&ClientMetrics::new(&mut registry)).await?;
    let client = api_server.client.clone();
    let known = SharedKnown::default();
    let router_metrics = RouterMetrics::new(&mut registry, known.clone(), clock);

    let mut supervisor = Supervisor::new(signals().map_err(Error::Signals)?, settings.drain_delay);
    supervisor.background("the admin server", admin::serve(admin, readiness.clone(), Arc::new(registry)));
    if supervisor.run_until(api_server.wait_until_reachable(&readiness)).await?.is_none() {
        return Ok(());
    }

    let (proxy_address_watcher, proxy_addresses) = ProxyAddressWatcher::new(client.clone(), clock);
    let retrying = api_server.retrying;
    let conversations = Conversations::new(retrying.clone(), client.clone(), known.clone(), clock);
    let ways = Ways::new(known.clone(), conversations, proxy_addresses.clone(), clock, router_metrics.clone());
    let messages = Messages::new(
        retrying,
        clock,
        proxy_addresses.clone(),
        ways,
        sinks,
        settings.dead_letter_sink,
        router_metrics.clone(),
    );
    let limits = Limits::default();
    let handler = Handler::new(sources.clone(), messages, limits, clock, router_metrics.clone());
    let (shutdown, closing) = (supervisor.shutdown(), supervisor.closing());
    supervisor.background("the watch of the ProxyAddresses", proxy_address_watcher.run());
    supervisor.background("the watches", watch(client, known, proxy_addresses, readiness.clone(), clock));
    supervisor.background("the keys of the sources", sources.run());
    supervisor.background("the signing secrets", signing_secrets.run());
    let stages = Shutdown { draining: shutdown, closing: closing.clone() };
    supervisor.critical("the router", closing, async move {
        let endpoint = Endpoint {
            name: "the router",
            listener: inbound,
            security: Security::None,
            limits: limits.transport(),
            metrics: router_metrics.connections(),
        };
        endpoint.serve(handler, clock, stages).await;
        Ok(())
    });
    tracing::info!(inbound = %settings.inbound_address, health = %settings.health_address, "started");
    supervisor.run(|| readiness.draining()).await?;
    tracing::info!("stopped");
    Ok(())
}
