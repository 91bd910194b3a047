//! `make bench`: what switchboard costs, against what the same API server does without it, on this machine.
//!
//! Ours and its baseline alternate in one run, on one etcd with fsync and one API server, and what counts is the ratio within each
//! pair: so the figures hold on a machine that is noisy or slow. CONTRIBUTING.md says how to run it.

mod audit;
mod chart;
mod error;
mod etcd;
mod load;
mod lookup;
mod machine;
mod observe;
mod options;
mod process;
mod progress;
mod report;
mod scenarios;
mod seed;
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

/// Where the results are written, from the root of the repository.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench");

fn main() -> ExitCode {
    let result = Options::from_environment().and_then(|options| bench(options).map_err(|error| error.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// What is written as JSON.
#[derive(Serialize)]
struct Results<'a> {
    machine: &'a Machine,
    /// Whether the numbers were too small to say much.
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
    // A client is bound to a runtime from the moment it is made.
    let entered = bench.runtime.handle().clone();
    let _entered = entered.enter();
    // Beside the last real measurement, and not in its place.
    let directory = Path::new(RESULTS).join(if bench.options.quick { "quick" } else { "" });
    fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    let directory = fs::canonicalize(&directory).map_err(Error::io("find", &directory))?;
    let mut rows = Vec::new();
    for scenario in scenarios {
        bench.progress.begin(scenario.number, scenario.title);
        let measured = (scenario.run)(&bench)?;
        // A check that everything works says nothing of the targets.
        rows.extend(measured.into_iter().map(|row| if quick { Row { target: None, ..row } } else { row }));
        // Each time, so that a run that is broken off was not for nothing.
        Results { machine: &bench.machine, quick, rows: &rows }.write(&directory)?;
        bench.progress.end();
    }
    println!("{}\n\n{}", bench.machine.line(), report::table(&rows));
    println!("Also as results.md, results.json and results.svg in {}", directory.display());
    Ok(())
}

impl Results<'_> {
    /// Writes them as data, as a table and as a picture.
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

/// Cargo puts the operator beside this program.
fn operator() -> Result<PathBuf> {
    let own = env::current_exe().map_err(Error::io("find", Path::new("this program")))?;
    Ok(own.with_file_name("switchboard"))
}
