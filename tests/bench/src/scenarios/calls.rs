//! Scenario 8: the API calls in the whole life of a conversation, by verb and resource, from the audit log of the API server; and the
//! calls and the processor time at rest.

use std::{path::Path, thread, time::Duration};

use crate::{
    RESULTS,
    audit::{AuditLog, Call},
    error::Result,
    load::drive,
    observe::Observer,
    process,
    report::{Row, Target, Unit, as_f64},
    seed::Seed,
    workload::Batch,
    world::{Bench, Setup, World},
};

const NAMESPACE: &str = "bench-calls";
/// The target for processor time in a second at rest, in seconds.
const MAX_PROCESSOR_AT_REST: f64 = 0.01;

/// Runs the measurement.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let mut log = AuditLog::in_directory(Path::new(RESULTS))?;
    let setup = Setup { leads: true, api_server_flags: log.flags(), ..Setup::default() };
    let world = World::start(bench, &setup)?;
    world.namespace(NAMESPACE)?;
    let mut rows = lives(bench, &world, &mut log)?;
    rows.extend(rest(bench, &world, &mut log)?);
    drop(world);
    rows.push(rest_with_many(bench)?);
    Ok(rows)
}

/// Each conversation is created, bound and closed by its timer, and its claim is released.
fn lives(bench: &Bench, world: &World, log: &mut AuditLog) -> Result<Vec<Row>> {
    let count = bench.options.pick(200, 20);
    let batch = Batch::new(NAMESPACE).close_after("3s");
    bench.progress.step(&format!("{count} conversations from opening to release"));
    bench.runtime.block_on(async {
        let clients = world.clients(4).await?;
        let mut conversations = Observer::of_conversations(world.administrator(), NAMESPACE).await?;
        let mut claims = Observer::of_claims(world.administrator()).await?;
        log.calls()?;
        let create = move |client, number| {
            let batch = batch.clone();
            async move { batch.create(client, number).await.map(drop) }
        };
        drive(&clients, count, create).await?;
        conversations.wait_until("all closed", |seen| seen.closed.len() == count).await?;
        // The claim of the sentinel stays.
        claims.wait_until("all released", |seen| seen.claims.len() == 1).await?;
        Ok::<_, crate::error::Error>(())
    })?;
    let calls = log.calls()?;
    let a_life = |calls: usize| as_f64(calls) / as_f64(count);
    let counts = |call: &&Call| call.is_write() && call.resource != "events" && call.resource != "leases";
    let writes = calls.keys().filter(counts).map(|call| calls[call]).sum();
    let all = Row::figures(8, "API writes in a life, events not counted", Unit::Count, &[a_life(writes)]);
    let each = calls.iter().filter(|(call, _)| is_part_of_a_life(call)).map(|(call, count)| {
        let caller = if call.by_operator { "operator" } else { "client" };
        let name = format!("  {caller}: {} {}", call.verb, call.resource);
        Row::figures(8, name, Unit::Count, &[a_life(*count)])
    });
    Ok([all.target(Target::AtMost(5.0))].into_iter().chain(each).collect())
}

/// Whether the number of these calls depends on the number of conversations. Calls of the observers and for the Lease do not.
fn is_part_of_a_life(call: &Call) -> bool {
    call.resource != "leases" && !matches!(call.verb.as_str(), "list" | "watch")
}

/// Measures the calls and the processor time while nothing happens.
fn rest(bench: &Bench, world: &World, log: &mut AuditLog) -> Result<Vec<Row>> {
    let seconds = bench.options.pick(120, 5);
    log.calls()?;
    let processor = processor_share(bench, world, seconds)?;
    let calls = log.calls()?;
    let by_operator = |counts: fn(&Call) -> bool| -> f64 {
        as_f64(calls.iter().filter(|(call, _)| call.by_operator && counts(call)).map(|(_, count)| count).sum())
    };
    let row = |name: &str, figure| Row::figures(8, format!("{name} in {seconds} s at rest"), Unit::Count, &[figure]);
    Ok(vec![
        row("API writes", by_operator(|call| call.is_write() && call.resource != "leases")).target(Target::AtMost(0.0)),
        row("  renewals of the Lease", by_operator(|call| call.is_write() && call.resource == "leases")),
        row("  API reads", by_operator(|call| !call.is_write())),
        Row::figures(8, "processor time of the leader, a second at rest", Unit::Seconds, &[processor]),
    ])
}

/// Measures the processor time with many stored conversations, each with a timer.
fn rest_with_many(bench: &Bench) -> Result<Row> {
    let count = bench.options.many();
    let data = Seed::Open(count).data(bench)?;
    let world = World::start(bench, &Setup { data, leads: true, ..Setup::default() })?;
    world.wait_until_at_rest()?;
    let processor = processor_share(bench, &world, bench.options.pick(60, 5))?;
    let row =
        Row::figures(8, format!("processor time, a second at rest with {count} open"), Unit::Seconds, &[processor]);
    Ok(row.target(Target::AtMost(MAX_PROCESSOR_AT_REST)))
}

/// The processor time of the leader per second, measured for this number of seconds.
fn processor_share(bench: &Bench, world: &World, seconds: usize) -> Result<f64> {
    bench.progress.step(&format!("{seconds} s at rest"));
    let replica = world.installation().replica(0).id();
    let before = process::processor_seconds(replica)?;
    // The measurement needs this time.
    thread::sleep(Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)));
    Ok((process::processor_seconds(replica)? - before) / as_f64(seconds))
}
