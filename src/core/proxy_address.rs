//! Proxy addresses: which ProxyAddress is in effect, which namespaces may use it, and the status of each.

use crate::api::{
    ConditionStatus, LabelOperator, LabelSelector, LabelSelectorRequirement, ProxyAddress, ProxyAddressCondition,
    ProxyAddressConditionReason as Reason, ProxyAddressConditionType as Type, ProxyAddressSpec, ProxyAddressStatus,
    Time,
};
use crate::core::address::{Address, Role};
use std::collections::BTreeMap;

/// Labels of a namespace.
pub type Labels = BTreeMap<String, String>;

/// Whether a namespace may use a proxy address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The ProxyAddress in effect selects the namespace.
    Granted,
    /// The ProxyAddress of this name is in effect and does not select the namespace.
    NotGranted(String),
    /// No ProxyAddress declares the address.
    Undeclared,
}

impl Grant {
    /// Whether the namespace may use the address. `is_required` tells whether an address must be declared.
    #[must_use]
    pub fn allows(&self, is_required: bool) -> bool {
        match self {
            Self::Granted => true,
            Self::NotGranted(_) => false,
            Self::Undeclared => !is_required,
        }
    }
}

/// The order in which ProxyAddresses with the same channel and address take effect: the first one is in effect, the others are
/// conflicted. A ProxyAddress that is being deleted is in effect until it is gone.
#[must_use]
pub fn precedence(proxy_address: &ProxyAddress) -> (Time, &str) {
    let metadata = &proxy_address.metadata;
    let created = metadata.creation_timestamp.as_ref().map_or(Time::EPOCH, Time::from);
    (created, metadata.name.as_deref().unwrap_or_default())
}

/// Whether a namespace with `labels` may use the address that `in_effect` declares. A namespace that is not known, or does not exist, is
/// selected only where every namespace is.
#[must_use]
pub fn grant(in_effect: Option<&ProxyAddress>, labels: Option<&Labels>) -> Grant {
    match in_effect {
        None => Grant::Undeclared,
        Some(declared) if selects(&declared.spec, labels) => Grant::Granted,
        Some(declared) => Grant::NotGranted(declared.metadata.name.clone().unwrap_or_default()),
    }
}

fn selects(spec: &ProxyAddressSpec, labels: Option<&Labels>) -> bool {
    selector(spec).is_none_or(|selector| labels.is_some_and(|labels| matches(selector, labels)))
}

/// The selector of the namespaces; `None` if it selects every namespace.
fn selector(spec: &ProxyAddressSpec) -> Option<&LabelSelector> {
    let selector = spec.namespaces.as_ref().and_then(|namespaces| namespaces.selector.as_ref());
    selector.filter(|selector| **selector != LabelSelector::default())
}

/// Whether an object with `labels` meets each requirement of `selector`.
fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let meets = |LabelSelectorRequirement { key, operator, values }: &LabelSelectorRequirement| {
        let value = labels.get(key);
        let is_listed = value.is_some_and(|value| values.contains(value));
        match operator {
            LabelOperator::In => is_listed,
            LabelOperator::NotIn => !is_listed,
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    };
    selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().all(meets)
}

/// The status of `proxy_address` at `now`. `in_effect` is the one in effect for its address, and `labels` are those of the namespace of
/// `autocreate`.
#[must_use]
pub fn status(
    proxy_address: &ProxyAddress,
    in_effect: &ProxyAddress,
    labels: Option<&Labels>,
    now: Time,
) -> ProxyAddressStatus {
    let ProxyAddress { metadata, spec, status } = proxy_address;
    let observed_generation = metadata.generation;
    let problem = problem(proxy_address, in_effect, labels);
    let before = status.iter().flat_map(|status| &status.conditions);
    let condition = |type_, status, reason, message: &str| {
        let unchanged = before.clone().find(|before| before.type_ == type_ && before.status == status);
        ProxyAddressCondition {
            type_,
            status,
            observed_generation,
            last_transition_time: unchanged.map_or(now, |before| before.last_transition_time),
            reason,
            message: message.to_owned(),
        }
    };
    let conditions = match &problem {
        None => vec![
            condition(Type::Accepted, ConditionStatus::True, Reason::Accepted, "The spec is accepted"),
            condition(Type::Ready, ConditionStatus::True, Reason::Ready, in_effect_message(spec)),
        ],
        Some((reason, message)) => vec![
            condition(Type::Accepted, ConditionStatus::False, *reason, message),
            condition(Type::Ready, ConditionStatus::False, *reason, message),
            condition(Type::Stalled, ConditionStatus::True, *reason, message),
        ],
    };
    ProxyAddressStatus { observed_generation, conditions }
}

fn in_effect_message(spec: &ProxyAddressSpec) -> &'static str {
    match (selector(spec), &spec.inbound) {
        (None, None) => "Every namespace may use the address",
        (Some(_), None) => "The selected namespaces may use the address",
        (None, Some(_)) => "Every namespace may use the address, and inbound messages are accepted",
        (Some(_), Some(_)) => "The selected namespaces may use the address, and inbound messages are accepted",
    }
}

/// Why the spec is not in effect, or not entirely.
fn problem(
    proxy_address: &ProxyAddress,
    in_effect: &ProxyAddress,
    labels: Option<&Labels>,
) -> Option<(Reason, String)> {
    let spec = &proxy_address.spec;
    if in_effect.metadata.name != proxy_address.metadata.name {
        let name = in_effect.metadata.name.as_deref().unwrap_or_default();
        let message = format!(
            "ProxyAddress {name} is older and has the same channel and address, so this one is not in effect; delete one of them"
        );
        return Some((Reason::Conflicted, message));
    }
    if let Err(error) = Address::parse(spec.channel, Role::Proxy, &spec.address) {
        return Some((Reason::Invalid, format!("spec.address {error}; create another ProxyAddress")));
    }
    let autocreate = spec.inbound.as_ref().and_then(|inbound| inbound.autocreate.as_ref())?;
    let namespace = &autocreate.namespace;
    (!selects(spec, labels)).then(|| {
        let message = format!(
            "spec.namespaces does not select the namespace {namespace} of spec.inbound.autocreate, so messages create no \
             conversations; select it, or name another one. All other fields are in effect"
        );
        (Reason::Invalid, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn proxy_address(name: &str, second: u64, spec: &Value) -> ProxyAddress {
        let mut fields = json!({"channel": "SMS", "address": "+15017122661"});
        fields.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let created = format!("2026-01-01T00:00:{second:02}Z");
        let metadata = json!({"name": name, "generation": 1, "creationTimestamp": created});
        serde_json::from_value(json!({"metadata": metadata, "spec": fields})).unwrap()
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn reasons(status: &ProxyAddressStatus) -> Vec<(Type, ConditionStatus, Reason)> {
        status.conditions.iter().map(|condition| (condition.type_, condition.status, condition.reason)).collect()
    }

    #[test]
    fn oldest_proxy_address_is_in_effect_and_ties_go_by_name() {
        let none = json!({});
        let [b, a, c] = [proxy_address("b", 0, &none), proxy_address("a", 1, &none), proxy_address("c", 0, &none)];
        let first = [&a, &c, &b].into_iter().min_by_key(|one| precedence(one)).unwrap();
        assert_eq!(first.metadata.name.as_deref(), Some("b"));
    }

    #[test]
    fn namespaces_are_selected_as_kubernetes_selects_by_labels() {
        let selectors = [
            json!({}),
            json!({"matchLabels": {"team": "sales"}}),
            json!({"matchExpressions": [{"key": "team", "operator": "In", "values": ["sales", "support"]}]}),
            json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["sales"]}]}),
            json!({"matchExpressions": [{"key": "team", "operator": "Exists"}]}),
            json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}),
            json!({"matchLabels": {"team": "sales"}, "matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["test"]}]}),
        ];
        let namespaces = [
            labels(&[]),
            labels(&[("team", "sales")]),
            labels(&[("team", "support"), ("env", "test")]),
            labels(&[("team", "sales"), ("env", "test")]),
            labels(&[("env", "production")]),
        ];
        let (mut selected, mut unselected) = (0, 0);
        for selector in &selectors {
            let reference: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector =
                serde_json::from_value(selector.clone()).unwrap();
            let reference = kube::core::Selector::try_from(reference).unwrap();
            let declared = proxy_address("sales", 0, &json!({"namespaces": {"selector": selector}}));
            for labels in &namespaces {
                let expected = kube::core::SelectorExt::matches(&reference, labels);
                assert_eq!(grant(Some(&declared), Some(labels)) == Grant::Granted, expected, "{selector} {labels:?}");
                *if expected { &mut selected } else { &mut unselected } += 1;
            }
        }
        assert!(selected > 5 && unselected > 5, "{selected} and {unselected}");
    }

    #[test]
    fn grant_depends_on_the_declaration_and_on_whether_one_is_required() {
        let open = proxy_address("sales", 0, &json!({}));
        let closed = proxy_address("sales", 0, &json!({"namespaces": {"selector": {"matchLabels": {"a": "b"}}}}));
        assert_eq!(grant(Some(&open), None), Grant::Granted, "every namespace is selected");
        assert_eq!(grant(Some(&closed), None), Grant::NotGranted("sales".into()), "the namespace is not known");
        assert_eq!(grant(None, Some(&labels(&[("a", "b")]))), Grant::Undeclared);
        assert!(Grant::Undeclared.allows(false) && !Grant::Undeclared.allows(true));
        assert!(Grant::Granted.allows(true) && !Grant::NotGranted(String::new()).allows(false));
    }

    #[test]
    fn status_tells_conflicts_and_invalid_specs() {
        use ConditionStatus::{False, True};
        let now = |second| Time::EPOCH.after(std::time::Duration::from_secs(second));
        let older = proxy_address("older", 0, &json!({}));
        let mut younger = proxy_address("younger", 1, &json!({}));
        let status_of =
            |one: &ProxyAddress, in_effect: &ProxyAddress, second| status(one, in_effect, None, now(second));
        let conflicted = status_of(&younger, &older, 1);
        let expected = [
            (Type::Accepted, False, Reason::Conflicted),
            (Type::Ready, False, Reason::Conflicted),
            (Type::Stalled, True, Reason::Conflicted),
        ];
        assert_eq!(reasons(&conflicted), expected);
        assert!(conflicted.conditions[0].message.contains("ProxyAddress older is older"));
        younger.status = Some(conflicted);
        let accepted = status_of(&younger, &younger, 2);
        assert_eq!(reasons(&accepted), [(Type::Accepted, True, Reason::Accepted), (Type::Ready, True, Reason::Ready)]);
        younger.status = Some(accepted.clone());
        assert_eq!(status_of(&younger, &younger, 9), accepted, "the transition times stay");
        let misspelled = proxy_address("sales", 0, &json!({"address": "+1 501 712 2661"}));
        let invalid = status_of(&misspelled, &misspelled, 1);
        assert_eq!(reasons(&invalid)[0], (Type::Accepted, False, Reason::Invalid));
        assert!(invalid.conditions[0].message.starts_with("spec.address must be an E.164 number"), "{invalid:?}");
    }

    #[test]
    fn autocreate_needs_a_selected_namespace() {
        let inbound = json!({
            "sources": ["twilio"], "sink": {"uri": "http://desk.sales.svc"}, "autocreate": {"namespace": "sales"}
        });
        let selector = json!({"matchLabels": {"team": "sales"}});
        let one = proxy_address("sales", 0, &json!({"inbound": inbound, "namespaces": {"selector": selector}}));
        let reason = |labels: Option<&Labels>| reasons(&status(&one, &one, labels, Time::EPOCH))[0].2;
        assert_eq!(reason(Some(&labels(&[("team", "sales")]))), Reason::Accepted);
        assert_eq!(reason(Some(&labels(&[("team", "support")]))), Reason::Invalid);
        assert_eq!(reason(None), Reason::Invalid, "there is no such namespace");
    }
}
