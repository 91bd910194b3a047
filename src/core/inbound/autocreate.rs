//! The conversation that a message creates: its spec, its assignment, and the limit on how many there are.

use crate::api::{
    Assignment, AssignmentStrategy, Autocreate, Contact, Conversation, ConversationSpec, Participant, Proxy,
};
use crate::core::binding::Binding;
use ring::digest;
use std::time::Duration;
use tokio::time::Instant;

/// The default of `maxPerMinute`.
const DEFAULT_MAX_PER_MINUTE: u32 = 60;
const MINUTE: Duration = Duration::from_mins(1);

/// The conversation of this name that a message for `binding` creates, with `assignee` as its only participant.
#[must_use]
pub fn conversation(autocreate: &Autocreate, name: &str, binding: &Binding, assignee: Option<&str>) -> Conversation {
    let participants = assignee.map(|identity| vec![Participant { identity: identity.to_owned() }]);
    let spec = ConversationSpec {
        channel: binding.channel(),
        contact: Some(Contact { address: binding.contact().to_string(), display_name: None }),
        proxy: Proxy { address: binding.proxy().to_string() },
        state: None,
        participants,
        timers: None,
        ttl_after_closed: autocreate.ttl_after_closed,
        on_conflict: None,
    };
    let mut conversation = Conversation::new(name, spec);
    conversation.metadata.namespace = Some(autocreate.namespace.clone());
    conversation.metadata.labels = Some(autocreate.labels.clone()).filter(|labels| !labels.is_empty());
    conversation
}

/// The user that a conversation of `contact` is assigned to; `None` if it is unassigned: the strategy says so, or each user has as many
/// open conversations as it may. `open` is the number of open conversations of a user behind the address.
///
/// Among users that are equal otherwise, each contact has an order of its own (rendezvous hashing), which a change of the list disturbs as
/// little as possible.
#[must_use]
pub fn assignee<'a>(assignment: &'a Assignment, contact: &str, open: impl Fn(&str) -> usize) -> Option<&'a str> {
    let Assignment { identities, strategy, max_open_per_identity } = assignment;
    let max = max_open_per_identity.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(0));
    let counted = identities.iter().map(|identity| (identity.as_str(), open(identity)));
    let available = counted.filter(|(_, count)| *count < max);
    let rank = |identity: &str| rank(contact, identity);
    let chosen = match strategy {
        AssignmentStrategy::None => None,
        AssignmentStrategy::Sticky => available.min_by_key(|(identity, _)| rank(identity)),
        AssignmentStrategy::LeastOpen => available.min_by_key(|(identity, count)| (*count, rank(identity))),
    };
    chosen.map(|(identity, _)| identity)
}

/// The rank of a user for a contact. The lowest comes first.
fn rank(contact: &str, identity: &str) -> Vec<u8> {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in [contact, identity] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finish().as_ref().to_vec()
}

/// A limit on how many conversations a ProxyAddress creates: as many as a minute allows at once, and then one as soon as its share of the
/// minute is over.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// The instant at which all of the minute is available again.
    full_at: Instant,
}

impl RateLimit {
    /// A limit of which nothing is used at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Uses one at `now`, if `autocreate` allows it. Returns whether it does.
    pub fn take(&mut self, autocreate: &Autocreate, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + share(autocreate);
        let is_allowed = full_at <= now + MINUTE;
        if is_allowed {
            self.full_at = full_at;
        }
        is_allowed
    }

    /// Gives back one that was taken, because no conversation was created.
    pub fn give_back(&mut self, autocreate: &Autocreate) {
        self.full_at = self.full_at.checked_sub(share(autocreate)).unwrap_or(self.full_at);
    }
}

/// The part of a minute that each conversation uses.
fn share(autocreate: &Autocreate) -> Duration {
    let max = autocreate.max_per_minute.and_then(|max| u32::try_from(max).ok()).unwrap_or(DEFAULT_MAX_PER_MINUTE);
    MINUTE / max.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Channel;
    use std::collections::BTreeMap;

    fn assignment(strategy: AssignmentStrategy, max_open_per_identity: Option<i32>) -> Assignment {
        let identities = (1..=5).map(|number| format!("agent-{number}")).collect();
        Assignment { identities, strategy, max_open_per_identity }
    }

    fn autocreate(max_per_minute: Option<i32>) -> Autocreate {
        Autocreate {
            namespace: "sales".to_owned(),
            labels: BTreeMap::from([("team".to_owned(), "sales".to_owned())]),
            ttl_after_closed: Some("720h".parse().unwrap()),
            max_per_minute,
            assignment: None,
        }
    }

    #[test]
    fn conversation_has_the_binding_and_what_autocreate_says() {
        let binding = Binding::parse(Channel::WhatsApp, "+15558675310", "+15017122661").unwrap();
        let created = conversation(&autocreate(None), "in-x", &binding, Some("agent-7"));
        assert_eq!(Binding::of(&created.spec), Ok(Some(binding.clone())));
        assert_eq!(created.metadata.namespace.as_deref(), Some("sales"));
        assert_eq!(created.metadata.labels.unwrap()["team"], "sales");
        assert_eq!(created.spec.ttl_after_closed, Some("720h".parse().unwrap()));
        assert_eq!(created.spec.participants.unwrap()[0].identity, "agent-7");
        assert!(conversation(&autocreate(None), "in-x", &binding, None).spec.participants.is_none());
    }

    #[test]
    fn sticky_assignee_stays_while_the_list_stays() {
        let sticky = assignment(AssignmentStrategy::Sticky, None);
        let contacts: Vec<String> = (0..1000).map(|number| format!("+1555{number:07}")).collect();
        let mut counts = BTreeMap::<&str, usize>::new();
        for contact in &contacts {
            let chosen = assignee(&sticky, contact, |_| 7).unwrap();
            assert_eq!(assignee(&sticky, contact, str::len), Some(chosen));
            *counts.entry(chosen).or_default() += 1;
        }
        assert!(counts.values().all(|count| (140..260).contains(count)), "{counts:?}");
        // Without one user, only its contacts change.
        let mut fewer = sticky.clone();
        let gone = fewer.identities.remove(2);
        for contact in &contacts {
            let before = assignee(&sticky, contact, |_| 0).unwrap();
            let after = assignee(&fewer, contact, |_| 0).unwrap();
            assert!(before == after || before == gone);
        }
    }

    #[test]
    fn least_open_assignee_has_the_fewest_conversations() {
        let least = assignment(AssignmentStrategy::LeastOpen, None);
        let open = |identity: &str| if identity == "agent-4" { 1 } else { 2 };
        assert_eq!(assignee(&least, "+15558675310", open), Some("agent-4"));
        let of_all: std::collections::BTreeSet<_> =
            (0..100).filter_map(|number| assignee(&least, &number.to_string(), |_| 0)).collect();
        assert_eq!(of_all.len(), 5, "equal users share the contacts");
    }

    #[test]
    fn full_user_gets_nothing_and_strategy_none_assigns_nobody() {
        for strategy in [AssignmentStrategy::LeastOpen, AssignmentStrategy::Sticky] {
            let limited = assignment(strategy, Some(3));
            let open = |identity: &str| if identity == "agent-2" { 2 } else { 3 };
            assert_eq!(assignee(&limited, "+15558675310", open), Some("agent-2"));
            assert_eq!(assignee(&limited, "+15558675310", |_| 3), None);
        }
        assert_eq!(assignee(&assignment(AssignmentStrategy::None, None), "+15558675310", |_| 0), None);
    }

    #[test]
    fn rate_limit_allows_a_minutes_worth_and_recovers_steadily() {
        let (began, autocreate) = (Instant::now(), autocreate(Some(6)));
        let mut limit = RateLimit::new(began);
        let allowed = |limit: &mut RateLimit, now| (0..10).filter(|_| limit.take(&autocreate, now)).count();
        assert_eq!(allowed(&mut limit, began), 6);
        assert_eq!(allowed(&mut limit, began + Duration::from_secs(9)), 0);
        assert_eq!(allowed(&mut limit, began + Duration::from_secs(10)), 1);
        assert_eq!(allowed(&mut limit, began + Duration::from_hours(1)), 6);
        limit.give_back(&autocreate);
        assert_eq!(allowed(&mut limit, began + Duration::from_hours(1)), 1, "no conversation was created");
        let mut unlimited = RateLimit::new(began);
        let default = super::tests::autocreate(None);
        assert_eq!((0..100).filter(|_| unlimited.take(&default, began)).count(), 60);
    }
}
