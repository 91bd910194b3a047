//! The chart's alerts and its dashboard: Prometheus accepts the rules, each alert fires on its fault and has a runbook, and every query
//! uses metrics that the operator serves.

use crate::common::chart::{CHART, Case, title};
use crate::common::succeed;
use control_plane::tools::{self, Tool};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

fn promtool() -> Command {
    let [promtool] = tools::ensure([Tool::Promtool]).unwrap_or_else(|error| panic!("{error}"));
    Command::new(promtool)
}

fn object(kind: &str) -> Value {
    Case::named("everything").objects().into_iter().find(|object| object["kind"] == kind).unwrap()
}

/// A directory with the rules as Prometheus reads them, and with their unit tests.
fn rules(test: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("rules.yaml"), object("PrometheusRule")["spec"].to_string()).unwrap();
    std::fs::write(directory.join("alerts.yaml"), include_str!("../../testdata/alerts.yaml")).unwrap();
    directory
}

fn alerts() -> Vec<Value> {
    let rules = object("PrometheusRule");
    let groups = rules["spec"]["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The queries of all dashboards.
fn queries_of_dashboards() -> Vec<String> {
    let objects = Case::named("everything").objects();
    let dashboards = objects.iter().find(|object| title(object) == "ConfigMap/switchboard-dashboard").unwrap();
    let dashboards = dashboards["data"].as_object().unwrap().values();
    let panels = dashboards.flat_map(|text| {
        let dashboard: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        dashboard["panels"].as_array().unwrap().clone()
    });
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap().clone());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

fn names(alerts: &[Value]) -> BTreeSet<String> {
    alerts.iter().map(|alert| alert["alert"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn prometheus_accepts_the_rules() {
    let directory = rules("accepts");
    succeed(promtool().args(["check", "rules", "--lint=all", "--lint-fatal"]).arg(directory.join("rules.yaml")));
}

#[test]
fn each_alert_fires_on_its_fault_and_none_without_a_fault() {
    let directory = rules("fires");
    succeed(promtool().current_dir(&directory).args(["test", "rules", "alerts.yaml"]));
    let tests: Value = serde_saphyr::from_str(include_str!("../../testdata/alerts.yaml")).unwrap();
    let cases =
        tests["tests"].as_array().unwrap().iter().filter_map(|test| test["alert_rule_test"].as_array()).flatten();
    let fires = cases.filter(|case| case.get("exp_alerts").is_some());
    let fires: BTreeSet<_> = fires.map(|case| case["alertname"].as_str().unwrap().to_owned()).collect();
    assert_eq!(fires, names(&alerts()), "each alert has a test in which it fires");
}

#[test]
fn each_alert_has_a_runbook() {
    let text = std::fs::read_to_string(format!("{CHART}/RUNBOOKS.md")).unwrap();
    let sections: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_owned).collect();
    assert_eq!(sections, names(&alerts()));
    for alert in alerts() {
        let anchor = format!("#{}", alert["alert"].as_str().unwrap().to_lowercase());
        assert!(alert["annotations"]["runbook_url"].as_str().unwrap().ends_with(&anchor), "{alert}");
        assert!(["critical", "warning"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{alert}");
    }
}

/// The metrics that METRICS.md lists, with the labels of each. Other tests compare them with the metrics that are served.
fn served() -> BTreeMap<String, BTreeSet<String>> {
    let text = include_str!("../../../METRICS.md");
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = text.lines().filter(|line| line.starts_with("| `switchboard_"));
    let metrics = rows.flat_map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let (name, labels) = (quoted(cells[1]).remove(0), BTreeSet::from_iter(quoted(cells[3])));
        let mut series = vec![(name.clone(), labels.clone())];
        if cells[2] == "histogram" {
            let mut with_bound = labels.clone();
            with_bound.insert("le".to_owned());
            series = vec![
                (format!("{name}_bucket"), with_bound),
                (format!("{name}_sum"), labels.clone()),
                (format!("{name}_count"), labels),
            ];
        }
        series
    });
    metrics.collect()
}

/// The words of a query.
fn words(query: &str) -> impl Iterator<Item = &str> {
    query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

/// The comma-separated texts between `opening` and `closing`, for example the labels of `by (…)`.
fn labels_after<'a>(query: &'a str, opening: &'a str, closing: char) -> impl Iterator<Item = &'a str> {
    query.split(opening).skip(1).flat_map(move |rest| rest.split(closing).next().unwrap().split(','))
}

#[test]
fn alerts_and_dashboard_use_existing_metrics_and_labels() {
    let mut queries = queries_of_dashboards();
    queries.extend(alerts().iter().map(|alert| alert["expr"].as_str().unwrap().to_owned()));

    let served = served();
    // Prometheus adds this label to every target.
    let scraped = "instance";
    let mut used = BTreeSet::new();
    for query in &queries {
        let metrics: BTreeSet<_> = words(query).filter(|word| word.starts_with("switchboard_")).collect();
        assert!(!metrics.is_empty(), "{query} uses no metric of switchboard");
        for metric in &metrics {
            assert!(served.contains_key(*metric), "{query}: no replica serves {metric}");
        }
        let labels = labels_after(query, "by (", ')')
            .chain(labels_after(query, "{", '}').map(|matcher| matcher.split(['=', '!']).next().unwrap()));
        for label in labels.map(str::trim).filter(|label| *label != scraped) {
            assert!(metrics.iter().any(|metric| served[*metric].contains(label)), "{query}: no metric has {label}");
        }
        used.extend(metrics.into_iter().map(str::to_owned));
    }
    assert!(used.len() > 12, "{used:?}");
}

/// Grafana shows an empty panel and no error for a query that Prometheus cannot parse.
#[test]
fn prometheus_accepts_the_queries_of_the_dashboard() {
    // promtool checks recording rules, so each query becomes one. Grafana replaces the interval.
    let record = |(number, query): (usize, String)| {
        let query = query.replace("$__rate_interval", "5m");
        serde_json::json!({"record": format!("panel:{number}"), "expr": query})
    };
    let rules: Vec<_> = queries_of_dashboards().into_iter().enumerate().map(record).collect();
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dashboard.yaml");
    std::fs::write(&path, serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    succeed(promtool().args(["check", "rules", "--lint=all", "--lint-fatal"]).arg(&path));
}
