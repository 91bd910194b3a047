//! The messages that this replica has delivered a short time ago, so that a repeated one is not delivered again. Their number is bounded.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a message is remembered.
const TTL: Duration = Duration::from_mins(15);
/// The maximum number of messages that are remembered. Above it, the oldest is forgotten.
const MAX: usize = 100_000;

/// The keys of delivered messages.
#[derive(Debug)]
pub struct Delivered<K>(Mutex<Keys<K>>);

#[derive(Debug)]
struct Keys<K> {
    known: HashSet<K>,
    in_order: VecDeque<(Instant, K)>,
}

impl<K> Default for Delivered<K> {
    fn default() -> Self {
        Self(Mutex::new(Keys { known: HashSet::new(), in_order: VecDeque::new() }))
    }
}

impl<K: Eq + Hash + Clone> Delivered<K> {
    fn lock(&self) -> MutexGuard<'_, Keys<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the message of this key was delivered.
    pub fn contains(&self, key: &K, now: Instant) -> bool {
        let mut keys = self.lock();
        keys.forget(now, MAX);
        keys.known.contains(key)
    }

    /// The message of this key was delivered.
    pub fn insert(&self, key: K, now: Instant) {
        let mut keys = self.lock();
        if keys.known.insert(key.clone()) {
            keys.forget(now, MAX - 1);
            keys.in_order.push_back((now, key));
        }
    }
}

impl<K: Eq + Hash> Keys<K> {
    fn forget(&mut self, now: Instant, max: usize) {
        while self.in_order.len() > max
            || self.in_order.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= TTL)
        {
            let Some((_, key)) = self.in_order.pop_front() else { return };
            self.known.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_forgotten_after_its_ttl() {
        let (delivered, now) = (Delivered::default(), Instant::now());
        delivered.insert("a", now);
        delivered.insert("a", now + TTL / 2);
        assert!(delivered.contains(&"a", now + TTL - Duration::from_secs(1)));
        assert!(!delivered.contains(&"a", now + TTL) && !delivered.contains(&"b", now));
        assert!(delivered.lock().known.is_empty());
    }

    #[test]
    fn number_of_messages_is_bounded() {
        let (delivered, now) = (Delivered::default(), Instant::now());
        for number in 0..=MAX {
            delivered.insert(number, now);
        }
        assert!(!delivered.contains(&0, now) && delivered.contains(&1, now) && delivered.contains(&MAX, now));
        let keys = delivered.lock();
        assert_eq!((keys.known.len(), keys.in_order.len()), (MAX, MAX));
    }
}
