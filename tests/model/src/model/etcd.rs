//! The API server and etcd: one revision counter, unique names, preconditions, and a watch of each kind.

use super::abstraction::{Claim, Conversation, Place, Uids, Version, Write};

/// An event of the watch of conversations, whose selector is `status.state!=Closed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    Shown(Place, Conversation),
    /// Deleted, or closed in its status. The event carries the old content.
    Gone(Place, Conversation),
}

/// The stored objects, and the events that some watch has not delivered yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Etcd {
    pub conversations: [Option<Conversation>; 2],
    pub claim: Option<Claim>,
    pub conversation_events: Vec<Event>,
    pub claim_events: Vec<Option<Claim>>,
    /// The revision of the last write. It is made canonical after each step, since only equality is meaningful.
    pub revision: Version,
    /// The UIDs that a claim ever recorded, among those that can still matter.
    pub recorded: Uids,
}

/// The preconditions of a write. Only mutations omit some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preconditions {
    pub uid: bool,
    pub version: bool,
    pub absence: bool,
}

impl Preconditions {
    pub const ALL: Self = Self { uid: true, version: true, absence: true };
}

impl Etcd {
    fn next_revision(&mut self) -> Version {
        self.revision += 1;
        self.revision
    }

    pub fn stored(&self, place: Place) -> Option<Conversation> {
        self.conversations[usize::from(place)]
    }

    /// Whether the conversation at this place needs the binding, and the claim names it and records its UID.
    pub fn holds_binding(&self, place: Place) -> bool {
        self.stored(place)
            .is_some_and(|conversation| conversation.needs_binding && self.records(place, conversation.uid))
    }

    /// Executes a write of the claim and returns `true`, or returns `false` if a precondition fails.
    pub fn write(&mut self, write: Write, preconditions: Preconditions) -> bool {
        let is_met = |claim: &Claim, uid, version| {
            (!preconditions.uid || claim.uid == uid) && (!preconditions.version || claim.version == version)
        };
        let claim = match (write, self.claim) {
            (Write::Create { holder, admissions }, before) if before.is_none() || !preconditions.absence => {
                let version = self.next_revision();
                Some(Claim { uid: version, version, holder, admissions, is_being_deleted: false })
            }
            (Write::Replace { uid, version, holder, admissions }, Some(before)) if is_met(&before, uid, version) => {
                Some(Claim { version: self.next_revision(), holder, admissions, ..before })
            }
            (Write::Delete { uid, version }, Some(before)) if is_met(&before, uid, version) => {
                self.next_revision();
                None
            }
            _ => return false,
        };
        self.set_claim(claim);
        true
    }

    fn set_claim(&mut self, claim: Option<Claim>) {
        self.recorded = self.recorded.and(claim.map_or(Uids::NONE, |claim| claim.admissions));
        self.claim = claim;
        self.claim_events.push(claim);
    }

    /// Deletes the claim manually: at once, or in the foreground, so that it gets a deletionTimestamp first.
    pub fn delete_claim_manually(&mut self, in_foreground: bool) {
        let version = self.next_revision();
        let claim =
            self.claim.filter(|_| in_foreground).map(|claim| Claim { version, is_being_deleted: true, ..claim });
        self.set_claim(claim);
    }

    /// Stores a new conversation, if the name is free.
    pub fn store(&mut self, place: Place, uid: u8, has_statuses: bool) -> bool {
        if self.stored(place).is_some() {
            return false;
        }
        let conversation = Conversation { uid, needs_binding: true, is_hidden: false, bound: None, version: 0 };
        self.change(place, conversation, has_statuses);
        true
    }

    /// Updates a stored conversation. Versions of conversations matter only to writes of statuses.
    pub fn change(&mut self, place: Place, conversation: Conversation, has_statuses: bool) {
        let version = if has_statuses { self.next_revision() } else { 0 };
        let conversation = Conversation { version, ..conversation };
        let before = self.conversations[usize::from(place)].replace(conversation);
        let was_hidden = before.is_some_and(|before| before.is_hidden);
        match (was_hidden, conversation.is_hidden, before) {
            (true, true, _) => {}
            (false, true, Some(before)) => self.conversation_events.push(Event::Gone(place, before)),
            _ => self.conversation_events.push(Event::Shown(place, conversation)),
        }
    }

    pub fn delete(&mut self, place: Place) {
        if let Some(before) = self.conversations[usize::from(place)].take().filter(|before| !before.is_hidden) {
            self.conversation_events.push(Event::Gone(place, before));
        }
    }

    /// The number of stored conversations that satisfy `counts`.
    pub fn count(&self, counts: impl Fn(&Conversation) -> bool) -> usize {
        self.conversations.iter().flatten().filter(|conversation| counts(conversation)).count()
    }

    /// Whether this write can no longer take effect, since no version recurs.
    pub fn is_moot(&self, write: Write) -> bool {
        match write {
            Write::Create { .. } => false,
            Write::Replace { version, .. } | Write::Delete { version, .. } => {
                self.claim.is_none_or(|claim| claim.version != version)
            }
        }
    }

    /// Whether the claim names this place and records this UID.
    pub fn records(&self, place: Place, uid: u8) -> bool {
        self.claim.is_some_and(|claim| claim.holder == place && claim.admissions.has(uid))
    }

    pub fn versions(&mut self, visit: &mut impl FnMut(&mut Version)) {
        for claim in self.claim.iter_mut().chain(self.claim_events.iter_mut().flatten()) {
            claim_versions(claim, visit);
        }
        for event in &mut self.conversation_events {
            let (Event::Shown(_, conversation) | Event::Gone(_, conversation)) = event;
            visit(&mut conversation.version);
        }
        for conversation in self.conversations.iter_mut().flatten() {
            visit(&mut conversation.version);
        }
    }
}

pub fn claim_versions(claim: &mut Claim, visit: &mut impl FnMut(&mut Version)) {
    visit(&mut claim.uid);
    visit(&mut claim.version);
}

pub fn write_versions(write: &mut Write, visit: &mut impl FnMut(&mut Version)) {
    match write {
        Write::Create { .. } => {}
        Write::Replace { uid, version, .. } | Write::Delete { uid, version } => {
            visit(uid);
            visit(version);
        }
    }
}
