//! The CA that the API server trusts and the certificate of the webhook, while another program changes one of them.

use std::{fs, time::Instant};

use control_plane::{Tool, copy_directory, run, tools};
use nodes::{Error, Result, load::Load, wait};

use crate::world::{CREATE_INTERVAL, NAMESPACE, OTHER_TAG, RELEASE, TIMEOUT, World, expect, output_of};

const REGISTRATION: &str = "validatingwebhookconfiguration";

/// Waits until the registration has a CA again.
fn wait_for_ca(world: &World) -> Result<()> {
    wait("a caBundle in the registration", TIMEOUT, || {
        let path = "--output=jsonpath={.webhooks[0].clientConfig.caBundle}";
        let bundle = world.kubectl(&["get", REGISTRATION, "switchboard", path]).map_err(|error| error.to_string())?;
        if bundle.is_empty() { Err("the caBundle is empty".to_owned()) } else { Ok(()) }
    })
}

/// Creates may fail only with x509 errors, and only until the API server trusts a CA again.
fn expect_repair(world: &World, load: Load) -> Result<String> {
    wait_for_ca(world)?;
    world.wait_for_creates()?;
    let (repaired, sent) = (load.elapsed(), load.sent());
    wait("forty more creates", TIMEOUT, || if load.sent() >= sent + 40 { Ok(()) } else { Err(String::new()) })?;
    let outcome = load.stop()?;
    let x509 = outcome.failing_with("x509");
    let figures = format!("{}; {:.2} s of x509", outcome.summary(), x509.as_secs_f32());
    let other = outcome.failures.iter().find(|failure| failure.sent > repaired || !failure.message.contains("x509"));
    expect(other.is_none(), || format!("{figures}: {other:?}"))?;
    Ok(figures)
}

pub fn replaced_registration(world: &mut World) -> Result<String> {
    let mut registration = world.get(&[REGISTRATION, "switchboard"])?;
    for webhook in registration["webhooks"].as_array_mut().into_iter().flatten() {
        if let Some(client) = webhook["clientConfig"].as_object_mut() {
            client.remove("caBundle");
        }
    }
    if let Some(metadata) = registration["metadata"].as_object_mut() {
        metadata.retain(|key, _| ["name", "labels", "annotations"].contains(&key.as_str()));
    }
    let file = world.cluster.write("registration.json", &registration.to_string())?;
    let load = world.creates(CREATE_INTERVAL)?;
    world.kubectl(&["replace", "--filename", &file.display().to_string()])?;
    expect_repair(world, load)
}

pub fn force_replaced_release(world: &mut World) -> Result<String> {
    let load = world.creates(CREATE_INTERVAL)?;
    let chart = "charts/switchboard";
    let output = output_of(world.cluster.helm()?.args([
        "upgrade",
        RELEASE,
        chart,
        "--namespace",
        NAMESPACE,
        "--reuse-values",
        "--server-side=false",
        "--force-replace",
        "--wait",
        "--timeout=5m",
    ]))?;
    expect(output.contains("has been upgraded"), || output.clone())?;
    expect_repair(world, load)
}

pub fn deleted_secret(world: &mut World) -> Result<String> {
    let load = world.creates(CREATE_INTERVAL)?;
    let before = world.get(&["secret", "switchboard-webhook-tls"])?["data"]["tls.crt"].clone();
    world.kubectl(&["delete", "secret", "switchboard-webhook-tls"])?;
    wait("another certificate in the Secret", TIMEOUT, || {
        let secret = world.get(&["secret", "switchboard-webhook-tls"]).map_err(|error| error.to_string())?;
        let certificate = &secret["data"]["tls.crt"];
        if certificate.is_string() && *certificate != before {
            Ok(())
        } else {
            Err("the certificate has not changed".to_owned())
        }
    })?;
    let figures = expect_repair(world, load)?;
    expect(figures.contains(" 0 failed"), || figures.clone())?;
    Ok(figures)
}

/// Installs cert-manager from its own chart, with its real controller, cainjector and webhook, and requests a renewal as `cmctl renew`
/// does.
pub fn cert_manager(world: &mut World) -> Result<String> {
    install_cert_manager(world)?;
    world.install(RELEASE, &["--set", "certManager.enabled=true"])?;
    world.wait_for_creates()?;
    let before = served(world)?;
    let load = world.creates(CREATE_INTERVAL)?;
    let renew = r#"{"status": {"conditions": [{"type": "Issuing", "status": "True", "reason": "ManuallyTriggered",
        "message": "requested by a test", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}"#;
    world.kubectl(&[
        "patch",
        "certificate",
        "switchboard",
        "--subresource=status",
        "--type=merge",
        "--patch",
        renew,
    ])?;
    let started = Instant::now();
    let took = wait("both replicas to serve the renewed certificate", TIMEOUT, || {
        let now = served(world).map_err(|error| error.to_string())?;
        let are_new = now.iter().all(|expiry| !before.contains(expiry));
        if are_new { Ok(started.elapsed()) } else { Err(format!("{before:?}, then {now:?}")) }
    })?;
    let sent = load.sent();
    wait("a hundred more creates", TIMEOUT, || if load.sent() >= sent + 100 { Ok(()) } else { Err(String::new()) })?;
    let outcome = load.stop()?;
    outcome.none_failed()?;
    Ok(format!("{}; both replicas served the renewed certificate after {:.0} s", outcome.summary(), took.as_secs_f32()))
}

/// The expiry of the certificate that each replica serves, from its metrics.
fn served(world: &World) -> Result<Vec<String>> {
    let pods = world.pods()?;
    pods.iter()
        .map(|pod| {
            let mut curl = world.cluster.nodes()[0].namespaces()?.client("curl");
            let metrics = run(curl.args(["--silent", "--fail", &format!("http://{}:8080/metrics", pod.address)]))?;
            let expiry =
                metrics.lines().find(|line| line.starts_with("switchboard_certificate_expiry_timestamp_seconds"));
            Ok(expiry.unwrap_or_default().to_owned())
        })
        .collect()
}

fn install_cert_manager(world: &World) -> Result<()> {
    let binaries = tools::ensure(Tool::CERT_MANAGER)?;
    let source = tools::source_of(Tool::CertManagerController)?;
    let directory = world.cluster.directory().path();
    let failed = |error| Error::io("prepare the chart of cert-manager", error);
    for (binary, name) in binaries.iter().zip(["controller", "cainjector", "webhook"]) {
        world.import_program(&format!("cert-manager-{name}"), binary)?;
    }
    // Copies the CRDs into the templates of the chart, as the release process of cert-manager does.
    let chart = directory.join("cert-manager-chart");
    copy_directory(&source.join("deploy/charts/cert-manager"), &chart)?;
    fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: cert-manager\nversion: 1.11.5\nappVersion: v1.11.5\n")
        .map_err(failed)?;
    for entry in fs::read_dir(source.join("deploy/crds")).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.path().extension().is_some_and(|extension| extension == "yaml") {
            fs::copy(entry.path(), chart.join("templates").join(entry.file_name())).map_err(failed)?;
        }
    }
    let mut helm = world.cluster.helm()?;
    helm.args(["upgrade", "--install", "cert-manager"]).arg(&chart).args([
        "--namespace",
        "cert-manager",
        "--create-namespace",
    ]);
    for (part, name) in [("", "controller"), ("cainjector.", "cainjector"), ("webhook.", "webhook")] {
        let image = format!("{part}image.repository=localhost/cert-manager-{name},{part}image.tag={OTHER_TAG}");
        helm.args(["--set", &image]);
    }
    run(helm.args(["--set", "startupapicheck.enabled=false", "--wait", "--timeout=5m"]))?;
    Ok(())
}
