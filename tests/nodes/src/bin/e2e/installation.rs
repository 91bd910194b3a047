//! Installation, a refusal and uninstallation: the first and the last steps of a user of the chart.

use std::{
    fs,
    time::{Duration, Instant},
};

use control_plane::run;
use nodes::{Error, Result, wait};

use crate::world::{NAMESPACE, RELEASE, TIMEOUT, World, expect, list, manifest};

/// The kubelet gives the API server one second for the config map of a new pod's volume, and then tries again. On a busy machine the first
/// attempt fails, whatever the pod is. Source: `pkg/kubelet/util/manager/watch_based_manager.go`.
const KUBELET_IN_HASTE: &str = "failed to sync configmap cache: timed out waiting for the condition";

pub fn installs_under_restricted(world: &mut World) -> Result<String> {
    let started = Instant::now();
    world.install(RELEASE, &[])?;
    let took = started.elapsed();
    world.wait_for_creates()?;
    let leader = world.leader()?;
    let pods = world.pods()?;
    let nodes: Vec<_> = pods.iter().map(|pod| &pod.node).collect();
    expect(nodes[0] != nodes[1], || format!("both replicas are on {}", nodes[0]))?;
    let events = world.get(&["events", "--field-selector=type=Warning"])?;
    let messages = list(&events).iter().map(|event| event["message"].to_string());
    let warnings: Vec<_> = messages.filter(|message| !message.contains(KUBELET_IN_HASTE)).collect();
    expect(warnings.is_empty(), || format!("Warning Events: {}", warnings.join("; ")))?;
    let process = World::process_of(&leader)?;
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let ids =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    let (user, group) = (ids("Uid:"), ids("Gid:"));
    // The real, effective, saved and file system ids.
    let is_nobody = |ids: &str| ids.split_whitespace().collect::<Vec<_>>() == ["65532"; 4];
    expect(is_nobody(&user) && is_nobody(&group), || format!("it runs as user {user} and group {group}"))?;
    Ok(format!("installed in {:.1} s", took.as_secs_f32()))
}

pub fn refuses_the_second(world: &mut World) -> Result<String> {
    let name = world.set();
    let first = world.cluster.write("first.yaml", &manifest(&format!("{name}-a"), &name))?;
    let second = world.cluster.write("second.yaml", &manifest(&format!("{name}-b"), &name))?;
    let (first, second) = (first.display().to_string(), second.display().to_string());
    world.cluster.kubectl_run(&["apply", "--filename", &first])?;
    world.cluster.kubectl_run(&["wait", "--for=condition=Ready", &format!("conversation/{name}-a"), "--timeout=1m"])?;
    let output = world.cluster.kubectl_refused(&["apply", "--filename", &second])?;
    for expected in ["Error from server (Forbidden)", "denied the request: 48031:", &format!("default/{name}-a")] {
        expect(output.contains(expected), || format!("{expected:?} is not in the refusal: {output}"))?;
    }
    Ok("48031, and the holder's name".to_owned())
}

pub fn helm_test(world: &mut World) -> Result<String> {
    let output = run(world.cluster.helm()?.args(["test", RELEASE, "--namespace", NAMESPACE, "--timeout=2m"]))?;
    expect(output.contains("Phase:") && output.contains("Succeeded"), || output.clone())?;
    Ok("Succeeded".to_owned())
}

/// Uninstalls the release. Only the objects that `crds.keep` keeps remain.
fn uninstall(world: &World, release: &str) -> Result<()> {
    run(world.cluster.helm()?.args(["uninstall", release, "--namespace", NAMESPACE, "--wait", "--timeout=3m"]))?;
    wait("the pods to end", TIMEOUT, || {
        let pods = world.pods().map_err(|error| error.to_string())?;
        if pods.is_empty() { Ok(()) } else { Err(format!("{pods:?}")) }
    })?;
    // Users can create and delete conversations without an operator.
    let name = format!("{release}-meanwhile");
    let manifest = world.cluster.write("meanwhile.yaml", &manifest(&name, &name))?;
    world.cluster.kubectl_run(&["apply", "--filename", &manifest.display().to_string()])?;
    world.cluster.kubectl_run(&["delete", "conversation", &name])?;
    Ok(())
}

pub fn reinstalls(world: &mut World) -> Result<String> {
    world.leader()?;
    uninstall(world, RELEASE)?;
    let lease = world.kubectl(&["get", "lease", "switchboard", "--ignore-not-found", "--output=name"])?;
    expect(lease.trim().is_empty(), || format!("{} still exists", lease.trim()))?;
    let started = Instant::now();
    world.install(RELEASE, &[])?;
    world.wait_for_creates()?;
    let ready = started.elapsed();
    world.leader()?;
    let led = started.elapsed();
    Ok(format!(
        "ready {:.1} s after the start of the next install, a leader after {:.1} s",
        ready.as_secs_f32(),
        led.as_secs_f32()
    ))
}

pub fn renames_the_release(world: &mut World) -> Result<String> {
    const OTHER: &str = "telephony";
    uninstall(world, RELEASE)?;
    let refusal = match world.upgrade(OTHER, &[]) {
        Err(Error::ControlPlane(error)) => error.to_string(),
        other => {
            return Err(Error::Unexpected(format!(
                "an install with another name succeeds without --take-ownership: {other:?}"
            )));
        }
    };
    expect(refusal.contains("invalid ownership metadata"), || refusal.clone())?;
    world.install(OTHER, &["--take-ownership"])?;
    world.wait_for_creates()?;
    uninstall(world, OTHER)?;
    world.install(RELEASE, &["--take-ownership"])?;
    let took = world.wait_for_creates()?.max(Duration::from_millis(1));
    Ok(format!("with --take-ownership, and back; creates succeed after {:.1} s", took.as_secs_f32()))
}

/// Deleting the namespace also deletes Helm's record of the release. The webhook registration stays, and fails closed.
pub fn recovers_from_a_deleted_namespace(world: &mut World) -> Result<String> {
    world.cluster.kubectl_run(&["delete", "namespace", NAMESPACE, "--timeout=3m"])?;
    let manifest = world.cluster.write("closed.yaml", &manifest("closed", "closed"))?;
    let output = world.cluster.kubectl_refused(&["create", "--filename", &manifest.display().to_string()])?;
    expect(output.contains("failed calling webhook"), || output.clone())?;
    let started = Instant::now();
    world.install(RELEASE, &["--take-ownership"])?;
    world.wait_for_creates()?;
    Ok(format!("creates succeed {:.1} s after the start of the next install", started.elapsed().as_secs_f32()))
}
