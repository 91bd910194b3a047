//! Creates go on while replicas come and go, and while nothing happens at all.

use std::time::Duration;

use control_plane::run;
use nodes::{
    Result,
    load::{Failure, Load, Outcome},
    wait,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{API_SERVER, NAMESPACE, PACE, RELEASE, TAGS, WITHIN, World, expect};

/// How often a connection rests, for so many seconds, between two creates, and through how many API servers this is tried at once.
struct Gaps {
    seconds: u64,
    count: usize,
    api_servers: usize,
}

/// A connection between an API server and the webhook rests between two creates. An API server has connections of its own, so creates
/// through others do not disturb it.
pub fn idle_connections(world: &mut World) -> Result<String> {
    let gaps = |seconds, count, api_servers| Gaps { seconds, count, api_servers };
    let gaps = if world.is_quick {
        vec![gaps(5, 40, 2)]
    } else {
        vec![gaps(5, 300, 3), gaps(30, 20, 1), gaps(60, 20, 2), gaps(89, 20, 3), gaps(91, 20, 3)]
    };
    let mut ports = API_SERVER..;
    let mut sets = Vec::new();
    for Gaps { seconds, count, api_servers } in gaps {
        let loads = ports.by_ref().take(api_servers).map(|port| {
            if port != API_SERVER {
                world.cluster.start_api_server(port)?;
            }
            let (name, interval) = (world.set(), Duration::from_secs(seconds));
            Load::start_limited(&world.cluster, port, &name, interval, count.div_ceil(api_servers) + 1)
        });
        sets.push((seconds, loads.collect::<Result<Vec<_>>>()?));
    }
    let mut figures = Vec::new();
    let mut failed = 0;
    for (seconds, loads) in sets {
        let mut together = Outcome::default();
        for load in loads {
            let outcome = load.finish()?;
            together.sent += outcome.sent;
            together.failures.extend(outcome.failures);
        }
        failed += together.failures.len();
        figures.push(format!("{seconds} s apart {}", together.summary()));
    }
    for port in API_SERVER + 1..ports.start {
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
    let killed_at = load.elapsed();
    let killed = id.is_some_and(|id| kill_process(id, Signal::KILL).is_ok());
    expect(killed, || format!("process {process} cannot be killed"))?;
    // Its connections are closed when it has ended, and take requests until then.
    wait("the process to end", WITHIN, || {
        if World::process_of_now(&leader) == Some(process) { Err("it has not".to_owned()) } else { Ok(()) }
    })?;
    let ended_at = load.elapsed();
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
    // In flight was each create that was sent before the process had ended and answered after it was killed. Until the Service knows,
    // a new connection may be led to the address of a pod in which nobody listens: no operator can answer there.
    let is_in_flight = |failure: &&Failure| failure.sent <= ended_at && failure.answered >= killed_at;
    let in_flight = outcome.failures.iter().filter(is_in_flight).count();
    let is_refused = |failure: &&Failure| failure.sent > ended_at && failure.message.contains("connection refused");
    let refused = outcome.failures.iter().filter(is_refused).count();
    let figures = format!(
        "{}: {in_flight} in flight, {refused} led to where nobody listens any more; led again after {:.1} s",
        outcome.summary(),
        led.as_secs_f32()
    );
    expect(in_flight + refused == outcome.failures.len(), || format!("{figures}: {:?}", outcome.failures))?;
    Ok(figures)
}
