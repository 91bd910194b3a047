//! The comments in the chart's values are the only source of its documentation. The tests compare README and schema with them, and
//! `make generate` writes both.

use crate::common::book;
use crate::common::chart::{CHART, assert_generated, documents, helm, title};
use crate::common::succeed;
use control_plane::tools::{self, Tool};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

fn path(name: &str) -> std::path::PathBuf {
    Path::new(CHART).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

#[test]
fn chart_readme_is_generated_from_the_values() {
    let [helm_docs] = tools::ensure([Tool::HelmDocs]).unwrap_or_else(|error| panic!("{error}"));
    let mut command = Command::new(helm_docs);
    command.args(["--dry-run", "--log-level=warning", "--chart-search-root", CHART]);
    let text = succeed(&mut command);
    // helm-docs skips a chart that it cannot read, without an error.
    for value in documented() {
        let row = format!("| {} |", value.path.join("."));
        assert!(text.contains(&row), "helm-docs omits {row}");
    }
    assert_generated(&path("README.md"), &format!("{}\n", text.trim()));
}

/// One value: its path, its default and its description.
struct Documented {
    path: Vec<String>,
    default: Value,
    description: String,
}

/// The values with a comment that starts with `# --`, in the order of the file.
fn documented() -> Vec<Documented> {
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    let (mut found, mut path, mut comment) = (Vec::new(), Vec::<(usize, String)>::new(), None::<String>);
    for line in read("values.yaml").lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(first) = text.strip_prefix("# -- ") {
            comment = Some(first.to_owned());
        } else if let (Some(comment), Some(more)) = (&mut comment, text.strip_prefix("# ")) {
            comment.push(' ');
            comment.push_str(more);
        } else if let Some((key, _)) = text.split_once(':').filter(|_| !text.starts_with(['#', '-'])) {
            while path.last().is_some_and(|(above, _)| *above >= indent) {
                path.pop();
            }
            path.push((indent, key.to_owned()));
            if let Some(description) = comment.take() {
                let path: Vec<_> = path.iter().map(|(_, key)| key.clone()).collect();
                let default = path.iter().fold(&values, |value, key| &value[key]).clone();
                found.push(Documented { path, default, description });
            }
        }
    }
    found
}

fn property<'a>(schema: &'a mut Value, path: &[String]) -> Option<&'a mut Map<String, Value>> {
    path.iter().try_fold(schema, |schema, key| schema.get_mut("properties")?.get_mut(key))?.as_object_mut()
}

#[test]
fn schema_describes_each_value_by_its_comment() {
    let mut schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    for Documented { path, default, description } in documented() {
        let property = property(&mut schema, &path).unwrap_or_else(|| panic!("the schema lacks {}", path.join(".")));
        property.insert("description".to_owned(), json!(description));
        property.insert("default".to_owned(), default);
    }
    assert_generated(&path("values.schema.json"), &format!("{}\n", serde_json::to_string_pretty(&schema).unwrap()));
}

/// The paths of all values in the schema, except those inside a value that is documented as a whole.
fn paths(schema: &Value, above: &str, found: &mut Vec<String>) {
    for (key, schema) in schema["properties"].as_object().unwrap() {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        if schema.get("description").is_none() && schema.get("properties").is_some() {
            paths(schema, &path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn schema_and_values_have_the_same_keys() {
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let mut known = Vec::new();
    paths(&schema, "", &mut known);
    // Helm owns this key; the chart does not read it.
    known.retain(|path| path != "global");
    let mut documented: Vec<_> = documented().into_iter().map(|value| value.path.join(".")).collect();
    known.sort();
    documented.sort();
    assert_eq!(known, documented);
}

/// Users copy the values from the guides.
#[test]
fn values_in_the_guides_render() {
    for (guide, key, count, object) in
        [("inbound", "router:", 2, "Ingress/switchboard-router"), ("events", "events:", 1, "Deployment/switchboard")]
    {
        let text = std::fs::read_to_string(format!("docs/{guide}.md")).unwrap();
        let blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        let values: Vec<_> = blocks.filter(|block| block.starts_with(key)).collect();
        assert_eq!(values.len(), count, "{values:?}");
        for (number, values) in values.iter().enumerate() {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("guide-{guide}-{number}.yaml"));
            std::fs::write(&path, values).unwrap();
            succeed(helm().args(["lint", "--strict", CHART, "--values"]).arg(&path));
            let objects = documents(&succeed(helm().args(["template", "switchboard", CHART, "--values"]).arg(&path)));
            assert!(objects.iter().any(|rendered| title(rendered) == object), "{values}");
        }
    }
}

/// The commands of the book for this program, each with a place, without comments and without what follows in a pipeline.
fn commands(program: &str) -> BTreeMap<String, String> {
    let alone = |command: &str| {
        let ends = [" | ", " > ", " && ", " <<", " # ", "; "];
        ends.iter().fold(command.to_owned(), |command, end| command.split(end).next().unwrap_or_default().to_owned())
    };
    let commands = book::pages().into_iter().flat_map(|page| page.commands());
    commands
        .map(|(place, command)| (alone(&command), place))
        .filter(|(command, _)| command.split(' ').count() > 1 && command.split(' ').next() == Some(program))
        .collect()
}

/// Help is printed only after the flags in front of `--help` were found to exist. After an unknown subcommand it is that of the group.
#[test]
fn commands_of_the_book_use_existing_flags() {
    let [kubectl, helm] = tools::ensure([Tool::Kubectl, Tool::Helm]).unwrap_or_else(|error| panic!("{error}"));
    let switchboard = Path::new(env!("CARGO_BIN_EXE_switchboard")).to_owned();
    let binaries = Path::new(env!("CARGO_BIN_EXE_kubectl-switchboard")).parent().unwrap();
    for (program, path, least) in [("kubectl", kubectl, 25), ("helm", helm, 10), ("switchboard", switchboard, 2)] {
        let commands = commands(program);
        assert!(commands.len() >= least, "{commands:?}");
        for (command, place) in commands {
            let arguments = command.split_once(' ').unwrap().1;
            let mut shell = Command::new("sh");
            // kubectl finds its plugin there.
            let path_of_plugins = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
            let shell = shell.args(["-c", &format!("{} {arguments} --help", path.display())]);
            let output = shell.env("PATH", path_of_plugins).output().unwrap();
            assert!(output.status.success(), "{place}: {command}: {}", String::from_utf8_lossy(&output.stderr));
            let printed = String::from_utf8_lossy(&output.stdout);
            let is_group = [" [command]\n", " SUBCOMMAND "].iter().any(|usage| printed.contains(usage));
            assert!(!is_group, "{place}: {command}: unknown subcommand");
        }
    }
}

#[test]
fn commands_of_the_book_that_install_render() {
    let mut rendered = 0;
    for (command, place) in commands("helm") {
        // `helm template` has no release whose values it could reuse.
        let mut words = command.split_whitespace().skip(1).filter(|word| *word != "--reset-then-reuse-values");
        if matches!(words.next(), Some("install" | "upgrade")) && command.contains("chart") {
            let output = helm().arg("template").args(words).output().unwrap();
            assert!(output.status.success(), "{place}: {command}: {}", String::from_utf8_lossy(&output.stderr));
            rendered += 1;
        }
    }
    assert!(rendered >= 6, "{rendered}");
}

/// An object that allows any key accepts a mistyped value without an error.
#[test]
fn schema_rejects_unknown_keys_in_every_object() {
    fn check(schema: &Value, path: &str) {
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            assert_eq!(schema["additionalProperties"], false, "{path}");
            properties.iter().for_each(|(key, schema)| check(schema, &format!("{path}.{key}")));
        }
        if let Some(patterns) = schema.get("patternProperties").and_then(Value::as_object) {
            assert_eq!(schema["additionalProperties"], false, "{path}");
            patterns.values().for_each(|schema| check(schema, &format!("{path}.*")));
        }
    }
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    check(&schema, "");
    schema["definitions"].as_object().unwrap().iter().for_each(|(name, schema)| check(schema, name));
}
