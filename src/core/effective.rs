//! The state in effect, and the binding that a conversation needs in this state. The webhook, the claims and the controller all use
//! these two definitions.

use crate::api::State;

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

#[cfg(test)]
mod tests {
    use super::*;

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
