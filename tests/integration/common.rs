//! Helpers for the tests that need a real API server.

pub mod book;
pub mod chart;
pub mod cluster;
pub mod creates;
pub mod etcd;
pub mod fake_webhook;
pub mod fault_cluster;
pub mod gitops;
pub mod https;
pub mod oracle;
pub mod proxy;
pub mod recorder;
pub mod routing;
pub mod sink;
pub mod webhook_client;

use control_plane::ControlPlane;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// One control plane with the CRDs of `crds/`, for all tests of a process.
pub fn shared_control_plane() -> &'static ControlPlane {
    // If the start fails for the first test, the other tests do not try again.
    static CONTROL_PLANE: OnceLock<Option<ControlPlane>> = OnceLock::new();
    let control_plane = CONTROL_PLANE.get_or_init(|| std::panic::catch_unwind(start).ok());
    control_plane.as_ref().expect("no control plane: see the first test that failed")
}

fn start() -> ControlPlane {
    let control_plane = ControlPlane::builder().start().unwrap_or_else(|error| panic!("{error}"));
    install_crds(&control_plane);
    install_warnings(&control_plane);
    control_plane
}

/// Installs the policies of the chart that warn. They need nothing else of the chart.
fn install_warnings(control_plane: &ControlPlane) {
    let mut helm = chart::helm();
    helm.args(["template", "switchboard", chart::CHART]);
    for policy in ["closed", "closed-binding", "ttl", "ttl-binding"] {
        helm.arg(format!("--show-only=templates/admission/policy-{policy}.yaml"));
    }
    let policies = control_plane.data_dir().join("policies.yaml");
    std::fs::write(&policies, succeed(&mut helm)).unwrap();
    succeed(control_plane.kubectl().args(["apply", "--filename"]).arg(policies));

    // The API server enforces a policy a moment later.
    let probe = r#"{"apiVersion": "switchboard.dev/v1alpha1", "kind": "Conversation", "metadata": {"name": "probe"},
        "spec": {"channel": "Chat", "proxy": {"address": "desk"}}}"#;
    let manifest = control_plane.data_dir().join("probe.yaml");
    std::fs::write(&manifest, probe).unwrap();
    succeed(control_plane.kubectl().args(["create", "--filename"]).arg(manifest));
    let patch = ["patch", "conversation", "probe", "--type=merge"];
    succeed(
        control_plane.kubectl().args(patch).args(["--subresource=status", r#"--patch={"status":{"state":"Closed"}}"#]),
    );
    for (change, warning) in [
        (r#"{"spec":{"timers":{"closeAfter":"1h"}}}"#, "50377: "),
        (
            r#"{"metadata":{"labels":{"argocd.argoproj.io/instance":"desk"}},"spec":{"ttlAfterClosed":"1h"}}"#,
            "spec.ttlAfterClosed ",
        ),
    ] {
        let change = format!("--patch={change}");
        await_warning(control_plane.kubectl().args(patch).args([&change, "--dry-run=server"]), warning);
    }
    succeed(control_plane.kubectl().args(["delete", "conversation", "probe"]));
}

/// Runs `command`, which must succeed, until it prints a warning that contains `text`, for half a minute.
pub fn await_warning(command: &mut Command, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let Output { status, stderr, .. } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = self::text(&stderr);
        assert!(status.success(), "{command:?}: {stderr}");
        if stderr.lines().any(|line| line.starts_with("Warning: ") && line.contains(text)) {
            return;
        }
        assert!(Instant::now() < deadline, "{command:?} does not warn of {text}: {stderr}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Installs the CRDs of `crds/`, and waits until the API server serves and documents them.
pub fn install_crds(control_plane: &ControlPlane) {
    let crds = "crds/";
    succeed(control_plane.kubectl().args(["apply", "--server-side", "--filename", crds]));
    succeed(control_plane.kubectl().args(["wait", "--for=condition=Established", "--timeout=30s", "--filename", crds]));
    // The API server serves a kind a moment after it is established, and documents it later still.
    for kind in ["conversations", "addressbindings", "proxyaddresses"] {
        eventually(control_plane.kubectl().args(["get", kind, "--all-namespaces"]));
        eventually(control_plane.kubectl().args(["explain", kind]));
    }
}

/// Runs `command`, which must succeed, and returns its standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs `command`, which must fail, and returns its standard error.
pub fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(!output.status.success(), "{command:?} succeeded: {}", text(&output.stdout));
    text(&output.stderr)
}

/// Repeats `command` until it succeeds, for at most half a minute.
pub fn eventually(command: &mut Command) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let Output { status, stderr, .. } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        if status.success() {
            return;
        }
        assert!(Instant::now() < deadline, "{command:?}: {}", text(&stderr));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An administrator's client of the shared control plane. Each test needs its own, since a connection belongs to a runtime.
pub async fn client() -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(shared_control_plane().kubeconfig()).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    kube::Client::try_from(config).unwrap()
}
