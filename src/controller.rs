//! Watch, decide, apply, schedule: what the leader does. It must not know the webhook; what both share is `core` and `claims`.
//!
//! One task owns the index and the queue and is the only one to change them: events and finished jobs come in, work goes out
//! to a bounded number of tasks that talk to the API server. Every replica keeps the index, the leader alone works.

mod event_recorder;
mod index;
mod keys;
mod metrics;
mod queue;
mod stats;
mod watch;
mod work;

pub use metrics::ControllerMetrics;

use crate::admin::Readiness;
use crate::api::{AddressBinding, Conversation, Time};
use crate::claims::{Claims, claim_of};
use crate::clock::Clock;
use crate::core::binding::BindingName;
use crate::leader::Leadership;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::events::Events;
use event_recorder::EventRecorder;
use futures::StreamExt;
use index::{ClaimPlan, ConversationPlan, Index};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keys::NamespacedName;
use kube::Client;
use kube::runtime::watcher::{self, Config, Event};
use queue::{Queue, Task};
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use watch::{Guarded, InvalidObject, watch};
use work::{JobOutcome, JobResult, Worker};

/// How many pieces of work talk to the API server at once.
const CONCURRENCY: usize = 16;
/// How many tasks are looked at before events are: much may be due at once.
const MAX_TASKS_PER_TURN: usize = 256;
/// How long after a status that follows activity the next one of the same conversation is written, however often it is reported.
const ROUTINE_WRITE_COOLDOWN: Duration = Duration::from_secs(1);
/// What came about no longer ago may not have been told by who led before: a Lease expires, and a process starts, in less.
const EVENT_BACKFILL_WINDOW_MILLISECONDS: u64 = 120_000;

/// The controller.
pub struct Controller {
    client: Client,
    clock: Clock,
    leadership: Leadership,
    readiness: Readiness,
    metrics: ControllerMetrics,
    index: Index,
    queue: Queue,
    worker: Worker,
    event_recorder: EventRecorder,
    grace_period: Duration,
    /// Whether this replica led when it last looked. The queue of one that does not is empty.
    is_leader: bool,
}

impl Controller {
    /// One that works while `leadership` says so, tells people by `events`, counts into `metrics`, and reports to
    /// `readiness` when it knows what is stored.
    #[must_use]
    pub fn new(
        client: Client,
        claims: Claims,
        clock: Clock,
        leadership: Leadership,
        events: Events,
        readiness: Readiness,
        metrics: ControllerMetrics,
    ) -> Self {
        let grace_period = claims.grace_period();
        let worker = Worker::new(client.clone(), claims, clock, leadership.clone(), metrics.clone());
        let event_recorder = EventRecorder::new(client.clone(), events);
        let queue = Queue::default();
        Self {
            client,
            clock,
            leadership,
            readiness,
            metrics,
            index: Index::default(),
            queue,
            worker,
            event_recorder,
            grace_period,
            is_leader: false,
        }
    }

    /// Works until `shutdown`, and then until what is under way has ended.
    ///
    /// # Errors
    /// Where a piece of work panicked: nothing can be said of what it left, so the process begins anew.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), JoinError> {
        let mut conversations = Box::pin(watch::<Conversation>(self.client.clone(), Config::default().fields(OPEN)));
        let mut closed = Box::pin(watch::<Conversation>(self.client.clone(), Config::default().fields(CLOSED)));
        let mut claims = Box::pin(watch::<AddressBinding>(self.client.clone(), Config::default()));
        let mut jobs: JoinSet<JobResult> = JoinSet::new();
        loop {
            let wake = self.wake(jobs.len() < CONCURRENCY);
            tokio::select! {
                Some(event) = conversations.next() => self.conversation(event),
                Some(event) = claims.next() => self.claim(event),
                Some(event) = closed.next() => self.closed(event),
                Some(job_finished) = jobs.join_next() => self.job_finished(job_finished?),
                () = self.event_recorder.progress() => {}
                () = self.leadership.changed() => {}
                () = sleep_until(wake) => {}
                () = shutdown.cancelled() => break,
            }
            if !self.index.has_synced() {
                continue;
            }
            self.readiness.synced();
            self.publish();
            self.follow_leadership();
            if self.is_leader {
                self.queue.promote_due(self.clock.now(), self.clock.monotonic());
                self.work(&mut jobs);
            }
        }
        // What they wrote on their last way is told as well: no status tells the next leader of what is deleted.
        while let Some(job_finished) = jobs.join_next().await {
            self.job_finished(job_finished?);
        }
        self.event_recorder.end().await;
        Ok(())
    }

    fn publish(&self) {
        for (channel, state, count) in self.index.stats().open() {
            self.metrics.conversations(channel, state, count);
        }
        let (count, oldest) = self.index.stats().unassigned();
        self.metrics.unassigned(count, oldest);
        self.metrics.unreadable(self.index.unreadable());
    }

    fn follow_leadership(&mut self) {
        let led = std::mem::replace(&mut self.is_leader, self.leadership.is_leader());
        if self.is_leader && !led {
            let now = self.clock.now();
            let (to_do, asleep) = self.index.plan_all(|key| self.is_in_progress(key), now);
            for task in to_do {
                self.queue.add_due(task);
            }
            for (key, wake) in asleep {
                self.queue.set_deadline(&key, Some(wake));
            }
            let since = now.before(EVENT_BACKFILL_WINDOW_MILLISECONDS);
            for key in self.index.recently_changed(since) {
                self.event_recorder.backfill_since(key, since);
            }
        } else if led && !self.is_leader {
            self.queue.clear();
        }
    }

    fn work(&mut self, jobs: &mut JoinSet<JobResult>) {
        for _ in 0..MAX_TASKS_PER_TURN {
            if jobs.len() >= CONCURRENCY {
                return;
            }
            let Some(task) = self.queue.next() else { return };
            self.begin(task, jobs);
        }
    }

    /// When to go on though nothing has happened.
    fn wake(&self, has_room: bool) -> Instant {
        let now = self.clock.monotonic();
        if has_room && self.queue.has_waiting() {
            return now;
        }
        let wake = self.queue.next_wake(self.clock.now(), now);
        now + wake.unwrap_or(Duration::from_hours(1))
    }

    fn conversation(&mut self, event: watcher::Result<Event<Guarded<Conversation>>>) {
        let now = self.clock.monotonic();
        let affected = match event {
            Ok(Event::Init) => {
                self.index.conversations_begin();
                Vec::new()
            }
            Ok(Event::InitApply(Guarded(object)) | Event::Apply(Guarded(object))) => match object {
                Ok(conversation) => self.index.conversation_seen(&conversation, now),
                Err(unreadable) => {
                    log_invalid(&unreadable);
                    self.index.conversation_unreadable(&unreadable, now)
                }
            },
            Ok(Event::Delete(object)) => self.index.conversation_gone(metadata(&object), now),
            Ok(Event::InitDone) => self.index.conversations_listed(now),
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "the watch of the conversations was interrupted, and goes on");
                Vec::new()
            }
        };
        self.enqueue(affected);
    }

    fn closed(&mut self, event: watcher::Result<Event<Guarded<Conversation>>>) {
        let affected = match event {
            Ok(Event::Init) => {
                self.index.closed_begin();
                Vec::new()
            }
            Ok(Event::InitApply(Guarded(object)) | Event::Apply(Guarded(object))) => match object {
                Ok(conversation) => {
                    let untold = self.clock.now().before(EVENT_BACKFILL_WINDOW_MILLISECONDS);
                    self.index.closed_seen(&conversation, untold)
                }
                Err(unreadable) => {
                    log_invalid(&unreadable);
                    self.index.closed_unreadable(&unreadable)
                }
            },
            Ok(Event::Delete(object)) => {
                self.index.closed_gone(metadata(&object));
                Vec::new()
            }
            Ok(Event::InitDone) => {
                self.index.closed_listed();
                Vec::new()
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "the watch of the closed conversations was interrupted, and goes on");
                Vec::new()
            }
        };
        self.enqueue(affected);
    }

    fn claim(&mut self, event: watcher::Result<Event<Guarded<AddressBinding>>>) {
        let now = self.clock.monotonic();
        let affected = match event {
            Ok(Event::Init) => {
                self.index.claims_begin();
                Vec::new()
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                let Some(claim) = object.0.as_ref().ok().and_then(claim_of) else {
                    let name = metadata(&object).name.clone().unwrap_or_default();
                    tracing::error!(
                        claim = name,
                        "an AddressBinding cannot be read, or does not bear the name of its binding: delete it"
                    );
                    let affected = self.index.claim_gone(&BindingName::existing(name));
                    return self.enqueue(affected);
                };
                let affected = self.index.claim_seen(&claim, now);
                // Creates in flight are looked at again when their grace period is over, if need be.
                if self.is_leader && self.index.grace_ends(&claim.name, self.grace_period).is_some() {
                    self.queue.add_at(Task::Claim(claim.name), now + self.grace_period);
                }
                affected
            }
            Ok(Event::Delete(object)) => {
                let name = metadata(&object).name.clone().unwrap_or_default();
                self.index.claim_gone(&BindingName::existing(name))
            }
            Ok(Event::InitDone) => self.index.claims_listed(),
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "the watch of the claims was interrupted, and goes on");
                Vec::new()
            }
        };
        self.enqueue(affected);
    }

    fn enqueue(&mut self, tasks: Vec<Task>) {
        if self.is_leader {
            for task in tasks {
                self.queue.add(task);
            }
        }
    }

    fn begin(&mut self, task: Task, jobs: &mut JoinSet<JobResult>) {
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        match &task {
            Task::Conversation(key) => match self.plan(key, now) {
                ConversationPlan::Nothing { wake, blocked_on } => {
                    self.queue.set_deadline(key, wake);
                    self.enqueue(blocked_on);
                    self.mark_succeeded(&task);
                }
                ConversationPlan::Report(pending_event) => {
                    self.event_recorder.record(pending_event);
                    self.mark_succeeded(&task);
                }
                ConversationPlan::Write(write) => {
                    if write.is_routine {
                        if let Some(until) = self.queue.cooldown_until(&task) {
                            self.queue.set_deadline(key, write.wake);
                            self.queue.add_at(task.clone(), until);
                            return self.mark_succeeded(&task);
                        }
                        self.queue.start_cooldown(task.clone(), monotonic + ROUTINE_WRITE_COOLDOWN);
                    }
                    let worker = self.worker.clone();
                    jobs.spawn(async move { worker.write_status(task, write).await });
                }
                ConversationPlan::Delete(deletion) => {
                    let worker = self.worker.clone();
                    jobs.spawn(async move { worker.delete(task, deletion).await });
                }
                ConversationPlan::Resolve(lookup) => {
                    let worker = self.worker.clone();
                    jobs.spawn(async move { worker.resolve(task, lookup).await });
                }
            },
            Task::Claim(name) => match self.index.plan_claim(name, self.grace_period, monotonic) {
                ClaimPlan::Nothing { enqueue } => {
                    self.enqueue(enqueue);
                    self.mark_succeeded(&task);
                }
                ClaimPlan::Release(release) => {
                    let worker = self.worker.clone();
                    jobs.spawn(async move { worker.release(task, release).await });
                }
            },
        }
    }

    fn plan(&self, key: &NamespacedName, now: Time) -> ConversationPlan {
        self.index.plan_conversation(key, |other| self.is_in_progress(other), now)
    }

    fn is_in_progress(&self, key: &NamespacedName) -> bool {
        self.queue.is_in_progress(&Task::Conversation(key.clone()))
    }

    fn mark_succeeded(&mut self, task: &Task) {
        self.queue.done(task);
        self.queue.forget(task);
    }

    fn job_finished(&mut self, job_finished: JobResult) {
        let JobResult { task, mut next } = job_finished;
        self.queue.done(&task);
        if let (Task::Conversation(key), JobOutcome::Written { changed: Some(version), .. }) = (&task, &next) {
            self.index.written(key, version);
        }
        // What was written is told, also by who leads no more.
        if let JobOutcome::Written { pending_events, .. } | JobOutcome::Deleted { pending_events } = &mut next {
            for pending_event in std::mem::take(pending_events) {
                self.event_recorder.record(pending_event);
            }
        }
        if !self.is_leader {
            return;
        }
        if let Task::Conversation(key) = &task {
            let waits_for_it = self.index.claimant(key);
            self.enqueue(waits_for_it.into_iter().collect());
        }
        match next {
            JobOutcome::Nothing | JobOutcome::Deleted { .. } => self.queue.forget(&task),
            JobOutcome::Wake(wake) | JobOutcome::Written { wake, .. } => {
                self.queue.forget(&task);
                if let Task::Conversation(key) = &task {
                    self.queue.set_deadline(key, wake);
                }
            }
            JobOutcome::Enqueue(other) => {
                self.queue.forget(&task);
                self.queue.add(other);
            }
            JobOutcome::AwaitGrace => {
                self.queue.forget(&task);
                if let Task::Claim(name) = &task {
                    // Where none is in flight any more, it is time.
                    let ends = self.index.grace_ends(name, self.grace_period);
                    self.queue.add_at(task, ends.unwrap_or_else(|| self.clock.monotonic()));
                }
            }
            JobOutcome::Retry(backoff) => self.queue.add_rate_limited(task, backoff, self.clock.monotonic()),
        }
    }
}

/// A stored object that cannot be read stops nothing. Why it cannot is in its Event, since that may quote an address.
fn log_invalid(unreadable: &InvalidObject) {
    let ObjectMeta { namespace, name, .. } = &unreadable.metadata;
    tracing::error!(
        conversation = %NamespacedName::new(namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default()),
        "a stored conversation cannot be read and is passed over: correct or delete it; its Event InvalidObject says why"
    );
}

fn metadata<K: watch::Watched>(object: &Guarded<K>) -> &ObjectMeta {
    kube::Resource::meta(object)
}

/// What the status does not call Closed. A conversation that closes leaves this watch as one that is deleted does.
const OPEN: &str = "status.state!=Closed";
/// What the status calls Closed: nothing waits for this watch, and next to nothing is kept of what it shows.
const CLOSED: &str = "status.state=Closed";
