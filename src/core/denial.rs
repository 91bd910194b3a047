//! What a refused create is told: the message for people, the causes for programs, and the code by which clients act.

use super::binding::{Binding, InvalidBinding};
use super::claim::{LiveConversation, Undecided};
use crate::api::ConversationReference;

/// The code of a binding that another conversation holds (shared with Twilio's Conversations).
pub const ALREADY_BOUND: &str = "48031";

/// How many participants a message names before it counts the rest.
const NAMED_PARTICIPANTS: usize = 10;

/// A create that is not allowed, in the terms of `metav1.Status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The HTTP code that clients act on: 403 is not repeated, 409 makes the API server try another generated name, 503 is
    /// repeated after [`Denial::retry_after_seconds`].
    pub code: u16,
    /// The reason that belongs to the code.
    pub reason: &'static str,
    /// What was wrong, where, and what to do next.
    pub message: String,
    /// What was wrong, for programs.
    pub cause: Option<Cause>,
    /// The name of the conversation that the refusal is about, where it may be told.
    pub name: Option<String>,
    /// After how many seconds to repeat the create, where that helps.
    pub retry_after_seconds: Option<i32>,
}

/// What was wrong, for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The error code that the field knows for the situation.
    pub reason: &'static str,
    /// The path of the field that it is about.
    pub field: &'static str,
    /// What is to be known, in `key=value` pairs.
    pub message: String,
}

/// What the requester may learn of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disclosure {
    /// Its name, state and participants: it is in the same namespace, or the requester may read conversations in its.
    Full,
    /// That it is in another namespace.
    OtherNamespace,
}

/// 48031: `holder` has the binding.
#[must_use]
pub fn already_bound(
    binding: &Binding,
    holder: &ConversationReference,
    stored: &LiveConversation,
    disclosure: Disclosure,
) -> Denial {
    let message = already_bound_message(binding, holder, stored, disclosure);
    let (details, name) = match disclosure {
        Disclosure::Full => {
            let participants = stored.participants.join(",");
            let details = format!("holder={holder} state={} participants={participants}", stored.state.as_str());
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

/// The text of a 48031: the addresses, the holder, its state and its participants, and each way out that applies.
#[must_use]
pub fn already_bound_message(
    binding: &Binding,
    holder: &ConversationReference,
    stored: &LiveConversation,
    disclosure: Disclosure,
) -> String {
    let addresses =
        format!("contact address {} and proxy address {} on {}", binding.contact(), binding.proxy(), binding.channel());
    let another_proxy = "for a separate, simultaneous conversation use another proxy address";
    if disclosure == Disclosure::OtherNamespace {
        return format!(
            "{ALREADY_BOUND}: an outgoing conversation already exists for this {addresses}: it is in another namespace, whose \
             conversations you may not read. To go on: ask whoever runs it to close it, to remove its contact or to delete it, \
             and the binding is free at once; or {another_proxy}"
        );
    }
    let state = stored.state.as_str();
    let (who, way_out) = if stored.participants.is_empty() {
        (
            "unassigned".to_owned(),
            "add a participant to it; or, if it is not needed, close it, remove its contact or delete it, and the binding is \
             free at once",
        )
    } else {
        let named =
            stored.participants.iter().take(NAMED_PARTICIPANTS).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = match stored.participants.len().saturating_sub(NAMED_PARTICIPANTS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (
            format!("participants: {named}{more}"),
            "have a participant close it, or transfer it to the user who wanted this one; or, if it is not needed, close it, \
             remove its contact or delete it, and the binding is free at once",
        )
    };
    let routing = if stored.participants.is_empty() {
        "; if unassigned conversations keep appearing, look at the inbound routing (autocreation) of the proxy, and set \
         spec.timers.closeUnassignedAfter"
    } else {
        ""
    };
    format!(
        "{ALREADY_BOUND}: an outgoing conversation already exists for this {addresses}: conversation {holder} holds the binding ({state}, \
         {who}). To go on: {way_out}; {another_proxy}{routing}"
    )
}

/// A conversation of this name exists.
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

/// It cannot be said in time whether the binding is free.
#[must_use]
pub fn undecidable(why: Undecided) -> Denial {
    let why = match why {
        Undecided::InFlight => "another create or a release for the same binding is under way",
        Undecided::AwaitingRelease => {
            "earlier creates of this name were admitted and never stored, and their claim has not been released yet"
        }
        Undecided::ApiServer => "the claims could not be read or written in time",
    };
    Denial {
        code: 503,
        reason: "ServiceUnavailable",
        message: format!("cannot decide yet whether the binding is free: {why}; try again in a second"),
        cause: None,
        name: None,
        retry_after_seconds: Some(1),
    }
}

/// The conversation has addresses that no schema let through: the review does not come from an API server with our CRD.
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

    fn refusal(participants: usize, disclosure: Disclosure) -> Denial {
        let binding = Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap();
        let stored = LiveConversation {
            uid: "a1".into(),
            held_binding: Some(binding.name()),
            state: State::Inactive,
            participants: (1..=participants).map(|number| format!("agent-{number}")).collect(),
        };
        let holder = ConversationReference { namespace: "sales".into(), name: "alice".into() };
        already_bound(&binding, &holder, &stored, disclosure)
    }

    #[test]
    fn a_48031_names_the_addresses_the_holder_its_state_and_its_participants() {
        let refusal = refusal(2, Disclosure::Full);
        for part in ["+15558675310", "+15017122661", "SMS", "sales/alice", "Inactive", "agent-1, agent-2", "transfer"] {
            assert!(refusal.message.contains(part), "{part} is missing in {}", refusal.message);
        }
        assert!(refusal.message.starts_with("48031: "));
        assert_eq!((refusal.code, refusal.reason, refusal.name.as_deref()), (403, "Forbidden", Some("alice")));
        let cause = refusal.cause.unwrap();
        assert_eq!((cause.reason, cause.field), ("48031", "spec.contact.address"));
        assert_eq!(cause.message, "holder=sales/alice state=Inactive participants=agent-1,agent-2");
    }

    #[test]
    fn the_readme_shows_a_refusal_as_it_is() {
        let binding = Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap();
        let participants = vec!["agent-7".to_owned()];
        let stored = LiveConversation {
            uid: "a1".into(),
            held_binding: Some(binding.name()),
            state: State::Active,
            participants,
        };
        let holder = ConversationReference { namespace: "default".into(), name: "alice".into() };
        let message = already_bound_message(&binding, &holder, &stored, Disclosure::Full);
        let readme = include_str!("../../README.md").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(readme.contains(&message), "README.md does not show: {message}");
    }

    #[test]
    fn an_unassigned_holder_is_told_to_be_one() {
        let message = refusal(0, Disclosure::Full).message;
        for part in ["unassigned", "add a participant", "closeUnassignedAfter", "autocreation"] {
            assert!(message.contains(part), "{part} is missing in {message}");
        }
    }

    #[test]
    fn a_holder_in_another_namespace_is_not_named() {
        let refusal = refusal(2, Disclosure::OtherNamespace);
        let all = format!("{refusal:?}");
        for part in ["sales", "alice", "agent-", "Inactive"] {
            assert!(!all.contains(part), "{part} is told in {all}");
        }
        assert!(refusal.message.starts_with("48031: ") && refusal.message.contains("another namespace"));
    }

    #[test]
    fn many_participants_are_counted() {
        let message = refusal(100, Disclosure::Full).message;
        assert!(message.contains("agent-10 and 90 more") && !message.contains("agent-11"), "{message}");
    }

    #[test]
    fn no_message_makes_flux_delete_the_object() {
        for message in [
            refusal(0, Disclosure::Full).message,
            refusal(2, Disclosure::Full).message,
            refusal(2, Disclosure::OtherNamespace).message,
        ] {
            assert!(!message.contains("is immutable"));
        }
    }
}
