//! The validation rules of the schemas, in CEL. They cover every check that needs no other object. The rules of a duration are in
//! `duration.rs`.
//!
//! Each message has the error code, if there is one, the allowed values and the next step. `core::address` parses the addresses
//! again, because objects can be stored without this schema; the tests check both against the same manifests. No message contains
//! "is immutable", because Flux reacts to these words. With `force`, Flux deletes and recreates the object upon any refusal with HTTP
//! code 422, whatever its words.

mod proxy_address;

pub(super) use proxy_address::{
    autocreate, dns_label, identities, label_key, label_requirement, label_selector, label_values, labels,
    proxy_address, sink, sink_path, sink_uri, sources,
};

use serde_json::{Value, json};

/// An E.164 number: `+` and 2 to 15 digits, without a leading zero.
const E164: &str = r"^\\+[1-9][0-9]{1,14}$";
/// A short code, which only an SMS proxy can have.
const SHORT_CODE: &str = r"^[0-9]{3,8}$";
/// An ID issued by a platform: printable ASCII without spaces.
const OPAQUE_ID: &str = r"^[!-~]{1,256}$";
/// An identity: printable ASCII without leading or trailing spaces.
const IDENTITY: &str = r"^[!-~]([ -~]{0,254}[!-~])?$";
/// Lower-case `local@domain`: a dot-atom of RFC 5322 and a host name. The 254 characters of RFC 5321 are checked beside it.
const EMAIL: &str = r"^[a-z0-9!#$%&'*+/=?^_`{|}~-]+(\\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$";

/// RFC 3339. The format `date-time` alone admits `2026-01-01T00:00:00x5Z` and an offset of 99 hours. Every CEL comparison with
/// such a value fails.
pub(super) const INSTANT: &str =
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";

const TELEPHONE_CHANNELS: &str = "['SMS', 'WhatsApp', 'RCS']";
const PLATFORM_CHANNELS: &str = "['Messenger', 'Instagram', 'AppleMessages']";

/// Whether the stored status is Closed, at the root of the object.
const WAS_CLOSED: &str = "has(oldSelf.status) && has(oldSelf.status.state) && oldSelf.status.state == 'Closed'";

fn rule(rule: impl Into<String>, message: &str) -> Value {
    json!({"rule": rule.into(), "message": message})
}

/// A rule whose message is the result of the CEL expression `message`, or `fallback` if that expression fails.
fn rule_with_remedy(rule: impl Into<String>, fallback: &str, message: &str) -> Value {
    json!({"rule": rule.into(), "message": fallback, "messageExpression": message})
}

fn at(field_path: &str, mut rule: Value) -> Value {
    rule["fieldPath"] = json!(field_path);
    rule
}

fn forbidden(mut rule: Value) -> Value {
    rule["reason"] = json!("FieldValueForbidden");
    rule
}

/// An expression that is true if `address` is well formed on `self.channel`.
fn well_formed(address: &str, short_codes: bool) -> String {
    let short_code = if short_codes {
        format!(" || (self.channel == 'SMS' && {address}.matches('{SHORT_CODE}'))")
    } else {
        String::new()
    };
    format!(
        "self.channel in {TELEPHONE_CHANNELS} ? ({address}.matches('{E164}'){short_code}) : \
         self.channel in {PLATFORM_CHANNELS} ? {address}.matches('{OPAQUE_ID}') : \
         self.channel == 'Email' ? ({address}.size() <= 254 && {address}.matches(\"{EMAIL}\")) : \
         {address}.matches('{IDENTITY}')"
    )
}

/// An expression for the message about an ill-formed address: the format on the channel, and the canonical form if it is known.
fn remedy(code: &str, role: &str, address: &str, short_codes: bool) -> String {
    // Separators that people write between digits, and the two forms of the international prefix.
    let digits = [" ", "-", ".", "(", ")", "/"]
        .iter()
        .fold(address.to_owned(), |digits, separator| format!("{digits}.replace('{separator}', '')"));
    let telephone = format!("({digits}.startsWith('00') ? '+' + {digits}.substring(2) : {digits})");
    let lower_case = format!("{address}.trim().lowerAscii()");
    let short_code = if short_codes { " (on SMS also a short code of 3 to 8 digits)" } else { "" };
    format!(
        "'{code}: the {role} address must be ' + (\
         self.channel in {TELEPHONE_CHANNELS} ? \"an E.164 number on this channel: '+' and 2 to 15 digits without a leading zero{short_code}\" \
         + ({telephone}.matches('{E164}') ? '; write ' + {telephone} : '') : \
         self.channel in {PLATFORM_CHANNELS} ? \"an ID issued by the platform on this channel: printable ASCII, no spaces, at most 256 characters\" : \
         self.channel == 'Email' ? 'lower-case local@domain on this channel, at most 254 characters' \
         + ({lower_case}.size() <= 254 && {lower_case}.matches(\"{EMAIL}\") ? '; write ' + {lower_case} : '') : \
         'an identity on this channel: printable ASCII, no leading or trailing space, at most 256 characters')"
    )
}

/// Rules that compare fields of one spec.
pub(super) fn spec() -> Value {
    json!([
        at(
            ".contact.address",
            rule_with_remedy(
                format!("!has(self.contact) || ({})", well_formed("self.contact.address", false)),
                "48025: the contact address must be valid for the channel",
                &remedy("48025", "contact", "self.contact.address", false),
            )
        ),
        at(
            ".proxy.address",
            rule_with_remedy(
                well_formed("self.proxy.address", true),
                "48026: the proxy address must be valid for the channel",
                &remedy("48026", "proxy", "self.proxy.address", true),
            )
        ),
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

pub(super) fn identity() -> Value {
    json!([rule(
        format!("self.matches('{IDENTITY}')"),
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
