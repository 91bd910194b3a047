//! Claims about the oracle of the races and the faults, on histories made by hand: it passes what may be, and rejects each way in which
//! an invariant can be broken. Tier: pure.

use crate::common::oracle::{Binding, Change, Event, Kind, Oracle};
use serde_json::{Value, json};
use switchboard::api::ConversationReference as Place;

/// A history under way. Each call is the next revision.
#[derive(Default)]
struct History(Vec<Event>);

/// The parts of a conversation that a history is about.
#[derive(Clone, Copy)]
struct Stored<'a> {
    uid: &'a str,
    state: &'a str,
    has_contact: bool,
    bound: &'a str,
}

/// A conversation that was just created: open, with a contact, nothing decided.
fn new(uid: &str) -> Stored<'_> {
    Stored { uid, state: "Active", has_contact: true, bound: "Unknown" }
}

fn bound<'a>(uid: &'a str, bound: &'a str) -> Stored<'a> {
    Stored { bound, ..new(uid) }
}

fn closed(uid: &str) -> Stored<'_> {
    Stored { state: "Closed", bound: "False", ..new(uid) }
}

impl History {
    fn event(mut self, kind: Kind, namespace: &str, name: &str, change: Change, object: Option<Value>) -> Self {
        let revision = u64::try_from(self.0.len()).unwrap() + 100;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.0.push(Event { revision, kind, namespace, name, change, object });
        self
    }

    fn conversation(self, change: Change, name: &str, stored: Option<Stored>) -> Self {
        let object = stored.map(|Stored { uid, state, has_contact, bound }| {
            let mut spec = json!({"channel": "Chat", "proxy": {"address": "desk"}, "state": state});
            if has_contact {
                spec["contact"] = json!({"address": "carol"});
            }
            let condition =
                json!({"type": "Bound", "status": bound, "observedGeneration": i32::from(bound != "Unknown")});
            json!({"metadata": {"uid": uid, "generation": 1}, "spec": spec, "status": {"conditions": [condition]}})
        });
        self.event(Kind::Conversation, "sales", name, change, object)
    }

    fn stored(self, name: &str, uid: &str) -> Self {
        self.conversation(Change::Created, name, Some(new(uid)))
    }

    fn changed(self, name: &str, stored: Stored) -> Self {
        self.conversation(Change::Updated, name, Some(stored))
    }

    fn deleted(self, name: &str) -> Self {
        self.conversation(Change::Deleted, name, None)
    }

    fn claim(self, change: Change, claim: Option<(&str, &[&str])>) -> Self {
        let object = claim.map(|(name, uids)| {
            let admissions: Vec<_> = uids.iter().map(|uid| json!({"uid": uid})).collect();
            json!({"spec": {
                "channel": "Chat", "contactAddress": "carol", "proxyAddress": "desk",
                "conversationRef": {"namespace": "sales", "name": name}, "admissions": admissions,
            }})
        });
        self.event(Kind::Claim, "", "chat-1", change, object)
    }

    fn claimed(self, name: &str, uids: &[&str]) -> Self {
        self.claim(Change::Created, Some((name, uids)))
    }

    fn reclaimed(self, name: &str, uids: &[&str]) -> Self {
        self.claim(Change::Updated, Some((name, uids)))
    }

    fn released(self) -> Self {
        self.claim(Change::Deleted, None)
    }

    /// Alice has the binding, and all is at rest.
    fn of_alice() -> Self {
        Self::default().claimed("alice", &["a1"]).stored("alice", "a1").changed("alice", bound("a1", "True"))
    }

    #[track_caller]
    fn is_sound(&self) -> Oracle {
        Oracle::default().read(&self.0).unwrap_or_else(|violation| panic!("{violation}"))
    }

    #[track_caller]
    fn is_at_rest(&self) {
        assert_eq!(self.is_sound().unrest(), Vec::<String>::new());
    }

    /// It is sound so far, but nothing may stay like that, for the reason given.
    #[track_caller]
    fn is_not_at_rest(&self, why: &str) {
        let unrest = self.is_sound().unrest().join("\n");
        assert!(unrest.contains(why), "{why:?} is not in {unrest:?}");
    }

    #[track_caller]
    fn breaks(&self, what: &str) -> String {
        self.breaks_for(Oracle::default(), what)
    }

    #[track_caller]
    fn breaks_for(&self, oracle: Oracle, what: &str) -> String {
        let violation = oracle.read(&self.0).err().expect("a violation").to_string();
        assert!(violation.contains(what), "{what:?} is not in {violation:?}");
        violation
    }
}

fn carol() -> Binding {
    Binding::new("Chat", "carol", "desk")
}

fn place(name: &str) -> Place {
    Place { namespace: "sales".into(), name: name.into() }
}

#[test]
fn a_binding_may_go_from_one_holder_to_the_next_by_each_way_of_release() {
    History::of_alice().is_at_rest();
    let next =
        |history: History| history.reclaimed("bob", &["b1"]).stored("bob", "b1").changed("bob", bound("b1", "True"));
    next(History::of_alice().changed("alice", closed("a1"))).is_at_rest();
    let without_contact = Stored { has_contact: false, ..bound("a1", "False") };
    next(History::of_alice().changed("alice", without_contact)).is_at_rest();
    next(History::of_alice().deleted("alice")).is_at_rest();
    History::of_alice().deleted("alice").released().is_at_rest();
}

#[test]
fn creates_of_one_name_may_share_a_claim() {
    let history = History::default().claimed("alice", &["a1"]).reclaimed("alice", &["a1", "a2"]).stored("alice", "a2");
    let history = history.changed("alice", bound("a2", "True"));
    history.is_not_at_rest("records [\"a1\"], which were never stored");
    history.reclaimed("alice", &["a2"]).is_at_rest();
}

#[test]
fn two_holders_are_rejected_with_the_piece_of_history_that_shows_them() {
    let violation = History::of_alice().stored("bob", "b1").breaks("I1: sales/bob (b1) was stored without a claim");
    for line in ["at revision 103", "100 created  claim names sales/alice", "101 created  sales/alice a1 holds"] {
        assert!(violation.contains(line), "{line:?} is not in {violation}");
    }
    History::of_alice().reclaimed("bob", &["b1"]).breaks("I1: the claim was taken from sales/alice");
}

#[test]
fn a_create_that_was_stored_after_its_claim_had_gone_to_another_is_rejected() {
    let history = History::default().claimed("alice", &["a1"]).reclaimed("bob", &["b1"]).stored("bob", "b1");
    history.stored("alice", "a1").breaks("I1: sales/alice (a1) was stored without a claim that records it");
    let history = History::default().claimed("alice", &["a1"]).released().stored("alice", "a1");
    history.breaks("I1: sales/alice (a1) was stored without a claim");
}

#[test]
fn a_claim_that_records_another_create_of_the_same_name_is_not_enough() {
    History::default().claimed("alice", &["a1"]).stored("alice", "a2").breaks("I1: sales/alice (a2) was stored");
}

#[test]
fn a_claim_that_is_deleted_under_its_holder_is_rejected() {
    History::of_alice().released().breaks("I1: the claim was taken from sales/alice");
}

#[test]
fn two_that_call_themselves_bound_are_rejected_also_where_claims_are_changed_by_hand() {
    let history = History::of_alice().released().stored("bob", "b1").claimed("bob", &["b1"]);
    let by_hand = || Oracle::default().with_claims_changed_by_hand();
    by_hand().read(&history.0).unwrap_or_else(|violation| panic!("{violation}"));
    history
        .changed("bob", bound("b1", "True"))
        .breaks_for(by_hand(), "I1: more than one has Bound=True: sales/alice, sales/bob");
}

#[test]
fn one_that_calls_itself_bound_without_a_claim_is_rejected() {
    let unseen = Oracle::default().unseen_by_webhooks(|_| true);
    let history = History::default().stored("alice", "a1").changed("alice", bound("a1", "True"));
    history.breaks_for(unseen, "I1: sales/alice has Bound=True, and the claim does not name it");
}

#[test]
fn a_closed_one_whose_status_lags_behind_does_not_count_as_bound() {
    let lagging = Stored { state: "Closed", bound: "Unknown", ..new("a1") };
    let history = History::of_alice().changed("alice", lagging).reclaimed("bob", &["b1"]).stored("bob", "b1");
    let history = history.changed("bob", bound("b1", "True"));
    history.is_not_at_rest("sales/alice has no condition Bound for its spec yet");
    let lying = Stored { state: "Closed", ..bound("a1", "True") };
    history.changed("alice", lying).breaks("I1: more than one has Bound=True");
}

#[test]
fn one_that_no_webhook_saw_waits_unbound() {
    let unseen = || Oracle::default().unseen_by_webhooks(|place| place.name == "bob");
    let history = History::of_alice().stored("bob", "b1");
    let oracle = unseen().read(&history.0).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(oracle.unrest().join("\n").contains("sales/bob has no condition Bound for its spec yet"));
    let history = history.changed("bob", bound("b1", "False"));
    let oracle = unseen().read(&history.0).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(oracle.unrest(), Vec::<String>::new());
}

#[test]
fn a_claim_without_a_holder_is_no_rest() {
    History::default()
        .claimed("alice", &["a1"])
        .is_not_at_rest("I3: claim chat-1 names sales/alice, which does not hold");
    History::of_alice().deleted("alice").is_not_at_rest("I3: claim chat-1 names sales/alice, which does not hold");
    assert_eq!(History::of_alice().deleted("alice").is_sound().stuck().len(), 1);
}

#[test]
fn a_status_that_does_not_say_what_is_so_is_no_rest() {
    let history = || History::default().claimed("alice", &["a1"]).stored("alice", "a1");
    history().is_not_at_rest("sales/alice has no condition Bound for its spec yet");
    history().changed("alice", bound("a1", "False")).is_not_at_rest("has the claim chat-1 and is Bound=False");
    let lying = Stored { state: "Closed", ..bound("a1", "True") };
    history().changed("alice", lying).released().is_not_at_rest("holds nothing and is Bound=True");
}

#[test]
fn a_dry_run_that_writes_is_rejected() {
    let dry_runs = || Oracle::default().dry_runs(|place| place.name == "try");
    History::default().claimed("try", &["t1"]).breaks_for(dry_runs(), "I5: a dry run of sales/try wrote a claim");
    History::default().stored("try", "t1").breaks_for(dry_runs(), "I5: a dry run was stored");

    let mut oracle = History::of_alice().is_sound();
    assert!(oracle.was_dry_run("a2").is_ok());
    assert!(oracle.was_dry_run("a1").is_err(), "recorded before the dry run was answered");
    let mut later = History::of_alice().reclaimed("alice", &["a1", "a2"]).0;
    assert!(oracle.observe(&later.pop().unwrap()).is_err(), "recorded after");
}

#[test]
fn a_history_with_a_gap_is_rejected() {
    History::default().changed("alice", bound("a1", "True")).breaks("a gap");
    History::of_alice().stored("alice", "a2").breaks("a gap");
    History::of_alice().changed("alice", new("a2")).breaks("a gap");
    History::default().released().breaks("a gap");
    History::of_alice().claimed("alice", &["a1"]).breaks("a gap");
    let mut history = History::of_alice();
    history.0.swap(0, 1);
    history.breaks("I1: sales/alice (a1) was stored without a claim");
}

#[test]
fn who_held_a_binding_and_when_is_remembered_until_it_is_to_be_forgotten() {
    let history = History::of_alice().changed("alice", closed("a1")).reclaimed("bob", &["b1"]).stored("bob", "b1");
    let mut oracle = history.is_sound();
    assert_eq!(oracle.hold_intervals(&carol()).len(), 2);
    let has_held = |name: &str, when| oracle.has_held(&carol(), &place(name), &when);
    assert!(has_held("alice", 0..=101) && has_held("alice", 102..=200), "from 101 on, and before 103");
    assert!(!has_held("alice", 0..=100) && !has_held("alice", 103..=200));
    assert!(has_held("bob", 103..=105) && has_held("bob", 1000..=1000) && !has_held("bob", 0..=104));
    assert!(!has_held("carl", 0..=1000));

    oracle.forget(&carol());
    assert_eq!(oracle.remembered(), 1, "something of it is stored");
    let end = history.deleted("alice").deleted("bob").released();
    end.0[6..].iter().try_for_each(|event| oracle.observe(event)).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(oracle.remembered(), 0);
}
