//! The chart as helm renders it, the cases in `tests/testdata/chart`, and the files that are generated from the chart.

use control_plane::tools::{self, Tool};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The chart, relative to the root of the repository, in which cargo runs tests. An absolute path from compile time would be wrong
/// in a checkout that was copied with its build output.
pub const CHART: &str = "charts/switchboard";

/// The namespace of the release.
pub const NAMESPACE: &str = control_plane::installation::NAMESPACE;

/// A way to install the chart: a directory with the values and the expected rendering.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    directory: PathBuf,
}

impl Case {
    /// All cases, sorted by name.
    pub fn all() -> Vec<Self> {
        let entries = std::fs::read_dir("tests/testdata/chart").unwrap();
        let directories = entries.map(|entry| entry.unwrap().path()).filter(|path| path.join("values.yaml").is_file());
        let name = |directory: &Path| directory.file_name().unwrap().to_str().unwrap().to_owned();
        let mut cases: Vec<_> = directories.map(|directory| Self { name: name(&directory), directory }).collect();
        cases.sort_by(|one, other| one.name.cmp(&other.name));
        cases
    }

    /// The case with this name.
    pub fn named(name: &str) -> Self {
        Self::all().into_iter().find(|case| case.name == name).unwrap()
    }

    /// The file with its values.
    pub fn values(&self) -> PathBuf {
        self.directory.join("values.yaml")
    }

    /// The expected rendering, without the CRDs, which are those of `crds/`.
    pub fn snapshot(&self) -> PathBuf {
        self.directory.join("rendered.yaml")
    }

    /// The rendering by helm, with more arguments.
    pub fn render(&self, arguments: &[&str]) -> String {
        let mut helm = helm();
        helm.args(["template", "switchboard", CHART, "--namespace", NAMESPACE, "--values"]).arg(self.values());
        super::succeed(helm.args(arguments))
    }

    /// The rendered objects, without the tests of the chart.
    pub fn objects(&self) -> Vec<Value> {
        documents(&self.render(&["--skip-tests"]))
    }
}

/// Helm, for commands that need no cluster.
pub fn helm() -> Command {
    let [helm] = tools::ensure([Tool::Helm]).unwrap_or_else(|error| panic!("{error}"));
    Command::new(helm)
}

/// The YAML documents in a text, without those that are empty or only comments.
pub fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---").map(|document| serde_saphyr::from_str(document).unwrap_or(Value::Null));
    documents.filter(|document| !document.is_null()).collect()
}

/// `KIND/NAME`.
pub fn title(object: &Value) -> String {
    format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
}

/// Asserts that a generated file has the expected content. With `UPDATE=1` in the environment, as `make generate` sets it, the file is
/// written first.
pub fn assert_generated(path: &Path, expected: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, expected).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    if found == expected {
        return;
    }
    let differs = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    let line = differs.unwrap_or_else(|| found.lines().count().min(expected.lines().count()));
    panic!(
        "{} is stale from line {} on: run `make generate`\n  found:    {}\n  expected: {}",
        path.display(),
        line + 1,
        found.lines().nth(line).unwrap_or("(nothing)"),
        expected.lines().nth(line).unwrap_or("(nothing)"),
    );
}
