//! Pieces of work that talk to the API server. Each ends in a write with a precondition, or in none. The only writer of status.

use super::index::{ConversationLookup, Deletion, PendingEvent, Release, StatusWrite, fingerprint};
use super::keys::{NamespacedName, Uid, Version};
use super::metrics::{ControllerMetrics, ErrorClass, TaskKind};
use super::queue::{Backoff, Task};
use crate::api::{Conversation, FIELD_MANAGER, State, Time};
use crate::claims::{self, Claims, Outcome};
use crate::clock::Clock;
use crate::core::binding::Binding;
use crate::core::claim::{CreateStatus, ReleaseStep, Write, adopt, release};
use crate::core::denial::{Disclosure, already_bound_message};
use crate::core::lifecycle::{BindingStatus, Notice, decide, due, expired, new_notices};
use crate::kube_error;
use crate::leader::Leadership;
use crate::telemetry::error_chain::ErrorChain;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Resource};
use std::time::Duration;
use tokio::time::timeout;

/// How long one piece of work may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// What carries work out.
#[derive(Clone)]
pub struct Worker {
    client: Client,
    claims: Claims,
    clock: Clock,
    leadership: Leadership,
    metrics: ControllerMetrics,
}

/// A piece of work has ended.
#[derive(Debug)]
pub struct JobResult {
    /// Which.
    pub task: Task,
    /// What follows.
    pub next: JobOutcome,
}

/// What follows a piece of work.
#[derive(Debug)]
pub enum JobOutcome {
    /// Nothing: it came out well, or what it rested on has changed, which an event will tell.
    Nothing,
    /// The conversation is as it should be until then.
    Wake(Option<Time>),
    /// The status of the conversation was written, and is as it should be until then.
    Written {
        /// The version that the write rested on, where it has changed something.
        changed: Option<Version>,
        /// When the state will change by itself.
        wake: Option<Time>,
        /// What people are to be told.
        pending_events: Vec<PendingEvent>,
    },
    /// The conversation was deleted.
    Deleted {
        /// What people are to be told.
        pending_events: Vec<PendingEvent>,
    },
    /// Something else is to be looked at.
    Enqueue(Task),
    /// The claim is to be looked at again when the grace period of its creates in flight is over.
    AwaitGrace,
    /// The same again, after a while.
    Retry(Backoff),
}

/// Why a piece of work failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Claims(#[from] claims::Error),
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time (timeout)")]
    TimedOut,
}

impl Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Claims(claims::Error::NameMismatch(_)) => ErrorClass::NameMismatch,
            Self::Claims(claims::Error::Api(error)) | Self::Api(error) => error.into(),
            Self::TimedOut => ErrorClass::TimedOut,
        }
    }

    fn backoff(&self) -> Backoff {
        match self {
            Self::Claims(claims::Error::NameMismatch(_)) => Backoff::Refused,
            Self::Claims(claims::Error::Api(error)) | Self::Api(error) => backoff(error),
            Self::TimedOut => Backoff::Transient,
        }
    }
}

/// Whether the same request may succeed a moment later.
pub fn backoff(error: &kube::Error) -> Backoff {
    if kube_error::ErrorClass::of(error).is_transient() { Backoff::Transient } else { Backoff::Refused }
}

impl Worker {
    /// One that writes while `leadership` says so.
    #[must_use]
    pub fn new(
        client: Client,
        claims: Claims,
        clock: Clock,
        leadership: Leadership,
        metrics: ControllerMetrics,
    ) -> Self {
        Self { client, claims, clock, leadership, metrics }
    }

    /// Writes a status.
    pub async fn write_status(self, task: Task, write: Box<StatusWrite>) -> JobResult {
        self.finish(task, self.apply(*write)).await
    }

    /// Deletes a closed conversation whose time to live is over.
    pub async fn delete(self, task: Task, deletion: Deletion) -> JobResult {
        self.finish(task, self.expire(deletion)).await
    }

    /// Finds out who holds the binding of a conversation, and writes its status accordingly.
    pub async fn resolve(self, task: Task, lookup: Box<ConversationLookup>) -> JobResult {
        self.finish(task, self.find_holder(*lookup)).await
    }

    /// Releases or prunes a claim, if it is time.
    pub async fn release(self, task: Task, to_release: Box<Release>) -> JobResult {
        self.finish(task, self.try_release(*to_release)).await
    }

    async fn finish(&self, task: Task, work: impl Future<Output = Result<JobOutcome, Error>>) -> JobResult {
        let began = self.clock.monotonic();
        let ended = timeout(REQUEST_TIMEOUT, work).await.unwrap_or(Err(Error::TimedOut));
        let kind = match &task {
            Task::Conversation(_) => TaskKind::Conversation,
            Task::Claim(_) => TaskKind::Claim,
        };
        let took = self.clock.monotonic().duration_since(began);
        self.metrics.reconciled(kind, took, ended.as_ref().err().map(Error::class));
        let next = match ended {
            Ok(next) => next,
            Err(error) => {
                let backoff = error.backoff();
                tracing::warn!(
                    error = %ErrorChain(&error), %task, class = error.class().as_str(),
                    "a piece of work failed, and is tried again"
                );
                JobOutcome::Retry(backoff)
            }
        };
        JobResult { task, next }
    }

    async fn apply(&self, write: StatusWrite) -> Result<JobOutcome, Error> {
        let StatusWrite { key, uid, version, notices, is_routine: _, status, wake, due } = write;
        if !self.leadership.is_leader() {
            return Ok(JobOutcome::Nothing);
        }
        let state = status.state.map(State::as_str);
        let patch = serde_json::json!({
            "apiVersion": Conversation::api_version(&()),
            "kind": Conversation::kind(&()),
            "metadata": {"name": key.name(), "namespace": key.namespace(), "resourceVersion": version.to_string()},
            "status": status,
        });
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), key.namespace());
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match conversations.patch_status(key.name(), &parameters, &Patch::Apply(patch)).await {
            Ok(written) => {
                tracing::debug!(conversation = %key, state, "wrote the status");
                if let Some(due) = due {
                    self.metrics.late(Duration::from_millis(self.clock.now().milliseconds_since(due)));
                }
                // What changes nothing makes no event.
                let is_changed =
                    written.metadata.resource_version.as_deref().map(Version::from).as_ref() != Some(&version);
                let pending_events = pending_events(&key, &uid, notices);
                Ok(JobOutcome::Written { changed: is_changed.then_some(version), wake, pending_events })
            }
            // It has changed, or is gone: the event that tells so makes for a new decision.
            Err(error) if kube_error::ErrorClass::of(&error).is_stale() => Ok(JobOutcome::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    async fn expire(&self, deletion: Deletion) -> Result<JobOutcome, Error> {
        if !self.leadership.is_leader() {
            return Ok(JobOutcome::Nothing);
        }
        let Deletion { key, uid, version, expiry } = deletion;
        let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: Some(version.to_string()) };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), key.namespace());
        match conversations.delete(key.name(), &parameters).await {
            Ok(_) => {
                tracing::debug!(conversation = %key, "deleted a closed conversation whose time to live is over");
                Ok(JobOutcome::Deleted { pending_events: pending_events(&key, &uid, vec![expired(expiry)]) })
            }
            // It has changed, or is gone: an event tells so.
            Err(error) if kube_error::ErrorClass::of(&error).is_stale() => Ok(JobOutcome::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    async fn find_holder(&self, lookup: ConversationLookup) -> Result<JobOutcome, Error> {
        let ConversationLookup { key, uid, version, input, fingerprint: stored, is_first } = lookup;
        let Some(name) = input.binding.clone() else {
            return Ok(JobOutcome::Nothing);
        };
        let binding_status = match self.claims.read(&name).await? {
            None if is_first => return self.claim(&key, &uid).await,
            None => return Ok(JobOutcome::Nothing),
            // The watch of the claims has shown it meanwhile, or is about to.
            Some(claim) if NamespacedName::from(&claim.holder) == key => return Ok(JobOutcome::Nothing),
            Some(claim) => match self.claims.stored(&claim.holder).await? {
                Some(holder) if holder.held_binding.as_ref() == Some(&name) => {
                    let disclosure = if claim.holder.namespace == key.namespace() {
                        Disclosure::Full
                    } else {
                        Disclosure::OtherNamespace
                    };
                    BindingStatus::HeldByAnother(already_bound_message(
                        &claim.binding,
                        &claim.holder,
                        &holder,
                        disclosure,
                    ))
                }
                _ => return Ok(JobOutcome::Enqueue(Task::Claim(name))),
            },
        };
        let decision = decide(&input, Some(&binding_status), self.clock.now());
        if fingerprint(&decision.status) == stored {
            return Ok(JobOutcome::Wake(decision.next));
        }
        let notices = new_notices(&input.status, &decision.status);
        let due = due(&input, &decision.status);
        let (status, wake) = (decision.status, decision.next);
        self.apply(StatusWrite { key, uid, version, notices, is_routine: false, status, wake, due }).await
    }

    /// Claims the binding of a conversation that no webhook saw.
    async fn claim(&self, key: &NamespacedName, uid: &Uid) -> Result<JobOutcome, Error> {
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), key.namespace());
        let live = conversations.get_opt(key.name()).await?;
        let live = live.filter(|live| live.metadata.uid.as_deref().map(Uid::from).as_ref() == Some(uid));
        // Where it is another one by now, or names no binding, an event tells so.
        let Some(binding) = live.and_then(|live| Binding::of(&live.spec).ok().flatten()) else {
            return Ok(JobOutcome::Nothing);
        };
        if !self.leadership.is_leader() {
            return Ok(JobOutcome::Nothing);
        }
        let write = adopt(key.reference(), uid.to_string(), self.clock.now());
        if self.claims.write(&binding, write).await? == Outcome::Applied {
            tracing::debug!(conversation = %key, binding = %binding.name(), "claimed the binding of a conversation that had no claim");
        }
        // The claim, whosever it is, comes back as an event, and with it this conversation.
        Ok(JobOutcome::Nothing)
    }

    async fn try_release(&self, to_release: Release) -> Result<JobOutcome, Error> {
        let Release { claim, create_statuses } = to_release;
        // In this order: the claim came from the watch, and the conversation is read after it.
        let live = self.claims.stored(&claim.holder).await?;
        let create_status = |uid: &str| create_statuses.get(&Uid::from(uid)).copied().unwrap_or(CreateStatus::InFlight);
        match release(&claim, live.as_ref(), create_status) {
            ReleaseStep::Keep => Ok(JobOutcome::Nothing),
            ReleaseStep::AwaitGrace => Ok(JobOutcome::AwaitGrace),
            ReleaseStep::Write(write) => {
                if !self.leadership.is_leader() {
                    return Ok(JobOutcome::Nothing);
                }
                let is_release = matches!(write, Write::Delete { .. });
                let message = if is_release { "releasing a claim" } else { "pruning a claim" };
                tracing::debug!(conversation = %claim.holder, binding = %claim.name, "{message}");
                if self.claims.write(&claim.binding, write).await? == Outcome::Applied && is_release {
                    self.metrics.released(
                        create_statuses.values().any(|create_status| *create_status == CreateStatus::Expired),
                    );
                }
                Ok(JobOutcome::Nothing)
            }
        }
    }
}

fn pending_events(key: &NamespacedName, uid: &Uid, notices: Vec<Notice>) -> Vec<PendingEvent> {
    notices.into_iter().map(|notice| PendingEvent { key: key.clone(), uid: uid.clone(), notice }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn what_cannot_succeed_without_a_change_waits_longer_than_what_may_succeed_a_moment_later() {
        let answered = |code| backoff(&kube::Error::Api(Status { code, ..Status::default() }.boxed()));
        for code in [400, 403, 404, 405, 413, 415, 422] {
            assert_eq!(answered(code), Backoff::Refused, "{code}");
        }
        for code in [401, 408, 409, 410, 429, 500, 502, 503, 504] {
            assert_eq!(answered(code), Backoff::Transient, "{code}");
        }
        let unreadable = serde_json::from_str::<u8>("").unwrap_err();
        assert_eq!(backoff(&kube::Error::SerdeError(unreadable)), Backoff::Refused);
        assert_eq!(Error::TimedOut.backoff(), Backoff::Transient);
    }
}
