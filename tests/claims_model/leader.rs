//! A replica that leads, or believes that it does: what its watches have shown it so far, and its work on claims and statuses.
//!
//! It follows `src/controller/index.rs`, `plan.rs` and `work.rs`, which know when to look; what is to be done about a claim is asked of
//! `switchboard::core::claim`. A watch is delivered only right before a look: before that nobody can tell. A look and the live
//! read that follows it are one step, since a look that lies back is one at an older cache; the write is a step of its own.

use super::abstraction::{self, Claim, Conversation, Place, Uids, Version, Write};
use super::etcd::{Etcd, Event, Preconditions, claim_versions, write_versions};
use super::{Coverage, Mutation};
use switchboard::api::Time;
use switchboard::core::claim::{CreateStatus, LiveConversation, ReleaseStep, adopt, release};

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    Conversation(Place),
    Claim,
    /// The claim, at the end of a grace period.
    Grace,
}

impl Task {
    pub const ALL: [Self; 4] = [Self::Claim, Self::Grace, Self::Conversation(0), Self::Conversation(1)];

    /// What is never under way twice at once.
    fn slot(self) -> usize {
        match self {
            Self::Conversation(place) => usize::from(place),
            Self::Claim | Self::Grace => 2,
        }
    }
}

/// A piece of work, after its reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Job {
    Write(Write),
    Status {
        place: Place,
        version: Version,
        bound: bool,
    },
    /// In a mutation alone: the conversation was read before the claim is taken.
    ReadTooEarly(Place, Option<Conversation>),
}

/// Which tasks wait in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asked {
    conversations: [bool; 2],
    claim: bool,
    grace: bool,
}

impl Asked {
    fn slot(&mut self, task: Task) -> &mut bool {
        match task {
            Task::Conversation(place) => &mut self.conversations[usize::from(place)],
            Task::Claim => &mut self.claim,
            Task::Grace => &mut self.grace,
        }
    }
}

/// One replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leader {
    conversations: [Option<Conversation>; 2],
    claim: Option<Claim>,
    departed: Uids,
    /// What was written of a conversation since the watch showed it.
    is_behind: [bool; 2],
    pub conversations_delivered: u8,
    pub claims_delivered: u8,
    pub asked: Asked,
    pub jobs: [Option<Job>; 3],
}

/// A look at something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Look {
    pub task: Task,
    /// How many events of each kind are delivered right before it.
    pub conversations: u8,
    pub claims: u8,
    /// Of the UIDs that cannot be stored any more: those whose grace period is over.
    pub expired: Uids,
}

/// What a leader works with.
pub struct World<'a> {
    pub etcd: &'a mut Etcd,
    pub has_statuses: bool,
    pub mutation: Option<Mutation>,
    pub saw: &'a mut dyn FnMut(Coverage),
}

/// What `release` says, except in mutations.
fn next_release(
    claim: Claim,
    live: Option<Conversation>,
    in_flight: Uids,
    expired: Uids,
    world: &mut World<'_>,
) -> ReleaseStep {
    let is_skipped = match world.mutation {
        Some(Mutation::GraceSkipped) => true,
        Some(Mutation::InFlightPruned) => live.is_some_and(|live| live.held_binding),
        _ => false,
    };
    let standing = |uid: &str| {
        let uid = abstraction::number(uid);
        if !in_flight.has(uid) {
            CreateStatus::Decided
        } else if expired.has(uid) || is_skipped {
            CreateStatus::Expired
        } else {
            CreateStatus::InFlight
        }
    };
    let step = release(&claim.into(), live.map(LiveConversation::from).as_ref(), standing);
    match step {
        ReleaseStep::Write(_) if !in_flight.within(expired).is_empty() => (world.saw)(Coverage::GraceOver),
        ReleaseStep::AwaitGrace => (world.saw)(Coverage::GraceAwaited),
        _ => {}
    }
    step
}

fn write_of(step: ReleaseStep) -> Option<Job> {
    match step {
        ReleaseStep::Write(write) => Some(Job::Write(Write::from(&write))),
        ReleaseStep::Keep | ReleaseStep::AwaitGrace => None,
    }
}

/// The write of a job reaches the API server.
pub fn carry_out(job: Job, world: &mut World<'_>) {
    match job {
        Job::Write(write) => {
            let is_create = matches!(write, Write::Create { .. });
            let is_delete = matches!(write, Write::Delete { .. });
            let preconditions = match world.mutation {
                Some(Mutation::DeleteUnconditional) if is_delete => {
                    Preconditions { uid: false, version: false, absence: true }
                }
                Some(Mutation::DeleteWithoutVersion) if is_delete => {
                    Preconditions { version: false, ..Preconditions::ALL }
                }
                Some(Mutation::PruneWithoutVersion) if !is_delete && !is_create => {
                    Preconditions { version: false, ..Preconditions::ALL }
                }
                Some(Mutation::AdoptReplaces) => Preconditions { absence: false, ..Preconditions::ALL },
                _ => Preconditions::ALL,
            };
            if world.etcd.write(write, preconditions) {
                (world.saw)(match write {
                    Write::Create { .. } => Coverage::Adopted,
                    Write::Replace { .. } => Coverage::Pruned,
                    Write::Delete { .. } => Coverage::Released,
                });
            } else {
                (world.saw)(Coverage::LostLeaderWrite);
            }
        }
        Job::Status { place, version, bound } => {
            if let Some(conversation) = world.etcd.stored(place).filter(|stored| stored.version == version) {
                world.etcd.change(place, Conversation { bound: Some(bound), ..conversation }, true);
                (world.saw)(if bound { Coverage::Bound } else { Coverage::NotBound });
            }
        }
        Job::ReadTooEarly(..) => {}
    }
}

/// The adoption of a conversation that has no claim.
fn adoption(place: Place, uid: u8) -> Job {
    Job::Write(Write::from(&adopt(abstraction::reference(place), uid.to_string(), Time::EPOCH)))
}

/// A look by some replica that believes that it leads, of which nothing is known: its watches may have shown anything that
/// ever was, so it counts as decided or expired any UID that cannot be stored any more, and takes for stored whatever once was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guess {
    /// At the claim as it is: what is written on the ground of an older one fails.
    Claim { expired: Uids },
    /// At a conversation that once was stored.
    Conversation { place: Place, uid: u8 },
}

/// What follows from a guess.
pub fn guess(guess: Guess, world: &mut World<'_>) -> Option<Job> {
    match guess {
        Guess::Claim { expired } => {
            let claim = world.etcd.claim?;
            let live = world.etcd.stored(claim.holder);
            write_of(next_release(claim, live, claim.admissions, expired, world))
        }
        Guess::Conversation { place, uid } => world.etcd.claim.is_none().then(|| adoption(place, uid)),
    }
}

impl Leader {
    pub fn is_asked(&self, task: Task) -> bool {
        let mut asked = self.asked;
        *asked.slot(task)
    }

    pub fn is_free(&self, task: Task) -> bool {
        self.jobs[task.slot()].is_none()
    }

    pub fn undelivered(&self, etcd: &Etcd) -> (u8, u8) {
        let left = |length: usize, delivered: u8| u8::try_from(length).unwrap() - delivered;
        (
            left(etcd.conversation_events.len(), self.conversations_delivered),
            left(etcd.claim_events.len(), self.claims_delivered),
        )
    }

    /// The process begins anew, lists both kinds and looks at everything.
    pub fn restart(&mut self, etcd: &Etcd, mutation: Option<Mutation>) {
        *self = Self::default();
        self.list_conversations(etcd, mutation);
        self.list_claims(etcd);
        let conversations = [0, 1].map(|place: usize| self.conversations[place].is_some());
        self.asked = Asked { conversations, claim: self.claim.is_some() && !self.is_settled(), grace: false };
    }

    /// The watch of the conversations begins anew with a list: events are lost.
    pub fn list_conversations(&mut self, etcd: &Etcd, mutation: Option<Mutation>) {
        for place in [0, 1] {
            match etcd.stored(place).filter(|conversation| !conversation.is_hidden) {
                Some(conversation) => self.conversation_seen(place, conversation),
                None => self.forget(place),
            }
        }
        self.asked.claim |= self.claim.is_some() && !self.is_settled() && mutation != Some(Mutation::ListsForgetClaims);
        self.conversations_delivered += self.undelivered(etcd).0;
    }

    /// The watch of the claims begins anew with a list.
    pub fn list_claims(&mut self, etcd: &Etcd) {
        match etcd.claim {
            Some(claim) => self.claim_seen(claim),
            None => self.forget_claim(),
        }
        self.claims_delivered += self.undelivered(etcd).1;
    }

    pub fn deliver(&mut self, conversations: u8, claims: u8, etcd: &Etcd, mutation: Option<Mutation>) {
        for _ in 0..conversations {
            let event = etcd.conversation_events[usize::from(self.conversations_delivered)];
            self.conversations_delivered += 1;
            match event {
                Event::Shown(place, conversation) => self.conversation_seen(place, conversation),
                Event::Gone(place, _) if mutation == Some(Mutation::OldContentBelieved) => {
                    self.asked.conversations[usize::from(place)] = true;
                    self.asked.claim = true;
                }
                Event::Gone(place, conversation) => {
                    self.departed = self.departed.and(Uids::one(conversation.uid));
                    self.forget(place);
                }
            }
        }
        for _ in 0..claims {
            let event = etcd.claim_events[usize::from(self.claims_delivered)];
            self.claims_delivered += 1;
            match event {
                Some(claim) => self.claim_seen(claim),
                None => self.forget_claim(),
            }
        }
    }

    fn cached(&self, place: Place) -> Option<Conversation> {
        self.conversations[usize::from(place)]
    }

    fn wants(&self, place: Place) -> bool {
        self.cached(place).is_some_and(|conversation| conversation.held_binding)
    }

    fn conversation_seen(&mut self, place: Place, conversation: Conversation) {
        if self.cached(place).is_some_and(|before| before.uid != conversation.uid) {
            self.forget(place);
        }
        let wanted = self.wants(place);
        self.conversations[usize::from(place)] = Some(conversation);
        self.is_behind[usize::from(place)] = false;
        if wanted && !conversation.held_binding {
            self.give_up(place);
        }
        if conversation.held_binding {
            let other = 1 - place;
            self.asked.conversations[usize::from(other)] |= self.wants(other);
            self.asked.claim |= !self.is_settled();
        }
        self.asked.conversations[usize::from(place)] = true;
    }

    fn forget(&mut self, place: Place) {
        if let Some(before) = self.conversations[usize::from(place)].take() {
            self.is_behind[usize::from(place)] = false;
            self.departed = self.departed.and(Uids::one(before.uid));
            if before.held_binding {
                self.give_up(place);
            }
            self.asked.conversations[usize::from(place)] = true;
        }
    }

    fn give_up(&mut self, place: Place) {
        let other = 1 - place;
        self.asked.conversations[usize::from(other)] |= self.wants(other);
        self.asked.claim = true;
    }

    fn claim_seen(&mut self, claim: Claim) {
        self.claim = Some(claim);
        self.ask_for_candidates();
        let waits = !self.in_flight().is_empty() && self.in_flight() == claim.admissions;
        self.asked.claim |= !waits && !self.is_settled();
        self.asked.grace |= !self.in_flight().is_empty();
    }

    fn forget_claim(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.departed = self.departed.without(claim.admissions);
        }
        self.ask_for_candidates();
    }

    fn ask_for_candidates(&mut self) {
        for place in [0, 1] {
            self.asked.conversations[usize::from(place)] |= self.wants(place);
        }
    }

    /// The UIDs of the claim that no watch has shown.
    pub fn in_flight(&self) -> Uids {
        self.claim.map_or(Uids::NONE, |claim| {
            let current = self.cached(claim.holder).map_or(Uids::NONE, |holder| Uids::one(holder.uid));
            claim.admissions.without(self.departed).without(current)
        })
    }

    fn is_settled(&self) -> bool {
        self.claim.is_some_and(|claim| {
            self.cached(claim.holder)
                .is_some_and(|holder| holder.held_binding && claim.admissions.without(Uids::one(holder.uid)).is_empty())
        })
    }

    fn first_candidate(&self) -> Option<Place> {
        let rank = |place: &Place| self.cached(*place).map(|candidate| (candidate.bound != Some(true), candidate.uid));
        [0, 1].into_iter().filter(|place| self.wants(*place)).min_by_key(rank)
    }

    /// What it will know after these deliveries.
    pub fn later(&self, conversations: u8, claims: u8, etcd: &Etcd, mutation: Option<Mutation>) -> Self {
        let mut later = self.clone();
        later.deliver(conversations, claims, etcd, mutation);
        later
    }

    /// Looks at something, and leaves the write that follows from it as a job.
    pub fn look(&mut self, look: Look, world: &mut World<'_>) {
        self.deliver(look.conversations, look.claims, world.etcd, world.mutation);
        self.run(look.task, look.expired, world);
    }

    /// Runs a task as things are known.
    pub fn run(&mut self, task: Task, expired: Uids, world: &mut World<'_>) {
        *self.asked.slot(task) = false;
        self.jobs[task.slot()] = match task {
            Task::Claim | Task::Grace => self.look_at_claim(expired, world),
            Task::Conversation(place) => self.look_at_conversation(place, world),
        };
    }

    fn look_at_claim(&mut self, expired: Uids, world: &mut World<'_>) -> Option<Job> {
        let Some(claim) = self.claim else {
            if let Some(first) = self.first_candidate() {
                self.asked.conversations[usize::from(first)] = true;
            }
            return None;
        };
        if self.is_settled() {
            return None;
        }
        let stored = world.etcd.stored(claim.holder);
        match world.mutation {
            Some(Mutation::ReleaseReadsTooEarly) => return Some(Job::ReadTooEarly(claim.holder, stored)),
            Some(Mutation::ReleaseTrustsWatch) => {
                return self.decide_release(claim, self.cached(claim.holder), expired, world);
            }
            Some(Mutation::OldContentBelieved) => {
                return self.decide_release(claim, self.cached(claim.holder).or(stored), expired, world);
            }
            _ => {}
        }
        self.decide_release(claim, stored, expired, world)
    }

    fn decide_release(
        &mut self,
        claim: Claim,
        live: Option<Conversation>,
        expired: Uids,
        world: &mut World<'_>,
    ) -> Option<Job> {
        let step = next_release(claim, live, self.in_flight(), expired, world);
        self.asked.grace |= step == ReleaseStep::AwaitGrace;
        write_of(step)
    }

    fn look_at_conversation(&mut self, place: Place, world: &mut World<'_>) -> Option<Job> {
        let conversation = self.cached(place)?;
        let status = |bound| {
            let is_news = match bound {
                true => conversation.bound != Some(true),
                // Without a contact, or closed by its spec, it never had to be told that it is not bound.
                false if conversation.held_binding => conversation.bound != Some(false),
                false => conversation.bound == Some(true),
            };
            let version = conversation.version;
            (world.has_statuses && is_news).then_some(Job::Status { place, version, bound })
        };
        if !conversation.held_binding {
            return status(false);
        }
        if self.claim.is_none_or(|claim| claim.holder != place) {
            return match world.etcd.claim {
                None if self.first_candidate() == Some(place) => Some(adoption(place, conversation.uid)),
                None => None,
                Some(claim) if claim.holder == place => None,
                Some(claim) if world.etcd.held_binding(claim.holder) => status(false),
                Some(_) => {
                    self.asked.claim = true;
                    None
                }
            };
        }
        let other = 1 - place;
        let is_other_written =
            self.wants(other) && (self.jobs[usize::from(other)].is_some() || self.is_behind[usize::from(other)]);
        if is_other_written && world.mutation != Some(Mutation::BoundMeanwhile) {
            return None;
        }
        let is_other_bound = self.wants(other) && self.cached(other).is_some_and(|other| other.bound == Some(true));
        if is_other_bound && world.mutation != Some(Mutation::BoundAtOnce) {
            self.asked.conversations[usize::from(other)] = true;
            return None;
        }
        status(true)
    }

    /// A job goes on.
    pub fn land(&mut self, slot: usize, world: &mut World<'_>) {
        match self.jobs[slot].take() {
            Some(Job::ReadTooEarly(holder, stored)) => {
                let (conversations, claims) = self.undelivered(world.etcd);
                self.deliver(conversations, claims, world.etcd, world.mutation);
                if let Some(claim) = self.claim.filter(|claim| claim.holder == holder) {
                    self.jobs[slot] = self.decide_release(claim, stored, Uids::NONE, world);
                }
            }
            Some(job) => {
                carry_out(job, world);
                if let Job::Status { place, version, .. } = job {
                    let is_known = self.cached(place).is_some_and(|known| known.version == version);
                    let is_changed = world.etcd.stored(place).is_some_and(|stored| stored.version != version);
                    self.is_behind[usize::from(place)] = is_known && is_changed;
                }
                self.ask_for_who_waits(slot);
            }
            None => {}
        }
    }

    /// Ends the jobs whose write can never take effect any more, as it would end.
    pub fn forget_moot_writes(&mut self, etcd: &Etcd) {
        for slot in 0..self.jobs.len() {
            if self.jobs[slot].is_some_and(|job| job.is_moot(etcd)) {
                self.jobs[slot] = None;
                self.ask_for_who_waits(slot);
            }
        }
    }

    /// Whom the claim names waits while the other one is being written.
    fn ask_for_who_waits(&mut self, slot: usize) {
        if let (Some(claim), 0 | 1) = (self.claim, slot) {
            self.asked.conversations[usize::from(claim.holder)] |= usize::from(claim.holder) != slot;
        }
    }

    /// The write of a job fails on the way, and is asked for again.
    pub fn lose(&mut self, slot: usize) {
        self.jobs[slot] = None;
        match slot {
            2 => self.asked.claim = true,
            place => self.asked.conversations[place] = true,
        }
        self.ask_for_who_waits(slot);
    }

    pub fn versions(&mut self, visit: &mut impl FnMut(&mut Version)) {
        if let Some(claim) = &mut self.claim {
            claim_versions(claim, visit);
        }
        for conversation in self.conversations.iter_mut().flatten() {
            visit(&mut conversation.version);
        }
        for job in self.jobs.iter_mut().flatten() {
            job_versions(job, visit);
        }
    }
}

pub fn job_versions(job: &mut Job, visit: &mut impl FnMut(&mut Version)) {
    match job {
        Job::Write(write) => write_versions(write, visit),
        Job::Status { version, .. } => visit(version),
        Job::ReadTooEarly(_, conversation) => conversation.iter_mut().for_each(|stored| visit(&mut stored.version)),
    }
}

impl Job {
    /// Whether it can never take effect any more.
    pub fn is_moot(self, etcd: &Etcd) -> bool {
        match self {
            Self::Write(write) => etcd.is_moot(write),
            Self::Status { place, version, .. } => etcd.stored(place).is_none_or(|stored| stored.version != version),
            Self::ReadTooEarly(..) => false,
        }
    }
}
