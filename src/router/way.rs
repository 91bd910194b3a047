//! The way of a message to its conversation: executes the steps that `core::inbound` decides. It knows nothing of sinks.

use super::conversations::Conversations;
use super::known::AssignmentNumber;
use super::metrics::RouterMetrics;
use super::watcher::SharedKnown;
use crate::api::{Autocreate, ConversationReference, ProxyAddress};
use crate::clock::Clock;
use crate::core::binding::{Binding, BindingName};
use crate::core::inbound::{
    Creation, OwnConversation, RateLimit, Recipient, RouteObservation, RouteStep, Routing, Unroutable, WaitingSource,
    conversation,
};
use crate::index::ProxyKey;
use crate::proxy_addresses::ProxyAddresses;
use kube::ResourceExt;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a message waits for a hand-over of its binding, before the last look.
const HAND_OVER_TIME: Duration = Duration::from_secs(1);
/// The first delay before another attempt. It doubles each time, up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(10);
const MAX_BACKOFF: Duration = Duration::from_millis(160);

/// What the ways of all messages share.
pub struct Ways {
    known: SharedKnown,
    conversations: Conversations,
    proxy_addresses: ProxyAddresses,
    /// The limits of the ProxyAddresses that create conversations, by UID.
    limits: Mutex<HashMap<String, RateLimit>>,
    clock: Clock,
    metrics: RouterMetrics,
}

/// Where the way of a message ends.
#[derive(Debug)]
pub enum End {
    /// At a conversation.
    Deliver {
        /// The conversation.
        recipient: Recipient,
        /// Whether the message created it.
        is_created: bool,
    },
    /// No conversation gets the message. The text is the API server's, and may contain addresses.
    Unroutable(Unroutable, Option<String>),
    /// This could not be found out in time.
    GiveUp,
}

impl Ways {
    /// Ways to `conversations`, of which `known` shows the open ones.
    #[must_use]
    pub fn new(
        known: SharedKnown,
        conversations: Conversations,
        proxy_addresses: ProxyAddresses,
        clock: Clock,
        metrics: RouterMetrics,
    ) -> Self {
        Self { known, conversations, proxy_addresses, limits: Mutex::default(), clock, metrics }
    }

    /// Changes the limit of a ProxyAddress.
    fn limit<T>(&self, proxy_address: &ProxyAddress, change: impl FnOnce(&mut RateLimit, Instant) -> T) -> T {
        let now = self.clock.monotonic();
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        // Without those of ProxyAddresses that are gone, if there are many.
        if let Some(catalog) = self.proxy_addresses.catalog()
            && limits.len() > 2 * catalog.all().len()
        {
            let known: HashSet<_> = catalog.all().filter_map(ResourceExt::uid).collect();
            limits.retain(|uid, _| known.contains(uid));
        }
        let uid = proxy_address.uid().unwrap_or_default();
        change(limits.entry(uid).or_insert_with(|| RateLimit::new(now)), now)
    }
}

/// An assignment by this replica. It is settled when this is dropped.
struct Assigned {
    known: SharedKnown,
    number: AssignmentNumber,
    created: Option<Recipient>,
}

impl Drop for Assigned {
    fn drop(&mut self) {
        self.known.write().assignment_settled(self.number, self.created.as_ref());
    }
}

/// The way of one message to its conversation.
pub struct Way<'a> {
    /// What it shares with others.
    pub ways: &'a Ways,
    /// The binding of the message.
    pub binding: &'a Binding,
    /// The name of its claim.
    pub name: &'a BindingName,
    /// The conversation that it may create.
    pub own: Option<ConversationReference>,
    /// How that is created.
    pub autocreate: Option<&'a Autocreate>,
    /// The ProxyAddress that accepts the message.
    pub proxy_address: &'a ProxyAddress,
    /// When it is given up.
    pub deadline: Instant,
}

impl Way<'_> {
    /// Goes all the way.
    pub async fn end(&self) -> End {
        let Ways { clock, known, conversations, .. } = self.ways;
        let mut routing = Routing::new(self.own.clone());
        let mut step = routing.next(RouteObservation::Watched(known.read().sight(self.name, clock.monotonic())));
        let (mut backoff, mut handed_over_since, mut cause) = (MIN_BACKOFF, None, None);
        let mut waiting = WaitingSource::FreeByList;
        loop {
            let now = clock.monotonic();
            match step {
                RouteStep::Deliver { recipient, is_created } => return End::Deliver { recipient, is_created },
                RouteStep::Unroutable(reason) => return End::Unroutable(reason, cause),
                _ if now >= self.deadline => return End::GiveUp,
                _ => {}
            }
            let is_again = match step {
                RouteStep::ReadLiveAgain(_) | RouteStep::ReadOwnAgain | RouteStep::CreateAgain => true,
                RouteStep::AwaitHandOver => {
                    let since = *handed_over_since.get_or_insert(now);
                    if now.saturating_duration_since(since) >= HAND_OVER_TIME {
                        if waiting == WaitingSource::List {
                            return End::GiveUp;
                        }
                        waiting = WaitingSource::List;
                    }
                    true
                }
                _ => false,
            };
            if is_again {
                sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
            let observation = match step {
                RouteStep::Report(recipient) => {
                    let report = conversations.report(&recipient).await;
                    RouteObservation::Reported(recipient, report)
                }
                RouteStep::Create => self.create(true, &mut cause).await,
                RouteStep::CreateAgain => self.create(false, &mut cause).await,
                RouteStep::ReadOwn | RouteStep::ReadOwnAgain => RouteObservation::Own(match &self.own {
                    Some(own) => conversations.own(own, self.binding, self.deadline).await,
                    None => OwnConversation::Closed,
                }),
                RouteStep::ReadLive(source) | RouteStep::ReadLiveAgain(source) => {
                    RouteObservation::Live(conversations.sight(self.binding, source, self.deadline).await)
                }
                // The ends were handled above.
                RouteStep::AwaitHandOver | RouteStep::Deliver { .. } | RouteStep::Unroutable(_) => {
                    RouteObservation::Live(conversations.sight(self.binding, waiting, self.deadline).await)
                }
            };
            step = routing.next(observation);
        }
    }

    /// Creates the conversation of the message's own name. `is_counted` tells whether it counts for the limit.
    async fn create(&self, is_counted: bool, cause: &mut Option<String>) -> RouteObservation {
        let Ways { known, conversations, clock, metrics, .. } = self.ways;
        let Some((autocreate, own)) = self.autocreate.zip(self.own.as_ref()) else {
            return RouteObservation::Creation(Creation::Refused);
        };
        let limit = |change: &dyn Fn(&mut RateLimit, Instant) -> bool| self.ways.limit(self.proxy_address, change);
        if is_counted && !limit(&|limit, now| limit.take(autocreate, now)) {
            return RouteObservation::Creation(Creation::RateLimited);
        }
        let assigned = autocreate.assignment.as_ref().and_then(|assignment| {
            let proxy = ProxyKey::new(self.binding.channel(), self.binding.proxy().as_str());
            known.write().assign(assignment, proxy, self.binding.contact().as_str(), clock.monotonic())
        });
        let identity = assigned.as_ref().map(|(identity, _)| identity.clone());
        let mut assigned = assigned.map(|(_, number)| Assigned { known: known.clone(), number, created: None });
        let conversation = conversation(autocreate, &own.name, self.binding, identity.as_deref());
        let (creation, refusal) = conversations.create(conversation, self.deadline).await;
        let created = match &creation {
            Creation::Created(recipient) => Some(recipient),
            _ => None,
        };
        if let Some(assigned) = &mut assigned {
            assigned.created = created.cloned();
        }
        if created.is_some() {
            metrics.created();
        } else if matches!(creation, Creation::AlreadyBound | Creation::AlreadyExists) {
            // One that is refused counts: it leaves an admission behind.
            limit(&|limit, _| {
                limit.give_back(autocreate);
                true
            });
        }
        *cause = refusal.or(cause.take());
        RouteObservation::Creation(creation)
    }
}
