//! Scenario 11: inbound messages through the router, compared with a forwarder that only verifies the signature and posts the event, and
//! with creates without the router.

use std::{
    collections::{HashMap, HashSet},
    env, fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use control_plane::{Process, Router};
use kube::{Api, api::ListParams};
use serde_json::json;
use switchboard::api::{Conversation, ProxyAddress};
use tokio::{task::JoinSet, time::interval};

use crate::{
    RESULTS,
    audit::AuditLog,
    error::{Error, Result},
    forwarder,
    load::{Drive, drive},
    messages::{AUTH_TOKEN, PROXY, PUBLIC_URL, Sender},
    process::{processor_seconds, resident_bytes, wait_until_at_rest},
    report::{Row, Summary, Target, Unit, as_f64, percentile},
    seed::Seed,
    sink::Sink,
    workload::Batch,
    world::{Bench, Setup, World, create_all, until},
};

const NAMESPACE: &str = "bench-inbound";
/// The number of clients that send at the same time.
const CLIENTS: usize = 16;
/// The number of contacts whose conversations are known.
const KNOWN: usize = 200;
/// The number of first messages of one contact at once.
const BURST: usize = 50;

/// Runs the measurements.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let mut log = AuditLog::in_directory(Path::new(RESULTS))?;
    let setup =
        Setup { leads: true, router_namespace: Some(NAMESPACE), api_server_flags: log.flags(), ..Setup::default() };
    let world = World::start(bench, &setup)?;
    let sink = bench.runtime.block_on(Sink::start())?;
    bench.runtime.block_on(declare(&world, sink.address()))?;
    let routers = [router(&world, "router-1")?, router(&world, "router-2")?];
    let known = bench.runtime.block_on(open(&world, &routers))?;
    world.wait_until_at_rest()?;
    let forwarder = Forwarder::start(bench, &world, sink.address())?;
    let run = Run { bench, world: &world, router: &routers[0], forwarder: &forwarder, sink: &sink, known: &known };
    let mut rows = vec![run.calls(&mut log)?];
    rows.extend(run.throughput()?);
    rows.push(run.latency()?);
    rows.extend(run.first_messages(&routers)?);
    rows.push(run.creates()?);
    drop((routers, forwarder, world));
    rows.push(memory(bench)?);
    Ok(rows)
}

/// Declares the address of the business.
async fn declare(world: &World<'_>, sink: SocketAddr) -> Result<()> {
    let spec = json!({"channel": "SMS", "address": PROXY, "inbound": {
        "sources": ["twilio"],
        "autocreate": {"namespace": NAMESPACE, "maxPerMinute": 100_000},
        "sink": {"uri": format!("http://{sink}/")},
    }});
    create_all(&world.administrator(), &[ProxyAddress::new("bench", serde_json::from_value(spec)?)]).await
}

/// Starts a router with the source `twilio`.
fn router(world: &World, name: &str) -> Result<Router> {
    let program = env::current_exe().map_err(Error::io("find", Path::new("this program")))?;
    let builder = Router::builder(program.with_file_name("switchboard"), name)
        .source("twilio", &format!("{{type: Twilio, publicURL: {PUBLIC_URL:?}}}"))
        .key("twilio", "authToken", AUTH_TOKEN);
    Ok(builder.start(world.control_plane())?)
}

/// Opens the known conversations, and sends a message to each through each router, so that the activity is reported and a window has
/// begun. Returns their contacts.
async fn open(world: &World<'_>, routers: &[Router]) -> Result<Vec<String>> {
    let batch = Batch::new(NAMESPACE);
    let mut contacts = Vec::new();
    for number in 0..KNOWN {
        let created = batch.create(world.administrator(), number).await?;
        contacts.push(created.spec.contact.map(|contact| contact.address).unwrap_or_default());
    }
    let conversations = Api::<Conversation>::namespaced(world.administrator(), NAMESPACE);
    until("the conversations to be bound", async || {
        let listed = conversations.list(&ListParams::default()).await;
        let has_status = |conversation: &Conversation| conversation.status.is_some();
        listed.is_ok_and(|listed| listed.items.iter().all(has_status))
    })
    .await?;
    let sender = Sender::new();
    for router in routers {
        let to = router.inbound_address();
        // Its watch shows the ProxyAddress and the claims a moment later.
        until("the router to know the ProxyAddress", async || sender.send(to, &contacts[0], "SM-first").await.is_ok())
            .await?;
        for contact in &contacts {
            sender.send(to, contact, &format!("SM-open-{contact}")).await?;
        }
    }
    Ok(contacts)
}

/// The process of the forwarder.
struct Forwarder {
    process: Process,
    address: SocketAddr,
}

impl Forwarder {
    fn start(bench: &Bench, world: &World, sink: SocketAddr) -> Result<Self> {
        let program = env::current_exe().map_err(Error::io("find", Path::new("this program")))?;
        let mut command = Command::new(program);
        command.args([forwarder::ARGUMENT, &sink.to_string()]);
        let log = world.control_plane().data_dir().join("logs/forwarder.log");
        let process = Process::new(forwarder::ARGUMENT, log, command)?;
        process.start()?;
        let printed = || fs::read_to_string(process.log()).ok()?.trim().parse().ok();
        bench.runtime.block_on(until("the forwarder", async || printed().is_some()))?;
        let address = printed().ok_or_else(|| Error::Unexpected("the forwarder has no address".to_owned()))?;
        Ok(Self { process, address })
    }
}

/// What the measurements share.
struct Run<'a> {
    bench: &'a Bench,
    world: &'a World<'a>,
    router: &'a Router,
    forwarder: &'a Forwarder,
    sink: &'a Sink,
    known: &'a [String],
}

impl Run<'_> {
    /// Sends messages of the known contacts. Each client has a connection of its own.
    fn send_known(&self, to: SocketAddr, what: &str, count: usize) -> Result<Drive> {
        let senders: Vec<_> = (0..CLIENTS).map(|_| Sender::new()).collect();
        let (known, what) = (self.known.to_vec(), format!("{what}-{}", serial()));
        let send = move |sender: Sender, number: usize| {
            let (contact, id) = (known[number % known.len()].clone(), format!("SM-{what}-{number}"));
            async move { sender.send(to, &contact, &id).await }
        };
        let driven = self.bench.runtime.block_on(drive(&senders, count, send))?;
        let delivered = self.sink.take().len();
        if delivered != count {
            return Err(Error::Unexpected(format!("{delivered} of {count} messages were delivered")));
        }
        Ok(driven)
    }

    /// The requests to the API server for messages to known bindings within a window.
    fn calls(&self, log: &mut AuditLog) -> Result<Row> {
        let count = self.bench.options.pick(2000, 100);
        self.bench.progress.step(&format!("API calls for {count} messages"));
        self.sink.take();
        log.calls()?;
        self.send_known(self.router.inbound_address(), "calls", count)?;
        let calls = log.calls()?;
        // Watches start again from time to time, and the leader renews its Lease.
        let counts = |verb: &str, resource: &str| verb != "watch" && resource != "leases";
        let calls = calls.iter().filter(|(call, _)| call.by_operator && counts(&call.verb, &call.resource));
        let name = format!("API calls for {count} messages to known bindings");
        let row = Row::figures(11, name, Unit::Count, &[as_f64(calls.map(|(_, count)| count).sum())]);
        Ok(row.target(Target::AtMost(0.0)))
    }

    /// Messages a second of the processor time of the router and of the forwarder, and of elapsed time.
    fn throughput(&self) -> Result<Vec<Row>> {
        let count = self.bench.options.pick(20_000, 200);
        let pairs = self.bench.options.pairs();
        let (mut by_core, mut by_time) = (Vec::new(), Vec::new());
        for pair in 1..=pairs {
            let measure = |what: &str, to, id| {
                self.bench.progress.step(&format!("pair {pair} of {pairs}, {count} messages, {what}"));
                let before = processor_seconds(id)?;
                let driven = self.send_known(to, what, count)?;
                // The processor time is counted in hundredths of a second.
                let used = (processor_seconds(id)? - before).max(0.01);
                Ok::<_, Error>((as_f64(count) / used, driven.rate()))
            };
            let router = measure("router", self.router.inbound_address(), self.router.id())?;
            let forwarder = measure("forwarder", self.forwarder.address, self.forwarder.process.id())?;
            self.bench.progress.pair(pair, (router.0, forwarder.0));
            by_core.push((router.0, forwarder.0));
            by_time.push((router.1, forwarder.1));
        }
        Ok(vec![
            Row::pairs(11, "messages to known bindings, one core ÷ bare forwarder", Unit::PerSecond, &by_core)
                .target(Target::AtLeast(0.8)),
            Row::pairs(11, format!("  the same, {CLIENTS} clients, all on one machine"), Unit::PerSecond, &by_time),
        ])
    }

    /// The p99 that the router adds to a post to the sink, at a steady rate.
    fn latency(&self) -> Result<Row> {
        let (seconds, rate) = (self.bench.options.pick(20, 1), self.bench.options.pick(500, 50));
        let mut added = Vec::new();
        let pairs = self.bench.options.pairs();
        for pair in 1..=pairs {
            let p99 = |router: Option<SocketAddr>| {
                let what = if router.is_some() { "router" } else { "sink alone" };
                self.bench.progress.step(&format!("pair {pair} of {pairs}, {rate} messages a second, {what}"));
                let sent = steadily(router, self.sink, self.known, rate, seconds * rate);
                let sent = self.bench.runtime.block_on(sent);
                self.sink.take();
                Ok::<_, Error>(percentile(&sent?, 0.99))
            };
            let (with, without) = (p99(Some(self.router.inbound_address()))?, p99(None)?);
            self.bench.progress.pair(pair, (with, without));
            added.push(with - without);
        }
        let row = Row::figures(11, format!("p99 added at {rate} messages a second"), Unit::Milliseconds, &added);
        Ok(row.target(Target::AtMost(5.0)))
    }

    /// Many first messages of one contact at once, through two routers.
    fn first_messages(&self, routers: &[Router]) -> Result<Vec<Row>> {
        let rounds = self.bench.options.pick(20, 2);
        self.bench.progress.step(&format!("{rounds} rounds of {BURST} first messages"));
        let (mut milliseconds, mut opened) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let contact = format!("+1777{:07}", serial());
            self.sink.take();
            let began = Instant::now();
            let answered = self.bench.runtime.block_on(at_once(routers, &contact))?;
            milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
            let (created, received): (Vec<_>, Vec<_>) =
                self.sink.take().into_iter().partition(|event| event.id.ends_with("/created"));
            let delivered: HashMap<_, _> = received.iter().map(|event| (event.id.as_str(), event.at)).collect();
            if created.len() != 1 || received.len() != BURST || delivered.len() != BURST {
                let counts = (created.len(), received.len(), delivered.len());
                return Err(Error::Unexpected(format!("opened, delivered, of different messages: {counts:?}")));
            }
            let is_early =
                |(id, at): &(String, Instant)| delivered.get(id.as_str()).is_none_or(|accepted| accepted > at);
            if let Some((id, _)) = answered.iter().find(|answered| is_early(answered)) {
                return Err(Error::Unexpected(format!("{id} was answered before its delivery")));
            }
            opened.push(self.bench.runtime.block_on(stored(self.world, &contact))?);
        }
        Ok(vec![
            Row::figures(11, format!("{BURST} first messages at once, two routers"), Unit::Milliseconds, &milliseconds),
            Row::figures(11, "  conversations for them", Unit::Count, &opened).target(Target::AtMost(1.0)),
        ])
    }

    /// Conversations a second that messages open, compared with conversations that clients create.
    fn creates(&self) -> Result<Row> {
        let count = self.bench.options.pick(600, 32);
        let pairs = self.bench.options.pairs();
        let mut measured = Vec::new();
        for pair in 1..=pairs {
            self.bench.progress.step(&format!("pair {pair} of {pairs}, {count} messages that open conversations"));
            let senders: Vec<_> = (0..CLIENTS).map(|_| Sender::new()).collect();
            let (to, series) = (self.router.inbound_address(), serial());
            let send = move |sender: Sender, number: usize| {
                let contact = format!("+188{series:04}{number:04}");
                async move { sender.send(to, &contact, &format!("SM-first-{contact}")).await }
            };
            let opened = self.bench.runtime.block_on(drive(&senders, count, send))?;
            self.world.wait_until_at_rest()?;
            self.bench.progress.step(&format!("pair {pair} of {pairs}, {count} creates"));
            let batch = Batch::new(NAMESPACE);
            let create = move |client, number| {
                let batch = batch.clone();
                async move { batch.create(client, number).await.map(drop) }
            };
            let created = self.bench.runtime.block_on(async {
                let clients = self.world.clients(CLIENTS).await?;
                drive(&clients, count, create).await
            })?;
            self.world.wait_until_at_rest()?;
            self.bench.progress.pair(pair, (opened.rate(), created.rate()));
            measured.push((opened.rate(), created.rate()));
        }
        let row = Row::pairs(11, "conversations opened by messages ÷ creates", Unit::PerSecond, &measured);
        Ok(row.target(Target::AtLeast(0.9)))
    }
}

/// A number that no other call of this function returns, below ten thousand.
fn serial() -> usize {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Sends messages of known contacts, `rate` a second, to the router or, without one, small events to the sink. Returns how long each took,
/// in milliseconds.
async fn steadily(
    router: Option<SocketAddr>,
    sink: &Sink,
    known: &[String],
    rate: usize,
    count: usize,
) -> Result<Vec<f64>> {
    let (sender, series) = (Sender::new(), serial());
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX));
    let mut tasks = JoinSet::<Result<f64>>::new();
    for number in 0..count {
        ticks.tick().await;
        let (sender, contact, sink) = (sender.clone(), known[number % known.len()].clone(), sink.address());
        tasks.spawn(async move {
            let (began, id) = (Instant::now(), format!("SM-steady-{series}-{number}"));
            match router {
                Some(router) => sender.send(router, &contact, &id).await?,
                None => sender.post(sink, &id).await?,
            }
            Ok(began.elapsed().as_secs_f64() * 1e3)
        });
    }
    let mut milliseconds = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        milliseconds.push(ended??);
    }
    Ok(milliseconds)
}

/// Sends messages of a contact at once, through each router in turn. Returns their IDs and when they were answered.
async fn at_once(routers: &[Router], contact: &str) -> Result<Vec<(String, Instant)>> {
    let mut tasks = JoinSet::<Result<(String, Instant)>>::new();
    for (number, router) in (0..BURST).zip(routers.iter().cycle()) {
        let (to, contact) = (router.inbound_address(), contact.to_owned());
        tasks.spawn(async move {
            let id = format!("SM-{contact}-{number}");
            Sender::new().send(to, &contact, &id).await?;
            Ok((id, Instant::now()))
        });
    }
    let mut answered = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        answered.push(ended??);
    }
    Ok(answered)
}

/// The number of conversations of a contact.
async fn stored(world: &World<'_>, contact: &str) -> Result<f64> {
    let conversations = Api::<Conversation>::namespaced(world.administrator(), NAMESPACE);
    let of_contact = ListParams::default().fields(&format!("spec.contact.address={contact}"));
    let names: HashSet<_> =
        conversations.list(&of_contact).await?.into_iter().map(|found| found.metadata.name).collect();
    Ok(as_f64(names.len()))
}

/// The memory of a router for each of many open conversations.
fn memory(bench: &Bench) -> Result<Row> {
    let many = bench.options.many();
    let [empty, full] = [resident(bench, Seed::Open(0))?, resident(bench, Seed::Open(many))?];
    let base = Summary::of(&empty).map_or(0.0, |summary| summary.median);
    let each: Vec<_> = full.iter().map(|figure| (figure - base) / as_f64(many)).collect();
    let row = Row::figures(11, format!("memory of a router, each of {many} open"), Unit::Bytes, &each);
    Ok(row.target(Target::AtMost(1024.0)))
}

fn resident(bench: &Bench, seed: Seed) -> Result<Vec<f64>> {
    let data = seed.data(bench)?;
    let world = World::start(bench, &Setup { data, router_namespace: Some(NAMESPACE), ..Setup::default() })?;
    let starts = bench.options.pick(3, 1);
    let mut figures = Vec::new();
    for start in 1..=starts {
        bench.progress.step(&format!("memory of a router, {seed:?}, start {start} of {starts}"));
        let router = router(&world, &format!("router-{start}"))?;
        wait_until_at_rest(&[router.id()])?;
        figures.push(resident_bytes(router.id())?.0);
    }
    Ok(figures)
}
