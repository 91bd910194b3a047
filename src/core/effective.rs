//! The state in effect, and the binding that a conversation needs in this state. The webhook, the claims and the controller all use
//! these definitions.

use super::binding::{Binding, InvalidBinding};
use crate::api::{Conversation, State};

/// The state in effect: the later of the state that the spec requests and the state that the status reports. A conversation
/// without a status is Active unless its spec requests otherwise.
#[must_use]
pub fn state_in_effect(requested: Option<State>, reported: Option<State>) -> State {
    requested.unwrap_or_default().max(reported.unwrap_or_default())
}

/// The binding that a conversation needs whose state in effect is `state` and whose spec names `binding`. A closed conversation
/// needs none, nor does one that is being deleted: a deletion cannot be taken back, whatever finalizer keeps the object.
#[must_use]
pub fn needed_binding<B>(binding: Option<B>, state: State, is_being_deleted: bool) -> Option<B> {
    binding.filter(|_| state != State::Closed && !is_being_deleted)
}

/// The binding that a stored conversation needs. The spec of a closed one may be edited without effect, so its addresses are not even
/// read.
///
/// # Errors
/// If it is open and its addresses do not form a binding.
pub fn stored_binding(conversation: &Conversation) -> Result<Option<Binding>, InvalidBinding> {
    let Conversation { metadata, spec, status } = conversation;
    let state = state_in_effect(spec.state, status.as_ref().and_then(|status| status.state));
    needed_binding(Some(spec), state, metadata.deletion_timestamp.is_some()).map_or(Ok(None), Binding::of_stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn edited_spec_of_a_closed_conversation_names_no_binding() {
        let binding = |spec_state: Option<State>, state: Option<State>, contact: &str| {
            let conversation = json!({
                "metadata": {"name": "alice"},
                "spec": {"channel": "Chat", "contact": {"address": contact}, "proxy": {"address": "desk"}, "state": spec_state},
                "status": {"state": state},
            });
            stored_binding(&serde_json::from_value(conversation).unwrap())
        };
        let open = Binding::parse(crate::api::Channel::Chat, "alice", "desk").unwrap();
        assert_eq!(binding(None, None, "alice"), Ok(Some(open)));
        assert_eq!(binding(None, Some(State::Inactive), "desk"), Err(InvalidBinding::Equal));
        for (spec_state, state) in [(Some(State::Closed), None), (Some(State::Active), Some(State::Closed))] {
            for contact in ["alice", "desk"] {
                assert_eq!(binding(spec_state, state, contact), Ok(None), "{contact}");
            }
        }
    }

    #[test]
    fn state_in_effect_is_the_later_of_spec_and_status() {
        let (active, inactive, closed) = (Some(State::Active), Some(State::Inactive), Some(State::Closed));
        for (requested, reported, expected) in [
            (None, None, State::Active),
            (active, inactive, State::Inactive),
            (inactive, active, State::Inactive),
            (closed, None, State::Closed),
            (None, closed, State::Closed),
        ] {
            assert_eq!(state_in_effect(requested, reported), expected, "{requested:?}, {reported:?}");
        }
    }

    #[test]
    fn binding_is_needed_until_closed_or_deleted() {
        assert_eq!(needed_binding(Some("b"), State::Active, false), Some("b"));
        assert_eq!(needed_binding(Some("b"), State::Inactive, false), Some("b"));
        assert_eq!(needed_binding(Some("b"), State::Closed, false), None);
        assert_eq!(needed_binding(Some("b"), State::Active, true), None);
        assert_eq!(needed_binding(None::<&str>, State::Active, false), None);
    }
}
