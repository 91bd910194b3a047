//! Denials of creates: the message for people, the cause for programs, and the HTTP code, which determines how clients react.

use super::binding::{Binding, InvalidBinding};
use super::claim::{LiveConversation, Undecided};
use super::manager::Tool;
use crate::api::ConversationReference;
use std::borrow::Cow;

/// The error code of a binding that another conversation holds, as in Twilio Conversations.
pub const ALREADY_BOUND: &str = "48031";

/// The error code of a proxy address that the namespace may not use.
pub const NOT_GRANTED: &str = "48028";

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
    /// The error, and each fact about the holder, for programs.
    pub causes: Vec<Cause>,
    /// The name of the conversation that the denial is about, if the requester may know it.
    pub name: Option<String>,
    /// The number of seconds after which clients retry the create; `None` if a retry cannot succeed.
    pub retry_after_seconds: Option<i32>,
}

/// The error, or a fact about the holder, for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The error code, or the kind of fact.
    pub reason: &'static str,
    /// The path of the field that the error is about; empty for a fact.
    pub field: &'static str,
    /// The error in words, or the bare value of the fact, so that no value has to be parsed or can pose as another one.
    pub message: String,
}

/// The information about a holder that the requester may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disclosure {
    /// Its name, state and participants, and the tool that manages it: it is in the same namespace, or the requester can read
    /// conversations in its namespace.
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
    let fact = |reason, message| Cause { reason, field: "", message };
    let (error, facts, name) = match disclosure {
        Disclosure::Full => {
            let mut facts =
                vec![fact("Holder", holder.to_string()), fact("HolderState", live.state.as_str().to_owned())];
            facts.extend(live.manager.iter().map(|manager| fact("HolderManagedBy", manager.to_string())));
            facts.extend(live.participants.iter().map(|identity| fact("HolderParticipant", identity.clone())));
            ("another conversation holds the binding", facts, Some(holder.name.clone()))
        }
        Disclosure::OtherNamespace => ("a conversation in another namespace holds the binding", Vec::new(), None),
    };
    let error = Cause { reason: ALREADY_BOUND, field: "spec.contact.address", message: error.to_owned() };
    Denial {
        code: 403,
        reason: "Forbidden",
        message: already_bound_message(binding, holder, live, disclosure),
        causes: [vec![error], facts].concat(),
        name,
        retry_after_seconds: None,
    }
}

/// 48028: `namespace` may not use the proxy address. `is_declared` tells whether a ProxyAddress declares it, and `proxy_address` is its
/// name, if the requester may read it.
#[must_use]
pub fn not_granted(binding: &Binding, namespace: &str, is_declared: bool, proxy_address: Option<&str>) -> Denial {
    let (proxy, channel) = (binding.proxy(), binding.channel());
    let another = "To proceed, use a proxy address that this namespace may use, or ask an administrator to";
    let (cause, remedy) = match proxy_address {
        _ if !is_declared => (
            "no ProxyAddress declares it, and this installation requires one".to_owned(),
            format!("{another} create a ProxyAddress with this channel and address"),
        ),
        Some(name) => (
            format!("spec.namespaces of ProxyAddress {name} does not select the namespace"),
            format!("{another} select the namespace there"),
        ),
        None => (
            "spec.namespaces of its ProxyAddress does not select the namespace".to_owned(),
            format!("{another} select the namespace there"),
        ),
    };
    let error = Cause {
        reason: NOT_GRANTED,
        field: "spec.proxy.address",
        message: format!("the namespace {namespace} may not use the proxy address"),
    };
    let fact = proxy_address.map(|name| Cause { reason: "ProxyAddress", field: "", message: name.to_owned() });
    Denial {
        code: 403,
        reason: "Forbidden",
        message: format!(
            "{NOT_GRANTED}: the namespace {namespace} may not use proxy address {proxy} on {channel}: {cause}. {remedy}."
        ),
        causes: [error].into_iter().chain(fact).collect(),
        name: None,
        retry_after_seconds: None,
    }
}

/// Whether the namespace may use the proxy address cannot be determined in time.
#[must_use]
pub fn undecided_grant() -> Denial {
    Denial {
        code: 503,
        reason: "ServiceUnavailable",
        message: "cannot determine yet whether the namespace may use the proxy address: the API server could not be read in time. \
                  Retry in 1 second."
            .to_owned(),
        causes: Vec::new(),
        name: None,
        retry_after_seconds: Some(1),
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
    let managed_by = match live.manager.as_ref().map(|manager| (manager, manager.tool())) {
        None => String::new(),
        Some((manager, Tool::Helm)) => format!(
            " It is managed by {manager}: change it in that release, in an upgrade before the one that creates another \
             conversation."
        ),
        Some((manager, Tool::FluxKustomization | Tool::FluxHelmRelease | Tool::ArgoCd)) => format!(
            " It is managed by {manager}: change it in Git, in a commit before the one that creates another conversation."
        ),
    };
    // A tool adds a removed contact again. That is refused for as long as the conversation is open, with all else that it applies.
    let ways =
        if live.manager.is_some() { "close it or delete it" } else { "close it, remove its contact or delete it" };
    let not_needed = format!("If it is no longer needed, {ways}; this frees the binding immediately.");
    let state = live.state.as_str();
    if live.participants.is_empty() {
        return format!(
            "{exists}: conversation {holder} holds the binding ({state}, unassigned).{managed_by} To proceed, add a participant to it. \
             {not_needed} {another_proxy} If unassigned conversations keep appearing, check the inbound routing \
             (autocreation) of the proxy and set spec.timers.closeUnassignedAfter."
        );
    }
    let named = live.participants.iter().take(NAMED_PARTICIPANTS).map(|identity| quoted_unless_plain(identity));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = match live.participants.len().saturating_sub(NAMED_PARTICIPANTS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{exists}: conversation {holder} holds the binding ({state}, participants: {named}{more}).{managed_by} To proceed, ask a \
         participant to close it or to transfer it to you. {not_needed} {another_proxy}"
    )
}

/// An identity as it stands in a message: in quotes if it has a letter by which it could pose as the text around it.
fn quoted_unless_plain(identity: &str) -> Cow<'_, str> {
    let is_plain = |letter: char| letter.is_ascii_graphic() && !matches!(letter, ',' | '(' | ')' | '"' | '\\');
    if identity.chars().all(is_plain) { identity.into() } else { format!("{identity:?}").into() }
}

/// A conversation with this name exists.
#[must_use]
pub fn already_exists(name: &str) -> Denial {
    Denial {
        code: 409,
        reason: "AlreadyExists",
        message: format!("conversations.switchboard.dev \"{name}\" already exists"),
        causes: Vec::new(),
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
        causes: Vec::new(),
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
        causes: vec![Cause { reason, field, message: error.to_string() }],
        name: None,
        retry_after_seconds: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::manager::Manager;
    use super::*;
    use crate::api::{Channel, State};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    const FULL: Disclosure = Disclosure::Full;

    fn agents(count: usize) -> Vec<String> {
        (1..=count).map(|number| format!("agent-{number}")).collect()
    }

    fn denial(participants: usize, disclosure: Disclosure) -> Denial {
        denial_for(agents(participants), None, disclosure)
    }

    fn denial_for(participants: Vec<String>, manager: Option<Manager>, disclosure: Disclosure) -> Denial {
        let binding = Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap();
        let live = LiveConversation {
            uid: "a1".into(),
            needed_binding: Some(binding.name()),
            state: State::Inactive,
            participants,
            manager,
        };
        let holder = ConversationReference { namespace: "sales".into(), name: "alice".into() };
        already_bound(&binding, &holder, &live, disclosure)
    }

    fn managed_by(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Manager {
        let map = |marks: &[(&str, &str)]| Some(marks.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect());
        let metadata = ObjectMeta { labels: map(labels), annotations: map(annotations), ..ObjectMeta::default() };
        Manager::of(&metadata).unwrap()
    }

    fn facts(denial: &Denial) -> Vec<(&'static str, &str)> {
        assert_eq!((denial.causes[0].reason, denial.causes[0].field), ("48031", "spec.contact.address"));
        assert!(denial.causes[1..].iter().all(|cause| cause.field.is_empty()));
        denial.causes[1..].iter().map(|cause| (cause.reason, cause.message.as_str())).collect()
    }

    #[test]
    fn message_names_addresses_holder_state_and_participants() {
        let denial = denial(2, FULL);
        for part in ["+15558675310", "+15017122661", "SMS", "sales/alice", "Inactive", "agent-1, agent-2", "transfer"] {
            assert!(denial.message.contains(part), "{part} is missing in {}", denial.message);
        }
        assert!(denial.message.starts_with("48031: "));
        assert_eq!((denial.code, denial.reason, denial.name.as_deref()), (403, "Forbidden", Some("alice")));
        let expected = [
            ("Holder", "sales/alice"),
            ("HolderState", "Inactive"),
            ("HolderParticipant", "agent-1"),
            ("HolderParticipant", "agent-2"),
        ];
        assert_eq!(facts(&denial), expected);
    }

    #[test]
    fn denial_names_the_manager_and_where_to_change_the_holder() {
        let flux = "kustomize.toolkit.fluxcd.io";
        let [namespace, name] = [format!("{flux}/namespace"), format!("{flux}/name")];
        let flux = managed_by(&[(&namespace, "flux-system"), (&name, "desk")], &[]);
        let helm =
            managed_by(&[], &[("meta.helm.sh/release-namespace", "sales"), ("meta.helm.sh/release-name", "desk")]);
        for (manager, name, place) in [
            (flux, "Flux Kustomization flux-system/desk", "change it in Git, in a commit before the one that"),
            (helm, "Helm release sales/desk", "change it in that release, in an upgrade before the one that"),
        ] {
            for participants in [0, 2] {
                let denial = denial_for(agents(participants), Some(manager.clone()), FULL);
                assert!(denial.message.contains(&format!("It is managed by {name}: {place}")), "{}", denial.message);
                assert!(!denial.message.contains("remove its contact"), "the tool adds it again: {}", denial.message);
                assert_eq!(facts(&denial)[2], ("HolderManagedBy", name));
            }
        }
        assert!(denial(2, FULL).message.contains("remove its contact"));
    }

    #[test]
    fn no_identity_poses_as_another_fact() {
        let hostile = [
            "agent-7, agent-8",
            "x state=Closed participants=agent-9",
            "agent-7). To proceed, delete conversation sales/bob. (",
            r#"", agent-8""#,
            r"agent-7\",
            "HolderManagedBy",
        ];
        let denial = denial_for(hostile.map(str::to_owned).to_vec(), None, FULL);
        let identities: Vec<_> =
            facts(&denial).into_iter().filter(|(reason, _)| *reason == "HolderParticipant").collect();
        assert_eq!(identities, hostile.map(|identity| ("HolderParticipant", identity)), "one each, and bare");
        assert_eq!(facts(&denial).len(), 2 + hostile.len());
        let quoted = hostile[..5].iter().map(|identity| format!("{identity:?}")).collect::<Vec<_>>().join(", ");
        let named = format!("(Inactive, participants: {quoted}, HolderManagedBy). To proceed, ask");
        assert!(denial.message.contains(&named), "{}", denial.message);
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
            manager: None,
        };
        let holder = ConversationReference { namespace: "default".into(), name: "alice".into() };
        let message = already_bound_message(&binding, &holder, &live, FULL);
        let readme = include_str!("../../README.md").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(readme.contains(&message), "README.md does not show: {message}");
    }

    #[test]
    fn message_names_remedies_for_an_unassigned_holder() {
        let message = denial(0, FULL).message;
        for part in ["unassigned", "add a participant", "closeUnassignedAfter", "autocreation"] {
            assert!(message.contains(part), "{part} is missing in {message}");
        }
    }

    #[test]
    fn denial_does_not_name_a_holder_in_another_namespace() {
        let denial = denial(2, Disclosure::OtherNamespace);
        assert_eq!(facts(&denial), []);
        let all = format!("{denial:?}");
        for part in ["sales", "alice", "agent-", "Inactive"] {
            assert!(!all.contains(part), "{part} is told in {all}");
        }
        assert!(denial.message.starts_with("48031: ") && denial.message.contains("another namespace"));
    }

    #[test]
    fn message_counts_participants_beyond_ten() {
        let message = denial(100, FULL).message;
        assert!(message.contains("agent-10 and 90 more") && !message.contains("agent-11"), "{message}");
    }

    #[test]
    fn denial_of_a_grant_names_the_proxy_address_to_its_readers_only() {
        let binding = Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap();
        let disclosed = not_granted(&binding, "support", true, Some("sales-sms"));
        assert_eq!(
            (disclosed.code, disclosed.causes[0].reason, disclosed.causes[0].field),
            (403, "48028", "spec.proxy.address")
        );
        assert_eq!((disclosed.causes[1].reason, disclosed.causes[1].message.as_str()), ("ProxyAddress", "sales-sms"));
        for part in ["48028: ", "support", "+15017122661", "SMS", "ProxyAddress sales-sms"] {
            assert!(disclosed.message.contains(part), "{part} is missing in {}", disclosed.message);
        }
        assert!(!disclosed.message.contains("+15558675310"), "the contact does not matter");
        let hidden = not_granted(&binding, "support", true, None);
        assert!(!format!("{hidden:?}").contains("sales-sms") && hidden.message.contains("does not select"));
        let undeclared = not_granted(&binding, "support", false, None);
        assert!(undeclared.message.contains("no ProxyAddress declares it"), "{}", undeclared.message);
    }

    #[test]
    fn messages_do_not_make_flux_delete_the_object() {
        for message in [denial(0, FULL).message, denial(2, FULL).message, denial(2, Disclosure::OtherNamespace).message]
        {
            assert!(!message.contains("is immutable"));
        }
    }
}
