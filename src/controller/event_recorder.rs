//! Tells people what has happened, beside the work: an API server that takes no Events holds nothing else up.

use super::index::PendingEvent;
use super::keys::{NamespacedName, Uid};
use super::queue::Backoff;
use super::work::backoff;
use crate::api::{Conversation, Time};
use crate::core::lifecycle::notices_since;
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::events::Events;
use kube::{Api, Client};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How many Events are written at once.
const CONCURRENCY: usize = 4;
/// How much may wait to be told. What is more is not told, and logged.
const MAX_BACKLOG: usize = 20_000;
/// How long one attempt may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The pauses between the attempts to tell something.
const RETRY_BACKOFF: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];

/// What is logged where an attempt took too long.
const NO_ANSWER: &str = "the API server did not answer in time (timeout)";

/// What is to be told.
#[derive(Debug)]
enum PendingWork {
    /// A notice.
    Notice(PendingEvent),
    /// Whatever the status of a conversation tells that came about since then. Who led before may have been cut short between
    /// the write and the Event; an Event that it did record is not recorded twice.
    Since(NamespacedName, Time),
}

/// Records Events, in the order in which they came about as far as the API server lets it.
pub struct EventRecorder {
    client: Client,
    events: Events,
    waiting: VecDeque<PendingWork>,
    under_way: JoinSet<()>,
}

impl EventRecorder {
    /// One that tells by `events`.
    #[must_use]
    pub fn new(client: Client, events: Events) -> Self {
        Self { client, events, waiting: VecDeque::new(), under_way: JoinSet::new() }
    }

    /// Tells a notice, when its turn comes.
    pub fn record(&mut self, pending_event: PendingEvent) {
        self.add(PendingWork::Notice(pending_event));
    }

    /// Tells what came about in a conversation since then, whoever has decided it.
    pub fn backfill_since(&mut self, key: NamespacedName, since: Time) {
        self.add(PendingWork::Since(key, since));
    }

    fn add(&mut self, work: PendingWork) {
        if self.waiting.len() < MAX_BACKLOG {
            self.waiting.push_back(work);
            self.begin();
        } else {
            let (PendingWork::Notice(PendingEvent { key, .. }) | PendingWork::Since(key, _)) = work;
            tracing::warn!(conversation = %key, "too much waits to be told by Events, and this is not told");
        }
    }

    fn begin(&mut self) {
        while self.under_way.len() < CONCURRENCY
            && let Some(work) = self.waiting.pop_front()
        {
            let (client, events) = (self.client.clone(), self.events.clone());
            self.under_way.spawn(async move {
                match work {
                    PendingWork::Notice(pending_event) => record(&events, &pending_event).await,
                    PendingWork::Since(key, since) => backfill_since(&client, &events, &key, since).await,
                }
            });
        }
    }

    /// Waits until something has been told, and goes on with the next; for ever where nothing is to be told. Nothing is lost where
    /// the wait is given up.
    pub async fn progress(&mut self) {
        if self.under_way.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
        self.begin();
    }

    /// Tells what is under way, and gives up the rest: whoever leads next tells it.
    pub async fn end(mut self) {
        let told = async { while self.under_way.join_next().await.is_some() {} };
        let _ = timeout(REQUEST_TIMEOUT, told).await;
    }
}

async fn record(events: &Events, PendingEvent { key, uid, notice }: &PendingEvent) {
    let uid = uid.to_string();
    let mut pauses = RETRY_BACKOFF.into_iter();
    loop {
        let error = match timeout(REQUEST_TIMEOUT, events.tell(key.namespace(), key.name(), &uid, notice)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) if backoff(&error) == Backoff::Refused => Some(error),
            // It may do so a moment later.
            result => match pauses.next() {
                Some(pause) => {
                    sleep(pause).await;
                    continue;
                }
                None => result.ok().and_then(Result::err),
            },
        };
        let error = error.map_or_else(|| NO_ANSWER.to_owned(), |error| ErrorChain(&error).to_string());
        tracing::warn!(conversation = %key, reason = notice.reason.as_str(), error, "cannot tell a notice by an Event");
        return;
    }
}

async fn backfill_since(client: &Client, events: &Events, key: &NamespacedName, since: Time) {
    let conversations = Api::<Conversation>::namespaced(client.clone(), key.namespace());
    match timeout(REQUEST_TIMEOUT, conversations.get_opt(key.name())).await {
        Ok(Ok(Some(Conversation { metadata, status: Some(status), .. }))) => {
            let uid = Uid::from(metadata.uid.as_deref().unwrap_or_default());
            for notice in notices_since(&status, since) {
                record(events, &PendingEvent { key: key.clone(), uid: uid.clone(), notice }).await;
            }
        }
        Ok(Ok(_)) => {}
        failed => {
            let error = failed
                .ok()
                .and_then(Result::err)
                .map_or_else(|| NO_ANSWER.to_owned(), |error| ErrorChain(&error).to_string());
            tracing::warn!(conversation = %key, error, "cannot read what may have to be told of a conversation");
        }
    }
}
