//! That the benchmarks work: every scenario, with numbers that are too small to say anything. Nothing is judged by them. It needs the
//! binary of the operator, which `cargo test --workspace` builds.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::process::Command;

#[test]
#[ignore = "it takes minutes: make bench-check"]
fn every_scenario_runs_and_is_in_the_table() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).env("QUICK", "1").env_remove("ONLY").output().unwrap();
    let [table, told] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{table}{told}");
    for scenario in 1..=9 {
        assert!(table.contains(&format!("\n| {scenario} | ")), "{scenario} is missing in {table}");
    }
}
