//! Records the notices of conversations as Events (events.k8s.io/v1), and sends them to the sink of the lifecycle events, if there is one.
//! Both happen concurrently with the reconciliation and with each other, so that nothing else is delayed if the API server does not accept
//! Events, or the sink fails.

mod publisher;
mod sink;

pub use publisher::EventPublisher;
pub use sink::Settings as EventsSinkSettings;

use super::metrics::ControllerMetrics;
use super::queue::Backoff;
use super::work::backoff;
use crate::api::{Channel, Conversation, State, Time};
use crate::clock::Clock;
use crate::core::lifecycle::{Notice, notices_since};
use crate::index::{NamespacedName, Uid};
use crate::telemetry::error_chain::ErrorChain;
use backon::{ExponentialBuilder, Retryable};
use kube::{Api, Client};
use sink::EventsSink;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
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
    /// The conversation after the change, for the sink of the lifecycle events; `None` if it is gone or cannot be decoded.
    pub snapshot: Option<Arc<Snapshot>>,
}

/// The fields of a conversation that the sink of the lifecycle events gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The state in effect.
    pub state: State,
    /// The identities of the participants.
    pub participants: Vec<String>,
    /// The channel.
    pub channel: Channel,
    /// The address of the contact.
    pub contact: Option<String>,
    /// The proxy address.
    pub proxy: String,
}

impl Snapshot {
    fn of(conversation: &Conversation) -> Self {
        let Conversation { spec, status, .. } = conversation;
        let participants = spec.participants.iter().flatten().map(|participant| participant.identity.clone());
        Self {
            state: status.as_ref().and_then(|status| status.state).unwrap_or_default(),
            participants: participants.collect(),
            channel: spec.channel,
            contact: spec.contact.as_ref().map(|contact| contact.address.clone()),
            proxy: spec.proxy.address.clone(),
        }
    }
}

/// The Events of the notices of a conversation, which is read or written as `conversation`.
pub fn pending_events(
    key: &NamespacedName,
    uid: &Uid,
    notices: Vec<Notice>,
    conversation: Option<&Conversation>,
) -> Vec<PendingEvent> {
    let snapshot =
        conversation.filter(|_| !notices.is_empty()).map(|conversation| Arc::new(Snapshot::of(conversation)));
    let event = |notice| PendingEvent { key: key.clone(), uid: uid.clone(), notice, snapshot: snapshot.clone() };
    notices.into_iter().map(event).collect()
}

/// An entry of the backlog.
#[derive(Debug)]
enum PendingWork {
    /// Record one notice.
    Notice(PendingEvent),
    /// Find all notices of a conversation since a time. The previous leader may have died between a write and its Event. Event names, and
    /// the IDs of lifecycle events, are deterministic, so an Event that it has recorded is not recorded twice.
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
    /// Each returns the notices that it has found.
    in_progress: JoinSet<Vec<PendingEvent>>,
    sink: Option<EventsSink>,
}

impl EventRecorder {
    /// A recorder for the replica `instance`.
    #[must_use]
    pub fn new(
        client: Client,
        instance: String,
        sink: Option<EventsSinkSettings>,
        clock: Clock,
        metrics: ControllerMetrics,
    ) -> Self {
        let publisher = EventPublisher::new(client.clone(), instance);
        let sink = sink.map(|settings| EventsSink::new(settings, clock, metrics));
        Self { client, publisher, backlog: VecDeque::new(), in_progress: JoinSet::new(), sink }
    }

    /// Adds a notice to the backlog.
    pub fn record(&mut self, pending_event: PendingEvent) {
        if let Some(sink) = &mut self.sink {
            sink.add(&pending_event);
        }
        // An Event has none of it.
        self.add(PendingWork::Notice(PendingEvent { snapshot: None, ..pending_event }));
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
                    PendingWork::Notice(pending_event) => {
                        record(&publisher, &pending_event).await;
                        Vec::new()
                    }
                    PendingWork::Backfill(key, since) => find_since(&client, &key, since).await,
                }
            });
        }
    }

    /// Waits until something has happened to a notice, and starts the next. If there is none, it is pending forever. It is cancel safe.
    ///
    /// # Errors
    /// If the work on a notice panicked.
    pub async fn progress(&mut self) -> Result<(), JoinError> {
        let sink = async {
            match &mut self.sink {
                Some(sink) => sink.progress().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(found) = self.in_progress.join_next() => {
                for pending_event in found? {
                    self.record(pending_event);
                }
            }
            result = sink => result?,
        }
        self.start();
        Ok(())
    }

    /// Completes the Events in progress, and drops the backlog: the next leader records it.
    ///
    /// # Errors
    /// If the work on a notice panicked.
    pub async fn shutdown(self) -> Result<(), JoinError> {
        let Self { mut in_progress, sink, .. } = self;
        let completed = async { while in_progress.join_next().await.is_some() {} };
        let sent = async {
            match sink {
                Some(sink) => sink.shutdown().await,
                None => Ok(()),
            }
        };
        let (_, result) = tokio::join!(timeout(REQUEST_TIMEOUT, completed), sent);
        result
    }
}

async fn record(publisher: &EventPublisher, pending_event: &PendingEvent) {
    let PendingEvent { key, uid, notice, snapshot: _ } = pending_event;
    let uid = uid.to_string();
    let attempt = || within_timeout(publisher.publish(key.namespace(), key.name(), &uid, notice));
    if let Err(error) = attempt.retry(RETRY_BACKOFF).when(Error::is_transient).await {
        let reason = notice.reason.as_str();
        tracing::warn!(conversation = %key, reason, error = %ErrorChain(&error), "failed to record an Event");
    }
}

/// The notices of a conversation since `since`.
async fn find_since(client: &Client, key: &NamespacedName, since: Time) -> Vec<PendingEvent> {
    let conversations = Api::<Conversation>::namespaced(client.clone(), key.namespace());
    let attempt = || within_timeout(conversations.get_opt(key.name()));
    match attempt.retry(RETRY_BACKOFF).when(Error::is_transient).await {
        Ok(Some(conversation)) => {
            let uid = Uid::from(conversation.metadata.uid.as_deref().unwrap_or_default());
            let notices = conversation.status.as_ref().map(|status| notices_since(status, since));
            pending_events(key, &uid, notices.unwrap_or_default(), Some(&conversation))
        }
        Ok(None) => Vec::new(),
        Err(error) => {
            let error = ErrorChain(&error);
            tracing::warn!(conversation = %key, %error, "failed to read a conversation whose Events may be missing");
            Vec::new()
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
