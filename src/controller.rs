//! The controller: watches the conversations, the claims and the ProxyAddresses, decides, writes and schedules. It must not depend on
//! the webhook or the router; they share `core`, `claims`, `index` and `proxy_addresses`.
//!
//! One task owns the index and the queue, and nothing else changes them. It receives watch events and the results of jobs, and starts
//! jobs, which call the API server, in a limited number of other tasks. Every replica maintains the index; only the leader processes
//! the queue.

mod deadlines;
mod events;
mod metrics;
mod plan;
mod proxy_addresses;
mod queue;
mod work;

pub use events::{EventPublisher, EventsSinkSettings};
pub use metrics::ControllerMetrics;

use crate::admin::Readiness;
use crate::api::{Time, Timers};
use crate::claims::Claims;
use crate::clock::Clock;
use crate::index::{
    AddressBindings, ClosedConversations, DefaultTimers, Index, NamespacedName, OpenConversations, ProxyKey, Task,
    dispatch, watch_for,
};
use crate::leader::Leadership;
use crate::proxy_addresses::{Catalog, ProxyAddresses};
use deadlines::Deadlines;
use events::EventRecorder;
use futures::StreamExt;
use kube::Client;
use plan::{Job, LeaderWork, Moment, Plan, plan_all, plan_claim, plan_conversation, plan_each};
use proxy_addresses::{affected, plan_proxy_address};
use queue::{Backoff, Queue};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use work::{JobOutcome, JobResult, Worker};

/// The maximum number of concurrent jobs.
const CONCURRENCY: usize = 16;
/// The maximum number of tasks that are processed before the next watch event, since thousands may be due at the same time.
const MAX_TASKS_PER_TURN: usize = 256;
/// The minimum interval between two status writes of one conversation that only record activity. Gateways may report activity more
/// often.
const ROUTINE_WRITE_COOLDOWN: Duration = Duration::from_secs(1);
/// The maximum age of the notices that a new leader records again, because the previous leader may have died between a write and its
/// Event. It is longer than the expiry of the Lease and the start of a process take together.
const EVENT_BACKFILL_WINDOW: Duration = Duration::from_mins(2);
/// The longest sleep if there is no deadline.
const MAX_IDLE: Duration = Duration::from_hours(1);

/// The settings of the controller.
#[derive(Clone)]
pub struct Settings {
    /// The name of the replica in Events.
    pub instance: String,
    /// The default timers of the installation.
    pub default_timers: Timers,
    /// The time from the observation of a default timer until it closes a conversation.
    pub defaults_delay: Duration,
    /// The sink of the lifecycle events; `None` if there is none.
    pub events_sink: Option<EventsSinkSettings>,
}

/// The controller.
pub struct Controller {
    client: Client,
    clock: Clock,
    leadership: Leadership,
    readiness: Readiness,
    proxy_addresses: ProxyAddresses,
    metrics: ControllerMetrics,
    index: Index,
    queue: Queue<Task>,
    deadlines: Deadlines<NamespacedName>,
    worker: Worker,
    event_recorder: EventRecorder,
    /// The conversations whose status may have been stored by a write that failed, until their task ends.
    may_lack_events: HashSet<NamespacedName>,
    grace_period: Duration,
    /// Whether this replica was the leader at the last check. The queue of a standby is empty.
    is_leader: bool,
    /// The end of the time in which writes of an earlier leader can still take effect.
    earlier_writes_until: Instant,
}

impl Controller {
    /// A controller that writes while this replica is the leader. `readiness` is set once the index has synced; `metrics` serves the
    /// counts of the index.
    #[must_use]
    pub fn new(
        settings: Settings,
        client: Client,
        claims: Claims,
        proxy_addresses: ProxyAddresses,
        leadership: Leadership,
        readiness: Readiness,
        metrics: ControllerMetrics,
    ) -> Self {
        let Settings { instance, default_timers, defaults_delay, events_sink } = settings;
        let (grace_period, clock) = (claims.grace_period(), claims.clock());
        let index = Index::new(metrics.stats().clone(), DefaultTimers::new(default_timers, defaults_delay));
        let worker = Worker::new(client.clone(), claims, clock, leadership.clone(), metrics.clone());
        let event_recorder = EventRecorder::new(client.clone(), instance, events_sink, clock, metrics.clone());
        Self {
            client,
            clock,
            leadership,
            readiness,
            proxy_addresses,
            metrics,
            index,
            queue: Queue::default(),
            deadlines: Deadlines::default(),
            worker,
            event_recorder,
            may_lack_events: HashSet::new(),
            grace_period,
            is_leader: false,
            earlier_writes_until: clock.monotonic(),
        }
    }

    /// Runs until `shutdown`, and then until the jobs in progress are complete.
    ///
    /// # Errors
    /// If a job, or the work on an Event, panicked. The resulting state is unknown, so the process must restart.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), JoinError> {
        let mut open = Box::pin(watch_for::<OpenConversations>(self.client.clone()));
        let mut closed = Box::pin(watch_for::<ClosedConversations>(self.client.clone()));
        let mut claims = Box::pin(watch_for::<AddressBindings>(self.client.clone()));
        let mut jobs: JoinSet<JobResult> = JoinSet::new();
        loop {
            let wake = self.next_wake(jobs.len() < CONCURRENCY);
            tokio::select! {
                Some(event) = open.next() => {
                    let handler = OpenConversations { index: &mut self.index, now: self.clock.monotonic() };
                    let tasks = dispatch(handler, event);
                    self.enqueue(tasks);
                }
                Some(event) = claims.next() => {
                    let (now, mut in_flight) = (self.clock.monotonic(), Vec::new());
                    let handler = AddressBindings { index: &mut self.index, in_flight: Some(&mut in_flight), now };
                    let tasks = dispatch(handler, event);
                    self.enqueue(tasks);
                    if self.is_leader {
                        for name in in_flight {
                            self.queue.add_at(Task::Claim(name), now + self.grace_period);
                        }
                    }
                }
                Some(event) = closed.next() => {
                    let backfill_since = self.clock.now().before(EVENT_BACKFILL_WINDOW);
                    let tasks = dispatch(ClosedConversations { index: &mut self.index, backfill_since }, event);
                    self.enqueue(tasks);
                }
                catalog = self.proxy_addresses.changed() => match catalog {
                    Some(catalog) => self.catalog_changed(catalog),
                    None => self.catalog_withdrawn(),
                },
                Some(result) = jobs.join_next() => self.job_finished(result?),
                result = self.event_recorder.progress() => result?,
                () = self.leadership.changed() => {}
                () = sleep_until(wake) => {}
                () = shutdown.cancelled() => break,
            }
            if !self.index.has_synced() {
                continue;
            }
            self.readiness.synced();
            self.follow_leadership();
            if self.is_leader {
                self.promote_due();
                self.process_queue(&mut jobs);
            }
            self.metrics.stats().set_deferred(self.queue.background_len());
        }
        // The Events of the last writes are recorded too. For a deleted conversation, the next leader could not derive it from a status.
        while let Some(result) = jobs.join_next().await {
            self.job_finished(result?);
        }
        self.event_recorder.shutdown().await
    }

    fn follow_leadership(&mut self) {
        let was_leader = std::mem::replace(&mut self.is_leader, self.leadership.is_leader());
        if self.is_leader && !was_leader {
            let grace_period = if self.leadership.follows_another() { self.grace_period } else { Duration::ZERO };
            self.earlier_writes_until = self.clock.monotonic() + grace_period;
            self.index.leadership_started();
            let work = plan_all(&self.index, |key| self.is_in_progress(key), self.moment());
            self.take_up(work);
            let since = self.clock.now().before(EVENT_BACKFILL_WINDOW);
            for key in self.index.recently_changed(since) {
                self.event_recorder.backfill_since(key, since);
            }
        } else if was_leader && !self.is_leader {
            self.queue.clear();
            self.deadlines = Deadlines::default();
            self.may_lack_events.clear();
        }
    }

    /// Takes up changed ProxyAddresses. The timers of the conversations behind them run at once; the statuses in which only deadlines
    /// change follow in the background: creates go first.
    fn catalog_changed(&mut self, catalog: Arc<Catalog>) {
        let proxy_addresses = affected(self.index.defaults.catalog().map(Arc::as_ref), &catalog);
        let conversations = self.index.catalog_changed(catalog, self.clock.now(), self.clock.monotonic());
        if self.is_leader {
            let work = plan_each(&self.index, conversations.iter(), |key| self.is_in_progress(key), self.moment());
            self.take_up(work);
        }
        self.enqueue(proxy_addresses);
    }

    /// The ProxyAddresses may be outdated. Everything goes on, except closes by a default.
    fn catalog_withdrawn(&mut self) {
        self.index.defaults.catalog_withdrawn();
        tracing::warn!(
            "the watch of the ProxyAddresses or of the namespaces has failed for too long; no default timer closes a conversation until both work again"
        );
    }

    fn take_up(&mut self, LeaderWork { tasks, background, deadlines }: LeaderWork) {
        for task in tasks {
            self.queue.add_due(task);
        }
        for task in background {
            self.queue.add_background(task);
        }
        for (key, deadline) in deadlines {
            self.deadlines.set(&key, Some(deadline));
        }
    }

    fn promote_due(&mut self) {
        self.queue.promote_due(self.clock.monotonic());
        let now = self.clock.now();
        while let Some(key) = self.deadlines.pop_due(now) {
            self.queue.add_due(Task::Conversation(key));
        }
    }

    fn process_queue(&mut self, jobs: &mut JoinSet<JobResult>) {
        for _ in 0..MAX_TASKS_PER_TURN {
            if jobs.len() >= CONCURRENCY {
                return;
            }
            let Some(task) = self.queue.get() else { return };
            self.process(task, jobs);
        }
    }

    /// The instant at which to continue without an event.
    fn next_wake(&self, has_capacity: bool) -> Instant {
        let now = self.clock.monotonic();
        if has_capacity && self.queue.has_waiting() {
            return now;
        }
        let wakes = [self.queue.next_wake(now), self.deadlines.next_wake(self.clock.now())];
        now + wakes.into_iter().flatten().min().unwrap_or(MAX_IDLE)
    }

    fn enqueue(&mut self, tasks: Vec<Task>) {
        if self.is_leader {
            for task in tasks {
                self.queue.add(task);
            }
        }
    }

    fn process(&mut self, task: Task, jobs: &mut JoinSet<JobResult>) {
        match self.plan(&task) {
            Plan::Wait { until, blocked_on } => {
                self.set_deadline(&task, until);
                // A task that failed is retried after its backoff, and adds this one again then.
                let queue = &self.queue;
                let blocked_on = blocked_on.into_iter().filter(|task| !queue.has_failed(task)).collect();
                self.enqueue(blocked_on);
                self.mark_succeeded(&task);
            }
            Plan::AwaitLiveRead { until, proxy } => {
                self.set_deadline(&task, until);
                let live_read = Task::Defaults(proxy.clone());
                if let Task::Conversation(key) = &task {
                    self.index.defaults.await_live_read(proxy, key.clone());
                }
                // A read in progress is for all that wait, and one that failed is retried after its backoff.
                if !self.queue.is_in_progress(&live_read) && !self.queue.has_failed(&live_read) {
                    self.queue.add_due(live_read);
                }
                self.mark_succeeded(&task);
            }
            Plan::Record(pending_event) => {
                self.event_recorder.record(pending_event);
                self.mark_succeeded(&task);
            }
            Plan::Run(job) => {
                if let Job::WriteStatus(write) = &job
                    && write.is_routine
                {
                    if let Some(until) = self.queue.cooldown_until(&task) {
                        self.set_deadline(&task, write.next);
                        self.queue.add_at(task.clone(), until);
                        return self.mark_succeeded(&task);
                    }
                    self.queue.start_cooldown(task.clone(), self.clock.monotonic() + ROUTINE_WRITE_COOLDOWN);
                }
                jobs.spawn(self.worker.clone().run(task, job));
            }
        }
    }

    fn plan(&self, task: &Task) -> Plan {
        match task {
            Task::Conversation(key) => {
                plan_conversation(&self.index, key, |other| self.is_in_progress(other), self.moment())
            }
            Task::Claim(name) => plan_claim(&self.index, name, self.grace_period, self.clock.monotonic()),
            Task::ProxyAddress(name) => match self.index.defaults.catalog() {
                Some(catalog) => plan_proxy_address(catalog, name, self.clock.now()),
                None => Plan::Wait { until: None, blocked_on: Vec::new() },
            },
            Task::Defaults(proxy) => Plan::Run(Job::ReadDefaults(proxy.clone())),
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            now: self.clock.now(),
            instant: self.clock.monotonic(),
            earlier_writes_until: self.earlier_writes_until,
        }
    }

    fn is_in_progress(&self, key: &NamespacedName) -> bool {
        self.queue.is_in_progress(&Task::Conversation(key.clone()))
    }

    fn set_deadline(&mut self, task: &Task, deadline: Option<Time>) {
        if let Task::Conversation(key) = task {
            self.deadlines.set(key, deadline);
        }
    }

    fn mark_succeeded(&mut self, task: &Task) {
        self.queue.done(task);
        self.forget_failures(task);
    }

    /// Forgets the failures of a task that has ended, and records the Events of a write that seemed to fail.
    fn forget_failures(&mut self, task: &Task) {
        if let Task::Conversation(key) = task
            && self.may_lack_events.remove(key)
        {
            let since = self.clock.now().before(EVENT_BACKFILL_WINDOW);
            self.event_recorder.backfill_since(key.clone(), since);
        }
        self.queue.forget(task);
    }

    fn job_finished(&mut self, JobResult { task, mut outcome }: JobResult) {
        self.queue.done(&task);
        if let (Task::Conversation(key), JobOutcome::Written { changed: Some(version), .. }) = (&task, &outcome) {
            self.index.status_written(key, version);
        }
        if let (Task::Conversation(key), JobOutcome::Outdated(version)) = (&task, &outcome) {
            self.index.status_outdated(key, version);
        }
        if let (Task::Conversation(key), JobOutcome::Retry { may_lack_events: true, .. }) = (&task, &outcome) {
            self.may_lack_events.insert(key.clone());
        }
        if let (Task::Conversation(key), JobOutcome::Retry { failed_write: Some(failed), .. }) = (&task, &outcome) {
            let in_doubt_until = failed.is_in_doubt.then(|| self.clock.monotonic() + self.grace_period);
            self.index.status_write_failed(key, &failed.version, in_doubt_until);
        }
        // The Events of completed writes are recorded even if this replica is no longer the leader.
        if let JobOutcome::Written { pending_events, .. } | JobOutcome::Deleted { pending_events } = &mut outcome {
            for pending_event in std::mem::take(pending_events) {
                self.event_recorder.record(pending_event);
            }
        }
        if !self.is_leader {
            return;
        }
        if let Task::Conversation(key) = &task {
            let claimant = self.index.claimant(key);
            self.enqueue(claimant.into_iter().collect());
        }
        if let Task::Defaults(proxy) = &task
            && !self.defaults_read(proxy, &outcome)
            && matches!(outcome, JobOutcome::Defaults(_))
        {
            outcome = JobOutcome::Retry { backoff: Backoff::Transient, failed_write: None, may_lack_events: false };
        }
        if let JobOutcome::Retry { backoff, .. } = outcome {
            return self.queue.add_rate_limited(task, backoff, self.clock.monotonic());
        }
        self.forget_failures(&task);
        match outcome {
            JobOutcome::Done
            | JobOutcome::Outdated(_)
            | JobOutcome::Deleted { .. }
            | JobOutcome::Defaults(_)
            | JobOutcome::Retry { .. } => {}
            JobOutcome::UpToDate(next) | JobOutcome::Written { next, .. } => self.set_deadline(&task, next),
            JobOutcome::Enqueue(other) => self.queue.add(other),
            JobOutcome::AwaitGrace => {
                if let Task::Claim(name) = &task {
                    // If no create is in flight any more, the claim is checked immediately.
                    let end = self.index.grace_end(name, self.grace_period);
                    self.queue.add_at(task, end.unwrap_or_else(|| self.clock.monotonic()));
                }
            }
        }
    }

    /// Takes up a live read of the default timers of `proxy`. Returns whether they are the same as those that the watch has shown.
    fn defaults_read(&mut self, proxy: &ProxyKey, outcome: &JobOutcome) -> bool {
        let timers = match outcome {
            JobOutcome::Defaults(timers) => Some(*timers),
            _ => None,
        };
        let (is_same, affected) = self.index.defaults.live_read(proxy, timers, self.clock.monotonic());
        if timers.is_some() && !is_same {
            tracing::warn!(
                channel = proxy.channel().as_str(),
                "the watch of the ProxyAddresses is late; no default timer of the address closes a conversation until it has caught up"
            );
        }
        for key in affected {
            self.queue.add_due(Task::Conversation(key));
        }
        is_same
    }
}
