//! Implements `make test-versions`: it runs the suites that depend on the API server against several of its versions, and prints a table
//! of the results.

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

/// A module of the integration tests, or the tour, with its usual duration in seconds on two cores.
struct Suite {
    name: &'static str,
    usual: u64,
}

/// The tour of the playground, which is not a cargo test.
const TOUR: &str = "tour";

/// The suites that depend on the API server. None of them needs kube-controller-manager, which exists only in the current version.
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

/// The outcome of a suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    is_success: bool,
    /// The numbers of tests that passed and failed; zero for the tour.
    passed: usize,
    failed: usize,
}

impl Outcome {
    /// Reads the outcome from the output and the exit status. A suite that ran no test has failed.
    fn of_tests(output: &str, has_succeeded: bool) -> Self {
        let count = |what: &str| -> usize {
            let results = output.lines().filter_map(|line| line.strip_prefix("test result: "));
            let counts = results.flat_map(|line| line.split(['.', ';']));
            counts.filter_map(|count| count.trim().strip_suffix(what)?.trim().parse::<usize>().ok()).sum()
        };
        let (passed, failed) = (count(" passed"), count(" failed"));
        Self { is_success: has_succeeded && passed > 0, passed, failed }
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

/// Runs all suites against each version, one after the other, and prints their outcomes. Returns whether all of them passed. The output of
/// each suite is kept in `versions/` in Cargo's target directory.
pub fn run(versions: &[Kubernetes]) -> Result<bool, Error> {
    let usual: u64 = SUITES.iter().map(|suite| suite.usual).sum();
    say(&format!("{} suites against each version, {}", SUITES.len(), about(Duration::from_secs(usual))));
    // Builds all versions first, so that the user does not wait for half an hour before a build fails.
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

/// The programs that Cargo builds, and the directory of their logs.
struct Programs {
    /// Cargo writes the playground to the directory of this program.
    playground: PathBuf,
    logs: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, Error> {
        let own = env::current_exe().map_err(Error::io("find this program"))?;
        let target = own.ancestors().nth(2).unwrap_or(Path::new(""));
        Ok(Self { playground: own.with_file_name("playground"), logs: target.join("versions") })
    }

    /// Compiles first, so that the time of a suite does not include the compilation.
    fn compile(&self) -> Result<(), Error> {
        let mut cargo = cargo_test();
        cargo.arg("--no-run");
        let process = self.process("compile", Path::new(""), cargo)?;
        let mut progress = Progress::new("cargo test", "compiling", Duration::from_mins(2));
        let has_succeeded = finish(&process, &mut progress)?;
        progress.end(if has_succeeded { "compiled" } else { "FAILED" });
        if has_succeeded {
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
        let has_succeeded = finish(&process, &mut progress)?;
        let outcome = if suite.name == TOUR {
            Outcome { is_success: has_succeeded, passed: 0, failed: 0 }
        } else {
            let output = fs::read(process.log()).map_err(Error::io(format!("read {}", process.log().display())))?;
            Outcome::of_tests(&String::from_utf8_lossy(&output), has_succeeded)
        };
        progress.end(&outcome.to_string());
        if !outcome.is_success {
            say(&format!("{}\nThe whole output is in {}", process.log_tail(), process.log().display()));
        }
        Ok(outcome)
    }

    /// Creates a process that writes to its own log in this directory.
    fn process(&self, name: &'static str, directory: &Path, mut command: Command) -> Result<Process, Error> {
        let directory = self.logs.join(directory);
        fs::create_dir_all(&directory).map_err(Error::io(format!("create {}", directory.display())))?;
        let log = directory.join(format!("{}.log", name.replace("::", "-")));
        // An earlier run may have left a log.
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

/// Runs the process to its end, and returns whether it succeeded.
fn finish(process: &Process, progress: &mut Progress) -> Result<bool, Error> {
    process.start()?;
    loop {
        match process.wait(Duration::from_millis(200)) {
            Some(status) => return Ok(status.success()),
            None => progress.show(),
        }
    }
}

/// Formats a line for each suite and a column for each version.
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
    fn outcome_counts_the_results_of_cargo_test() {
        let outcome = Outcome::of_tests(PASSED, true);
        assert_eq!((outcome.is_success, outcome.to_string().as_str()), (true, "14 passed"));
        let outcome = Outcome::of_tests(FAILED, false);
        assert_eq!((outcome.is_success, outcome.to_string().as_str()), (false, "FAILED 3 of 15"));
    }

    #[test]
    fn suite_fails_if_it_runs_no_test_or_exits_with_an_error() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 14 filtered out\n";
        for (output, has_succeeded) in [("error: could not compile", false), (none, true), (PASSED, false)] {
            let outcome = Outcome::of_tests(output, has_succeeded);
            assert_eq!((outcome.is_success, outcome.to_string().as_str()), (false, "FAILED"), "{output}");
        }
    }

    #[test]
    fn table_has_a_line_per_suite_and_a_column_per_version() {
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
