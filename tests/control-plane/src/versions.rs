//! What `make test-versions` does: runs the suites that depend on the API server against several versions of it, and prints a table.
//! What a suite claims is decided elsewhere: this counts what passed.

use std::{
    env,
    fmt::{self, Write},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    Error, Kubernetes, kubernetes,
    process::Process,
    progress::{Progress, about, say},
    repository,
    tools::{self, Tool},
    tour,
};

/// A module of the integration tests, or the tour, and how many seconds it usually takes on two cores.
struct Suite {
    name: &'static str,
    usual: u64,
}

/// The tour of the playground, which is no test.
const TOUR: &str = "tour";

/// Those whose outcome depends on the API server. None of them needs kube-controller-manager, of which there is only the current one.
const SUITES: [Suite; 12] = [
    Suite { name: "api_server::facts", usual: 10 },
    Suite { name: "api_server::schema", usual: 15 },
    Suite { name: "api_server::leader", usual: 25 },
    Suite { name: "processes::admission", usual: 10 },
    Suite { name: "processes::lifecycle", usual: 20 },
    Suite { name: "processes::leader", usual: 40 },
    Suite { name: "processes::certificates", usual: 40 },
    Suite { name: "processes::races", usual: 180 },
    Suite { name: "chart::policies", usual: 15 },
    Suite { name: "chart::installation", usual: 70 },
    Suite { name: "chart::rbac", usual: 20 },
    Suite { name: TOUR, usual: 20 },
];

/// How a suite came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    is_success: bool,
    /// How many of its tests passed and failed, as far as it got; none for the tour.
    passed: usize,
    failed: usize,
}

impl Outcome {
    /// Of what the tests printed, and how it ended. One that ran no test has shown nothing.
    fn of_tests(output: &str, ended_well: bool) -> Self {
        let count = |what: &str| -> usize {
            let results = output.lines().filter_map(|line| line.strip_prefix("test result: "));
            let counts = results.flat_map(|line| line.split(['.', ';']));
            counts.filter_map(|count| count.trim().strip_suffix(what)?.trim().parse::<usize>().ok()).sum()
        };
        let (passed, failed) = (count(" passed"), count(" failed"));
        Self { is_success: ended_well && passed > 0, passed, failed }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self { is_success: true, passed: 0, .. } => "passed".to_owned(),
            Self { is_success: true, passed, .. } => format!("{passed} passed"),
            Self { failed: 0, .. } => "FAILED".to_owned(),
            Self { passed, failed, .. } => format!("FAILED {failed} of {}", passed + failed),
        };
        formatter.pad(&text)
    }
}

/// Runs all suites against each version, one after the other, and prints how they came out. Returns whether all of them passed. What
/// a suite printed stays in `versions/`, in Cargo's target directory.
pub fn run(versions: &[Kubernetes]) -> Result<bool, Error> {
    let usual: u64 = SUITES.iter().map(|suite| suite.usual).sum();
    say(&format!("{} suites against each version, {}", SUITES.len(), about(Duration::from_secs(usual))));
    // First, so that nobody waits for half an hour to read that one of them cannot be built.
    for version in versions {
        tools::ensure_with(Some(*version), Tool::PLAYGROUND)?;
    }
    let programs = Programs::find()?;
    programs.compile()?;
    let mut columns = Vec::new();
    for version in versions {
        say(&format!("{version:?}"));
        columns.push(SUITES.iter().map(|suite| programs.run(suite, *version)).collect::<Result<Vec<_>, _>>()?);
    }
    tour::print(&format!("\n{}", table(versions, &columns)))?;
    Ok(columns.iter().flatten().all(|outcome| outcome.is_success))
}

/// What Cargo builds, and what it prints.
struct Programs {
    /// Cargo puts the playground beside this program.
    playground: PathBuf,
    logs: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, Error> {
        let own = env::current_exe().map_err(Error::io("find this program"))?;
        let target = own.ancestors().nth(2).unwrap_or(Path::new(""));
        Ok(Self { playground: own.with_file_name("playground"), logs: target.join("versions") })
    }

    /// First, so that no suite's time has the compiler's in it.
    fn compile(&self) -> Result<(), Error> {
        let mut cargo = cargo_test();
        cargo.arg("--no-run");
        let process = self.process("compile", Path::new(""), cargo)?;
        let mut progress = Progress::new("cargo test", "compiling", Duration::from_mins(2));
        let ended_well = finish(&process, &mut progress)?;
        progress.end(if ended_well { "compiled" } else { "FAILED" });
        if ended_well {
            return Ok(());
        }
        Err(Error::Command { command: "cargo test --no-run".to_owned(), output: process.log_tail() })
    }

    fn run(&self, suite: &Suite, version: Kubernetes) -> Result<Outcome, Error> {
        let mut command = if suite.name == TOUR {
            let mut playground = Command::new(&self.playground);
            playground.env("ONCE", "1");
            playground
        } else {
            let mut cargo = cargo_test();
            cargo.arg(format!("{}::", suite.name));
            cargo
        };
        command.env(kubernetes::VARIABLE, version.minor());
        let process = self.process(suite.name, Path::new(version.minor()), command)?;
        let mut progress = Progress::new(suite.name, "running", Duration::from_secs(suite.usual));
        let ended_well = finish(&process, &mut progress)?;
        let outcome = if suite.name == TOUR {
            Outcome { is_success: ended_well, passed: 0, failed: 0 }
        } else {
            let output = fs::read(process.log()).map_err(Error::io(format!("read {}", process.log().display())))?;
            Outcome::of_tests(&String::from_utf8_lossy(&output), ended_well)
        };
        progress.end(&outcome.to_string());
        if !outcome.is_success {
            say(&format!("{}\nThe whole output is in {}", process.log_tail(), process.log().display()));
        }
        Ok(outcome)
    }

    /// Prints to a log of its own, in a directory of this name.
    fn process(&self, name: &'static str, directory: &Path, mut command: Command) -> Result<Process, Error> {
        let directory = self.logs.join(directory);
        fs::create_dir_all(&directory).map_err(Error::io(format!("create {}", directory.display())))?;
        let log = directory.join(format!("{}.log", name.replace("::", "-")));
        // Of an earlier run.
        let _ = fs::remove_file(&log);
        command.current_dir(repository::root()?);
        Process::new(name, log, command)
    }
}

fn cargo_test() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--locked", "--package", "switchboard", "--test", "integration"]);
    cargo
}

/// Runs it to its end. Returns whether that was a success.
fn finish(process: &Process, progress: &mut Progress) -> Result<bool, Error> {
    process.start()?;
    loop {
        match process.wait(Duration::from_millis(200)) {
            Some(status) => return Ok(status.success()),
            None => progress.show(),
        }
    }
}

/// A line for each suite, a column for each version.
fn table(versions: &[Kubernetes], columns: &[Vec<Outcome>]) -> String {
    let mut table = format!("{:24}", "suite");
    for version in versions {
        let _ = write!(table, "{:16}", version.to_string());
    }
    for (row, suite) in SUITES.iter().enumerate() {
        let _ = write!(table, "\n{:24}", suite.name);
        for column in columns {
            let _ = write!(table, "{:16}", column[row]);
        }
    }
    let trimmed: Vec<_> = table.lines().map(str::trim_end).collect();
    trimmed.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::{Kubernetes, Outcome, SUITES, table};

    const PASSED: &str =
        "\nrunning 15 tests\n…\ntest result: ok. 14 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n";
    const FAILED: &str = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out\n";

    #[test]
    fn outcome_counts_what_cargo_test_prints() {
        let outcome = Outcome::of_tests(PASSED, true);
        assert_eq!((outcome.is_success, outcome.to_string().as_str()), (true, "14 passed"));
        let outcome = Outcome::of_tests(FAILED, false);
        assert_eq!((outcome.is_success, outcome.to_string().as_str()), (false, "FAILED 3 of 15"));
    }

    #[test]
    fn suite_that_ran_no_test_or_ended_badly_has_failed() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 14 filtered out\n";
        for (output, ended_well) in [("error: could not compile", false), (none, true), (PASSED, false)] {
            let outcome = Outcome::of_tests(output, ended_well);
            assert_eq!((outcome.is_success, outcome.to_string().as_str()), (false, "FAILED"), "{output}");
        }
    }

    #[test]
    fn table_has_a_line_for_each_suite_and_a_column_for_each_version() {
        let versions = [Kubernetes::of_minor("1.31").unwrap(), Kubernetes::current()];
        let passed = SUITES.iter().map(|_| Outcome::of_tests(PASSED, true)).collect();
        let failed = SUITES.iter().map(|_| Outcome::of_tests(FAILED, false)).collect();
        let table = table(&versions, &[passed, failed]);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 1 + SUITES.len());
        assert_eq!(lines[0], "suite                   1.31.14         1.37.2");
        assert_eq!(lines[1], "api_server::facts       14 passed       FAILED 3 of 15");
    }
}
