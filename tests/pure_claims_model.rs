//! Claims about the protocol of claims, by exhaustive check: every order in which things can happen, within bounds. Tier: pure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use claims_model::{Budget, ClaimsModel, Configuration, Create, Saw};
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Instant;

#[allow(dead_code, reason = "mutations")]
mod claims_model;

fn create(place: u8) -> Create {
    Create { place, is_server_side_apply: false, is_dry_run: false, is_unseen: false }
}
fn apply(place: u8) -> Create {
    Create { is_server_side_apply: true, ..create(place) }
}
fn check(configuration: Configuration, expected: &[Saw]) {
    let begin = Instant::now();
    let name = configuration.name;
    let checker = ClaimsModel::new(configuration).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "model {name}: {} states, {} transitions, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begin.elapsed().as_secs_f64()
    );
    for what in Saw::ALL {
        println!("   {what:?} {}", checker.model().count(what));
    }
    for (property, path) in checker.discoveries() {
        println!("{property}: {} steps", path.clone().into_actions().len());
        println!("{:#?}", path.last_state());
        for action in path.into_actions() {
            println!("  {action:?}");
        }
    }
    checker.assert_properties();
    for what in expected {
        assert!(checker.model().count(*what) > 0, "{name} does not reach {what:?}");
    }
}

#[test]
fn probe() {
    let n = |name: &str, default: u8| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let kinds = std::env::var("C").unwrap_or("aab".into());
    let creates = kinds
        .chars()
        .map(|c| match c {
            'a' => create(0),
            'b' => create(1),
            'A' => apply(0),
            'B' => apply(1),
            'd' => Create { is_dry_run: true, ..create(0) },
            'D' => Create { is_dry_run: true, ..create(1) },
            'u' => Create { is_unseen: true, ..create(0) },
            _ => Create { is_unseen: true, ..create(1) },
        })
        .collect();
    check(
        Configuration {
            name: "probe",
            creates,
            budget: Budget {
                releases: n("RELEASES", 0),
                closings: n("CLOSINGS", 0),
                deletions: n("DELETIONS", 0),
                hand_deletions: n("HAND", 0),
                repeats: n("REPEATS", 0),
                abandoned: n("ABANDONED", 0),
                restarts: n("RESTARTS", 0),
                lists: n("LISTS", 0),
            },
            leaders: n("LEADERS", 1).into(),
            unknown_leaders: n("UNKNOWN", 0).into(),
            has_statuses: n("STATUSES", 0) == 1,
            mutation: None,
        },
        &[],
    );
}
