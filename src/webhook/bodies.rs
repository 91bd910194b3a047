//! Reads the bodies of reviews within a budget of bytes. Any client that reaches the port may send bodies, so their total size is limited.
//!
//! Small bodies are those of usual reviews, of two or three KiB. Only their number is limited, so that a client that exhausts the budget of
//! large bodies does not block them.

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The limits on bodies.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// The maximum size of a body, in bytes.
    pub largest: usize,
    /// The maximum size of a small body, in bytes.
    pub small: usize,
    /// The maximum total size of other bodies, in bytes. A body without `Content-Length` counts as the maximum size.
    pub budget: usize,
    /// The timeout of reading a body.
    pub read: Duration,
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBody {
    /// It is larger than the maximum.
    TooLarge,
    /// The budget is exhausted.
    TooMany,
    /// It did not arrive in time.
    TooSlow,
    /// It is not valid HTTP.
    Malformed,
    /// The client closed the connection.
    Cancelled,
}

/// A share of the budget, returned when it is dropped; `None` for a small body.
pub type Share = Option<OwnedSemaphorePermit>;

/// Reads bodies.
pub struct Bodies {
    limits: BodyLimits,
    budget: Arc<Semaphore>,
}

impl Bodies {
    /// A reader whose whole budget is available.
    pub fn new(limits: BodyLimits) -> Self {
        Self { limits, budget: Arc::new(Semaphore::new(limits.budget)) }
    }

    /// Reads a body. Returns its share of the budget too, to be kept as long as its bytes and the values parsed from them. The share is
    /// acquired before the first byte is read.
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

/// Reads a body of at most `length` bytes. Each frame is copied and freed: collecting the frames first would take twice the memory.
async fn collect(mut body: Incoming, length: usize) -> Result<Vec<u8>, NoBody> {
    let mut bytes = Vec::with_capacity(length);
    while let Some(frame) = body.frame().await {
        // Trailers are ignored.
        let Ok(data) = frame.map_err(|error| no_body(&error))?.into_data() else { continue };
        if data.len() > length - bytes.len() {
            return Err(NoBody::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Classifies hyper's error of a body, whose source is an I/O error: of the socket, of a premature end, or of an invalid chunk.
fn no_body(error: &hyper::Error) -> NoBody {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    match cause {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => NoBody::Malformed,
        _ => NoBody::Cancelled,
    }
}
