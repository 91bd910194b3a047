//! The statuses of the ProxyAddresses: which of them may be outdated, and the plan for one.

use super::plan::{Job, Plan};
use crate::api::{ProxyAddress, ProxyAddressStatus, Time};
use crate::core::proxy_address::{Labels, status};
use crate::index::Task;
use crate::proxy_addresses::Catalog;

/// A write of the status of a ProxyAddress. The version that the decision is based on is its precondition.
#[derive(Debug)]
pub struct ProxyAddressWrite {
    /// The name of the ProxyAddress.
    pub name: String,
    /// The version that the decision is based on.
    pub version: String,
    /// The status.
    pub status: ProxyAddressStatus,
}

/// The tasks of the ProxyAddresses whose status may have to change, because something that it depends on differs between the two
/// catalogs. Without `before`, these are all.
pub fn affected(before: Option<&Catalog>, after: &Catalog) -> Vec<Task> {
    let is_affected = |proxy_address: &&ProxyAddress| {
        let is_same = |before: &Catalog| {
            let inputs = [before, after].map(|catalog| inputs(catalog, proxy_address));
            let [(before, in_effect_before, labels_before), (after, in_effect_after, labels_after)] = inputs;
            is_same(before, after) && is_same(in_effect_before, in_effect_after) && labels_before == labels_after
        };
        !before.is_some_and(is_same)
    };
    after.all().filter(is_affected).map(task).collect()
}

/// The task of a ProxyAddress.
fn task(proxy_address: &ProxyAddress) -> Task {
    Task::ProxyAddress(proxy_address.metadata.name.as_deref().unwrap_or_default().into())
}

/// The objects that the status of a ProxyAddress depends on: its stored one, the one that is in effect for its address, and the labels
/// of the namespace in which messages create conversations.
fn inputs<'a>(
    catalog: &'a Catalog,
    proxy_address: &ProxyAddress,
) -> (Option<&'a ProxyAddress>, Option<&'a ProxyAddress>, Option<&'a Labels>) {
    let spec = &proxy_address.spec;
    let autocreate = spec.inbound.as_ref().and_then(|inbound| inbound.autocreate.as_ref());
    (
        catalog.get(proxy_address.metadata.name.as_deref().unwrap_or_default()),
        catalog.in_effect(spec.channel, &spec.address),
        autocreate.and_then(|autocreate| catalog.labels(&autocreate.namespace)),
    )
}

/// Whether both are the same version in memory. Catalogs share the objects that have not changed.
fn is_same(before: Option<&ProxyAddress>, after: Option<&ProxyAddress>) -> bool {
    before.map(std::ptr::from_ref) == after.map(std::ptr::from_ref)
}

/// The plan for the ProxyAddress of this name.
pub fn plan_proxy_address(catalog: &Catalog, name: &str, now: Time) -> Plan {
    let nothing = Plan::Wait { until: None, blocked_on: Vec::new() };
    let Some(proxy_address) = catalog.get(name) else { return nothing };
    let (_, in_effect, labels) = inputs(catalog, proxy_address);
    let status = status(proxy_address, in_effect.unwrap_or(proxy_address), labels, now);
    if proxy_address.status.as_ref() == Some(&status) {
        return nothing;
    }
    let version = proxy_address.metadata.resource_version.clone().unwrap_or_default();
    Plan::Run(Job::WriteProxyAddress(Box::new(ProxyAddressWrite { name: name.to_owned(), version, status })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn proxy_address(name: &str, address: &str, second: u8) -> ProxyAddress {
        let created = format!("2026-11-24T10:00:{second:02}Z");
        let metadata = json!({"name": name, "resourceVersion": "7", "generation": 1, "creationTimestamp": created});
        let spec = json!({"channel": "SMS", "address": address});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn names(tasks: &[Task]) -> Vec<String> {
        let mut names: Vec<_> = tasks.iter().map(ToString::to_string).collect();
        names.sort();
        names
    }

    fn write(catalog: &Catalog, name: &str) -> Option<ProxyAddressStatus> {
        match plan_proxy_address(catalog, name, Time::EPOCH) {
            Plan::Run(Job::WriteProxyAddress(write)) => Some(write.status),
            _ => None,
        }
    }

    #[test]
    fn proxy_address_is_planned_until_its_status_is_stored() {
        let mut sales = proxy_address("sales", "+15017122661", 0);
        let catalog: Catalog = [sales.clone()].into_iter().collect();
        assert_eq!(names(&affected(None, &catalog)), ["ProxyAddress sales"]);
        sales.status = write(&catalog, "sales");
        assert!(sales.status.is_some());
        let written: Catalog = [sales].into_iter().collect();
        assert_eq!(names(&affected(Some(&catalog), &written)), ["ProxyAddress sales"]);
        assert_eq!(write(&written, "sales"), None);
        assert_eq!(write(&written, "gone"), None);
    }

    #[test]
    fn only_those_whose_inputs_changed_are_planned_again() {
        let [older, younger, other] = [
            proxy_address("older", "+15017122661", 0),
            proxy_address("younger", "+15017122661", 1),
            proxy_address("other", "+15017122662", 0),
        ];
        let catalog: Catalog = [older, younger, other].into_iter().collect();
        assert_eq!(affected(Some(&catalog), &catalog.clone()), []);
        let without = catalog.without("older");
        assert_eq!(names(&affected(Some(&catalog), &without)), ["ProxyAddress younger"]);
    }
}
