//! A model of the claim protocol for stateright: an API server with its watches, webhooks, leaders, clients, and routers.
//!
//! All decisions are made by `admit`, `release` and `adopt` of `switchboard::core::claim`, the functions that the operator runs, and by
//! `Routing` of `switchboard::core::inbound`, the step machine that the router runs.
//! The model has two conversations, alice and bob, which need the same binding. The configuration bounds the number of actions.

mod abstraction;
mod etcd;
mod leader;
mod router;
mod webhook;

pub use router::Message;
pub use webhook::Create;

use abstraction::{Place, Uids, Version};
use etcd::Etcd;
use leader::{Guess, Job, Leader, Reconcile, Task, World};
use router::{Outcome, Sight, Way};
use stateright::{Model, Property};
use std::sync::atomic::{AtomicU64, Ordering};
use switchboard::core::claim::Decision;
use switchboard::core::inbound::Creation;
use webhook::{Attempt, Phase, Progress, Review, Step};

/// One deviation from the protocol. The check must find a counterexample for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A create of the claim's own name replaces the set of UIDs with its own.
    AddReplaces,
    /// A create of the claim's own name leaves the set as it was.
    AddForgets,
    /// A claim that already names the conversation is not written again.
    OursNeedsNoWrite,
    /// A write that met a newer claim counts as applied.
    ConflictTakenAsApplied,
    /// The webhook replaces a claim regardless of its resourceVersion.
    ReplaceWithoutVersion,
    /// A claim is taken over while a create of the other name can still be stored.
    UndecidedReplaced,
    /// A 48031 is given because a claim names another conversation, without reading that conversation.
    DenialWithoutRead,
    /// A 48031 is given because the conversation that a claim names is open, although the claim does not record it.
    DenialWithoutRecord,
    /// A create that would have to wait is allowed.
    WaitAllows,
    /// A dry run is treated like any other create.
    DryRunWrites,
    /// The leader reads the conversation before the claim.
    ReleaseReadsTooEarly,
    /// The leader uses its watch cache instead of a live read.
    ReleaseTrustsWatch,
    /// The old content of a DELETED event is taken for the current state of the conversation.
    OldContentBelieved,
    /// The leader deletes a claim without preconditions.
    DeleteUnconditional,
    /// The leader deletes a claim with the same UID at any resourceVersion.
    DeleteWithoutVersion,
    /// The leader prunes a claim, or hands it over, with the same UID at any resourceVersion.
    PruneWithoutVersion,
    /// The leader does not wait for the grace period.
    GraceSkipped,
    /// The leader prunes UIDs that can still be stored.
    InFlightPruned,
    /// The leader claims a binding that is already claimed.
    AdoptReplaces,
    /// A conversation gets `Bound=True` before the other one gets `Bound=False`.
    BoundAtOnce,
    /// A conversation gets `Bound=True` while a status of the other one, decided on an older claim, is being written.
    BoundMeanwhile,
    /// A conversation gets `Bound=True` although the claim that names it does not record its UID.
    BoundWithoutRecord,
    /// A conversation that no longer needs the binding is forgotten while its status still says `Bound=True`.
    RivalForgotten,
    /// A conversation gets `Bound=True` while a write of unknown outcome can still set it for the other one.
    DoubtIgnored,
    /// A new leader ignores the writes of the leader before it.
    EarlierLeaderIgnored,
    /// The binding is handed over while a create of the other name can still be stored.
    HandOverTooEarly,
    /// The leader deletes a claim for which a conversation waits, and does not ask that one.
    WaitingForgotten,
    /// After a list of conversations, the claims of conversations that it does not show are not reconciled.
    ListsForgetClaims,
    /// A message creates a conversation although one waits for the binding.
    AwaitedTakenAsFree,
    /// A message believes watches that do not show yet a conversation that it saw waiting.
    AwaitedForgotten,
    /// A message goes to a conversation that is closed, although the report of its activity tells so.
    GoneTakenAsReported,
    /// A message goes to the holder that the watches show without a report.
    HolderNotReported,
    /// A message is unroutable because the watches show no holder, without a live read.
    WatchTakenAsLive,
    /// A message is unroutable at the limit of creates, without a live read.
    LimitIsFinal,
    /// A message is unroutable after a 48031.
    DenialIsFinal,
    /// A message is unroutable after a create that is refused, without a live read.
    RefusalIsFinal,
    /// A message is unroutable after a create whose outcome is unknown.
    UndecidedIsFinal,
    /// A create that another conversation prevents is only retried.
    DenialIsRetried,
    /// A create that its own earlier conversation prevents is only retried.
    ExistingIsRetried,
    /// A message forgets that its own earlier conversation is closed.
    ClosedForgotten,
    /// A message goes to its own earlier conversation, open or closed.
    OwnTakenAsOpen,
}

impl Mutation {
    /// Whether a write can take effect although a precondition fails.
    fn drops_preconditions(self) -> bool {
        use Mutation as M;
        matches!(
            self,
            M::ConflictTakenAsApplied
                | M::ReplaceWithoutVersion
                | M::DeleteUnconditional
                | M::DeleteWithoutVersion
                | M::PruneWithoutVersion
        )
    }
}

/// A violation of the protocol by a single step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepViolation {
    /// I4: a decision says that another conversation holds the binding, or exists, and no such conversation was read.
    DeniedWithoutHolder,
    /// I4: a decision allows a create that no claim records.
    AllowedWithoutClaim,
    /// I5: a dry run wrote a claim.
    DryRunWrote,
    /// A message went to a conversation that had not held the binding since the message was sent.
    DeliveredToNoHolder,
    /// A message did not go to the conversation that had held the binding all the time.
    PassedHolder,
    /// A message created a conversation before one that it saw waiting got the binding.
    Overtook,
    /// A message was unroutable for a reason that was not there.
    WrongReason,
}

/// A kind of step that a configuration must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    Claimed,
    Added,
    TakenOver,
    WriteConflict,
    Wait,
    Denied,
    AlreadyExists,
    RepeatedReview,
    DryRunAllowed,
    DryRunDenied,
    NameTaken,
    AppliedAsUpdate,
    GraceAwaited,
    GraceOver,
    Released,
    Pruned,
    Adopted,
    LeaderWriteConflict,
    Bound,
    NotBound,
    AbandonedReviewWrote,
    AllowedWaiting,
    HandedOver,
    RecordedLater,
    NameRead,
    InDoubt,
    Delivered,
    Unroutable,
    RecipientGone,
    HandOverAwaited,
    RaceLost,
    OwnFound,
    OwnClosed,
    CreateLost,
}

impl Coverage {
    pub const ALL: [Self; 34] = [
        Self::Claimed,
        Self::Added,
        Self::TakenOver,
        Self::WriteConflict,
        Self::Wait,
        Self::Denied,
        Self::AlreadyExists,
        Self::RepeatedReview,
        Self::DryRunAllowed,
        Self::DryRunDenied,
        Self::NameTaken,
        Self::AppliedAsUpdate,
        Self::GraceAwaited,
        Self::GraceOver,
        Self::Released,
        Self::Pruned,
        Self::Adopted,
        Self::LeaderWriteConflict,
        Self::Bound,
        Self::NotBound,
        Self::AbandonedReviewWrote,
        Self::AllowedWaiting,
        Self::HandedOver,
        Self::RecordedLater,
        Self::NameRead,
        Self::InDoubt,
        Self::Delivered,
        Self::Unroutable,
        Self::RecipientGone,
        Self::HandOverAwaited,
        Self::RaceLost,
        Self::OwnFound,
        Self::OwnClosed,
        Self::CreateLost,
    ];
}

/// The number of times that each unforced action can happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Budget {
    /// Closings in the spec, removals of the contact, and deletions that a finalizer delays: the conversation stays in the watch and
    /// needs no binding.
    pub releases: u8,
    /// Closings in the status: the conversation leaves the watch, and its name stays taken.
    pub closings: u8,
    pub deletions: u8,
    /// Manual deletions of the claim.
    pub manual_deletions: u8,
    /// Reviews that the API server repeats with the same UID.
    pub repeats: u8,
    /// Reviews that no client waits for: the client is gone, or the deadline has passed.
    pub abandoned: u8,
    /// Writes of a leader whose outcome it does not learn: they take effect later or never.
    pub doubts: u8,
    /// Restarts of leaders, whose writes in flight take effect later or never.
    pub restarts: u8,
    /// Restarts of watches with a list.
    pub lists: u8,
    /// Creates of a router that reach its limit.
    pub rate_limits: u8,
    /// Creates of a router that are refused for good.
    pub refusals: u8,
    /// Creates of a router whose outcome it does not learn.
    pub lost: u8,
}

/// A configuration, which defines a finite model.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    pub name: &'static str,
    pub creates: Vec<Create>,
    pub messages: Vec<Message>,
    pub budget: Budget,
    pub leaders: usize,
    /// The number of writes of unknown leaders that can be in flight at once.
    pub unknown_leaders: usize,
    pub has_statuses: bool,
    pub mutation: Option<Mutation>,
}

/// A configuration being checked.
#[derive(Debug)]
pub struct ClaimsModel {
    pub configuration: Configuration,
    /// Continues after a wrong decision, to find the violation that it causes.
    pub continues_after_violation: bool,
    coverage: Vec<AtomicU64>,
}

/// The state of the whole system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    etcd: Etcd,
    attempts: Vec<Attempt>,
    leaders: Vec<Leader>,
    /// The writes of unknown leaders that are in flight.
    orphaned_writes: Vec<Job>,
    ways: Vec<Way>,
    left: Budget,
    violation: Option<StepViolation>,
}

/// A step of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The create is sent, and its review takes its first step.
    Begin(usize),
    /// A review takes a step.
    Step(usize, usize),
    /// The review ends without an answer, or with a 503, and the create fails.
    GiveUp(usize),
    /// The create fails, and its review continues.
    Abandon(usize),
    /// The API server repeats the review; the earlier one continues.
    Repeat(usize),
    /// A review that no client waits for ends.
    Drop(usize, usize),
    Store(usize),
    /// The admitted create is denied by another webhook or a quota, or is lost.
    Fail(usize),
    Release(Place),
    Close(Place),
    Delete(Place),
    DeleteClaimManually,
    DeleteClaimManuallyInForeground,
    /// A claim with a deletionTimestamp is removed.
    FinishClaimDeletion,
    Reconcile(usize, Reconcile),
    Land(usize, usize),
    Lose(usize, usize),
    /// The leader does not learn the outcome of a write, which is still in flight.
    Doubt(usize, usize),
    Guess(Guess),
    LandOrphan(usize),
    LoseOrphan(usize),
    Restart(usize),
    ListConversations(usize),
    ListClaims(usize),
    /// A message arrives at a router.
    Send(usize, Sight),
    /// The way of a message makes its next request.
    Route(usize, Outcome),
}

impl ClaimsModel {
    pub fn new(configuration: Configuration) -> Self {
        let coverage = Coverage::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        Self { configuration, continues_after_violation: false, coverage }
    }

    /// The number of steps of this kind in all visited states.
    pub fn count(&self, step: Coverage) -> u64 {
        self.coverage[step as usize].load(Ordering::Relaxed)
    }

    fn cover(&self, step: Coverage) {
        self.coverage[step as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn has_no_leader(&self) -> bool {
        self.configuration.leaders + self.configuration.unknown_leaders == 0
    }

    fn has_manual_deletions(&self) -> bool {
        self.configuration.budget.manual_deletions > 0
    }

    /// Advances a review by one step.
    fn review(&self, cluster: &mut Cluster, attempt: usize, review: Option<usize>) {
        let Cluster { etcd, attempts, .. } = cluster;
        let Attempt { phase, reviews } = &mut attempts[attempt];
        let mut response = None;
        let counts = *phase == Phase::InReview && review.is_none_or(|review| review + 1 == reviews.len());
        let mut work = Review {
            create: self.configuration.creates[attempt],
            uid: u8::try_from(attempt).unwrap(),
            etcd,
            counts,
            is_checked: !self.continues_after_violation,
            mutation: self.configuration.mutation,
            cover: &mut |step| self.cover(step),
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
                    response = match answer {
                        Decision::Allow | Decision::AllowWaiting => None,
                        Decision::Deny { .. } => Some(Creation::AlreadyBound),
                        Decision::AlreadyExists => Some(Creation::AlreadyExists),
                        Decision::Undecided(_) => Some(Creation::Undecided),
                    };
                    *phase = match answer {
                        _ if self.configuration.creates[attempt].is_dry_run => Phase::Failed,
                        Decision::Allow => Phase::Admitted,
                        Decision::AllowWaiting => Phase::AdmittedWaiting,
                        Decision::Deny { .. } | Decision::AlreadyExists | Decision::Undecided(_) => Phase::Failed,
                    };
                }
            }
            (Err(violation), _) => cluster.violation = Some(violation),
        }
        if let Some(creation) = response {
            self.respond(cluster, attempt, creation);
        }
    }

    /// Whether the claim records every admitted create that can still be stored, from which I1 follows.
    fn records_what_is_in_flight(&self, cluster: &Cluster) -> bool {
        let creates = self.configuration.creates.iter().zip(0..);
        cluster.attempts.iter().zip(creates).all(|(attempt, (create, uid))| {
            attempt.phase != Phase::Admitted || create.bypasses_webhook || cluster.etcd.records(create.place, uid)
        })
    }

    fn store(&self, cluster: &mut Cluster, attempt: usize) {
        let create = self.configuration.creates[attempt];
        let uid = u8::try_from(attempt).unwrap();
        if !cluster.etcd.store(create.place, uid, self.configuration.has_statuses) {
            if create.is_server_side_apply {
                self.cover(Coverage::AppliedAsUpdate);
                // The content is the same, so nothing is written.
            } else {
                self.cover(Coverage::NameTaken);
            }
        }
        let is_stored = cluster.etcd.stored(create.place).is_some_and(|stored| stored.uid == uid);
        cluster.attempts[attempt].phase = if is_stored { Phase::Stored } else { Phase::Failed };
        let recipient = abstraction::recipient(create.place, uid);
        self.respond(cluster, attempt, if is_stored { Creation::Created(recipient) } else { Creation::AlreadyExists });
    }

    fn with_world<T>(&self, etcd: &mut Etcd, orphans: &[Job], work: impl FnOnce(&mut World<'_>) -> T) -> T {
        let is_in_flight =
            |place| orphans.iter().any(|job| matches!(job, Job::Status { place: of, bound: true, .. } if *of == place));
        work(&mut World {
            orphaned_bound: [0, 1].map(is_in_flight),
            etcd,
            has_statuses: self.configuration.has_statuses,
            mutation: self.configuration.mutation,
            cover: &mut |step| self.cover(step),
        })
    }

    fn reconciles(&self, cluster: &Cluster, index: usize, actions: &mut Vec<Action>) {
        let undecided = undecided(cluster);
        let leader = &cluster.leaders[index];
        let (conversations, claims) = leader.undelivered(&cluster.etcd);
        for (conversations, claims) in
            (0..=conversations).flat_map(|conversations| (0..=claims).map(move |claims| (conversations, claims)))
        {
            let later = leader.later(conversations, claims, &cluster.etcd, self.configuration.mutation);
            for task in Task::ALL {
                if !leader.is_free(task) || !later.is_queued(task) {
                    continue;
                }
                let may_expire = match task {
                    Task::Conversation(_) => Uids::NONE,
                    Task::Claim | Task::Grace => later.in_flight().without(undecided),
                };
                let reconciles = may_expire.subsets().map(|expired| Reconcile { task, conversations, claims, expired });
                actions.extend(reconciles.map(|reconcile| Action::Reconcile(index, reconcile)));
            }
        }
    }

    fn guesses(&self, cluster: &Cluster, actions: &mut Vec<Action>) {
        if let Some(claim) = cluster.etcd.claim {
            let may_expire = claim.admissions.without(undecided(cluster));
            actions.extend(may_expire.subsets().map(|expired| Action::Guess(Guess::Claim { expired })));
        }
        for (attempt, (create, uid)) in cluster.attempts.iter().zip(self.configuration.creates.iter().zip(0..)) {
            if attempt.phase == Phase::Stored {
                actions.push(Action::Guess(Guess::Conversation { place: create.place, uid }));
            }
        }
    }

    /// Runs the leaders in turn until no work is left. Returns `false` if that does not happen within a bound.
    fn settle(&self, cluster: &mut Cluster) -> bool {
        const ROUNDS: usize = 40;
        let Cluster { etcd, leaders, orphaned_writes, .. } = cluster;
        self.with_world(etcd, &[], |world| {
            for job in orphaned_writes.drain(..) {
                leader::execute(job, world);
            }
            if leaders.is_empty() {
                // Some replica will lead.
                let mut leader = Leader::default();
                leader.restart(world.etcd, world.mutation);
                leaders.push(leader);
            }
            (0..ROUNDS)
                .any(|_| leaders.iter_mut().map(|leader| take_turn(leader, world)).filter(|quiet| !quiet).count() == 0)
        })
    }

    /// I2 and I3 for a cluster at rest.
    fn is_consistent(&self, cluster: &Cluster) -> bool {
        let Etcd { claim, conversations, .. } = &cluster.etcd;
        let has_statuses = self.configuration.has_statuses;
        let is_right = |(place, conversation): (Place, &abstraction::Conversation)| {
            claim.is_some_and(|claim| {
                if claim.holder == place {
                    claim.admissions == Uids::one(conversation.uid)
                        && (!has_statuses || conversation.bound == Some(true))
                } else {
                    (!has_statuses || conversation.bound == Some(false)) && cluster.etcd.holds_binding(claim.holder)
                }
            })
        };
        let mut holding = (0..).zip(conversations).filter_map(|(place, stored)| Some((place, stored.as_ref()?)));
        holding.all(|(place, conversation)| !conversation.needs_binding || is_right((place, conversation)))
            && claim.is_none_or(|claim| cluster.etcd.holds_binding(claim.holder))
    }

    /// Whether no create and no review is active, and a leader can come to rest.
    fn is_quiet(&self, cluster: &Cluster) -> bool {
        let is_client_at_work = cluster.attempts.iter().any(Attempt::is_active);
        let is_claim_being_deleted = cluster.etcd.claim.is_some_and(|claim| claim.is_being_deleted);
        !self.has_no_leader() && !is_client_at_work && !is_claim_being_deleted && cluster.violation.is_none()
    }

    /// Whether the leaders come to rest consistently from this state. Checked while no client and no review is active.
    fn comes_to_rest(&self, cluster: &Cluster) -> bool {
        if !self.is_quiet(cluster) {
            return true;
        }
        let mut settled = cluster.clone();
        self.settle(&mut settled) && self.is_consistent(&settled)
    }
}

/// Runs all work of a leader. Returns `true` if there was none.
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
        if leader.is_free(task) && leader.is_queued(task) {
            leader.run(task, leader.in_flight(), world);
            is_quiet = false;
        }
    }
    is_quiet
}

/// The UIDs that can still be stored.
fn undecided(cluster: &Cluster) -> Uids {
    let undecided = (0..).zip(&cluster.attempts).filter(|(_, attempt)| attempt.is_undecided());
    undecided.fold(Uids::NONE, |uids, (uid, _)| uids.and(Uids::one(uid)))
}

/// Ends writes whose precondition can no longer hold, since they can only fail.
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

/// Drops events that all watches have delivered, and renumbers the revisions, of which only equality is meaningful.
fn canonicalize(cluster: &mut Cluster) {
    let undecided = undecided(cluster);
    let Cluster { etcd, attempts, leaders, orphaned_writes, ways, .. } = cluster;
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
    // Leaders are interchangeable.
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
    for way in ways.iter_mut() {
        way.versions(&mut visit);
    }
    orphaned_writes.sort();
    for job in orphaned_writes {
        leader::job_versions(job, &mut visit);
    }
    etcd.revision = last;
    // What a claim recorded matters only while the conversation is stored, or can still be.
    let stored = etcd.conversations.iter().flatten().fold(Uids::NONE, |uids, stored| uids.and(Uids::one(stored.uid)));
    etcd.recorded = etcd.recorded.within(stored.and(undecided));
    for way in ways {
        way.canonicalize(stored);
    }
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
            ways: self.configuration.messages.iter().copied().map(Way::of).collect(),
            left: self.configuration.budget,
            violation: None,
        }]
    }

    fn actions(&self, cluster: &Cluster, actions: &mut Vec<Action>) {
        if cluster.violation.is_some() {
            return;
        }
        let Cluster { etcd, attempts, leaders, orphaned_writes, left, .. } = cluster;
        for (index, attempt) in attempts.iter().enumerate() {
            let orphans = match attempt.phase {
                Phase::NotBegun if self.configuration.creates[index].is_by_router => 0,
                Phase::NotBegun => {
                    // Equal creates begin in their order.
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
                Phase::Admitted | Phase::AdmittedWaiting => {
                    actions.extend([Action::Store(index), Action::Fail(index)]);
                    attempt.reviews.len()
                }
                Phase::Stored | Phase::Failed => attempt.reviews.len(),
            };
            actions.extend((0..attempt.reviews.len()).map(|review| Action::Step(index, review)));
            actions.extend((0..orphans).map(|review| Action::Drop(index, review)));
        }
        self.routes(cluster, actions);
        for place in [0, 1] {
            let Some(conversation) = etcd.stored(place) else { continue };
            if conversation.needs_binding && left.releases > 0 {
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
            Some(claim) if claim.is_being_deleted => actions.push(Action::FinishClaimDeletion),
            Some(_) if left.manual_deletions > 0 => {
                actions.extend([Action::DeleteClaimManually, Action::DeleteClaimManuallyInForeground]);
            }
            _ => {}
        }
        actions.extend(
            (0..orphaned_writes.len()).flat_map(|index| [Action::LandOrphan(index), Action::LoseOrphan(index)]),
        );
        if orphaned_writes.len() < self.configuration.unknown_leaders {
            self.guesses(cluster, actions);
        }
        for (index, leader) in leaders.iter().enumerate() {
            self.reconciles(cluster, index, actions);
            let under_way = (0..leader.jobs.len()).filter(|slot| leader.jobs[*slot].is_some());
            actions.extend(under_way.flat_map(|slot| [Action::Land(index, slot), Action::Lose(index, slot)]));
            let in_doubt = (0..leader.jobs.len()).filter(|slot| left.doubts > 0 && leader.jobs[*slot].is_some());
            actions.extend(in_doubt.map(|slot| Action::Doubt(index, slot)));
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
            Action::Begin(index) if self.configuration.creates[index].bypasses_webhook => {
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
                self.respond(&mut cluster, index, Creation::Undecided);
            }
            Action::Abandon(index) => {
                left.abandoned -= 1;
                attempts[index].phase = Phase::Failed;
                self.respond(&mut cluster, index, Creation::Undecided);
            }
            Action::Repeat(index) => {
                left.repeats -= 1;
                self.review(&mut cluster, index, None);
            }
            Action::Drop(index, review) => {
                attempts[index].reviews.remove(review);
            }
            Action::Store(index) => self.store(&mut cluster, index),
            Action::Fail(index) => {
                attempts[index].phase = Phase::Failed;
                self.respond(&mut cluster, index, Creation::Undecided);
            }
            Action::Send(index, sight) => self.send(&mut cluster, index, sight),
            Action::Route(index, outcome) => self.route(&mut cluster, index, outcome),
            Action::Release(place) => {
                left.releases -= 1;
                let conversation = abstraction::Conversation { needs_binding: false, ..etcd.stored(place)? };
                etcd.change(place, conversation, has_statuses);
            }
            Action::Close(place) => {
                left.closings -= 1;
                let before = etcd.stored(place)?;
                // The write of the status says `Bound=False`.
                let bound = before.bound.map(|_| false);
                let conversation = abstraction::Conversation { needs_binding: false, is_hidden: true, bound, ..before };
                etcd.change(place, conversation, has_statuses);
            }
            Action::Delete(place) => {
                left.deletions -= 1;
                etcd.delete(place);
            }
            Action::DeleteClaimManually | Action::DeleteClaimManuallyInForeground => {
                left.manual_deletions -= 1;
                etcd.delete_claim_manually(action == Action::DeleteClaimManuallyInForeground);
            }
            Action::FinishClaimDeletion => etcd.delete_claim_manually(false),
            Action::Reconcile(index, reconcile) => {
                self.with_world(etcd, orphaned_writes, |world| leaders[index].reconcile(reconcile, world));
            }
            Action::Land(index, slot) => {
                self.with_world(etcd, orphaned_writes, |world| leaders[index].land(slot, world));
            }
            Action::Lose(index, slot) => leaders[index].lose(slot),
            Action::Doubt(index, slot) => {
                left.doubts -= 1;
                self.cover(Coverage::InDoubt);
                orphaned_writes.extend(leaders[index].doubt(slot));
            }
            Action::Guess(guess) => {
                orphaned_writes.push(self.with_world(etcd, &[], |world| leader::guess(guess, world))?);
            }
            Action::LandOrphan(index) => {
                let job = orphaned_writes.remove(index);
                self.with_world(etcd, &[], |world| leader::execute(job, world));
            }
            Action::LoseOrphan(index) => drop(orphaned_writes.remove(index)),
            Action::Restart(index) => {
                left.restarts -= 1;
                orphaned_writes.extend(leaders[index].jobs.iter_mut().filter_map(Option::take));
                leaders[index].restart(etcd, self.configuration.mutation);
            }
            Action::ListConversations(index) => {
                left.lists -= 1;
                leaders[index].list_conversations(etcd, self.configuration.mutation);
            }
            Action::ListClaims(index) => {
                left.lists -= 1;
                leaders[index].list_claims(etcd, self.configuration.mutation);
            }
        }
        if !self.configuration.mutation.is_some_and(Mutation::drops_preconditions) {
            forget_moot_writes(&mut cluster);
        }
        for way in &mut cluster.ways {
            way.observe(&cluster.etcd);
        }
        canonicalize(&mut cluster);
        Some(cluster)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_HOLDER, |model: &Self, cluster: &Cluster| {
                // A create that neither bypasses the webhook nor waits was admitted under a claim.
                let is_claimed = |uid: u8| {
                    let create = model.configuration.creates[usize::from(uid)];
                    cluster.etcd.recorded.has(uid) || !create.bypasses_webhook && !create.waits
                };
                let is_holder = |stored: &abstraction::Conversation| stored.needs_binding && is_claimed(stored.uid);
                model.has_manual_deletions() || cluster.etcd.count(is_holder) <= 1
            }),
            Property::always(RECORDED, |model: &Self, cluster: &Cluster| {
                model.has_manual_deletions() || model.records_what_is_in_flight(cluster)
            }),
            Property::always(ONE_BOUND, |_, cluster: &Cluster| {
                cluster.etcd.count(|conversation| conversation.bound == Some(true)) <= 1
            }),
            Property::always(BOUND_RECORDED, |_, cluster: &Cluster| {
                let is_unrecorded = |conversation: &abstraction::Conversation| {
                    conversation.bound == Some(true) && !cluster.etcd.recorded.has(conversation.uid)
                };
                cluster.etcd.count(is_unrecorded) == 0
            }),
            Property::always(NO_VIOLATION, |_, cluster: &Cluster| {
                use StepViolation::{AllowedWithoutClaim, DeniedWithoutHolder, DryRunWrote};
                !matches!(cluster.violation, Some(DeniedWithoutHolder | AllowedWithoutClaim | DryRunWrote))
            }),
            Property::always(REST, Self::comes_to_rest),
            Property::always(RECIPIENT, |_, cluster: &Cluster| {
                cluster.violation != Some(StepViolation::DeliveredToNoHolder)
            }),
            Property::always(STEADY_HOLDER, |_, cluster: &Cluster| {
                cluster.violation != Some(StepViolation::PassedHolder)
            }),
            Property::always(NOT_OVERTAKEN, |_, cluster: &Cluster| cluster.violation != Some(StepViolation::Overtook)),
            Property::always(REASON, |_, cluster: &Cluster| cluster.violation != Some(StepViolation::WrongReason)),
            Property::always(WAYS_END, Self::ways_end),
        ]
    }
}

/// I1.
pub const ONE_HOLDER: &str = "I1: at most one open conversation has a UID that a claim ever recorded";
/// The lemma from which I1 follows.
pub const RECORDED: &str = "the claim records every create that was admitted and may still be stored";
/// The weaker guarantee, which also holds if claims are deleted manually and conversations are created without the webhook.
pub const ONE_BOUND: &str = "at most one stored conversation is Bound";
/// No conversation is told that it is bound on a claim that a release may delete at any moment.
pub const BOUND_RECORDED: &str = "a claim recorded the UID of each conversation that is Bound";
/// I4 and I5.
pub const NO_VIOLATION: &str = "I4 and I5: no decision without a live read, no write in a dry run";
/// I2 and I3.
pub const REST: &str = "I2 and I3: the leaders come to rest, and at rest claims and conversations agree";
/// Except for a holder that only the watches show, and whose activity is not reported.
pub const RECIPIENT: &str = "a message goes to a conversation that has held the binding since the message was sent";
/// With the same exception. That the message creates nothing follows from I1.
pub const STEADY_HOLDER: &str = "a message goes to the conversation that holds the binding all the time";
pub const NOT_OVERTAKEN: &str = "a message does not overtake a conversation that it saw waiting";
pub const REASON: &str = "a message is unroutable only for a reason that is there";
pub const WAYS_END: &str = "in a quiet environment, each message is delivered or unroutable";
