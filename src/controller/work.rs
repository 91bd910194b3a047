//! Jobs: the parts of tasks that call the API server. A job ends with one write, which has a precondition, or without a write. Only
//! this module writes statuses.

use super::events::{PendingEvent, pending_events};
use super::metrics::{ControllerMetrics, ErrorClass, TaskKind};
use super::plan::{ConversationLookup, Deletion, Job, Release, StatusWrite};
use super::proxy_addresses::ProxyAddressWrite;
use super::queue::Backoff;
use crate::api::{Conversation, FIELD_MANAGER, OnConflict, ProxyAddress, State, Time, Timers};
use crate::claims::{self, Claims, Outcome};
use crate::clock::Clock;
use crate::core::claim::{CreateStatus, ReleaseStep, Successor, Write, adopt, release};
use crate::core::effective::stored_binding;
use crate::core::lifecycle::{BindingStatus, decide, expired};
use crate::index::Entry;
use crate::index::Task;
use crate::index::{NamespacedName, ProxyKey, Uid, Version};
use crate::kube_error;
use crate::leader::Leadership;
use crate::proxy_addresses::{default_timers, read_in_effect};
use crate::telemetry::error_chain::ErrorChain;
use crate::watch::Guarded;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Resource};
use std::time::Duration;
use tokio::time::timeout;

/// The timeout of a job.
const JOB_TIMEOUT: Duration = Duration::from_secs(8);
/// The timeout of a live read of default timers, so that its answer is not outdated when it arrives.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// Nothing is left to do. Or a precondition of the job failed; then the watch event of the change adds the task again.
    Done,
    /// The stored status is up to date until this deadline.
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
    /// The default timers of a proxy address, read live.
    Defaults(Timers),
    /// Another task must be processed.
    Enqueue(Task),
    /// The status was not written, since a newer version than this one is stored.
    Outdated(Version),
    /// The claim must be checked again at the end of the grace period of its creates in flight.
    AwaitGrace,
    /// The job failed and must be retried.
    Retry {
        /// The delay of the retry.
        backoff: Backoff,
        /// The write of a status that failed.
        failed_write: Option<FailedWrite>,
        /// Whether a status may be stored whose Events are not recorded.
        may_lack_events: bool,
    },
}

/// A write of a status that failed.
#[derive(Debug)]
pub struct FailedWrite {
    /// The version that it was based on.
    pub version: Version,
    /// Whether it may still take effect. Otherwise the API server refused it.
    pub is_in_doubt: bool,
}

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Claims(#[from] claims::Error),
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// The write of a status.
    #[error("{0}")]
    Status(#[source] kube::Error),
    #[error("the API server did not answer in time (timeout)")]
    TimedOut,
}

impl Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Claims(claims::Error::NameMismatch(_)) => ErrorClass::NameMismatch,
            Self::Claims(claims::Error::Api(error)) | Self::Api(error) | Self::Status(error) => error.into(),
            Self::TimedOut => ErrorClass::TimedOut,
        }
    }

    fn backoff(&self) -> Backoff {
        match self {
            Self::Claims(claims::Error::NameMismatch(_)) => Backoff::Refused,
            Self::Claims(claims::Error::Api(error)) | Self::Api(error) | Self::Status(error) => backoff(error),
            Self::TimedOut => Backoff::Transient,
        }
    }
}

impl Error {
    /// Whether the API server refused to write a status, so that the write has no effect. After any other error it may have one.
    fn is_refused_status(&self) -> bool {
        let class = |error| kube_error::ErrorClass::of(error);
        matches!(self, Self::Status(error) if !class(error).is_transient() && class(error).is_answer())
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
        let bound_on = match &job {
            Job::WriteStatus(write) if write.is_bound => Some(write.version.clone()),
            _ => None,
        };
        let written_on = match &job {
            Job::WriteStatus(write) => Some(write.version.clone()),
            Job::Resolve(lookup) => Some(lookup.entry.version.clone()),
            Job::Delete(_) | Job::Release(_) | Job::WriteProxyAddress(_) | Job::ReadDefaults(_) => None,
        };
        let has_events = match &job {
            Job::WriteStatus(write) => !write.notices.is_empty(),
            Job::Resolve(_) => true,
            Job::Delete(_) | Job::Release(_) | Job::WriteProxyAddress(_) | Job::ReadDefaults(_) => false,
        };
        let result = timeout(JOB_TIMEOUT, self.attempt(job)).await.unwrap_or(Err(Error::TimedOut));
        let kind = match &task {
            Task::Conversation(_) => TaskKind::Conversation,
            Task::Claim(_) => TaskKind::Claim,
            Task::ProxyAddress(_) => TaskKind::ProxyAddress,
            Task::Defaults(_) => TaskKind::Defaults,
        };
        let took = self.clock.monotonic().duration_since(started);
        self.metrics.reconciled(kind, took, result.as_ref().err().map(Error::class));
        let outcome = result.unwrap_or_else(|error| {
            let class = error.class().as_str();
            tracing::warn!(error = %ErrorChain(&error), %task, class, "reconciliation failed; retrying");
            let backoff = error.backoff();
            // A write that says that the conversation is not bound does no harm, whenever it takes effect.
            let failed_write = if error.is_refused_status() {
                written_on.map(|version| FailedWrite { version, is_in_doubt: false })
            } else {
                bound_on.map(|version| FailedWrite { version, is_in_doubt: true })
            };
            JobOutcome::Retry { backoff, failed_write, may_lack_events: has_events && !error.is_refused_status() }
        });
        JobResult { task, outcome }
    }

    async fn attempt(&self, job: Job) -> Result<JobOutcome, Error> {
        match job {
            Job::WriteStatus(write) => self.write_status(*write).await,
            Job::Delete(deletion) => self.delete(deletion).await,
            Job::Resolve(lookup) => self.resolve(*lookup).await,
            Job::Release(to_release) => self.release(*to_release).await,
            Job::WriteProxyAddress(write) => self.write_proxy_address(*write).await,
            Job::ReadDefaults(proxy) => self.read_defaults(&proxy).await,
        }
    }

    async fn write_proxy_address(&self, write: ProxyAddressWrite) -> Result<JobOutcome, Error> {
        let ProxyAddressWrite { name, version, status } = write;
        if !self.leadership.is_leader() {
            return Ok(JobOutcome::Done);
        }
        let patch = serde_json::json!({
            "apiVersion": ProxyAddress::api_version(&()),
            "kind": ProxyAddress::kind(&()),
            "metadata": {"name": name, "resourceVersion": version},
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        // The answer may have fields of a newer version.
        let proxy_addresses = Api::<Guarded<ProxyAddress>>::all(self.client.clone());
        match proxy_addresses.patch_status(&name, &parameters, &Patch::Apply(patch)).await {
            Ok(_) => Ok(JobOutcome::Done),
            Err(error) => unless_outdated(error),
        }
    }

    async fn read_defaults(&self, proxy: &ProxyKey) -> Result<JobOutcome, Error> {
        let read = read_in_effect(self.client.clone(), proxy.channel(), proxy.address(), None);
        let in_effect = timeout(READ_TIMEOUT, read).await.map_err(|_| Error::TimedOut)??;
        Ok(JobOutcome::Defaults(default_timers(in_effect.as_ref())))
    }

    async fn write_status(&self, write: StatusWrite) -> Result<JobOutcome, Error> {
        let StatusWrite { key, uid, version, notices, is_routine: _, is_bound: _, status, next, due } = write;
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
                let pending_events = pending_events(&key, &uid, notices, Some(&written));
                Ok(JobOutcome::Written { changed: is_changed.then_some(version), next, pending_events })
            }
            Err(error) if kube_error::ErrorClass::of(&error).is_stale() => Ok(JobOutcome::Outdated(version)),
            Err(error) => Err(Error::Status(error)),
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
            Ok(deleted) => {
                tracing::debug!(conversation = %key, "deleted a closed conversation whose time to live has elapsed");
                // An object that finalizers keep is answered instead of a status.
                let finalizers = deleted.left().and_then(|kept| kept.metadata.finalizers).unwrap_or_default();
                let notices = vec![expired(expiry, &finalizers)];
                Ok(JobOutcome::Deleted { pending_events: pending_events(&key, &uid, notices, None) })
            }
            Err(error) => unless_outdated(error),
        }
    }

    /// Finds the holder of the conversation's binding, and writes the status that follows.
    async fn resolve(
        &self,
        ConversationLookup { key, entry, defaults, is_first }: ConversationLookup,
    ) -> Result<JobOutcome, Error> {
        let Some(name) = entry.input.needed_binding().cloned() else {
            return Ok(JobOutcome::Done);
        };
        let claim = match self.claims.read(&name).await? {
            None if is_first => return self.claim(&key, &entry).await,
            None => return Ok(JobOutcome::Done),
            // The watch of the claims has already shown this claim, or will show it; its event adds the task again.
            Some(claim) if NamespacedName::from(&claim.holder) == key => return Ok(JobOutcome::Done),
            Some(claim) => claim,
        };
        let holder = self.claims.stored(&claim.holder).await?;
        let is_held = holder.is_some_and(|holder| claim.is_held_by(&holder));
        if !is_held && entry.input.on_conflict == OnConflict::Refuse {
            return Ok(JobOutcome::Enqueue(Task::Claim(name)));
        }
        // One that may wait is told so at once. The event of its status adds the task of a claim that is not held.
        let decision = decide(&entry.input, &defaults, Some(&BindingStatus::HeldByAnother), self.clock.now());
        let next = decision.next;
        match StatusWrite::of(&key, &entry, &defaults, decision) {
            Some(write) => self.write_status(*write).await,
            None => Ok(JobOutcome::UpToDate(next)),
        }
    }

    /// Claims the binding of a conversation that was stored without the webhook.
    async fn claim(&self, key: &NamespacedName, entry: &Entry) -> Result<JobOutcome, Error> {
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), key.namespace());
        let live = conversations.get_opt(key.name()).await?;
        let live = live.filter(|live| live.metadata.uid.as_deref().map(Uid::from).as_ref() == Some(&entry.uid));
        // If the conversation was replaced, or no longer needs a binding, the watch event of the change adds the task again.
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
        // The watch event of the claim adds the task of this conversation again, even if another client created the claim.
        Ok(JobOutcome::Done)
    }

    async fn release(&self, to_release: Release) -> Result<JobOutcome, Error> {
        let Release { claim, create_statuses, successor } = to_release;
        // The order matters: the claim came from the watch, and the conversations are read after it.
        let live = self.claims.stored(&claim.holder).await?;
        let create_status = |uid: &str| create_statuses.get(&Uid::from(uid)).copied().unwrap_or(CreateStatus::InFlight);
        let now = self.clock.now();
        let mut step = release(&claim, live.as_ref(), None, create_status, now);
        if let (ReleaseStep::Write(Write::Delete { .. }), Some((key, uid))) = (&step, successor) {
            let conversation = key.reference();
            let live_successor = self.claims.stored(&conversation).await?;
            let successor = live_successor
                .filter(|live| Uid::from(live.uid.as_str()) == uid)
                .map(|live| Successor { conversation, live });
            step = release(&claim, live.as_ref(), successor.as_ref(), create_status, now);
        }
        let write = match step {
            ReleaseStep::Keep => return Ok(JobOutcome::Done),
            ReleaseStep::AwaitGrace => return Ok(JobOutcome::AwaitGrace),
            ReleaseStep::Write(write) => write,
        };
        if !self.leadership.is_leader() {
            return Ok(JobOutcome::Done);
        }
        let is_release = match &write {
            Write::Delete { .. } => true,
            Write::Replace { holder, .. } => *holder != claim.holder,
            Write::Create { .. } => false,
        };
        let operation = match &write {
            Write::Delete { .. } => "delete",
            Write::Create { .. } | Write::Replace { .. } => "replace",
        };
        tracing::debug!(conversation = %claim.holder, binding = %claim.name, operation, "writing a claim");
        if self.claims.write(&claim.binding, write).await? == Outcome::Applied && is_release {
            let is_orphan = create_statuses.values().any(|create_status| *create_status == CreateStatus::Expired);
            self.metrics.released(is_orphan);
        }
        Ok(JobOutcome::Done)
    }
}

/// The outcome of a write that failed. If the object has changed or is gone, the watch event of the change adds the task again.
fn unless_outdated(error: kube::Error) -> Result<JobOutcome, Error> {
    if kube_error::ErrorClass::of(&error).is_stale() { Ok(JobOutcome::Done) } else { Err(error.into()) }
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
