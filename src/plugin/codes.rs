//! The error codes of switchboard: what each means, and the ways out. Pure. The formats of addresses are those of the schema.

use super::text::paragraph;
use crate::api::Channel;
use crate::api::address_format::{of_contact, of_proxy};
use crate::core::denial::{ALREADY_BOUND, NOT_GRANTED};
use strum::VariantArray;

/// An error code.
#[derive(Debug)]
pub struct Code {
    /// The five digits.
    pub digits: &'static str,
    /// The situation.
    pub title: &'static str,
    /// The rule.
    rule: &'static str,
    /// The ways out.
    ways: &'static [&'static str],
}

/// All codes, in the order of their digits.
pub const CODES: [Code; 7] = [
    Code {
        digits: "48025",
        title: "the contact address is invalid for the channel",
        rule: "Each address has one canonical spelling, so that equal addresses are equal texts. Any other spelling is refused.",
        ways: &[
            "Write the address as its channel requires it. The refusal proposes the spelling, if it is clear.",
            "An Email domain that is not ASCII is written in punycode (xn--…).",
        ],
    },
    Code {
        digits: "48026",
        title: "the proxy address is invalid for the channel",
        rule: "Each address has one canonical spelling, so that equal addresses are equal texts. Any other spelling is refused.",
        ways: &["Write the address as its channel requires it. The refusal proposes the spelling, if it is clear."],
    },
    Code {
        digits: "48027",
        title: "contact address and proxy address are equal",
        rule: "A conversation connects a contact with the business, so its two addresses differ.",
        ways: &[
            "Set spec.contact.address to the address of the person outside, and spec.proxy.address to that of the business.",
        ],
    },
    Code {
        digits: NOT_GRANTED,
        title: "the namespace may not use the proxy address",
        rule: "spec.namespaces of the ProxyAddress that declares the address selects the namespaces that may open conversations behind it. \
               An installation can also refuse addresses that no ProxyAddress declares. Only creates are checked.",
        ways: &[
            "Use a proxy address that the namespace may use: kubectl get proxyaddresses.",
            "Ask an administrator to select the namespace in spec.namespaces of the ProxyAddress, or to create a ProxyAddress.",
        ],
    },
    Code {
        digits: ALREADY_BOUND,
        title: "another conversation holds the binding",
        rule: "A binding is a channel, a contact address and a proxy address. At most one open conversation in the cluster holds it. An \
               Inactive conversation still holds it; it is free once that one is Closed, has lost its contact, or is deleted.",
        ways: &[
            "Find the holder: kubectl switchboard who CHANNEL CONTACT PROXY.",
            "It has a participant: ask the participant to close it, or transfer it: kubectl switchboard transfer CONVERSATION --to IDENTITY.",
            "It is unassigned: add a participant: kubectl switchboard assign CONVERSATION --to IDENTITY.",
            "It is not needed: kubectl switchboard close CONVERSATION, kubectl switchboard release CONVERSATION, or delete it. The binding \
             is free immediately.",
            "Flux, Argo CD or Helm manages it: change it there, before the other conversation is created.",
            "Wait: with spec.onConflict: Wait, the conversation is stored, and gets the binding as soon as it is free.",
            "For a concurrent conversation, use a different proxy address.",
            "If unassigned conversations keep appearing, check the inbound routing (autocreation) of the proxy, and set \
             spec.timers.closeUnassignedAfter.",
        ],
    },
    Code {
        digits: "50377",
        title: "a closed conversation stays closed",
        rule: "Closed is final. spec.state must not change from Closed before status.state is Closed. After that, changes of the spec are \
               stored without effect, except for ttlAfterClosed, and the API server warns with this code.",
        ways: &[
            "To continue with the contact, create another conversation.",
            "In Git, remove the manifest of the closed conversation when you no longer need it.",
        ],
    },
    Code {
        digits: "50433",
        title: "an identity stands twice among the participants",
        rule: "Each identity must be unique among spec.participants.",
        ways: &["Remove the duplicate. kubectl switchboard assign and transfer never add an identity twice."],
    },
];

impl Code {
    /// The code with these digits.
    pub fn of(text: &str) -> Option<&'static Self> {
        CODES.iter().find(|code| code.digits == text)
    }

    /// Its explanation.
    pub fn text(&self) -> String {
        let Self { digits, title, rule, ways } = self;
        let format: Option<fn(Channel) -> &'static str> = match *digits {
            "48025" => Some(|channel| of_contact(channel)),
            "48026" => Some(|channel| of_proxy(channel)),
            _ => None,
        };
        let formats = format.map(|format| {
            bullets("Formats", Channel::VARIANTS.iter().map(|channel| format!("{channel}: {}", format(*channel))))
        });
        let ways = bullets("Ways out", ways.iter().map(|way| (*way).to_owned()));
        format!("{digits}: {title}\n\n{}{}{ways}", paragraph("", rule), formats.unwrap_or_default())
    }
}

/// A list, after a blank line and its title.
fn bullets(title: &str, items: impl Iterator<Item = String>) -> String {
    format!("\n{title}:\n{}", items.map(|item| paragraph("  - ", &item)).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conversation_crd;
    use crate::core::binding::Binding;
    use crate::core::denial::invalid_binding;
    use std::collections::BTreeSet;

    /// The numbers of five digits before a colon, as messages start.
    fn codes_in(text: &str) -> BTreeSet<String> {
        let is_code = |word: &&str| word.len() == 5 && word.bytes().all(|byte| byte.is_ascii_digit());
        let starts = text.match_indices(": ").filter_map(|(end, _)| text.get(end.checked_sub(5)?..end));
        starts.filter(is_code).map(str::to_owned).collect()
    }

    #[test]
    fn every_code_of_schema_and_webhook_is_explained() {
        let crd = serde_json::to_string(&conversation_crd().unwrap()).unwrap();
        let mut expected = codes_in(&crd);
        expected.extend([ALREADY_BOUND, NOT_GRANTED].map(str::to_owned));
        for (contact, proxy) in [("ü", "desk"), ("alice", "ü"), ("desk", "desk")] {
            let error = Binding::parse(Channel::Chat, contact, proxy).unwrap_err();
            expected.extend(codes_in(&invalid_binding(&error).message));
        }
        let policy = include_str!("../../charts/switchboard/templates/admission/policy-closed.yaml");
        assert!(codes_in(policy).is_subset(&expected), "{:?}", codes_in(policy));
        assert_eq!(CODES.iter().map(|code| code.digits.to_owned()).collect::<BTreeSet<_>>(), expected);
        assert!(CODES.is_sorted_by_key(|code| code.digits));
    }

    #[test]
    fn invalid_address_is_explained_with_the_format_of_each_channel() {
        let text = Code::of("48026").unwrap().text();
        for channel in Channel::VARIANTS {
            let line = paragraph("  - ", &format!("{channel}: {}", of_proxy(*channel)));
            assert!(text.contains(&line), "{channel} is not in {text}");
        }
    }
}
