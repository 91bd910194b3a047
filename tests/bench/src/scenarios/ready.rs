//! Scenario 2: conversations created and Ready, compared with a bare client that makes the same writes (object, claim, status, events)
//! without switchboard except its CRDs.

use std::time::Instant;

use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    error::{Error, Result},
    load::drive,
    observe::Observer,
    report::{Row, Target, Unit, as_f64},
    workload::{BareClient, Batch},
    world::{Bench, Setup, World},
};

const NAMESPACE: &str = "bench-ready";

/// The number of concurrent clients. The operator and the bare client write as many statuses concurrently.
const CLIENTS: usize = 16;

/// Runs the measurement.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let count = bench.options.pick(2000, 64);
    let mut world = World::start(bench, &Setup::default())?;
    world.namespace(NAMESPACE)?;
    let all = bench.options.pairs();
    let mut pairs = Vec::new();
    for pair in 1..=all {
        bench.progress.step(&format!("pair {pair} of {all}, switchboard"));
        world.in_force(true)?;
        let ours = bench.runtime.block_on(ours(&world, count))?;
        world.empty(NAMESPACE)?;
        bench.progress.step(&format!("pair {pair} of {all}, a bare client"));
        world.bare()?;
        let bare = bench.runtime.block_on(bare(&world, count))?;
        world.empty(NAMESPACE)?;
        let measured = (as_f64(count) / ours, as_f64(count) / bare);
        bench.progress.pair(pair, measured);
        pairs.push(measured);
    }
    let row = Row::pairs(2, format!("{count} conversations created and Ready"), Unit::PerSecond, &pairs);
    Ok(vec![row.target(Target::AtLeast(0.9))])
}

/// Seconds until a watching client has observed all conversations as Ready.
async fn ours(world: &World<'_>, count: usize) -> Result<f64> {
    let batch = Batch::new(NAMESPACE).half_unassigned();
    let clients = world.clients(CLIENTS).await?;
    let mut observer = Observer::of_conversations(world.administrator(), NAMESPACE).await?;
    let started = Instant::now();
    let create = move |client, number| {
        let batch = batch.clone();
        async move { batch.create(client, number).await.map(drop) }
    };
    drive(&clients, count, create).await?;
    observer.wait_until("all Ready", |seen| seen.ready.len() == count).await?;
    Ok(started.elapsed().as_secs_f64())
}

/// The same for a bare client: its creators pass the stored objects to its status writers.
async fn bare(world: &World<'_>, count: usize) -> Result<f64> {
    let batch = Batch::new(NAMESPACE).half_unassigned();
    let clients = BareClient::each(world.clients(CLIENTS).await?);
    let writers = BareClient::each(world.clients(CLIENTS).await?);
    let mut observer = Observer::of_conversations(world.administrator(), NAMESPACE).await?;
    let started = Instant::now();
    let (stored, to_write) = mpsc::unbounded_channel();
    let to_write = std::sync::Arc::new(tokio::sync::Mutex::new(to_write));
    let mut writing = JoinSet::<Result<()>>::new();
    for bare in writers {
        let to_write = to_write.clone();
        writing.spawn(async move {
            while let Some(conversation) = { to_write.lock().await.recv().await } {
                bare.status(&conversation).await?;
            }
            Ok(())
        });
    }
    let create = move |bare: BareClient, number| {
        let (batch, stored) = (batch.clone(), stored.clone());
        async move {
            bare.claim(&batch, &batch.conversation(number)?).await?;
            let conversation = bare.create(&batch, number).await?;
            stored.send(conversation).map_err(|_| Error::Unexpected("all status writers have ended".to_owned()))
        }
    };
    drive(&clients, count, create).await?;
    while let Some(ended) = writing.join_next().await {
        ended??;
    }
    observer.wait_until("all Ready", |seen| seen.ready.len() == count).await?;
    Ok(started.elapsed().as_secs_f64())
}
