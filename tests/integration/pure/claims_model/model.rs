//! The protocol of claims as a model for stateright: an API server with its watches, webhooks, leaders, and clients.
//!
//! What is decided is decided by `admit`, `release` and `adopt` of `switchboard::core::claim`, the functions that the operator
//! runs. The model has two places, alice and bob, which want one binding; how much happens is bounded by the configuration.

mod abstraction;
mod etcd;
mod leader;
mod webhook;

pub use webhook::Create;

use abstraction::{Place, Uids, Version};
use etcd::Etcd;
use leader::{Guess, Job, Leader, Look, Task, World};
use stateright::{Model, Property};
use std::sync::atomic::{AtomicU64, Ordering};
use switchboard::core::claim::Decision;
use webhook::{Attempt, Phase, Progress, Review, Step};

/// One thing done otherwise than the protocol does it. Each must have a counterexample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A create of the claim's own name replaces the set of UIDs by its own.
    AddReplaces,
    /// A create of the claim's own name leaves the set as it was.
    AddForgets,
    /// A claim that names the conversation already is not written again.
    OursNeedsNoWrite,
    /// A create counts as claimed though its write met a newer claim.
    LostWriteTakenAsDone,
    /// The webhook replaces a claim whatever its resourceVersion.
    ReplaceWithoutVersion,
    /// A claim is taken over though a create of the other name may still be stored.
    UndecidedReplaced,
    /// A 48031 because a claim names another, without a look at it.
    RefusalWithoutRead,
    /// What would have to wait is allowed.
    WaitAllows,
    /// A dry run is treated like any create.
    DryRunWrites,
    /// The leader reads the conversation first and takes the claim after it.
    ReleaseReadsTooEarly,
    /// The leader goes by its watch instead of a live read.
    ReleaseTrustsWatch,
    /// DELETED is taken for what its content says: the conversation as it was before it left the watch.
    OldContentBelieved,
    /// The leader deletes a claim whatever it has become.
    DeleteUnconditional,
    /// The leader deletes a claim of the same UID, at any resourceVersion.
    DeleteWithoutVersion,
    /// The leader prunes a claim of the same UID, at any resourceVersion.
    PruneWithoutVersion,
    /// The leader waits for no create.
    GraceSkipped,
    /// The leader prunes UIDs that may still be stored.
    InFlightPruned,
    /// The leader claims a binding though somebody has a claim on it.
    AdoptReplaces,
    /// A conversation is told that it is bound before the other one is told that it is not.
    BoundAtOnce,
    /// A conversation is told that it is bound while something decided on an older claim is being written of the other one.
    BoundMeanwhile,
    /// After a list of the conversations nobody looks at the claims whose conversations it does not show.
    ListsForgetClaims,
}

impl Mutation {
    /// Whether some write may take effect though its precondition does not hold.
    fn drops_preconditions(self) -> bool {
        use Mutation as M;
        matches!(
            self,
            M::LostWriteTakenAsDone
                | M::ReplaceWithoutVersion
                | M::DeleteUnconditional
                | M::DeleteWithoutVersion
                | M::PruneWithoutVersion
        )
    }
}

/// What must not happen, of a single step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepViolation {
    /// I4: an answer says that another one holds the binding, or exists, and none was read that does.
    RefusedWithoutHolder,
    /// I4: an answer allows a create that no claim records.
    AllowedWithoutClaim,
    /// I5.
    DryRunWrote,
}

/// What a configuration is there to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    Claimed,
    Added,
    TakenOver,
    LostWrite,
    Wait,
    Refused,
    AlreadyExists,
    RepeatedReview,
    DryRunAllowed,
    DryRunRefused,
    NameTaken,
    AppliedAsUpdate,
    GraceAwaited,
    GraceOver,
    Released,
    Pruned,
    Adopted,
    LostLeaderWrite,
    Bound,
    NotBound,
    OrphanWrote,
}

impl Coverage {
    pub const ALL: [Self; 21] = [
        Self::Claimed,
        Self::Added,
        Self::TakenOver,
        Self::LostWrite,
        Self::Wait,
        Self::Refused,
        Self::AlreadyExists,
        Self::RepeatedReview,
        Self::DryRunAllowed,
        Self::DryRunRefused,
        Self::NameTaken,
        Self::AppliedAsUpdate,
        Self::GraceAwaited,
        Self::GraceOver,
        Self::Released,
        Self::Pruned,
        Self::Adopted,
        Self::LostLeaderWrite,
        Self::Bound,
        Self::NotBound,
        Self::OrphanWrote,
    ];
}

/// How often what may happen at any time does happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Budget {
    /// Closings by the spec, and removals of the contact: the conversation stays in the watch and holds nothing.
    pub releases: u8,
    /// Closings by the status: the conversation leaves the watch, and its name stays taken.
    pub closings: u8,
    pub deletions: u8,
    /// Deletions of the claim by somebody.
    pub hand_deletions: u8,
    /// Reviews that the API server sends again, with the same UID.
    pub repeats: u8,
    /// Reviews whose answer nobody waits for any more: the client is gone, the time is up, the replica has crashed.
    pub abandoned: u8,
    /// Leaders that begin anew.
    pub restarts: u8,
    /// Watches that begin anew with a list.
    pub lists: u8,
}

/// A configuration, which is a finite model.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    pub name: &'static str,
    pub creates: Vec<Create>,
    pub budget: Budget,
    pub leaders: usize,
    /// How many writes of leaders of which nothing is known may be under way at once.
    pub unknown_leaders: usize,
    pub has_statuses: bool,
    pub mutation: Option<Mutation>,
}

/// A configuration being checked.
#[derive(Debug)]
pub struct ClaimsModel {
    pub configuration: Configuration,
    /// Goes on where an answer is wrong, to see what comes of it.
    pub goes_on: bool,
    saw: Vec<AtomicU64>,
}

/// Everything there is at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    etcd: Etcd,
    attempts: Vec<Attempt>,
    leaders: Vec<Leader>,
    /// What leaders of which nothing is known are about to write.
    orphaned_writes: Vec<Job>,
    left: Budget,
    flaw: Option<StepViolation>,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The create is sent, and its review takes its first step.
    Begin(usize),
    /// A review takes a step.
    Step(usize, usize),
    /// The review ends without an answer, or with a 503, and the create fails.
    GiveUp(usize),
    /// The create fails, and the review goes on.
    Abandon(usize),
    /// The API server sends the review again; the earlier one goes on.
    Repeat(usize),
    /// A review that nobody waits for ends.
    Drop(usize, usize),
    Store(usize),
    /// Another webhook denies the admitted create, a quota does, or it is lost.
    Fail(usize),
    Release(Place),
    Close(Place),
    Delete(Place),
    DeleteClaimByHand,
    DeleteClaimByHandInForeground,
    /// A claim that has a deletionTimestamp goes.
    Vanish,
    Look(usize, Look),
    Land(usize, usize),
    Lose(usize, usize),
    Guess(Guess),
    LandStray(usize),
    LoseStray(usize),
    Restart(usize),
    ListConversations(usize),
    ListClaims(usize),
}

impl ClaimsModel {
    pub fn new(configuration: Configuration) -> Self {
        let saw = Coverage::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        Self { configuration, goes_on: false, saw }
    }

    /// How many steps did this, in all states that were visited.
    pub fn count(&self, what: Coverage) -> u64 {
        self.saw[what as usize].load(Ordering::Relaxed)
    }

    fn saw(&self, what: Coverage) {
        self.saw[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn has_no_leader(&self) -> bool {
        self.configuration.leaders + self.configuration.unknown_leaders == 0
    }

    fn is_weak(&self) -> bool {
        self.configuration.budget.hand_deletions > 0
    }

    /// Lets a review go one step on.
    fn review(&self, cluster: &mut Cluster, attempt: usize, review: Option<usize>) {
        let Cluster { etcd, attempts, .. } = cluster;
        let Attempt { phase, reviews } = &mut attempts[attempt];
        let counts = *phase == Phase::InReview && review.is_none_or(|review| review + 1 == reviews.len());
        let mut work = Review {
            create: self.configuration.creates[attempt],
            uid: u8::try_from(attempt).unwrap(),
            etcd,
            counts,
            is_checked: !self.goes_on,
            mutation: self.configuration.mutation,
            saw: &mut |what| self.saw(what),
        };
        let progress = match review {
            None => work.begin(),
            Some(review) => work.perform(reviews[review]),
        };
        match (progress, review) {
            (Ok(Progress::Next(step)), None) => reviews.push(step),
            (Ok(Progress::Next(step)), Some(review)) => reviews[review] = step,
            (Ok(Progress::Answered(answer)), review) => {
                if let Some(review) = review {
                    reviews.remove(review);
                }
                if counts {
                    let is_admitted = answer == Decision::Allow && !self.configuration.creates[attempt].is_dry_run;
                    *phase = if is_admitted { Phase::Admitted } else { Phase::Failed };
                }
            }
            (Err(flaw), _) => cluster.flaw = Some(flaw),
        }
    }

    /// Whether every create that was admitted and may still be stored stands in the claim: why I1 holds.
    fn records_what_is_in_flight(&self, cluster: &Cluster) -> bool {
        let creates = self.configuration.creates.iter().zip(0..);
        cluster.attempts.iter().zip(creates).all(|(attempt, (create, uid))| {
            attempt.phase != Phase::Admitted || create.is_unseen || cluster.etcd.records(create.place, uid)
        })
    }

    fn store(&self, cluster: &mut Cluster, attempt: usize) {
        let create = self.configuration.creates[attempt];
        let uid = u8::try_from(attempt).unwrap();
        if !cluster.etcd.store(create.place, uid, self.configuration.has_statuses) {
            if create.is_server_side_apply {
                self.saw(Coverage::AppliedAsUpdate);
                // The same content: nothing is written.
            } else {
                self.saw(Coverage::NameTaken);
            }
        }
        let is_stored = cluster.etcd.stored(create.place).is_some_and(|stored| stored.uid == uid);
        cluster.attempts[attempt].phase = if is_stored { Phase::LiveConversation } else { Phase::Failed };
    }

    fn with_world<T>(&self, etcd: &mut Etcd, work: impl FnOnce(&mut World<'_>) -> T) -> T {
        work(&mut World {
            etcd,
            has_statuses: self.configuration.has_statuses,
            mutation: self.configuration.mutation,
            saw: &mut |what| self.saw(what),
        })
    }

    fn looks(&self, cluster: &Cluster, index: usize, actions: &mut Vec<Action>) {
        let undecided = undecided(cluster);
        let leader = &cluster.leaders[index];
        let (conversations, claims) = leader.undelivered(&cluster.etcd);
        for (conversations, claims) in
            (0..=conversations).flat_map(|conversations| (0..=claims).map(move |claims| (conversations, claims)))
        {
            let later = leader.later(conversations, claims, &cluster.etcd, self.configuration.mutation);
            for task in Task::ALL {
                if !leader.is_free(task) || !later.is_asked(task) {
                    continue;
                }
                let may_expire = match task {
                    Task::Conversation(_) => Uids::NONE,
                    Task::Claim | Task::Grace => later.in_flight().without(undecided),
                };
                let looks = may_expire.subsets().map(|expired| Look { task, conversations, claims, expired });
                actions.extend(looks.map(|look| Action::Look(index, look)));
            }
        }
    }

    fn guesses(&self, cluster: &Cluster, actions: &mut Vec<Action>) {
        if let Some(claim) = cluster.etcd.claim {
            let may_expire = claim.admissions.without(undecided(cluster));
            actions.extend(may_expire.subsets().map(|expired| Action::Guess(Guess::Claim { expired })));
        }
        for (attempt, (create, uid)) in cluster.attempts.iter().zip(self.configuration.creates.iter().zip(0..)) {
            if attempt.phase == Phase::LiveConversation {
                actions.push(Action::Guess(Guess::Conversation { place: create.place, uid }));
            }
        }
    }

    /// Lets the leaders work, each in its turn, until there is nothing to do; whether it comes to that.
    fn settle(&self, cluster: &mut Cluster) -> bool {
        const ROUNDS: usize = 40;
        let Cluster { etcd, leaders, orphaned_writes, .. } = cluster;
        self.with_world(etcd, |world| {
            for job in orphaned_writes.drain(..) {
                leader::carry_out(job, world);
            }
            if leaders.is_empty() {
                // Somebody will lead.
                let mut leader = Leader::default();
                leader.restart(world.etcd, world.mutation);
                leaders.push(leader);
            }
            (0..ROUNDS)
                .any(|_| leaders.iter_mut().map(|leader| take_turn(leader, world)).filter(|quiet| !quiet).count() == 0)
        })
    }

    /// I2 and I3, of a cluster at rest.
    fn is_as_it_should_be(&self, cluster: &Cluster) -> bool {
        let Etcd { claim, conversations, .. } = &cluster.etcd;
        let has_statuses = self.configuration.has_statuses;
        let is_right = |(place, conversation): (Place, &abstraction::Conversation)| {
            claim.is_some_and(|claim| {
                if claim.holder == place {
                    claim.admissions.without(Uids::one(conversation.uid)).is_empty()
                        && (!has_statuses || conversation.bound == Some(true))
                } else {
                    conversation.bound == Some(false) && cluster.etcd.held_binding(claim.holder)
                }
            })
        };
        let mut holding = (0..).zip(conversations).filter_map(|(place, stored)| Some((place, stored.as_ref()?)));
        holding.all(|(place, conversation)| !conversation.held_binding || is_right((place, conversation)))
            && claim.is_none_or(|claim| cluster.etcd.held_binding(claim.holder))
    }

    /// From every state in which no client and no review is at work, the leaders come to rest, and rest is as it should be.
    fn rests_well(&self, cluster: &Cluster) -> bool {
        let is_client_at_work = cluster.attempts.iter().any(Attempt::is_active);
        let is_claim_going = cluster.etcd.claim.is_some_and(|claim| claim.is_going);
        if self.has_no_leader() || is_client_at_work || is_claim_going || cluster.flaw.is_some() {
            return true;
        }
        let mut settled = cluster.clone();
        self.settle(&mut settled) && self.is_as_it_should_be(&settled)
    }
}

/// Lets a leader do all that it would do; whether that was nothing.
fn take_turn(leader: &mut Leader, world: &mut World<'_>) -> bool {
    let mut is_quiet = true;
    for slot in 0..leader.jobs.len() {
        is_quiet &= leader.jobs[slot].is_none();
        leader.land(slot, world);
    }
    let (conversations, claims) = leader.undelivered(world.etcd);
    is_quiet &= (conversations, claims) == (0, 0);
    leader.deliver(conversations, claims, world.etcd, world.mutation);
    for task in Task::ALL {
        if leader.is_free(task) && leader.is_asked(task) {
            leader.run(task, leader.in_flight(), world);
            is_quiet = false;
        }
    }
    is_quiet
}

/// The UIDs that may be stored yet.
fn undecided(cluster: &Cluster) -> Uids {
    let undecided = (0..).zip(&cluster.attempts).filter(|(_, attempt)| attempt.is_undecided());
    undecided.fold(Uids::NONE, |uids, (uid, _)| uids.and(Uids::one(uid)))
}

/// Takes writes whose precondition can never be met any more for lost at once, which is all that can come of them.
fn forget_moot_writes(cluster: &mut Cluster) {
    let Cluster { etcd, attempts, leaders, orphaned_writes, .. } = cluster;
    orphaned_writes.retain(|job| !job.is_moot(etcd));
    for leader in leaders {
        leader.forget_moot_writes(etcd);
    }
    for step in attempts.iter_mut().flat_map(|attempt| &mut attempt.reviews) {
        if matches!(step, Step::Write(write) if etcd.is_moot(*write)) {
            *step = Step::ReadClaim;
        }
    }
}

/// Forgets what nobody can see any more, and numbers the revisions anew: only whether two are equal means anything.
fn canonicalize(cluster: &mut Cluster) {
    let Cluster { etcd, attempts, leaders, orphaned_writes, .. } = cluster;
    let delivered = |of: fn(&Leader) -> u8, length: usize| {
        leaders.iter().map(|leader| usize::from(of(leader))).min().unwrap_or(length)
    };
    let conversations = delivered(|leader| leader.conversations_delivered, etcd.conversation_events.len());
    let claims = delivered(|leader| leader.claims_delivered, etcd.claim_events.len());
    etcd.conversation_events.drain(..conversations);
    etcd.claim_events.drain(..claims);
    for leader in leaders.iter_mut() {
        leader.conversations_delivered -= u8::try_from(conversations).unwrap();
        leader.claims_delivered -= u8::try_from(claims).unwrap();
    }
    // Leaders are alike.
    leaders.sort();
    let mut numbers = [0; 256];
    let mut last = 0;
    let mut visit = |version: &mut Version| {
        if *version != 0 {
            let number = &mut numbers[usize::from(*version)];
            if *number == 0 {
                last += 1;
                *number = last;
            }
            *version = *number;
        }
    };
    etcd.versions(&mut visit);
    for leader in leaders {
        leader.versions(&mut visit);
    }
    for attempt in attempts {
        attempt.versions(&mut visit);
    }
    orphaned_writes.sort();
    for job in orphaned_writes {
        leader::job_versions(job, &mut visit);
    }
    etcd.revision = last;
}

impl Model for ClaimsModel {
    type State = Cluster;
    type Action = Action;

    fn init_states(&self) -> Vec<Cluster> {
        vec![Cluster {
            etcd: Etcd::default(),
            attempts: self.configuration.creates.iter().map(|_| Attempt::not_begun()).collect(),
            leaders: vec![Leader::default(); self.configuration.leaders],
            orphaned_writes: Vec::new(),
            left: self.configuration.budget,
            flaw: None,
        }]
    }

    fn actions(&self, cluster: &Cluster, actions: &mut Vec<Action>) {
        if cluster.flaw.is_some() {
            return;
        }
        let Cluster { etcd, attempts, leaders, orphaned_writes, left, .. } = cluster;
        for (index, attempt) in attempts.iter().enumerate() {
            let orphans = match attempt.phase {
                Phase::NotBegun => {
                    // Of creates that are alike the first begins first.
                    let create = self.configuration.creates[index];
                    let is_alike = |earlier: usize| self.configuration.creates[earlier] == create;
                    if !(0..index).any(|earlier| attempts[earlier].phase == Phase::NotBegun && is_alike(earlier)) {
                        actions.push(Action::Begin(index));
                    }
                    0
                }
                Phase::InReview => {
                    actions.push(Action::GiveUp(index));
                    if left.abandoned > 0 {
                        actions.push(Action::Abandon(index));
                    }
                    if left.repeats > 0 {
                        actions.push(Action::Repeat(index));
                    }
                    attempt.reviews.len() - 1
                }
                Phase::Admitted => {
                    actions.extend([Action::Store(index), Action::Fail(index)]);
                    attempt.reviews.len()
                }
                Phase::LiveConversation | Phase::Failed => attempt.reviews.len(),
            };
            actions.extend((0..attempt.reviews.len()).map(|review| Action::Step(index, review)));
            actions.extend((0..orphans).map(|review| Action::Drop(index, review)));
        }
        for place in [0, 1] {
            let Some(conversation) = etcd.stored(place) else { continue };
            if conversation.held_binding && left.releases > 0 {
                actions.push(Action::Release(place));
            }
            if !conversation.is_hidden && left.closings > 0 {
                actions.push(Action::Close(place));
            }
            if left.deletions > 0 {
                actions.push(Action::Delete(place));
            }
        }
        match etcd.claim {
            Some(claim) if claim.is_going => actions.push(Action::Vanish),
            Some(_) if left.hand_deletions > 0 => {
                actions.extend([Action::DeleteClaimByHand, Action::DeleteClaimByHandInForeground]);
            }
            _ => {}
        }
        actions
            .extend((0..orphaned_writes.len()).flat_map(|index| [Action::LandStray(index), Action::LoseStray(index)]));
        if orphaned_writes.len() < self.configuration.unknown_leaders {
            self.guesses(cluster, actions);
        }
        for (index, leader) in leaders.iter().enumerate() {
            self.looks(cluster, index, actions);
            let under_way = (0..leader.jobs.len()).filter(|slot| leader.jobs[*slot].is_some());
            actions.extend(under_way.flat_map(|slot| [Action::Land(index, slot), Action::Lose(index, slot)]));
            if left.restarts > 0 {
                actions.push(Action::Restart(index));
            }
            if left.lists > 0 {
                actions.extend([Action::ListConversations(index), Action::ListClaims(index)]);
            }
        }
    }

    fn next_state(&self, before: &Cluster, action: Action) -> Option<Cluster> {
        let mut cluster = before.clone();
        let has_statuses = self.configuration.has_statuses;
        let Cluster { etcd, attempts, leaders, orphaned_writes, left, .. } = &mut cluster;
        match action {
            Action::Begin(index) if self.configuration.creates[index].is_unseen => {
                attempts[index].phase = Phase::Admitted;
            }
            Action::Begin(index) => {
                attempts[index].phase = Phase::InReview;
                self.review(&mut cluster, index, None);
            }
            Action::Step(index, review) => self.review(&mut cluster, index, Some(review)),
            Action::GiveUp(index) => {
                attempts[index].reviews.pop();
                attempts[index].phase = Phase::Failed;
            }
            Action::Abandon(index) => {
                left.abandoned -= 1;
                attempts[index].phase = Phase::Failed;
            }
            Action::Repeat(index) => {
                left.repeats -= 1;
                self.review(&mut cluster, index, None);
            }
            Action::Drop(index, review) => {
                attempts[index].reviews.remove(review);
            }
            Action::Store(index) => self.store(&mut cluster, index),
            Action::Fail(index) => attempts[index].phase = Phase::Failed,
            Action::Release(place) => {
                left.releases -= 1;
                let conversation = abstraction::Conversation { held_binding: false, ..etcd.stored(place)? };
                etcd.change(place, conversation, has_statuses);
            }
            Action::Close(place) => {
                left.closings -= 1;
                let conversation =
                    abstraction::Conversation { held_binding: false, is_hidden: true, ..etcd.stored(place)? };
                etcd.change(place, conversation, has_statuses);
            }
            Action::Delete(place) => {
                left.deletions -= 1;
                etcd.delete(place);
            }
            Action::DeleteClaimByHand | Action::DeleteClaimByHandInForeground => {
                left.hand_deletions -= 1;
                etcd.delete_claim_by_hand(action == Action::DeleteClaimByHandInForeground);
            }
            Action::Vanish => etcd.delete_claim_by_hand(false),
            Action::Look(index, look) => self.with_world(etcd, |world| leaders[index].look(look, world)),
            Action::Land(index, slot) => self.with_world(etcd, |world| leaders[index].land(slot, world)),
            Action::Lose(index, slot) => leaders[index].lose(slot),
            Action::Guess(guess) => orphaned_writes.push(self.with_world(etcd, |world| leader::guess(guess, world))?),
            Action::LandStray(index) => {
                let job = orphaned_writes.remove(index);
                self.with_world(etcd, |world| leader::carry_out(job, world));
            }
            Action::LoseStray(index) => drop(orphaned_writes.remove(index)),
            Action::Restart(index) => {
                left.restarts -= 1;
                leaders[index].restart(etcd, self.configuration.mutation);
            }
            Action::ListConversations(index) => {
                left.lists -= 1;
                leaders[index].list_conversations(etcd, self.configuration.mutation);
            }
            Action::ListClaims(index) => {
                left.lists -= 1;
                leaders[index].list_claims(etcd);
            }
        }
        if !self.configuration.mutation.is_some_and(Mutation::drops_preconditions) {
            forget_moot_writes(&mut cluster);
        }
        canonicalize(&mut cluster);
        Some(cluster)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_HOLDER, |model: &Self, cluster: &Cluster| {
                let is_admitted = |uid: u8| !model.configuration.creates[usize::from(uid)].is_unseen;
                model.is_weak() || cluster.etcd.holders(|conversation| is_admitted(conversation.uid)) <= 1
            }),
            Property::always(RECORDED, |model: &Self, cluster: &Cluster| {
                model.is_weak() || model.records_what_is_in_flight(cluster)
            }),
            Property::always(ONE_BOUND, |_, cluster: &Cluster| {
                cluster.etcd.holders(|conversation| conversation.bound == Some(true)) <= 1
            }),
            Property::always(NO_FLAW, |_, cluster: &Cluster| cluster.flaw.is_none()),
            Property::always(REST, Self::rests_well),
        ]
    }
}

/// I1.
pub const ONE_HOLDER: &str = "I1: at most one admitted conversation holds the binding";
/// What I1 follows from.
pub const RECORDED: &str = "the claim records every create that was admitted and may still be stored";
/// The weaker promise, which holds also where claims are deleted by hand and conversations are made past the webhook.
pub const ONE_BOUND: &str = "at most one conversation that holds the binding is Bound";
/// I4 and I5.
pub const NO_FLAW: &str = "I4 and I5: no answer without what it rests on, no write in a dry run";
/// I2 and I3.
pub const REST: &str = "I2 and I3: the leaders come to rest, and at rest claims and conversations agree";
