//! Records every change of conversations and claims, in the order of etcd's revisions, without gaps.
//!
//! It watches etcd through the JSON gateway on etcd's client port, not an API server. So it sees both kinds in one stream, and continues
//! while API servers are killed or paused. After an interruption it continues at the next revision. If etcd no longer has that revision
//! (it was compacted, or a backup was restored), the next read of the history fails.

#![allow(dead_code, reason = "each test module uses a part of it")]

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
/// A key that no API server reads. A write to it returns the current revision, and its event tells the recorder that it has seen
/// everything up to that revision.
const MARK: &str = "/registry/switchboard.dev/recorder";

/// The time within which etcd must answer, and deliver its events.
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
    /// The last revision that the recorder has seen.
    revision: u64,
    /// The reason why the history is incomplete.
    lost: Option<String>,
}

impl Recorder {
    /// Records from the first revision on. Start it before an API server compacts that revision: after five minutes, unless the API
    /// server runs with `--etcd-compaction-interval=0`.
    pub fn start(control_plane: &ControlPlane) -> Self {
        let shared = Arc::new(Shared { events: Mutex::default(), progress: watch::Sender::default() });
        let (etcd, stop) = (control_plane.etcd().address(), CancellationToken::new());
        let (for_thread, stopped) = (shared.clone(), stop.clone());
        // With its own runtime it also records while a test blocks its thread.
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

    /// The events up to the present moment, without those that an earlier call has returned.
    ///
    /// # Panics
    /// If the history has a gap.
    pub async fn new_events(&self) -> Vec<Event> {
        self.catch_up().await;
        self.take()
    }

    /// Waits until the recorder has seen everything up to the present moment, and returns the last seen revision.
    async fn catch_up(&self) -> u64 {
        let current = timeout(TIMEOUT, self.mark()).await.expect("etcd does not answer");
        let mut progress = self.shared.progress.subscribe();
        let is_complete = |progress: &Progress| progress.revision >= current || progress.lost.is_some();
        let progress = timeout(TIMEOUT, progress.wait_for(is_complete)).await;
        let progress = progress.expect("etcd does not deliver its events").unwrap().clone();
        assert!(progress.lost.is_none(), "the history is incomplete: {}", progress.lost.unwrap_or_default());
        progress.revision
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.shared.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The last revision that the recorder has seen. There may be newer ones.
    pub fn revision(&self) -> u64 {
        self.shared.progress.borrow().revision
    }

    /// A reader of the current revision. It belongs to the runtime in which it is created.
    pub fn clock(&self) -> Clock {
        Clock { client: etcd::client(self.etcd) }
    }

    /// Lets `oracle` check the history up to the present moment.
    ///
    /// # Panics
    /// If an invariant did not hold, or the history has a gap.
    pub async fn check(&self, oracle: &mut Oracle) {
        self.catch_up().await;
        self.check_recorded(oracle);
    }

    fn check_recorded(&self, oracle: &mut Oracle) {
        for event in self.take() {
            oracle.observe(&event).unwrap_or_else(|violation| panic!("{violation}"));
        }
    }

    /// As [`Recorder::check`], and waits until everything is at rest: each held binding has its claim, each claim has its holder, and
    /// each status has the correct condition Bound. This needs a leader and, after failed creates, the grace period.
    ///
    /// # Panics
    /// If an invariant did not hold, the history has a gap, or not everything is at rest within `within`.
    pub async fn wait_until_at_rest(&self, oracle: &mut Oracle, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            // An event that this check misses has a later revision than `seen`, so the wait below returns at once.
            let seen = self.catch_up().await;
            self.check_recorded(oracle);
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

    /// Writes the mark, and returns its revision.
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

/// Reads the current revision of etcd.
#[derive(Clone)]
pub struct Clock {
    client: Client,
}

impl Clock {
    /// The current revision of etcd, by a linearizable read. Everything that was stored before this call has this revision or a lower
    /// one.
    ///
    /// # Panics
    /// If etcd does not answer.
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

    /// Watches etcd from the revision `next` on until it is interrupted.
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
            let current: u64 = answer.header.revision.parse().unwrap_or_default();
            if answer.created && current + 1 < *next {
                return Err(Interruption::Lost(format!("etcd went back from revision {} to {current}", *next - 1)));
            }
            let events: Vec<_> = answer
                .events
                .iter()
                .map(StoredEvent::read)
                .collect::<Option<_>>()
                .ok_or_else(|| Interruption::Lost(format!("etcd sent an event that cannot be read: {line}")))?;
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

/// The reason why a watch of etcd ended.
enum Interruption {
    /// The connection ended. The watch continues at the next revision.
    Broken,
    /// The next revision is not available.
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
    /// The line was cut.
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
    /// The number of writes since the key was created. Absent if it was deleted.
    #[serde(default)]
    version: String,
    #[serde(default)]
    value: String,
}

impl StoredEvent {
    /// The revision, and the event unless it is a mark. `None` if it cannot be read.
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
            // A value that is not JSON becomes a text, which the oracle reads as an object without fields.
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
