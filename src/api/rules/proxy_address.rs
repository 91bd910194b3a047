//! The validation rules of a ProxyAddress, in CEL.

use super::{IDENTITY, at, forbidden, remedy, rule, rule_with_remedy, well_formed};
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

/// Rules that compare fields of one spec, and a spec with the previous one.
pub fn proxy_address() -> Value {
    json!([
        at(
            ".address",
            rule_with_remedy(
                well_formed("self.address", true),
                "48026: the proxy address must be valid for the channel",
                &remedy("48026", "proxy", "self.address", true),
            )
        ),
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
        at(
            ".inbound.sources",
            rule(
                format!("!has(self.inbound) || self.inbound.sources.all(source, source.matches('{DNS_LABEL}'))"),
                "each name must consist of lower-case letters, digits and '-', start and end with a letter or digit, and have at most 63 characters",
            )
        ),
        at(
            ".inbound.autocreate.namespace",
            rule(
                format!(
                    "!has(self.inbound) || !has(self.inbound.autocreate) || self.inbound.autocreate.namespace.matches('{DNS_LABEL}')"
                ),
                "must be the name of a namespace",
            )
        ),
    ])
}

/// The schema of labels.
pub fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": MAX_LABELS,
        "additionalProperties": {"type": "string", "maxLength": 63},
        "x-kubernetes-validations": [
            rule(
                format!("self.all(key, key.size() <= 317 && key.matches('{LABEL_KEY}'))"),
                "each key must be a name of at most 63 letters, digits, '-', '_' and '.', with an optional DNS subdomain and '/' before it",
            ),
            rule(
                format!("self.all(key, self[key].matches('{LABEL_VALUE}'))"),
                "each value must be empty or consist of at most 63 letters, digits, '-', '_' and '.', and start and end with a letter or digit",
            ),
        ],
    })
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
    json!([
        at(
            ".values",
            rule(
                "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0",
                "must be set with the operators In and NotIn, and must not be set with Exists and DoesNotExist",
            )
        ),
        at(
            ".values",
            rule(
                format!("!has(self.values) || self.values.all(value, value.matches('{LABEL_VALUE}'))"),
                "each value must be empty or consist of at most 63 letters, digits, '-', '_' and '.', and start and end with a letter or digit",
            )
        ),
    ])
}

/// The rules of a list of identities.
pub fn identities() -> Value {
    json!([rule(
        format!("self.all(identity, identity.matches('{IDENTITY}'))"),
        "each identity must be printable ASCII without leading or trailing spaces, at most 256 characters",
    )])
}

/// The rules of a sink.
pub fn sink() -> Value {
    json!([
        rule("has(self.uri) != has(self.service)", "must have either uri or service"),
        at(
            ".service.namespace",
            rule(
                format!("!has(self.service) || self.service.namespace.matches('{DNS_LABEL}')"),
                "must be the name of a namespace",
            )
        ),
        at(
            ".service.name",
            rule(
                format!("!has(self.service) || self.service.name.matches('{DNS_LABEL}')"),
                "must be the name of a Service",
            )
        ),
    ])
}

/// The rules of the URL of a sink.
pub fn sink_uri() -> Value {
    json!([rule(
        "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHost() != '' && !self.contains('#') && !self.contains('@')",
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
