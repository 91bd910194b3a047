//! Tells people what has happened, beside the work: an API server that takes no Events holds nothing else up.

use super::compact::{Place, Uid};
use super::index::Telling;
use super::queue::Backoff;
use super::work::backoff;
use crate::api::{Conversation, Time};
use crate::core::lifecycle::recent;
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
const LONGEST_BACKLOG: usize = 20_000;
/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pauses between the attempts to tell something.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];

/// What is logged where an attempt took too long.
const NO_ANSWER: &str = "the API server did not answer in time (timeout)";

/// What is to be told.
#[derive(Debug)]
enum News {
    /// A fact.
    Fact(Telling),
    /// Whatever the status of a conversation tells that came about since then. Who led before may have been cut short between
    /// the write and the telling; what it did tell is not told twice.
    Since(Place, Time),
}

/// Tells people facts, in the order in which they came about as far as the API server lets it.
pub struct Teller {
    client: Client,
    events: Events,
    waiting: VecDeque<News>,
    under_way: JoinSet<()>,
}

impl Teller {
    /// One that tells by `events`.
    #[must_use]
    pub fn new(client: Client, events: Events) -> Self {
        Self { client, events, waiting: VecDeque::new(), under_way: JoinSet::new() }
    }

    /// Tells a fact, when its turn comes.
    pub fn tell(&mut self, telling: Telling) {
        self.add(News::Fact(telling));
    }

    /// Tells what came about in a conversation since then, whoever has decided it.
    pub fn tell_since(&mut self, place: Place, since: Time) {
        self.add(News::Since(place, since));
    }

    fn add(&mut self, news: News) {
        if self.waiting.len() < LONGEST_BACKLOG {
            self.waiting.push_back(news);
            self.begin();
        } else {
            let (News::Fact(Telling { place, .. }) | News::Since(place, _)) = news;
            tracing::warn!(conversation = %place, "too much waits to be told by Events, and this is not told");
        }
    }

    fn begin(&mut self) {
        while self.under_way.len() < CONCURRENCY
            && let Some(news) = self.waiting.pop_front()
        {
            let (client, events) = (self.client.clone(), self.events.clone());
            self.under_way.spawn(async move {
                match news {
                    News::Fact(telling) => tell(&events, &telling).await,
                    News::Since(place, since) => tell_since(&client, &events, &place, since).await,
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
        let _ = timeout(PATIENCE, told).await;
    }
}

async fn tell(events: &Events, Telling { place, uid, fact }: &Telling) {
    let uid = uid.to_string();
    let mut pauses = PAUSES.into_iter();
    loop {
        let error = match timeout(PATIENCE, events.tell(place.namespace(), place.name(), &uid, fact)).await {
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
        tracing::warn!(conversation = %place, reason = fact.reason.as_str(), error, "cannot tell a fact by an Event");
        return;
    }
}

async fn tell_since(client: &Client, events: &Events, place: &Place, since: Time) {
    let conversations = Api::<Conversation>::namespaced(client.clone(), place.namespace());
    match timeout(PATIENCE, conversations.get_opt(place.name())).await {
        Ok(Ok(Some(Conversation { metadata, status: Some(status), .. }))) => {
            let uid = Uid::from(metadata.uid.as_deref().unwrap_or_default());
            for fact in recent(&status, since) {
                tell(events, &Telling { place: place.clone(), uid: uid.clone(), fact }).await;
            }
        }
        Ok(Ok(_)) => {}
        failed => {
            let error = failed
                .ok()
                .and_then(Result::err)
                .map_or_else(|| NO_ANSWER.to_owned(), |error| ErrorChain(&error).to_string());
            tracing::warn!(conversation = %place, error, "cannot read what may have to be told of a conversation");
        }
    }
}
