//! Scenario 1: creates per second through the webhook, with the controller paused and at work, compared with the same creates without
//! switchboard except its CRDs.

use crate::{
    error::Result,
    load::drive,
    report::{Row, Target, Unit},
    workload::Batch,
    world::{Bench, Setup, World},
};

const NAMESPACE: &str = "bench-creates";

/// The number of concurrent clients, and the number of conversations that they create together.
const CLIENTS: [(usize, usize); 4] = [(1, 200), (4, 600), (16, 1500), (64, 1500)];

/// Runs the measurement.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let mut world = World::start(bench, &Setup::default())?;
    world.namespace(NAMESPACE)?;
    let mut paused = vec![Vec::new(); CLIENTS.len()];
    let mut at_work = vec![Vec::new(); CLIENTS.len()];
    let pairs = bench.options.pairs();
    for pair in 1..=pairs {
        let step = |what: &str| bench.progress.step(&format!("pair {pair} of {pairs}, {what}"));
        step("controller paused");
        world.in_force(false)?;
        let ours = rates(bench, &world)?;
        step("bare");
        world.bare()?;
        let bare = rates(bench, &world)?;
        step("controller at work");
        world.in_force(true)?;
        let ours_at_work = rates(bench, &world)?;
        for (index, bare) in bare.into_iter().enumerate() {
            bench.progress.pair(pair, (ours[index], bare));
            paused[index].push((ours[index], bare));
            at_work[index].push((ours_at_work[index], bare));
        }
    }
    let row = |at: &str, clients: usize, pairs: &[(f64, f64)]| {
        let plural = if clients == 1 { "" } else { "s" };
        Row::pairs(1, format!("creates, {clients} client{plural}, controller {at}"), Unit::PerSecond, pairs)
    };
    let mut rows = Vec::new();
    for ((clients, _), pairs) in CLIENTS.into_iter().zip(&paused) {
        let row = row("paused", clients, pairs);
        rows.push(if clients == 16 { row.target(Target::AtLeast(0.45)) } else { row });
    }
    rows.extend(CLIENTS.into_iter().zip(&at_work).map(|((clients, _), pairs)| row("at work", clients, pairs)));
    Ok(rows)
}

/// Creates per second for each number of clients.
fn rates(bench: &Bench, world: &World) -> Result<Vec<f64>> {
    let rate = |(clients, count): (usize, usize)| {
        let batch = Batch::new(NAMESPACE);
        let rate = bench.runtime.block_on(async {
            let clients = world.clients(clients).await?;
            let create = move |client, number| {
                let batch = batch.clone();
                async move { batch.create(client, number).await.map(drop) }
            };
            Ok(drive(&clients, bench.options.pick(count, 32), create).await?.rate())
        });
        world.empty(NAMESPACE)?;
        rate
    };
    CLIENTS.into_iter().map(rate).collect()
}
