//! Claims about the protocol of claims, by exhaustive check: every order in which things can happen, within bounds. Tier: pure.
//! `make test` checks the small configurations, `make model` the large ones, and either prints how many states it visited.

mod model;

use model::{
    Budget, ClaimsModel, Configuration, Coverage, Create, Mutation, NO_FLAW, ONE_BOUND, ONE_HOLDER, RECORDED, REST,
};
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Instant;

/// The creates of a configuration, a letter each: `a` is a create of alice and `b` one of bob, which want the same binding; upper case
/// is a server-side apply; `x` and `y` are dry runs, and `u` and `v` are made while no webhook is installed.
fn creates(letters: &str) -> Vec<Create> {
    let plain = |place| Create { place, is_server_side_apply: false, is_dry_run: false, is_unseen: false };
    let of = |letter| match letter {
        'a' => plain(0),
        'b' => plain(1),
        'A' => Create { is_server_side_apply: true, ..plain(0) },
        'B' => Create { is_server_side_apply: true, ..plain(1) },
        'x' => Create { is_dry_run: true, ..plain(0) },
        'y' => Create { is_dry_run: true, ..plain(1) },
        'u' => Create { is_unseen: true, ..plain(0) },
        'v' => Create { is_unseen: true, ..plain(1) },
        other => panic!("no create is called {other}"),
    };
    letters.chars().map(of).collect()
}

/// A configuration with one leader, which each test changes.
fn configuration(name: &'static str, letters: &str) -> Configuration {
    Configuration { name, creates: creates(letters), leaders: 1, ..Configuration::default() }
}

/// Checks every state that can be reached, and that the configuration reaches what it is there for.
fn check(configuration: Configuration, expected: &[Coverage]) {
    let began = Instant::now();
    let name = configuration.name;
    let model = ClaimsModel::new(configuration).checker();
    let checker = model.threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "model {name}: {} states, {} transitions, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    for (property, path) in checker.discoveries() {
        println!("{property}, after:");
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
fn creates_of_two_names_a_close_and_a_deletion() {
    let expected = [
        Coverage::Claimed,
        Coverage::Added,
        Coverage::TakenOver,
        Coverage::LostWrite,
        Coverage::Wait,
        Coverage::Refused,
        Coverage::AlreadyExists,
        Coverage::NameTaken,
        Coverage::GraceAwaited,
        Coverage::GraceOver,
        Coverage::Released,
        Coverage::Pruned,
        Coverage::Adopted,
        Coverage::LostLeaderWrite,
    ];
    let budget = Budget { releases: 1, deletions: 1, ..Budget::default() };
    check(Configuration { budget, ..configuration("two names", "aab") }, &expected);
}

#[test]
fn server_side_applies_that_become_updates() {
    let budget = Budget { releases: 1, ..Budget::default() };
    check(Configuration { budget, ..configuration("applies", "AAb") }, &[Coverage::AppliedAsUpdate, Coverage::Pruned]);
}

#[test]
fn closings_by_the_status_which_leave_the_watch_as_deletions_do() {
    let budget = Budget { closings: 1, ..Budget::default() };
    let configuration = Configuration { budget, has_statuses: true, ..configuration("closings", "aab") };
    check(configuration, &[Coverage::Bound, Coverage::TakenOver, Coverage::Released]);
}

#[test]
fn dry_runs_get_the_same_answer_and_write_nothing() {
    let budget = Budget { releases: 1, ..Budget::default() };
    let configuration = Configuration { budget, ..configuration("dry runs", "axy") };
    check(configuration, &[Coverage::DryRunAllowed, Coverage::DryRunRefused]);
}

#[test]
fn reviews_that_are_repeated_and_reviews_that_nobody_waits_for() {
    let budget = Budget { repeats: 1, abandoned: 1, ..Budget::default() };
    let configuration = Configuration { budget, ..configuration("reviews", "aab") };
    check(configuration, &[Coverage::RepeatedReview, Coverage::OrphanWrote]);
}

#[test]
fn a_leader_that_begins_anew_and_watches_that_begin_anew_with_a_list() {
    let budget = Budget { restarts: 1, lists: 1, closings: 1, deletions: 1, ..Budget::default() };
    check(Configuration { budget, ..configuration("restarts", "ab") }, &[Coverage::Released, Coverage::GraceOver]);
}

#[test]
fn two_who_believe_that_they_lead() {
    let configuration = Configuration { leaders: 2, ..configuration("two leaders", "ab") };
    check(configuration, &[Coverage::LostLeaderWrite, Coverage::GraceOver]);
}

#[test]
fn leaders_of_which_nothing_is_known() {
    let budget = Budget { deletions: 1, releases: 1, ..Budget::default() };
    let configuration =
        Configuration { budget, leaders: 0, unknown_leaders: 1, ..configuration("unknown leaders", "aab") };
    check(configuration, &[Coverage::Pruned, Coverage::Released, Coverage::Adopted, Coverage::LostLeaderWrite]);
}

#[test]
fn conversations_that_no_webhook_saw() {
    let budget = Budget { releases: 1, ..Budget::default() };
    let configuration = Configuration { budget, has_statuses: true, ..configuration("unseen", "uvb") };
    check(configuration, &[Coverage::Adopted, Coverage::Bound, Coverage::NotBound, Coverage::Refused]);
}

#[test]
fn claims_that_are_deleted_by_hand() {
    let budget = Budget { hand_deletions: 1, closings: 1, lists: 1, ..Budget::default() };
    let configuration = Configuration { budget, has_statuses: true, ..configuration("hand deletions", "ab") };
    check(configuration, &[Coverage::Adopted, Coverage::Bound, Coverage::NotBound]);
}

/// The large configurations, in the order of their size.
#[test]
#[ignore = "runs for long: make model"]
fn large() {
    let budget = Budget::default();
    let deletion = Budget { deletions: 1, ..budget };
    let release = Budget { releases: 1, ..budget };
    let either = Budget { releases: 1, deletions: 1, ..budget };
    for configuration in [
        Configuration { budget: Budget { deletions: 2, ..budget }, ..configuration("three of one name", "aaab") },
        Configuration { budget: deletion, leaders: 2, ..configuration("two leaders, a deletion", "ab") },
        Configuration { budget: release, has_statuses: true, ..configuration("unseen and seen", "uvab") },
        Configuration {
            budget: Budget { repeats: 1, abandoned: 1, ..either },
            ..configuration("reviews, a close, a deletion", "aab")
        },
        Configuration { budget: Budget { closings: 1, ..release }, ..configuration("applies and creates", "AAab") },
        Configuration {
            budget: Budget { hand_deletions: 1, restarts: 1, ..either },
            has_statuses: true,
            ..configuration("by hand, a restart", "ab")
        },
        Configuration { budget: either, ..configuration("two and two", "aabb") },
    ] {
        check(configuration, &[]);
    }
}

/// Each thing done otherwise than the protocol does it, the configuration in which that is told, and the property that tells.
fn mutants() -> Vec<(Mutation, Configuration, &'static str)> {
    use Mutation as M;
    let deleted =
        || Configuration { budget: Budget { deletions: 1, ..Budget::default() }, ..configuration("deleted", "aab") };
    let by_hand = || Configuration {
        budget: Budget { hand_deletions: 1, lists: 1, ..Budget::default() },
        has_statuses: true,
        ..configuration("by hand", "ab")
    };
    let listed = || Configuration {
        budget: Budget { restarts: 1, lists: 1, deletions: 1, ..Budget::default() },
        ..configuration("listed", "ab")
    };
    let released =
        || Configuration { budget: Budget { releases: 1, ..Budget::default() }, ..configuration("released", "aabb") };
    vec![
        (M::AddReplaces, deleted(), ONE_HOLDER),
        (M::AddForgets, deleted(), ONE_HOLDER),
        (M::OursNeedsNoWrite, deleted(), ONE_HOLDER),
        (M::LostWriteTakenAsDone, deleted(), ONE_HOLDER),
        (M::ReplaceWithoutVersion, released(), RECORDED),
        (M::UndecidedReplaced, deleted(), ONE_HOLDER),
        (M::RefusalWithoutRead, deleted(), NO_FLAW),
        (M::WaitAllows, deleted(), ONE_HOLDER),
        (M::DryRunWrites, configuration("dry run", "xa"), NO_FLAW),
        (M::ReleaseReadsTooEarly, deleted(), ONE_HOLDER),
        (M::ReleaseTrustsWatch, deleted(), ONE_HOLDER),
        (M::OldContentBelieved, deleted(), REST),
        (M::DeleteUnconditional, deleted(), ONE_HOLDER),
        (M::DeleteWithoutVersion, deleted(), ONE_HOLDER),
        (M::PruneWithoutVersion, deleted(), RECORDED),
        (M::GraceSkipped, deleted(), ONE_HOLDER),
        (M::InFlightPruned, deleted(), ONE_HOLDER),
        (M::AdoptReplaces, deleted(), ONE_HOLDER),
        (M::BoundAtOnce, by_hand(), ONE_BOUND),
        (M::BoundMeanwhile, by_hand(), ONE_BOUND),
        (M::ListsForgetClaims, listed(), REST),
    ]
}

#[test]
fn every_trap_put_back_has_its_counterexample() {
    for (mutation, configuration, property) in mutants() {
        let mut model = ClaimsModel::new(Configuration { mutation: Some(mutation), ..configuration });
        // A wrong answer is not the end: what comes of it is looked for.
        model.goes_on = property != NO_FLAW;
        let wanted = HasDiscoveries::AllOf([property].into());
        let checker = model.checker().threads(2).finish_when(wanted).spawn_bfs().join();
        let found = checker.discovery(property);
        let found = found.unwrap_or_else(|| panic!("{mutation:?} is not told by {property:?}"));
        println!("{mutation:?}: {property}, after {} steps", found.into_actions().len());
    }
}
