//! What a client sees who watches: how many conversations of a namespace are Ready, or Closed and since when, and how many claims
//! there are.

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

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The conversations that are Ready, or were.
    pub ready: HashSet<String>,
    /// When each conversation was first seen to be Closed.
    pub closed: HashMap<String, Instant>,
    /// The claims that there are.
    pub claims: HashSet<String>,
    has_listed: bool,
}

/// Watches until it is dropped.
pub struct Observer {
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Observer {
    /// Watches the conversations of a namespace. Returns when it sees what there is already.
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

    /// Watches the claims. Returns when it sees what there is already.
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

    async fn start<K>(api: Api<K>, saw: impl Fn(&mut Seen, K, bool) + Send + 'static) -> Result<Self>
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    {
        let (sender, seen) = watch::channel(Seen::default());
        let task = tokio::spawn(async move {
            let mut events = Box::pin(watcher(api, watcher::Config::default()).default_backoff());
            while let Some(event) = events.next().await {
                // The watch goes on by itself after an interruption.
                let Ok(event) = event else { continue };
                sender.send_modify(|seen| match event {
                    Event::Init => {}
                    Event::InitDone => seen.has_listed = true,
                    Event::InitApply(object) | Event::Apply(object) => saw(seen, object, false),
                    Event::Delete(object) => saw(seen, object, true),
                });
            }
        });
        let mut observer = Self { seen, task };
        observer.wait_until("the first list", |seen| seen.has_listed).await?;
        Ok(observer)
    }

    /// Returns what was seen once it is as `is_so` says.
    pub async fn wait_until(&mut self, what: &str, is_so: impl Fn(&Seen) -> bool) -> Result<Seen> {
        match timeout(TIMEOUT, self.seen.wait_for(is_so)).await {
            Ok(Ok(seen)) => Ok(seen.clone()),
            Ok(Err(_)) => Err(Error::Unexpected(format!("the watch ended before it showed {what}"))),
            Err(_) => Err(Error::Unexpected(format!("{what} did not come about in {} s", TIMEOUT.as_secs()))),
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
