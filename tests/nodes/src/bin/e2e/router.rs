//! Messages are delivered once while replicas of the router start and stop.

use std::{collections::HashMap, fs, net::SocketAddr, path::Path, time::Duration};

use nodes::{
    Error, Result,
    messages::{Sent, Source, Stream},
    wait,
};

use crate::world::{NAMESPACE, RELEASE, TIMEOUT, World, expect};

/// The port of the sink on the first node.
const SINK_PORT: u16 = 8099;
/// The name of the sink's process.
const SINK: &str = "sink";
/// The address of the business.
const PROXY: &str = "front-desk";
const TOKEN: &str = "a token that only the tests know";
/// The interval between two messages.
const INTERVAL: Duration = Duration::from_millis(50);

pub fn rollouts_and_drains(world: &mut World) -> Result<String> {
    let source = install(world)?;
    let result = stream(world, &source);
    world.cluster.kubectl_run(&["delete", "proxyaddress", PROXY, "--ignore-not-found"])?;
    world.cluster.end_on_first_node(SINK);
    result
}

/// Installs the router, with a ProxyAddress and a sink on the first node that prints what it receives.
fn install(world: &mut World) -> Result<Source> {
    let sink = Path::new("examples/sink.py").canonicalize().map_err(|error| Error::io("find the sink", error))?;
    let address = world.cluster.nodes()[0].address().to_string();
    let arguments = [sink.display().to_string(), SINK_PORT.to_string(), address.clone()];
    world.cluster.run_on_first_node(SINK, Path::new("python3"), &arguments)?;
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "gateway", "namespace": NAMESPACE},
        "stringData": {"token": TOKEN},
    });
    let proxy_address = serde_json::json!({
        "apiVersion": "switchboard.dev/v1alpha1", "kind": "ProxyAddress", "metadata": {"name": PROXY},
        "spec": {"channel": "Chat", "address": PROXY, "inbound": {
            "sources": ["gateway"],
            "autocreate": {"namespace": "default", "maxPerMinute": 10_000},
            "sink": {"uri": format!("http://{address}:{SINK_PORT}/")},
        }},
    });
    for (file, object) in [("gateway.json", secret), ("front-desk.json", proxy_address)] {
        let file = world.cluster.write(file, &object.to_string())?.display().to_string();
        world.cluster.kubectl_run(&["apply", "--filename", &file])?;
    }
    let values = "router.enabled=true,router.sources.gateway.type=CloudEvents,router.sources.gateway.secretName=gateway,\
                  router.autocreateNamespaces={default}";
    world.install(RELEASE, &["--set", values])?;
    let service = world.get(&["service", "switchboard-router"])?;
    let address = service["spec"]["clusterIP"].as_str().and_then(|address| address.parse().ok());
    let address = address.ok_or_else(|| Error::Unexpected(format!("the Service has no address: {service}")))?;
    Ok(Source {
        router: SocketAddr::new(address, 80),
        name: "gateway".to_owned(),
        token: TOKEN.to_owned(),
        proxy: PROXY.to_owned(),
    })
}

fn stream(world: &World, source: &Source) -> Result<String> {
    let (rounds, nodes): (_, &[&str]) = if world.is_quick { (1, &[]) } else { (4, &["node-1", "node-2"]) };
    let stream = Stream::start(&world.cluster, source, INTERVAL)?;
    for _ in 0..rounds {
        world.kubectl(&["rollout", "restart", "deployment/switchboard-router"])?;
        wait_for_rollout(world)?;
    }
    for node in nodes {
        world.cluster.kubectl_run(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=3m"])?;
        wait_for_rollout(world)?;
        world.wait_for_rollout()?;
        world.cluster.kubectl_run(&["uncordon", node])?;
    }
    let sent = stream.stop()?;
    let received = received(world)?;
    let figures = format!(
        "{} messages, {} conversations opened, during {rounds} rollouts of the router and {} drains",
        sent.len(),
        received.values().filter(|counts| counts.opened > 0).count(),
        nodes.len()
    );
    check(&sent, &received).map_err(|reason| Error::Unexpected(format!("{figures}: {reason}")))?;
    Ok(figures)
}

/// Waits until two replicas of the router are ready, and no others exist.
fn wait_for_rollout(world: &World) -> Result<()> {
    world.kubectl(&["rollout", "status", "deployment/switchboard-router", "--timeout=5m"])?;
    wait("two pods of the router", TIMEOUT, || {
        let selector = "--selector=app.kubernetes.io/name=switchboard-router";
        let pods = world.kubectl(&["get", "pods", selector, "--output=name"]).map_err(|error| error.to_string())?;
        if pods.lines().count() == 2 { Ok(()) } else { Err(pods) }
    })
}

/// How often the sink has received the events of a message.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    delivered: usize,
    opened: usize,
}

/// The events that the sink has printed, by the ID of their message.
fn received(world: &World) -> Result<HashMap<String, Counts>> {
    let log = world.cluster.directory().log(SINK);
    let log = fs::read_to_string(&log).map_err(|error| Error::io("read what the sink printed", error))?;
    let mut received = HashMap::<String, Counts>::new();
    for line in log.lines() {
        let mut words = line.split(' ');
        let (Some(kind), Some(id)) = (words.next(), words.next()) else { continue };
        let message = id.split('/').next().unwrap_or(id).to_owned();
        match kind {
            "dev.switchboard.message.received.v1" => received.entry(message).or_default().delivered += 1,
            "dev.switchboard.conversation.created.v1" => received.entry(message).or_default().opened += 1,
            _ => {}
        }
    }
    Ok(received)
}

/// Each message was accepted and delivered once, and opened a conversation if its contact was new.
fn check(sent: &[Sent], received: &HashMap<String, Counts>) -> std::result::Result<(), String> {
    let refused: Vec<_> = sent.iter().filter(|sent| sent.failure.is_some()).collect();
    if let Some(first) = refused.first() {
        return Err(format!("{} were not accepted, such as {first:?}", refused.len()));
    }
    let is_first_of_contact = |sent: &Sent| sent.contact.starts_with("new") || sent.id.ends_with("-0");
    for message in sent {
        let counts = received.get(&message.id).copied().unwrap_or_default();
        if (counts.delivered, counts.opened) != (1, usize::from(is_first_of_contact(message))) {
            return Err(format!("{message:?}: {counts:?}"));
        }
    }
    expect(sent.len() > 1, || "nothing was sent".to_owned()).map_err(|error| error.to_string())
}
