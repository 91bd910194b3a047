//! `make bench`: measures the cost of switchboard, compared with the same API server without it, on this machine.
//!
//! Switchboard and its baseline alternate in one run, on one etcd with fsync and one API server. Only the ratio within each pair counts,
//! so the figures hold on a noisy or slow machine. CONTRIBUTING.md describes the commands.

mod audit;
mod chart;
mod error;
mod etcd;
mod forwarder;
mod load;
mod lookup;
mod machine;
mod messages;
mod observe;
mod options;
mod process;
mod progress;
mod report;
mod scenarios;
mod seed;
mod sink;
mod workload;
mod world;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use control_plane::tools::{self, Tool};
use machine::Machine;
use options::Options;
use progress::Progress;
use report::Row;
use serde::Serialize;
use world::Bench;

use error::{Error, Result};

/// The directory of the results.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench");

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let Some((forwarder::ARGUMENT, arguments)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        return forwarder::main(arguments);
    }
    let result = Options::from_environment().and_then(|options| bench(options).map_err(|error| error.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The results as JSON.
#[derive(Serialize)]
struct Results<'a> {
    machine: &'a Machine,
    /// Whether the numbers were too small for a measurement.
    quick: bool,
    rows: &'a [Row],
}

fn bench(options: Options) -> Result<()> {
    tools::ensure(Tool::TESTS)?;
    let operator = operator()?;
    let machine = Machine::here(&operator)?;
    let scenarios: Vec<_> = scenarios::ALL.iter().filter(|scenario| options.wants(scenario.number)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("start threads for", &operator))?;
    let quick = options.quick;
    let mut bench = Bench { options, progress: Progress::new(scenarios.len()), runtime, operator, machine };
    // A client needs the runtime when it is created.
    let entered = bench.runtime.handle().clone();
    let _entered = entered.enter();
    // A quick run does not overwrite the results of the last full run.
    let directory = Path::new(RESULTS).join(if bench.options.quick { "quick" } else { "" });
    fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    let directory = fs::canonicalize(&directory).map_err(Error::io("find", &directory))?;
    let mut rows = Vec::new();
    for scenario in scenarios {
        bench.progress.begin(scenario.number, scenario.title);
        let measured = (scenario.run)(&bench)?;
        // A quick run does not compare with targets.
        rows.extend(measured.into_iter().map(|row| if quick { Row { target: None, ..row } } else { row }));
        // Writes after each scenario, so that an interrupted run keeps its results.
        Results { machine: &bench.machine, quick, rows: &rows }.write(&directory)?;
        bench.progress.end();
    }
    println!("{}\n\n{}", bench.machine.line(), report::table(&rows));
    println!("Written to results.md, results.json and results.svg in {}", directory.display());
    Ok(())
}

impl Results<'_> {
    /// Writes the results as JSON, as a table and as an SVG.
    fn write(&self, directory: &Path) -> Result<()> {
        let Self { machine, rows, .. } = self;
        write(&directory.join("results.json"), &format!("{}\n", serde_json::to_string_pretty(self)?))?;
        write(&directory.join("results.md"), &format!("{}\n\n{}", machine.line(), report::table(rows)))?;
        write(&directory.join("results.svg"), &chart::draw(rows, &machine.line()))
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io("write", path))
}

/// Cargo writes the operator to the directory of this program.
fn operator() -> Result<PathBuf> {
    let own = env::current_exe().map_err(Error::io("find", Path::new("this program")))?;
    Ok(own.with_file_name("switchboard"))
}
