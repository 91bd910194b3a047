//! The outcome of an admission request, which determines the HTTP status of the response.

use crate::server::text;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use strum::{IntoStaticStr, VariantArray};

/// The outcome of an admission request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum AdmissionOutcome {
    /// The create is allowed and has a claim.
    Allowed,
    /// The create is allowed without a claim: the conversation waits for its binding.
    Waiting,
    /// The request is allowed and needs no claim.
    NoClaim,
    /// The create is denied with error 48031: another conversation holds the binding.
    Denied,
    /// The create is denied with error 48028: its namespace may not use the proxy address.
    NotGranted,
    /// The create is denied: its addresses do not form a binding.
    Invalid,
    /// The create is denied: the conversation exists already.
    AlreadyExists,
    /// The create could not be decided in time.
    Undecided,
    /// The body is not a review that can be answered.
    Malformed,
    /// The body did not arrive in time.
    TooSlow,
    /// The body is larger than any review.
    TooLarge,
    /// A limit on simultaneous reviews is reached.
    TooMany,
    /// The handler panicked.
    Panicked,
    /// The client closed the connection before the answer.
    Cancelled,
}

impl AdmissionOutcome {
    /// The name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The response code: the code in the answered review or, if the answer is no review, the HTTP status; 0 if there is no answer.
    #[must_use]
    pub fn code(self) -> u16 {
        self.status().map_or(0, |status| status.as_u16())
    }

    fn status(self) -> Option<StatusCode> {
        match self {
            Self::Allowed | Self::Waiting | Self::NoClaim => Some(StatusCode::OK),
            Self::Denied | Self::NotGranted | Self::Invalid => Some(StatusCode::FORBIDDEN),
            Self::AlreadyExists => Some(StatusCode::CONFLICT),
            Self::Undecided => Some(StatusCode::SERVICE_UNAVAILABLE),
            Self::Malformed => Some(StatusCode::BAD_REQUEST),
            Self::TooSlow => Some(StatusCode::REQUEST_TIMEOUT),
            Self::TooLarge => Some(StatusCode::PAYLOAD_TOO_LARGE),
            Self::TooMany => Some(StatusCode::TOO_MANY_REQUESTS),
            Self::Panicked => Some(StatusCode::INTERNAL_SERVER_ERROR),
            Self::Cancelled => None,
        }
    }
}

/// The answer to an admission request.
#[derive(Debug)]
pub struct Answer {
    /// Its outcome.
    pub outcome: AdmissionOutcome,
    /// The response that carries it.
    pub response: Response<Full<Bytes>>,
}

impl Answer {
    /// An answered review. Its HTTP status is 200; the code of the outcome is in the review.
    pub fn review(outcome: AdmissionOutcome, review: Vec<u8>) -> Self {
        let mut response = Response::new(Full::from(review));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self { outcome, response }
    }

    /// An answer that is no review: the HTTP status of `outcome` and a line of text.
    pub fn rejected(outcome: AdmissionOutcome, message: &str) -> Self {
        Self { outcome, response: text(outcome.status().unwrap_or(StatusCode::BAD_REQUEST), message) }
    }
}
