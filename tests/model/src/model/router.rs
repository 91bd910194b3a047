//! The routers: the ways of messages, each a sequence of requests between which other steps can happen.
//!
//! `switchboard::core::inbound::Routing` makes all decisions, and its creates are reviewed as all others are. Each message is sent to a
//! router of its own, so neither the memory of delivered messages nor their order within a replica takes part. A way that is given up,
//! because its time is over or its router is killed, equals one that takes no further step.
//!
//! The watches of a router can be late. Before the first request they show any stored conversation that once held the binding, or that
//! nobody holds it. When a live read asks whether a conversation waits, they can have missed one, but not one that they have shown before.
//! A report changes nothing that is stored here.

use super::abstraction::{self, Claim, Conversation, Place, Uids, Version};
use super::etcd::{Etcd, claim_versions};
use super::webhook::{Attempt, Phase};
use super::{Action, ClaimsModel, Cluster, Coverage, Mutation, StepViolation};
use std::sync::Arc;
use switchboard::core::claim::{self, LiveConversation};
use switchboard::core::inbound::{
    BindingStatus, Creation, OwnConversation, Report, RouteObservation, RouteStep, Routing, Unroutable, WaitingSource,
};

/// A message, each time it is sent. A message that is sent again may create the same conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The conversation that it may create.
    pub own: Option<Place>,
}

/// The next request of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    NotSent,
    /// A live read: the claim, then the conversation that it names, and then whether a conversation waits.
    ReadClaim(WaitingSource),
    ReadHolder(WaitingSource, Claim),
    ReadWaiting(WaitingSource),
    Report {
        place: Place,
        uid: u8,
        /// Whether the watches showed it as the holder, and no live read.
        is_watched: bool,
    },
    Create,
    /// It waits for the response to a create.
    Creating(usize),
    ReadOwn,
    Ended,
}

/// The way of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    pub stage: Stage,
    routing: Arc<Routing>,
    /// The conversations that have held the binding since the message was sent.
    held: Uids,
    /// The conversation that has held the binding all the time since then.
    steady: Option<u8>,
    /// The conversations that it saw waiting, and that have waited since then.
    awaited: Uids,
    /// Whether the watches showed them.
    watches_show: bool,
}

/// The status of the binding that the watches show when a message arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sight {
    Free,
    Unknown,
    Awaited,
    Held(Place, u8),
}

/// The outcome of the next request of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The API server answers it, or begins a review.
    Answered,
    /// It is not made, or not in time: the message goes on with what the watches have shown.
    Skipped,
    /// It fails, or its response is lost.
    Lost,
    /// The limit of the replica is reached.
    RateLimited,
    /// RBAC, a quota or another webhook denies the create.
    Refused,
}

impl Way {
    pub fn of(message: Message) -> Self {
        Self {
            stage: Stage::NotSent,
            routing: Arc::new(Routing::new(message.own.map(abstraction::reference))),
            held: Uids::NONE,
            steady: None,
            awaited: Uids::NONE,
            watches_show: false,
        }
    }

    pub fn is_active(&self) -> bool {
        !matches!(self.stage, Stage::NotSent | Stage::Ended)
    }

    /// Follows the holder of the binding and the conversations that wait.
    pub fn observe(&mut self, etcd: &Etcd) {
        if !self.is_active() {
            return;
        }
        let holder = etcd.holder();
        self.held = self.held.and(holder.map_or(Uids::NONE, Uids::one));
        self.steady = self.steady.filter(|steady| holder == Some(*steady));
        self.awaited = self.awaited.within(etcd.waiting());
        self.watches_show &= !self.awaited.is_empty();
    }

    /// Forgets holders to which the message can no longer go.
    pub fn canonicalize(&mut self, stored: Uids) {
        let recipient = match self.stage {
            Stage::Report { uid, .. } => Uids::one(uid),
            _ => Uids::NONE,
        };
        self.held = self.held.within(stored.and(recipient));
    }

    pub fn versions(&mut self, visit: &mut impl FnMut(&mut Version)) {
        if let Stage::ReadHolder(_, claim) = &mut self.stage {
            claim_versions(claim, visit);
        }
    }
}

impl Etcd {
    /// The UID of the conversation that holds the binding.
    fn holder(&self) -> Option<u8> {
        let place = self.claim?.holder;
        self.stored(place).filter(|_| self.holds_binding(place)).map(|stored| stored.uid)
    }

    /// The UIDs of the open conversations that do not hold the binding.
    fn waiting(&self) -> Uids {
        let holder = self.holder();
        let open = self.conversations.iter().flatten().filter(|stored| stored.needs_binding);
        open.filter(|stored| Some(stored.uid) != holder)
            .fold(Uids::NONE, |uids, stored| uids.and(Uids::one(stored.uid)))
    }
}

/// The result of `Routing::next`, except in mutations.
fn decide(routing: &mut Routing, observation: RouteObservation, mutation: Option<Mutation>) -> RouteStep {
    use Mutation as M;
    use RouteObservation::{Creation as Tried, Live, Own, Reported, Watched};
    let refused = RouteStep::Unroutable(Unroutable::NotAdmitted);
    let observation = match (mutation, observation) {
        (Some(M::AwaitedTakenAsFree), Live(BindingStatus::Awaited))
        | (Some(M::WatchTakenAsLive), Watched(BindingStatus::Free)) => Live(BindingStatus::Free),
        (Some(M::GoneTakenAsReported), Reported(recipient, Report::Gone))
        | (Some(M::HolderNotReported), Watched(BindingStatus::Held(recipient))) => Reported(recipient, Report::Done),
        (Some(M::LimitIsFinal), Tried(Creation::RateLimited)) => {
            return RouteStep::Unroutable(Unroutable::RateLimited);
        }
        (Some(M::DenialIsFinal), Tried(Creation::AlreadyBound))
        | (Some(M::RefusalIsFinal), Tried(Creation::Refused))
        | (Some(M::UndecidedIsFinal), Tried(Creation::Undecided)) => return refused,
        (Some(M::DenialIsRetried), Tried(Creation::AlreadyBound))
        | (Some(M::ExistingIsRetried), Tried(Creation::AlreadyExists)) => return RouteStep::CreateAgain,
        (Some(M::AwaitedForgotten), Live(BindingStatus::Awaited)) => {
            return RouteStep::ReadLiveAgain(WaitingSource::Watches);
        }
        (Some(M::ClosedForgotten), Own(OwnConversation::Closed)) => {
            return RouteStep::ReadLive(WaitingSource::Watches);
        }
        (_, observation) => observation,
    };
    routing.next(observation)
}

impl ClaimsModel {
    /// The next create of a router for this place. The last one is kept for a quiet environment.
    fn next_create(&self, attempts: &[Attempt], place: Place, is_quiet: bool) -> Option<usize> {
        let is_next = |index: &usize| {
            let create = self.configuration.creates[*index];
            create.is_by_router && create.place == place && attempts[*index].phase == Phase::NotBegun
        };
        let mut next = (0..attempts.len()).filter(is_next);
        let first = next.next()?;
        (is_quiet || next.next().is_some()).then_some(first)
    }

    fn own(&self, way: usize) -> Place {
        self.configuration.messages[way].own.unwrap()
    }

    /// What the watches can show when a message arrives.
    fn sights(cluster: &Cluster) -> Vec<Sight> {
        let Cluster { etcd, .. } = cluster;
        let mut sights = vec![Sight::Free, Sight::Unknown];
        if !etcd.waiting().is_empty() {
            sights.push(Sight::Awaited);
        }
        let once_held = |place: Place| etcd.stored(place).filter(|stored| etcd.recorded.has(stored.uid));
        sights.extend([0, 1].into_iter().filter_map(|place| Some(Sight::Held(place, once_held(place)?.uid))));
        sights
    }

    pub fn routes(&self, cluster: &Cluster, actions: &mut Vec<Action>) {
        let Cluster { attempts, ways, left, .. } = cluster;
        for (index, way) in ways.iter().enumerate() {
            use Outcome::{Answered, Lost, RateLimited, Refused, Skipped};
            let outcomes = match way.stage {
                Stage::NotSent => {
                    // Equal messages are sent in their order.
                    let is_alike = |earlier: usize| {
                        ways[earlier].stage == Stage::NotSent
                            && self.configuration.messages[earlier] == self.configuration.messages[index]
                    };
                    if !(0..index).any(is_alike) {
                        actions.extend(Self::sights(cluster).into_iter().map(|sight| Action::Send(index, sight)));
                    }
                    Vec::new()
                }
                Stage::ReadClaim(_) | Stage::ReadHolder(..) => vec![(Answered, true)],
                Stage::ReadWaiting(source) => {
                    let is_late = source == WaitingSource::Watches && !way.watches_show;
                    vec![(Answered, true), (Lost, true), (Skipped, is_late)]
                }
                Stage::ReadOwn => vec![(Answered, true), (Lost, true)],
                Stage::Report { .. } => vec![(Answered, true), (Skipped, true)],
                Stage::Create => vec![
                    (Answered, self.next_create(attempts, self.own(index), false).is_some()),
                    (RateLimited, left.rate_limits > 0),
                    (Refused, left.refusals > 0),
                ],
                Stage::Creating(attempt) => {
                    vec![
                        (Lost, left.lost > 0),
                        (Refused, left.refusals > 0 && attempts[attempt].phase == Phase::Admitted),
                    ]
                }
                Stage::Ended => Vec::new(),
            };
            let possible = outcomes.into_iter().filter(|(_, is_possible)| *is_possible);
            actions.extend(possible.map(|(outcome, _)| Action::Route(index, outcome)));
        }
    }

    /// A message arrives.
    pub fn send(&self, cluster: &mut Cluster, index: usize, sight: Sight) {
        let Cluster { etcd, ways, .. } = cluster;
        let way = &mut ways[index];
        way.steady = etcd.holder();
        way.held = way.steady.map_or(Uids::NONE, Uids::one);
        let status = match sight {
            Sight::Free => BindingStatus::Free,
            Sight::Unknown => BindingStatus::Unknown,
            Sight::Awaited => {
                (way.awaited, way.watches_show) = (etcd.waiting(), true);
                BindingStatus::Awaited
            }
            Sight::Held(place, uid) => BindingStatus::Held(abstraction::recipient(place, uid)),
        };
        self.advance(cluster, index, RouteObservation::Watched(status), false);
    }

    /// Executes the next request of a way.
    pub fn route(&self, cluster: &mut Cluster, index: usize, outcome: Outcome) {
        let Cluster { etcd, attempts, ways, left, .. } = cluster;
        let way = &mut ways[index];
        let mut is_unchecked = false;
        let observation = match (way.stage, outcome) {
            (Stage::ReadClaim(source), _) => {
                let read_holder = |claim| Stage::ReadHolder(source, claim);
                way.stage = etcd.claim.map_or(Stage::ReadWaiting(source), read_holder);
                return;
            }
            (Stage::ReadHolder(source, claim), _) => {
                let is_held =
                    |stored: &Conversation| claim::Claim::from(claim).is_held_by(&LiveConversation::from(*stored));
                let Some(holder) = etcd.stored(claim.holder).filter(is_held) else {
                    way.stage = Stage::ReadWaiting(source);
                    return;
                };
                let recipient = abstraction::recipient(claim.holder, holder.uid);
                RouteObservation::Live(BindingStatus::Held(recipient))
            }
            (Stage::ReadWaiting(_), Outcome::Answered) => {
                way.awaited = way.awaited.and(etcd.waiting());
                let is_awaited = etcd.count(|stored| stored.needs_binding) > 0;
                RouteObservation::Live(if is_awaited { BindingStatus::Awaited } else { BindingStatus::Free })
            }
            (Stage::ReadWaiting(_), Outcome::Skipped) => RouteObservation::Live(BindingStatus::Free),
            (Stage::ReadWaiting(_), _) => RouteObservation::Live(BindingStatus::Unknown),
            (Stage::Report { place, uid, is_watched }, outcome) => {
                let is_open = etcd.stored(place).is_some_and(|stored| stored.uid == uid && stored.needs_binding);
                is_unchecked = is_watched && outcome == Outcome::Skipped;
                let report = if is_open || outcome == Outcome::Skipped { Report::Done } else { Report::Gone };
                RouteObservation::Reported(abstraction::recipient(place, uid), report)
            }
            (Stage::Create, Outcome::RateLimited) => {
                left.rate_limits -= 1;
                RouteObservation::Creation(Creation::RateLimited)
            }
            (Stage::Create, Outcome::Refused) => {
                left.refusals -= 1;
                RouteObservation::Creation(Creation::Refused)
            }
            (Stage::Create, _) => {
                let attempt = self.next_create(attempts, self.own(index), false).unwrap();
                self.create(cluster, index, attempt);
                return;
            }
            (Stage::Creating(attempt), Outcome::Refused) => {
                left.refusals -= 1;
                attempts[attempt].phase = Phase::Failed;
                RouteObservation::Creation(Creation::Refused)
            }
            (Stage::Creating(_), _) => {
                left.lost -= 1;
                self.cover(Coverage::CreateLost);
                RouteObservation::Creation(Creation::Undecided)
            }
            (Stage::ReadOwn, Outcome::Lost) => RouteObservation::Own(OwnConversation::Unknown),
            (Stage::ReadOwn, _) => {
                let own = self.own(index);
                RouteObservation::Own(match etcd.stored(own) {
                    Some(stored)
                        if stored.needs_binding || self.configuration.mutation == Some(Mutation::OwnTakenAsOpen) =>
                    {
                        OwnConversation::Open(abstraction::recipient(own, stored.uid))
                    }
                    // It has no contact any more.
                    Some(stored) if !stored.is_hidden => OwnConversation::Other,
                    _ => OwnConversation::Closed,
                })
            }
            (Stage::NotSent | Stage::Ended, _) => unreachable!("it has no next request"),
        };
        self.advance(cluster, index, observation, is_unchecked);
    }

    /// A way begins a create.
    fn create(&self, cluster: &mut Cluster, index: usize, attempt: usize) {
        let Cluster { attempts, ways, violation, .. } = cluster;
        if !ways[index].awaited.is_empty() {
            *violation = Some(StepViolation::Overtook);
            return;
        }
        ways[index].stage = Stage::Creating(attempt);
        attempts[attempt].phase = Phase::InReview;
        self.review(cluster, attempt, None);
    }

    /// The API server responds to a create of a router, if its way still waits for the response.
    pub fn respond(&self, cluster: &mut Cluster, attempt: usize, creation: Creation) {
        if let Some(index) = cluster.ways.iter().position(|way| way.stage == Stage::Creating(attempt)) {
            self.advance(cluster, index, RouteObservation::Creation(creation), false);
        }
    }

    /// Takes the step that follows from an observation. `is_unchecked` tells that it rests on the watches alone.
    fn advance(&self, cluster: &mut Cluster, index: usize, observation: RouteObservation, is_unchecked: bool) {
        let is_watched = matches!(observation, RouteObservation::Watched(_));
        let covered = match &observation {
            RouteObservation::Reported(_, Report::Gone) => Some(Coverage::RecipientGone),
            RouteObservation::Live(BindingStatus::Awaited) => Some(Coverage::HandOverAwaited),
            RouteObservation::Creation(Creation::AlreadyBound) => Some(Coverage::RaceLost),
            RouteObservation::Own(OwnConversation::Open(_)) => Some(Coverage::OwnFound),
            RouteObservation::Own(OwnConversation::Closed | OwnConversation::Other) => Some(Coverage::OwnClosed),
            _ => None,
        };
        if let Some(step) = covered {
            self.cover(step);
        }
        let Cluster { etcd, ways, violation, .. } = cluster;
        let way = &mut ways[index];
        way.stage = match decide(Arc::make_mut(&mut way.routing), observation, self.configuration.mutation) {
            RouteStep::ReadLive(source) | RouteStep::ReadLiveAgain(source) => Stage::ReadClaim(source),
            RouteStep::AwaitHandOver => Stage::ReadClaim(WaitingSource::FreeByList),
            RouteStep::Report(recipient) => {
                let (place, uid) = (abstraction::place(&recipient.conversation), abstraction::number(&recipient.uid));
                Stage::Report { place, uid, is_watched }
            }
            RouteStep::Create | RouteStep::CreateAgain => Stage::Create,
            RouteStep::ReadOwn | RouteStep::ReadOwnAgain => Stage::ReadOwn,
            RouteStep::Deliver { recipient, .. } => {
                self.cover(Coverage::Delivered);
                let uid = abstraction::number(&recipient.uid);
                way.observe(etcd);
                if !is_unchecked && !way.held.has(uid) {
                    *violation = Some(StepViolation::DeliveredToNoHolder);
                } else if !is_unchecked && way.steady.is_some_and(|steady| steady != uid) {
                    *violation = Some(StepViolation::PassedHolder);
                }
                Stage::Ended
            }
            RouteStep::Unroutable(reason) => {
                self.cover(Coverage::Unroutable);
                way.observe(etcd);
                let own = self.configuration.messages[index].own;
                let is_true = match reason {
                    Unroutable::NoConversation => own.is_none(),
                    Unroutable::ConversationClosed | Unroutable::NameTaken => {
                        own.is_some_and(|own| !etcd.stored(own).is_some_and(|stored| stored.needs_binding))
                    }
                    _ => own.is_some(),
                };
                if way.steady.is_some() {
                    *violation = Some(StepViolation::PassedHolder);
                } else if !is_true {
                    *violation = Some(StepViolation::WrongReason);
                }
                Stage::Ended
            }
        };
        if way.stage == Stage::Ended {
            *way = Way { stage: Stage::Ended, ..Way::of(Message { own: None }) };
        }
    }

    /// Whether each message finds its way from this state, if nothing else happens. Checked while no other client and no review is active.
    pub fn ways_end(&self, cluster: &Cluster) -> bool {
        const STEPS: usize = 30;
        let is_quiet = self.is_quiet(cluster);
        if !is_quiet || !cluster.ways.iter().any(Way::is_active) {
            return true;
        }
        let mut quiet = cluster.clone();
        (0..quiet.ways.len()).all(|index| {
            let mut steps = 0..STEPS;
            steps.any(|_| {
                !quiet.ways[index].is_active() || !self.settle(&mut quiet) || !self.route_quietly(&mut quiet, index)
            }) && !quiet.ways[index].is_active()
        })
    }

    /// Executes the next request of a way in a quiet environment. Returns `false` if that is impossible.
    fn route_quietly(&self, cluster: &mut Cluster, index: usize) -> bool {
        const STEPS: usize = 30;
        cluster.ways[index].observe(&cluster.etcd);
        if cluster.ways[index].stage != Stage::Create {
            self.route(cluster, index, Outcome::Answered);
            return cluster.violation.is_none();
        }
        // A create that failed, and that no claim records, is like one that has not begun.
        let recorded = cluster.etcd.claim.map_or(Uids::NONE, |claim| claim.admissions);
        for (uid, attempt) in (0..).zip(&mut cluster.attempts) {
            if attempt.phase == Phase::Failed && !recorded.has(uid) {
                *attempt = Attempt::not_begun();
            }
        }
        let Some(attempt) = self.next_create(&cluster.attempts, self.own(index), true) else { return false };
        self.create(cluster, index, attempt);
        for _ in 0..STEPS {
            if cluster.attempts[attempt].phase == Phase::InReview {
                self.review(cluster, attempt, Some(0));
            }
        }
        if cluster.attempts[attempt].phase == Phase::Admitted {
            self.store(cluster, attempt);
        }
        cluster.violation.is_none()
    }
}
