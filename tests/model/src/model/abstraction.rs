//! The mapping between the small numbers of the model and the types of `switchboard::core::claim`. It decides nothing.

use super::webhook::Create;
use std::sync::LazyLock;
use switchboard::api::{Admission, Channel, ConversationReference, OnConflict, State, Time};
use switchboard::core::binding::{Binding, BindingName};
use switchboard::core::claim::{self, LiveConversation, Request};
use switchboard::core::inbound::Recipient;

/// The namespace and name of a conversation: 0 is alice, 1 is bob.
pub type Place = u8;

/// A resourceVersion, or the UID of a claim. Only equality is meaningful.
pub type Version = u8;

static BINDING: LazyLock<Binding> =
    LazyLock::new(|| Binding::parse(Channel::Sms, "+15558675310", "+15017122661").unwrap());
static NAME: LazyLock<BindingName> = LazyLock::new(|| BINDING.name());

/// A set of UIDs of conversations. The UID of a conversation is the number of its create.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uids(u8);

impl Uids {
    pub const NONE: Self = Self(0);

    pub fn one(uid: u8) -> Self {
        Self(1 << uid)
    }

    pub fn has(self, uid: u8) -> bool {
        self.0 & (1 << uid) != 0
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |uid| self.has(*uid))
    }

    /// Every subset, the empty one first.
    pub fn subsets(self) -> impl Iterator<Item = Self> {
        (0..=self.0).filter(move |bits| bits & !self.0 == 0).map(Self)
    }
}

/// An AddressBinding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    pub uid: Version,
    pub version: Version,
    pub holder: Place,
    pub admissions: Uids,
    pub is_being_deleted: bool,
}

/// A stored conversation, reduced to the fields that the protocol uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conversation {
    pub uid: u8,
    /// It is open, has a contact and is not being deleted.
    pub needs_binding: bool,
    /// Its status says Closed, so the watch does not show it.
    pub is_hidden: bool,
    /// Its condition Bound. Always `None` in configurations without statuses.
    pub bound: Option<bool>,
    pub version: Version,
}

/// A write of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    Create { holder: Place, admissions: Uids },
    Replace { uid: Version, version: Version, holder: Place, admissions: Uids },
    Delete { uid: Version, version: Version },
}

pub fn reference(place: Place) -> ConversationReference {
    ConversationReference { namespace: "sales".to_owned(), name: ["alice", "bob"][usize::from(place)].to_owned() }
}

pub fn recipient(place: Place, uid: u8) -> Recipient {
    let conversation = reference(place);
    Recipient { conversation, uid: uid.to_string(), state: State::Active, participants: Vec::new() }
}

pub fn place(reference: &ConversationReference) -> Place {
    u8::from(reference.name == "bob")
}

pub fn number(word: &str) -> u8 {
    word.parse().unwrap()
}

fn admissions(uids: Uids) -> Vec<Admission> {
    uids.iter().map(|uid| Admission { uid: uid.to_string(), time: Time::EPOCH }).collect()
}

fn uids(admissions: &[Admission]) -> Uids {
    admissions.iter().fold(Uids::NONE, |uids, admission| uids.and(Uids::one(number(&admission.uid))))
}

pub fn request(create: Create, uid: u8) -> Request {
    Request {
        binding: BINDING.clone(),
        conversation: reference(create.place),
        uid: uid.to_string(),
        is_server_side_apply: create.is_server_side_apply,
        // A name that is not read is one that the API server generated, or one that its cache does not show yet.
        has_generated_name: !create.reads_name,
        on_conflict: if create.waits { OnConflict::Wait } else { OnConflict::Refuse },
        is_dry_run: create.is_dry_run,
    }
}

impl From<Claim> for claim::Claim {
    fn from(claim: Claim) -> Self {
        Self {
            binding: BINDING.clone(),
            name: NAME.clone(),
            uid: claim.uid.to_string(),
            resource_version: claim.version.to_string(),
            is_being_deleted: claim.is_being_deleted,
            holder: reference(claim.holder),
            admissions: admissions(claim.admissions),
        }
    }
}

impl From<&claim::Claim> for Claim {
    fn from(claim: &claim::Claim) -> Self {
        Self {
            uid: number(&claim.uid),
            version: number(&claim.resource_version),
            holder: place(&claim.holder),
            admissions: uids(&claim.admissions),
            is_being_deleted: claim.is_being_deleted,
        }
    }
}

impl From<Conversation> for LiveConversation {
    fn from(conversation: Conversation) -> Self {
        Self {
            uid: conversation.uid.to_string(),
            needed_binding: conversation.needs_binding.then(|| NAME.clone()),
            state: if conversation.needs_binding { State::Active } else { State::Closed },
            participants: Vec::new(),
            manager: None,
        }
    }
}

impl From<&claim::Write> for Write {
    fn from(write: &claim::Write) -> Self {
        match write {
            claim::Write::Create { holder, admissions } => {
                Self::Create { holder: place(holder), admissions: uids(admissions) }
            }
            claim::Write::Replace { uid, resource_version, holder, admissions } => Self::Replace {
                uid: number(uid),
                version: number(resource_version),
                holder: place(holder),
                admissions: uids(admissions),
            },
            claim::Write::Delete { uid, resource_version } => {
                Self::Delete { uid: number(uid), version: number(resource_version) }
            }
        }
    }
}
