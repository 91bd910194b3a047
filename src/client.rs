//! Connects to the API server: reads the configuration, builds the clients and waits for the first response.

mod metrics;

pub use metrics::{ClientMetrics, ClientMetricsLayer, ClientMetricsService};

use crate::admin::Readiness;
use crate::telemetry::error_chain::ErrorChain;
use backon::{BackoffBuilder, ExponentialBuilder};
use kube::client::ClientBuilder;
use kube::{Client, Config};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The timeout of the first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The time after which a connection on which nothing arrives counts as dead. It is longer than a watch is silent: a server ends each watch
/// request after a minute. Without it, a watch on a connection that was cut silently would wait until TCP gives up.
const READ_TIMEOUT: Duration = Duration::from_secs(75);
/// The maximum delay between attempts to reach the API server. Jitter makes it up to twice as long.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);
/// The delays between these attempts.
const RETRY_BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(MAX_RETRY_DELAY)
    .with_jitter()
    .without_max_times();

/// Why there is no client, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no configuration of an API server.
    #[error("no API server is configured: set KUBECONFIG, or run in a pod with a service account ({0})")]
    NoConfig(#[from] kube::config::InferConfigError),
    /// The configuration is invalid.
    #[error(
        "the configuration for the API server is invalid: {}; check KUBECONFIG, or the service account of the pod",
        ErrorChain(.0)
    )]
    BadConfig(#[source] kube::Error),
}

/// The clients of the API server.
pub struct ApiServer {
    /// Does not retry. For callers that retry with a backoff of their own.
    pub client: Client,
    /// Retries requests that the API server rejects because it is too busy. For callers that must answer within a deadline.
    pub retrying: Client,
    /// The address of the API server.
    pub url: String,
}

impl ApiServer {
    /// Builds the clients from the environment. Does not call the API server.
    ///
    /// # Errors
    /// If there is no valid configuration.
    pub async fn from_environment(metrics: &ClientMetrics) -> Result<Self, Error> {
        let mut config = Config::infer().await?;
        config.read_timeout = Some(READ_TIMEOUT);
        let url = config.cluster_url.to_string();
        let client = |default_retry| {
            let mut config = config.clone();
            config.default_retry = default_retry;
            let builder = ClientBuilder::try_from(config).map_err(Error::BadConfig)?;
            Ok::<_, Error>(builder.with_layer(&ClientMetricsLayer::new(metrics.clone())).build())
        };
        Ok(Self { client: client(false)?, retrying: client(true)?, url })
    }

    /// Waits until the API server answers. Every failure may be temporary: the network or a role may be created after the pod. A failure is
    /// logged only if its cause differs from that of the previous attempt.
    pub async fn wait_until_reachable(&self, readiness: &Readiness) {
        let url = &self.url;
        let mut delays = RETRY_BACKOFF.build();
        let mut logged = None;
        loop {
            match self.version().await {
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
            sleep(delays.next().unwrap_or(MAX_RETRY_DELAY)).await;
        }
    }

    /// The version of the API server.
    ///
    /// # Errors
    /// The cause, if the API server does not answer.
    pub async fn version(&self) -> Result<String, String> {
        match timeout(FIRST_REQUEST_TIMEOUT, self.client.apiserver_version()).await {
            Ok(Ok(version)) => Ok(version.git_version),
            Ok(Err(error)) => Err(ErrorChain(&error).to_string()),
            Err(_) => Err(format!("no answer within {} s (timeout)", FIRST_REQUEST_TIMEOUT.as_secs())),
        }
    }
}
