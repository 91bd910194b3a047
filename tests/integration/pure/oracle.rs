//! The oracle of the tests of races and faults, on constructed histories: it accepts the allowed ones, and rejects each violation of an
//! invariant. Tier: pure.

use crate::common::oracle::{Binding, Change, Event, Kind, Oracle};
use serde_json::{Value, json};
use switchboard::api::ConversationReference;

/// A builder of histories. Each call adds the next revision.
#[derive(Default)]
struct History(Vec<Event>);

/// The parts of a conversation that the oracle reads.
#[derive(Clone, Copy)]
struct Stored<'a> {
    uid: &'a str,
    state: &'a str,
    has_contact: bool,
    bound: &'a str,
}

/// A new conversation: open, with a contact, without a decided Bound condition.
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

    /// Alice holds the binding, and no step is pending.
    fn held_by_alice() -> Self {
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

    /// The history is sound, but a further step must follow, for the reason `why`.
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

fn reference(name: &str) -> ConversationReference {
    ConversationReference { namespace: "sales".into(), name: name.into() }
}

#[test]
fn binding_may_change_holders_after_each_kind_of_release() {
    History::held_by_alice().is_at_rest();
    let next =
        |history: History| history.reclaimed("bob", &["b1"]).stored("bob", "b1").changed("bob", bound("b1", "True"));
    next(History::held_by_alice().changed("alice", closed("a1"))).is_at_rest();
    let without_contact = Stored { has_contact: false, ..bound("a1", "False") };
    next(History::held_by_alice().changed("alice", without_contact)).is_at_rest();
    next(History::held_by_alice().deleted("alice")).is_at_rest();
    History::held_by_alice().deleted("alice").released().is_at_rest();
}

#[test]
fn creates_of_the_same_name_may_share_a_claim() {
    let history = History::default().claimed("alice", &["a1"]).reclaimed("alice", &["a1", "a2"]).stored("alice", "a2");
    let history = history.changed("alice", bound("a2", "True"));
    history.is_not_at_rest("records [\"a1\"], which were never stored");
    history.reclaimed("alice", &["a2"]).is_at_rest();
}

#[test]
fn two_holders_are_rejected_with_their_history() {
    let violation =
        History::held_by_alice().stored("bob", "b1").breaks("I1: sales/bob (b1) was stored without a claim");
    for line in ["at revision 103", "100 created  claim names sales/alice", "101 created  sales/alice a1 needs it"] {
        assert!(violation.contains(line), "{line:?} is not in {violation}");
    }
    History::held_by_alice().reclaimed("bob", &["b1"]).breaks("I1: the claim was taken from sales/alice");
}

#[test]
fn create_stored_after_its_claim_was_lost_is_rejected() {
    let history = History::default().claimed("alice", &["a1"]).reclaimed("bob", &["b1"]).stored("bob", "b1");
    history.stored("alice", "a1").breaks("I1: sales/alice (a1) was stored without a claim that records it");
    let history = History::default().claimed("alice", &["a1"]).released().stored("alice", "a1");
    history.breaks("I1: sales/alice (a1) was stored without a claim");
}

#[test]
fn create_stored_under_another_uids_claim_is_rejected() {
    History::default().claimed("alice", &["a1"]).stored("alice", "a2").breaks("I1: sales/alice (a2) was stored");
}

#[test]
fn deletion_of_a_holders_claim_is_rejected() {
    History::held_by_alice().released().breaks("I1: the claim was taken from sales/alice");
}

#[test]
fn two_bound_conversations_are_rejected_after_manual_changes() {
    let history = History::held_by_alice().released().stored("bob", "b1").claimed("bob", &["b1"]);
    let with_manual_changes = || Oracle::default().with_claims_changed_by_hand();
    with_manual_changes().read(&history.0).unwrap_or_else(|violation| panic!("{violation}"));
    history
        .changed("bob", bound("b1", "True"))
        .breaks_for(with_manual_changes(), "I1: more than one has Bound=True: sales/alice, sales/bob");
}

#[test]
fn bound_conversation_without_a_claim_is_rejected() {
    let unseen = Oracle::default().unseen_by_webhooks(|_| true);
    let history = History::default().stored("alice", "a1").changed("alice", bound("a1", "True"));
    history.breaks_for(unseen, "I1: sales/alice has Bound=True, and the claim does not record it");
}

#[test]
fn closed_conversation_with_outdated_status_is_not_bound() {
    let outdated = Stored { state: "Closed", bound: "Unknown", ..new("a1") };
    let history = History::held_by_alice().changed("alice", outdated).reclaimed("bob", &["b1"]).stored("bob", "b1");
    let history = history.changed("bob", bound("b1", "True"));
    history.is_not_at_rest("sales/alice has no condition Bound for its spec yet");
    let contradictory = Stored { state: "Closed", ..bound("a1", "True") };
    history.changed("alice", contradictory).breaks("I1: more than one has Bound=True");
}

#[test]
fn conversation_unseen_by_webhooks_may_stay_unbound() {
    let unseen = || Oracle::default().unseen_by_webhooks(|conversation| conversation.name == "bob");
    let history = History::held_by_alice().stored("bob", "b1");
    let oracle = unseen().read(&history.0).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(oracle.unrest().join("\n").contains("sales/bob has no condition Bound for its spec yet"));
    let history = history.changed("bob", bound("b1", "False"));
    let oracle = unseen().read(&history.0).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(oracle.unrest(), Vec::<String>::new());
}

#[test]
fn claim_without_a_holder_is_reported_as_unrest() {
    History::default()
        .claimed("alice", &["a1"])
        .is_not_at_rest("I3: claim chat-1 names sales/alice, which does not hold");
    History::held_by_alice().deleted("alice").is_not_at_rest("I3: claim chat-1 names sales/alice, which does not hold");
    assert_eq!(History::held_by_alice().deleted("alice").is_sound().stuck().len(), 1);
}

#[test]
fn wrong_or_missing_bound_condition_is_reported_as_unrest() {
    let history = || History::default().claimed("alice", &["a1"]).stored("alice", "a1");
    history().is_not_at_rest("sales/alice has no condition Bound for its spec yet");
    history().changed("alice", bound("a1", "False")).is_not_at_rest("has the claim chat-1 and is Bound=False");
    let contradictory = Stored { state: "Closed", ..bound("a1", "True") };
    history().changed("alice", contradictory).released().is_not_at_rest("needs nothing and is Bound=True");
}

#[test]
fn dry_run_that_writes_is_rejected() {
    let dry_runs = || Oracle::default().dry_runs(|conversation| conversation.name == "try");
    History::default().claimed("try", &["t1"]).breaks_for(dry_runs(), "I5: a dry run of sales/try wrote a claim");
    History::default().stored("try", "t1").breaks_for(dry_runs(), "I5: a dry run was stored");

    let mut oracle = History::held_by_alice().is_sound();
    assert!(oracle.was_dry_run("a2").is_ok());
    assert!(oracle.was_dry_run("a1").is_err(), "a claim recorded it before the dry run was answered");
    let mut later = History::held_by_alice().reclaimed("alice", &["a1", "a2"]).0;
    assert!(oracle.observe(&later.pop().unwrap()).is_err(), "a claim recorded it afterwards");
}

#[test]
fn history_with_a_gap_is_rejected() {
    History::default().changed("alice", bound("a1", "True")).breaks("a gap");
    History::held_by_alice().stored("alice", "a2").breaks("a gap");
    History::held_by_alice().changed("alice", new("a2")).breaks("a gap");
    History::default().released().breaks("a gap");
    History::held_by_alice().claimed("alice", &["a1"]).breaks("a gap");
    let mut history = History::held_by_alice();
    history.0.swap(0, 1);
    history.breaks("I1: sales/alice (a1) was stored without a claim");
}

#[test]
fn past_holders_are_remembered_until_the_binding_is_forgotten() {
    let history = History::held_by_alice().changed("alice", closed("a1")).reclaimed("bob", &["b1"]).stored("bob", "b1");
    let mut oracle = history.is_sound();
    assert_eq!(oracle.hold_intervals(&carol()).len(), 2);
    let has_held = |name: &str, when| oracle.has_held(&carol(), &reference(name), &when);
    assert!(has_held("alice", 0..=101) && has_held("alice", 102..=200), "from revision 101 until before 103");
    assert!(!has_held("alice", 0..=100) && !has_held("alice", 103..=200));
    assert!(has_held("bob", 103..=105) && has_held("bob", 1000..=1000) && !has_held("bob", 0..=104));
    assert!(!has_held("carl", 0..=1000));

    oracle.forget(&carol());
    assert_eq!(oracle.remembered(), 1, "objects of the binding are still stored");
    let end = history.deleted("alice").deleted("bob").released();
    end.0[6..].iter().try_for_each(|event| oracle.observe(event)).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(oracle.remembered(), 0);
}
