//! Reads the bodies of requests within a budget of bytes. Every client that can connect to the port may send bodies, so their total size is
//! limited.
//!
//! Small bodies do not use the budget, so that a client that exhausts it does not block the usual requests, which have a few KiB. The
//! number of connections limits the memory of small bodies.

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
    /// The maximum total size of larger bodies, in bytes. A large body without `Content-Length` counts with the maximum size.
    pub budget: usize,
    /// The timeout of reading a body.
    pub read: Duration,
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
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
    #[must_use]
    pub fn new(limits: BodyLimits) -> Self {
        Self { limits, budget: Arc::new(Semaphore::new(limits.budget)) }
    }

    /// Reads a body. Also returns its share of the budget. The caller must keep it as long as the bytes and the values parsed from them. The
    /// share is acquired before the first byte is read or, without `Content-Length`, as soon as the body is no longer small.
    pub async fn read(&self, body: Incoming) -> Result<(Bytes, Share), BodyError> {
        timeout(self.limits.read, self.collect(body)).await.map_err(|_| BodyError::TooSlow)?
    }

    /// Each frame is copied and freed: collecting the frames first would take twice the memory.
    async fn collect(&self, mut body: Incoming) -> Result<(Bytes, Share), BodyError> {
        let BodyLimits { largest, small, .. } = self.limits;
        let length = body.size_hint().exact().map(usize::try_from).transpose().map_err(|_| BodyError::TooLarge)?;
        let mut limit = length.unwrap_or(small.min(largest));
        if limit > largest {
            return Err(BodyError::TooLarge);
        }
        let mut share = self.share(limit)?;
        let mut bytes = Vec::with_capacity(limit);
        while let Some(frame) = body.frame().await {
            // Trailers are ignored.
            let Ok(data) = frame.map_err(|error| body_error(&error))?.into_data() else { continue };
            if data.len() > limit - bytes.len() && length.is_none() && limit < largest {
                limit = largest;
                share = self.share(limit)?;
                bytes.reserve_exact(limit - bytes.len());
            }
            if data.len() > limit - bytes.len() {
                return Err(BodyError::TooLarge);
            }
            bytes.extend_from_slice(&data);
        }
        Ok((bytes.into(), share))
    }

    /// The share of a body of at most `size` bytes.
    fn share(&self, size: usize) -> Result<Share, BodyError> {
        if size <= self.limits.small {
            return Ok(None);
        }
        let permits = u32::try_from(size).map_err(|_| BodyError::TooLarge)?;
        self.budget.clone().try_acquire_many_owned(permits).map(Some).map_err(|_| BodyError::TooMany)
    }
}

/// Classifies hyper's error about a body. Its source is an I/O error: the socket failed, the body ended too early, or a chunk is invalid.
fn body_error(error: &hyper::Error) -> BodyError {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    match cause {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => BodyError::Malformed,
        _ => BodyError::Cancelled,
    }
}
