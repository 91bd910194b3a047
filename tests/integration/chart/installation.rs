//! The chart on a real API server: the server accepts every rendering, the pods pass the "restricted" Pod Security Standard, and
//! neither an upgrade nor an uninstall leaves an object that blocks creates.

use crate::common::chart::{CHART, Case, NAMESPACE, documents, title};
use crate::common::cluster::TIMEOUT;
use crate::common::{eventually, fail, succeed};
use control_plane::ControlPlane;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

/// A control plane that is started on first use. It is `None` if the start failed, so that no other test tries again.
type OnDemand = OnceLock<Option<ControlPlane>>;

/// Nothing is stored here, so that a dry run does not see objects of another test.
static FOR_DRY_RUNS: OnDemand = OnDemand::new();
/// Only one test uses it: the one that installs releases.
static FOR_RELEASES: OnDemand = OnDemand::new();

/// A control plane with the CRDs of other projects and the namespaces that the cases name, without any object of switchboard.
fn control_plane(on_demand: &'static OnDemand) -> &'static ControlPlane {
    let start = || {
        let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
        let others = "tests/testdata/crds-of-others.yaml";
        succeed(control_plane.kubectl().args(["apply", "--server-side", "--filename", others]));
        succeed(control_plane.kubectl().args(["wait", "--for=condition=Established", "--filename", others]));
        for kind in ["certificates", "httproutes", "issuers", "servicemonitors", "prometheusrules"] {
            eventually(control_plane.kubectl().args(["explain", kind]));
        }
        // The second one is that in which a case lets the router create conversations.
        for namespace in [NAMESPACE, "sales"] {
            succeed(control_plane.kubectl().args(["create", "namespace", namespace]));
        }
        control_plane
    };
    let control_plane = on_demand.get_or_init(|| std::panic::catch_unwind(start).ok());
    control_plane.as_ref().expect("a control plane: see the first test that failed")
}

/// Writes a file with these objects.
fn manifest(name: &str, objects: &[Value]) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
    path
}

#[test]
fn api_server_accepts_every_rendered_case() {
    for case in Case::all() {
        // The rendering includes the pods of `helm test`.
        let objects = documents(&case.render(&[]));
        let path = manifest(&format!("{}.json", case.name), &objects);
        let mut kubectl = control_plane(&FOR_DRY_RUNS).kubectl();
        // With strict validation an unknown field is an error.
        kubectl.args(["apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename"]);
        let answer = succeed(kubectl.arg(path));
        assert_eq!(answer.lines().count(), objects.len(), "{answer}");
    }
}

/// Pod Security admission decides, in a namespace that enforces "restricted". The standard forbids the host network, so the test turns
/// it off and checks all other fields.
#[test]
fn pods_pass_the_restricted_pod_security_standard() {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "restricted", "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
    }});
    succeed(
        control_plane(&FOR_DRY_RUNS)
            .kubectl()
            .args(["apply", "--filename"])
            .arg(manifest("restricted.json", &[namespace])),
    );
    let create = |name: &str, mut spec: Value| {
        spec["hostNetwork"] = json!(false);
        let metadata = json!({"name": "pod", "namespace": "restricted"});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        let mut kubectl = control_plane(&FOR_DRY_RUNS).kubectl();
        kubectl.args(["create", "--dry-run=server", "--validate=strict", "--filename"]).arg(manifest(name, &[pod]));
        kubectl
    };
    let mut checked = BTreeSet::new();
    for case in Case::all() {
        for object in documents(&case.render(&[])) {
            let spec = match object["kind"].as_str().unwrap() {
                "Deployment" => &object["spec"]["template"]["spec"],
                "Pod" => &object["spec"],
                _ => continue,
            };
            let mut spec = spec.clone();
            succeed(&mut create("pod.json", spec.clone()));
            spec["securityContext"]["runAsNonRoot"] = json!(false);
            let refusal = fail(&mut create("pod-as-root.json", spec));
            assert!(refusal.contains("violates PodSecurity"), "{}: {refusal}", case.name);
            checked.insert(case.name.clone());
        }
    }
    // One case has no pod.
    assert_eq!(checked.len(), Case::all().len() - 1, "{checked:?}");
}

/// The objects with the labels of the release, of every kind except our own: our objects do not have these labels, and discovery may
/// still list a kind that has just been removed.
fn found() -> BTreeSet<String> {
    let kinds = kubectl(&["api-resources", "--verbs=list", "--output=name"]);
    let kinds: Vec<_> = kinds.lines().filter(|kind| !kind.ends_with(".switchboard.dev")).collect();
    let kinds = kinds.join(",");
    let mut kubectl = control_plane(&FOR_RELEASES).kubectl();
    kubectl.args(["get", &kinds, "--all-namespaces", "--ignore-not-found", "--output=json"]);
    let list = succeed(kubectl.arg("--selector=app.kubernetes.io/instance=switchboard"));
    // kubectl prints nothing if it finds nothing.
    let list: Value = serde_json::from_str(&list).unwrap_or(Value::Null);
    list["items"].as_array().into_iter().flatten().map(title).collect()
}

fn helm(arguments: &[&str]) {
    let mut helm = control_plane(&FOR_RELEASES).helm().unwrap_or_else(|error| panic!("{error}"));
    succeed(helm.args(arguments).args(["--namespace", NAMESPACE]));
}

/// Installs or upgrades the release, with more arguments. Without `--reset-values`, an upgrade that sets no values keeps the previous
/// ones.
fn release(case: &Case, arguments: &[&str]) {
    let values = case.values();
    let upgrade =
        ["upgrade", "--install", "--reset-values", "switchboard", CHART, "--values", values.to_str().unwrap()];
    helm(&[&upgrade, arguments].concat());
}

fn kubectl(arguments: &[&str]) -> String {
    succeed(control_plane(&FOR_RELEASES).kubectl().args(arguments))
}

/// Waits until the API server refuses a create because the webhook does not answer. The server reads a new webhook configuration with
/// a delay.
fn wait_until_webhook_blocks(conversation: &Path) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut create = control_plane(&FOR_RELEASES).kubectl();
        create.args(["create", "--dry-run=server", "--filename"]).arg(conversation);
        let output = create.output().unwrap();
        if String::from_utf8_lossy(&output.stderr).contains("failed calling webhook") {
            return;
        }
        assert!(Instant::now() < deadline, "the webhook does not block: {output:?}");
    }
}

/// No version of the chart has been released yet, so the upgrades go from each case to the next one.
#[test]
fn upgrade_and_uninstall_keep_data_and_do_not_block_creates() {
    let cases = Case::all();
    let titles = |case: &Case| case.objects().iter().map(title).collect::<BTreeSet<_>>();
    for case in cases.iter().chain(&cases[..1]) {
        release(case, &[]);
        assert_eq!(found(), titles(case), "after an upgrade to {}", case.name);
    }

    // An upgrade keeps the fields that the operator wrote into objects of the release.
    release(&Case::named("defaults"), &[]);
    let authority = control_plane::Authority::new("test").unwrap();
    let ca = data_encoding::BASE64.encode(authority.certificate().as_bytes());
    let patch = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": ca}]).to_string();
    kubectl(&["patch", "validatingwebhookconfiguration", "switchboard", "--type=json", "--patch", &patch]);
    // A user deletes the Secret to get new keys, and the operator creates it again.
    kubectl(&["delete", "secret", "switchboard-webhook-tls", "--namespace", NAMESPACE]);
    let made = ["create", "secret", "generic", "switchboard-webhook-tls", "--from-literal=tls.key=key"];
    kubectl(&[&made[..], &["--namespace", NAMESPACE]].concat());
    release(&Case::named("metrics-off"), &[]);
    let written = "--output=jsonpath={.webhooks[0].clientConfig.caBundle}";
    assert_eq!(kubectl(&["get", "validatingwebhookconfiguration", "switchboard", written]), ca);
    let written = "--output=jsonpath={.data.tls\\.key}";
    assert_eq!(kubectl(&["get", "secret", "switchboard-webhook-tls", "--namespace", NAMESPACE, written]), "a2V5");

    // An uninstall keeps the CRDs and their objects, and nothing blocks creates.
    let conversation = manifest(
        "conversation.json",
        &[json!({
            "apiVersion": "switchboard.dev/v1alpha1", "kind": "Conversation",
            "metadata": {"name": "alice", "namespace": NAMESPACE},
            "spec": {"channel": "Chat", "contact": {"address": "alice"}, "proxy": {"address": "shop"}},
        })],
    );
    wait_until_webhook_blocks(&conversation);
    helm(&["uninstall", "switchboard"]);
    let kept = ["addressbindings", "conversations", "proxyaddresses"]
        .map(|kind| format!("CustomResourceDefinition/{kind}.switchboard.dev"));
    assert_eq!(found(), kept.into());
    eventually(control_plane(&FOR_RELEASES).kubectl().args(["create", "--filename"]).arg(&conversation));

    // The release is installed again over the CRDs, then uninstalled with them because `crds.keep` is false.
    release(&Case::named("defaults"), &["--set", "crds.keep=false", "--take-ownership"]);
    assert_eq!(
        kubectl(&["get", "conversations", "--namespace", NAMESPACE, "--output=name"]),
        "conversation.switchboard.dev/alice\n"
    );
    helm(&["uninstall", "switchboard"]);
    assert_eq!(found(), BTreeSet::new());
}
