//! Checks in a history of conversations and claims whether the invariants I1 to I5 held. Pure: its only input is the events.
//!
//! It uses no code of the product, so that a mistake there cannot hide here. It defines again, from the JSON of the objects, what "open"
//! and "holding" mean.

#![allow(dead_code, reason = "each test module uses a part of it")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use switchboard::api::ConversationReference as Place;

/// The number of changes of one binding that a failure shows.
const MAX_TRAIL: usize = 60;

/// One change in etcd.
#[derive(Clone, Debug)]
pub struct Event {
    /// The revision of etcd, which is the object's resourceVersion.
    pub revision: u64,
    pub kind: Kind,
    /// Empty for a claim.
    pub namespace: String,
    pub name: String,
    pub change: Change,
    /// The object after the change; `None` if it was deleted.
    pub object: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Conversation,
    Claim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Created,
    Updated,
    Deleted,
}

/// The addresses that identify a binding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binding {
    pub channel: String,
    pub contact: String,
    pub proxy: String,
}

impl Binding {
    pub fn new(channel: &str, contact: &str, proxy: &str) -> Self {
        Self { channel: channel.to_owned(), contact: contact.to_owned(), proxy: proxy.to_owned() }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} \u{2192} {}", self.channel, self.contact, self.proxy)
    }
}

/// An invariant that did not hold, with the part of the history that shows it.
#[derive(Debug)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An interval of revisions during which a conversation held a binding.
#[derive(Clone, Debug)]
pub struct HoldInterval {
    pub place: Place,
    pub uid: String,
    pub from: u64,
    /// The revision at which it stopped holding; `None` while it holds.
    pub until: Option<u64>,
}

type PlacePredicate = Box<dyn Fn(&Place) -> bool + Send>;

/// Reads a history event by event. Remembers a binding until it is forgotten with [`Oracle::forget`].
pub struct Oracle {
    revision: u64,
    conversations: BTreeMap<Place, Conversation>,
    /// The binding of each claim, by the name of the claim.
    claims: HashMap<String, Binding>,
    ledgers: HashMap<Binding, Ledger>,
    /// Every UID that a claim ever recorded.
    recorded: HashSet<String>,
    /// The UIDs of dry runs.
    dry_run_uids: HashSet<String>,
    is_unseen: PlacePredicate,
    is_dry_run: PlacePredicate,
    are_claims_guarded: bool,
}

/// The known state of one conversation.
struct Conversation {
    uid: String,
    /// The current binding, or the previous one if the contact was removed.
    binding: Option<Binding>,
    /// Whether it is open and has a contact.
    holds: bool,
    /// The condition Bound: `True`, `False` or `Unknown`.
    bound: String,
    /// Whether the condition was decided on the stored spec.
    is_current: bool,
}

struct Claim {
    name: String,
    holder: Place,
    uids: Vec<String>,
}

/// The known state of one binding.
#[derive(Default)]
struct Ledger {
    claim: Option<Claim>,
    stored: BTreeSet<Place>,
    holders: BTreeSet<Place>,
    /// The conversations with `Bound=True`.
    bound: BTreeSet<Place>,
    hold_intervals: Vec<HoldInterval>,
    trail: VecDeque<String>,
    is_to_be_forgotten: bool,
}

impl Default for Oracle {
    fn default() -> Self {
        Self {
            revision: 0,
            conversations: BTreeMap::new(),
            claims: HashMap::new(),
            ledgers: HashMap::new(),
            recorded: HashSet::new(),
            dry_run_uids: HashSet::new(),
            is_unseen: Box::new(|_| false),
            is_dry_run: Box::new(|_| false),
            are_claims_guarded: true,
        }
    }
}

/// Options.
impl Oracle {
    /// These conversations are created while no webhook is in force, so they may be stored without a claim.
    #[must_use]
    pub fn unseen_by_webhooks(mut self, is_unseen: impl Fn(&Place) -> bool + Send + 'static) -> Self {
        self.is_unseen = Box::new(is_unseen);
        self
    }

    /// These conversations are created only by dry runs.
    #[must_use]
    pub fn dry_runs(mut self, is_dry_run: impl Fn(&Place) -> bool + Send + 'static) -> Self {
        self.is_dry_run = Box::new(is_dry_run);
        self
    }

    /// Somebody bypasses the admission policy and changes claims by hand, or the control plane is suspended for longer than the grace
    /// period. The oracle then checks only that at most one conversation has `Bound=True`, I5, and I2 and I3 at rest.
    #[must_use]
    pub fn with_claims_changed_by_hand(mut self) -> Self {
        self.are_claims_guarded = false;
        self
    }
}

/// Reading.
impl Oracle {
    /// Reads a whole history.
    pub fn read(mut self, history: &[Event]) -> Result<Self, Violation> {
        history.iter().try_for_each(|event| self.observe(event))?;
        Ok(self)
    }

    /// Reads the next event.
    pub fn observe(&mut self, event: &Event) -> Result<(), Violation> {
        if event.revision < self.revision {
            return Err(Violation(format!("the history goes back from revision {} to {event:?}", self.revision)));
        }
        self.revision = event.revision;
        match event.kind {
            Kind::Conversation => self.observe_conversation(event),
            Kind::Claim => self.observe_claim(event),
        }
    }

    /// Reports that a dry run had this UID. No claim may ever record it.
    pub fn was_dry_run(&mut self, uid: &str) -> Result<(), Violation> {
        self.dry_run_uids.insert(uid.to_owned());
        if self.recorded.contains(uid) {
            return Err(Violation(format!("I5: a claim records the UID {uid} of a dry run")));
        }
        Ok(())
    }

    /// Forgets a binding as soon as no object of it is stored.
    pub fn forget(&mut self, binding: &Binding) {
        if let Some(ledger) = self.ledgers.get_mut(binding) {
            ledger.is_to_be_forgotten = true;
        }
        self.tidy(binding);
    }

    fn tidy(&mut self, binding: &Binding) {
        let is_over = |ledger: &Ledger| ledger.is_to_be_forgotten && ledger.claim.is_none() && ledger.stored.is_empty();
        if self.ledgers.get(binding).is_some_and(is_over) {
            self.ledgers.remove(binding);
        }
    }
}

/// Results.
impl Oracle {
    /// The revision of the last event.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The intervals during which a conversation held the binding, in order.
    pub fn hold_intervals(&self, binding: &Binding) -> &[HoldInterval] {
        self.ledgers.get(binding).map(|ledger| ledger.hold_intervals.as_slice()).unwrap_or_default()
    }

    /// Whether the conversation held the binding at one of these revisions (I4).
    pub fn has_held(&self, binding: &Binding, place: &Place, when: &RangeInclusive<u64>) -> bool {
        self.hold_intervals(binding).iter().any(|interval| {
            interval.place == *place
                && interval.from <= *when.end()
                && interval.until.is_none_or(|until| until > *when.start())
        })
    }

    /// The last changes of a binding, one per line.
    pub fn trail(&self, binding: &Binding) -> String {
        let lines = self.ledgers.get(binding).into_iter().flat_map(|ledger| &ledger.trail);
        lines.fold(String::new(), |trail, line| trail + "\n  " + line)
    }

    /// The number of remembered bindings.
    pub fn remembered(&self) -> usize {
        self.ledgers.len()
    }

    /// The claims that do not name a holder of their binding (I3).
    pub fn stuck(&self) -> Vec<String> {
        let claims = self.ledgers.iter().filter_map(|(binding, ledger)| {
            let claim = ledger.claim.as_ref()?;
            let is_held = ledger.holders.contains(&claim.holder);
            (!is_held).then(|| {
                format!("I3: claim {} names {}, which does not hold {binding}", claim.name, claim.holder)
                    + &self.history_of(binding)
            })
        });
        claims.collect()
    }

    /// The violations of the rules that hold at rest while a leader runs: I2, I3, and a correct condition Bound in each status.
    pub fn unrest(&self) -> Vec<String> {
        let conversations = self.conversations.iter().filter_map(|(place, conversation)| {
            let why = self.why_unsettled(place, conversation)?;
            let history = conversation.binding.as_ref().map(|binding| self.history_of(binding));
            Some(format!("I2: {place} {why}{}", history.unwrap_or_default()))
        });
        let undecided = self.ledgers.iter().filter_map(|(binding, ledger)| {
            let claim = ledger.claim.as_ref().filter(|claim| ledger.holders.contains(&claim.holder))?;
            let holder = self.conversations.get(&claim.holder)?;
            let others: Vec<_> = claim.uids.iter().filter(|uid| **uid != holder.uid).collect();
            (!others.is_empty()).then(|| {
                format!("I3: claim {} records {others:?}, which were never stored", claim.name)
                    + &self.history_of(binding)
            })
        });
        conversations.chain(undecided).chain(self.stuck()).collect()
    }

    fn why_unsettled(&self, place: &Place, conversation: &Conversation) -> Option<String> {
        let Conversation { bound, .. } = conversation;
        if !conversation.is_current {
            return Some(format!("has no condition Bound for its spec yet: it says {bound}"));
        }
        let binding = conversation.binding.as_ref().filter(|_| conversation.holds);
        let Some(binding) = binding else {
            return (bound != "False").then(|| format!("holds nothing and is Bound={bound}"));
        };
        let ledger = self.ledgers.get(binding);
        match ledger.and_then(|ledger| ledger.claim.as_ref()) {
            None => Some(format!("holds {binding}, and no claim names it")),
            Some(claim) if claim.holder == *place => {
                (bound != "True").then(|| format!("has the claim {} and is Bound={bound}", claim.name))
            }
            Some(claim) => (bound != "False")
                .then(|| format!("is Bound={bound}, though the claim {} names {}", claim.name, claim.holder)),
        }
    }

    fn history_of(&self, binding: &Binding) -> String {
        format!("\nhistory of {binding}, by revision:{}\n", self.trail(binding))
    }

    fn violation(&self, binding: &Binding, text: impl fmt::Display) -> Violation {
        Violation(format!("at revision {}: {text}{}", self.revision, self.history_of(binding)))
    }
}

/// Conversations.
impl Oracle {
    fn observe_conversation(&mut self, event: &Event) -> Result<(), Violation> {
        let place = Place { namespace: event.namespace.clone(), name: event.name.clone() };
        let before = self.conversations.remove(&place);
        let now = event.object.as_ref().map(|object| Conversation::read(object, before.as_ref()));
        if (self.is_dry_run)(&place) {
            return Err(Violation(format!("I5: a dry run was stored: {event:?}")));
        }
        let is_consistent = match (event.change, &before, &now) {
            (Change::Created, None, Some(_)) | (Change::Deleted, Some(_), None) => true,
            (Change::Updated, Some(before), Some(now)) => before.uid == now.uid,
            _ => false,
        };
        if !is_consistent {
            return Err(Violation(format!("the history has a gap before {event:?}")));
        }
        let held = before.as_ref().is_some_and(|conversation| conversation.holds);
        let holds = now.as_ref().is_some_and(|conversation| conversation.holds);
        let binding = now.as_ref().or(before.as_ref()).and_then(|conversation| conversation.binding.clone());
        let line = format!("{:>7} {:<8} {place} {}", event.revision, word(event.change), describe(now.as_ref()));
        let uid = now.as_ref().map(|now| now.uid.clone()).unwrap_or_default();
        let is_bound = now.as_ref().is_some_and(|now| now.bound == "True" && (now.holds || now.is_current));
        if let Some(now) = now {
            self.conversations.insert(place.clone(), now);
        }
        let Some(binding) = binding else { return Ok(()) };

        let ledger = self.ledgers.entry(binding.clone()).or_default();
        ledger.note(line);
        if event.change == Change::Deleted {
            ledger.stored.remove(&place);
        } else {
            ledger.stored.insert(place.clone());
        }
        if holds && !held {
            ledger.holders.insert(place.clone());
            ledger.hold_intervals.push(HoldInterval {
                place: place.clone(),
                uid: uid.clone(),
                from: event.revision,
                until: None,
            });
        } else if held && !holds {
            ledger.holders.remove(&place);
            for interval in ledger.hold_intervals.iter_mut().filter(|interval| interval.place == place) {
                interval.until.get_or_insert(event.revision);
            }
        }
        if is_bound {
            ledger.bound.insert(place.clone());
        } else {
            ledger.bound.remove(&place);
        }
        if holds && !held {
            self.check_is_claimed(&binding, &place, &uid)?;
        }
        self.check(&binding)?;
        if event.change == Change::Deleted {
            self.tidy(&binding);
        }
        Ok(())
    }

    /// Checks I1 and its cause: a conversation becomes the holder only under a claim that names it and records the UID of its create.
    fn check_is_claimed(&self, binding: &Binding, place: &Place, uid: &str) -> Result<(), Violation> {
        if !self.are_claims_guarded || (self.is_unseen)(place) {
            return Ok(());
        }
        let claim = self.ledgers.get(binding).and_then(|ledger| ledger.claim.as_ref());
        if claim.is_some_and(|claim| claim.holder == *place && claim.uids.iter().any(|recorded| recorded == uid)) {
            return Ok(());
        }
        Err(self.violation(binding, format_args!("I1: {place} ({uid}) was stored without a claim that records it")))
    }

    fn check(&self, binding: &Binding) -> Result<(), Violation> {
        let Some(ledger) = self.ledgers.get(binding) else { return Ok(()) };
        if ledger.bound.len() > 1 {
            return Err(
                self.violation(binding, format_args!("I1: more than one has Bound=True: {}", list(&ledger.bound)))
            );
        }
        if !self.are_claims_guarded {
            return Ok(());
        }
        let admitted: BTreeSet<_> = ledger.holders.iter().filter(|place| !(self.is_unseen)(place)).cloned().collect();
        if admitted.len() > 1 {
            return Err(
                self.violation(binding, format_args!("I1: more than one holds the binding: {}", list(&admitted)))
            );
        }
        let is_named = |place: &Place| ledger.claim.as_ref().is_some_and(|claim| claim.holder == *place);
        if let Some(place) = ledger.bound.intersection(&ledger.holders).find(|place| !is_named(place)) {
            return Err(
                self.violation(binding, format_args!("I1: {place} has Bound=True, and the claim does not name it"))
            );
        }
        Ok(())
    }
}

/// Claims.
impl Oracle {
    fn observe_claim(&mut self, event: &Event) -> Result<(), Violation> {
        let before = self.claims.get(&event.name).cloned();
        let now = event.object.as_ref().map(|object| (claimed(object), Claim::read(&event.name, object)));
        let is_consistent = match event.change {
            Change::Created => before.is_none() && now.is_some(),
            Change::Updated => before.is_some() && now.is_some(),
            Change::Deleted => before.is_some() && now.is_none(),
        };
        if !is_consistent {
            return Err(Violation(format!("the history has a gap before {event:?}")));
        }
        let binding = match (&before, &now) {
            (Some(before), Some((now, _))) if before != now && self.are_claims_guarded => {
                return Err(self
                    .violation(before, format_args!("claim {} has become one of another binding: {now}", event.name)));
            }
            (_, Some((binding, _))) | (Some(binding), None) => binding.clone(),
            (None, None) => return Ok(()),
        };
        let claim = now.map(|(_, claim)| claim);
        let line = format!(
            "{:>7} {:<8} claim {}",
            event.revision,
            word(event.change),
            match &claim {
                Some(claim) => format!("names {} and records {:?}", claim.holder, claim.uids),
                None => event.name.clone(),
            }
        );
        match &claim {
            Some(_) => self.claims.insert(event.name.clone(), binding.clone()),
            None => self.claims.remove(&event.name),
        };
        if let Some(before) = before.filter(|before| *before != binding) {
            self.ledgers.entry(before).or_default().claim = None;
        }
        let ledger = self.ledgers.entry(binding.clone()).or_default();
        ledger.note(line);
        let former = std::mem::replace(&mut ledger.claim, claim);
        let loser = former.filter(|former| {
            ledger.holders.contains(&former.holder)
                && ledger.claim.as_ref().is_none_or(|claim| claim.holder != former.holder)
        });
        if let Some(former) = loser
            && self.are_claims_guarded
        {
            let text = format!("I1: the claim was taken from {}, which holds the binding", former.holder);
            return Err(self.violation(&binding, text));
        }
        self.check_dry_runs(&binding)?;
        self.check(&binding)?;
        if event.change == Change::Deleted {
            self.tidy(&binding);
        }
        Ok(())
    }

    fn check_dry_runs(&mut self, binding: &Binding) -> Result<(), Violation> {
        let Some(claim) = self.ledgers.get(binding).and_then(|ledger| ledger.claim.as_ref()) else { return Ok(()) };
        if (self.is_dry_run)(&claim.holder) || claim.uids.iter().any(|uid| self.dry_run_uids.contains(uid)) {
            let text = format!("I5: a dry run of {} wrote a claim", claim.holder);
            return Err(self.violation(binding, text));
        }
        for uid in &claim.uids {
            if !self.recorded.contains(uid) {
                self.recorded.insert(uid.clone());
            }
        }
        Ok(())
    }
}

impl Ledger {
    fn note(&mut self, line: String) {
        self.trail.push_back(line);
        if self.trail.len() > MAX_TRAIL {
            self.trail.pop_front();
        }
    }
}

impl Conversation {
    fn read(object: &Value, before: Option<&Self>) -> Self {
        let (spec, status) = (&object["spec"], &object["status"]);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let binding = || {
            Some(Binding {
                channel: text(&spec["channel"])?,
                contact: text(&spec["contact"]["address"])?,
                proxy: text(&spec["proxy"]["address"])?,
            })
        };
        let binding = binding();
        let is_open = spec["state"] != "Closed" && status["state"] != "Closed";
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let bound = conditions.into_iter().find(|condition| condition["type"] == "Bound");
        Self {
            uid: text(&object["metadata"]["uid"]).unwrap_or_default(),
            holds: is_open && binding.is_some(),
            binding: binding.or_else(|| before?.binding.clone()),
            bound: bound.and_then(|bound| text(&bound["status"])).unwrap_or_else(|| "Unknown".to_owned()),
            is_current: bound.is_some_and(|bound| bound["observedGeneration"] == object["metadata"]["generation"]),
        }
    }
}

impl Claim {
    fn read(name: &str, object: &Value) -> Self {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let reference = &spec["conversationRef"];
        let admissions = spec["admissions"].as_array().into_iter().flatten();
        Self {
            name: name.to_owned(),
            holder: Place { namespace: text(&reference["namespace"]), name: text(&reference["name"]) },
            uids: admissions.map(|admission| text(&admission["uid"])).collect(),
        }
    }
}

fn claimed(object: &Value) -> Binding {
    let spec = &object["spec"];
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    Binding::new(text("channel"), text("contactAddress"), text("proxyAddress"))
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Created => "created",
        Change::Updated => "updated",
        Change::Deleted => "deleted",
    }
}

fn describe(conversation: Option<&Conversation>) -> String {
    let Some(Conversation { uid, holds, bound, is_current, .. }) = conversation else { return String::new() };
    let holds = if *holds { "holds" } else { "does not hold" };
    let stale = if *is_current { "" } else { " (of an older spec)" };
    format!("{uid} {holds}, Bound={bound}{stale}")
}

fn list(places: &BTreeSet<Place>) -> String {
    places.iter().map(Place::to_string).collect::<Vec<_>>().join(", ")
}
