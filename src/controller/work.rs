//! Pieces of work that talk to the API server. Each ends in a write with a precondition, or in none. The only writer of status.

use super::index::{Deletion, Question, Release, StatusWrite, fingerprint};
use super::queue::Task;
use crate::api::{Conversation, Time};
use crate::claims::{self, Claims, FIELD_MANAGER, Outcome};
use crate::clock::Clock;
use crate::core::claim::{ReleaseStep, Standing, Write, adopt, release};
use crate::core::lifecycle::{Holding, decide, due, expired, news};
use crate::core::refusal::{Disclosure, already_bound_message};
use crate::leader::Leadership;
use crate::telemetry::events::Events;
use crate::telemetry::metrics::{Failure, Metrics, Reconciled};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Resource};
use std::time::Duration;
use tokio::time::timeout;

/// How long one piece of work may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// What carries work out.
#[derive(Clone)]
pub struct Worker {
    client: Client,
    claims: Claims,
    clock: Clock,
    leadership: Leadership,
    events: Events,
    metrics: Metrics,
}

/// A piece of work has ended.
#[derive(Debug)]
pub struct Finished {
    /// Which.
    pub task: Task,
    /// What follows.
    pub next: Next,
}

/// What follows a piece of work.
#[derive(Debug)]
pub enum Next {
    /// Nothing: it came out well, or what it rested on has changed, which an event will tell.
    Nothing,
    /// The conversation is as it should be until then.
    Wake(Option<Time>),
    /// The status of the conversation was changed, on that version of it, and is as it should be until then.
    Written {
        /// The version that the write rested on.
        resource_version: String,
        /// When the state will change by itself.
        wake: Option<Time>,
    },
    /// Something else is to be looked at.
    LookAt(Task),
    /// The claim is to be looked at again when the grace period of its creates in flight is over.
    AwaitGrace,
    /// The same again, after a while.
    Retry,
}

/// Why a piece of work failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Claims(#[from] claims::Error),
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    TimedOut,
}

impl Error {
    fn class(&self) -> Failure {
        match self {
            Self::Claims(claims::Error::Foreign(_)) => Failure::Foreign,
            Self::Claims(claims::Error::Api(error)) | Self::Api(error) => Failure::of(error),
            Self::TimedOut => Failure::TimedOut,
        }
    }
}

impl Worker {
    /// One that writes while `leadership` says so.
    #[must_use]
    pub fn new(
        client: Client,
        claims: Claims,
        clock: Clock,
        leadership: Leadership,
        events: Events,
        metrics: Metrics,
    ) -> Self {
        Self { client, claims, clock, leadership, events, metrics }
    }

    /// Writes a status.
    pub async fn write_status(self, task: Task, write: Box<StatusWrite>) -> Finished {
        self.finish(task, self.apply(*write)).await
    }

    /// Deletes a closed conversation whose time to live is over.
    pub async fn delete(self, task: Task, deletion: Deletion) -> Finished {
        self.finish(task, self.expire(deletion)).await
    }

    /// Finds out who holds the binding of a conversation, and writes its status accordingly.
    pub async fn resolve(self, task: Task, question: Box<Question>) -> Finished {
        self.finish(task, self.find_holder(*question)).await
    }

    /// Releases or prunes a claim, if it is time.
    pub async fn release(self, task: Task, to_release: Box<Release>) -> Finished {
        self.finish(task, self.try_release(*to_release)).await
    }

    async fn finish(&self, task: Task, work: impl Future<Output = Result<Next, Error>>) -> Finished {
        let began = self.clock.monotonic();
        let ended = timeout(PATIENCE, work).await.unwrap_or(Err(Error::TimedOut));
        let kind = match &task {
            Task::Conversation(_) => Reconciled::Conversation,
            Task::Claim(_) => Reconciled::Claim,
        };
        let took = self.clock.monotonic().duration_since(began);
        self.metrics.reconciled(kind, took, ended.as_ref().err().map(Error::class));
        let next = match ended {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, ?task, "a piece of work failed, and is tried again");
                Next::Retry
            }
        };
        Finished { task, next }
    }

    async fn apply(&self, write: StatusWrite) -> Result<Next, Error> {
        let StatusWrite { place, uid, resource_version, news, status, wake, due } = write;
        if !self.leadership.leads() {
            return Ok(Next::Nothing);
        }
        let state = status.state;
        let patch = serde_json::json!({
            "apiVersion": Conversation::api_version(&()),
            "kind": Conversation::kind(&()),
            "metadata": {"name": place.name, "namespace": place.namespace, "resourceVersion": resource_version},
            "status": status,
        });
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), &place.namespace);
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match conversations.patch_status(&place.name, &parameters, &Patch::Apply(patch)).await {
            Ok(written) => {
                tracing::info!(conversation = %place, ?state, "wrote the status");
                if let Some(due) = due {
                    self.metrics.late(Duration::from_millis(self.clock.now().milliseconds_since(due)));
                }
                for fact in &news {
                    self.events.tell(&place, &uid, fact).await;
                }
                // What changes nothing makes no event.
                let is_changed = written.metadata.resource_version.as_deref() != Some(&resource_version);
                Ok(if is_changed { Next::Written { resource_version, wake } } else { Next::Wake(wake) })
            }
            // It has changed, or is gone: the event that tells so makes for a new decision.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(Next::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    async fn expire(&self, deletion: Deletion) -> Result<Next, Error> {
        if !self.leadership.leads() {
            return Ok(Next::Nothing);
        }
        let Deletion { place, uid, resource_version, expiry } = deletion;
        let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: Some(resource_version) };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), &place.namespace);
        match conversations.delete(&place.name, &parameters).await {
            Ok(_) => {
                tracing::info!(conversation = %place, "deleted a closed conversation whose time to live is over");
                self.events.tell(&place, &uid, &expired(expiry)).await;
                Ok(Next::Nothing)
            }
            // It has changed, or is gone: an event tells so.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(Next::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    async fn find_holder(&self, question: Question) -> Result<Next, Error> {
        let Question { place, uid, resource_version, facts, fingerprint: stored, is_first } = question;
        let Some(binding) = facts.binding.clone() else {
            return Ok(Next::Nothing);
        };
        let name = binding.name();
        let holding = match self.claims.read(&name).await? {
            None if !is_first => return Ok(Next::Nothing),
            None => {
                if !self.leadership.leads() {
                    return Ok(Next::Nothing);
                }
                let write = adopt((*place).clone(), uid.clone(), self.clock.now());
                match self.claims.write(&binding, write).await? {
                    Outcome::Done => {
                        tracing::info!(conversation = %place, binding = %name, "claimed the binding of a conversation that had no claim");
                    }
                    Outcome::Lost => {}
                }
                // The claim, whosever it is, comes back as an event, and with it this conversation.
                return Ok(Next::Nothing);
            }
            // The watch of the claims has shown it meanwhile, or is about to.
            Some(claim) if claim.holder == *place => return Ok(Next::Nothing),
            Some(claim) => match self.claims.stored(&claim.holder).await? {
                Some(holder) if holder.holds.as_ref() == Some(&name) => {
                    let disclosure = if claim.holder.namespace == place.namespace {
                        Disclosure::Full
                    } else {
                        Disclosure::OtherNamespace
                    };
                    Holding::HeldByAnother(already_bound_message(&binding, &claim.holder, &holder, disclosure))
                }
                _ => return Ok(Next::LookAt(Task::Claim(name))),
            },
        };
        let decision = decide(&facts, Some(&holding), self.clock.now());
        if fingerprint(&decision.status) == stored {
            return Ok(Next::Wake(decision.next));
        }
        let news = news(&facts.status, &decision.status);
        let due = due(&facts, &decision.status);
        let (status, wake) = (decision.status, decision.next);
        self.apply(StatusWrite { place, uid, resource_version, news, status, wake, due }).await
    }

    async fn try_release(&self, to_release: Release) -> Result<Next, Error> {
        let Release { claim, standings } = to_release;
        // In this order: the claim came from the watch, and the conversation is read after it.
        let live = self.claims.stored(&claim.holder).await?;
        let standing = |uid: &str| standings.get(uid).copied().unwrap_or(Standing::InFlight);
        match release(&claim, live.as_ref(), standing) {
            ReleaseStep::Keep => Ok(Next::Nothing),
            ReleaseStep::AwaitGrace => Ok(Next::AwaitGrace),
            ReleaseStep::Write(write) => {
                if !self.leadership.leads() {
                    return Ok(Next::Nothing);
                }
                tracing::info!(conversation = %claim.holder, binding = %claim.name, ?write, "releasing or pruning a claim");
                let is_release = matches!(write, Write::Delete { .. });
                if self.claims.write(&claim.binding, write).await? == Outcome::Done && is_release {
                    self.metrics.released(standings.values().any(|standing| *standing == Standing::Expired));
                }
                Ok(Next::Nothing)
            }
        }
    }
}
