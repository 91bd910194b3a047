//! Exhaustive checks of the claim protocol and of the way of a message: every order of events, within bounds. Tier: pure.
//! `make test` checks the small configurations and `make model` the large ones. Both print the number of visited states.

#![cfg(test)]

mod model;

use model::{
    BOUND_RECORDED, Budget, ClaimsModel, Configuration, Coverage, Create, Message, Mutation, NO_VIOLATION,
    NOT_OVERTAKEN, ONE_BOUND, ONE_HOLDER, RECIPIENT, RECORDED, REST, STEADY_HOLDER, WAYS_END,
};
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Instant;

/// The creates of a configuration, one per letter. `a` is a create of alice and `b` one of bob, which need the same binding. Upper case
/// is a server-side apply, `x` and `y` are dry runs, `u` and `v` bypass the webhook, `w` and `z` wait for the binding, and `n` and `m`
/// read their name first. `i` and `j` are sent by a router, as are `I` and `J`, which read their name first.
fn creates(letters: &str) -> Vec<Create> {
    let plain = |place| Create {
        place,
        is_server_side_apply: false,
        is_dry_run: false,
        waits: false,
        reads_name: false,
        bypasses_webhook: false,
        is_by_router: false,
    };
    let of = |letter| match letter {
        'a' => plain(0),
        'b' => plain(1),
        'A' => Create { is_server_side_apply: true, ..plain(0) },
        'B' => Create { is_server_side_apply: true, ..plain(1) },
        'x' => Create { is_dry_run: true, ..plain(0) },
        'y' => Create { is_dry_run: true, ..plain(1) },
        'u' => Create { bypasses_webhook: true, ..plain(0) },
        'v' => Create { bypasses_webhook: true, ..plain(1) },
        'w' => Create { waits: true, ..plain(0) },
        'z' => Create { waits: true, ..plain(1) },
        'n' => Create { reads_name: true, ..plain(0) },
        'm' => Create { reads_name: true, ..plain(1) },
        'i' => Create { is_by_router: true, ..plain(0) },
        'j' => Create { is_by_router: true, ..plain(1) },
        'I' => Create { is_by_router: true, reads_name: true, ..plain(0) },
        'J' => Create { is_by_router: true, reads_name: true, ..plain(1) },
        other => panic!("no create is called {other}"),
    };
    letters.chars().map(of).collect()
}

/// A configuration with one leader, on which the tests are based.
fn configuration(name: &'static str, letters: &str) -> Configuration {
    Configuration { name, creates: creates(letters), leaders: 1, ..Configuration::default() }
}

/// A configuration in which messages are sent, one per letter: `a` may create alice, `b` may create bob, and `-` creates nothing.
fn routed(name: &'static str, messages: &str, letters: &str) -> Configuration {
    let of = |letter| match letter {
        'a' => Message { own: Some(0) },
        'b' => Message { own: Some(1) },
        '-' => Message { own: None },
        other => panic!("no message is called {other}"),
    };
    Configuration { messages: messages.chars().map(of).collect(), ..configuration(name, letters) }
}

/// Checks every reachable state, and that the configuration covers the `expected` steps.
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
    for step in expected {
        assert!(checker.model().count(*step) > 0, "{name} does not reach {step:?}");
    }
}

#[test]
fn protocol_holds_for_two_names_a_close_and_a_deletion() {
    let expected = [
        Coverage::Claimed,
        Coverage::Added,
        Coverage::TakenOver,
        Coverage::WriteConflict,
        Coverage::Wait,
        Coverage::Denied,
        Coverage::AlreadyExists,
        Coverage::NameTaken,
        Coverage::GraceAwaited,
        Coverage::GraceOver,
        Coverage::Released,
        Coverage::Pruned,
        Coverage::Adopted,
        Coverage::LeaderWriteConflict,
    ];
    let budget = Budget { releases: 1, deletions: 1, ..Budget::default() };
    check(Configuration { budget, ..configuration("two names", "aab") }, &expected);
}

#[test]
fn protocol_holds_for_applies_that_become_updates() {
    let budget = Budget { releases: 1, ..Budget::default() };
    check(Configuration { budget, ..configuration("applies", "AAb") }, &[Coverage::AppliedAsUpdate, Coverage::Pruned]);
}

#[test]
fn protocol_holds_for_closings_in_the_status() {
    let budget = Budget { closings: 1, ..Budget::default() };
    let configuration = Configuration { budget, has_statuses: true, ..configuration("closings", "aab") };
    check(configuration, &[Coverage::Bound, Coverage::TakenOver, Coverage::Released]);
}

#[test]
fn dry_runs_get_the_same_decision_and_write_nothing() {
    let budget = Budget { releases: 1, ..Budget::default() };
    let configuration = Configuration { budget, ..configuration("dry runs", "axy") };
    check(configuration, &[Coverage::DryRunAllowed, Coverage::DryRunDenied]);
}

#[test]
fn protocol_holds_for_repeated_and_abandoned_reviews() {
    let budget = Budget { repeats: 1, abandoned: 1, ..Budget::default() };
    let configuration = Configuration { budget, ..configuration("reviews", "aab") };
    check(configuration, &[Coverage::RepeatedReview, Coverage::AbandonedReviewWrote]);
}

#[test]
fn protocol_holds_for_restarted_leaders_and_watches() {
    let budget = Budget { restarts: 1, lists: 1, closings: 1, deletions: 1, ..Budget::default() };
    check(Configuration { budget, ..configuration("restarts", "ab") }, &[Coverage::Released, Coverage::GraceOver]);
}

#[test]
fn protocol_holds_for_two_leaders() {
    let configuration = Configuration { leaders: 2, ..configuration("two leaders", "ab") };
    check(configuration, &[Coverage::LeaderWriteConflict, Coverage::GraceOver]);
}

#[test]
fn protocol_holds_for_leaders_with_unknown_caches() {
    let budget = Budget { deletions: 1, releases: 1, ..Budget::default() };
    let configuration =
        Configuration { budget, leaders: 0, unknown_leaders: 1, ..configuration("unknown leaders", "aab") };
    check(configuration, &[Coverage::Pruned, Coverage::Released, Coverage::Adopted, Coverage::LeaderWriteConflict]);
}

#[test]
fn protocol_holds_for_creates_that_bypass_the_webhook() {
    let budget = Budget { releases: 1, ..Budget::default() };
    let configuration = Configuration { budget, has_statuses: true, ..configuration("unseen", "uvb") };
    check(configuration, &[Coverage::Adopted, Coverage::Bound, Coverage::NotBound, Coverage::Denied]);
}

#[test]
fn protocol_holds_for_manual_deletions_of_claims() {
    let budget = Budget { manual_deletions: 1, closings: 1, lists: 1, ..Budget::default() };
    let configuration = Configuration { budget, has_statuses: true, ..configuration("manual deletions", "ab") };
    check(configuration, &[Coverage::Adopted, Coverage::Bound, Coverage::NotBound]);
}

#[test]
fn protocol_holds_for_creates_that_wait() {
    let budget = Budget { releases: 1, deletions: 1, ..Budget::default() };
    let configuration = Configuration { budget, has_statuses: true, ..configuration("waiting", "az") };
    check(configuration, &[Coverage::AllowedWaiting, Coverage::HandedOver, Coverage::NotBound, Coverage::Bound]);
}

#[test]
fn protocol_holds_for_two_names_that_wait() {
    let budget = Budget { releases: 1, ..Budget::default() };
    let configuration = Configuration { budget, ..configuration("all wait", "wwz") };
    check(configuration, &[Coverage::AllowedWaiting, Coverage::HandedOver, Coverage::Added]);
}

#[test]
fn protocol_holds_for_names_that_are_read_first() {
    let budget = Budget { deletions: 1, ..Budget::default() };
    let configuration = Configuration { budget, ..configuration("names", "nnm") };
    check(configuration, &[Coverage::NameRead, Coverage::AlreadyExists, Coverage::Released]);
}

#[test]
fn protocol_holds_for_status_writes_of_unknown_outcome() {
    let budget = Budget { doubts: 1, restarts: 1, manual_deletions: 1, ..Budget::default() };
    let configuration = Configuration { budget, has_statuses: true, ..configuration("doubts", "uv") };
    check(configuration, &[Coverage::InDoubt, Coverage::Bound, Coverage::NotBound]);
}

#[test]
fn two_first_messages_open_one_conversation() {
    let budget = Budget { closings: 1, ..Budget::default() };
    let configuration = Configuration { budget, ..routed("two messages", "ab", "iijj") };
    check(configuration, &[Coverage::Delivered, Coverage::RaceLost, Coverage::RecipientGone]);
}

#[test]
fn repeated_message_opens_one_conversation() {
    let budget = Budget { closings: 1, lost: 1, ..Budget::default() };
    let configuration = Configuration { budget, ..routed("sent again", "aa", "iii") };
    check(configuration, &[Coverage::CreateLost, Coverage::OwnFound, Coverage::OwnClosed, Coverage::Unroutable]);
}

#[test]
fn message_goes_to_the_conversation_that_holds_its_binding() {
    let budget = Budget { releases: 1, refusals: 1, rate_limits: 1, ..Budget::default() };
    let configuration = Configuration { budget, ..routed("a holder", "a", "bii") };
    check(configuration, &[Coverage::RaceLost, Coverage::RecipientGone, Coverage::Unroutable]);
}

#[test]
fn message_does_not_overtake_a_waiting_conversation() {
    check(routed("overtaking", "a", "azii"), &[Coverage::HandOverAwaited, Coverage::HandedOver, Coverage::Delivered]);
}

#[test]
fn message_that_creates_nothing_finds_its_conversation() {
    let budget = Budget { releases: 1, ..Budget::default() };
    check(Configuration { budget, ..routed("no creates", "-", "ab") }, &[Coverage::Delivered, Coverage::Unroutable]);
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
            budget: Budget { manual_deletions: 1, restarts: 1, ..either },
            has_statuses: true,
            ..configuration("manual deletions, a restart", "ab")
        },
        Configuration { budget: either, ..configuration("two and two", "aabb") },
        Configuration { budget: either, has_statuses: true, ..configuration("two wait", "awz") },
        Configuration {
            budget: Budget { restarts: 1, ..either },
            has_statuses: true,
            ..configuration("waiting, a restart", "az")
        },
        Configuration {
            budget: Budget { doubts: 1, restarts: 1, manual_deletions: 1, ..release },
            has_statuses: true,
            ..configuration("doubts, a waiting one", "az")
        },
    ] {
        check(configuration, &[]);
    }
}

/// The large configurations with messages, in the order of their size.
#[test]
#[ignore = "runs for long: make model"]
fn large_with_messages() {
    let budget = Budget::default();
    let closing = Budget { closings: 1, ..budget };
    for configuration in [
        Configuration { budget: closing, ..routed("names that are read, sent again", "aa", "III") },
        Configuration {
            budget: Budget { releases: 1, deletions: 1, ..budget },
            ..routed("no creates, a close, a deletion", "-", "ab")
        },
        Configuration {
            budget: Budget { refusals: 1, rate_limits: 1, lost: 1, ..budget },
            ..routed("two messages, failures", "ab", "iiijjj")
        },
        Configuration { budget: Budget { releases: 1, ..budget }, ..routed("overtaking, sent again", "aa", "ziii") },
        Configuration { budget: closing, ..routed("two messages, one sent again", "aab", "iiijj") },
    ] {
        check(configuration, &[]);
    }
}

/// Each mutation, a configuration that exposes it, and the property that it violates.
fn mutants() -> Vec<(Mutation, Configuration, &'static str)> {
    use Mutation as M;
    let deleted =
        || Configuration { budget: Budget { deletions: 1, ..Budget::default() }, ..configuration("deleted", "aab") };
    let three_of_one_name = || Configuration {
        budget: Budget { deletions: 1, ..Budget::default() },
        ..configuration("three of one name", "aaa")
    };
    let manual = || Configuration {
        budget: Budget { manual_deletions: 1, lists: 1, ..Budget::default() },
        has_statuses: true,
        ..configuration("manual deletions", "ab")
    };
    let listed = || Configuration {
        budget: Budget { restarts: 1, lists: 1, deletions: 1, ..Budget::default() },
        ..configuration("listed", "ab")
    };
    let released =
        || Configuration { budget: Budget { releases: 1, ..Budget::default() }, ..configuration("released", "aabb") };
    let waiting = || Configuration {
        budget: Budget { releases: 1, deletions: 1, ..Budget::default() },
        has_statuses: true,
        ..configuration("waiting", "aaz")
    };
    let bypassed = || Configuration { has_statuses: true, ..configuration("bypassed", "aub") };
    let doubted = || Configuration {
        budget: Budget { doubts: 1, manual_deletions: 1, ..Budget::default() },
        has_statuses: true,
        ..configuration("doubted", "uv")
    };
    let restarted = || Configuration {
        budget: Budget { restarts: 1, manual_deletions: 1, ..Budget::default() },
        has_statuses: true,
        ..configuration("restarted", "uv")
    };
    let closed = || Configuration { budget: Budget { releases: 1, ..Budget::default() }, ..routed("closed", "-", "b") };
    let held = || Configuration {
        budget: Budget { refusals: 1, rate_limits: 1, ..Budget::default() },
        ..routed("held", "a", "bii")
    };
    let again =
        || Configuration { budget: Budget { closings: 1, ..Budget::default() }, ..routed("again", "aa", "iii") };
    let overtaking = || routed("overtaking", "a", "azii");
    vec![
        (M::AddReplaces, deleted(), ONE_HOLDER),
        (M::AddForgets, deleted(), ONE_HOLDER),
        (M::OursNeedsNoWrite, deleted(), ONE_HOLDER),
        (M::ConflictTakenAsApplied, deleted(), ONE_HOLDER),
        (M::ReplaceWithoutVersion, released(), RECORDED),
        (M::UndecidedReplaced, deleted(), ONE_HOLDER),
        (M::DenialWithoutRead, deleted(), NO_VIOLATION),
        (M::WaitAllows, deleted(), ONE_HOLDER),
        (M::DryRunWrites, configuration("dry run", "xa"), NO_VIOLATION),
        (M::ReleaseReadsTooEarly, deleted(), ONE_HOLDER),
        (M::ReleaseTrustsWatch, deleted(), ONE_HOLDER),
        (M::OldContentBelieved, deleted(), REST),
        (M::DeleteUnconditional, deleted(), ONE_HOLDER),
        (M::DeleteWithoutVersion, deleted(), ONE_HOLDER),
        (M::PruneWithoutVersion, three_of_one_name(), RECORDED),
        (M::GraceSkipped, deleted(), ONE_HOLDER),
        (M::InFlightPruned, deleted(), ONE_HOLDER),
        (M::AdoptReplaces, deleted(), ONE_HOLDER),
        (M::BoundAtOnce, manual(), ONE_BOUND),
        (M::BoundMeanwhile, manual(), ONE_BOUND),
        (M::ListsForgetClaims, listed(), REST),
        (M::DenialWithoutRecord, bypassed(), NO_VIOLATION),
        (M::BoundWithoutRecord, bypassed(), BOUND_RECORDED),
        (M::RivalForgotten, waiting(), ONE_BOUND),
        (M::DoubtIgnored, doubted(), ONE_BOUND),
        (M::EarlierLeaderIgnored, restarted(), ONE_BOUND),
        (M::PruneWithoutVersion, waiting(), RECORDED),
        (M::HandOverTooEarly, waiting(), RECORDED),
        (M::WaitingForgotten, waiting(), REST),
        (M::AwaitedTakenAsFree, overtaking(), NOT_OVERTAKEN),
        (M::AwaitedForgotten, overtaking(), NOT_OVERTAKEN),
        (M::GoneTakenAsReported, closed(), RECIPIENT),
        (M::HolderNotReported, closed(), RECIPIENT),
        (M::WatchTakenAsLive, routed("held", "-", "b"), STEADY_HOLDER),
        (M::LimitIsFinal, held(), STEADY_HOLDER),
        (M::DenialIsFinal, held(), STEADY_HOLDER),
        (M::RefusalIsFinal, held(), STEADY_HOLDER),
        (M::UndecidedIsFinal, held(), STEADY_HOLDER),
        (M::DenialIsRetried, held(), WAYS_END),
        (M::ExistingIsRetried, again(), WAYS_END),
        (M::ClosedForgotten, again(), WAYS_END),
        (M::OwnTakenAsOpen, again(), RECIPIENT),
    ]
}

#[test]
fn every_mutation_has_a_counterexample() {
    for (mutation, configuration, property) in mutants() {
        let mut model = ClaimsModel::new(Configuration { mutation: Some(mutation), ..configuration });
        // Continue after a wrong decision, to find the violation that it causes.
        model.continues_after_violation = property != NO_VIOLATION;
        let wanted = HasDiscoveries::AllOf([property].into());
        let checker = model.checker().threads(2).finish_when(wanted).spawn_bfs().join();
        let found = checker.discovery(property);
        let found = found.unwrap_or_else(|| panic!("{mutation:?} does not violate {property:?}"));
        println!("{mutation:?}: {property}, after {} steps", found.into_actions().len());
    }
}
