//! `make e2e`: runs switchboard as its users do, from its chart and its image, on two nodes. Each scenario reports figures, or the reason
//! why its name does not hold.
//!
//! The argument is the statically linked program of the operator. Without an argument, it only reports the missing requirements of this
//! machine. Environment: `QUICK=1` runs a few small scenarios; `ONLY=name,name` runs the scenarios whose names contain one of the words;
//! `KEEP=1` keeps the cluster until Ctrl-C.

mod certificates;
mod creates;
mod faults;
mod flux;
mod gitops;
mod installation;
mod monitoring;
mod router;
mod world;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Instant,
};

use nodes::{Result, requirements};
use world::World;

/// A statement about the product, and its test.
struct Scenario {
    name: &'static str,
    is_quick: bool,
    run: fn(&mut World) -> Result<String>,
}

const fn scenario(name: &'static str, run: fn(&mut World) -> Result<String>) -> Scenario {
    Scenario { name, is_quick: false, run }
}

const fn quick(name: &'static str, run: fn(&mut World) -> Result<String>) -> Scenario {
    Scenario { name, is_quick: true, run }
}

/// The scenarios in their order. Each leaves the chart installed and both replicas ready.
const SCENARIOS: [Scenario; 23] = [
    quick("chart_installs_under_restricted_without_a_warning", installation::installs_under_restricted),
    quick("second_open_conversation_is_refused_via_the_service", installation::refuses_the_second),
    quick("helm_test_succeeds", installation::helm_test),
    quick("idle_connections_lose_no_create", creates::idle_connections),
    quick("rollouts_lose_no_create_and_spread_the_replicas", creates::rollouts),
    quick("drains_lose_no_create", creates::drains),
    quick("router_loses_and_doubles_no_message", router::rollouts_and_drains),
    scenario("upgrade_and_rollback_lose_no_create", creates::upgrade_and_rollback),
    scenario("deleted_leader_and_standby_lose_no_create", creates::deleted_pods),
    scenario("killed_leader_loses_only_creates_in_flight", creates::killed_leader),
    scenario("replicas_survive_the_largest_bodies", faults::largest_bodies),
    scenario("replaced_registration_is_repaired_immediately", certificates::replaced_registration),
    scenario("force_replaced_release_is_repaired_immediately", certificates::force_replaced_release),
    scenario("deleted_secret_loses_no_create", certificates::deleted_secret),
    scenario("alert_fires_and_resolves_in_prometheus", monitoring::alert),
    scenario("flux_applies_each_transition_in_one_commit", gitops::transitions),
    scenario("out_of_memory_stops_the_rollout_but_no_create", faults::out_of_memory),
    scenario("pods_wait_for_an_absent_kube_proxy", faults::absent_kube_proxy),
    scenario("power_cut_of_both_nodes_loses_no_conversation", faults::power_cut),
    scenario("uninstall_removes_the_lease", installation::reinstalls),
    scenario("release_can_be_renamed_after_an_uninstall", installation::renames_the_release),
    scenario("install_recovers_a_deleted_namespace", installation::recovers_from_a_deleted_namespace),
    scenario("cert_manager_renewal_loses_no_create", certificates::cert_manager),
];

fn main() -> ExitCode {
    if let Some(missing) = requirements::missing() {
        println!("{missing}");
        return ExitCode::from(3);
    }
    let Some(program) = env::args_os().nth(1).map(PathBuf::from) else { return ExitCode::SUCCESS };
    match play(&program) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(program: &Path) -> Result<bool> {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
    let only = env::var("ONLY").unwrap_or_default();
    let words: Vec<_> = only.split(',').filter(|word| !word.is_empty()).collect();
    let is_quick = is_set("QUICK");
    let is_wanted = |scenario: &&Scenario| match &words[..] {
        [] => scenario.is_quick || !is_quick,
        words => words.iter().any(|word| scenario.name.contains(word)),
    };
    let started = Instant::now();
    println!("Starting two nodes (about half a minute)");
    let mut world = World::new(program, is_quick)?;
    println!("Two nodes are ready after {:.1} s", started.elapsed().as_secs_f32());
    let (mut passed, mut failed) = (0, 0);
    for scenario in SCENARIOS.iter().filter(is_wanted) {
        let started = Instant::now();
        println!("     {} …", scenario.name);
        // The chart is installed before each scenario except the first.
        let result = world.prepare(scenario.name).and_then(|()| (scenario.run)(&mut world));
        let took = started.elapsed().as_secs_f32();
        match result {
            Ok(figures) => {
                passed += 1;
                println!("ok   {}: {figures} ({took:.1} s)", scenario.name);
            }
            Err(error) => {
                failed += 1;
                println!("FAIL {} ({took:.1} s): {error}", scenario.name);
                println!("     the logs are kept in {}", world.keep_logs().display());
            }
        }
    }
    println!("\nTotal time: {:.0} s.", started.elapsed().as_secs_f32());
    println!("{passed} passed, {failed} failed");
    if is_set("KEEP") {
        println!("The cluster runs until Ctrl-C: {}", world.how_to_call());
        loop {
            thread::park();
        }
    }
    // It is an error if ONLY matches no scenario.
    Ok(failed == 0 && passed > 0)
}
