//! Asks the API server whether the webhook is in force: a conversation for a binding that another one holds is created as a dry run,
//! which must be refused; where none is held, one that must be admitted. It writes nothing and decides nothing; metrics tell what it
//! found.

use crate::api::{AddressBinding, Channel, Contact, Conversation, ConversationSpec, Proxy};
use crate::claims::{self, Claims, claim_of};
use crate::core::binding::Binding;
use crate::core::denial::ALREADY_BOUND;
use crate::leader::Leadership;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::metrics::Metrics;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long between two attempts.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// How long one attempt may take: longer than the API server waits for the webhook (10 s), so that it can say that it did in vain.
const CHECK_TIMEOUT: Duration = Duration::from_secs(12);
/// How many claims are looked at for one whose conversation holds it.
const CLAIMS: u32 = 5;
/// What the conversation that is never made would be called.
const NAME: &str = "switchboard-self-check";

/// Asks while this replica leads.
pub struct SelfCheck {
    client: Client,
    claims: Claims,
    namespace: String,
    leadership: Leadership,
    metrics: Metrics,
}

/// Why it could not be found out.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Claims(#[from] claims::Error),
}

impl SelfCheck {
    /// One that asks in `namespace`, where the operator may create conversations, and tells by `metrics`.
    #[must_use]
    pub fn new(client: Client, claims: Claims, namespace: String, leadership: Leadership, metrics: Metrics) -> Self {
        Self { client, claims, namespace, leadership, metrics }
    }

    /// Asks for as long as the process lives.
    pub async fn run(self) {
        loop {
            if self.leadership.is_leader() {
                match timeout(CHECK_TIMEOUT, self.ask()).await {
                    Ok(Ok(found)) => {
                        if found == Some(false) {
                            tracing::error!("the API server admits a second holder without asking the webhook");
                        }
                        self.metrics.webhook_in_force(found);
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(error = %ErrorChain(&error), "cannot find out whether the webhook is in force");
                        self.metrics.self_check_failed();
                    }
                    Err(_) => {
                        tracing::warn!(
                            error = "no answer in time (timeout)",
                            "cannot find out whether the webhook is in force"
                        );
                        self.metrics.self_check_failed();
                    }
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether a second holder is refused; nothing where there is no first one, and a conversation can be created.
    async fn ask(&self) -> Result<Option<bool>, Error> {
        let Some(binding) = self.held().await? else {
            try_once(self.client.clone(), &self.namespace).await?;
            return Ok(None);
        };
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), &self.namespace);
        match conversations.create(&dry_run, &second_holder(&binding)).await {
            // It may have been set free in between, and then nothing is known.
            Ok(_) => Ok((self.held().await?.as_ref() == Some(&binding)).then_some(false)),
            Err(error) if is_refusal(&error) => Ok(Some(true)),
            Err(error) => Err(error.into()),
        }
    }

    /// A binding that a conversation holds.
    async fn held(&self) -> Result<Option<Binding>, Error> {
        let claims = Api::<AddressBinding>::all(self.client.clone());
        for claim in claims.list(&ListParams::default().limit(CLAIMS)).await?.iter().filter_map(claim_of) {
            let holder = self.claims.stored(&claim.holder).await?;
            if holder.is_some_and(|holder| holder.held_binding.as_ref() == Some(&claim.name)) {
                return Ok(Some(claim.binding));
            }
        }
        Ok(None)
    }
}

/// Tries by a dry run whether a conversation can be created in `namespace`; the error is what stands in the way. That somebody holds
/// its binding does not: whoever says so is the webhook.
pub async fn try_once(client: Client, namespace: &str) -> Result<(), kube::Error> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let conversation = conversation(Channel::Chat, NAME.to_owned(), format!("{NAME}-proxy"));
    match Api::<Conversation>::namespaced(client, namespace).create(&dry_run, &conversation).await {
        Ok(_) => Ok(()),
        Err(error) if is_refusal(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the webhook said that another conversation holds the binding.
fn is_refusal(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == ALREADY_BOUND)
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
    };
    Conversation::new(NAME, spec)
}
