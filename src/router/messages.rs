//! Delivers messages: finds the ProxyAddress of each, lets `way` find its conversation, and hands it to the sinks, or tells them why no
//! conversation gets it.

use super::data;
use super::delivered::Delivered;
use super::lanes::Lanes;
use super::metrics::RouterMetrics;
use super::outcome::MessageOutcome;
use super::source::InboundMessage;
use super::way::{End, Way, Ways};
use crate::api::{Channel, ConversationReference, MAX_ADDRESS_LENGTH, ProxyAddress};
use crate::clock::Clock;
use crate::cloud_events::{Delivery, Event, EventType, Sinks, url};
use crate::core::binding::{Binding, BindingName};
use crate::core::inbound::{MessageKey, Recipient, Unroutable};
use crate::proxy_addresses::{ProxyAddresses, read_in_effect};
use crate::telemetry::error_chain::ErrorChain;
use hyper::Uri;
use kube::{Client, ResourceExt};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The characters that a fragment of a URI cannot have (RFC 3986), besides those that are not ASCII.
const FRAGMENT: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}');
/// The time that the sink and the dead letter sink have together.
const DELIVERY_TIME: Duration = Duration::from_millis(2500);
/// The part of it that is kept for the dead letter sink.
const DEAD_LETTER_TIME: Duration = Duration::from_millis(750);
/// How long a live read is believed that found no ProxyAddress.
const UNKNOWN_TTL: Duration = Duration::from_secs(5);
/// The maximum length of an address. The schema admits no longer one.
const MAX_ADDRESS_BYTES: usize = MAX_ADDRESS_LENGTH;
/// The maximum number of addresses for which such a read is remembered.
const MAX_UNKNOWN: usize = 1000;
/// The maximum number of messages of one ProxyAddress that are on their way at the same time, so that a slow sink does not use up what the
/// others need. It is a quarter of the maximum number of requests.
const MAX_IN_FLIGHT: usize = 64;
/// Routes messages.
pub struct Messages {
    client: Client,
    clock: Clock,
    proxy_addresses: ProxyAddresses,
    ways: Ways,
    sinks: Sinks,
    /// For messages that no ProxyAddress accepts.
    dead_letter_sink: Option<Uri>,
    lanes: Lanes<BindingName>,
    /// The delivered messages, by the name of the conversation that each would create: it is derived from all that distinguishes a message.
    delivered: Delivered<String>,
    /// The addresses that no ProxyAddress named according to a live read, and when that was.
    unknown: Mutex<HashMap<(Channel, String), Instant>>,
    /// The number of messages of each ProxyAddress that are on their way.
    in_flight: Arc<Mutex<HashMap<String, usize>>>,
    metrics: RouterMetrics,
}

/// The source of a message.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The name of the source.
    pub source: &'a str,
    /// Whether the provider sends a message again that it was not told to be accepted.
    pub repeats: bool,
}

/// How long the way of a message may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// The end of the request.
    pub end: Instant,
    /// The time in which a message finds its conversation, before and after it waits for others.
    pub routing: Duration,
}

/// The sinks of a message.
struct Receivers {
    /// `None` if no ProxyAddress accepts the message.
    sink: Option<Uri>,
    dead_letter: Option<Uri>,
    /// The `source` of its events.
    event_source: String,
}

impl Messages {
    /// Routes the messages that are told to it.
    #[must_use]
    pub fn new(
        client: Client,
        clock: Clock,
        proxy_addresses: ProxyAddresses,
        ways: Ways,
        sinks: Sinks,
        dead_letter_sink: Option<Uri>,
        metrics: RouterMetrics,
    ) -> Self {
        Self {
            client,
            clock,
            proxy_addresses,
            ways,
            sinks,
            dead_letter_sink,
            lanes: Lanes::default(),
            delivered: Delivered::default(),
            unknown: Mutex::default(),
            in_flight: Arc::default(),
            metrics,
        }
    }

    /// Routes a message within `deadlines`, and delivers it in the time that a delivery may take after that.
    pub async fn route(&self, origin: Origin<'_>, message: &InboundMessage, deadlines: Deadlines) -> MessageOutcome {
        let began = self.clock.monotonic();
        let outcome = self.outcome(origin, message, deadlines).await;
        self.metrics.routed(outcome, self.clock.monotonic().saturating_duration_since(began));
        outcome
    }

    async fn outcome(&self, origin: Origin<'_>, message: &InboundMessage, deadlines: Deadlines) -> MessageOutcome {
        let Deadlines { end, routing } = deadlines;
        let deadline = || end.min(self.clock.monotonic() + routing);
        let Some(proxy_address) = self.proxy_address(message, deadline()).await else {
            return self.give_up(origin, &self.without_proxy_address(origin, message), message).await;
        };
        let inbound = proxy_address.as_deref().and_then(|declared| declared.spec.inbound.as_ref());
        let accepting = inbound.filter(|inbound| inbound.sources.iter().any(|source| source == origin.source));
        let receivers = Receivers {
            sink: accepting.and_then(|inbound| url(&inbound.sink)),
            dead_letter: match accepting {
                Some(inbound) => inbound.dead_letter_sink.as_ref().and_then(url),
                None => self.dead_letter_sink.clone(),
            },
            event_source: match &proxy_address {
                Some(declared) => event_source(&format!("/proxyaddresses/{}", declared.name_any()), message),
                None => self.without_proxy_address(origin, message).event_source,
            },
        };
        let key = accepting.and(proxy_address.as_ref()).and_then(|declared| declared.uid()).unwrap_or_default();
        let Some(_share) = InFlight::enter(&self.in_flight, key) else {
            return self.give_up(origin, &receivers, message).await;
        };
        let (Some(accepting), Some(declared)) = (accepting, &proxy_address) else {
            let reason =
                if proxy_address.is_some() { Unroutable::SourceNotAccepted } else { Unroutable::UnknownProxyAddress };
            return self.unroutable(&receivers, message, reason, None).await;
        };
        let Ok(binding) = Binding::parse(message.channel, &message.contact, &message.proxy) else {
            return self.unroutable(&receivers, message, Unroutable::InvalidAddress, None).await;
        };
        let name = binding.name();
        let key = MessageKey {
            source: origin.source,
            event_source: message.source.as_deref(),
            id: &message.id,
            kind: &message.kind,
        };
        let conversation_name = key.conversation_name(&name);
        // What happens to a message later opens no conversation.
        let autocreate = accepting.autocreate.as_ref().filter(|_| message.opens());
        let Ok(Some(_turn)) = timeout_at(end, self.lanes.enter(name.clone())).await else {
            return self.give_up(origin, &receivers, message).await;
        };
        if self.delivered.contains(&conversation_name, self.clock.monotonic()) {
            return MessageOutcome::Repeated;
        }
        let way = Way {
            ways: &self.ways,
            binding: &binding,
            name: &name,
            own: autocreate.map(|autocreate| ConversationReference {
                namespace: autocreate.namespace.clone(),
                name: conversation_name.clone(),
            }),
            autocreate,
            proxy_address: declared,
            deadline: deadline(),
        };
        let outcome = match way.end().await {
            End::Deliver { recipient, is_created } => self.deliver(&receivers, message, &recipient, is_created).await,
            End::Unroutable(reason, cause) => self.unroutable(&receivers, message, reason, cause).await,
            End::GiveUp => self.give_up(origin, &receivers, message).await,
        };
        // A message that was not delivered may be sent again after the reason is gone.
        if outcome == MessageOutcome::Delivered {
            self.delivered.insert(conversation_name, self.clock.monotonic());
        }
        outcome
    }

    /// The receivers of a message whose ProxyAddress is not known.
    fn without_proxy_address(&self, origin: Origin<'_>, message: &InboundMessage) -> Receivers {
        let event_source = event_source(&format!("/sources/{}", origin.source), message);
        Receivers { sink: None, dead_letter: self.dead_letter_sink.clone(), event_source }
    }

    /// It cannot be found out in time where a message goes. If its provider will not send it again, a dead letter sink gets it: that of the
    /// ProxyAddress, or else that of the router.
    async fn give_up(&self, origin: Origin<'_>, receivers: &Receivers, message: &InboundMessage) -> MessageOutcome {
        let dead_letter = receivers.dead_letter.clone().or_else(|| self.dead_letter_sink.clone());
        if origin.repeats || dead_letter.is_none() {
            return MessageOutcome::Failed;
        }
        let receivers = Receivers { sink: None, dead_letter, event_source: receivers.event_source.clone() };
        self.unroutable(&receivers, message, Unroutable::Undecided, None).await
    }

    /// The ProxyAddress in effect for the address of the business; `None` if that cannot be found out. That there is none is read live, since
    /// it may have been created a moment ago.
    async fn proxy_address(&self, message: &InboundMessage, deadline: Instant) -> Option<Option<Arc<ProxyAddress>>> {
        let (channel, address) = (message.channel, message.proxy.as_str());
        let catalog = self.proxy_addresses.catalog();
        if let Some(declared) = catalog.as_ref().and_then(|catalog| catalog.shared(channel, address)) {
            return Some(Some(declared.clone()));
        }
        if address.len() > MAX_ADDRESS_BYTES {
            return Some(None);
        }
        let now = self.clock.monotonic();
        let is_recent = |read: &Instant| now.saturating_duration_since(*read) < UNKNOWN_TTL;
        {
            let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
            if unknown.len() >= MAX_UNKNOWN {
                unknown.retain(|_, read| is_recent(read));
            }
            let is_known = unknown.get(&(channel, address.to_owned())).is_some_and(is_recent);
            // Above the maximum, the catalog is believed.
            if catalog.is_some() && (is_known || unknown.len() >= MAX_UNKNOWN) {
                return Some(None);
            }
        }
        match timeout_at(deadline, read_in_effect(self.client.clone(), channel, address, None)).await {
            Ok(Ok(None)) => {
                let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
                unknown.insert((channel, address.to_owned()), now);
                Some(None)
            }
            Ok(Ok(Some(in_effect))) => Some(Some(Arc::new(in_effect))),
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "failed to read the ProxyAddresses");
                None
            }
            Err(_) => None,
        }
    }

    /// Delivers a message, or hands it to the dead letter sink.
    async fn deliver(
        &self,
        receivers: &Receivers,
        message: &InboundMessage,
        recipient: &Recipient,
        is_created: bool,
    ) -> MessageOutcome {
        let now = self.clock.monotonic();
        let end = now + DELIVERY_TIME;
        let sink_end = if receivers.dead_letter.is_some() { end - DEAD_LETTER_TIME } else { end };
        // The schema admits no sink without a URL, and the data can always be written.
        let (Some(sink), Ok(data)) = (&receivers.sink, data::received(message, recipient, is_created)) else {
            return MessageOutcome::Failed;
        };
        let event = |type_, suffix: &str| Event {
            type_,
            source: receivers.event_source.clone(),
            id: format!("{}{suffix}", message.id),
            subject: Some(recipient.conversation.to_string()),
            time: message.time,
            partition_key: Some(recipient.uid.clone()),
            data: data.clone(),
        };
        // Whoever assigns conversations usually learns of one before its first message.
        let created = is_created.then(|| event(EventType::Created, "/created"));
        let received = event(EventType::Received, "");
        let post = async |sink, until| {
            for event in created.iter().chain([&received]) {
                match self.sinks.post(sink, event, until).await {
                    Delivery::Failed => return Delivery::Failed,
                    Delivery::Refused if event.type_ == EventType::Received => return Delivery::Refused,
                    Delivery::Accepted | Delivery::Refused => {}
                }
            }
            Delivery::Accepted
        };
        match (post(sink, sink_end).await, &receivers.dead_letter) {
            (Delivery::Accepted, _) => MessageOutcome::Delivered,
            (Delivery::Refused, None) => MessageOutcome::Refused,
            (Delivery::Failed, None) => MessageOutcome::Failed,
            (refused, Some(dead_letter)) => match post(dead_letter, end).await {
                Delivery::Accepted => MessageOutcome::DeadLettered,
                // Both have seen it and decided.
                Delivery::Refused if refused == Delivery::Refused => MessageOutcome::Refused,
                Delivery::Refused | Delivery::Failed => MessageOutcome::Failed,
            },
        }
    }

    /// No conversation gets a message: the dead letter sink gets an event that says so, or else the sink.
    async fn unroutable(
        &self,
        receivers: &Receivers,
        message: &InboundMessage,
        reason: Unroutable,
        cause: Option<String>,
    ) -> MessageOutcome {
        self.metrics.unroutable(reason);
        let Ok(data) = data::unroutable(message, reason, cause.as_deref()) else { return MessageOutcome::Failed };
        let event = Event {
            type_: EventType::Unroutable,
            source: receivers.event_source.clone(),
            id: format!("{}/unroutable", message.id),
            subject: None,
            time: message.time,
            partition_key: None,
            data,
        };
        let end = self.clock.monotonic() + DELIVERY_TIME;
        let sinks: Vec<_> = receivers.dead_letter.iter().chain(&receivers.sink).collect();
        let mut outcome = if sinks.is_empty() { MessageOutcome::NotAccepted } else { MessageOutcome::Failed };
        for (number, sink) in (1..).zip(&sinks) {
            let until = if number < sinks.len() { end - DEAD_LETTER_TIME } else { end };
            match self.sinks.post(sink, &event, until).await {
                Delivery::Accepted => return MessageOutcome::Unroutable,
                // The sink of a ProxyAddress may refuse what is not for it. A sink that is there for nothing else may not.
                Delivery::Refused if receivers.sink.is_some() => outcome = MessageOutcome::Refused,
                Delivery::Refused | Delivery::Failed => {}
            }
        }
        outcome
    }
}

/// A message of a ProxyAddress that is on its way, until this is dropped.
struct InFlight {
    counts: Arc<Mutex<HashMap<String, usize>>>,
    uid: String,
}

impl InFlight {
    /// Counts a message of the ProxyAddress of this UID; `None` if there are too many.
    fn enter(counts: &Arc<Mutex<HashMap<String, usize>>>, uid: String) -> Option<Self> {
        let mut locked = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = locked.entry(uid.clone()).or_default();
        if *count >= MAX_IN_FLIGHT {
            return None;
        }
        *count += 1;
        Some(Self { counts: counts.clone(), uid })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

/// The `source` of the event of a message. Events of different sources may have the same ID, so the `source` of the event that brought the
/// message is its fragment.
fn event_source(path: &str, message: &InboundMessage) -> String {
    match &message.source {
        Some(source) => format!("{path}#{}", utf8_percent_encode(source, FRAGMENT)),
        None => path.to_owned(),
    }
}
