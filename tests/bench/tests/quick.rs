//! Checks that every scenario of the benchmark runs, with numbers that are too small for a measurement. It does not compare them with
//! targets. It needs the binary of the operator, which `cargo test --workspace` builds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
#[ignore = "it takes minutes: make bench-check"]
fn every_scenario_runs_and_has_a_row_in_the_table() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).env("QUICK", "1").env_remove("ONLY").output().unwrap();
    let [table, progress] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{table}{progress}");
    for scenario in 1..=11 {
        assert!(table.contains(&format!("\n| {scenario:<2} | ")), "{scenario} is missing in {table}");
    }
}
