//! Scenario 10: creates per second with a thousand ProxyAddresses, compared with none; and a changed default timer of many stored
//! conversations: the time until every deadline is right, and the latency of a create meanwhile, compared with the latency before.

use std::time::{Duration, Instant};

use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use switchboard::api::{Conversation, ProxyAddress};

use crate::{
    error::{Error, Result},
    load::drive,
    report::{Row, Target, Unit, percentile},
    seed::Seed,
    workload::Batch,
    world::{Bench, SENTINEL, Setup, World, create_all, remove_all, until},
};

const NAMESPACE: &str = "bench-grants";
/// The number of concurrent clients.
const CLIENTS: usize = 16;
/// The prefix in the names of the ProxyAddresses.
const PREFIX: &str = "number-";
/// The ProxyAddress of the address that all conversations of the benchmark use.
const USED: &str = "number-used";
/// The number of conversations in a page of a list.
const PAGE: u32 = 500;
/// The maximum time until all conversations show a changed default.
const UPDATE_TIMEOUT: Duration = Duration::from_mins(40);

/// Runs the measurements.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = grants(bench)?;
    rows.extend(defaults(bench)?);
    Ok(rows)
}

/// ProxyAddresses that grant the namespace of the benchmark, one of them for the address of its conversations.
fn proxy_addresses(count: usize) -> Result<Vec<ProxyAddress>> {
    let declare = |name: &str, address: &str| {
        let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}});
        let spec = json!({"channel": "SMS", "address": address, "namespaces": {"selector": selector}});
        Ok(ProxyAddress::new(name, serde_json::from_value(spec)?))
    };
    let others = (1..count).map(|number| declare(&format!("{PREFIX}{number}"), &format!("+1999{number:07}")));
    [declare(USED, "+15017122661")].into_iter().chain(others).collect()
}

fn grants(bench: &Bench) -> Result<Vec<Row>> {
    let mut world = World::start(bench, &Setup::default())?;
    world.namespace(NAMESPACE)?;
    world.in_force(false)?;
    let declared = proxy_addresses(bench.options.pick(1000, 20))?;
    let (pairs, mut measured) = (bench.options.pairs(), Vec::new());
    for pair in 1..=pairs {
        bench.progress.step(&format!("pair {pair} of {pairs}, {} ProxyAddresses", declared.len()));
        bench.runtime.block_on(create_all(&world.administrator(), &declared))?;
        bench.runtime.block_on(until_denied(&world))?;
        let with = rate(bench, &world)?;
        bench.progress.step(&format!("pair {pair} of {pairs}, none"));
        bench.runtime.block_on(remove_all::<ProxyAddress>(&world.administrator(), PREFIX))?;
        let without = rate(bench, &world)?;
        bench.progress.pair(pair, (with, without));
        measured.push((with, without));
    }
    let name = format!("creates, {CLIENTS} clients, {} ProxyAddresses ÷ none", declared.len());
    Ok(vec![Row::pairs(10, name, Unit::PerSecond, &measured).target(Target::AtLeast(0.97))])
}

/// Waits until the grants are in force: another namespace may not use the address.
async fn until_denied(world: &World<'_>) -> Result<()> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let conversation = Batch::new(NAMESPACE).conversation(0)?;
    let elsewhere = Api::<Conversation>::namespaced(world.administrator(), SENTINEL);
    until("a denial with 48028", async || {
        matches!(elsewhere.create(&dry_run, &conversation).await, Err(kube::Error::Api(status)) if status.message.contains("48028"))
    })
    .await
}

fn rate(bench: &Bench, world: &World) -> Result<f64> {
    let batch = Batch::new(NAMESPACE);
    let rate = bench.runtime.block_on(async {
        let create = move |client, number| {
            let batch = batch.clone();
            async move { batch.create(client, number).await.map(drop) }
        };
        Ok(drive(&world.clients(CLIENTS).await?, bench.options.pick(1500, 32), create).await?.rate())
    });
    world.empty(NAMESPACE)?;
    rate
}

fn defaults(bench: &Bench) -> Result<Vec<Row>> {
    let count = bench.options.many();
    let data = Seed::Open(count).data(bench)?;
    let world = World::start(bench, &Setup { data, leads: true, ..Setup::default() })?;
    world.namespace(NAMESPACE)?;
    world.wait_until_at_rest()?;
    bench.runtime.block_on(async {
        let mut declared = proxy_addresses(1)?;
        // The seeded conversations are in another namespace.
        for declared in &mut declared {
            declared.spec.namespaces = None;
        }
        create_all(&world.administrator(), &declared).await
    })?;
    let creates = bench.options.pick(300, 20);
    bench.progress.step("creates before the change");
    let before = bench.runtime.block_on(latency(&world, creates))?;
    bench.progress.step(&format!("a default timer of {count} conversations changes"));
    let (seconds, meanwhile) = bench.runtime.block_on(async {
        let began = Instant::now();
        let patch = Patch::Merge(json!({"spec": {"defaults": {"timers": {"inactiveAfter": "4000h"}}}}));
        Api::<ProxyAddress>::all(world.administrator()).patch(USED, &PatchParams::default(), &patch).await?;
        let meanwhile = latency(&world, creates).await?;
        until_every_deadline_is_right(&world).await?;
        Ok::<_, Error>((began.elapsed().as_secs_f64(), meanwhile))
    })?;
    Ok(vec![
        Row::figures(10, format!("until {count} conversations show a changed default"), Unit::Seconds, &[seconds]),
        Row::pairs(10, "  p50 of a create meanwhile ÷ before", Unit::Milliseconds, &[(meanwhile, before)])
            .target(Target::AtMost(1.5)),
    ])
}

/// The p50 of the creates of one client, in milliseconds.
async fn latency(world: &World<'_>, count: usize) -> Result<f64> {
    let batch = Batch::new(NAMESPACE);
    let create = move |client, number| {
        let batch = batch.clone();
        async move { batch.create(client, number).await.map(drop) }
    };
    let created = drive(&world.clients(1).await?, count, create).await?;
    Ok(percentile(&created.milliseconds, 0.5))
}

/// Waits until every conversation has the deadline of the default `inactiveAfter`.
async fn until_every_deadline_is_right(world: &World<'_>) -> Result<()> {
    let conversations = Api::<Conversation>::all(world.administrator());
    let end = Instant::now() + UPDATE_TIMEOUT;
    while !is_every_deadline_right(&conversations).await? {
        if Instant::now() >= end {
            let waited = UPDATE_TIMEOUT.as_secs();
            return Err(Error::Unexpected(format!("waited {waited} s for the deadlines of a changed default")));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Whether every conversation has a deadline of `inactiveAfter`, except that of the sentinel, which uses another address.
///
/// Conversations are brought up to date in any order, so the first page almost always has an outdated one until the end, and the lists
/// cost little.
async fn is_every_deadline_right(conversations: &Api<Conversation>) -> Result<bool> {
    let mut parameters = ListParams::default().fields("spec.channel=SMS").limit(PAGE);
    loop {
        let page = conversations.list(&parameters).await?;
        let has_deadline = |conversation: &Conversation| {
            let deadlines = conversation.status.as_ref().and_then(|status| status.deadlines.as_ref());
            deadlines.is_some_and(|deadlines| deadlines.inactive_time.is_some())
        };
        if !page.items.iter().all(has_deadline) {
            return Ok(false);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(true),
        }
    }
}
