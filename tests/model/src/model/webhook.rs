//! The webhook: reviews of creates, each a sequence of reads and writes between which other steps can happen.
//!
//! A replica keeps no state between reviews, so several replicas are modelled as concurrent reviews, and the crash of a replica
//! as the loss of its reviews.

use super::abstraction::{self, Claim, Conversation, Place, Version, Write};
use super::etcd::{Etcd, Preconditions, write_versions};
use super::{Coverage, Mutation, StepViolation};
use std::time::Duration;
use switchboard::api::Time;
use switchboard::core::claim::{AdmitStep, Decision, LiveConversation, Observation, Source, admit};

/// No create is overdue in the model: an overdue create only turns a write into a 503, which [`super::Action::GiveUp`] covers.
const GRACE_PERIOD: Duration = Duration::from_mins(1);

/// The create that a client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each of them is independent of the others")]
pub struct Create {
    pub place: Place,
    pub is_server_side_apply: bool,
    pub is_dry_run: bool,
    /// Whether it waits for a binding that is not free.
    pub waits: bool,
    /// Whether its name is read first. A name that is not read covers every outdated cache.
    pub reads_name: bool,
    /// Whether it is sent while no webhook is installed.
    pub bypasses_webhook: bool,
    /// Whether a router sends it, for a message.
    pub is_by_router: bool,
}

/// The progress of a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    NotBegun,
    /// The API server waits for the response to the last review.
    InReview,
    /// It was admitted, and will be stored or fail.
    Admitted,
    /// It was admitted without a claim, and will be stored or fail.
    AdmittedWaiting,
    /// It was stored, and can have been deleted since.
    Stored,
    Failed,
}

/// Whether a name is read live.
pub type IsLive = bool;

/// The next step of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    ReadName(IsLive),
    ReadClaim,
    ReadHolder(Claim),
    Write(Write),
}

/// One create. Its UID is its number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub phase: Phase,
    /// The reviews in progress. While the create is in review, only the response to the last one counts.
    pub reviews: Vec<Step>,
}

impl Attempt {
    pub fn not_begun() -> Self {
        Self { phase: Phase::NotBegun, reviews: Vec::new() }
    }

    /// Whether it can still be stored.
    pub fn is_undecided(&self) -> bool {
        matches!(self.phase, Phase::InReview | Phase::Admitted | Phase::AdmittedWaiting)
    }

    pub fn is_active(&self) -> bool {
        self.is_undecided() || !self.reviews.is_empty()
    }

    pub fn versions(&mut self, visit: &mut impl FnMut(&mut Version)) {
        for step in &mut self.reviews {
            match step {
                Step::ReadName(_) | Step::ReadClaim => {}
                Step::ReadHolder(claim) => super::etcd::claim_versions(claim, visit),
                Step::Write(write) => write_versions(write, visit),
            }
        }
    }
}

/// The result of one step of a review.
pub enum Progress {
    Next(Step),
    Answered(Decision),
}

/// A review in progress.
pub struct Review<'a> {
    pub create: Create,
    pub uid: u8,
    pub etcd: &'a mut Etcd,
    /// Whether the API server waits for its response.
    pub counts: bool,
    /// Whether a wrong decision is reported as a violation. Otherwise the model continues with its consequences.
    pub is_checked: bool,
    pub mutation: Option<Mutation>,
    pub cover: &'a mut dyn FnMut(Coverage),
}

impl Review<'_> {
    /// Executes the first step of the review.
    pub fn begin(mut self) -> Result<Progress, StepViolation> {
        match self.decide(Observation::Nothing) {
            AdmitStep::Write(write) => self.perform(Step::Write(Write::from(&write))),
            AdmitStep::ReadClaim => self.perform(Step::ReadClaim),
            AdmitStep::ReadName(source) => self.perform(Step::ReadName(source == Source::Live)),
            other => unreachable!("{other:?}"),
        }
    }

    /// Executes `step`, and returns the next one by the protocol.
    pub fn perform(&mut self, step: Step) -> Result<Progress, StepViolation> {
        let mut observed = self.observe(step)?;
        loop {
            observed = match self.decide(observed) {
                AdmitStep::Wait(_) => {
                    (self.cover)(Coverage::Wait);
                    Observation::Changed
                }
                AdmitStep::ReadName(source) => return Ok(Progress::Next(Step::ReadName(source == Source::Live))),
                AdmitStep::ReadClaim => return Ok(Progress::Next(Step::ReadClaim)),
                AdmitStep::ReadHolder(claim) => return Ok(Progress::Next(Step::ReadHolder(Claim::from(&claim)))),
                AdmitStep::Write(write) => return Ok(Progress::Next(Step::Write(Write::from(&write)))),
                AdmitStep::Decide(answer) if self.is_checked => return self.check(step, answer),
                AdmitStep::Decide(answer) => return Ok(Progress::Answered(answer)),
            };
        }
    }

    fn observe(&mut self, step: Step) -> Result<Observation, StepViolation> {
        Ok(match step {
            Step::ReadName(is_live) => {
                let source = if is_live { Source::Live } else { Source::Cache };
                Observation::Name(source, self.etcd.stored(self.create.place).is_some())
            }
            Step::ReadClaim => Observation::Claim(self.etcd.claim.map(Into::into)),
            Step::ReadHolder(claim) => Observation::Holder {
                claim: claim.into(),
                live: self.etcd.stored(claim.holder).map(LiveConversation::from),
                // A longer wait equals a later step.
                unchanged_for: Duration::MAX,
            },
            Step::Write(write) => {
                if self.create.is_dry_run {
                    return Err(StepViolation::DryRunWrote);
                }
                let (write, preconditions) = self.mutated(write);
                let before = self.etcd.claim;
                let is_done = self.etcd.write(write, preconditions);
                if is_done {
                    let was_ours = before.is_some_and(|before| before.holder == self.create.place);
                    (self.cover)(match before {
                        None => Coverage::Claimed,
                        Some(_) if was_ours => Coverage::Added,
                        Some(_) => Coverage::TakenOver,
                    });
                    if !self.counts {
                        (self.cover)(Coverage::AbandonedReviewWrote);
                    }
                } else {
                    (self.cover)(Coverage::WriteConflict);
                }
                if is_done || self.mutation == Some(Mutation::ConflictTakenAsApplied) {
                    Observation::Written
                } else {
                    Observation::Changed
                }
            }
        })
    }

    fn mutated(&self, write: Write) -> (Write, Preconditions) {
        let only_this = abstraction::Uids::one(self.uid);
        match (self.mutation, write) {
            (Some(Mutation::AddReplaces), Write::Replace { uid, version, holder, .. }) => {
                (Write::Replace { uid, version, holder, admissions: only_this }, Preconditions::ALL)
            }
            (Some(Mutation::AddForgets), Write::Replace { uid, version, holder, admissions })
                if !admissions.without(only_this).is_empty() =>
            {
                let admissions = admissions.without(only_this);
                (Write::Replace { uid, version, holder, admissions }, Preconditions::ALL)
            }
            (Some(Mutation::ReplaceWithoutVersion), write @ Write::Replace { .. }) => {
                (write, Preconditions { version: false, ..Preconditions::ALL })
            }
            _ => (write, Preconditions::ALL),
        }
    }

    /// The result of `admit`, except in mutations.
    fn decide(&mut self, mut seen: Observation) -> AdmitStep {
        let is_dry_run = self.create.is_dry_run && self.mutation != Some(Mutation::DryRunWrites);
        let request = abstraction::request(Create { is_dry_run, ..self.create }, self.uid);
        match (self.mutation, &mut seen) {
            (Some(Mutation::OursNeedsNoWrite), Observation::Holder { claim, .. })
                if claim.holder == request.conversation =>
            {
                return AdmitStep::Decide(Decision::Allow);
            }
            (Some(Mutation::UndecidedReplaced), Observation::Holder { claim, .. })
                if claim.holder != request.conversation =>
            {
                claim.admissions.clear();
            }
            (Some(Mutation::DenialWithoutRead), Observation::Claim(Some(claim)))
                if claim.holder != request.conversation =>
            {
                let uid = claim.admissions[0].uid.clone();
                let stored = Conversation {
                    uid: abstraction::number(&uid),
                    needs_binding: true,
                    is_hidden: false,
                    bound: None,
                    version: 0,
                };
                seen = Observation::Holder {
                    claim: claim.clone(),
                    live: Some(stored.into()),
                    unchanged_for: Duration::MAX,
                };
            }
            (Some(Mutation::DenialWithoutRecord), Observation::Holder { claim, live: Some(live), .. })
                if claim.holder != request.conversation && live.needed_binding.is_some() =>
            {
                return AdmitStep::Decide(Decision::Deny { holder: claim.holder.clone(), live: live.clone() });
            }
            _ => {}
        }
        let has_claim = matches!(&seen, Observation::Claim(Some(claim)) if claim.admits(&request.uid));
        let step = admit(&request, seen, Time::EPOCH, GRACE_PERIOD);
        match (self.mutation, step) {
            (Some(Mutation::WaitAllows), AdmitStep::Wait(_)) => AdmitStep::Decide(Decision::Allow),
            (_, step) => {
                if has_claim && step == AdmitStep::Decide(Decision::Allow) {
                    (self.cover)(Coverage::RepeatedReview);
                }
                step
            }
        }
    }

    /// Checks I4 against the stored objects at the time of the decision, right after the step that it is based on.
    fn check(&mut self, step: Step, answer: Decision) -> Result<Progress, StepViolation> {
        let read = match step {
            Step::ReadHolder(claim) => Some(claim.holder),
            Step::ReadName(true) => Some(self.create.place),
            _ => None,
        };
        let is_holder = |holder: Place| {
            let stored = self.etcd.stored(holder).filter(|stored| stored.needs_binding);
            matches!((step, stored), (Step::ReadHolder(claim), Some(stored)) if claim.admissions.has(stored.uid))
        };
        match &answer {
            Decision::Allow if self.create.is_dry_run => (self.cover)(Coverage::DryRunAllowed),
            Decision::Allow if self.counts && !self.etcd.records(self.create.place, self.uid) => {
                return Err(StepViolation::AllowedWithoutClaim);
            }
            Decision::Deny { holder, .. } => {
                let holder = abstraction::place(holder);
                if read != Some(holder) || !is_holder(holder) || holder == self.create.place {
                    return Err(StepViolation::DeniedWithoutHolder);
                }
                (self.cover)(if self.create.is_dry_run { Coverage::DryRunDenied } else { Coverage::Denied });
            }
            Decision::AlreadyExists => {
                if read != Some(self.create.place) || self.etcd.stored(self.create.place).is_none() {
                    return Err(StepViolation::DeniedWithoutHolder);
                }
                (self.cover)(match step {
                    Step::ReadName(_) => Coverage::NameRead,
                    _ => Coverage::AlreadyExists,
                });
            }
            Decision::AllowWaiting if !self.create.waits => return Err(StepViolation::AllowedWithoutClaim),
            Decision::AllowWaiting => (self.cover)(Coverage::AllowedWaiting),
            Decision::Allow | Decision::Undecided(_) => {}
        }
        Ok(Progress::Answered(answer))
    }
}
