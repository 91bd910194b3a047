//! Records every change of conversations and claims, in the one order in which etcd made them, with none left out.
//!
//! It follows etcd's own revisions, through the JSON gateway that etcd has on its client port, and not an API server: so it sees
//! both kinds in one stream, and goes on while API servers are killed or paused. After an interruption it goes on at the next
//! revision. Where that cannot be had (compacted away, or etcd went back), the next look at the history fails.

#![allow(dead_code, reason = "each test file uses a part of it")]

use super::etcd;
use super::oracle::{Change, Event, Kind, Oracle};
use control_plane::ControlPlane;
use data_encoding::BASE64;
use futures::{AsyncBufReadExt, TryStreamExt};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Everything of the API group, and no key beyond it.
const FROM: &str = "/registry/switchboard.dev/";
const TO: &str = "/registry/switchboard.dev0";
/// A key that no API server reads. Writing it tells the present revision, and makes for an event by which the recorder knows that it
/// has seen everything up to there.
const MARK: &str = "/registry/switchboard.dev/recorder";

/// How long etcd may take to show what has happened, or to come back.
const TIMEOUT: Duration = Duration::from_mins(1);
/// The pause between two attempts to reach etcd.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Follows one etcd until it is dropped.
pub struct Recorder {
    etcd: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    events: Mutex<Vec<Event>>,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// The last revision that was seen.
    revision: u64,
    /// Why the history is not complete.
    lost: Option<String>,
}

impl Recorder {
    /// Records from the first revision on. To be started before an API server has compacted it away, which it does after five
    /// minutes unless it is run with `--etcd-compaction-interval=0`.
    pub fn start(control_plane: &ControlPlane) -> Self {
        let shared = Arc::new(Shared { events: Mutex::default(), progress: watch::Sender::default() });
        let (etcd, stop) = (control_plane.etcd().address(), CancellationToken::new());
        let (for_thread, stopped) = (shared.clone(), stop.clone());
        // A runtime of its own: it records also while a test blocks the thread that it runs on.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = for_thread.record(etcd) => {}
                    () = stopped.cancelled() => {}
                }
            });
        });
        Self { etcd, shared, _stop: stop.drop_guard() }
    }

    /// What has happened up to the present moment, without what an earlier call has returned.
    ///
    /// # Panics
    /// Where the history has a gap.
    pub async fn news(&self) -> Vec<Event> {
        self.catch_up().await;
        self.take()
    }

    /// Waits until all is seen up to the present moment, and returns the revision up to which it is.
    async fn catch_up(&self) -> u64 {
        let present = timeout(TIMEOUT, self.mark()).await.expect("etcd does not answer");
        let mut progress = self.shared.progress.subscribe();
        let is_there = |progress: &Progress| progress.revision >= present || progress.lost.is_some();
        let progress = timeout(TIMEOUT, progress.wait_for(is_there)).await;
        let progress = progress.expect("etcd does not show what has happened").unwrap().clone();
        assert!(progress.lost.is_none(), "the history is not complete: {}", progress.lost.unwrap_or_default());
        progress.revision
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.shared.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The last revision that was seen, without a look at whether there are newer ones.
    pub fn revision(&self) -> u64 {
        self.shared.progress.borrow().revision
    }

    /// A way to ask for the present revision. It belongs to the runtime that it is made in.
    pub fn clock(&self) -> Clock {
        Clock { client: etcd::client(self.etcd) }
    }

    /// Lets `oracle` judge what has happened up to the present moment.
    ///
    /// # Panics
    /// Where an invariant did not hold, or the history has a gap.
    pub async fn show(&self, oracle: &mut Oracle) {
        self.catch_up().await;
        self.judge(oracle);
    }

    fn judge(&self, oracle: &mut Oracle) {
        for event in self.take() {
            oracle.observe(&event).unwrap_or_else(|violation| panic!("{violation}"));
        }
    }

    /// As [`Recorder::show`], until all is at rest: each binding has its claim, no claim is without a holder, each status says so.
    /// It needs a leader, and where creates have failed the grace period.
    ///
    /// # Panics
    /// Where an invariant did not hold, the history has a gap, or there is no rest in time.
    pub async fn show_rest(&self, oracle: &mut Oracle, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            // Whatever the judgement does not see is of a later revision than this, and so no wait begins after it.
            let seen = self.catch_up().await;
            self.judge(oracle);
            let unrest = oracle.unrest();
            if unrest.is_empty() {
                return;
            }
            let mut progress = self.shared.progress.subscribe();
            let is_newer = |progress: &Progress| progress.revision > seen || progress.lost.is_some();
            let changed = timeout_at(deadline, progress.wait_for(is_newer)).await;
            assert!(changed.is_ok(), "not at rest after {within:?}:\n{}", unrest.join("\n"));
        }
    }

    /// Writes the mark: the revision that etcd has now.
    async fn mark(&self) -> u64 {
        let client = etcd::client(self.etcd);
        loop {
            let put = etcd::post("/v3/kv/put", &json!({"key": BASE64.encode(MARK.as_bytes())}));
            if let Ok(answer) = client.request::<Answer>(put).await {
                return answer.header.revision.parse().unwrap();
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Tells the time in revisions.
#[derive(Clone)]
pub struct Clock {
    client: Client,
}

impl Clock {
    /// The revision that etcd has now, by a linearizable read: what was stored before this call has one that is not higher.
    ///
    /// # Panics
    /// Where etcd does not answer.
    pub async fn now(&self) -> u64 {
        let range = etcd::post("/v3/kv/range", &json!({"key": BASE64.encode(MARK.as_bytes()), "count_only": true}));
        let answer = self.client.request::<Answer>(range).await.expect("etcd does not answer");
        answer.header.revision.parse().unwrap()
    }
}

impl Shared {
    async fn record(&self, etcd: SocketAddr) {
        let client = etcd::client(etcd);
        let mut next = 1;
        loop {
            if let Err(Interruption::Lost(why)) = self.follow(&client, &mut next).await {
                self.progress.send_modify(|progress| progress.lost = Some(why));
                return;
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Follows etcd from the revision `next` on until it is interrupted.
    async fn follow(&self, client: &Client, next: &mut u64) -> Result<(), Interruption> {
        let range = json!({
            "key": BASE64.encode(FROM.as_bytes()),
            "range_end": BASE64.encode(TO.as_bytes()),
            "start_revision": next.to_string(),
        });
        let mut lines =
            client.request_stream(etcd::post("/v3/watch", &json!({"create_request": range}))).await?.lines();
        while let Some(line) = lines.try_next().await? {
            let Some(answer) = serde_json::from_str::<Line>(&line)?.result else {
                return Err(Interruption::Lost(line));
            };
            if answer.canceled {
                return Err(Interruption::Lost(format!("etcd has no revision {next} any more: {line}")));
            }
            let present: u64 = answer.header.revision.parse().unwrap_or_default();
            if answer.created && present + 1 < *next {
                return Err(Interruption::Lost(format!("etcd went back from revision {} to {present}", *next - 1)));
            }
            let events: Vec<_> = answer
                .events
                .iter()
                .map(StoredEvent::read)
                .collect::<Option<_>>()
                .ok_or_else(|| Interruption::Lost(format!("etcd tells of something that is no event: {line}")))?;
            let Some((last, _)) = events.last() else { continue };
            let last = *last;
            *next = last + 1;
            let mut known = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            known.extend(events.into_iter().filter_map(|(_, event)| event));
            drop(known);
            self.progress.send_modify(|progress| progress.revision = last);
        }
        Ok(())
    }
}

/// Why etcd is no longer followed.
enum Interruption {
    /// The connection ended: it is followed again from where it was.
    Broken,
    /// There is no going on.
    Lost(String),
}

impl From<kube::Error> for Interruption {
    fn from(_: kube::Error) -> Self {
        Self::Broken
    }
}

impl From<std::io::Error> for Interruption {
    fn from(_: std::io::Error) -> Self {
        Self::Broken
    }
}

impl From<serde_json::Error> for Interruption {
    /// A line that was cut.
    fn from(_: serde_json::Error) -> Self {
        Self::Broken
    }
}

#[derive(Deserialize)]
struct Line {
    result: Option<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    header: Header,
    #[serde(default)]
    created: bool,
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    events: Vec<StoredEvent>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    revision: String,
}

#[derive(Deserialize)]
struct StoredEvent {
    #[serde(default, rename = "type")]
    type_: String,
    kv: KeyValue,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    mod_revision: String,
    /// How often the key was written since it was created; absent where it was deleted.
    #[serde(default)]
    version: String,
    #[serde(default)]
    value: String,
}

impl StoredEvent {
    /// The revision, and the event unless it is a mark; none where it cannot be read.
    fn read(&self) -> Option<(u64, Option<Event>)> {
        let Self { type_, kv: KeyValue { key, mod_revision, version, value } } = self;
        let revision = mod_revision.parse().ok()?;
        let key = String::from_utf8(BASE64.decode(key.as_bytes()).ok()?).ok()?;
        let path: Vec<_> = key.strip_prefix(FROM)?.split('/').collect();
        let (kind, namespace, name) = match path[..] {
            ["conversations", namespace, name] => (Kind::Conversation, namespace, name),
            ["addressbindings", name] => (Kind::Claim, "", name),
            _ => return Some((revision, None)),
        };
        let change = match (type_.as_str(), version.as_str()) {
            ("DELETE", _) => Change::Deleted,
            (_, "1") => Change::Created,
            _ => Change::Updated,
        };
        let object = match change {
            Change::Deleted => None,
            // What is no JSON is kept as text: an object that holds nothing.
            Change::Created | Change::Updated => {
                let bytes = BASE64.decode(value.as_bytes()).ok()?;
                let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
                Some(serde_json::from_slice(&bytes).unwrap_or_else(|_| text()))
            }
        };
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Some((revision, Some(Event { revision, kind, namespace, name, change, object })))
    }
}
