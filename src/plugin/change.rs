//! The changes of a conversation, computed from the object as it was read. Pure.

use super::cluster::Stored;
use crate::api::State;
use crate::core::effective::state_in_effect;
use serde_json::{Value, json};

/// A change of a conversation.
#[derive(Clone, Debug)]
pub enum Change {
    /// Replaces a participant by another one, in one write.
    Transfer {
        /// The identity that leaves; the only participant, if it is not named.
        from: Option<String>,
        /// The identity that takes over.
        to: String,
    },
    /// Adds participants.
    Assign {
        /// Their identities.
        to: Vec<String>,
    },
    /// Removes these participants, or all.
    Unassign {
        /// Their identities; empty for all.
        from: Vec<String>,
    },
    /// Closes the conversation, which is final.
    Close,
    /// Removes the contact, which releases the binding.
    Release,
}

/// A field of the spec that a change writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `participants`.
    Participants,
    /// `state`.
    State,
    /// `contact`.
    Contact,
}

impl Field {
    /// Its name in the spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Participants => "participants",
            Self::State => "state",
            Self::Contact => "contact",
        }
    }
}

/// The write that makes a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The field of the spec.
    pub field: Field,
    /// Its new value; null removes it.
    pub value: Value,
    /// What the change does, in the past tense.
    pub done: String,
}

/// The outcome of a change that is possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write.
    Edit(Edit),
    /// Nothing is to be written, for this reason.
    Unchanged(String),
}

/// Why a change is not possible, with the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The conversation is closed.
    #[error(
        "conversation {0} is Closed, which is final: the change would have no effect (50377). To continue with the contact, create another \
         conversation"
    )]
    Closed(String),
    /// There is no participant to transfer from.
    #[error("conversation {place} is unassigned; add a participant: `kubectl switchboard assign {place} --to {to}`")]
    Unassigned {
        /// The conversation.
        place: String,
        /// The identity.
        to: String,
    },
    /// It is not clear which participant is to be replaced.
    #[error("conversation {place} has several participants: {participants}. Name the one who leaves: --from")]
    Several {
        /// The conversation.
        place: String,
        /// The identities.
        participants: String,
    },
    /// The named identity does not take part.
    #[error("{identity} is not a participant of conversation {place}; its participants are: {participants}")]
    NoParticipant {
        /// The conversation.
        place: String,
        /// The identity.
        identity: String,
        /// The identities.
        participants: String,
    },
}

impl Change {
    /// The write that makes this change to `stored`.
    ///
    /// # Errors
    /// If it is not possible.
    pub fn of(&self, stored: &Stored) -> Result<Outcome, Refused> {
        let place = stored.place().to_string();
        let spec = &stored.conversation.spec;
        let reported = stored.conversation.status.as_ref().and_then(|status| status.state);
        let is_closed = state_in_effect(spec.state, reported) == State::Closed;
        match self {
            Self::Close if is_closed => Ok(Outcome::Unchanged("it is Closed already".to_owned())),
            Self::Close => Ok(edit(Field::State, json!(State::Closed), "closed")),
            Self::Release if is_closed => Ok(Outcome::Unchanged("it is Closed and holds no binding".to_owned())),
            Self::Release if spec.contact.is_none() => {
                Ok(Outcome::Unchanged("it has no contact and holds no binding".to_owned()))
            }
            Self::Release => Ok(edit(Field::Contact, Value::Null, "released: its contact is removed")),
            Self::Transfer { .. } | Self::Assign { .. } | Self::Unassign { .. } if is_closed => {
                Err(Refused::Closed(place))
            }
            Self::Transfer { from, to } => Participants::of(stored, place).transfer(from.as_deref(), to),
            Self::Assign { to } => Ok(Participants::of(stored, place).assign(to)),
            Self::Unassign { from } => Participants::of(stored, place).unassign(from),
        }
    }
}

fn edit(field: Field, value: Value, done: impl Into<String>) -> Outcome {
    Outcome::Edit(Edit { field, value, done: done.into() })
}

/// The participants of a conversation, as the API server sent them: an entry may have fields that this version does not know.
struct Participants {
    place: String,
    entries: Vec<Value>,
}

impl Participants {
    fn of(stored: &Stored, place: String) -> Self {
        let entries = stored.object.pointer("/spec/participants").and_then(Value::as_array).cloned();
        Self { place, entries: entries.unwrap_or_default() }
    }

    fn identities(&self) -> Vec<&str> {
        self.entries.iter().filter_map(|entry| entry["identity"].as_str()).collect()
    }

    fn position(&self, identity: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry["identity"] == identity)
    }

    fn joined(&self) -> String {
        super::text::listed(&self.identities())
    }

    /// The position of an identity that must take part.
    fn known(&self, identity: &str) -> Result<usize, Refused> {
        self.position(identity).ok_or_else(|| Refused::NoParticipant {
            place: self.place.clone(),
            identity: identity.to_owned(),
            participants: self.joined(),
        })
    }

    fn edit(self, done: String) -> Outcome {
        let value = if self.entries.is_empty() { Value::Null } else { Value::Array(self.entries) };
        edit(Field::Participants, value, done)
    }

    fn transfer(mut self, from: Option<&str>, to: &str) -> Result<Outcome, Refused> {
        let from = match (from, &self.identities()[..]) {
            (Some(from), _) => from.to_owned(),
            (None, []) => return Err(Refused::Unassigned { place: self.place, to: to.to_owned() }),
            (None, [only]) => (*only).to_owned(),
            (None, _) => return Err(Refused::Several { participants: self.joined(), place: self.place }),
        };
        if from == to {
            self.known(to)?;
            return Ok(Outcome::Unchanged(format!("{to} is a participant already")));
        }
        let leaving = self.known(&from)?;
        if self.position(to).is_some() {
            self.entries.remove(leaving);
        } else {
            self.entries[leaving] = json!({"identity": to});
        }
        Ok(self.edit(format!("transferred from {from} to {to}")))
    }

    fn assign(mut self, to: &[String]) -> Outcome {
        let mut added = Vec::new();
        for identity in to {
            if self.position(identity).is_none() {
                self.entries.push(json!({"identity": identity}));
                added.push(identity.clone());
            }
        }
        if added.is_empty() {
            let verb = if to.len() == 1 { "is a participant" } else { "are participants" };
            return Outcome::Unchanged(format!("{} {verb} already", to.join(", ")));
        }
        self.edit(format!("assigned to {}", added.join(", ")))
    }

    fn unassign(mut self, from: &[String]) -> Result<Outcome, Refused> {
        if self.entries.is_empty() {
            return Ok(Outcome::Unchanged("it has no participants".to_owned()));
        }
        for identity in from {
            self.known(identity)?;
        }
        let left = if from.is_empty() { self.joined() } else { from.join(", ") };
        self.entries.retain(|entry| !from.is_empty() && !from.iter().any(|identity| entry["identity"] == *identity));
        let rest = if self.entries.is_empty() { "; it has no participants now" } else { "" };
        Ok(self.edit(format!("unassigned from {left}{rest}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(participants: &[&str], state: &str) -> Stored {
        let participants: Vec<_> = participants.iter().map(|identity| json!({"identity": identity})).collect();
        let object = json!({
            "apiVersion": "switchboard.dev/v1alpha1",
            "kind": "Conversation",
            "metadata": {"name": "alice", "namespace": "sales"},
            "spec": {
                "channel": "Chat", "contact": {"address": "alice"}, "proxy": {"address": "desk"},
                "participants": participants,
            },
            "status": {"state": state},
        });
        Stored { conversation: serde_json::from_value(object.clone()).unwrap(), object }
    }

    fn transfer(from: Option<&str>, to: &str) -> Change {
        Change::Transfer { from: from.map(str::to_owned), to: to.to_owned() }
    }

    fn identities(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The identities after the change, and what it did.
    fn changed(participants: &[&str], change: &Change) -> (Vec<String>, String) {
        let outcome = change.of(&stored(participants, "Active")).unwrap();
        let Outcome::Edit(Edit { field: Field::Participants, value, done }) = outcome else { panic!("{outcome:?}") };
        let entries = value.as_array().cloned().unwrap_or_default();
        (entries.iter().map(|entry| entry["identity"].as_str().unwrap().to_owned()).collect(), done)
    }

    #[test]
    fn transfer_replaces_in_place_and_adds_nobody_twice() {
        for (before, from, to, after) in [
            (&["a"][..], None, "b", &["b"][..]),
            (&["a", "x"], Some("a"), "b", &["b", "x"]),
            (&["a", "b"], Some("a"), "b", &["b"]),
        ] {
            let (found, done) = changed(before, &transfer(from, to));
            assert_eq!((found, done.as_str()), (identities(after), "transferred from a to b"));
        }
    }

    #[test]
    fn transfer_that_is_unclear_is_refused() {
        let refused = |participants: &[&str], from| {
            transfer(from, "b").of(&stored(participants, "Active")).unwrap_err().to_string()
        };
        assert!(refused(&[], None).contains("assign sales/alice --to b"));
        assert!(refused(&["a", "x"], None).contains("several participants: a, x. Name the one who leaves: --from"));
        assert_eq!(
            refused(&["a"], Some("c")),
            "c is not a participant of conversation sales/alice; its participants are: a"
        );
    }

    #[test]
    fn assign_and_unassign_change_only_the_named() {
        let assign = |to: &[&str]| Change::Assign { to: identities(to) };
        let unassign = |from: &[&str]| Change::Unassign { from: identities(from) };
        assert_eq!(changed(&["a"], &assign(&["b", "a"])), (identities(&["a", "b"]), "assigned to b".to_owned()));
        assert_eq!(changed(&["a", "b"], &unassign(&["a"])), (identities(&["b"]), "unassigned from a".to_owned()));
        let (left, done) = changed(&["a", "b"], &unassign(&[]));
        assert_eq!((left, done.as_str()), (vec![], "unassigned from a, b; it has no participants now"));
        assert!(unassign(&["c"]).of(&stored(&["a"], "Active")).is_err());
    }

    #[test]
    fn change_that_is_made_already_writes_nothing() {
        let mut without_contact = stored(&["a"], "Active");
        without_contact.conversation.spec.contact = None;
        for (change, stored, why) in [
            (Change::Assign { to: identities(&["a"]) }, stored(&["a"], "Active"), "a is a participant already"),
            (transfer(None, "a"), stored(&["a"], "Active"), "a is a participant already"),
            (Change::Unassign { from: vec![] }, stored(&[], "Active"), "it has no participants"),
            (Change::Close, stored(&[], "Closed"), "it is Closed already"),
            (Change::Release, stored(&[], "Closed"), "it is Closed and holds no binding"),
            (Change::Release, without_contact, "it has no contact and holds no binding"),
        ] {
            assert_eq!(change.of(&stored), Ok(Outcome::Unchanged(why.to_owned())));
        }
    }

    #[test]
    fn participants_of_a_closed_conversation_do_not_change() {
        for change in
            [transfer(None, "b"), Change::Assign { to: identities(&["b"]) }, Change::Unassign { from: vec![] }]
        {
            assert_eq!(change.of(&stored(&["a"], "Closed")), Err(Refused::Closed("sales/alice".to_owned())));
        }
    }
}
