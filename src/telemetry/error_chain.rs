//! Errors in logs and on the terminal: an error and its causes, as one sentence.
//!
//! It quotes no stored value, because a value that cannot be decoded, or that a schema rejects, may be the address of a contact. For this it
//! must find a `kube::Error` among the sources. So no enum contains a `kube::Error` in a variant with `#[error(transparent)]`, which hides it.

use crate::kube_error::ErrorClass;
use kube::core::Status;
use serde_json::error::Category;
use std::error::Error;
use std::fmt::{Display, Formatter, Result};

/// In the API server's message about a denial: the text between the name of the webhook or policy and its message.
const DENIALS: [&str; 2] = ["denied the request", "denied request"];

/// Displays an error and its sources, joined by ": ". If the text of an error contains that of its source, the source is omitted.
///
/// ```
/// # use switchboard::telemetry::error_chain::ErrorChain;
/// let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
/// let error = kube::Error::Service(Box::new(refused));
/// assert_eq!(ErrorChain(&error).to_string(), "connection refused");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&text(self.0))
    }
}

fn text(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref() {
        // Its `Display` contains a debug dump of the status.
        Some(kube::Error::Api(status)) => return answer(status),
        // Its `Display` only adds the name of the variant.
        Some(kube::Error::Service(source)) => return text(source.as_ref()),
        _ => {}
    }
    if let Some(status) = error.downcast_ref::<Box<Status>>() {
        return answer(status);
    }
    if let Some(error) = error.downcast_ref::<serde_json::Error>() {
        return unreadable(error);
    }
    let own = error.to_string();
    let Some(source) = error.source() else { return own };
    let cause = text(source);
    let context = own.strip_suffix(&source.to_string()).unwrap_or(&own).trim_end_matches([':', ' ']);
    if context.is_empty() {
        cause
    } else if context.contains(&cause) {
        context.to_owned()
    } else {
        format!("{context}: {cause}")
    }
}

/// The message of the API server, with the code and the reason.
fn answer(status: &Status) -> String {
    let Status { code, reason, message, .. } = status;
    let is_invalid = ErrorClass::of_status(status) == ErrorClass::Invalid;
    let details = status.details.as_ref().filter(|_| is_invalid);
    let message = match details {
        // The message quotes invalid values.
        Some(details) if !details.causes.is_empty() => {
            let fields: Vec<_> =
                details.causes.iter().map(|cause| format!("{} ({})", cause.field, cause.reason)).collect();
            format!("{} {} is invalid: {}", details.kind, details.name, fields.join(", "))
        }
        // The message of another webhook or policy may quote values, after its name.
        _ if let Some((who, _)) = DENIALS.iter().find_map(|denial| message.split_once(denial)) => {
            format!("{who}denied the request")
        }
        _ if is_invalid => "the object is invalid".to_owned(),
        _ => message.trim_end_matches('.').to_owned(),
    };
    format!("{message} ({code} {reason})")
}

fn unreadable(error: &serde_json::Error) -> String {
    match error.classify() {
        Category::Io => error.to_string(),
        Category::Syntax | Category::Data | Category::Eof => {
            format!("invalid JSON at line {} column {}", error.line(), error.column())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims;
    use kube::core::response::{StatusCause, StatusDetails};
    use kube::runtime::watcher;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<dyn Error + Send + Sync>>,
    }

    fn link(text: &'static str, source: impl Error + Send + Sync + 'static) -> Link {
        Link { text, source: Some(Box::new(source)) }
    }

    fn forbidden() -> kube::Error {
        let status = Status::failure("leases \"switchboard\" is forbidden", "Forbidden").with_code(403);
        kube::Error::Api(status.boxed())
    }

    #[test]
    fn chain_reaches_the_innermost_source() {
        let refused = io::Error::from_raw_os_error(111);
        let connect = link("client error (Connect)", link("tcp connect error", refused));
        let error = watcher::Error::WatchFailed(kube::Error::Service(Box::new(connect)));
        assert_eq!(
            ErrorChain(&error).to_string(),
            "watch stream failed: client error (Connect): tcp connect error: Connection refused (os error 111)"
        );
    }

    #[test]
    fn text_of_a_source_is_shown_once() {
        let inner = link("no answer", Link { text: "timed out", source: None });
        for (error, expected) in [
            (link("no answer", inner), "no answer: timed out"),
            (
                link("cannot go on: timed out; check the network", Link { text: "timed out", source: None }),
                "cannot go on: timed out; check the network",
            ),
            (link("cannot go on: timed out", Link { text: "timed out", source: None }), "cannot go on: timed out"),
        ] {
            assert_eq!(ErrorChain(&error).to_string(), expected);
        }
    }

    #[test]
    fn api_server_error_is_shown_without_debug_format() {
        let expected = "leases \"switchboard\" is forbidden (403 Forbidden)";
        assert_eq!(ErrorChain(&forbidden()).to_string(), expected);
        assert_eq!(ErrorChain(&claims::Error::from(forbidden())).to_string(), expected);
        let watch = watcher::Error::WatchStartFailed(forbidden());
        assert_eq!(ErrorChain(&watch).to_string(), format!("failed to start watching object: {expected}"));
        let kube::Error::Api(status) = forbidden() else { unreachable!() };
        let watch = watcher::Error::WatchError(status);
        assert_eq!(ErrorChain(&watch).to_string(), format!("error returned by apiserver during watch: {expected}"));
    }

    #[test]
    fn rejected_and_unreadable_values_are_not_quoted() {
        const ADDRESS: &str = "+15558675310";
        let cause = StatusCause {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: \"{ADDRESS}\""),
            field: "spec.contactAddress".to_owned(),
        };
        let details = StatusDetails {
            kind: "AddressBinding".to_owned(),
            name: "sms-a".to_owned(),
            group: String::new(),
            uid: String::new(),
            causes: vec![cause],
            retry_after_seconds: 0,
        };
        let message = format!("AddressBinding \"sms-a\" is invalid: spec.contactAddress: Invalid value: \"{ADDRESS}\"");
        let status = Status::failure(&message, "Invalid").with_code(422).with_details(details);
        assert_eq!(
            ErrorChain(&kube::Error::Api(status.boxed())).to_string(),
            "AddressBinding sms-a is invalid: spec.contactAddress (FieldValueInvalid) (422 Invalid)"
        );
        for (code, message, expected) in [
            (
                403,
                format!("admission webhook \"a.b\" denied the request: {ADDRESS}"),
                "admission webhook \"a.b\" denied the request",
            ),
            (
                403,
                format!("ValidatingAdmissionPolicy 'a' with binding 'b' denied request: {ADDRESS}"),
                "ValidatingAdmissionPolicy 'a' with binding 'b' denied the request",
            ),
            (422, format!("{ADDRESS} is no address"), "the object is invalid"),
        ] {
            let status = Status::failure(&message, "Invalid").with_code(code);
            assert_eq!(
                ErrorChain(&kube::Error::Api(status.boxed())).to_string(),
                format!("{expected} ({code} Invalid)")
            );
        }
        let without_reason = Status::failure(ADDRESS, "").with_code(422);
        let text = ErrorChain(&kube::Error::Api(without_reason.boxed())).to_string();
        assert!(!text.contains(ADDRESS), "{text}");
        let unreadable = serde_json::from_str::<u8>(&format!("\"{ADDRESS}\"")).unwrap_err();
        let text = ErrorChain(&kube::Error::SerdeError(unreadable)).to_string();
        assert!(!text.contains(ADDRESS) && text.contains("line 1"), "{text}");
    }
}
