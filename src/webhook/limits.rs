//! The limits on the resources that the clients of the webhook use.

use crate::server::TransportLimits;
use std::time::Duration;

/// Limits on the resources that clients use.
///
/// If all limits are reached at the same time, the memory is at most 196 MiB; the chart's limit is 256 MiB:
///
/// - 24 MiB for small bodies: [`small_body_bytes`](Self::small_body_bytes) on each of the [`connections`](Self::connections);
/// - 16 MiB for larger bodies: [`large_bodies_bytes`](Self::large_bodies_bytes);
/// - three times these two while bodies that are crafted for this are parsed;
/// - 60 MiB for 768 connections: about 40 KiB each for TLS, header and task, or 64 KiB during the handshake.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum size of a body, in bytes. A larger one is answered with 413. A review contains an object of at most 3 MiB, and can also
    /// contain the previous version of the object.
    pub body_bytes: usize,
    /// The maximum size of a small body, in bytes. Small bodies do not count for `large_bodies_bytes`. Usual reviews have two or three KiB.
    pub small_body_bytes: usize,
    /// The maximum total size of larger bodies, in bytes. Above it, the answer is 429.
    pub large_bodies_bytes: usize,
    /// The timeout of a TLS handshake, of a header (from its first byte), and of a body. Then the connection is closed; a body that is late is
    /// answered with 408.
    pub read: Duration,
    /// How long a connection without a request is kept. It must be longer than the 90 s of an API server, which does not retry a review if
    /// the connection is closed meanwhile.
    pub idle: Duration,
    /// The maximum time until the answer, if the API server's timeout allows so much. It is shorter than the timeout in the chart (10 s), because
    /// the network takes time too.
    pub answer: Duration,
    /// The maximum number of simultaneous reviews. Above it, the answer is 429.
    pub concurrency: usize,
    /// The maximum number of connections. Above it, a waiting connection is evicted. It is higher than `concurrency`, so that there is always
    /// a waiting connection, and lower than 1,024, the usual limit on the open files of a process.
    pub connections: usize,
    /// The timeout of the requests in flight at the end of a shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            small_body_bytes: 32 << 10,
            large_bodies_bytes: 16 << 20,
            read: Duration::from_secs(5),
            idle: Duration::from_mins(5),
            answer: Duration::from_secs(8),
            concurrency: 512,
            connections: 768,
            drain: Duration::from_secs(12),
        }
    }
}

impl Limits {
    /// The limits on connections.
    #[must_use]
    pub fn transport(&self) -> TransportLimits {
        let Self { read, idle, connections, drain, .. } = *self;
        TransportLimits { read, idle, connections, drain }
    }
}
