//! Checks by a dry run that the webhook is in force: a second conversation for a held binding must be denied. If no binding is held, it
//! checks that a conversation can be created. It writes nothing; metrics report the result.

mod metrics;

pub use metrics::SelfCheckMetrics;

use crate::api::{AddressBinding, Channel, Contact, Conversation, ConversationSpec, Proxy};
use crate::claims::{self, Claims, claim_of};
use crate::core::binding::Binding;
use crate::core::denial::{ALREADY_BOUND, NOT_GRANTED};
use crate::leader::Leadership;
use crate::telemetry::error_chain::ErrorChain;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The interval between checks.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// The timeout of a check. It is longer than the API server's timeout for the webhook (10 s), so that the API server's error is received.
const CHECK_TIMEOUT: Duration = Duration::from_secs(12);
/// The number of claims that are read to find one that is held.
const CLAIMS: u32 = 5;
/// The name of the conversation, which is never stored.
const NAME: &str = "switchboard-self-check";

/// Runs the check while this replica leads.
pub struct SelfCheck {
    client: Client,
    claims: Claims,
    namespace: String,
    leadership: Leadership,
    metrics: SelfCheckMetrics,
}

/// Why a check has no result.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Claims(#[from] claims::Error),
}

impl SelfCheck {
    /// A check in `namespace`, where the operator may create conversations.
    #[must_use]
    pub fn new(
        client: Client,
        claims: Claims,
        namespace: String,
        leadership: Leadership,
        metrics: SelfCheckMetrics,
    ) -> Self {
        Self { client, claims, namespace, leadership, metrics }
    }

    /// Runs until the process exits.
    pub async fn run(self) {
        loop {
            if self.leadership.is_leader() {
                match timeout(CHECK_TIMEOUT, self.check()).await {
                    Ok(Ok(is_in_force)) => {
                        if is_in_force == Some(false) {
                            tracing::error!("webhook is not in force: the API server admits a second holder");
                        }
                        self.metrics.in_force(is_in_force);
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(error = %ErrorChain(&error), "cannot check whether the webhook is in force");
                        self.metrics.failed();
                    }
                    Err(_) => {
                        tracing::warn!(
                            error = "no answer in time (timeout)",
                            "cannot check whether the webhook is in force"
                        );
                        self.metrics.failed();
                    }
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether a second holder is denied. `None` if no binding is held and a conversation can be created.
    async fn check(&self) -> Result<Option<bool>, Error> {
        let Some(binding) = self.held_binding().await? else {
            try_once(self.client.clone(), &self.namespace).await?;
            return Ok(None);
        };
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), &self.namespace);
        match conversations.create(&dry_run, &second_holder(&binding)).await {
            // If the binding was released meanwhile, the result is unknown.
            Ok(_) => Ok((self.held_binding().await?.as_ref() == Some(&binding)).then_some(false)),
            Err(error) if is_denial(&error) => Ok(Some(true)),
            Err(error) => Err(error.into()),
        }
    }

    /// A binding that a conversation holds.
    async fn held_binding(&self) -> Result<Option<Binding>, Error> {
        let claims = Api::<AddressBinding>::all(self.client.clone());
        for claim in claims.list(&ListParams::default().limit(CLAIMS)).await?.iter().filter_map(claim_of) {
            let holder = self.claims.stored(&claim.holder).await?;
            if holder.is_some_and(|holder| claim.is_held_by(&holder)) {
                return Ok(Some(claim.binding));
            }
        }
        Ok(None)
    }
}

/// Checks by a dry run that a conversation can be created in `namespace`. A denial because the binding is held, or because the namespace may
/// not use the proxy address, is a success too, because it comes from the webhook.
///
/// # Errors
/// If a conversation cannot be created.
pub async fn try_once(client: Client, namespace: &str) -> Result<(), kube::Error> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let conversation = conversation(Channel::Chat, NAME.to_owned(), format!("{NAME}-proxy"));
    match Api::<Conversation>::namespaced(client, namespace).create(&dry_run, &conversation).await {
        Ok(_) => Ok(()),
        Err(error) if is_denial(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the webhook denied the create because another conversation holds the binding, or because of a missing grant.
fn is_denial(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| [ALREADY_BOUND, NOT_GRANTED].contains(&cause.reason.as_str()))
}

fn second_holder(binding: &Binding) -> Conversation {
    conversation(binding.channel(), binding.contact().to_string(), binding.proxy().to_string())
}

fn conversation(channel: Channel, contact: String, proxy: String) -> Conversation {
    let spec = ConversationSpec {
        channel,
        contact: Some(Contact { address: contact, display_name: None }),
        proxy: Proxy { address: proxy },
        state: None,
        participants: None,
        timers: None,
        ttl_after_closed: None,
        on_conflict: None,
    };
    Conversation::new(NAME, spec)
}
