//! Creates succeed while replicas start and stop, and on idle connections.

use std::time::Duration;

use control_plane::run;
use nodes::{
    Result,
    load::{Failure, Load, Outcome},
    wait,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{API_SERVER, CREATE_INTERVAL, NAMESPACE, RELEASE, TAGS, TIMEOUT, World, expect};

/// The number of creates that are `seconds` apart, and the number of API servers that send them at the same time.
struct Gaps {
    seconds: u64,
    count: usize,
    api_servers: usize,
}

/// The connection between an API server and the webhook is idle between two creates. Each API server has its own connections, so creates
/// through other API servers do not affect it.
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
        let mut combined = Outcome::default();
        for load in loads {
            let outcome = load.finish()?;
            combined.sent += outcome.sent;
            combined.failures.extend(outcome.failures);
        }
        failed += combined.failures.len();
        figures.push(format!("{seconds} s apart {}", combined.summary()));
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
    let load = world.creates(CREATE_INTERVAL)?;
    let mut shared_nodes = 0;
    for _ in 0..rounds {
        world.kubectl(&["rollout", "restart", "deployment/switchboard"])?;
        world.wait_for_rollout()?;
        let pods = world.pods()?;
        shared_nodes += usize::from(pods[0].node == pods[1].node);
    }
    let outcome = load.stop()?;
    let figures = format!(
        "{} during {rounds} rollouts, after {shared_nodes} of which both replicas shared a node",
        outcome.summary()
    );
    outcome.none_failed()?;
    expect(shared_nodes == 0, || figures.clone())?;
    Ok(figures)
}

pub fn drains(world: &mut World) -> Result<String> {
    let nodes: &[&str] = if world.is_quick { &["node-1"] } else { &["node-1", "node-2"] };
    let load = world.creates(CREATE_INTERVAL)?;
    for node in nodes {
        world.cluster.kubectl_run(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=3m"])?;
        world.wait_for_rollout()?;
        let pods = world.pods()?;
        expect(pods.iter().all(|pod| pod.node != *node), || format!("{node} is drained, but has {pods:?}"))?;
        world.cluster.kubectl_run(&["uncordon", node])?;
    }
    let outcome = load.stop()?;
    outcome.none_failed()?;
    // Both replicas run on one node now. The next rollout spreads them again.
    world.kubectl(&["rollout", "restart", "deployment/switchboard"])?;
    world.wait_for_rollout()?;
    Ok(format!("{} during the drain of {}", outcome.summary(), nodes.join(" and ")))
}

pub fn upgrade_and_rollback(world: &mut World) -> Result<String> {
    let load = world.creates(CREATE_INTERVAL)?;
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
    let load = world.creates(CREATE_INTERVAL)?;
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
    let load = world.creates(CREATE_INTERVAL)?;
    // Creates are in flight on the connections of each replica before the kill.
    let sent = || load.sent() >= 40;
    wait("creates to be sent", TIMEOUT, || if sent() { Ok(()) } else { Err("fewer".to_owned()) })?;
    let id = i32::try_from(process).ok().and_then(Pid::from_raw);
    let killed_at = load.elapsed();
    let killed = id.is_some_and(|id| kill_process(id, Signal::KILL).is_ok());
    expect(killed, || format!("process {process} cannot be killed"))?;
    // Its connections accept requests until it has ended.
    wait("the process to end", TIMEOUT, || {
        if World::process_of_now(&leader) == Some(process) { Err("it still runs".to_owned()) } else { Ok(()) }
    })?;
    let ended_at = load.elapsed();
    wait("the container to be started again", TIMEOUT, || {
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
    // A create is in flight if it was sent before the process ended and answered after it was killed. Until the Service is updated, it may
    // route a new connection to the pod of the dead process, in which no process listens.
    let is_in_flight = |failure: &&Failure| failure.sent <= ended_at && failure.answered >= killed_at;
    let in_flight = outcome.failures.iter().filter(is_in_flight).count();
    let is_refused = |failure: &&Failure| failure.sent > ended_at && failure.message.contains("connection refused");
    let refused = outcome.failures.iter().filter(is_refused).count();
    let figures = format!(
        "{}: {in_flight} in flight, {refused} routed to the dead pod; a new leader after {:.1} s",
        outcome.summary(),
        led.as_secs_f32()
    );
    expect(in_flight + refused == outcome.failures.len(), || format!("{figures}: {:?}", outcome.failures))?;
    Ok(figures)
}
