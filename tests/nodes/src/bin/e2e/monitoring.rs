//! Prometheus from the Debian package scrapes the pods and evaluates the rules of the chart.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use control_plane::run;
use nodes::{Error, Result, wait};
use serde_json::Value;

use crate::world::{NAMESPACE, RELEASE, TIMEOUT, World, expect};

const PROMETHEUS: &str = "http://127.0.0.1:9090";
/// The alert under test. It fires after two minutes.
const ALERT: &str = "SwitchboardNoLeader";
/// The time, in seconds, during which another holder has the Lease. It is longer than the delay of the alert.
const HELD: u32 = 180;

pub fn alert(world: &mut World) -> Result<String> {
    start_prometheus(world)?;
    let result = fire_and_resolve(world);
    world.cluster.end_on_first_node("prometheus");
    result
}

fn start_prometheus(world: &mut World) -> Result<()> {
    let chart =
        run(world.cluster.helm()?.args(["template", RELEASE, "charts/switchboard", "--namespace", NAMESPACE]).args([
            "--set",
            "metrics.prometheusRule.enabled=true",
            "--show-only=templates/monitoring/prometheusrule.yaml",
        ]))?;
    let rule: Value = serde_saphyr::from_str(&chart)
        .map_err(|error| Error::Unexpected(format!("the PrometheusRule of the chart cannot be parsed: {error}")))?;
    let rules = world.cluster.write("rules.json", &rule["spec"].to_string())?;
    // The package of Debian has no discovery for Kubernetes, so the targets are static. The pods do not change during the scenario.
    let targets: Vec<_> = world.pods()?.iter().map(|pod| format!("{}:8080", pod.address)).collect();
    let configuration = serde_json::json!({
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [rules],
        "scrape_configs": [{"job_name": "switchboard", "static_configs": [{"targets": targets}]}],
    });
    let file = world.cluster.write("prometheus.json", &configuration.to_string())?;
    let data = world.cluster.directory().path().join("prometheus");
    world.cluster.run_on_first_node(
        "prometheus",
        Path::new("prometheus"),
        &[
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", data.display()),
            "--web.listen-address=127.0.0.1:9090".to_owned(),
        ],
    )
}

fn fire_and_resolve(world: &World) -> Result<String> {
    wait("Prometheus to scrape both replicas", TIMEOUT, || {
        let found = query(world, "query?query=count(up==1)").map_err(|error| error.to_string())?;
        let count = found["data"]["result"][0]["value"][1].as_str().unwrap_or("0").to_owned();
        if count == "2" { Ok(()) } else { Err(format!("{count} targets are up: {found}")) }
    })?;
    let before = firing(world)?;
    expect(before.is_empty(), || format!("alerts fire without a fault: {before:?}"))?;
    world.leader()?;
    // Another holder takes the Lease and does not lead.
    let patch = format!(r#"{{"spec": {{"holderIdentity": "somebody-else", "leaseDurationSeconds": {HELD}}}}}"#);
    world.kubectl(&["patch", "lease", "switchboard", "--type=merge", "--patch", &patch])?;
    let taken = Instant::now();
    wait(&format!("{ALERT} to fire"), TIMEOUT, || is_firing(world, true))?;
    let fired = taken.elapsed();
    world.leader()?;
    wait(&format!("{ALERT} to resolve"), TIMEOUT, || is_firing(world, false))?;
    let resolved = taken.elapsed();
    Ok(format!("{ALERT} fired after {:.0} s and was resolved after {:.0} s", seconds(fired), seconds(resolved)))
}

fn seconds(duration: Duration) -> f32 {
    duration.as_secs_f32()
}

fn is_firing(world: &World, expected: bool) -> std::result::Result<(), String> {
    let firing = firing(world).map_err(|error| error.to_string())?;
    if firing.iter().any(|alert| alert == ALERT) == expected { Ok(()) } else { Err(format!("{firing:?} fire")) }
}

/// The names of the alerts that fire.
fn firing(world: &World) -> Result<Vec<String>> {
    let found = query(world, "alerts")?;
    let alerts = found["data"]["alerts"].as_array().cloned().unwrap_or_default();
    let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
    Ok(firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap_or_default().to_owned()).collect())
}

fn query(world: &World, path: &str) -> Result<Value> {
    let mut curl = world.cluster.nodes()[0].namespaces()?.client("curl");
    let text = run(curl.args(["--silent", "--fail", "--globoff", &format!("{PROMETHEUS}/api/v1/{path}")]))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::Unexpected(format!("the answer of Prometheus is not JSON: {error}")))
}
