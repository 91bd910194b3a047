//! The UIDs of conversations that are gone. They are kept for some minutes.

use super::keys::Uid;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How long a UID is kept, so that a claim that is observed later counts its create as decided.
const TOMBSTONE_TTL: Duration = Duration::from_mins(10);

/// UIDs that a watch has shown and that are gone.
#[derive(Debug, Default)]
pub struct Tombstones {
    since: HashMap<Uid, Instant>,
    in_order: VecDeque<(Instant, Uid)>,
}

impl Tombstones {
    /// Adds `uid`, and removes the UIDs that have expired.
    pub fn insert(&mut self, uid: Uid, now: Instant) {
        let is_over = |(since, _): &mut (Instant, Uid)| now.saturating_duration_since(*since) >= TOMBSTONE_TTL;
        while let Some((since, uid)) = self.in_order.pop_front_if(is_over) {
            if self.since.get(&uid) == Some(&since) {
                self.since.remove(&uid);
            }
        }
        if !self.since.contains_key(&uid) {
            self.since.insert(uid.clone(), now);
            self.in_order.push_back((now, uid));
        }
    }

    /// Whether `uid` is known to be gone.
    pub fn contains(&self, uid: &Uid) -> bool {
        self.since.contains_key(uid)
    }

    /// Removes `uid`, which no claim records any more.
    pub fn remove(&mut self, uid: &Uid) {
        self.since.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_expire_after_their_ttl() {
        let (mut tombstones, now) = (Tombstones::default(), Instant::now());
        tombstones.insert("a".into(), now);
        tombstones.insert("a".into(), now + TOMBSTONE_TTL / 2);
        tombstones.insert("b".into(), now + TOMBSTONE_TTL / 2);
        tombstones.insert("c".into(), now + TOMBSTONE_TTL);
        let mut known: Vec<_> = tombstones.since.keys().map(Uid::to_string).collect();
        known.sort();
        assert_eq!(known, ["b", "c"]);
        assert_eq!(tombstones.in_order.len(), 2);
    }
}
