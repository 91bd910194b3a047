//! Reads the bodies of reviews, within a budget of bytes. Anybody who reaches the port may send some, so what they take together has to
//! be bounded.
//!
//! Small bodies are those of ordinary reviews, of two or three KiB. They are bounded by their number, and by nothing else: whoever keeps
//! the budget of the large ones busy does not stand in their way.

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How large bodies may be, each and together, and how slow.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// The largest, in bytes.
    pub largest: usize,
    /// The largest that counts as small, in bytes.
    pub small: usize,
    /// How many bytes all others may have together. One that does not say its length counts as the largest.
    pub budget: usize,
    /// How long it may take to arrive.
    pub read: Duration,
}

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBody {
    /// It is larger than the largest.
    TooLarge,
    /// The budget has no room for it.
    TooMany,
    /// It did not arrive in time.
    TooSlow,
    /// It breaks the rules of HTTP.
    Malformed,
    /// The client has gone.
    Cancelled,
}

/// A part of the budget, until it is dropped; nothing for a small body.
pub type Share = Option<OwnedSemaphorePermit>;

/// Reads bodies.
pub struct Bodies {
    limits: BodyLimits,
    budget: Arc<Semaphore>,
}

impl Bodies {
    /// With the whole budget left.
    pub fn new(limits: BodyLimits) -> Self {
        Self { limits, budget: Arc::new(Semaphore::new(limits.budget)) }
    }

    /// The bytes of a body, and the share of the budget that they and whatever is made of them takes. The share is taken before the
    /// first byte is read.
    pub async fn read(&self, body: Incoming) -> Result<(Bytes, Share), NoBody> {
        let length = body.size_hint().exact().map_or(Ok(self.limits.largest), usize::try_from);
        let length = length.ok().filter(|length| *length <= self.limits.largest).ok_or(NoBody::TooLarge)?;
        let share = if length > self.limits.small {
            let permits = u32::try_from(length).map_err(|_| NoBody::TooLarge)?;
            Some(self.budget.clone().try_acquire_many_owned(permits).map_err(|_| NoBody::TooMany)?)
        } else {
            None
        };
        let bytes = timeout(self.limits.read, collect(body, length)).await.map_err(|_| NoBody::TooSlow)??;
        Ok((bytes.into(), share))
    }
}

/// The bytes of a body of at most that length. Each is copied once, and what it was copied from is freed: collecting the pieces first
/// would take twice the memory.
async fn collect(mut body: Incoming, length: usize) -> Result<Vec<u8>, NoBody> {
    let mut bytes = Vec::with_capacity(length);
    while let Some(frame) = body.frame().await {
        // Trailers say nothing.
        let Ok(data) = frame.map_err(|error| no_body(&error))?.into_data() else { continue };
        if data.len() > length - bytes.len() {
            return Err(NoBody::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// What hyper says of a broken body is an I/O error: of the socket, of an end that came too early, or of a chunk that is none.
fn no_body(error: &hyper::Error) -> NoBody {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    match cause {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => NoBody::Malformed,
        _ => NoBody::Cancelled,
    }
}
