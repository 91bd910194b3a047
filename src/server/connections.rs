//! The connections to a server: their number, their timeouts and their eviction. It reads and writes no bytes.
//!
//! An API server keeps an idle connection for 90 s, and does not retry a review whose connection is closed. A server therefore keeps idle
//! connections for longer, including those that have had no request yet: Go's client opens connections in advance.
//!
//! At the limit, a new connection is accepted and another one is evicted: among the connections of the address with the most connections,
//! the one that has waited longest. So a client that opens too many connections loses its own and does not block others. A connection whose
//! request is being answered is never evicted. There is always another one, because the limit of requests is lower than that of connections.

use super::metrics::ConnectionMetrics;
use crate::clock::Clock;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use strum::{IntoStaticStr, VariantArray};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The limits on connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// The timeout of a TLS handshake, and of the header of a request from its first byte.
    pub read: Duration,
    /// How long an idle connection is kept. An API server must close it earlier.
    pub idle: Duration,
    /// The maximum number of connections.
    pub count: usize,
}

/// Why the server closes a connection that its client would keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ConnectionClose {
    /// The TLS handshake took too long.
    HandshakeTimeout,
    /// The header of a request took too long.
    HeaderTimeout,
    /// No request arrived for too long.
    IdleTimeout,
    /// A new connection took its place.
    Evicted,
}

impl ConnectionClose {
    /// The name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The TLS handshake.
    Handshake,
    /// Waiting for the next request.
    Idle,
    /// Receiving the header of a request.
    Header,
    /// Receiving the body of a request, which has a timeout of its own.
    Body,
    /// Answering a request.
    Request,
}

#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    since: Instant,
    is_evicted: bool,
    /// When the task of the connection checks the state next, if nobody wakes it.
    next_check: Instant,
}

impl State {
    /// When the connection must be closed, unless its phase changes, and why; `None` if the request decides.
    fn deadline(&self, limits: &ConnectionLimits) -> Option<(Instant, ConnectionClose)> {
        let (limit, reason) = match self.phase {
            Phase::Handshake => (limits.read, ConnectionClose::HandshakeTimeout),
            Phase::Idle => (limits.idle, ConnectionClose::IdleTimeout),
            Phase::Header => (limits.read, ConnectionClose::HeaderTimeout),
            Phase::Body | Phase::Request => return None,
        };
        Some((self.since + limit, reason))
    }
}

struct Entry {
    peer: IpAddr,
    state: watch::Sender<State>,
}

/// The connections that are open.
pub struct Connections {
    limits: ConnectionLimits,
    clock: Clock,
    metrics: ConnectionMetrics,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    entries: HashMap<u64, Entry>,
}

impl Connections {
    /// No connections yet.
    pub fn new(limits: ConnectionLimits, clock: Clock, metrics: ConnectionMetrics) -> Arc<Self> {
        Arc::new(Self { limits, clock, metrics, open: Mutex::default() })
    }

    /// Adds a connection of `peer`, whose handshake begins. Evicts another one if there are too many.
    pub fn open(self: &Arc<Self>, peer: IpAddr) -> Connection {
        let since = self.clock.monotonic();
        let state = State { phase: Phase::Handshake, since, is_evicted: false, next_check: since };
        let state = watch::Sender::new(state);
        let mut open = self.lock();
        if open.entries.len() >= self.limits.count {
            open.evict();
        }
        let number = open.next;
        open.next += 1;
        open.entries.insert(number, Entry { peer: peer.to_canonical(), state: state.clone() });
        self.metrics.open(open.entries.len());
        Connection { connections: self.clone(), number, state }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Evicts a connection. It no longer counts, although it may not be closed yet.
    fn evict(&mut self) {
        let mut of_peer = HashMap::<IpAddr, usize>::new();
        for entry in self.entries.values() {
            *of_peer.entry(entry.peer).or_default() += 1;
        }
        let waiting = self.entries.iter().filter_map(|(number, entry)| {
            let state = *entry.state.borrow();
            (state.phase != Phase::Request).then_some((of_peer[&entry.peer], Reverse(state.since), *number))
        });
        if let Some((_, _, number)) = waiting.max()
            && let Some(entry) = self.entries.remove(&number)
        {
            entry.state.send_modify(|state| state.is_evicted = true);
        }
    }
}

/// An open connection. It is removed when this is dropped.
pub struct Connection {
    connections: Arc<Connections>,
    number: u64,
    state: watch::Sender<State>,
}

impl Connection {
    /// Begins a phase. Wakes the task of the connection only if the deadline is earlier than its next check, because each request passes all
    /// phases.
    pub fn enter(&self, phase: Phase) {
        let since = self.connections.clock.monotonic();
        self.state.send_if_modified(|state| {
            (state.phase, state.since) = (phase, since);
            state.deadline(&self.connections.limits).is_some_and(|(deadline, _)| deadline < state.next_check)
        });
    }

    /// Records that bytes have been received. On an idle connection, they are the beginning of a header.
    pub fn received(&self) {
        if self.state.borrow().phase == Phase::Idle {
            self.enter(Phase::Header);
        }
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.state.borrow().phase
    }

    /// Waits until the connection must be closed. Returns the reason.
    pub async fn must_close(&self) -> ConnectionClose {
        let limits = &self.connections.limits;
        let mut states = self.state.subscribe();
        loop {
            states.mark_unchanged();
            let now = self.connections.clock.monotonic();
            let (mut reason, mut next_check) = (None, now);
            self.state.send_if_modified(|state| {
                let deadline = state.deadline(limits);
                reason = match deadline {
                    _ if state.is_evicted => Some(ConnectionClose::Evicted),
                    Some((deadline, reason)) => (deadline <= now).then_some(reason),
                    None => None,
                };
                // A request in progress has no deadline. The earliest possible one is that of a header that begins now.
                next_check = deadline.map_or(now + limits.read, |(deadline, _)| deadline);
                state.next_check = next_check;
                false
            });
            if let Some(reason) = reason {
                return reason;
            }
            // The channel is open, since `self` owns the sender.
            let _ = timeout_at(next_check, states.changed()).await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.entries.remove(&self.number);
        self.connections.metrics.open(open.entries.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use prometheus_client::registry::Registry;

    const OTHER_CLIENT: [u8; 4] = [10, 0, 0, 9];
    const API_SERVER: [u8; 4] = [10, 0, 0, 1];

    fn connections(count: usize) -> Arc<Connections> {
        let limits = ConnectionLimits { read: Duration::from_secs(5), idle: Duration::from_mins(5), count };
        Connections::new(limits, Clock, ConnectionMetrics::new(&mut Registry::default(), "webhook"))
    }

    async fn open(connections: &Arc<Connections>, peer: [u8; 4], phase: Phase) -> Connection {
        // Each has waited for less time than the previous one.
        tokio::time::advance(Duration::from_millis(1)).await;
        let connection = connections.open(peer.into());
        connection.enter(phase);
        connection
    }

    fn evicted(connections: &[&Connection]) -> Vec<usize> {
        let is_evicted =
            |index: &usize| connections[*index].must_close().now_or_never() == Some(ConnectionClose::Evicted);
        (0..connections.len()).filter(is_evicted).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn client_above_the_limit_evicts_its_own_connections() {
        let connections = connections(4);
        let legitimate = open(&connections, API_SERVER, Phase::Idle).await;
        let mut others = Vec::new();
        for _ in 0..10 {
            others.push(open(&connections, OTHER_CLIENT, Phase::Idle).await);
        }
        let all: Vec<_> = std::iter::once(&legitimate).chain(&others).collect();
        assert_eq!(evicted(&all), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(connections.lock().entries.len(), 4);
        let second = open(&connections, API_SERVER, Phase::Handshake).await;
        assert!(evicted(&[&legitimate, &second]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn longest_idle_connection_of_equals_is_evicted() {
        let connections = connections(3);
        let oldest = open(&connections, [10, 0, 0, 1], Phase::Idle).await;
        let second = open(&connections, [10, 0, 0, 2], Phase::Idle).await;
        let third = open(&connections, [10, 0, 0, 3], Phase::Header).await;
        tokio::time::advance(Duration::from_millis(1)).await;
        oldest.enter(Phase::Idle);
        let newcomer = open(&connections, [10, 0, 0, 4], Phase::Handshake).await;
        assert_eq!(evicted(&[&oldest, &second, &third, &newcomer]), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn connection_is_woken_only_for_an_earlier_deadline() {
        let connections = connections(1);
        let connection = open(&connections, API_SERVER, Phase::Idle).await;
        let mut closes = std::pin::pin!(connection.must_close());
        assert!(closes.as_mut().now_or_never().is_none());
        let states = connection.state.subscribe();
        connection.enter(Phase::Header);
        assert!(states.has_changed().unwrap(), "a header has an earlier deadline");
        assert!(closes.as_mut().now_or_never().is_none());
        let states = connection.state.subscribe();
        for phase in [Phase::Body, Phase::Request, Phase::Idle, Phase::Header, Phase::Body, Phase::Request] {
            connection.enter(phase);
        }
        assert!(!states.has_changed().unwrap(), "no phase of a request does");
        connection.enter(Phase::Header);
        let since = Instant::now();
        assert_eq!(closes.await, ConnectionClose::HeaderTimeout);
        assert!(since.elapsed() <= Duration::from_millis(5001), "{:?}", since.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_of_a_phase_holds_after_other_phases() {
        let connections = connections(1);
        let connection = Arc::new(open(&connections, API_SERVER, Phase::Idle).await);
        let ended = tokio::spawn({
            let connection = connection.clone();
            async move { (connection.must_close().await, Instant::now()) }
        });
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_mins(4)).await;
            for phase in [Phase::Header, Phase::Body, Phase::Request, Phase::Idle, Phase::Header, Phase::Idle] {
                connection.enter(phase);
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        }
        connection.enter(Phase::Request);
        tokio::time::sleep(Duration::from_hours(1)).await;
        connection.enter(Phase::Header);
        let since = Instant::now();
        let (reason, at) = ended.await.unwrap();
        assert_eq!(reason, ConnectionClose::HeaderTimeout);
        // The timers of tokio have a resolution of a millisecond.
        assert!(at - since <= Duration::from_millis(5001), "{:?}", at - since);

        connection.enter(Phase::Idle);
        let since = Instant::now();
        assert_eq!(connection.must_close().await, ConnectionClose::IdleTimeout);
        let idle = Duration::from_mins(5);
        assert!((idle..=idle + Duration::from_millis(1)).contains(&since.elapsed()), "{:?}", since.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn connection_that_receives_a_body_is_evicted() {
        let connections = connections(2);
        let receiving = open(&connections, OTHER_CLIENT, Phase::Body).await;
        let busy = open(&connections, OTHER_CLIENT, Phase::Request).await;
        let newcomer = open(&connections, API_SERVER, Phase::Handshake).await;
        assert_eq!(evicted(&[&receiving, &busy, &newcomer]), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn connection_with_a_request_is_never_evicted() {
        let connections = connections(2);
        let busy = open(&connections, OTHER_CLIENT, Phase::Request).await;
        let idle = open(&connections, OTHER_CLIENT, Phase::Idle).await;
        let newcomer = open(&connections, API_SERVER, Phase::Request).await;
        assert_eq!(evicted(&[&busy, &idle, &newcomer]), [1]);
        let another = open(&connections, API_SERVER, Phase::Request).await;
        assert!(evicted(&[&busy, &newcomer, &another]).is_empty(), "none is closed");
    }
}
