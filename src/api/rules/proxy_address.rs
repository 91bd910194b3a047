//! The validation rules of a ProxyAddress, in CEL.

use super::{address, at, forbidden, identity, rule};
use crate::api::{MAX_ADDRESS_LENGTH, MAX_PARTICIPANTS};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A DNS label (RFC 1123).
const DNS_LABEL: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// The key of a label: a name with an optional DNS subdomain as prefix.
const LABEL_KEY: &str = r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$";
/// The value of a label.
const LABEL_VALUE: &str = "^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$";
/// The maximum number of labels of a selector or of created conversations.
const MAX_LABELS: usize = 32;
/// The maximum number of values of a requirement on a label.
const MAX_VALUES: usize = 256;

/// Rules that compare fields of one spec, and a spec with the previous one.
pub fn proxy_address() -> Value {
    json!([
        address::rule(&address::PROXY, "channel", "address"),
        at(
            ".channel",
            forbidden(rule(
                "self.channel == oldSelf.channel",
                "must not change; to use another channel, create another ProxyAddress"
            ))
        ),
        at(
            ".address",
            forbidden(rule(
                "self.address == oldSelf.address",
                "must not change; to use another address, create another ProxyAddress"
            ))
        ),
    ])
}

/// The schema of labels. [`labels_rules`] has its rules, since a rule of a map cannot name the field.
pub fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": MAX_LABELS,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}

/// The rules of an object whose field `name` has labels.
fn labels_rules(name: &str) -> Value {
    let all = |of_each: &str| format!("!has(self.{name}) || self.{name}.all(key, {of_each})");
    json!([
        at(
            &format!(".{name}"),
            rule(
                all(&format!("key.matches('^([^/]{{1,253}}/)?[^/]{{1,63}}$') && key.matches('{LABEL_KEY}')")),
                "each key must be a name of at most 63 letters, digits, '-', '_' and '.', with an optional DNS subdomain and '/' before it",
            )
        ),
        at(
            &format!(".{name}"),
            rule(
                all(&format!("self.{name}[key].matches('{LABEL_VALUE}')")),
                "each value must be empty or consist of at most 63 letters, digits, '-', '_' and '.', and start and end with a letter or digit",
            )
        ),
    ])
}

/// The rules of a label selector.
pub fn label_selector() -> Value {
    labels_rules("matchLabels")
}

/// The rules of autocreation.
pub fn autocreate() -> Value {
    labels_rules("labels")
}

/// The rules of the key of a label.
pub fn label_key() -> Value {
    json!([rule(
        format!("self.matches('{LABEL_KEY}')"),
        "must be a name of at most 63 letters, digits, '-', '_' and '.', with an optional DNS subdomain and '/' before it",
    )])
}

/// The rules of a requirement on a label.
pub fn label_requirement() -> Value {
    json!([at(
        ".values",
        rule(
            "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0",
            "must be set with the operators In and NotIn, and must not be set with Exists and DoesNotExist",
        )
    ),])
}

/// The rules of the name of an object that is a DNS label; `object` names it.
pub fn dns_label(object: &str) -> Value {
    json!([rule(format!("self.matches('{DNS_LABEL}')"), &format!("must be the name of a {object}"))])
}

/// The schema of the names of sources.
pub fn sources(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 16,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "description": "Name of a source. From 1 to 63 lower-case letters, digits and '-'.",
            "minLength": 1,
            "maxLength": 63,
            "x-kubernetes-validations": [rule(
                format!("self.matches('{DNS_LABEL}')"),
                "must consist of lower-case letters, digits and '-', and start and end with a letter or digit",
            )],
        },
    })
}

/// The schema of the identities of an assignment.
pub fn identities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_PARTICIPANTS,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "description": "Identity of a user, as in the participants of a Conversation.",
            "minLength": 1,
            "maxLength": MAX_ADDRESS_LENGTH,
            "x-kubernetes-validations": identity(),
        },
    })
}

/// The schema of the values of a requirement on a label.
pub fn label_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_VALUES,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "string",
            "description": "Value of the label. At most 63 characters.",
            "maxLength": 63,
            "x-kubernetes-validations": [rule(
                format!("self.matches('{LABEL_VALUE}')"),
                "must be empty or consist of letters, digits, '-', '_' and '.', and start and end with a letter or digit",
            )],
        },
    })
}

/// The rules of a sink.
pub fn sink() -> Value {
    json!([at(".uri", rule("has(self.uri) != has(self.service)", "either uri or service must be set, and not both")),])
}

/// The rules of the URL of a sink.
pub fn sink_uri() -> Value {
    json!([rule(
        "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('#') && !self.matches('^[a-z]+://[^/?]*@')",
        "must be a URL with the scheme http or https and a host, without user, password or fragment",
    )])
}

/// The rules of the path of a sink.
pub fn sink_path() -> Value {
    json!([rule(
        r"self.matches('^/[!-~]*$') && !self.contains('#')",
        "must start with '/' and be printable ASCII without spaces or '#'",
    )])
}
