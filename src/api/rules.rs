//! The validation rules of the schemas, in CEL. They cover every check that needs no other object. The rules of a duration are in
//! `duration.rs`.
//!
//! Each message has the error code, if there is one, the allowed values and the next step. No message contains "is immutable", because
//! Flux reacts to these words. With `force`, Flux deletes and recreates the object upon any refusal with HTTP code 422, whatever its
//! words.

pub(super) mod address;
mod proxy_address;

pub(super) use proxy_address::{
    autocreate, dns_label, identities, label_key, label_requirement, label_selector, label_values, labels,
    proxy_address, sink, sink_path, sink_uri, sources,
};

use serde_json::{Value, json};

/// An identity: printable ASCII without leading or trailing spaces.
const IDENTITY: &str = "[!-~](?:[ -~]{0,254}[!-~])?";

/// RFC 3339. The format `date-time` alone admits `2026-01-01T00:00:00x5Z` and an offset of 99 hours. Every CEL comparison with
/// such a value fails.
pub(super) const INSTANT: &str =
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";

/// RFC 3339, with the days that each month has. The format `date-time` cannot be used beside it: the API server words its refusal, and
/// CEL then sees no text.
const REPORTED_INSTANT: &str = "^(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))\
     |(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)\
     T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$";

/// Whether the stored status is Closed, at the root of the object.
const WAS_CLOSED: &str = "has(oldSelf.status) && has(oldSelf.status.state) && oldSelf.status.state == 'Closed'";

fn rule(rule: impl Into<String>, message: &str) -> Value {
    json!({"rule": rule.into(), "message": message})
}

fn at(field_path: &str, mut rule: Value) -> Value {
    rule["fieldPath"] = json!(field_path);
    rule
}

fn forbidden(mut rule: Value) -> Value {
    rule["reason"] = json!("FieldValueForbidden");
    rule
}

/// Rules that compare fields of one spec.
pub(super) fn spec() -> Value {
    json!([
        address::rule(&address::CONTACT, "channel", "contact.address"),
        address::rule(&address::PROXY, "channel", "proxy.address"),
        at(
            ".contact.address",
            rule(
                "!has(self.contact) || self.contact.address != self.proxy.address",
                "48027: the contact address and the proxy address must be different",
            )
        ),
        at(
            ".participants",
            rule(
                "!has(self.participants) || self.participants.all(p, self.participants.exists_one(q, q.identity == p.identity))",
                "50433: each identity must be unique among the participants; remove the duplicate",
            )
        ),
    ])
}

pub(super) fn display_name() -> Value {
    json!([rule(r"self.matches('^\\P{Cc}*$')", "must not contain control characters")])
}

/// The rule of an instant that clients other than the operator write.
pub(super) fn reported_instant() -> Value {
    json!([rule(
        format!("self.matches('{REPORTED_INSTANT}')"),
        "must be a time in the format of RFC 3339, with seconds and with Z or an offset, such as 2026-01-01T10:00:00Z"
    )])
}

pub(super) fn identity() -> Value {
    json!([rule(
        format!("self.matches('^{IDENTITY}$')"),
        "must be printable ASCII without leading or trailing spaces, at most 256 characters"
    )])
}

pub(super) fn timers() -> Value {
    let pattern = super::duration::PATTERN;
    json!([at(
        ".closeAfter",
        rule(
            format!(
                "!has(self.inactiveAfter) || !has(self.closeAfter) || !self.inactiveAfter.matches('{pattern}') \
             || !self.closeAfter.matches('{pattern}') || duration(self.closeAfter) > duration(self.inactiveAfter)"
            ),
            "must be longer than inactiveAfter, since both are counted from the last activity",
        )
    )])
}

pub(super) fn status() -> Value {
    json!([at(
        ".lastActivityTime",
        forbidden(rule(
            "!has(oldSelf.lastActivityTime) || (has(self.lastActivityTime) && self.lastActivityTime >= oldSelf.lastActivityTime)",
            "must not be removed or set to an earlier time",
        ))
    )])
}

/// A rule that an update must follow until the stored status is Closed. From then on the spec has no effect, and may be edited: a
/// refusal would stop every later commit of a GitOps tool. A policy of the chart warns of such an edit.
fn until_closed(expression: &str, message: &str) -> Value {
    forbidden(rule(format!("({WAS_CLOSED}) || ({expression})"), message))
}

/// Rules that compare an object with the previous one and need both spec and status, for the root of the object.
pub(super) fn conversation() -> Value {
    json!([
        at(
            ".spec.channel",
            until_closed(
                "self.spec.channel == oldSelf.spec.channel",
                "must not change; to use another channel, create another conversation",
            )
        ),
        at(
            ".spec.proxy.address",
            until_closed(
                "self.spec.proxy.address == oldSelf.spec.proxy.address",
                "must not change; to use another proxy address, create another conversation",
            )
        ),
        at(
            ".spec.contact",
            until_closed(
                "has(oldSelf.spec.contact) || !has(self.spec.contact)",
                "must not be added to a conversation without a contact; create another conversation",
            )
        ),
        at(
            ".spec.contact.address",
            until_closed(
                "!has(oldSelf.spec.contact) || !has(self.spec.contact) || self.spec.contact.address == oldSelf.spec.contact.address",
                "must not change; to use another contact address, create another conversation. Removing spec.contact is allowed and releases the binding",
            )
        ),
        at(
            ".spec.state",
            until_closed(
                "!has(oldSelf.spec.state) || oldSelf.spec.state != 'Closed' || (has(self.spec.state) && self.spec.state == 'Closed')",
                "50377: a closed conversation must stay closed; spec.state must not change from Closed before status.state is Closed. To continue with the contact, create another conversation",
            )
        ),
        at(
            ".status.state",
            forbidden(rule(
                format!(
                    "!({WAS_CLOSED}) || (has(self.status) && has(self.status.state) && self.status.state == 'Closed')"
                ),
                "50377: the state of a closed conversation must stay Closed. To continue with the contact, create another conversation",
            ))
        ),
    ])
}
