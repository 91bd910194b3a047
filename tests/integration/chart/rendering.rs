//! The chart as helm renders it, without a cluster: the cases in `tests/testdata/chart`, and properties that hold in all of them.

use crate::common::chart::{CHART, Case, assert_generated, documents, helm, title};
use crate::common::{fail, succeed};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn helm_lint_accepts_every_case() {
    for case in Case::all() {
        succeed(helm().args(["lint", "--strict", CHART, "--values"]).arg(case.values()));
    }
}

#[test]
fn each_case_matches_its_snapshot() {
    for case in Case::all() {
        assert_generated(&case.snapshot(), &case.render(&["--set", "crds.enabled=false"]));
    }
}

#[test]
fn rendered_crds_match_the_types() {
    let objects = Case::named("defaults").objects();
    let crds = objects.into_iter().filter(|object| object["kind"] == "CustomResourceDefinition");
    let mut crds: Vec<CustomResourceDefinition> = crds.map(|crd| serde_json::from_value(crd).unwrap()).collect();
    crds.sort_by_key(|crd| crd.spec.names.plural.clone());
    let mut generated = switchboard::api::crds().unwrap();
    generated.sort_by_key(|crd| crd.spec.names.plural.clone());
    assert_eq!(crds.len(), generated.len());
    for (rendered, generated) in crds.iter().zip(generated) {
        assert_eq!(rendered.spec, generated.spec);
    }
}

/// Every object of these kinds in all cases, with a title that names its case.
fn objects(kinds: &[&str]) -> Vec<(String, Value)> {
    let cases = Case::all().into_iter().flat_map(|case| {
        case.objects().into_iter().map(move |object| (format!("{}: {}", case.name, title(&object)), object))
    });
    let objects: Vec<_> = cases.filter(|(_, object)| kinds.contains(&object["kind"].as_str().unwrap())).collect();
    assert!(!objects.is_empty());
    objects
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn no_role_has_a_wildcard() {
    for (title, role) in objects(&["ClusterRole", "Role"]) {
        for rule in role["rules"].as_array().unwrap() {
            for part in ["apiGroups", "resources", "verbs", "resourceNames"] {
                assert!(!words(&rule[part]).iter().any(|word| word.contains('*')), "{title}: {rule}");
            }
            assert!(rule.get("nonResourceURLs").is_none(), "{title}: {rule}");
        }
    }
}

#[test]
fn each_rule_of_a_role_has_a_comment_with_its_reason() {
    let mut rules = 0;
    for case in Case::all() {
        for document in case.render(&["--set", "crds.enabled=false"]).split("\n---") {
            if document.contains("\nrules:\n  ") && document.contains("rbac.authorization.k8s.io/v1") {
                let lines: Vec<_> = document.lines().collect();
                for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("  - apiGroups:")) {
                    let before = lines[number - 1].trim_start();
                    let shares_the_reason = before.starts_with("verbs:") && lines[number - 2].contains("secrets");
                    assert!(before.starts_with('#') || shares_the_reason, "{}: no reason before {line}", case.name);
                    rules += 1;
                }
            }
        }
    }
    assert!(rules > 50, "{rules}");
}

/// Rules for objects with a fixed name are limited by `resourceNames`, except for `create`: RBAC decides it before the name is known.
#[test]
fn rules_for_known_objects_have_resource_names() {
    let mut bounded = 0;
    for (title, role) in objects(&["ClusterRole", "Role"]) {
        for rule in role["rules"].as_array().unwrap() {
            let known = ["secrets", "leases", "validatingwebhookconfigurations"];
            if words(&rule["resources"]).iter().any(|resource| known.contains(resource)) {
                let by_name = words(&rule["resourceNames"]).len() == 1;
                assert!(by_name || words(&rule["verbs"]) == ["create"], "{title}: {rule}");
                bounded += 1;
            }
        }
    }
    assert!(bounded > 10, "{bounded}");
}

/// The operator may read and write Secrets and the webhook configuration only if it manages its certificate itself.
#[test]
fn external_certificate_needs_fewer_permissions() {
    let may = |case: &str, resource: &str| {
        Case::named(case)
            .objects()
            .iter()
            .filter(|object| object["kind"] == "Role" || object["kind"] == "ClusterRole")
            .any(|role| {
                role["rules"].as_array().unwrap().iter().any(|rule| words(&rule["resources"]).contains(&resource))
            })
    };
    for resource in ["secrets", "validatingwebhookconfigurations"] {
        assert!(may("defaults", resource));
        assert!(!may("cert-manager", resource) && !may("elsewhere", resource));
    }
}

#[test]
fn webhook_intercepts_only_creates_and_fails_closed() {
    for (title, configuration) in objects(&["ValidatingWebhookConfiguration"]) {
        let [webhook] = &configuration["webhooks"].as_array().unwrap()[..] else { panic!("{title}") };
        let [rule] = &webhook["rules"].as_array().unwrap()[..] else { panic!("{title}") };
        assert_eq!(
            (words(&rule["operations"]), words(&rule["resources"])),
            (vec!["CREATE"], vec!["conversations"]),
            "{title}"
        );
        assert_eq!(webhook["failurePolicy"], "Fail", "{title}");
        assert_eq!(webhook["sideEffects"], "NoneOnDryRun", "{title}");
        assert!(webhook.get("namespaceSelector").is_none() && webhook.get("objectSelector").is_none(), "{title}");
    }
}

/// Every selector matches the pods of the Deployment, and every port that an object names exists in them.
#[test]
fn selectors_and_named_ports_match_the_pods() {
    for case in Case::all().into_iter().filter(|case| case.name != "elsewhere") {
        let objects = case.objects();
        let pod = &objects.iter().find(|object| object["kind"] == "Deployment").unwrap()["spec"]["template"];
        let labels = pod["metadata"]["labels"].as_object().unwrap();
        let finds =
            |selector: &Value| selector.as_object().unwrap().iter().all(|(key, value)| labels.get(key) == Some(value));
        let ports = pod["spec"]["containers"][0]["ports"].as_array().unwrap();
        let has = |port: &Value| ports.iter().any(|has| has["name"] == *port || has["containerPort"] == *port);
        for object in &objects {
            let spec = &object["spec"];
            match object["kind"].as_str().unwrap() {
                "Service" => {
                    assert!(finds(&spec["selector"]), "{}: {}", case.name, title(object));
                    assert!(has(&spec["ports"][0]["targetPort"]), "{}: {}", case.name, title(object));
                }
                "PodDisruptionBudget" | "Deployment" => {
                    assert!(finds(&spec["selector"]["matchLabels"]), "{}", case.name);
                }
                "NetworkPolicy" => {
                    assert!(finds(&spec["podSelector"]["matchLabels"]), "{}", case.name);
                    let rules = spec["ingress"].as_array().unwrap();
                    assert!(rules.iter().all(|rule| has(&rule["ports"][0]["port"])), "{}", case.name);
                }
                _ => {}
            }
        }
        for probe in ["livenessProbe", "readinessProbe"] {
            assert!(has(&pod["spec"]["containers"][0][probe]["httpGet"]["port"]), "{}", case.name);
        }
    }
}

/// Labels and names identify the release of each object, so that users can find objects that a release left behind.
#[test]
fn every_object_has_the_labels_of_the_release() {
    for case in Case::all() {
        let objects = case.objects();
        for object in &objects {
            let labels = &object["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/instance"], "switchboard", "{}: {}", case.name, title(object));
            assert_eq!(labels["app.kubernetes.io/managed-by"], "Helm", "{}: {}", case.name, title(object));
        }
        let titles: BTreeSet<_> = objects.iter().map(title).collect();
        assert_eq!(titles.len(), objects.len(), "{}: two objects have the same kind and name", case.name);
    }
}

#[test]
fn unknown_and_contradictory_values_are_rejected_with_a_remedy() {
    for (value, words) in [
        ("webhook.prot=1", &["webhook", "prot"][..]),
        ("replicas=0", &["replicas"]),
        ("webhook.url=http://10.0.0.1/admit", &["webhook/url"]),
        ("webhook.url=https://10.0.0.1:9443", &["webhook/url"]),
        ("deployment.enabled=false", &["webhook.url", "must say where"]),
        ("webhook.caBundle=QQ==", &["leave it empty", "deployment.enabled"]),
        ("webhook.drainDelay=0s", &["drainDelay"]),
        ("webhook.certificateLife=99999h", &["certificateLife"]),
        ("certManager.issuerRef.kind=ClusterIssuer", &["issuerRef"]),
        ("tracing.otlpEndpoint=https://collector:4318", &["otlpEndpoint"]),
        ("gracePeriod=39s", &["gracePeriod"]),
        ("defaults.timers.closeAfter=1d", &["defaults/timers/closeAfter"]),
        ("defaults.timers.inactiveAfter=30", &["defaults/timers/inactiveAfter"]),
        ("defaults.delay=9m", &["defaults/delay"]),
        ("leaseDuration=4s", &["leaseDuration"]),
        ("leaseDuration=15", &["leaseDuration"]),
        ("image.digest=latest", &["image/digest"]),
        ("health.port=70000", &["health/port"]),
    ] {
        let complaint = fail(helm().args(["template", "switchboard", CHART, "--set", value]));
        for word in words {
            assert!(complaint.contains(word), "{value}: {word} is missing in {complaint}");
        }
    }
}

/// The pod spec of the Deployment, rendered from the default values and these arguments.
fn pod_with(arguments: &[&str]) -> Value {
    let objects = documents(&Case::named("defaults").render(arguments));
    let deployment = objects.into_iter().find(|object| object["kind"] == "Deployment");
    deployment.unwrap()["spec"]["template"]["spec"].clone()
}

/// The scheduler does not score a node that lacks a topology key of the pod's constraints. Every node has a hostname, but some nodes
/// have no zone.
#[test]
fn replicas_spread_by_hostname_on_nodes_without_a_zone() {
    let pod = pod_with(&[]);
    let [constraint] = &pod["topologySpreadConstraints"].as_array().unwrap()[..] else { panic!("{pod}") };
    assert_eq!(constraint["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(constraint["whenUnsatisfiable"], "ScheduleAnyway", "all replicas run on a single node");
    let affinity = pod["affinity"]["podAntiAffinity"].as_object().unwrap();
    assert_eq!(affinity.keys().collect::<Vec<_>>(), ["preferredDuringSchedulingIgnoredDuringExecution"]);
    let [zone] = &affinity.values().next().unwrap().as_array().unwrap()[..] else { panic!("{pod}") };
    assert_eq!(zone["podAffinityTerm"]["topologyKey"], "topology.kubernetes.io/zone");
    for term in [constraint, &zone["podAffinityTerm"]] {
        assert_eq!(words(&term["matchLabelKeys"]), ["pod-template-hash"], "pods of other revisions do not count");
    }
}

#[test]
fn spread_in_the_values_replaces_the_default() {
    const SPREAD: &str =
        r#"topologySpreadConstraints=[{"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]"#;
    const NODE: &str = r#"affinity={"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}"#;
    let pod = pod_with(&["--set-json", NODE]);
    assert!(pod["affinity"]["nodeAffinity"].is_object() && pod["affinity"]["podAntiAffinity"].is_object(), "{pod}");
    let pod = pod_with(&["--set-json", r#"affinity={"podAntiAffinity": {}}"#]);
    assert_eq!(pod["affinity"], serde_json::json!({"podAntiAffinity": {}}));
    let pod = pod_with(&["--set-json", SPREAD]);
    let [constraint] = &pod["topologySpreadConstraints"].as_array().unwrap()[..] else { panic!("{pod}") };
    assert_eq!((&constraint["topologyKey"], pod.get("affinity")), (&"rack".into(), None));
}

/// The CRI rejects a sandbox with a group but without a user. For a container, the kubelet takes the user from the image.
#[test]
fn group_is_set_on_the_containers_and_not_on_the_pod() {
    for (title, object) in objects(&["Deployment"]) {
        let pod = &object["spec"]["template"]["spec"];
        assert!(pod["securityContext"].get("runAsGroup").is_none(), "{title}");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!((&context["runAsGroup"], context.get("runAsUser")), (&65532.into(), None), "{title}");
        }
    }
}

/// All pods run the same image, and a digest takes precedence over the tag.
#[test]
fn image_follows_the_values() {
    let image = |case: &str| {
        let objects = documents(&Case::named(case).render(&[]));
        let specs = objects.iter().filter_map(|object| match object["kind"].as_str().unwrap() {
            "Deployment" => Some(&object["spec"]["template"]["spec"]),
            "Pod" => Some(&object["spec"]),
            _ => None,
        });
        let images: BTreeSet<_> =
            specs.map(|spec| spec["containers"][0]["image"].as_str().unwrap().to_owned()).collect();
        assert_eq!(images.len(), 1, "{images:?}");
        images.into_iter().next().unwrap()
    };
    assert_eq!(image("defaults"), format!("localhost/switchboard:{}", env!("CARGO_PKG_VERSION")));
    let pinned = image("everything");
    assert!(pinned.starts_with("registry.example/switchboard:0.1.0-rc.1@sha256:"), "{pinned}");
}

/// Every flag of `switchboard run` has an environment variable that the chart sets, and the chart sets no other variable.
#[test]
fn chart_sets_every_flag_of_run() {
    let help = succeed(Command::new(env!("CARGO_BIN_EXE_switchboard")).args(["run", "--help"]));
    let flags = help.lines().filter(|line| line.trim_start().starts_with("--")).count();
    let named: Vec<_> = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap()).collect();
    assert_eq!(flags, named.len(), "a flag has no environment variable: {named:?}");

    let mut set = BTreeSet::new();
    for (_, deployment) in objects(&["Deployment"]) {
        let environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        set.extend(environment.into_iter().map(|variable| variable["name"].as_str().unwrap().to_owned()));
    }
    // These flags are for tests: they can break the guarantee, or close conversations by mistake.
    let is_in_the_chart = |name: &&&str| !name.starts_with("SWITCHBOARD_UNSAFE_");
    let known: BTreeSet<_> = named.iter().filter(is_in_the_chart).map(|name| (*name).to_owned()).collect();
    assert_eq!(set, known);
}
