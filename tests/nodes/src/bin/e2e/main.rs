//! `make e2e`: switchboard as its users run it, from its chart and its image, on two nodes. Each scenario says what held, with figures.
//!
//! The argument is the operator's program, linked statically; without one it only says what this machine lacks. Environment: `QUICK=1` runs a few scenarios, small; `ONLY=name,name` those
//! whose names contain one of the words; `KEEP=1` leaves the cluster up at the end, until Ctrl-C.

mod certificates;
mod creates;
mod faults;
mod installation;
mod monitoring;
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

/// A claim about the product, and how it is tried.
struct Scenario {
    name: &'static str,
    is_quick: bool,
    try_out: fn(&mut World) -> Result<String>,
}

const fn scenario(name: &'static str, try_out: fn(&mut World) -> Result<String>) -> Scenario {
    Scenario { name, is_quick: false, try_out }
}

const fn quick(name: &'static str, try_out: fn(&mut World) -> Result<String>) -> Scenario {
    Scenario { name, is_quick: true, try_out }
}

/// In the order in which they run: each leaves the chart installed and both replicas ready.
const SCENARIOS: [Scenario; 21] = [
    quick("chart_installs_under_restricted_without_a_warning", installation::installs_under_restricted),
    quick("second_open_conversation_is_refused_by_the_service", installation::refuses_the_second),
    quick("helm_test_succeeds", installation::helm_test),
    quick("idle_connections_lose_no_create", creates::idle_connections),
    quick("rollouts_lose_no_create_and_spread_the_replicas", creates::rollouts),
    quick("drains_lose_no_create", creates::drains),
    scenario("upgrade_and_rollback_lose_no_create", creates::upgrade_and_rollback),
    scenario("deleted_leader_and_standby_lose_no_create", creates::deleted_pods),
    scenario("killed_leader_loses_only_what_was_in_flight", creates::killed_leader),
    scenario("largest_bodies_leave_the_replicas_alive", faults::largest_bodies),
    scenario("replaced_registration_is_mended_at_once", certificates::replaced_registration),
    scenario("force_replaced_release_is_mended_at_once", certificates::force_replaced_release),
    scenario("deleted_secret_loses_no_create", certificates::deleted_secret),
    scenario("alert_fires_and_resolves_in_prometheus", monitoring::alert),
    scenario("out_of_memory_stops_a_rollout_and_no_create", faults::out_of_memory),
    scenario("pods_outlast_an_absent_kube_proxy", faults::absent_kube_proxy),
    scenario("power_cut_of_both_nodes_costs_no_conversation", faults::power_cut),
    scenario("uninstalled_operator_leaves_no_lease_behind", installation::reinstalls),
    scenario("other_release_name_takes_over_after_an_uninstall", installation::renames_the_release),
    scenario("deleted_namespace_is_recovered_by_an_install", installation::recovers_from_a_deleted_namespace),
    scenario("cert_manager_renews_without_a_failed_create", certificates::cert_manager),
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
        // Each scenario but the first finds the chart installed.
        let result = world.prepare(scenario.name).and_then(|()| (scenario.try_out)(&mut world));
        let took = started.elapsed().as_secs_f32();
        match result {
            Ok(figures) => {
                passed += 1;
                println!("ok   {}: {figures} ({took:.1} s)", scenario.name);
            }
            Err(error) => {
                failed += 1;
                println!("FAIL {} ({took:.1} s): {error}", scenario.name);
                println!("     the logs stay in {}", world.keep_logs().display());
            }
        }
    }
    println!("\nAll of it took {:.0} s.", started.elapsed().as_secs_f32());
    println!("{passed} passed, {failed} failed");
    if is_set("KEEP") {
        println!("The cluster stays up until Ctrl-C: {}", world.how_to_call());
        loop {
            thread::park();
        }
    }
    // A name that nothing has is a mistake.
    Ok(failed == 0 && passed > 0)
}
