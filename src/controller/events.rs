//! Records the notices of conversations as Events (events.k8s.io/v1). Events are recorded concurrently with the reconciliation, so
//! that nothing else is delayed if the API server does not accept Events.

mod publisher;

pub use publisher::EventPublisher;

use super::queue::Backoff;
use super::work::backoff;
use crate::api::{Conversation, Time};
use crate::core::lifecycle::{Notice, notices_since};
use crate::index::{NamespacedName, Uid};
use crate::telemetry::error_chain::ErrorChain;
use backon::{ExponentialBuilder, Retryable};
use kube::{Api, Client};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The maximum number of Events that are written concurrently.
const CONCURRENCY: usize = 4;
/// The maximum number of Events that wait. Further Events are dropped, and this is logged.
const MAX_BACKLOG: usize = 20_000;
/// The timeout of one attempt.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The delays between the attempts to record an Event: 0.1 s, 0.5 s, 2.5 s and 8 s.
const RETRY_BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_factor(5.0)
    .with_max_delay(Duration::from_secs(8))
    .with_max_times(4);

/// A notice that is to be recorded as an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingEvent {
    /// The conversation.
    pub key: NamespacedName,
    /// Its UID.
    pub uid: Uid,
    /// The notice.
    pub notice: Notice,
}

/// An entry of the backlog.
#[derive(Debug)]
enum PendingWork {
    /// Record one notice.
    Notice(PendingEvent),
    /// Record all notices of a conversation since a time. The previous leader may have died between a write and its Event. Event
    /// names are deterministic, so an Event that it has recorded is not recorded twice.
    Backfill(NamespacedName, Time),
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time (timeout)")]
    TimedOut,
}

impl Error {
    fn is_transient(&self) -> bool {
        match self {
            Self::Api(error) => backoff(error) == Backoff::Transient,
            Self::TimedOut => true,
        }
    }
}

/// Records Events, approximately in their order.
pub struct EventRecorder {
    client: Client,
    publisher: EventPublisher,
    backlog: VecDeque<PendingWork>,
    in_progress: JoinSet<()>,
}

impl EventRecorder {
    /// A recorder for the replica `instance`.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        let publisher = EventPublisher::new(client.clone(), instance);
        Self { client, publisher, backlog: VecDeque::new(), in_progress: JoinSet::new() }
    }

    /// Adds a notice to the backlog.
    pub fn record(&mut self, pending_event: PendingEvent) {
        self.add(PendingWork::Notice(pending_event));
    }

    /// Adds all notices of a conversation since `since` to the backlog, including those of the previous leader.
    pub fn backfill_since(&mut self, key: NamespacedName, since: Time) {
        self.add(PendingWork::Backfill(key, since));
    }

    fn add(&mut self, work: PendingWork) {
        if self.backlog.len() < MAX_BACKLOG {
            self.backlog.push_back(work);
            self.start();
        } else {
            let (PendingWork::Notice(PendingEvent { key, .. }) | PendingWork::Backfill(key, _)) = work;
            tracing::warn!(conversation = %key, "the backlog of Events is full; dropped one");
        }
    }

    fn start(&mut self) {
        while self.in_progress.len() < CONCURRENCY
            && let Some(work) = self.backlog.pop_front()
        {
            let (client, publisher) = (self.client.clone(), self.publisher.clone());
            self.in_progress.spawn(async move {
                match work {
                    PendingWork::Notice(pending_event) => record(&publisher, &pending_event).await,
                    PendingWork::Backfill(key, since) => backfill_since(&client, &publisher, &key, since).await,
                }
            });
        }
    }

    /// Waits until an Event has been recorded, and starts the next. If there is none, it is pending forever. It is cancel safe.
    pub async fn progress(&mut self) {
        if self.in_progress.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
        self.start();
    }

    /// Completes the Events in progress, and drops the backlog: the next leader records it.
    pub async fn shutdown(mut self) {
        let completed = async { while self.in_progress.join_next().await.is_some() {} };
        let _ = timeout(REQUEST_TIMEOUT, completed).await;
    }
}

async fn record(publisher: &EventPublisher, pending_event: &PendingEvent) {
    let PendingEvent { key, uid, notice } = pending_event;
    let uid = uid.to_string();
    let attempt = || within_timeout(publisher.publish(key.namespace(), key.name(), &uid, notice));
    if let Err(error) = attempt.retry(RETRY_BACKOFF).when(Error::is_transient).await {
        let reason = notice.reason.as_str();
        tracing::warn!(conversation = %key, reason, error = %ErrorChain(&error), "failed to record an Event");
    }
}

async fn backfill_since(client: &Client, publisher: &EventPublisher, key: &NamespacedName, since: Time) {
    let conversations = Api::<Conversation>::namespaced(client.clone(), key.namespace());
    match within_timeout(conversations.get_opt(key.name())).await {
        Ok(Some(Conversation { metadata, status: Some(status), .. })) => {
            let uid = Uid::from(metadata.uid.as_deref().unwrap_or_default());
            for notice in notices_since(&status, since) {
                record(publisher, &PendingEvent { key: key.clone(), uid: uid.clone(), notice }).await;
            }
        }
        Ok(_) => {}
        Err(error) => {
            let error = ErrorChain(&error);
            tracing::warn!(conversation = %key, %error, "failed to read a conversation whose Events may be missing");
        }
    }
}

async fn within_timeout<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    Ok(timeout(REQUEST_TIMEOUT, request).await.map_err(|_| Error::TimedOut)??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backon::BackoffBuilder;

    #[test]
    fn delays_between_attempts_grow_to_eight_seconds() {
        let delays: Vec<_> = RETRY_BACKOFF.build().map(|delay| delay.as_millis()).collect();
        assert_eq!(delays, [100, 500, 2_500, 8_000]);
    }
}
