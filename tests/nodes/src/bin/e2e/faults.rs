//! Faults in the operator and in its environment.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use control_plane::run;
use nodes::{Error, Result, wait};

use crate::world::{CREATE_INTERVAL, NAMESPACE, Pod, RELEASE, TIMEOUT, World, expect, manifest};

/// The number of concurrent bodies. Each has the largest size of a review.
const BODIES: usize = 64;
const BODY_BYTES: usize = 8 << 20;
/// The timer that becomes due during a power cut, in seconds. On a loaded machine, the power is cut some seconds after the create.
const CLOSE_AFTER: u64 = 15;

/// Any client that reaches the port can send bodies. Here sixty-four of the largest ones reach each replica at the same time.
pub fn largest_bodies(world: &mut World) -> Result<String> {
    let body = world.cluster.directory().path().join("body");
    fs::write(&body, vec![b' '; BODY_BYTES]).map_err(|error| Error::io("write a body", error))?;
    let pods = world.pods()?;
    let load = world.creates(CREATE_INTERVAL)?;
    let mut senders = Vec::new();
    for pod in pods.iter().flat_map(|pod| std::iter::repeat_n(pod, BODIES)) {
        let mut curl = world.cluster.nodes()[0].namespaces()?.client("curl");
        curl.args(["--silent", "--insecure", "--http1.1", "--max-time", "60", "--output", "/dev/null"])
            .args(["--write-out", "%{http_code}", "--header", "Content-Type: application/json", "--header", "Expect:"])
            .arg("--data-binary")
            .arg(format!("@{}", body.display()))
            .arg(format!("https://{}:9443/admit", pod.address));
        senders.push(spawn(curl)?);
    }
    let codes = senders.into_iter().map(answer).collect::<Result<Vec<_>>>()?;
    let outcome = load.stop()?;
    let peaks = pods.iter().filter_map(peak_memory).map(|bytes| format!("{} MiB", bytes >> 20)).collect::<Vec<_>>();
    let after = world.pods()?;
    let restarts: u64 =
        after.iter().map(|pod| pod.restarts).sum::<u64>() - pods.iter().map(|pod| pod.restarts).sum::<u64>();
    let count = |code: &str| codes.iter().filter(|found| *found == code).count();
    let known = ["200", "400", "408", "413", "429", "503"];
    let other: Vec<_> = codes.iter().filter(|code| !known.contains(&code.as_str())).collect();
    let counted: Vec<_> =
        known.iter().filter(|code| count(code) > 0).map(|code| format!("{code}: {}", count(code))).collect();
    let figures = format!(
        "answers {}; peaks of the containers' memory {}; {restarts} restarts; meanwhile {}",
        counted.join(", "),
        peaks.join(" and "),
        outcome.summary()
    );
    expect(restarts == 0 && other.is_empty(), || format!("{figures}; others: {other:?}"))?;
    outcome.none_failed()?;
    Ok(figures)
}

/// The peak memory of the container of a pod, in bytes, with the caches of the kernel.
fn peak_memory(pod: &Pod) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", World::process_of_now(pod)?)).ok()?;
    let group = groups.lines().find_map(|line| line.split_once(":memory:"))?.1;
    let peak = fs::read_to_string(format!("/sys/fs/cgroup/memory{group}/memory.max_usage_in_bytes")).ok()?;
    peak.trim().parse().ok()
}

fn spawn(mut command: Command) -> Result<Child> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().map_err(|error| Error::io("start curl", error))
}

fn answer(child: Child) -> Result<String> {
    let output = child.wait_with_output().map_err(|error| Error::io("wait for curl", error))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An upgrade stops if its pods are killed because of too little memory, and the previous pods keep serving.
pub fn out_of_memory(world: &mut World) -> Result<String> {
    let load = world.creates(CREATE_INTERVAL)?;
    world.upgrade(RELEASE, &["--set", "resources.limits.memory=4Mi,resources.requests.memory=4Mi"])?;
    // The container is killed before or just after the runtime starts the program.
    let is_killed = |reason: &String| reason == "OOMKilled" || reason == "StartError";
    let killed = wait("a pod that is killed because of too little memory", TIMEOUT, || {
        let pods = world.pods().map_err(|error| error.to_string())?;
        let killed = pods.iter().find(|pod| pod.reasons.iter().any(is_killed));
        killed.map(|pod| pod.name.clone()).ok_or_else(|| format!("{pods:?}"))
    })?;
    let serving =
        world.kubectl(&["get", "deployment", "switchboard", "--output=jsonpath={.status.availableReplicas}"])?;
    expect(serving == "2", || format!("{serving} replicas serve while {killed} cannot start"))?;
    run(world.cluster.helm()?.args(["rollback", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout=5m"]))?;
    world.wait_for_rollout()?;
    let outcome = load.stop()?;
    outcome.none_failed()?;
    Ok(format!("{} while {killed} was killed, and during the rollback", outcome.summary()))
}

/// Pods that start while no Service is reachable, as on nodes that have just started, wait for it.
pub fn absent_kube_proxy(world: &mut World) -> Result<String> {
    const AWAY: Duration = Duration::from_mins(1);
    for node in world.cluster.nodes() {
        node.stop_kube_proxy()?;
    }
    world.kubectl(&["delete", "pods", "--selector=app.kubernetes.io/name=switchboard", "--wait=false"])?;
    let deleted = Instant::now();
    // A pod that ends instead of waiting is restarted, and its number of restarts shows it.
    wait("two new pods that have started", TIMEOUT, || {
        let pods = world.pods().map_err(|error| error.to_string())?;
        let has_started = |pod: &Pod| pod.restarts > 0 || World::process_of_now(pod).is_some();
        if pods.len() == 2 && pods.iter().all(has_started) { Ok(()) } else { Err(format!("{pods:?}")) }
    })?;
    std::thread::sleep(AWAY.saturating_sub(deleted.elapsed()));
    let back = Instant::now();
    for node in world.cluster.nodes() {
        node.start_kube_proxy()?;
    }
    world.wait_for_rollout()?;
    world.wait_for_creates()?;
    let ready = back.elapsed();
    let restarts: u64 = world.pods()?.iter().map(|pod| pod.restarts).sum();
    let figures = format!("ready {:.1} s after kube-proxy came back, {restarts} restarts", ready.as_secs_f32());
    expect(restarts == 0, || figures.clone())?;
    Ok(figures)
}

/// Both nodes lose power, and the control plane too. A timer that becomes due meanwhile takes effect afterwards.
pub fn power_cut(world: &mut World) -> Result<String> {
    let name = world.set();
    let mut conversation: serde_json::Value = serde_json::from_str(&manifest(&name, &name)).unwrap_or_default();
    conversation["spec"]["timers"] = serde_json::json!({"closeAfter": format!("{CLOSE_AFTER}s")});
    let file = world.cluster.write("overdue.yaml", &conversation.to_string())?;
    let (before, closed) = (count(world)? + 1, format!("conversation/{name}"));
    world.cluster.kubectl_run(&["apply", "--filename", &file.display().to_string()])?;
    let state = world.cluster.kubectl_run(&["get", &closed, "--output=jsonpath={.status.state}"])?;
    expect(state != "Closed", || {
        "the timer fired before the power cut, so the scenario would show nothing".to_owned()
    })?;
    world.cluster.cut_power();
    // The timer becomes due while nothing runs.
    std::thread::sleep(Duration::from_secs(CLOSE_AFTER + 1));
    let back = Instant::now();
    world.cluster.restore_power()?;
    let reached = back.elapsed();
    world.wait_for_creates()?;
    let created = back.elapsed();
    world.cluster.kubectl_run(&["wait", "--for=jsonpath={.status.state}=Closed", &closed, "--timeout=3m"])?;
    let fired = back.elapsed();
    world.wait_for_rollout()?;
    let after = count(world)?;
    expect(after == before, || format!("{before} conversations were stored before the power cut, {after} afterwards"))?;
    Ok(format!(
        "API server after {:.1} s, creates after {:.1} s, the overdue timer after {:.1} s; {after} conversations before and after",
        reached.as_secs_f32(),
        created.as_secs_f32(),
        fired.as_secs_f32()
    ))
}

fn count(world: &World) -> Result<usize> {
    Ok(world.cluster.kubectl_run(&["get", "conversations", "--all-namespaces", "--output=name"])?.lines().count())
}
