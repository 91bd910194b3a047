//! Sends the notices of conversations to the sink of the lifecycle events, as `CloudEvents`. The events of one conversation go one after the
//! other, those of others meanwhile. An event that the sink does not accept is sent again with backoff, in the limits of the backlog.

use super::{PendingEvent, Snapshot};
use crate::api::State;
use crate::clock::Clock;
use crate::cloud_events::{Event, EventType, Failure, Sinks, Verdict};
use crate::controller::metrics::{ControllerMetrics, EventOutcome};
use crate::controller::queue::{Backoff, Queue};
use crate::core::lifecycle::NoticeReason;
use crate::index::Uid;
use crate::telemetry::error_chain::ErrorChain;
use hyper::Uri;
use hyper::body::Bytes;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};

/// The `source` of the events.
const SOURCE: &str = "/conversations";
/// The maximum number of events that are sent concurrently.
const CONCURRENCY: usize = 8;
/// The timeout of one attempt.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of the events that wait, in bytes. Further events are dropped.
const MAX_BACKLOG_BYTES: usize = 16 << 20;
/// The size of an event without its texts, in bytes, rounded up.
const EVENT_BYTES: usize = 1024;
/// The age at which an event is dropped that the sink still does not accept.
const MAX_AGE: Duration = Duration::from_hours(1);
/// Why it is dropped.
const TOO_OLD: &str = "the sink did not accept it for too long";
/// The time in which the backlog is sent at a shutdown. The Lease is released after it.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// The minimum interval between two warnings that the sink fails.
const WARNING_INTERVAL: Duration = Duration::from_secs(30);

/// The sink of the lifecycle events, and the client for it.
#[derive(Clone)]
pub struct Settings {
    /// Its URL.
    pub uri: Uri,
    /// The client.
    pub sinks: Sinks,
}

/// Sends lifecycle events.
pub struct EventsSink {
    settings: Settings,
    clock: Clock,
    metrics: ControllerMetrics,
    backlog: Backlog,
    in_progress: JoinSet<(Uid, Result<Verdict, Failure>)>,
    next_warning: Instant,
}

impl EventsSink {
    /// Sends events to the sink of `settings`.
    #[must_use]
    pub fn new(settings: Settings, clock: Clock, metrics: ControllerMetrics) -> Self {
        let next_warning = clock.monotonic();
        Self { settings, clock, metrics, backlog: Backlog::default(), in_progress: JoinSet::new(), next_warning }
    }

    /// Adds the event of a notice to the backlog, if it has one.
    pub fn add(&mut self, pending_event: &PendingEvent) {
        let Some(event) = LifecycleEvent::of(pending_event) else { return };
        match self.backlog.add(event, self.clock.monotonic()) {
            Ok(()) => self.start(),
            Err(event) => self.dropped(&event, "the backlog is full"),
        }
    }

    /// Waits until something has happened to an event, and sends the next. If there is none, it is pending forever. It is cancel safe.
    ///
    /// # Errors
    /// If sending an event panicked.
    pub async fn progress(&mut self) -> Result<(), JoinError> {
        let wake = self.backlog.next_wake(self.clock.monotonic()).filter(|_| self.in_progress.len() < CONCURRENCY);
        let woken = async {
            match wake {
                Some(wake) => sleep(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(sent) = self.in_progress.join_next() => {
                let (uid, result) = sent?;
                self.sent(&uid, result);
            }
            () = woken => {}
        }
        self.start();
        Ok(())
    }

    /// Sends the backlog if the sink accepts it soon, and drops the rest.
    ///
    /// # Errors
    /// If sending an event panicked.
    pub async fn shutdown(mut self) -> Result<(), JoinError> {
        let completed = async {
            while self.backlog.len > 0 {
                self.progress().await?;
            }
            Ok(())
        };
        if let Ok(result) = timeout(SHUTDOWN_TIMEOUT, completed).await {
            return result;
        }
        tracing::warn!(
            events = self.backlog.len,
            "the sink of the lifecycle events has not accepted all of them; the next leader sends those of the last two minutes that it can derive"
        );
        Ok(())
    }

    fn start(&mut self) {
        let now = self.clock.monotonic();
        while self.in_progress.len() < CONCURRENCY
            && let Some((uid, event)) = self.backlog.next(now)
        {
            if self.backlog.is_too_old(&uid, now) {
                self.backlog.finish(&uid);
                self.dropped(&event, TOO_OLD);
                continue;
            }
            let Settings { uri, sinks } = self.settings.clone();
            self.in_progress.spawn(async move {
                let result = sinks.try_post(&uri, &event.cloud_event(), now + REQUEST_TIMEOUT).await;
                (uid, result)
            });
        }
        self.metrics.set_pending_events(self.backlog.len);
    }

    fn sent(&mut self, uid: &Uid, result: Result<Verdict, Failure>) {
        let now = self.clock.monotonic();
        match result {
            Ok(verdict) => {
                let Some(event) = self.backlog.finish(uid) else { return };
                match verdict {
                    Verdict::Accepted => self.metrics.event_sent(EventOutcome::Accepted),
                    Verdict::Refused => {
                        self.metrics.event_sent(EventOutcome::Refused);
                        let PendingEvent { key, notice, .. } = &event.pending;
                        let reason = notice.reason.as_str();
                        tracing::warn!(conversation = %key, reason, "the sink of the lifecycle events refused one");
                    }
                }
            }
            Err(failure) => {
                // Once for many events, since a sink that is down fails for all of them. Its URL may contain a secret.
                if now >= self.next_warning {
                    self.next_warning = now + WARNING_INTERVAL;
                    let (host, events, cause) = (self.settings.uri.host(), self.backlog.len, ErrorChain(&failure));
                    tracing::warn!(host, events, %cause, "the sink of the lifecycle events fails; retrying");
                }
                match self.backlog.retry(uid, now) {
                    Some(event) => self.dropped(&event, TOO_OLD),
                    None => self.metrics.event_sent(EventOutcome::Retried),
                }
            }
        }
    }

    fn dropped(&self, event: &LifecycleEvent, cause: &str) {
        self.metrics.event_sent(EventOutcome::Dropped);
        let PendingEvent { key, notice, .. } = &event.pending;
        tracing::warn!(conversation = %key, reason = notice.reason.as_str(), cause, "dropped a lifecycle event");
    }
}

/// The event of a notice.
#[derive(Debug)]
struct LifecycleEvent {
    type_: EventType,
    pending: PendingEvent,
}

impl LifecycleEvent {
    /// `None` if the notice is not about the life of a conversation. The notice of a conversation that cannot be decoded may quote an address,
    /// and has no time of its own.
    fn of(pending_event: &PendingEvent) -> Option<Self> {
        let type_ = match pending_event.notice.reason {
            NoticeReason::AddressAlreadyBound => EventType::AlreadyBound,
            NoticeReason::Bound => EventType::Bound,
            NoticeReason::Unassigned => EventType::Unassigned,
            NoticeReason::Inactive => EventType::Inactive,
            NoticeReason::Reactivated => EventType::Reactivated,
            NoticeReason::Closed => EventType::Closed,
            NoticeReason::TTLExpired => EventType::Expired,
            NoticeReason::InvalidObject => return None,
        };
        Some(Self { type_, pending: pending_event.clone() })
    }

    /// The event as sinks get it. Its ID is derived from the notice, as the name of the Event is, so every leader gives it the same.
    fn cloud_event(&self) -> Event {
        let Self { type_, pending: PendingEvent { key, uid, notice, .. } } = self;
        let (reason, time) = (notice.reason.as_str(), notice.time);
        Event {
            type_: *type_,
            source: SOURCE.to_owned(),
            id: format!("{uid}/{reason}/{time}"),
            subject: Some(key.to_string()),
            time: Some(time),
            partition_key: Some(uid.to_string()),
            data: Bytes::from(self.data().to_string()),
        }
    }

    fn data(&self) -> Value {
        let PendingEvent { key, uid, notice, snapshot } = &self.pending;
        let conversation = json!({"namespace": key.namespace(), "name": key.name(), "uid": uid.to_string()});
        let mut data = json!({"conversation": conversation, "message": notice.note});
        data["reason"] = match notice.state_reason {
            Some(state_reason) => json!(state_reason),
            None => json!(notice.reason.as_str()),
        };
        match snapshot.as_deref() {
            Some(Snapshot { state, participants, channel, contact, proxy }) => {
                data["conversation"]["state"] = json!(state);
                data["conversation"]["participants"] = json!(participants);
                data["channel"] = json!(channel);
                data["proxy"] = json!(proxy);
                if let Some(contact) = contact {
                    data["contact"] = json!(contact);
                }
            }
            // It was closed, and is gone.
            None => data["conversation"]["state"] = json!(State::Closed),
        }
        data
    }

    /// The memory that it takes, in bytes, roughly.
    fn size(&self) -> usize {
        let PendingEvent { key, notice, snapshot, .. } = &self.pending;
        let texts = snapshot.as_deref().map_or(0, |Snapshot { participants, contact, proxy, .. }| {
            let participants: usize = participants.iter().map(|identity| identity.len() + size_of::<String>()).sum();
            participants + contact.as_ref().map_or(0, String::len) + proxy.len()
        });
        EVENT_BYTES + key.namespace().len() + key.name().len() + notice.note.len() + texts
    }
}

/// The events that the sink has not accepted yet.
#[derive(Default)]
struct Backlog {
    /// The conversations with events, each once.
    queue: Queue<Uid>,
    /// Their events in order, and when each was added. The first one may be in progress.
    events: HashMap<Uid, VecDeque<(Instant, Arc<LifecycleEvent>)>>,
    len: usize,
    bytes: usize,
}

impl Backlog {
    /// Adds an event behind those of the same conversation. If there is no room, it is returned.
    fn add(&mut self, event: LifecycleEvent, now: Instant) -> Result<(), LifecycleEvent> {
        let size = event.size();
        if self.bytes + size > MAX_BACKLOG_BYTES {
            return Err(event);
        }
        self.len += 1;
        self.bytes += size;
        let uid = event.pending.uid.clone();
        let events = self.events.entry(uid.clone()).or_default();
        events.push_back((now, Arc::new(event)));
        // Otherwise it follows when the first one is finished.
        if events.len() == 1 {
            self.queue.add(uid);
        }
        Ok(())
    }

    /// Takes the next event. It is in progress until [`Backlog::finish`] or [`Backlog::retry`].
    fn next(&mut self, now: Instant) -> Option<(Uid, Arc<LifecycleEvent>)> {
        self.queue.promote_due(now);
        let uid = self.queue.get()?;
        let (_, event) = self.events.get(&uid)?.front()?;
        Some((uid, event.clone()))
    }

    /// Time to sleep until an event that failed is due; `None` if none has failed.
    fn next_wake(&self, now: Instant) -> Option<Duration> {
        self.queue.next_wake(now)
    }

    /// Removes the event of this conversation that is in progress.
    fn finish(&mut self, uid: &Uid) -> Option<Arc<LifecycleEvent>> {
        self.queue.done(uid);
        self.queue.forget(uid);
        let events = self.events.get_mut(uid)?;
        let (_, event) = events.pop_front()?;
        self.len -= 1;
        self.bytes -= event.size();
        if events.is_empty() {
            self.events.remove(uid);
        } else {
            self.queue.add(uid.clone());
        }
        Some(event)
    }

    /// Whether the first event of this conversation has waited for too long.
    fn is_too_old(&self, uid: &Uid, now: Instant) -> bool {
        let first = self.events.get(uid).and_then(VecDeque::front);
        first.is_some_and(|(since, _)| now.saturating_duration_since(*since) >= MAX_AGE)
    }

    /// The event of this conversation that is in progress is taken again after its backoff. If it is too old, it is removed and returned.
    fn retry(&mut self, uid: &Uid, now: Instant) -> Option<Arc<LifecycleEvent>> {
        if self.is_too_old(uid, now) {
            return self.finish(uid);
        }
        self.queue.done(uid);
        self.queue.add_rate_limited(uid.clone(), Backoff::Transient, now);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Channel, StateReason, Time};
    use crate::core::lifecycle::Notice;
    use crate::index::NamespacedName;

    fn event(uid: &str, reason: NoticeReason) -> LifecycleEvent {
        let notice = Notice { reason, time: Time::EPOCH, state_reason: None, note: "It changed".to_owned() };
        let key = NamespacedName::new("sales", "alice");
        LifecycleEvent::of(&PendingEvent { key, uid: uid.into(), notice, snapshot: None }).unwrap()
    }

    /// The event that is taken next, as its UID and its reason.
    fn next(backlog: &mut Backlog, now: Instant) -> Option<(String, NoticeReason)> {
        backlog.next(now).map(|(uid, event)| (uid.to_string(), event.pending.notice.reason))
    }

    #[test]
    fn event_has_its_addresses_in_data_alone() {
        let mut closed = event("u1", NoticeReason::Closed);
        closed.pending.notice.state_reason = Some(StateReason::CloseTimer);
        closed.pending.snapshot = Some(Arc::new(Snapshot {
            state: State::Closed,
            participants: vec!["agent-7".to_owned()],
            channel: Channel::Sms,
            contact: Some("+15558675310".to_owned()),
            proxy: "+15017122661".to_owned(),
        }));
        let closed = closed.cloud_event();
        let data = |event: &Event| serde_json::from_slice::<Value>(&event.data).unwrap();
        let expected = json!({
            "conversation": {
                "namespace": "sales", "name": "alice", "uid": "u1", "state": "Closed", "participants": ["agent-7"],
            },
            "channel": "SMS", "contact": "+15558675310", "proxy": "+15017122661",
            "reason": "CloseTimer", "message": "It changed",
        });
        assert_eq!(data(&closed), expected);
        let attributes = format!("{:?}", Event { data: Bytes::new(), ..closed.clone() });
        assert!(!attributes.contains("+15"), "{attributes}");
        assert_eq!(
            (closed.source.as_str(), closed.id.as_str()),
            ("/conversations", "u1/Closed/1970-01-01T00:00:00Z"),
            "they are the same in each replica"
        );
        let expired = event("u1", NoticeReason::TTLExpired).cloud_event();
        assert_eq!(
            (&data(&expired)["conversation"]["state"], &data(&expired)["reason"]),
            (&json!("Closed"), &json!("TTLExpired"))
        );
    }

    #[test]
    fn events_of_one_conversation_stay_in_order_after_a_failure() {
        let (mut backlog, now) = (Backlog::default(), Instant::now());
        for (uid, reason) in
            [("u1", NoticeReason::Inactive), ("u1", NoticeReason::Closed), ("u2", NoticeReason::Unassigned)]
        {
            backlog.add(event(uid, reason), now).unwrap();
        }
        let first = Some(("u1".to_owned(), NoticeReason::Inactive));
        assert_eq!(next(&mut backlog, now), first);
        assert_eq!(next(&mut backlog, now), Some(("u2".to_owned(), NoticeReason::Unassigned)));
        assert_eq!(next(&mut backlog, now), None, "both conversations have an event in progress");
        assert!(backlog.retry(&"u1".into(), now).is_none());
        assert_eq!(next(&mut backlog, now), None, "before its backoff");
        let due = now + backlog.next_wake(now).unwrap();
        assert_eq!(next(&mut backlog, due), first);
        assert!(backlog.finish(&"u1".into()).is_some());
        assert_eq!(next(&mut backlog, due), Some(("u1".to_owned(), NoticeReason::Closed)));
        for uid in ["u1", "u2"] {
            assert!(backlog.finish(&uid.into()).is_some());
        }
        assert_eq!((backlog.len, backlog.bytes, backlog.events.len()), (0, 0, 0));
        assert_eq!((next(&mut backlog, due), backlog.next_wake(due)), (None, None));
    }

    #[test]
    fn event_that_fails_for_too_long_is_dropped() {
        let (mut backlog, now) = (Backlog::default(), Instant::now());
        backlog.add(event("u1", NoticeReason::Inactive), now).unwrap();
        let later = now + MAX_AGE;
        backlog.add(event("u1", NoticeReason::Closed), later).unwrap();
        next(&mut backlog, now);
        let dropped = backlog.retry(&"u1".into(), later).map(|event| event.pending.notice.reason);
        assert_eq!(dropped, Some(NoticeReason::Inactive));
        assert_eq!(next(&mut backlog, later), Some(("u1".to_owned(), NoticeReason::Closed)));
        assert!(backlog.retry(&"u1".into(), later).is_none(), "it is new");
    }

    #[test]
    fn full_backlog_refuses_events_until_one_is_finished() {
        let (mut backlog, now) = (Backlog::default(), Instant::now());
        let mut number = 0;
        while backlog.add(event(&number.to_string(), NoticeReason::Closed), now).is_ok() {
            number += 1;
        }
        assert!(backlog.bytes <= MAX_BACKLOG_BYTES && backlog.len > 10_000, "{} events", backlog.len);
        let (uid, _) = backlog.next(now).unwrap();
        backlog.finish(&uid);
        assert!(backlog.add(event("another", NoticeReason::Closed), now).is_ok());
    }
}
