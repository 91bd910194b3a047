//! The entries of the index. Every replica stores one for each open conversation and each claim, so they are small.

use super::keys::{NamespacedName, ProxyKey, Uid, Version};
use crate::api::{Admission, Channel, ConversationStatus, Time};
use crate::core::binding::{Binding, BindingName};
use crate::core::claim::Claim;
use crate::core::lifecycle::{LifecycleInput, Notice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::hash::{DefaultHasher, Hash, Hasher};
use tokio::time::Instant;

/// A conversation.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its UID.
    pub uid: Uid,
    /// Its resourceVersion.
    pub version: Version,
    /// The input of its lifecycle.
    pub input: LifecycleInput,
    /// Its proxy address, whose defaults apply to it; `None` once it is closed.
    pub proxy: Option<ProxyKey>,
    /// The fingerprint of its stored status, to find out whether a decision changes it.
    pub fingerprint: u64,
    /// The number of the last list that contained it.
    pub list: u32,
    /// Whether a newer version is stored, which the watch has yet to show: its status was written, or a write met that version.
    pub awaiting_watch: bool,
    /// Whether the API server refused to write its status on this version.
    pub is_refused: bool,
    /// Whether this leader has written its status. No write of an earlier leader can take effect any more.
    pub was_written: bool,
    /// The end of the time in which a write of unknown outcome can still take effect on this version.
    pub in_doubt_until: Option<Instant>,
}

impl Entry {
    /// The entry of a conversation of which nothing else is known.
    pub fn new(uid: Uid, version: Version, input: LifecycleInput, fingerprint: u64, list: u32) -> Self {
        Self {
            uid,
            version,
            input,
            proxy: None,
            fingerprint,
            list,
            awaiting_watch: false,
            is_refused: false,
            was_written: false,
            in_doubt_until: None,
        }
    }

    /// Keeps what `before`, an entry of the same object, knows and the watch does not show.
    pub fn follow(&mut self, before: &Self) {
        if before.uid == self.uid {
            self.was_written = before.was_written;
            if before.version == self.version {
                self.awaiting_watch = before.awaiting_watch;
                self.is_refused = before.is_refused;
                self.in_doubt_until = before.in_doubt_until;
            }
        }
    }
}

/// A conversation that cannot be decoded.
#[derive(Debug)]
pub struct InvalidEntry {
    /// Its UID.
    pub uid: Uid,
    /// The notice with the error.
    pub notice: Notice,
    /// Whether it is in the watch of the closed conversations.
    pub is_closed: bool,
    /// The number of the last list of its watch that contained it.
    pub list: u32,
}

/// A binding.
#[derive(Debug, Default)]
pub struct BindingEntry {
    /// The conversations that need the binding, or whose status still says that they hold it. The oldest comes first. Usually there
    /// is one.
    pub candidates: Vec<NamespacedName>,
    /// The claim of the binding.
    pub claim: Option<ClaimEntry>,
}

/// A claim. Its binding is stored as text, which takes less memory.
#[derive(Debug)]
pub struct ClaimEntry {
    uid: Uid,
    version: Version,
    is_being_deleted: bool,
    /// The conversation that the claim names.
    pub holder: NamespacedName,
    /// The admitted creates that the claim records.
    pub admissions: Box<[AdmissionEntry]>,
    channel: Channel,
    /// The address of the contact and that of the proxy, separated by a line feed, which neither contains.
    addresses: Box<str>,
    /// The number of the last list that contained it.
    pub list: u32,
}

/// An admitted create.
#[derive(Debug)]
pub struct AdmissionEntry {
    /// The UID of the object to be created.
    pub uid: Uid,
    /// When it was admitted, or recorded.
    pub time: Time,
    /// When this replica first observed it.
    pub since: Instant,
}

impl ClaimEntry {
    /// The entry of `claim`. Admissions that `before` contains keep the instant of their first observation.
    pub fn of(claim: &Claim, before: Option<&Self>, list: u32, now: Instant) -> Self {
        let admissions = claim.admissions.iter().map(|Admission { uid, time }| {
            let uid = Uid::from(uid.as_str());
            let known = before.and_then(|before| before.admissions.iter().find(|known| known.uid == uid));
            AdmissionEntry { since: known.map_or(now, |known| known.since), uid, time: *time }
        });
        Self {
            uid: claim.uid.as_str().into(),
            version: claim.resource_version.as_str().into(),
            is_being_deleted: claim.is_being_deleted,
            holder: NamespacedName::from(&claim.holder),
            admissions: admissions.collect(),
            channel: claim.binding.channel(),
            addresses: format!("{}\n{}", claim.binding.contact(), claim.binding.proxy()).into(),
            list,
        }
    }

    /// The claim as it was observed.
    pub fn claim(&self, name: &BindingName) -> Option<Claim> {
        let (contact, proxy) = self.addresses.split_once('\n')?;
        let admissions = self.admissions.iter();
        Some(Claim {
            binding: Binding::stored(self.channel, contact, proxy).ok()?,
            name: name.clone(),
            uid: self.uid.to_string(),
            resource_version: self.version.to_string(),
            is_being_deleted: self.is_being_deleted,
            holder: self.holder.reference(),
            admissions: admissions.map(|known| Admission { uid: known.uid.to_string(), time: known.time }).collect(),
        })
    }
}

/// The fingerprint of the part of a status that switchboard writes.
#[must_use]
pub fn fingerprint(status: &ConversationStatus) -> u64 {
    let ours = ConversationStatus { reported_activity_time: None, ..status.clone() };
    let mut hasher = DefaultHasher::new();
    ours.hash(&mut hasher);
    hasher.finish()
}

/// The key, UID and resourceVersion of an object.
pub fn identity(metadata: &ObjectMeta) -> Option<(NamespacedName, Uid, Version)> {
    let key = NamespacedName::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
    Some((key, metadata.uid.as_deref()?.into(), metadata.resource_version.as_deref()?.into()))
}
