//! The outcomes of messages and of the requests that bring them, and the HTTP status of each.

use hyper::StatusCode;
use strum::{IntoStaticStr, VariantNames};

/// The outcome of a message, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum MessageOutcome {
    /// The sink accepted it.
    Delivered,
    /// It was delivered a short time ago.
    Repeated,
    /// The dead letter sink accepted it.
    DeadLettered,
    /// The sink refused it for good, and there is no dead letter sink.
    Refused,
    /// No conversation gets it, and a sink was told so.
    Unroutable,
    /// No ProxyAddress accepts it, and there is no sink to be told.
    NotAccepted,
    /// No sink accepted it in time, or it could not be found out who holds the binding. It must be sent again.
    Failed,
}

impl MessageOutcome {
    /// The names of all outcomes.
    pub const NAMES: &'static [&'static str] = Self::VARIANTS;

    /// The name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum RequestOutcome {
    /// Each of its messages was accepted, or it had none.
    Accepted,
    /// Its challenge was answered.
    Challenge,
    /// There is no such source, or no ProxyAddress accepts one of its messages.
    NotFound,
    /// Its signature or token is missing or wrong.
    Unauthenticated,
    /// It is not in the form of the source.
    Malformed,
    /// Its method is not one of the source.
    Method,
    /// Its media type is not one of the source.
    MediaType,
    /// It is larger than the maximum.
    TooLarge,
    /// It did not arrive in time.
    TooSlow,
    /// A limit on simultaneous requests is reached.
    Overloaded,
    /// A message was not accepted, and must be sent again.
    Unavailable,
    /// The handler panicked.
    Panicked,
    /// The client closed the connection before the answer.
    Cancelled,
}

impl RequestOutcome {
    /// The name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Accepted | Self::Challenge => StatusCode::OK,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Unauthenticated => StatusCode::FORBIDDEN,
            Self::Malformed | Self::Cancelled => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Overloaded | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The outcome of a request whose worst message has this outcome.
    #[must_use]
    pub fn of(worst: MessageOutcome) -> Self {
        match worst {
            MessageOutcome::Failed => Self::Unavailable,
            MessageOutcome::NotAccepted => Self::NotFound,
            MessageOutcome::Delivered
            | MessageOutcome::Repeated
            | MessageOutcome::DeadLettered
            | MessageOutcome::Refused
            | MessageOutcome::Unroutable => Self::Accepted,
        }
    }
}
