//! The protocol of claims as a model for stateright: an API server with its watches, webhooks, leaders, and clients.
//!
//! What is decided is decided by `admit`, `release` and `adopt` of `switchboard::core::claim`, the functions that the operator
//! runs. The model has two places, alice and bob, which want one binding; how much happens is bounded by the configuration.

mod etcd;
mod leader;
pub mod patience;
mod webhook;
mod words;

pub use webhook::Create;

use etcd::Etcd;
use leader::{Job, Leader, Look, Task, World};
use stateright::{Model, Property};
use std::sync::atomic::{AtomicU64, Ordering};
use switchboard::core::claim::Answer;
use webhook::{Attempt, Phase, Progress, Review, Step};
use words::{Place, Uids, Version};

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
}

/// What must not happen, of a single step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// I4: an answer says that another one holds the binding, or exists, and none was read that does.
    RefusedWithoutHolder,
    /// I4: an answer allows a create that no claim records.
    AllowedWithoutClaim,
    /// I5.
    DryRunWrote,
}

/// What a configuration is there to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saw {
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

impl Saw {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
    /// Tasks run only when the index asked for them, as they do; otherwise at any time. Rest means more with it.
    pub is_queued: bool,
    pub has_statuses: bool,
    pub mutation: Option<Mutation>,
}

/// A configuration being checked.
#[derive(Debug)]
pub struct ClaimsModel {
    pub configuration: Configuration,
    saw: Vec<AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World_ {
    etcd: Etcd,
    attempts: Vec<Attempt>,
    leaders: Vec<Leader>,
    left: Budget,
    flaw: Option<Flaw>,
}
