//! A replica that leads, or believes that it leads: its watch caches, and its work on claims and statuses.
//!
//! It follows the index and the workers of `src/controller`, which decide when to reconcile; `switchboard::core::claim` decides
//! about claims. Watch events are delivered only right before a reconcile, since an earlier delivery has no observable effect. A
//! look into the cache and the live read that follows are one step, since a longer gap between them equals an older cache. The
//! write is a separate step.

use super::abstraction::{self, Claim, Conversation, Place, Uids, Version, Write};
use super::etcd::{Etcd, Event, Preconditions, claim_versions, write_versions};
use super::{Coverage, Mutation};
use switchboard::api::Time;
use switchboard::core::claim::{CreateStatus, LiveConversation, ReleaseStep, Successor, adopt, release};

/// The subject of a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    Conversation(Place),
    Claim,
    /// The claim, at the end of a grace period.
    Grace,
}

impl Task {
    pub const ALL: [Self; 4] = [Self::Claim, Self::Grace, Self::Conversation(0), Self::Conversation(1)];

    /// The slot of the task. At most one task of a slot is in progress.
    fn slot(self) -> usize {
        match self {
            Self::Conversation(place) => usize::from(place),
            Self::Claim | Self::Grace => 2,
        }
    }
}

/// The write that follows from the reads of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Job {
    Write(Write),
    Status {
        place: Place,
        version: Version,
        bound: bool,
    },
    /// Only in a mutation: the conversation was read before the claim.
    ReadTooEarly(Place, Option<Conversation>),
}

/// The tasks in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queued {
    conversations: [bool; 2],
    claim: bool,
    grace: bool,
}

impl Queued {
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
    tombstones: Uids,
    /// Whether a status was written that the watch has not shown yet.
    awaiting_watch: [bool; 2],
    /// Whether a write of unknown outcome can still say that the conversation is bound, on the version in the cache.
    in_doubt: [bool; 2],
    /// Whether this leader has written the status of the conversation.
    was_written: [bool; 2],
    /// Whether there was a leader before, whose writes can still take effect.
    has_predecessor: bool,
    pub conversations_delivered: u8,
    pub claims_delivered: u8,
    pub queued: Queued,
    pub jobs: [Option<Job>; 3],
}

/// One reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reconcile {
    pub task: Task,
    /// The number of events of each kind that are delivered right before it.
    pub conversations: u8,
    pub claims: u8,
    /// The UIDs whose grace period is over, among those that can no longer be stored.
    pub expired: Uids,
}

/// The environment of a leader.
pub struct World<'a> {
    pub etcd: &'a mut Etcd,
    /// Whether a write that says `Bound=True` is in flight and no leader knows its outcome. The grace period of such a write is not
    /// over.
    pub orphaned_bound: [bool; 2],
    pub has_statuses: bool,
    pub mutation: Option<Mutation>,
    pub cover: &'a mut dyn FnMut(Coverage),
}

/// The result of `release`, except in mutations.
fn next_release(
    claim: Claim,
    live: Option<Conversation>,
    successor: Option<Place>,
    in_flight: Uids,
    expired: Uids,
    world: &mut World<'_>,
) -> ReleaseStep {
    let is_skipped = match world.mutation {
        Some(Mutation::GraceSkipped) => true,
        Some(Mutation::InFlightPruned) => live.is_some_and(|live| live.needs_binding),
        Some(Mutation::HandOverTooEarly) => successor.is_some() && !live.is_some_and(|live| live.needs_binding),
        _ => false,
    };
    let create_status = |uid: &str| {
        let uid = abstraction::number(uid);
        if !in_flight.has(uid) {
            CreateStatus::Decided
        } else if expired.has(uid) || is_skipped {
            CreateStatus::Expired
        } else {
            CreateStatus::InFlight
        }
    };
    let successor = successor.and_then(|place| {
        let live = world.etcd.stored(place)?.into();
        Some(Successor { conversation: abstraction::reference(place), live })
    });
    let live = live.map(LiveConversation::from);
    let step = release(&claim.into(), live.as_ref(), successor.as_ref(), create_status, Time::EPOCH);
    match step {
        ReleaseStep::Write(_) if !in_flight.within(expired).is_empty() => (world.cover)(Coverage::GraceOver),
        ReleaseStep::AwaitGrace => (world.cover)(Coverage::GraceAwaited),
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

/// Executes the write of a job at the API server.
pub fn execute(job: Job, world: &mut World<'_>) {
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
            let before = world.etcd.claim;
            if world.etcd.write(write, preconditions) {
                let recorded_before = before.map_or(Uids::NONE, |before| before.admissions);
                (world.cover)(match write {
                    Write::Create { .. } => Coverage::Adopted,
                    Write::Replace { holder, .. } if before.is_some_and(|before| before.holder != holder) => {
                        Coverage::HandedOver
                    }
                    Write::Replace { admissions, .. } if !admissions.without(recorded_before).is_empty() => {
                        Coverage::RecordedLater
                    }
                    Write::Replace { .. } => Coverage::Pruned,
                    Write::Delete { .. } => Coverage::Released,
                });
            } else {
                (world.cover)(Coverage::LeaderWriteConflict);
            }
        }
        Job::Status { place, version, bound } => {
            if let Some(conversation) = world.etcd.stored(place).filter(|stored| stored.version == version) {
                world.etcd.change(place, Conversation { bound: Some(bound), ..conversation }, true);
                (world.cover)(if bound { Coverage::Bound } else { Coverage::NotBound });
            }
        }
        Job::ReadTooEarly(..) => {}
    }
}

/// The adoption of a conversation that has no claim.
fn adoption(place: Place, uid: u8) -> Job {
    Job::Write(Write::from(&adopt(abstraction::reference(place), uid.to_string(), Time::EPOCH)))
}

/// A reconcile by a replica that believes that it leads and whose caches are unknown: they can show any past state. It treats any
/// UID that can no longer be stored as decided or expired, and any conversation that once existed as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guess {
    /// Of the current claim. A write that is based on an older one fails.
    Claim { expired: Uids },
    /// Of a conversation that once was stored.
    Conversation { place: Place, uid: u8 },
}

/// The job that follows from a guess.
pub fn guess(guess: Guess, world: &mut World<'_>) -> Option<Job> {
    match guess {
        Guess::Claim { expired } => {
            let claim = world.etcd.claim?;
            let live = world.etcd.stored(claim.holder);
            let other = 1 - claim.holder;
            write_of(next_release(claim, live, Some(other), claim.admissions, expired, world))
        }
        Guess::Conversation { place, uid } => world.etcd.claim.is_none().then(|| adoption(place, uid)),
    }
}

impl Leader {
    pub fn is_queued(&self, task: Task) -> bool {
        let mut queued = self.queued;
        *queued.slot(task)
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

    /// The process restarts, lists both kinds and enqueues all objects.
    pub fn restart(&mut self, etcd: &Etcd, mutation: Option<Mutation>) {
        *self = Self { has_predecessor: true, ..Self::default() };
        self.list_conversations(etcd, mutation);
        self.list_claims(etcd, mutation);
        let conversations = [0, 1].map(|place: usize| self.conversations[place].is_some());
        self.queued = Queued { conversations, claim: self.claim.is_some() && !self.is_settled(), grace: false };
    }

    /// The watch of conversations restarts with a list and loses events.
    pub fn list_conversations(&mut self, etcd: &Etcd, mutation: Option<Mutation>) {
        for place in [0, 1] {
            match etcd.stored(place).filter(|conversation| !conversation.is_hidden) {
                Some(conversation) => self.apply_conversation(place, conversation, mutation),
                None => self.remove_conversation(place, mutation),
            }
        }
        self.queued.claim |=
            self.claim.is_some() && !self.is_settled() && mutation != Some(Mutation::ListsForgetClaims);
        self.conversations_delivered += self.undelivered(etcd).0;
    }

    /// The watch of claims restarts with a list.
    pub fn list_claims(&mut self, etcd: &Etcd, mutation: Option<Mutation>) {
        match etcd.claim {
            Some(claim) => self.apply_claim(claim, mutation),
            None => self.remove_claim(mutation),
        }
        self.claims_delivered += self.undelivered(etcd).1;
    }

    pub fn deliver(&mut self, conversations: u8, claims: u8, etcd: &Etcd, mutation: Option<Mutation>) {
        for _ in 0..conversations {
            let event = etcd.conversation_events[usize::from(self.conversations_delivered)];
            self.conversations_delivered += 1;
            match event {
                Event::Shown(place, conversation) => self.apply_conversation(place, conversation, mutation),
                Event::Gone(place, _) if mutation == Some(Mutation::OldContentBelieved) => {
                    self.queued.conversations[usize::from(place)] = true;
                    self.queued.claim = true;
                }
                Event::Gone(place, conversation) => {
                    self.tombstones = self.tombstones.and(Uids::one(conversation.uid));
                    self.remove_conversation(place, mutation);
                }
            }
        }
        for _ in 0..claims {
            let event = etcd.claim_events[usize::from(self.claims_delivered)];
            self.claims_delivered += 1;
            match event {
                Some(claim) => self.apply_claim(claim, mutation),
                None => self.remove_claim(mutation),
            }
        }
    }

    fn cached(&self, place: Place) -> Option<Conversation> {
        self.conversations[usize::from(place)]
    }

    fn needs_binding(&self, place: Place) -> bool {
        self.cached(place).is_some_and(|conversation| conversation.needs_binding)
    }

    fn is_bound(&self, place: Place) -> bool {
        self.cached(place).is_some_and(|conversation| conversation.bound == Some(true))
    }

    /// Whether it needs the binding, or its status still says that it is bound.
    fn contends(&self, place: Place, mutation: Option<Mutation>) -> bool {
        self.needs_binding(place) || self.is_bound(place) && mutation != Some(Mutation::RivalForgotten)
    }

    fn apply_conversation(&mut self, place: Place, conversation: Conversation, mutation: Option<Mutation>) {
        let at = usize::from(place);
        if self.cached(place).is_some_and(|before| before.uid != conversation.uid) {
            self.remove_conversation(place, mutation);
        }
        self.in_doubt[at] &= self.cached(place).is_some_and(|before| before.version == conversation.version);
        let contended = self.contends(place, mutation);
        self.conversations[at] = Some(conversation);
        self.awaiting_watch[at] = false;
        let contends = self.contends(place, mutation);
        if contended && !contends {
            self.enqueue_candidates(mutation);
            self.queued.claim = true;
        }
        if contends {
            self.enqueue_candidates(mutation);
            self.queued.claim |= !self.is_settled();
        }
        self.queued.conversations[at] = true;
    }

    fn remove_conversation(&mut self, place: Place, mutation: Option<Mutation>) {
        let at = usize::from(place);
        let contended = self.contends(place, mutation);
        if let Some(before) = self.conversations[at].take() {
            self.awaiting_watch[at] = false;
            self.in_doubt[at] = false;
            self.was_written[at] = false;
            self.tombstones = self.tombstones.and(Uids::one(before.uid));
            if contended {
                self.enqueue_candidates(mutation);
                self.queued.claim = true;
            }
            self.queued.conversations[at] = true;
        }
    }

    fn apply_claim(&mut self, claim: Claim, mutation: Option<Mutation>) {
        self.claim = Some(claim);
        self.enqueue_candidates(mutation);
        let waits = !self.in_flight().is_empty() && self.in_flight() == claim.admissions;
        self.queued.claim |= !waits && !self.is_settled();
        self.queued.grace |= !self.in_flight().is_empty();
    }

    fn remove_claim(&mut self, mutation: Option<Mutation>) {
        if let Some(claim) = self.claim.take() {
            self.tombstones = self.tombstones.without(claim.admissions);
        }
        self.enqueue_candidates(mutation);
    }

    /// Enqueues the candidate that the claim names, or else the next one, and those whose status does not say that they wait.
    fn enqueue_candidates(&mut self, mutation: Option<Mutation>) {
        let first = self.claim.map(|claim| claim.holder).or_else(|| self.next_candidate());
        let first = first.filter(|_| mutation != Some(Mutation::WaitingForgotten));
        for place in [0, 1] {
            let is_told =
                self.needs_binding(place) && self.cached(place).is_some_and(|candidate| candidate.bound == Some(false));
            self.queued.conversations[usize::from(place)] |=
                self.contends(place, mutation) && (first == Some(place) || !is_told);
        }
    }

    /// The UIDs of the claim that no watch has shown.
    pub fn in_flight(&self) -> Uids {
        self.claim.map_or(Uids::NONE, |claim| {
            let current = self.cached(claim.holder).map_or(Uids::NONE, |holder| Uids::one(holder.uid));
            claim.admissions.without(self.tombstones).without(current)
        })
    }

    fn is_settled(&self) -> bool {
        self.claim.is_some_and(|claim| {
            self.cached(claim.holder)
                .is_some_and(|holder| holder.needs_binding && claim.admissions == Uids::one(holder.uid))
        })
    }

    fn next_candidate(&self) -> Option<Place> {
        let rank = |place: &Place| self.cached(*place).map(|candidate| (candidate.bound != Some(true), candidate.uid));
        [0, 1].into_iter().filter(|place| self.needs_binding(*place)).min_by_key(rank)
    }

    /// The leader after these deliveries.
    pub fn later(&self, conversations: u8, claims: u8, etcd: &Etcd, mutation: Option<Mutation>) -> Self {
        let mut later = self.clone();
        later.deliver(conversations, claims, etcd, mutation);
        later
    }

    /// Reconciles a task, and stores the resulting write as a job.
    pub fn reconcile(&mut self, reconcile: Reconcile, world: &mut World<'_>) {
        self.deliver(reconcile.conversations, reconcile.claims, world.etcd, world.mutation);
        self.run(reconcile.task, reconcile.expired, world);
    }

    /// Runs a task on the current caches.
    pub fn run(&mut self, task: Task, expired: Uids, world: &mut World<'_>) {
        *self.queued.slot(task) = false;
        self.jobs[task.slot()] = match task {
            Task::Claim | Task::Grace => self.reconcile_claim(expired, world),
            Task::Conversation(place) => self.reconcile_conversation(place, world),
        };
    }

    fn reconcile_claim(&mut self, expired: Uids, world: &mut World<'_>) -> Option<Job> {
        let Some(claim) = self.claim else {
            if let Some(first) = self.next_candidate() {
                self.queued.conversations[usize::from(first)] = true;
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
        let successor = self.next_candidate().filter(|place| *place != claim.holder);
        let successor = successor.filter(|_| world.mutation != Some(Mutation::WaitingForgotten));
        let step = next_release(claim, live, successor, self.in_flight(), expired, world);
        self.queued.grace |= step == ReleaseStep::AwaitGrace;
        write_of(step)
    }

    fn reconcile_conversation(&mut self, place: Place, world: &mut World<'_>) -> Option<Job> {
        let conversation = self.cached(place)?;
        if self.awaiting_watch[usize::from(place)] {
            return None;
        }
        let status = |bound| {
            let is_news = match bound {
                true => conversation.bound != Some(true),
                // Without a contact, closed in its spec or being deleted, its status need not say `Bound=False` first.
                false if conversation.needs_binding => conversation.bound != Some(false),
                false => conversation.bound == Some(true),
            };
            let version = conversation.version;
            (world.has_statuses && is_news).then_some(Job::Status { place, version, bound })
        };
        if !conversation.needs_binding {
            return status(false);
        }
        let Some(claim) = self.claim.filter(|claim| claim.holder == place) else {
            let is_first = self.claim.is_none() && self.next_candidate() == Some(place);
            if !is_first && conversation.bound == Some(false) {
                return None;
            }
            return match world.etcd.claim {
                None if is_first => Some(adoption(place, conversation.uid)),
                None => None,
                Some(claim) if claim.holder == place => None,
                Some(claim) if world.etcd.holds_binding(claim.holder) => status(false),
                Some(_) => {
                    self.queued.claim = true;
                    None
                }
            };
        };
        if !claim.admissions.has(conversation.uid) && world.mutation != Some(Mutation::BoundWithoutRecord) {
            self.queued.claim = true;
            return None;
        }
        let other = 1 - place;
        let at = usize::from(other);
        if !self.contends(other, world.mutation) {
            return status(true);
        }
        let is_other_written = self.jobs[at].is_some() || self.awaiting_watch[at];
        if is_other_written && world.mutation != Some(Mutation::BoundMeanwhile) {
            return None;
        }
        if self.is_bound(other) && world.mutation != Some(Mutation::BoundAtOnce) {
            self.queued.conversations[at] = true;
            return None;
        }
        let of_predecessor = self.has_predecessor && !self.was_written[at];
        let is_in_doubt = match world.mutation {
            Some(Mutation::DoubtIgnored) => of_predecessor,
            Some(Mutation::EarlierLeaderIgnored) => self.in_doubt[at],
            _ => self.in_doubt[at] || of_predecessor,
        };
        // Within its grace period, a write takes effect or fails, and the watch shows it.
        let is_grace_over = !world.orphaned_bound[at] && world.etcd.stored(other) == self.cached(other);
        if is_in_doubt && !is_grace_over {
            // It is decided again at the end of the grace period.
            self.queued.conversations[usize::from(place)] = true;
            return None;
        }
        status(true)
    }

    /// Executes the job of a slot.
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
                execute(job, world);
                if let Job::Status { place, version, .. } = job {
                    let is_known = self.cached(place).is_some_and(|known| known.version == version);
                    let is_changed = world.etcd.stored(place).is_some_and(|stored| stored.version != version);
                    self.awaiting_watch[usize::from(place)] = is_known && is_changed;
                    self.was_written[usize::from(place)] |= is_changed;
                }
                self.enqueue_waiting(slot);
            }
            None => {}
        }
    }

    /// Ends the jobs whose write can no longer take effect.
    pub fn forget_moot_writes(&mut self, etcd: &Etcd) {
        for slot in 0..self.jobs.len() {
            if self.jobs[slot].is_some_and(|job| job.is_moot(etcd)) {
                self.jobs[slot] = None;
                self.enqueue_waiting(slot);
            }
        }
    }

    /// Enqueues the conversation that the claim names: it waits while the status of the other one is being written.
    fn enqueue_waiting(&mut self, slot: usize) {
        if let (Some(claim), 0 | 1) = (self.claim, slot) {
            self.queued.conversations[usize::from(claim.holder)] |= usize::from(claim.holder) != slot;
        }
    }

    /// The write of a job is lost on the way, and its task is enqueued again.
    pub fn lose(&mut self, slot: usize) {
        self.jobs[slot] = None;
        match slot {
            2 => self.queued.claim = true,
            place => self.queued.conversations[place] = true,
        }
        self.enqueue_waiting(slot);
    }

    /// The outcome of a write is unknown. Returns the write, which is still in flight.
    pub fn doubt(&mut self, slot: usize) -> Option<Job> {
        let job = self.jobs[slot];
        if let Some(Job::Status { place, version, bound: true }) = job {
            self.in_doubt[usize::from(place)] |= self.cached(place).is_some_and(|known| known.version == version);
        }
        self.lose(slot);
        job
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
    /// Whether it can no longer take effect.
    pub fn is_moot(self, etcd: &Etcd) -> bool {
        match self {
            Self::Write(write) => etcd.is_moot(write),
            Self::Status { place, version, .. } => etcd.stored(place).is_none_or(|stored| stored.version != version),
            Self::ReadTooEarly(..) => false,
        }
    }
}
