//! Jobs: the parts of tasks that call the API server. Each ends in a write with a precondition, or in none. The only writer of
//! status.

use super::events::PendingEvent;
use super::index::Entry;
use super::keys::{NamespacedName, Uid, Version};
use super::metrics::{ControllerMetrics, ErrorClass, TaskKind};
use super::plan::{ConversationLookup, Deletion, Job, Release, StatusWrite};
use super::queue::Backoff;
use super::task::Task;
use crate::api::{Conversation, FIELD_MANAGER, State, Time};
use crate::claims::{self, Claims, Outcome};
use crate::clock::Clock;
use crate::core::claim::{CreateStatus, ReleaseStep, Write, adopt, release};
use crate::core::denial::{Disclosure, already_bound_message};
use crate::core::effective::stored_binding;
use crate::core::lifecycle::{BindingStatus, Notice, decide, expired};
use crate::kube_error;
use crate::leader::Leadership;
use crate::telemetry::error_chain::ErrorChain;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Resource};
use std::time::Duration;
use tokio::time::timeout;

/// How long one job may take.
const JOB_TIMEOUT: Duration = Duration::from_secs(8);

/// Runs jobs.
#[derive(Clone)]
pub struct Worker {
    client: Client,
    claims: Claims,
    clock: Clock,
    leadership: Leadership,
    metrics: ControllerMetrics,
}

/// The result of a job.
#[derive(Debug)]
pub struct JobResult {
    /// The task that the job belongs to.
    pub task: Task,
    /// Its outcome.
    pub outcome: JobOutcome,
}

/// The outcome of a job.
#[derive(Debug)]
pub enum JobOutcome {
    /// Nothing is left to do; or a precondition of the job no longer holds, and the event of that change adds the task again.
    Done,
    /// The stored status is the decided one until this deadline.
    UpToDate(Option<Time>),
    /// The status was written.
    Written {
        /// The version that the write was based on, if it changed the conversation.
        changed: Option<Version>,
        /// The next deadline.
        next: Option<Time>,
        /// The Events to record.
        pending_events: Vec<PendingEvent>,
    },
    /// The conversation was deleted.
    Deleted {
        /// The Events to record.
        pending_events: Vec<PendingEvent>,
    },
    /// Another task is to be processed.
    Enqueue(Task),
    /// The claim is to be checked again when the grace period of its creates in flight is over.
    AwaitGrace,
    /// The job failed and is to be retried.
    Retry(Backoff),
}

/// Why a job failed.
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
    /// A worker that writes while this replica is the leader.
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

    /// Runs `job` for `task`.
    pub async fn run(self, task: Task, job: Job) -> JobResult {
        let started = self.clock.monotonic();
        let result = timeout(JOB_TIMEOUT, self.attempt(job)).await.unwrap_or(Err(Error::TimedOut));
        let kind = match &task {
            Task::Conversation(_) => TaskKind::Conversation,
            Task::Claim(_) => TaskKind::Claim,
        };
        let took = self.clock.monotonic().duration_since(started);
        self.metrics.reconciled(kind, took, result.as_ref().err().map(Error::class));
        let outcome = result.unwrap_or_else(|error| {
            let class = error.class().as_str();
            tracing::warn!(error = %ErrorChain(&error), %task, class, "reconciliation failed; retrying");
            JobOutcome::Retry(error.backoff())
        });
        JobResult { task, outcome }
    }

    async fn attempt(&self, job: Job) -> Result<JobOutcome, Error> {
        match job {
            Job::WriteStatus(write) => self.write_status(*write).await,
            Job::Delete(deletion) => self.delete(deletion).await,
            Job::Resolve(lookup) => self.resolve(*lookup).await,
            Job::Release(to_release) => self.release(*to_release).await,
        }
    }

    async fn write_status(&self, write: StatusWrite) -> Result<JobOutcome, Error> {
        let StatusWrite { key, uid, version, notices, is_routine: _, status, next, due } = write;
        if !self.leadership.is_leader() {
            return Ok(JobOutcome::Done);
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
                    self.metrics.late(self.clock.now().duration_since(due));
                }
                // A write without a change makes no watch event.
                let is_changed =
                    written.metadata.resource_version.as_deref().map(Version::from).as_ref() != Some(&version);
                let pending_events = pending_events(&key, &uid, notices);
                Ok(JobOutcome::Written { changed: is_changed.then_some(version), next, pending_events })
            }
            Err(error) => unless_outdated(error),
        }
    }

    async fn delete(&self, deletion: Deletion) -> Result<JobOutcome, Error> {
        if !self.leadership.is_leader() {
            return Ok(JobOutcome::Done);
        }
        let Deletion { key, uid, version, expiry } = deletion;
        let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: Some(version.to_string()) };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), key.namespace());
        match conversations.delete(key.name(), &parameters).await {
            Ok(_) => {
                tracing::debug!(conversation = %key, "deleted a closed conversation whose time to live has elapsed");
                Ok(JobOutcome::Deleted { pending_events: pending_events(&key, &uid, vec![expired(expiry)]) })
            }
            Err(error) => unless_outdated(error),
        }
    }

    /// Finds the holder of the conversation's binding, and writes the status that follows.
    async fn resolve(
        &self,
        ConversationLookup { key, entry, is_first }: ConversationLookup,
    ) -> Result<JobOutcome, Error> {
        let Some(name) = entry.input.binding.clone() else {
            return Ok(JobOutcome::Done);
        };
        let claim = match self.claims.read(&name).await? {
            None if is_first => return self.claim(&key, &entry).await,
            None => return Ok(JobOutcome::Done),
            // The watch of the claims has shown it meanwhile, or is about to.
            Some(claim) if NamespacedName::from(&claim.holder) == key => return Ok(JobOutcome::Done),
            Some(claim) => claim,
        };
        let holder = self.claims.stored(&claim.holder).await?;
        let Some(holder) = holder.filter(|holder| holder.held_binding.as_ref() == Some(&name)) else {
            return Ok(JobOutcome::Enqueue(Task::Claim(name)));
        };
        let is_same_namespace = claim.holder.namespace == key.namespace();
        let disclosure = if is_same_namespace { Disclosure::Full(None) } else { Disclosure::OtherNamespace };
        let message = already_bound_message(&claim.binding, &claim.holder, &holder, &disclosure);
        let decision = decide(&entry.input, Some(&BindingStatus::HeldByAnother(message)), self.clock.now());
        let next = decision.next;
        match StatusWrite::of(&key, &entry, decision) {
            Some(write) => self.write_status(*write).await,
            None => Ok(JobOutcome::UpToDate(next)),
        }
    }

    /// Claims the binding of a conversation that was stored past the webhook.
    async fn claim(&self, key: &NamespacedName, entry: &Entry) -> Result<JobOutcome, Error> {
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), key.namespace());
        let live = conversations.get_opt(key.name()).await?;
        let live = live.filter(|live| live.metadata.uid.as_deref().map(Uid::from).as_ref() == Some(&entry.uid));
        // If it was replaced, or no longer holds a binding, an event says so.
        let Some(binding) = live.and_then(|live| stored_binding(&live).ok().flatten()) else {
            return Ok(JobOutcome::Done);
        };
        if !self.leadership.is_leader() {
            return Ok(JobOutcome::Done);
        }
        let write = adopt(key.reference(), entry.uid.to_string(), self.clock.now());
        if self.claims.write(&binding, write).await? == Outcome::Applied {
            let binding = binding.name();
            tracing::debug!(conversation = %key, %binding, "claimed the binding of a conversation without a claim");
        }
        // The event of the claim, whoever made it, adds the task of this conversation again.
        Ok(JobOutcome::Done)
    }

    async fn release(&self, Release { claim, create_statuses }: Release) -> Result<JobOutcome, Error> {
        // The order matters: the claim came from the watch, and the conversation is read after it.
        let live = self.claims.stored(&claim.holder).await?;
        let create_status = |uid: &str| create_statuses.get(&Uid::from(uid)).copied().unwrap_or(CreateStatus::InFlight);
        let write = match release(&claim, live.as_ref(), create_status) {
            ReleaseStep::Keep => return Ok(JobOutcome::Done),
            ReleaseStep::AwaitGrace => return Ok(JobOutcome::AwaitGrace),
            ReleaseStep::Write(write) => write,
        };
        if !self.leadership.is_leader() {
            return Ok(JobOutcome::Done);
        }
        let is_release = matches!(write, Write::Delete { .. });
        let message = if is_release { "releasing a claim" } else { "pruning a claim" };
        tracing::debug!(conversation = %claim.holder, binding = %claim.name, "{message}");
        if self.claims.write(&claim.binding, write).await? == Outcome::Applied && is_release {
            let is_orphan = create_statuses.values().any(|create_status| *create_status == CreateStatus::Expired);
            self.metrics.released(is_orphan);
        }
        Ok(JobOutcome::Done)
    }
}

/// The outcome of a write that was rejected. If the object has changed or is gone, the event of that change adds the task again.
fn unless_outdated(error: kube::Error) -> Result<JobOutcome, Error> {
    if kube_error::ErrorClass::of(&error).is_stale() { Ok(JobOutcome::Done) } else { Err(error.into()) }
}

fn pending_events(key: &NamespacedName, uid: &Uid, notices: Vec<Notice>) -> Vec<PendingEvent> {
    notices.into_iter().map(|notice| PendingEvent { key: key.clone(), uid: uid.clone(), notice }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn refused_requests_back_off_longer_than_transient_failures() {
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
