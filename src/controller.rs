//! Watch, decide, apply, schedule: what the leader does. It must not know the webhook; what both share is `core` and `claims`.
//!
//! One task owns the index and the queue and is the only one to change them: events and finished work come in, work goes out
//! to a bounded number of tasks that talk to the API server. Every replica keeps the index, the leader alone works.

mod census;
mod index;
mod queue;
mod work;

use crate::api::{AddressBinding, Conversation, ConversationReference, Time};
use crate::claims::{Claims, claim_of};
use crate::clock::Clock;
use crate::leader::Leadership;
use crate::telemetry::events::Events;
use crate::telemetry::health::Readiness;
use crate::telemetry::metrics::Metrics;
use futures::{Stream, StreamExt};
use index::{ClaimPlan, ConversationPlan, Index};
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use queue::{Queue, Task};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use work::{Finished, Next, Worker};

/// How many pieces of work talk to the API server at once.
const CONCURRENCY: usize = 16;
/// The longest sleep while a deadline is set, so that a clock that jumps is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(2);

/// The controller.
pub struct Controller {
    client: Client,
    clock: Clock,
    leadership: Leadership,
    readiness: Readiness,
    metrics: Metrics,
    index: Index,
    queue: Queue,
    worker: Worker,
    grace_period: Duration,
    /// Whether this replica led when it last looked. The queue of one that does not is empty.
    leads: bool,
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
        metrics: Metrics,
    ) -> Self {
        let grace_period = claims.grace_period();
        let worker = Worker::new(client.clone(), claims, clock, leadership.clone(), events, metrics.clone());
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
            grace_period,
            leads: false,
        }
    }

    /// Works until `shutdown`, and then until what is under way has ended.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut conversations = Box::pin(watch_conversations(self.client.clone(), OPEN));
        let mut closed = Box::pin(watch_conversations(self.client.clone(), CLOSED));
        let mut claims = Box::pin(all_claims(self.client.clone()));
        let mut jobs: JoinSet<Finished> = JoinSet::new();
        loop {
            let wake = self.wake();
            tokio::select! {
                Some(event) = conversations.next() => self.conversation(event),
                Some(event) = claims.next() => self.claim(event),
                Some(event) = closed.next() => self.closed(event),
                Some(finished) = jobs.join_next() => match finished {
                    Ok(finished) => self.finished(finished),
                    // The task panicked: nothing can be said of what it left, so the process begins anew.
                    Err(error) => {
                        tracing::error!(%error, "a piece of work ended badly");
                        break;
                    }
                },
                () = self.leadership.changed() => {}
                () = sleep_until(wake) => {}
                () = shutdown.cancelled() => break,
            }
            if !self.index.has_synced() {
                continue;
            }
            self.readiness.synced();
            self.publish();
            let led = std::mem::replace(&mut self.leads, self.leadership.leads());
            if self.leads && !led {
                for task in self.index.everything() {
                    self.queue.add(task);
                }
            } else if led && !self.leads {
                self.queue.clear();
            }
            if self.leads {
                self.queue.wake(self.clock.now(), self.clock.monotonic());
                while jobs.len() < CONCURRENCY {
                    let Some(task) = self.queue.next() else { break };
                    self.begin(task, &mut jobs);
                }
            }
        }
        while jobs.join_next().await.is_some() {}
    }

    fn publish(&self) {
        for (channel, state, count) in self.index.census().open() {
            self.metrics.conversations(channel, state, count);
        }
        let (count, oldest) = self.index.census().unassigned();
        self.metrics.unassigned(count, oldest);
    }

    fn wake(&self) -> tokio::time::Instant {
        let now = self.clock.monotonic();
        let wake = self.queue.next_wake(self.clock.now(), now).map_or(Duration::MAX, |after| after.min(LONGEST_SLEEP));
        now + wake.min(Duration::from_hours(1))
    }

    fn conversation(&mut self, event: watcher::Result<Event<DeserializeGuard<Conversation>>>) {
        let now = self.clock.monotonic();
        let affected = match event {
            Ok(Event::Init) => {
                self.index.conversations_begin();
                Vec::new()
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => match object.0 {
                Ok(conversation) => self.index.conversation_seen(&conversation, now),
                Err(error) => passed_over(&error),
            },
            Ok(Event::Delete(object)) => {
                let metadata = object.0.map_or_else(|error| error.metadata, |conversation| conversation.metadata);
                self.index.conversation_gone(&metadata, now)
            }
            Ok(Event::InitDone) => self.index.conversations_listed(now),
            Err(error) => {
                tracing::warn!(%error, "the watch of the conversations was interrupted, and goes on");
                Vec::new()
            }
        };
        self.ask_for(affected);
    }

    fn closed(&mut self, event: watcher::Result<Event<DeserializeGuard<Conversation>>>) {
        let affected = match event {
            Ok(Event::Init) => {
                self.index.closed_begin();
                Vec::new()
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => match object.0 {
                Ok(conversation) => self.index.closed_seen(&conversation),
                Err(error) => passed_over(&error),
            },
            Ok(Event::Delete(object)) => {
                let metadata = object.0.map_or_else(|error| error.metadata, |conversation| conversation.metadata);
                self.index.closed_gone(&metadata);
                Vec::new()
            }
            Ok(Event::InitDone) => {
                self.index.closed_listed();
                Vec::new()
            }
            Err(error) => {
                tracing::warn!(%error, "the watch of the closed conversations was interrupted, and goes on");
                Vec::new()
            }
        };
        self.ask_for(affected);
    }

    fn claim(&mut self, event: watcher::Result<Event<AddressBinding>>) {
        let now = self.clock.monotonic();
        let affected = match event {
            Ok(Event::Init) => {
                self.index.claims_begin();
                Vec::new()
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                let Some(claim) = claim_of(&object) else {
                    tracing::error!(claim = ?object.metadata.name, "an AddressBinding does not bear the name of its binding: delete it");
                    return;
                };
                let name = claim.name.clone();
                let affected = self.index.claim_seen(claim, now);
                // Creates in flight are looked at again when their grace period is over, if need be.
                if self.leads && self.index.grace_ends(&name, self.grace_period).is_some() {
                    self.queue.add_at(Task::Claim(name), now + self.grace_period);
                }
                affected
            }
            Ok(Event::Delete(object)) => self.index.claim_gone(&object),
            Ok(Event::InitDone) => self.index.claims_listed(),
            Err(error) => {
                tracing::warn!(%error, "the watch of the claims was interrupted, and goes on");
                Vec::new()
            }
        };
        self.ask_for(affected);
    }

    fn ask_for(&mut self, tasks: Vec<Task>) {
        if self.leads {
            for task in tasks {
                self.queue.add(task);
            }
        }
    }

    fn begin(&mut self, task: Task, jobs: &mut JoinSet<Finished>) {
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        match &task {
            Task::Conversation(place) => match self.plan(place, now) {
                ConversationPlan::Nothing { wake, look_at_first } => {
                    self.queue.set_deadline(place, wake);
                    self.ask_for(look_at_first);
                    self.queue.done(&task);
                }
                ConversationPlan::Write(write) => {
                    let worker = self.worker.clone();
                    jobs.spawn(async move { worker.write_status(task, write).await });
                }
                ConversationPlan::Delete(deletion) => {
                    let worker = self.worker.clone();
                    jobs.spawn(async move { worker.delete(task, deletion).await });
                }
                ConversationPlan::Resolve(question) => {
                    let worker = self.worker.clone();
                    jobs.spawn(async move { worker.resolve(task, question).await });
                }
            },
            Task::Claim(name) => match self.index.plan_claim(name, self.grace_period, monotonic) {
                ClaimPlan::Nothing { look_at } => {
                    self.ask_for(look_at);
                    self.queue.done(&task);
                }
                ClaimPlan::Release(release) => {
                    let worker = self.worker.clone();
                    jobs.spawn(async move { worker.release(task, release).await });
                }
            },
        }
    }

    fn plan(&self, place: &Arc<ConversationReference>, now: Time) -> ConversationPlan {
        let is_under_way =
            |other: &Arc<ConversationReference>| self.queue.is_under_way(&Task::Conversation(other.clone()));
        self.index.plan_conversation(place, is_under_way, now)
    }

    fn finished(&mut self, finished: Finished) {
        let Finished { task, next } = finished;
        self.queue.done(&task);
        if !self.leads {
            return;
        }
        if let Task::Conversation(place) = &task {
            let waits_for_it = self.index.claimant(place);
            self.ask_for(waits_for_it.into_iter().collect());
        }
        match next {
            Next::Nothing => self.queue.succeeded(&task),
            Next::Wake(wake) => {
                self.queue.succeeded(&task);
                if let Task::Conversation(place) = &task {
                    self.queue.set_deadline(place, wake);
                }
            }
            Next::Written { resource_version, wake } => {
                self.queue.succeeded(&task);
                if let Task::Conversation(place) = &task {
                    self.index.written(place, &resource_version);
                    self.queue.set_deadline(place, wake);
                }
            }
            Next::LookAt(other) => {
                self.queue.succeeded(&task);
                self.queue.add(other);
            }
            Next::AwaitGrace => {
                self.queue.succeeded(&task);
                if let Task::Claim(name) = &task {
                    // Where none is in flight any more, it is time.
                    let ends = self.index.grace_ends(name, self.grace_period);
                    self.queue.add_at(task, ends.unwrap_or_else(|| self.clock.monotonic()));
                }
            }
            Next::Retry => self.queue.retry(task, self.clock.monotonic()),
        }
    }
}

/// A stored object that cannot be read stops nothing.
fn passed_over(error: &InvalidObject) -> Vec<Task> {
    let namespace = error.metadata.namespace.as_deref().unwrap_or_default();
    let name = error.metadata.name.as_deref().unwrap_or_default();
    tracing::error!(conversation = %format_args!("{namespace}/{name}"), %error, "a stored conversation cannot be read and is passed over");
    Vec::new()
}

/// What the status does not call Closed. A conversation that closes leaves this watch as one that is deleted does.
const OPEN: &str = "status.state!=Closed";
/// What the status calls Closed: nothing waits for this watch, and next to nothing is kept of what it shows.
const CLOSED: &str = "status.state=Closed";

fn watch_conversations(
    client: Client,
    fields: &str,
) -> impl Stream<Item = watcher::Result<Event<DeserializeGuard<Conversation>>>> + use<> {
    watcher(Api::all(client), watcher::Config::default().fields(fields)).default_backoff()
}

fn all_claims(client: Client) -> impl Stream<Item = watcher::Result<Event<AddressBinding>>> {
    watcher(Api::all(client), watcher::Config::default()).default_backoff()
}
