//! Scenario 5: the memory of the leader and of a standby, per stored conversation. It includes memory from the initial lists that stays
//! resident.

use crate::{
    error::Result,
    process::resident_bytes,
    report::{Row, Summary, Target, Unit, as_f64},
    seed::Seed,
    world::{Bench, Setup, World},
};

/// Resident memory in bytes, one figure per start.
struct Memory {
    leader: Vec<f64>,
    standby: Vec<f64>,
    peak: Vec<f64>,
}

/// Runs the measurement.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let many = bench.options.many();
    let empty = measure(bench, Seed::Open(0))?;
    let mut rows = vec![
        Row::figures(5, "memory of the leader, nothing stored", Unit::Bytes, &empty.leader),
        Row::figures(5, "memory of a standby, nothing stored", Unit::Bytes, &empty.standby),
    ];
    let open = bench.options.sizes().into_iter();
    let open = open.map(|count| (Seed::Open(count), count, "open", (count == many).then_some(1024.0)));
    // A closed conversation must need very little memory.
    let closed = (Seed::Closed(many), many, "closed", Some(64.0));
    for (seed, count, what, most) in open.chain([closed]) {
        let memory = measure(bench, seed)?;
        let each = |figures: &[f64], empty: &[f64]| -> Vec<f64> {
            let base = Summary::of(empty).map_or(0.0, |summary| summary.median);
            figures.iter().map(|figure| (figure - base) / as_f64(count)).collect()
        };
        let row = |replica: &str, figures: &[f64], empty: &[f64]| {
            let row = Row::figures(
                5,
                format!("memory of {replica}, each of {count} {what}"),
                Unit::Bytes,
                &each(figures, empty),
            );
            match most {
                Some(most) => row.target(Target::AtMost(most)),
                None => row,
            }
        };
        rows.push(row("the leader", &memory.leader, &empty.leader));
        rows.push(row("a standby", &memory.standby, &empty.standby));
        rows.push(Row::figures(5, format!("  peak with {count} {what}"), Unit::Bytes, &memory.peak));
    }
    Ok(rows)
}

fn measure(bench: &Bench, seed: Seed) -> Result<Memory> {
    let data = seed.data(bench)?;
    let world = World::start(bench, &Setup { data, replicas: 2, ..Setup::default() })?;
    let mut memory = Memory { leader: Vec::new(), standby: Vec::new(), peak: Vec::new() };
    let starts = bench.options.pick(3, 1);
    for start in 1..=starts {
        bench.progress.step(&format!("{seed:?}, start {start} of {starts}"));
        // Replica 1 leads; the others are standbys from the start.
        world.restart_all()?;
        world.wait_until_at_rest()?;
        let [leader, standby] = [0, 1].map(|index| resident_bytes(world.installation().replica(index).id()));
        let ((leader, peak), (standby, _)) = (leader?, standby?);
        memory.leader.push(leader);
        memory.standby.push(standby);
        memory.peak.push(peak);
    }
    Ok(memory)
}
