//! A client that watches: it records which conversations of a namespace are Ready, when they were Closed, and which claims exist.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use switchboard::api::{AddressBinding, ConditionStatus, ConditionType, Conversation, State};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{
    error::{Error, Result},
    world::TIMEOUT,
};

/// The observations so far.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The conversations that are or were Ready.
    pub ready: HashSet<String>,
    /// The time at which each conversation was first observed as Closed.
    pub closed: HashMap<String, Instant>,
    /// The existing claims.
    pub claims: HashSet<String>,
    has_listed: bool,
}

/// A watch that runs until it is dropped.
pub struct Observer {
    seen: watch::Receiver<Observed>,
    task: JoinHandle<()>,
}

impl Observer {
    /// Watches the conversations of a namespace. Returns after the first list.
    pub async fn of_conversations(client: Client, namespace: &str) -> Result<Self> {
        let api = Api::<Conversation>::namespaced(client, namespace);
        Self::start(api, |seen, conversation, is_gone| {
            let name = conversation.name_any();
            let Some(status) = conversation.status.filter(|_| !is_gone) else { return };
            let is_ready = |condition: &switchboard::api::Condition| {
                (condition.type_, condition.status) == (ConditionType::Ready, ConditionStatus::True)
            };
            if status.state == Some(State::Closed) {
                seen.closed.entry(name.clone()).or_insert_with(Instant::now);
            }
            if status.conditions.iter().any(is_ready) {
                seen.ready.insert(name);
            }
        })
        .await
    }

    /// Watches the claims. Returns after the first list.
    pub async fn of_claims(client: Client) -> Result<Self> {
        Self::start(Api::<AddressBinding>::all(client), |seen, claim, is_gone| {
            let name = claim.name_any();
            if is_gone {
                seen.claims.remove(&name)
            } else {
                seen.claims.insert(name)
            };
        })
        .await
    }

    async fn start<K>(api: Api<K>, record: impl Fn(&mut Observed, K, bool) + Send + 'static) -> Result<Self>
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    {
        let (sender, seen) = watch::channel(Observed::default());
        let task = tokio::spawn(async move {
            let mut events = Box::pin(watcher(api, watcher::Config::default()).default_backoff());
            while let Some(event) = events.next().await {
                // The watch recovers after an error.
                let Ok(event) = event else { continue };
                sender.send_modify(|seen| match event {
                    Event::Init => {}
                    Event::InitDone => seen.has_listed = true,
                    Event::InitApply(object) | Event::Apply(object) => record(seen, object, false),
                    Event::Delete(object) => record(seen, object, true),
                });
            }
        });
        let mut observer = Self { seen, task };
        observer.wait_until("the first list", |seen| seen.has_listed).await?;
        Ok(observer)
    }

    /// Waits until `condition` is true, and returns the observations.
    pub async fn wait_until(&mut self, what: &str, condition: impl Fn(&Observed) -> bool) -> Result<Observed> {
        match timeout(TIMEOUT, self.seen.wait_for(condition)).await {
            Ok(Ok(seen)) => Ok(seen.clone()),
            Ok(Err(_)) => Err(Error::Unexpected(format!("the watch ended before: {what}"))),
            Err(_) => Err(Error::Unexpected(format!("waited {} s for: {what}", TIMEOUT.as_secs()))),
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
