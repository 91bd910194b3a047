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

/// Every selector matches the pods of exactly one Deployment, and every port that an object names exists in them. So no Service of the
/// operator routes to the router, and conversely.
#[test]
fn selectors_and_named_ports_match_the_pods_of_one_deployment() {
    let mut pods_of_the_router = 0;
    for case in Case::all() {
        let objects = case.objects();
        let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        let pods: Vec<_> = of_kind("Deployment").map(|deployment| &deployment["spec"]["template"]).collect();
        let selects = |selector: &Value, labels: &Value| {
            let selector = selector.as_object().unwrap();
            !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let selected = |object: &Value, selector: &Value| -> &Value {
            let found: Vec<_> = pods.iter().filter(|pod| selects(selector, &pod["metadata"]["labels"])).collect();
            let [pod] = found[..] else {
                panic!("{}: {} selects {} Deployments", case.name, title(object), found.len())
            };
            pod
        };
        let has = |pod: &Value, port: &Value| {
            let ports = pod["spec"]["containers"][0]["ports"].as_array().unwrap();
            ports.iter().any(|has| has["name"] == *port || has["containerPort"] == *port)
        };
        for object in &objects {
            let spec = &object["spec"];
            match object["kind"].as_str().unwrap() {
                "Service" => {
                    let pod = selected(object, &spec["selector"]);
                    assert!(has(pod, &spec["ports"][0]["targetPort"]), "{}: {}", case.name, title(object));
                }
                "PodDisruptionBudget" | "Deployment" => {
                    selected(object, &spec["selector"]["matchLabels"]);
                }
                "NetworkPolicy" => {
                    let pod = selected(object, &spec["podSelector"]["matchLabels"]);
                    let rules = spec["ingress"].as_array().unwrap();
                    assert!(rules.iter().all(|rule| has(pod, &rule["ports"][0]["port"])), "{}", case.name);
                }
                "ServiceMonitor" => {
                    let selector = &spec["selector"]["matchLabels"];
                    let services: Vec<_> = of_kind("Service")
                        .filter(|service| selects(selector, &service["metadata"]["labels"]))
                        .collect();
                    let [service] = services[..] else { panic!("{}: {services:?}", title(object)) };
                    assert_eq!(service["spec"]["ports"][0]["name"], spec["endpoints"][0]["port"]);
                }
                _ => {}
            }
        }
        for pod in &pods {
            for probe in ["livenessProbe", "readinessProbe"] {
                assert!(has(pod, &pod["spec"]["containers"][0][probe]["httpGet"]["port"]), "{}", case.name);
            }
        }
        pods_of_the_router += pods.iter().filter(|pod| pod["spec"]["containers"][0]["name"] == "router").count();
    }
    assert!(pods_of_the_router > 1, "{pods_of_the_router}");
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
    // The router with one source of this type, and more values.
    let source = |type_: &str, more: &str| {
        let values =
            format!("router.enabled=true,router.sources.gateway.type={type_},router.sources.gateway.secretName=a");
        if more.is_empty() { values } else { format!("{values},{more}") }
    };
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
        ("events.sink.uri=conversations", &["events/sink"]),
        ("events.sink.service.name=crm", &["events/sink", "'namespace'"]),
        (
            "events.sink.uri=http://a,events.sink.service.name=b,events.sink.service.namespace=c",
            &["events.sink must have either uri or service", "remove one"],
        ),
        (
            "events.sink.service.name=switchboard-router,events.sink.service.namespace=default",
            &["events.sink.service must not be the router itself"],
        ),
        ("events.signing.secretName=a", &["no effect without events.sink", "remove them"]),
        ("events.sinkCA.configMap=a", &["no effect without events.sink", "remove them"]),
        (
            "events.sink.uri=https://a,events.sinkCA.configMap=a,events.sinkCA.secret=b",
            &["events.sinkCA must have either", "leave one of them empty"],
        ),
        (
            "events.sink.uri=http://a,deployment.enabled=false,webhook.url=https://10.0.0.1/admit",
            &["deployment.enabled", "--events-sink"],
        ),
        ("router.enabled=true", &["router.sources must have at least one source"]),
        ("router.sources.gateway.type=CloudEvents", &["router/sources/gateway", "secretName"]),
        (&source("SMS", ""), &["router/sources/gateway/type", "'CloudEvents'"]),
        (&source("Twilio", ""), &["router.sources.gateway.publicURL must be set", "/v1/sources/gateway"]),
        (&source("Meta", ""), &["router.deadLetterSink must be set for a source of type Meta"]),
        (&source("Twilio", "router.sources.gateway.publicURL=http://host/x"), &["sources/gateway/publicURL"]),
        (
            &source("CloudEvents", "router.sources.gateway.publicURL=https://host/x"),
            &["router.sources.gateway.publicURL is only for", "remove it"],
        ),
        (&source("CloudEvents", "router.sources.gateway.token=secret"), &["router/sources/gateway", "'token'"]),
        (&source("CloudEvents", "router.sources.Gateway.type=CloudEvents"), &["router/sources", "'Gateway'"]),
        (
            &source(
                "CloudEvents",
                "router.deadLetterSink.uri=http://a,router.deadLetterSink.service.name=b,router.deadLetterSink.service.namespace=c",
            ),
            &["either uri or service", "remove one"],
        ),
        (&source("CloudEvents", "router.deadLetterSink.uri=dead-letters"), &["router/deadLetterSink/uri"]),
        (
            &source("CloudEvents", "router.deadLetterSink.service.name=a"),
            &["router/deadLetterSink/service", "'namespace'"],
        ),
        (
            &source(
                "CloudEvents",
                "router.deadLetterSink.service.name=switchboard-router,router.deadLetterSink.service.namespace=default",
            ),
            &["must not be the router itself"],
        ),
        (
            &source("CloudEvents", "router.sinkCA.configMap=a,router.sinkCA.secret=b"),
            &["router.sinkCA", "leave one of them empty"],
        ),
        (&source("CloudEvents", "router.port=8080"), &["router.port and health.port must differ"]),
        (&source("CloudEvents", "router.drainDelay=0s"), &["router/drainDelay"]),
        (&source("CloudEvents", "router.ingress.enabled=true"), &["router.ingress.host must be set"]),
        (&source("CloudEvents", "router.httpRoute.enabled=true"), &["router.httpRoute.parentRefs must name a Gateway"]),
        (
            &source("CloudEvents", "router.autoscaling.enabled=true,router.autoscaling.minReplicas=11"),
            &["router.autoscaling.maxReplicas must be at least", "11"],
        ),
        (
            &source("CloudEvents", "router.autoscaling.enabled=true,router.resources.requests.cpu=null"),
            &["router.resources.requests.cpu must be set"],
        ),
        (&source("CloudEvents", "router.service.type=ExternalName"), &["router/service/type"]),
        (&source("CloudEvents", "router.autocreateNamespaces[0]=*"), &["router/autocreateNamespaces"]),
    ] {
        let complaint = fail(helm().args(["template", "switchboard", CHART, "--set", value]));
        for word in words {
            assert!(complaint.contains(word), "{value}: {word} is missing in {complaint}");
        }
    }
}

/// The Deployment with this name, rendered from the values of a case and these arguments.
fn deployment_with(case: &str, name: &str, arguments: &[&str]) -> Value {
    let mut objects = documents(&Case::named(case).render(arguments)).into_iter();
    objects.find(|object| title(object) == format!("Deployment/{name}")).unwrap()
}

/// The pod spec of the operator, rendered from the default values and these arguments.
fn pod_with(arguments: &[&str]) -> Value {
    deployment_with("defaults", "switchboard", arguments)["spec"]["template"]["spec"].clone()
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
fn chart_sets_every_flag_of_the_processes() {
    for command in ["run", "route"] {
        let help = succeed(Command::new(env!("CARGO_BIN_EXE_switchboard")).args([command, "--help"]));
        let flags = help.lines().filter(|line| line.trim_start().starts_with("--")).count();
        let named: Vec<_> = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap()).collect();
        assert_eq!(flags, named.len(), "a flag of {command} has no environment variable: {named:?}");

        let mut set = BTreeSet::new();
        for (_, deployment) in objects(&["Deployment"]) {
            let container = &deployment["spec"]["template"]["spec"]["containers"][0];
            if words(&container["args"]) == [command] {
                let environment = container["env"].as_array().unwrap();
                set.extend(environment.iter().map(|variable| variable["name"].as_str().unwrap().to_owned()));
            }
        }
        // These flags are for tests: they can break the guarantee, or close conversations by mistake.
        let is_in_the_chart = |name: &&&str| !name.starts_with("SWITCHBOARD_UNSAFE_");
        let known: BTreeSet<_> = named.iter().filter(is_in_the_chart).map(|name| (*name).to_owned()).collect();
        assert_eq!(set, known, "{command}");
    }
}

/// Router and operator have different accounts. No role of one is bound to the other, because the operator may write claims and delete
/// conversations.
#[test]
fn router_has_an_account_and_roles_of_its_own() {
    let mut accounts = BTreeSet::new();
    let mut bindings = BTreeSet::new();
    for (_, object) in objects(&["Deployment", "RoleBinding", "ClusterRoleBinding"]) {
        if object["kind"] == "Deployment" {
            let pod = &object["spec"]["template"]["spec"];
            let (arguments, account) = (&pod["containers"][0]["args"][0], &pod["serviceAccountName"]);
            accounts.insert(format!("{} {}", arguments.as_str().unwrap(), account.as_str().unwrap()));
            continue;
        }
        let role =
            format!("{}/{}", object["roleRef"]["kind"].as_str().unwrap(), object["roleRef"]["name"].as_str().unwrap());
        let [subject] = &object["subjects"].as_array().unwrap()[..] else { panic!("{object}") };
        let kind = object["kind"].as_str().unwrap();
        bindings.insert(format!("{kind} {role} {}", subject["name"].as_str().unwrap()));
    }
    assert_eq!(accounts, ["route switchboard-router", "run switchboard"].map(str::to_owned).into());
    let expected = [
        "ClusterRoleBinding ClusterRole/switchboard switchboard",
        "ClusterRoleBinding ClusterRole/switchboard-router switchboard-router",
        "RoleBinding ClusterRole/switchboard-router-create switchboard-router",
        "RoleBinding Role/switchboard switchboard",
    ];
    assert_eq!(bindings, expected.map(str::to_owned).into());
}

/// The router may create conversations only where a `RoleBinding` lets it, and reads no Secret by the API.
#[test]
fn router_may_only_read_report_activity_and_create() {
    for case in ["router", "everything"] {
        let permissions = |role: &str| -> Vec<String> {
            let objects = Case::named(case).objects();
            let role = objects.iter().find(|object| title(object) == format!("ClusterRole/{role}")).unwrap();
            let rules = role["rules"].as_array().unwrap().iter();
            rules
                .map(|rule| format!("{}: {}", words(&rule["resources"]).join(" "), words(&rule["verbs"]).join(" ")))
                .collect()
        };
        let everywhere = [
            "conversations: get list watch",
            "conversations/status: patch",
            "addressbindings: get list watch",
            "proxyaddresses: list watch",
            "namespaces: list watch",
        ];
        assert_eq!(permissions("switchboard-router"), everywhere, "{case}");
        assert_eq!(permissions("switchboard-router-create"), ["conversations: create"], "{case}");
    }
    let objects = documents(&Case::named("router").render(&["--set", "router.autocreateNamespaces={sales,support}"]));
    let bindings = objects.iter().filter(|object| title(object) == "RoleBinding/switchboard-router-create");
    let namespaces: Vec<_> = bindings.map(|binding| binding["metadata"]["namespace"].as_str().unwrap()).collect();
    assert_eq!(namespaces, ["sales", "support"]);
}

/// The value of a flag of this pod.
fn variable<'a>(pod: &'a Value, name: &str) -> &'a str {
    let mut variables = pod["containers"][0]["env"].as_array().unwrap().iter();
    let found = variables.find(|variable| variable["name"] == format!("SWITCHBOARD_{name}"));
    found.unwrap_or_else(|| panic!("no {name}"))["value"].as_str().unwrap()
}

/// The volume that this pod mounts at `path`. A rotated key needs no restart, so no Secret is under a `subPath`, which the kubelet does not
/// update.
fn volume_at<'a>(pod: &'a Value, path: &str) -> &'a Value {
    let mut mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap().iter();
    let mount = mounts.find(|mount| mount["mountPath"] == path).unwrap_or_else(|| panic!("nothing at {path}"));
    assert_eq!((&mount["readOnly"], mount.get("subPath")), (&true.into(), None), "{path}");
    pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == mount["name"]).unwrap()
}

/// The directory of the file that is the value of a flag.
fn directory_of<'a>(pod: &'a Value, name: &str) -> &'a str {
    variable(pod, name).rsplit_once('/').unwrap().0
}

/// The router gets each Secret at the path that is the name of the source. No Secret is in the environment, where it would never change.
#[test]
fn router_mounts_secrets_that_can_rotate() {
    let pod = &deployment_with("everything", "switchboard-router", &[])["spec"]["template"]["spec"];
    let variables = pod["containers"][0]["env"].as_array().unwrap();
    assert!(variables.iter().all(|variable| variable["value"].is_string()), "{variables:?}");
    for (source, secret) in [("twilio", "twilio"), ("meta", "meta"), ("gateway", "gateway")] {
        let volume = volume_at(pod, &format!("{}/{source}", variable(pod, "SECRETS_DIRECTORY")));
        assert_eq!(volume["secret"], serde_json::json!({"secretName": secret}), "all keys of the Secret");
    }
    let signing = volume_at(pod, variable(pod, "SIGNING_SECRETS_DIRECTORY"));
    assert_eq!(signing["secret"], serde_json::json!({"secretName": "router-signing"}));
    assert_eq!(volume_at(pod, directory_of(pod, "SOURCES_FILE"))["configMap"]["name"], "switchboard-router");
    let authorities = &volume_at(pod, directory_of(pod, "SINK_CA_FILE"))["configMap"];
    assert_eq!((&authorities["name"], &authorities["items"][0]["key"]), (&"platform-ca".into(), &"bundle.pem".into()));
    assert_eq!(variable(pod, "DEAD_LETTER_SINK"), "http://dead-letters.messaging.svc:8080/unknown");
}

#[test]
fn operator_mounts_the_secrets_of_its_sink() {
    let pod = &deployment_with("everything", "switchboard", &[])["spec"]["template"]["spec"];
    assert_eq!(variable(pod, "EVENTS_SINK"), "http://conversations.crm.svc:8080/events");
    let signing = volume_at(pod, variable(pod, "SIGNING_SECRETS_DIRECTORY"));
    assert_eq!(signing["secret"], serde_json::json!({"secretName": "events-signing"}), "all keys of the Secret");
    let authorities = &volume_at(pod, directory_of(pod, "SINK_CA_FILE"))["secret"];
    let expected =
        serde_json::json!({"secretName": "events-sink-ca", "items": [{"key": "bundle.pem", "path": "ca.crt"}]});
    assert_eq!(*authorities, expected);
}

/// The ports of the pods behind a Service may differ from its own, so without rules every TCP port is allowed.
#[test]
fn operator_may_connect_only_to_a_sink_that_is_set() {
    let egress = |arguments: &[&str]| {
        let objects = documents(&Case::named("defaults").render(arguments));
        let policy = objects.iter().find(|object| title(object) == "NetworkPolicy/switchboard").unwrap();
        policy["spec"]["egress"].as_array().unwrap().clone()
    };
    let every_tcp_port = serde_json::json!({"ports": [{"protocol": "TCP"}]});
    let with_sink = egress(&["--set", "events.sink.uri=https://crm.example/events"]);
    assert_eq!(egress(&[]).len(), 1, "only the API server");
    assert!(with_sink.len() == 3 && with_sink.contains(&every_tcp_port), "the sink and DNS too: {with_sink:?}");
    assert_eq!(egress(&["--set", "networkPolicy.eventsSink[0].ports[0].port=443"]).len(), 1);
}

/// The router reads its sources only when it starts. It reads the keys of a Secret again by itself.
#[test]
fn changed_source_replaces_the_pods_of_the_router() {
    let pods =
        |arguments: &[&str]| deployment_with("everything", "switchboard-router", arguments)["spec"]["template"].clone();
    let url = "router.sources.twilio.publicURL=https://inbound.example/other";
    assert_ne!(pods(&["--set", url]), pods(&[]));
    assert_eq!(pods(&["--set", "router.deadLetterSink.service.port=8080"]), pods(&[]));
}

/// A Deployment with a number of replicas would reset the number that the autoscaler has chosen, at each upgrade.
#[test]
fn autoscaler_alone_sets_the_number_of_routers() {
    let routers = |case: &str| deployment_with(case, "switchboard-router", &[])["spec"].get("replicas").cloned();
    assert_eq!((routers("router"), routers("everything")), (Some(2.into()), None));
    for (title, scaler) in objects(&["HorizontalPodAutoscaler"]) {
        assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], "switchboard-router", "{title}");
    }
}

/// A create of the router or of the self-check waits for the operator, so it must not occupy a seat that the operator needs for its answer.
#[test]
fn creates_of_conversations_are_not_at_the_operators_priority_level() {
    for case in ["router", "everything"] {
        let objects = Case::named(case).objects();
        let schemas = objects.iter().filter(|object| object["kind"] == "FlowSchema");
        let levels = schemas.map(|schema| {
            let account = &schema["spec"]["rules"][0]["subjects"][0]["serviceAccount"]["name"];
            let level = &schema["spec"]["priorityLevelConfiguration"]["name"];
            if schema["metadata"]["name"] == "switchboard-self-check" {
                let operator = objects.iter().find(|object| title(object) == "FlowSchema/switchboard").unwrap();
                let precedence = |schema: &Value| schema["spec"]["matchingPrecedence"].as_i64().unwrap();
                assert!(precedence(schema) < precedence(operator), "{case}: it must be matched first");
                let [of_check, of_operator] = [schema, operator].map(|schema| &schema["spec"]["rules"][0]);
                assert_eq!(of_check["subjects"], of_operator["subjects"], "{case}");
                let rule = &of_check["resourceRules"][0];
                assert_eq!((&rule["resources"][0], &rule["verbs"][0]), (&"conversations".into(), &"create".into()));
                assert_eq!(
                    rule["namespaces"][0],
                    operator["spec"]["rules"][0]["subjects"][0]["serviceAccount"]["namespace"]
                );
                return level.as_str().unwrap().to_owned();
            }
            assert!(
                objects
                    .iter()
                    .any(|object| title(object) == format!("PriorityLevelConfiguration/{}", level.as_str().unwrap()))
            );
            assert_eq!(level, account, "{case}");
            level.as_str().unwrap().to_owned()
        });
        assert_eq!(
            levels.collect::<BTreeSet<_>>(),
            ["switchboard", "switchboard-router", "workload-low"].map(str::to_owned).into()
        );
    }
}

/// The notes after an installation have the URL to set at each provider.
#[test]
fn notes_have_the_url_of_each_source() {
    let notes = |case: &str| {
        let mut helm = helm();
        helm.args(["install", "switchboard", CHART, "--dry-run=client", "--values"]).arg(Case::named(case).values());
        succeed(&mut helm).split("\nNOTES:\n").nth(1).unwrap().to_owned()
    };
    for line in [
        "  gateway (CloudEvents): https://inbound.example/v1/sources/gateway\n",
        "  meta (Meta): https://inbound.example/v1/sources/meta\n",
        "  twilio (Twilio): https://inbound.example/v1/sources/twilio#rc=5&rp=all\n",
    ] {
        assert!(notes("everything").contains(line), "{}", notes("everything"));
    }
    let alone = notes("router");
    for words in ["https://HOST/v1/sources/gateway", "port 80 of the Service switchboard-router", "answered with 404"] {
        assert!(alone.contains(words), "{alone}");
    }
    assert!(!notes("defaults").contains("router"));
}
