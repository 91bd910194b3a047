//! What the API server trusts and what the webhook serves with, while one of them is changed by others.

use std::time::Duration;

use control_plane::run;
use nodes::{Result, load::Load, wait};
use serde_json::Value;

use crate::world::{NAMESPACE, PACE, RELEASE, WITHIN, World, expect, said};

const REGISTRATION: &str = "validatingwebhookconfiguration";

/// Waits until the registration has a CA again.
fn wait_for_ca(world: &World) -> Result<()> {
    wait("a caBundle in the registration", WITHIN, || {
        let path = "--output=jsonpath={.webhooks[0].clientConfig.caBundle}";
        let bundle = world.kubectl(&["get", REGISTRATION, "switchboard", path]).map_err(|error| error.to_string())?;
        if bundle.is_empty() { Err("there is none".to_owned()) } else { Ok(()) }
    })
}

/// Failed creates are those of the moment in which the API server trusts nobody; nothing else fails.
fn judge(world: &World, load: Load) -> Result<String> {
    wait_for_ca(world)?;
    world.wait_for_creates()?;
    let sent = load.sent();
    wait("forty more creates", WITHIN, || if load.sent() >= sent + 40 { Ok(()) } else { Err(String::new()) })?;
    let outcome = load.stop()?;
    let x509 = outcome.failing_with("x509");
    let figures = format!("{}; {:.2} s of x509", outcome.summary(), x509.as_secs_f32());
    let others = outcome.failures.iter().find(|failure| !failure.message.contains("x509"));
    expect(others.is_none(), || format!("{figures}: {others:?}"))?;
    // What was sent in the last second is answered, whatever was before.
    let end = outcome.failures.iter().map(|failure| failure.sent).max().unwrap_or_default();
    expect(end < load_end(sent), || format!("creates fail on: {figures}"))?;
    Ok(figures)
}

/// When the create with that number was sent, at the latest: sets go at [`PACE`], and late rather than early.
fn load_end(sent: usize) -> Duration {
    PACE * u32::try_from(sent + 40).unwrap_or(u32::MAX)
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
    let load = world.creates(PACE)?;
    world.kubectl(&["replace", "--filename", &file.display().to_string()])?;
    judge(world, load)
}

pub fn force_replaced_release(world: &mut World) -> Result<String> {
    let load = world.creates(PACE)?;
    let chart = "charts/switchboard";
    let output = said(world.cluster.helm()?.args([
        "upgrade", RELEASE, chart, "--namespace", NAMESPACE, "--reuse-values", "--force-replace", "--wait", "--timeout=5m",
    ]))?;
    expect(output.contains("has been upgraded"), || output.clone())?;
    judge(world, load)
}

pub fn deleted_secret(world: &mut World) -> Result<String> {
    let load = world.creates(PACE)?;
    let before = world.get(&["secret", "switchboard-webhook-tls"])?["data"]["tls.crt"].clone();
    world.kubectl(&["delete", "secret", "switchboard-webhook-tls"])?;
    let served: Value = wait("another certificate in the Secret", WITHIN, || {
        let secret = world.get(&["secret", "switchboard-webhook-tls"]).map_err(|error| error.to_string())?;
        let certificate = secret["data"]["tls.crt"].clone();
        if certificate.is_string() && certificate != before { Ok(certificate) } else { Err("the same".to_owned()) }
    })?;
    drop(served);
    let figures = judge(world, load)?;
    expect(figures.contains(" 0 failed"), || figures.clone())?;
    Ok(figures)
}

pub fn cert_manager(world: &mut World) -> Result<String> {
    let _ = run(world.cluster.helm()?.arg("version"))?;
    Err(nodes::Error::Unexpected("not built yet".to_owned()))
}
