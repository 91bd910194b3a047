//! Scenario 3: the latency of a create and of a refusal while 0, 10,000 and 100,000 conversations are stored. The control planes of all
//! sizes run side by side and are measured alternately.

use kube::{Api, api::PostParams};

use crate::{
    error::{Error, Result},
    load::drive,
    report::{Row, Target, Unit, percentile},
    seed::Seed,
    workload::Batch,
    world::{Bench, Setup, World},
};

const NAMESPACE: &str = "bench-latency";

/// The latencies of one control plane.
#[derive(Clone, Copy, Default)]
struct Latencies {
    p50: f64,
    p99: f64,
    refusal: f64,
}

/// Runs the measurement.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let sizes: Vec<_> = [0].into_iter().chain(bench.options.sizes()).collect();
    let mut worlds = Vec::new();
    for &size in &sizes {
        let data = Seed::Open(size).data(bench)?;
        let world = World::start(bench, &Setup { data, leads: true, ..Setup::default() })?;
        world.namespace(NAMESPACE)?;
        world.wait_until_at_rest()?;
        worlds.push(world);
    }
    let rounds = bench.options.pairs();
    let mut measured = vec![vec![Latencies::default(); sizes.len()]; rounds];
    for (round, measured) in measured.iter_mut().enumerate() {
        for ((world, size), latencies) in worlds.iter().zip(&sizes).zip(measured) {
            bench.progress.step(&format!("round {} of {rounds}, {size} stored", round + 1));
            *latencies = bench.runtime.block_on(latencies_of(world, bench.options.pick(300, 20)))?;
        }
    }
    let mut rows = Vec::new();
    for (index, size) in (1..).zip(&sizes[1..]) {
        let pairs = |of: fn(&Latencies) -> f64| -> Vec<_> {
            measured.iter().map(|measured| (of(&measured[index]), of(&measured[0]))).collect()
        };
        let name = |what: &str| format!("{what} with {size} stored ÷ with none");
        let row = |what: &str, of| Row::pairs(3, name(what), Unit::Milliseconds, &pairs(of));
        rows.push(row("p50 of a create", |latencies| latencies.p50).target(Target::AtMost(1.15)));
        rows.push(row("  p99", |latencies| latencies.p99));
        rows.push(row("  p50 of a refusal", |latencies| latencies.refusal));
    }
    Ok(rows)
}

/// One client creates conversations one after another, and then rivals for the same bindings.
async fn latencies_of(world: &World<'_>, count: usize) -> Result<Latencies> {
    let clients = world.clients(1).await?;
    let batch = Batch::new(NAMESPACE);
    let create = {
        let batch = batch.clone();
        move |client, number| {
            let batch = batch.clone();
            async move { batch.create(client, number).await.map(drop) }
        }
    };
    let created = drive(&clients, count, create).await?;
    let refuse = move |client, number| {
        let batch = batch.clone();
        async move {
            let mut rival = batch.conversation(number)?;
            rival.metadata.name = Some(format!("rival-{number}"));
            match Api::namespaced(client, NAMESPACE).create(&PostParams::default(), &rival).await {
                Err(kube::Error::Api(status)) if status.message.contains("48031") => Ok(()),
                other => Err(Error::Unexpected(format!("a second conversation for a binding was answered {other:?}"))),
            }
        }
    };
    let refused = drive(&clients, count, refuse).await?;
    Ok(Latencies {
        p50: percentile(&created.milliseconds, 0.5),
        p99: percentile(&created.milliseconds, 0.99),
        refusal: percentile(&refused.milliseconds, 0.5),
    })
}
