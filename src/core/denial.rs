//! Denials of creates: the message for people, the cause for programs, and the HTTP code, which determines how clients react.

use super::binding::{Binding, InvalidBinding};
use super::claim::{LiveConversation, Undecided};
use crate::api::ConversationReference;

/// The error code of a binding that another conversation holds, as in Twilio Conversations.
pub const ALREADY_BOUND: &str = "48031";

/// The maximum number of participants that a message names. For the others it has only their number.
const NAMED_PARTICIPANTS: usize = 10;

/// The denial of a create, in the terms of `metav1.Status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The HTTP code, which determines how clients react. They do not retry a 403, and retry a 503 after
    /// [`Denial::retry_after_seconds`]. After a 409, the API server tries another name if it generated the name.
    pub code: u16,
    /// The reason that belongs to the code.
    pub reason: &'static str,
    /// The error, the field, and the next step.
    pub message: String,
    /// The error, for programs.
    pub cause: Option<Cause>,
    /// The name of the conversation that the denial is about, if the requester may know it.
    pub name: Option<String>,
    /// The number of seconds after which clients retry the create; `None` if a retry cannot succeed.
    pub retry_after_seconds: Option<i32>,
}

/// The error, for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The error code.
    pub reason: &'static str,
    /// The path of the field.
    pub field: &'static str,
    /// Details, as `key=value` pairs.
    pub message: String,
}

/// The information about a holder that the requester may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disclosure {
    /// Its name, state and participants: it is in the same namespace, or the requester can read conversations in its namespace.
    Full,
    /// Only that it is in another namespace.
    OtherNamespace,
}

/// 48031: `holder` holds the binding.
#[must_use]
pub fn already_bound(
    binding: &Binding,
    holder: &ConversationReference,
    live: &LiveConversation,
    disclosure: Disclosure,
) -> Denial {
    let message = already_bound_message(binding, holder, live, disclosure);
    let (details, name) = match disclosure {
        Disclosure::Full => {
            let participants = live.participants.join(",");
            let details = format!("holder={holder} state={} participants={participants}", live.state.as_str());
            (details, Some(holder.name.clone()))
        }
        Disclosure::OtherNamespace => ("holder is in another namespace".to_owned(), None),
    };
    Denial {
        code: 403,
        reason: "Forbidden",
        message,
        cause: Some(Cause { reason: ALREADY_BOUND, field: "spec.contact.address", message: details }),
        name,
        retry_after_seconds: None,
    }
}

/// The message of a 48031: the addresses, the holder with its state and participants, and the possible next steps.
#[must_use]
pub fn already_bound_message(
    binding: &Binding,
    holder: &ConversationReference,
    live: &LiveConversation,
    disclosure: Disclosure,
) -> String {
    let exists = format!(
        "{ALREADY_BOUND}: an outgoing conversation already exists for contact address {} and proxy address {} on {}",
        binding.contact(),
        binding.proxy(),
        binding.channel()
    );
    let another_proxy = "For a concurrent conversation, use a different proxy address.";
    if disclosure == Disclosure::OtherNamespace {
        return format!(
            "{exists}: the conversation is in another namespace, and you are not allowed to read conversations there. To \
             proceed, ask its owner to close it, remove its contact or delete it; this frees the binding immediately. \
             {another_proxy}"
        );
    }
    let not_needed = "If it is no longer needed, close it, remove its contact or delete it; this frees the binding \
                      immediately.";
    let state = live.state.as_str();
    if live.participants.is_empty() {
        return format!(
            "{exists}: conversation {holder} holds the binding ({state}, unassigned). To proceed, add a participant to it. \
             {not_needed} {another_proxy} If unassigned conversations keep appearing, check the inbound routing \
             (autocreation) of the proxy and set spec.timers.closeUnassignedAfter."
        );
    }
    let named = live.participants.iter().take(NAMED_PARTICIPANTS).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = match live.participants.len().saturating_sub(NAMED_PARTICIPANTS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{exists}: conversation {holder} holds the binding ({state}, participants: {named}{more}). To proceed, ask a \
         participant to close it or to transfer it to you. {not_needed} {another_proxy}"
    )
}

/// A conversation with this name exists.
#[must_use]
pub fn already_exists(name: &str) -> Denial {
    Denial {
        code: 409,
        reason: "AlreadyExists",
        message: format!("conversations.switchboard.dev \"{name}\" already exists"),
        cause: None,
        name: Some(name.to_owned()),
        retry_after_seconds: None,
    }
}

/// Whether the binding is free cannot be determined in time, for the reason `why`. A conversation outside `namespace`, that of the
/// create, is not named.
#[must_use]
pub fn undecided(why: &Undecided, namespace: &str) -> Denial {
    let reason = match why {
        Undecided::Release => "the binding is being released".to_owned(),
        Undecided::Create { conversation, until, .. } => {
            let conversation = if conversation.namespace == namespace {
                format!("Conversation {conversation}")
            } else {
                "a Conversation in another namespace".to_owned()
            };
            format!(
                "{conversation} is being created, or was not created after all, or was just deleted. If it does not appear, the \
                 binding is released after {until}"
            )
        }
        Undecided::NameTaken => "the Conversation was created meanwhile, and a retry updates it".to_owned(),
        Undecided::ApiServer => "the API server did not read or write the claim in time".to_owned(),
    };
    let seconds = why.retry_after().as_secs();
    let unit = if seconds == 1 { "second" } else { "seconds" };
    Denial {
        code: 503,
        reason: "ServiceUnavailable",
        message: format!("cannot determine yet whether the binding is free: {reason}. Retry in {seconds} {unit}."),
        cause: None,
        name: None,
        retry_after_seconds: i32::try_from(seconds).ok(),
    }
}

/// The addresses are invalid. The schema rejects them too, so the review does not come from an API server with this CRD.
#[must_use]
pub fn invalid_binding(error: &InvalidBinding) -> Denial {
    let (reason, field) = match error {
        InvalidBinding::Contact(_) => ("48025", "spec.contact.address"),
        InvalidBinding::Proxy(_) => ("48026", "spec.proxy.address"),
        InvalidBinding::Equal => ("48027", "spec.contact.address"),
    };
    Denial {
        code: 403,
        reason: "Forbidden",
        message: format!("{reason}: {error}"),
        cause: Some(Cause { reason, field, message: error.to_string() }),
        name: None,
        retry_after_seconds: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Channel, State};

    fn denial(participants: usize, disclosure: Disclosure) -> Denial {
        let binding = Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap();
        let live = LiveConversation {
            uid: "a1".into(),
            needed_binding: Some(binding.name()),
            state: State::Inactive,
            participants: (1..=participants).map(|number| format!("agent-{number}")).collect(),
        };
        let holder = ConversationReference { namespace: "sales".into(), name: "alice".into() };
        already_bound(&binding, &holder, &live, disclosure)
    }

    #[test]
    fn message_names_addresses_holder_state_and_participants() {
        let denial = denial(2, Disclosure::Full);
        for part in ["+15558675310", "+15017122661", "SMS", "sales/alice", "Inactive", "agent-1, agent-2", "transfer"] {
            assert!(denial.message.contains(part), "{part} is missing in {}", denial.message);
        }
        assert!(denial.message.starts_with("48031: "));
        assert_eq!((denial.code, denial.reason, denial.name.as_deref()), (403, "Forbidden", Some("alice")));
        let cause = denial.cause.unwrap();
        assert_eq!((cause.reason, cause.field), ("48031", "spec.contact.address"));
        assert_eq!(cause.message, "holder=sales/alice state=Inactive participants=agent-1,agent-2");
    }

    #[test]
    fn readme_quotes_the_current_message() {
        let binding = Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap();
        let participants = vec!["agent-7".to_owned()];
        let live = LiveConversation {
            uid: "a1".into(),
            needed_binding: Some(binding.name()),
            state: State::Active,
            participants,
        };
        let holder = ConversationReference { namespace: "default".into(), name: "alice".into() };
        let message = already_bound_message(&binding, &holder, &live, Disclosure::Full);
        let readme = include_str!("../../README.md").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(readme.contains(&message), "README.md does not show: {message}");
    }

    #[test]
    fn message_names_remedies_for_an_unassigned_holder() {
        let message = denial(0, Disclosure::Full).message;
        for part in ["unassigned", "add a participant", "closeUnassignedAfter", "autocreation"] {
            assert!(message.contains(part), "{part} is missing in {message}");
        }
    }

    #[test]
    fn denial_does_not_name_a_holder_in_another_namespace() {
        let denial = denial(2, Disclosure::OtherNamespace);
        let all = format!("{denial:?}");
        for part in ["sales", "alice", "agent-", "Inactive"] {
            assert!(!all.contains(part), "{part} is told in {all}");
        }
        assert!(denial.message.starts_with("48031: ") && denial.message.contains("another namespace"));
    }

    #[test]
    fn message_counts_participants_beyond_ten() {
        let message = denial(100, Disclosure::Full).message;
        assert!(message.contains("agent-10 and 90 more") && !message.contains("agent-11"), "{message}");
    }

    #[test]
    fn messages_do_not_make_flux_delete_the_object() {
        for message in [
            denial(0, Disclosure::Full).message,
            denial(2, Disclosure::Full).message,
            denial(2, Disclosure::OtherNamespace).message,
        ] {
            assert!(!message.contains("is immutable"));
        }
    }
}
