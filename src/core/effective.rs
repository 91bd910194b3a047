//! The state in effect, and the binding that a conversation holds in this state. The webhook, the claims and the controller all use
//! these two definitions.

use crate::api::State;

/// The state in effect: the later of the state that the spec requests and the state that the status reports. A conversation
/// without a status is Active unless its spec requests otherwise.
#[must_use]
pub fn state_in_effect(requested: Option<State>, reported: Option<State>) -> State {
    requested.unwrap_or_default().max(reported.unwrap_or_default())
}

/// The binding held by a conversation whose state in effect is `state` and whose spec names `binding`. A closed conversation holds
/// none.
#[must_use]
pub fn held_binding<B>(binding: Option<B>, state: State) -> Option<B> {
    binding.filter(|_| state != State::Closed)
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
    fn binding_is_held_until_the_conversation_is_closed() {
        assert_eq!(held_binding(Some("b"), State::Active), Some("b"));
        assert_eq!(held_binding(Some("b"), State::Inactive), Some("b"));
        assert_eq!(held_binding(Some("b"), State::Closed), None);
        assert_eq!(held_binding(None::<&str>, State::Active), None);
    }
}
