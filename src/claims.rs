//! The only writer of AddressBindings. It executes the steps of `core::claim` against the API server and decides nothing.

mod metrics;

pub use metrics::ClaimMetrics;

use crate::api::{AddressBinding, AddressBindingSpec, Admission, Conversation, ConversationReference, FIELD_MANAGER};
use crate::clock::Clock;
use crate::core::binding::{Binding, BindingName};
use crate::core::claim::{
    AdmitStep, Claim, Decision, LiveConversation, Observation, Request, Source, Undecided, Write, admit,
};
use crate::kube_error::ErrorClass;
use crate::telemetry::error_chain::ErrorChain;
use kube::api::{DeleteParams, GetParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use metrics::{Operation, WriteOutcome};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// The time that a create waits for another create or a release before it is answered with a 503. Longer waits would occupy
/// seats of the API server.
const WAIT_TIMEOUT: Duration = Duration::from_secs(1);
/// The first interval between two reads of a claim. It doubles each time, up to [`MAX_POLL_INTERVAL`].
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(5);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(80);

/// The claims of the cluster.
#[derive(Clone)]
pub struct Claims {
    client: Client,
    clock: Clock,
    grace_period: Duration,
    metrics: ClaimMetrics,
}

/// A failure to read or write a claim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request to the API server failed.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// The name of an AddressBinding does not match its binding. To create or delete it, a client must bypass the admission
    /// policy of the chart.
    #[error("the name of AddressBinding {0} does not match its binding; delete it")]
    NameMismatch(BindingName),
}

/// The outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect.
    Applied,
    /// A precondition failed: the claim has changed since it was read.
    Conflict,
}

impl Claims {
    /// The claims of the cluster of `client`. `grace_period` is the time within which an admitted create is stored or fails.
    /// Writes are counted in `metrics`.
    #[must_use]
    pub fn new(client: Client, clock: Clock, grace_period: Duration, metrics: ClaimMetrics) -> Self {
        Self { client, clock, grace_period, metrics }
    }

    /// The time within which an admitted create is stored or fails.
    #[must_use]
    pub fn grace_period(&self) -> Duration {
        self.grace_period
    }

    /// The clock by which it decides.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Claims the binding for a create, or decides why not. Nothing is written after `deadline`.
    pub async fn admit(&self, request: &Request, deadline: Instant) -> Decision {
        let started = self.clock.monotonic();
        let mut pause = MIN_POLL_INTERVAL;
        let mut observation = Observation::Nothing;
        // The admissions that the last read of the claim showed, and since when.
        let mut unchanged: Option<(Vec<Admission>, Instant)> = None;
        loop {
            let step = admit(request, observation, self.clock.now(), self.grace_period);
            let observed = match step {
                AdmitStep::Decide(decision) => return decision,
                AdmitStep::Wait(why) => {
                    let give_up_waiting = deadline.min(started + max_wait(request, &why));
                    let left = give_up_waiting.saturating_duration_since(self.clock.monotonic());
                    if left.is_zero() {
                        return request.undecided(why);
                    }
                    sleep(pause.min(left)).await;
                    pause = (pause * 2).min(MAX_POLL_INTERVAL);
                    observation = Observation::Changed;
                    continue;
                }
                step => timeout_at(deadline, self.observe(request, step, &mut unchanged)).await,
            };
            observation = match observed {
                Ok(Ok(observation)) => observation,
                Ok(Err(error)) => {
                    tracing::warn!(error = %ErrorChain(&error), binding = %request.binding.name(), "failed to read or write the claim");
                    return request.undecided(Undecided::ApiServer);
                }
                Err(_) => return request.undecided(Undecided::ApiServer),
            };
        }
    }

    async fn observe(
        &self,
        request: &Request,
        step: AdmitStep,
        unchanged: &mut Option<(Vec<Admission>, Instant)>,
    ) -> Result<Observation, Error> {
        match step {
            AdmitStep::ReadName(source) => {
                Ok(Observation::Name(source, self.exists(&request.conversation, source).await?))
            }
            AdmitStep::ReadClaim => Ok(Observation::Claim(self.read(&request.binding.name()).await?)),
            AdmitStep::ReadHolder(claim) => {
                let now = self.clock.monotonic();
                let since = match unchanged {
                    Some((admissions, since)) if *admissions == claim.admissions => *since,
                    _ => unchanged.insert((claim.admissions.clone(), now)).1,
                };
                let live = self.stored(&claim.holder).await?;
                Ok(Observation::Holder { claim, live, unchanged_for: now.duration_since(since) })
            }
            AdmitStep::Write(write) => Ok(match self.write(&request.binding, write).await? {
                Outcome::Applied => Observation::Written,
                Outcome::Conflict => Observation::Changed,
            }),
            AdmitStep::Wait(_) | AdmitStep::Decide(_) => Ok(Observation::Changed),
        }
    }

    /// Whether a conversation of this name is stored.
    pub async fn exists(&self, conversation: &ConversationReference, source: Source) -> Result<bool, Error> {
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), &conversation.namespace);
        let parameters = match source {
            Source::Cache => GetParams::any(),
            Source::Live => GetParams::default(),
        };
        match conversations.get_metadata_with(&conversation.name, &parameters).await {
            Ok(_) => Ok(true),
            Err(error) if ErrorClass::of(&error).is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a claim live.
    pub async fn read(&self, name: &BindingName) -> Result<Option<Claim>, Error> {
        match Api::<AddressBinding>::all(self.client.clone()).get_opt(name.as_str()).await? {
            None => Ok(None),
            Some(object) => claim_of(&object).map(Some).ok_or_else(|| Error::NameMismatch(name.clone())),
        }
    }

    /// Reads a conversation live, reduced to the fields that the protocol uses.
    pub async fn stored(&self, place: &ConversationReference) -> Result<Option<LiveConversation>, Error> {
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), &place.namespace);
        Ok(conversations.get_opt(&place.name).await?.as_ref().map(LiveConversation::of))
    }

    /// Executes one write with its preconditions.
    pub async fn write(&self, binding: &Binding, write: Write) -> Result<Outcome, Error> {
        let claims = Api::<AddressBinding>::all(self.client.clone());
        let name = binding.name();
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let object = |holder, admissions| {
            let spec = AddressBindingSpec {
                channel: binding.channel(),
                contact_address: binding.contact().to_string(),
                proxy_address: binding.proxy().to_string(),
                conversation_ref: holder,
                admissions,
            };
            AddressBinding::new(name.as_str(), spec)
        };
        let (operation, result) = match write {
            Write::Create { holder, admissions } => {
                let created = claims.create(&parameters, &object(holder, admissions)).await;
                (Operation::Create, created.map(drop))
            }
            Write::Replace { uid, resource_version, holder, admissions } => {
                let mut object = object(holder, admissions);
                object.meta_mut().uid = Some(uid);
                object.meta_mut().resource_version = Some(resource_version);
                let replaced = claims.replace(name.as_str(), &parameters, &object).await;
                (Operation::Replace, replaced.map(drop))
            }
            Write::Delete { uid, resource_version } => {
                let preconditions = Preconditions { uid: Some(uid), resource_version: Some(resource_version) };
                let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                let deleted = claims.delete(name.as_str(), &parameters).await;
                (Operation::Delete, deleted.map(drop))
            }
        };
        let (counted, outcome) = match result {
            Ok(()) => (WriteOutcome::Applied, Ok(Outcome::Applied)),
            Err(error) if is_lost(operation, &error) => (WriteOutcome::Conflict, Ok(Outcome::Conflict)),
            Err(error) => (WriteOutcome::Failed, Err(error.into())),
        };
        self.metrics.written(operation, counted);
        outcome
    }
}

/// How long a create waits for the reason that `why` gives. Before it adds its UID to the claim of its own name, it waits for
/// the other creates of that name, so it has longer.
fn max_wait(request: &Request, why: &Undecided) -> Duration {
    let is_own_name = matches!(why, Undecided::Create { conversation, .. } if *conversation == request.conversation);
    if is_own_name { 2 * WAIT_TIMEOUT } else { WAIT_TIMEOUT }
}

/// Whether another writer was first. A create whose claim is not found has failed for another reason.
fn is_lost(operation: Operation, error: &kube::Error) -> bool {
    let class = ErrorClass::of(error);
    match operation {
        Operation::Create => class.is_conflict(),
        Operation::Replace | Operation::Delete => class.is_stale(),
    }
}

/// The claim that an `AddressBinding` represents, or `None` if its name does not match its binding.
#[must_use]
pub fn claim_of(object: &AddressBinding) -> Option<Claim> {
    let binding = Binding::claimed(&object.spec).ok()?;
    let name = binding.name();
    if object.name_any() != name.as_str() {
        return None;
    }
    Some(Claim {
        binding,
        name,
        uid: object.uid()?,
        resource_version: object.resource_version()?,
        is_being_deleted: object.metadata.deletion_timestamp.is_some(),
        holder: object.spec.conversation_ref.clone(),
        admissions: object.spec.admissions.clone(),
    })
}
