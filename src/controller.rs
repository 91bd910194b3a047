//! Watch, decide, apply, schedule: what the leader does. It must not know the webhook; what both share is `core` and `claims`.
//!
//! One task owns the index and the queue and is the only one to change them: events and finished work come in, work goes out
//! to a bounded number of tasks that talk to the API server. Every replica keeps the index, the leader alone works.

mod census;
mod compact;
mod index;
mod queue;
mod teller;
mod watch;
mod work;

use crate::api::{AddressBinding, Conversation, Time};
use crate::claims::{Claims, claim_of};
use crate::clock::Clock;
use crate::core::binding::BindingName;
use crate::leader::Leadership;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::events::Events;
use crate::telemetry::health::Readiness;
use crate::telemetry::metrics::Metrics;
use compact::Place;
use futures::StreamExt;
use index::{ClaimPlan, ConversationPlan, Index};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::runtime::watcher::{self, Config, Event};
use queue::{Queue, Task};
use std::time::Duration;
use teller::Teller;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use watch::{Stored, Unreadable, watch};
use work::{Finished, Next, Worker};

/// How many pieces of work talk to the API server at once.
const CONCURRENCY: usize = 16;
/// How many tasks are looked at before events are: much may be due at once.
const AT_ONCE: usize = 256;
/// How long after a status that follows activity the next one of the same conversation is written, however often it is reported.
const BETWEEN_ROUTINE_WRITES: Duration = Duration::from_secs(1);
/// What came about no longer ago may not have been told by who led before: a Lease expires, and a process starts, in less.
const MAYBE_UNTOLD_MILLISECONDS: u64 = 120_000;

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
    teller: Teller,
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
        let worker = Worker::new(client.clone(), claims, clock, leadership.clone(), metrics.clone());
        let teller = Teller::new(client.clone(), events);
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
            teller,
            grace_period,
            leads: false,
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
        let mut jobs: JoinSet<Finished> = JoinSet::new();
        loop {
            let wake = self.wake(jobs.len() < CONCURRENCY);
            tokio::select! {
                Some(event) = conversations.next() => self.conversation(event),
                Some(event) = claims.next() => self.claim(event),
                Some(event) = closed.next() => self.closed(event),
                Some(finished) = jobs.join_next() => self.finished(finished?),
                () = self.teller.progress() => {}
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
            if self.leads {
                self.queue.wake(self.clock.now(), self.clock.monotonic());
                self.work(&mut jobs);
            }
        }
        // What they wrote on their last way is told as well: no status tells the next leader of what is deleted.
        while let Some(finished) = jobs.join_next().await {
            self.finished(finished?);
        }
        self.teller.end().await;
        Ok(())
    }

    fn publish(&self) {
        for (channel, state, count) in self.index.census().open() {
            self.metrics.conversations(channel, state, count);
        }
        let (count, oldest) = self.index.census().unassigned();
        self.metrics.unassigned(count, oldest);
        self.metrics.unreadable(self.index.unreadable());
    }

    fn follow_leadership(&mut self) {
        let led = std::mem::replace(&mut self.leads, self.leadership.leads());
        if self.leads && !led {
            let now = self.clock.now();
            let (to_do, asleep) = self.index.survey(|place| self.is_under_way(place), now);
            for task in to_do {
                self.queue.add_due(task);
            }
            for (place, wake) in asleep {
                self.queue.set_deadline(&place, Some(wake));
            }
            let since = now.before(MAYBE_UNTOLD_MILLISECONDS);
            for place in self.index.changed_lately(since) {
                self.teller.tell_since(place, since);
            }
        } else if led && !self.leads {
            self.queue.clear();
        }
    }

    fn work(&mut self, jobs: &mut JoinSet<Finished>) {
        for _ in 0..AT_ONCE {
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

    fn conversation(&mut self, event: watcher::Result<Event<Stored<Conversation>>>) {
        let now = self.clock.monotonic();
        let affected = match event {
            Ok(Event::Init) => {
                self.index.conversations_begin();
                Vec::new()
            }
            Ok(Event::InitApply(Stored(object)) | Event::Apply(Stored(object))) => match object {
                Ok(conversation) => self.index.conversation_seen(&conversation, now),
                Err(unreadable) => {
                    passed_over(&unreadable);
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
        self.ask_for(affected);
    }

    fn closed(&mut self, event: watcher::Result<Event<Stored<Conversation>>>) {
        let affected = match event {
            Ok(Event::Init) => {
                self.index.closed_begin();
                Vec::new()
            }
            Ok(Event::InitApply(Stored(object)) | Event::Apply(Stored(object))) => match object {
                Ok(conversation) => {
                    let untold = self.clock.now().before(MAYBE_UNTOLD_MILLISECONDS);
                    self.index.closed_seen(&conversation, untold)
                }
                Err(unreadable) => {
                    passed_over(&unreadable);
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
        self.ask_for(affected);
    }

    fn claim(&mut self, event: watcher::Result<Event<Stored<AddressBinding>>>) {
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
                    return self.ask_for(affected);
                };
                let affected = self.index.claim_seen(&claim, now);
                // Creates in flight are looked at again when their grace period is over, if need be.
                if self.leads && self.index.grace_ends(&claim.name, self.grace_period).is_some() {
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
                    self.came_out_well(&task);
                }
                ConversationPlan::Report(telling) => {
                    self.teller.tell(telling);
                    self.came_out_well(&task);
                }
                ConversationPlan::Write(write) => {
                    if write.is_routine {
                        if let Some(until) = self.queue.rests(&task) {
                            self.queue.set_deadline(place, write.wake);
                            self.queue.add_at(task.clone(), until);
                            return self.came_out_well(&task);
                        }
                        self.queue.rest(task.clone(), monotonic + BETWEEN_ROUTINE_WRITES);
                    }
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
                    self.came_out_well(&task);
                }
                ClaimPlan::Release(release) => {
                    let worker = self.worker.clone();
                    jobs.spawn(async move { worker.release(task, release).await });
                }
            },
        }
    }

    fn plan(&self, place: &Place, now: Time) -> ConversationPlan {
        self.index.plan_conversation(place, |other| self.is_under_way(other), now)
    }

    fn is_under_way(&self, place: &Place) -> bool {
        self.queue.is_under_way(&Task::Conversation(place.clone()))
    }

    fn came_out_well(&mut self, task: &Task) {
        self.queue.done(task);
        self.queue.succeeded(task);
    }

    fn finished(&mut self, finished: Finished) {
        let Finished { task, mut next } = finished;
        self.queue.done(&task);
        if let (Task::Conversation(place), Next::Written { changed: Some(version), .. }) = (&task, &next) {
            self.index.written(place, version);
        }
        // What was written is told, also by who leads no more.
        if let Next::Written { tellings, .. } | Next::Deleted { tellings } = &mut next {
            for telling in std::mem::take(tellings) {
                self.teller.tell(telling);
            }
        }
        if !self.leads {
            return;
        }
        if let Task::Conversation(place) = &task {
            let waits_for_it = self.index.claimant(place);
            self.ask_for(waits_for_it.into_iter().collect());
        }
        match next {
            Next::Nothing | Next::Deleted { .. } => self.queue.succeeded(&task),
            Next::Wake(wake) | Next::Written { wake, .. } => {
                self.queue.succeeded(&task);
                if let Task::Conversation(place) = &task {
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
            Next::Retry(backoff) => self.queue.retry(task, backoff, self.clock.monotonic()),
        }
    }
}

/// A stored object that cannot be read stops nothing. Why it cannot is in its Event, since that may quote an address.
fn passed_over(unreadable: &Unreadable) {
    let ObjectMeta { namespace, name, .. } = &unreadable.metadata;
    tracing::error!(
        conversation = %Place::new(namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default()),
        "a stored conversation cannot be read and is passed over: correct or delete it; its Event Unreadable says why"
    );
}

fn metadata<K: watch::Kind>(object: &Stored<K>) -> &ObjectMeta {
    kube::Resource::meta(object)
}

/// What the status does not call Closed. A conversation that closes leaves this watch as one that is deleted does.
const OPEN: &str = "status.state!=Closed";
/// What the status calls Closed: nothing waits for this watch, and next to nothing is kept of what it shows.
const CLOSED: &str = "status.state=Closed";
