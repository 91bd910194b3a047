//! The classification of errors of requests to the API server. No other module inspects status codes.

use kube::core::Status;

/// The class of an error of a request to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The API server could not be reached, or the connection failed.
    Transport,
    /// The response could not be deserialized.
    InvalidResponse,
    /// The object, or its namespace, does not exist.
    NotFound,
    /// An object of the same name exists.
    AlreadyExists,
    /// The object has changed: a precondition failed.
    Conflict,
    /// The credentials were not accepted (401).
    Unauthorized,
    /// The operator lacks a permission, or admission denied the request (403).
    Forbidden,
    /// The API server does not accept the request in this form: a bad request or an unsupported method (400, 405).
    BadRequest,
    /// The object is invalid (422).
    Invalid,
    /// The API server limits the rate of requests (429).
    Throttled,
    /// The request timed out, or asked for a version that is compacted (408, 410).
    Expired,
    /// Any other 4xx.
    Rejected,
    /// The API server failed (5xx).
    Server,
}

impl ErrorClass {
    /// The class of `error`.
    #[must_use]
    pub fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            kube::Error::SerdeError(_) => Self::InvalidResponse,
            _ => Self::Transport,
        }
    }

    /// The class of the error that `status` reports.
    #[must_use]
    pub fn of_status(status: &Status) -> Self {
        if status.is_not_found() {
            Self::NotFound
        } else if status.is_already_exists() {
            Self::AlreadyExists
        } else if status.is_conflict() {
            Self::Conflict
        } else if status.is_forbidden() {
            Self::Forbidden
        } else if status.is_invalid() {
            Self::Invalid
        } else {
            // The helpers above ignore the code if the status has no reason.
            match status.code {
                400 | 405 => Self::BadRequest,
                401 => Self::Unauthorized,
                403 => Self::Forbidden,
                404 => Self::NotFound,
                408 | 410 => Self::Expired,
                409 => Self::Conflict,
                422 => Self::Invalid,
                429 => Self::Throttled,
                400..=499 => Self::Rejected,
                _ => Self::Server,
            }
        }
    }

    /// Whether another writer was first: the object to create exists, or the object to write has changed.
    #[must_use]
    pub fn is_conflict(self) -> bool {
        matches!(self, Self::AlreadyExists | Self::Conflict)
    }

    /// Whether the API server has answered, so that the outcome of the request is known.
    #[must_use]
    pub fn is_answer(self) -> bool {
        !matches!(self, Self::Transport | Self::InvalidResponse)
    }

    /// Whether the object does not exist.
    #[must_use]
    pub fn is_not_found(self) -> bool {
        self == Self::NotFound
    }

    /// Whether the object to write has changed or is gone.
    #[must_use]
    pub fn is_stale(self) -> bool {
        self.is_conflict() || self.is_not_found()
    }

    /// Whether the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(self) -> bool {
        match self {
            Self::Transport
            | Self::AlreadyExists
            | Self::Conflict
            | Self::Unauthorized
            | Self::Throttled
            | Self::Expired
            | Self::Server => true,
            Self::InvalidResponse
            | Self::NotFound
            | Self::Forbidden
            | Self::BadRequest
            | Self::Invalid
            | Self::Rejected => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::response::reason;

    fn class(code: u16, reason: &str) -> ErrorClass {
        ErrorClass::of(&kube::Error::Api(Status::failure("", reason).with_code(code).boxed()))
    }

    #[test]
    fn reason_takes_precedence_over_the_code() {
        assert_eq!(class(409, reason::ALREADY_EXISTS), ErrorClass::AlreadyExists);
        assert_eq!(class(409, reason::CONFLICT), ErrorClass::Conflict);
        assert_eq!(class(404, reason::NOT_FOUND), ErrorClass::NotFound);
        assert_eq!(class(403, reason::FORBIDDEN), ErrorClass::Forbidden);
        assert_eq!(class(422, reason::INVALID), ErrorClass::Invalid);
    }

    #[test]
    fn error_without_a_known_reason_is_classified_by_its_code() {
        for (code, expected) in [
            (400, ErrorClass::BadRequest),
            (401, ErrorClass::Unauthorized),
            (403, ErrorClass::Forbidden),
            (404, ErrorClass::NotFound),
            (405, ErrorClass::BadRequest),
            (408, ErrorClass::Expired),
            (409, ErrorClass::Conflict),
            (410, ErrorClass::Expired),
            (413, ErrorClass::Rejected),
            (422, ErrorClass::Invalid),
            (429, ErrorClass::Throttled),
            (500, ErrorClass::Server),
            (504, ErrorClass::Server),
        ] {
            for unknown in ["", "Failed to parse error data"] {
                assert_eq!(class(code, unknown), expected, "{code} {unknown}");
            }
        }
    }
}
