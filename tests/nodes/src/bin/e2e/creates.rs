//! Creates go on while replicas come and go, and while nothing happens at all.

use std::time::Duration;

use control_plane::run;
use nodes::{
    Result,
    load::{Failure, Load},
    wait,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{API_SERVER, NAMESPACE, PACE, RELEASE, TAGS, WITHIN, World, expect};

/// A connection between an API server and the webhook rests between two creates. Creates further apart go through API servers of their
/// own: each has connections of its own.
pub fn idle_connections(world: &mut World) -> Result<String> {
    let gaps: &[(u64, usize)] =
        if world.is_quick { &[(5, 40)] } else { &[(5, 300), (30, 20), (60, 20), (89, 20), (91, 20)] };
    let mut loads = Vec::new();
    for (port, (gap, count)) in (API_SERVER..).zip(gaps) {
        if port != API_SERVER {
            world.cluster.start_api_server(port)?;
        }
        let name = world.set();
        loads.push((gap, Load::start_limited(&world.cluster, port, &name, Duration::from_secs(*gap), *count)?));
    }
    let mut figures = Vec::new();
    let mut failed = 0;
    for (gap, load) in loads {
        let outcome = load.finish()?;
        failed += outcome.failures.len();
        figures.push(format!("{gap} s apart {}", outcome.summary()));
    }
    for port in (API_SERVER + 1..).take(gaps.len() - 1) {
        world.cluster.end_on_first_node(&format!("kube-apiserver-{port}"));
    }
    let figures = figures.join("; ");
    expect(failed == 0, || figures.clone())?;
    Ok(figures)
}

pub fn rollouts(world: &mut World) -> Result<String> {
    let rounds = if world.is_quick { 1 } else { 6 };
    let load = world.creates(PACE)?;
    let mut together = 0;
    for _ in 0..rounds {
        world.kubectl(&["rollout", "restart", "deployment/switchboard"])?;
        world.wait_for_rollout()?;
        let pods = world.pods()?;
        together += usize::from(pods[0].node == pods[1].node);
    }
    let outcome = load.stop()?;
    let figures = format!(
        "{} during {rounds} rollouts, after {together} of which both replicas shared a node",
        outcome.summary()
    );
    outcome.none_failed()?;
    expect(together == 0, || figures.clone())?;
    Ok(figures)
}

pub fn drains(world: &mut World) -> Result<String> {
    let nodes: &[&str] = if world.is_quick { &["node-1"] } else { &["node-1", "node-2"] };
    let load = world.creates(PACE)?;
    for node in nodes {
        world.cluster.kubectl_run(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=3m"])?;
        world.wait_for_rollout()?;
        let pods = world.pods()?;
        expect(pods.iter().all(|pod| pod.node != *node), || format!("{node} is drained, and has {pods:?}"))?;
        world.cluster.kubectl_run(&["uncordon", node])?;
    }
    let outcome = load.stop()?;
    outcome.none_failed()?;
    // Both are on the other node now; the next rollout spreads them again.
    world.kubectl(&["rollout", "restart", "deployment/switchboard"])?;
    world.wait_for_rollout()?;
    Ok(format!("{} during the drain of {}", outcome.summary(), nodes.join(" and ")))
}

pub fn upgrade_and_rollback(world: &mut World) -> Result<String> {
    let load = world.creates(PACE)?;
    world.install(RELEASE, &["--set", &format!("image.tag={}", TAGS[1])])?;
    let image = world.kubectl(&[
        "get",
        "deployment",
        "switchboard",
        "--output=jsonpath={.spec.template.spec.containers[0].image}",
    ])?;
    expect(image.ends_with(TAGS[1]), || format!("the upgrade runs {image}"))?;
    run(world.cluster.helm()?.args(["rollback", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout=5m"]))?;
    world.wait_for_rollout()?;
    let outcome = load.stop()?;
    outcome.none_failed()?;
    Ok(format!("{} during an upgrade and its rollback", outcome.summary()))
}

pub fn deleted_pods(world: &mut World) -> Result<String> {
    let load = world.creates(PACE)?;
    let leader = world.leader()?;
    world.kubectl(&["delete", "pod", &leader.name])?;
    world.wait_for_rollout()?;
    let leader = world.leader()?;
    let standby = world.pods()?.into_iter().find(|pod| pod.name != leader.name);
    if let Some(standby) = standby {
        world.kubectl(&["delete", "pod", &standby.name])?;
    }
    world.wait_for_rollout()?;
    let outcome = load.stop()?;
    outcome.none_failed()?;
    Ok(format!("{} during the deletion of the leader and of a standby", outcome.summary()))
}

pub fn killed_leader(world: &mut World) -> Result<String> {
    let (leader, holder) = (world.leader()?, world.holder()?);
    let process = World::process_of(&leader)?;
    let load = world.creates(PACE)?;
    // Creates are on their way on each replica's connections before it happens.
    let sent = || load.sent() >= 40;
    wait("creates to be sent", WITHIN, || if sent() { Ok(()) } else { Err("fewer".to_owned()) })?;
    let id = i32::try_from(process).ok().and_then(Pid::from_raw);
    let killed = id.is_some_and(|id| kill_process(id, Signal::KILL).is_ok());
    let killed_at = load.elapsed();
    expect(killed, || format!("process {process} cannot be killed"))?;
    wait("the container to be started again", WITHIN, || {
        let pods = world.pods().map_err(|error| error.to_string())?;
        if pods.iter().any(|pod| pod.name == leader.name && pod.restarts > leader.restarts) {
            Ok(())
        } else {
            Err(format!("{pods:?}"))
        }
    })?;
    world.wait_for_rollout()?;
    world.leader_after(&holder)?;
    let led = load.elapsed().saturating_sub(killed_at);
    let outcome = load.stop()?;
    // On its way was what had been sent and not answered when it ended. Until the Service knows, a new connection may be led to the
    // address of a pod in which nobody listens: no operator can answer there.
    let is_in_flight = |failure: &&Failure| failure.sent <= killed_at && failure.answered >= killed_at;
    let in_flight = outcome.failures.iter().filter(is_in_flight).count();
    let is_refused = |failure: &&Failure| failure.sent > killed_at && failure.message.contains("connection refused");
    let refused = outcome.failures.iter().filter(is_refused).count();
    let figures = format!(
        "{}: {in_flight} in flight, {refused} led to where nobody listens any more; led again after {:.1} s",
        outcome.summary(),
        led.as_secs_f32()
    );
    expect(in_flight + refused == outcome.failures.len(), || format!("{figures}: {:?}", outcome.failures))?;
    Ok(figures)
}
