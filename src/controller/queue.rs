//! A work queue modelled on client-go's workqueue. No key is processed by two jobs at the same time. Failed keys are retried with
//! backoff. Due keys and new keys take turns, so that neither delays the other; keys in the background are taken one at a time, if no
//! other key waits. The queue is generic over its keys.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::time::Duration;
use tokio::time::Instant;

/// The capacity that an empty queue retains, so that a burst does not hold memory forever.
const RETAINED_CAPACITY: usize = 1024;

/// The maximum number of keys of the background lane that are in progress at the same time.
const MAX_BACKGROUND: usize = 1;

/// The lane in which a key waits, in ascending order of urgency. A waiting key can move to a more urgent lane only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// Keys that can wait for all others. A key is taken from this lane only if the other lanes are empty.
    Background,
    /// Keys that are due, and the work that a new leader finds. This lane and the next one take turns, so that a long one does not delay
    /// the other.
    Due,
    /// Keys added because of an event.
    New,
}

/// How a failed key is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backoff {
    /// The same request may succeed later: the API server could not be reached, was busy, or failed.
    Transient,
    /// The API server rejected the request. A retry can succeed after the object has changed, which a watch event reports, or after a
    /// role, a policy or a schema has changed, which nothing reports.
    Refused,
}

impl Backoff {
    /// The delay after the first failure, and the maximum delay.
    const fn bounds(self) -> (Duration, Duration) {
        match self {
            Self::Transient => (Duration::from_millis(50), Duration::from_secs(30)),
            Self::Refused => (Duration::from_secs(5), Duration::from_mins(5)),
        }
    }
}

/// The work queue of a leader.
#[derive(Debug)]
pub struct Queue<K> {
    new: VecDeque<K>,
    due: VecDeque<K>,
    background: VecDeque<K>,
    /// Whether the last key was taken from the lane of due keys.
    was_due: bool,
    /// The waiting keys and their lanes. If a lane contains a key that has another lane here, the key has moved, and is skipped.
    queued: HashMap<K, Lane>,
    /// The number of waiting keys in the background lane.
    background_waiting: usize,
    /// The keys in progress.
    in_progress: HashMap<K, InProgress>,
    /// The number of keys in progress that were taken from the background lane.
    background_in_progress: usize,
    /// The keys to add at an instant.
    delayed: BTreeSet<(Instant, K)>,
    /// The number of consecutive failures, by key.
    failures: HashMap<K, u32>,
    /// The end of each cooldown, by key and in order.
    cooldowns: HashMap<K, Instant>,
    cooldown_ends: VecDeque<(Instant, K)>,
    /// The seed of this queue's jitter.
    random: RandomState,
}

/// A key in progress.
#[derive(Clone, Copy, Debug)]
struct InProgress {
    /// Whether it was added again meanwhile.
    again: bool,
    /// The lane from which it was taken.
    lane: Lane,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            new: VecDeque::new(),
            due: VecDeque::new(),
            background: VecDeque::new(),
            was_due: false,
            queued: HashMap::new(),
            background_waiting: 0,
            in_progress: HashMap::new(),
            background_in_progress: 0,
            delayed: BTreeSet::new(),
            failures: HashMap::new(),
            cooldowns: HashMap::new(),
            cooldown_ends: VecDeque::new(),
            random: RandomState::new(),
        }
    }
}

impl<K: Clone + Hash + Ord> Queue<K> {
    /// Adds `key` once. A key in progress is processed again afterwards, because its input may have changed since it was taken.
    pub fn add(&mut self, key: K) {
        self.add_to(Lane::New, key);
    }

    /// Adds `key` to the lane of due keys, which does not delay new ones.
    pub fn add_due(&mut self, key: K) {
        self.add_to(Lane::Due, key);
    }

    /// Adds `key` to the background lane, which does not delay the others.
    pub fn add_background(&mut self, key: K) {
        self.add_to(Lane::Background, key);
    }

    fn add_to(&mut self, lane: Lane, key: K) {
        if let Some(in_progress) = self.in_progress.get_mut(&key) {
            in_progress.again = true;
            return;
        }
        let before = self.queued.get(&key).copied();
        if before >= Some(lane) {
            return;
        }
        self.background_waiting -= usize::from(before == Some(Lane::Background));
        self.background_waiting += usize::from(lane == Lane::Background);
        self.queued.insert(key.clone(), lane);
        self.waiting_in(lane).push_back(key);
    }

    fn waiting_in(&mut self, lane: Lane) -> &mut VecDeque<K> {
        match lane {
            Lane::New => &mut self.new,
            Lane::Due => &mut self.due,
            Lane::Background => &mut self.background,
        }
    }

    /// Adds `key` at `instant`, to the lane of due keys.
    pub fn add_at(&mut self, key: K, instant: Instant) {
        self.delayed.insert((instant, key));
    }

    /// Whether the last attempt of `key` failed, so that it is added again after its backoff.
    pub fn has_failed(&self, key: &K) -> bool {
        self.failures.contains_key(key)
    }

    /// Takes the next key, which is in progress until [`Queue::done`].
    pub fn get(&mut self) -> Option<K> {
        let mut lanes = [Lane::Due, Lane::New, Lane::Background];
        if self.was_due {
            lanes.swap(0, 1);
        }
        let allowed = if self.background_in_progress < MAX_BACKGROUND { &lanes[..] } else { &lanes[..2] };
        let Some((lane, key)) = allowed.iter().find_map(|lane| Some((*lane, self.take(*lane)?))) else {
            self.queued.shrink_to(RETAINED_CAPACITY);
            for waiting in [&mut self.new, &mut self.due, &mut self.background] {
                waiting.shrink_to(RETAINED_CAPACITY);
            }
            return None;
        };
        self.was_due = lane == Lane::Due;
        self.background_in_progress += usize::from(lane == Lane::Background);
        self.in_progress.insert(key.clone(), InProgress { again: false, lane });
        Some(key)
    }

    fn take(&mut self, lane: Lane) -> Option<K> {
        while let Some(key) = self.waiting_in(lane).pop_front() {
            if self.queued.get(&key) == Some(&lane) {
                self.queued.remove(&key);
                self.background_waiting -= usize::from(lane == Lane::Background);
                return Some(key);
            }
        }
        None
    }

    /// Whether a key is waiting that [`Queue::get`] returns now.
    pub fn has_waiting(&self) -> bool {
        let allowed = if self.background_in_progress < MAX_BACKGROUND { 0 } else { self.background_waiting };
        self.queued.len() > allowed
    }

    /// The number of keys of the background lane that wait or are in progress.
    pub fn background_len(&self) -> usize {
        self.background_waiting + self.background_in_progress
    }

    /// Whether `key` was taken and is not done.
    pub fn is_in_progress(&self, key: &K) -> bool {
        self.in_progress.contains_key(key)
    }

    /// Marks `key` as processed, and adds it again if it was added meanwhile.
    pub fn done(&mut self, key: &K) {
        if let Some(InProgress { again, lane }) = self.in_progress.remove(key) {
            self.background_in_progress -= usize::from(lane == Lane::Background);
            if again {
                self.add(key.clone());
            }
        }
    }

    /// Resets the backoff of `key` after a success.
    pub fn forget(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// Adds `key` after a delay that doubles with each consecutive failure. The delays have jitter, so that keys that failed at the
    /// same time are not retried at the same time.
    pub fn add_rate_limited(&mut self, key: K, backoff: Backoff, now: Instant) {
        let failures = self.failures.entry(key.clone()).or_default();
        let (first, longest) = backoff.bounds();
        let longest = first.saturating_mul(1 << (*failures).min(16)).min(longest);
        *failures += 1;
        // Between half of the delay and all of it.
        let jitter = self.random.hash_one((&key, *failures)) % 1024;
        let delay = longest / 2 + (longest / 2).mul_f64(f64::from(u32::try_from(jitter).unwrap_or(0)) / 1024.0);
        self.add_at(key, now + delay);
    }

    /// Starts a cooldown of `key` until `instant`; see [`Queue::cooldown_until`]. `instant` must not be earlier than in the previous
    /// call.
    pub fn start_cooldown(&mut self, key: K, instant: Instant) {
        self.cooldowns.insert(key.clone(), instant);
        self.cooldown_ends.push_back((instant, key));
    }

    /// The end of the cooldown of `key`, if it has one. [`Queue::get`] ignores cooldowns; the caller decides what to delay.
    pub fn cooldown_until(&self, key: &K) -> Option<Instant> {
        self.cooldowns.get(key).copied()
    }

    /// Removes the cooldowns that have ended, and adds the delayed keys that are due.
    pub fn promote_due(&mut self, now: Instant) {
        while let Some((_, key)) = self.cooldown_ends.pop_front_if(|(instant, _)| *instant <= now) {
            self.cooldowns.remove(&key);
        }
        while self.delayed.first().is_some_and(|(instant, _)| *instant <= now)
            && let Some((_, key)) = self.delayed.pop_first()
        {
            self.add_due(key);
        }
    }

    /// Time to sleep until a delayed key is due; `None` without delayed keys.
    pub fn next_wake(&self, now: Instant) -> Option<Duration> {
        self.delayed.first().map(|(instant, _)| instant.saturating_duration_since(now))
    }

    /// Removes everything except the keys in progress.
    pub fn clear(&mut self) {
        let mut in_progress = std::mem::take(&mut self.in_progress);
        for in_progress in in_progress.values_mut() {
            in_progress.again = false;
        }
        *self = Self { in_progress, background_in_progress: self.background_in_progress, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::super::deadlines::Deadlines;
    use super::*;
    use crate::api::Time;
    use proptest::prelude::*;

    fn in_turn<K: Clone + Hash + Ord>(queue: &mut Queue<K>) -> Vec<K> {
        std::iter::from_fn(|| queue.get()).collect()
    }

    #[test]
    fn keys_are_taken_once_and_in_order() {
        let mut queue = Queue::default();
        for key in ["a", "b", "a"] {
            queue.add(key);
        }
        assert_eq!([queue.get(), queue.get(), queue.get()], [Some("a"), Some("b"), None]);
    }

    #[test]
    fn key_added_while_in_progress_is_taken_again_afterwards() {
        let mut queue = Queue::default();
        queue.add("a");
        assert_eq!(queue.get(), Some("a"));
        queue.add("a");
        assert_eq!(queue.get(), None, "twice at once");
        queue.done(&"a");
        assert_eq!(queue.get(), Some("a"));
        queue.done(&"a");
        assert_eq!(queue.get(), None);
    }

    #[test]
    fn due_and_new_keys_take_turns() {
        let mut queue = Queue::default();
        for key in ["d1", "d2", "d3"] {
            queue.add_due(key);
        }
        for key in ["n1", "n2"] {
            queue.add(key);
        }
        assert_eq!(in_turn(&mut queue), ["d1", "n1", "d2", "n2", "d3"]);
    }

    #[test]
    fn due_key_added_as_new_moves_ahead_and_is_taken_once() {
        let mut queue = Queue::default();
        for key in ["d1", "d2", "d3"] {
            queue.add_due(key);
        }
        queue.add("d3");
        queue.add_due("d3");
        assert_eq!(in_turn(&mut queue), ["d1", "d3", "d2"]);
        assert!(!queue.has_waiting());
    }

    #[test]
    fn background_key_is_taken_only_if_no_other_waits() {
        let mut queue = Queue::default();
        for key in ["b1", "b2"] {
            queue.add_background(key);
        }
        queue.add_due("d1");
        queue.add("n1");
        assert_eq!(queue.background_len(), 2);
        assert_eq!(in_turn(&mut queue), ["d1", "n1", "b1"], "one at a time");
        assert!(!queue.has_waiting(), "nothing can be taken now");
        queue.add("n2");
        assert!(queue.has_waiting());
        queue.done(&"b1");
        assert_eq!(in_turn(&mut queue), ["n2", "b2"]);
        queue.done(&"b2");
        assert_eq!(queue.background_len(), 0);
    }

    #[test]
    fn background_key_moves_to_the_lane_it_is_added_to() {
        let mut queue = Queue::default();
        for key in ["b1", "b2", "b3"] {
            queue.add_background(key);
        }
        queue.add_due("b3");
        queue.add("b2");
        queue.add_background("b2");
        assert_eq!(queue.background_len(), 1);
        assert_eq!(in_turn(&mut queue), ["b3", "b2", "b1"]);
        queue.add("b1");
        queue.done(&"b1");
        assert_eq!((queue.background_len(), queue.get()), (0, Some("b1")), "its input may have changed");
    }

    #[test]
    fn new_key_waits_for_one_of_ten_thousand_due_keys() {
        let (mut queue, mut deadlines) = (Queue::default(), Deadlines::default());
        for number in 0..10_000 {
            deadlines.set(&number, Some(Time::EPOCH));
        }
        while let Some(number) = deadlines.pop_due(Time::EPOCH) {
            queue.add_due(number);
        }
        let new = 10_000;
        assert_eq!(queue.get(), Some(0));
        for number in 1..100 {
            queue.add(new);
            let two = [queue.get(), queue.get()];
            assert!(two.contains(&Some(new)), "the new key waits for more than one due key");
            assert!(two.contains(&Some(number)), "the due keys wait");
            queue.done(&new);
        }
    }

    #[test]
    fn delay_grows_with_failures_and_success_resets_it() {
        for (backoff, first, longest) in [
            (Backoff::Transient, Duration::from_millis(50), Duration::from_secs(30)),
            (Backoff::Refused, Duration::from_secs(5), Duration::from_mins(5)),
        ] {
            let mut queue = Queue::default();
            let now = Instant::now();
            let mut delays = Vec::new();
            for _ in 0..12 {
                queue.add_rate_limited("a", backoff, now);
                delays.push(queue.next_wake(now).unwrap());
                queue.promote_due(now + longest);
                assert_eq!(queue.get(), Some("a"));
                queue.done(&"a");
            }
            assert!((first / 2..=first).contains(&delays[0]), "{delays:?}");
            assert!((first..=first * 2).contains(&delays[1]), "{delays:?}");
            assert!((longest / 2..=longest).contains(&delays[11]), "{delays:?}");
            queue.forget(&"a");
            queue.add_rate_limited("a", backoff, now);
            assert!(queue.next_wake(now).unwrap() <= first);
        }
    }

    #[test]
    fn keys_that_failed_together_are_retried_apart() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for number in 0..100 {
            queue.add_rate_limited(number.to_string(), Backoff::Transient, now);
        }
        let instants: std::collections::HashSet<_> = queue.delayed.iter().map(|(instant, _)| *instant).collect();
        assert!(instants.len() > 50, "{} different delays", instants.len());
    }

    #[test]
    fn cooldown_ends_at_its_instant() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        queue.start_cooldown("a", later);
        queue.promote_due(now);
        assert_eq!((queue.cooldown_until(&"a"), queue.cooldown_until(&"b")), (Some(later), None));
        queue.promote_due(later);
        assert_eq!(queue.cooldown_until(&"a"), None);
    }

    proptest! {
        #[test]
        fn every_added_key_is_taken_and_never_twice_at_once(
            steps in prop::collection::vec((0_u8..7, 0_u8..5), 0..200),
        ) {
            let (mut queue, mut deadlines) = (Queue::default(), Deadlines::default());
            let mut in_progress = Vec::new();
            // The keys that were added since they were last taken.
            let mut wanted = std::collections::BTreeSet::new();
            for (step, key) in steps {
                match step {
                    0 => { queue.add(key); wanted.insert(key); }
                    1 => { queue.add_due(key); wanted.insert(key); }
                    2 => {
                        deadlines.set(&key, Some(Time::EPOCH));
                        while let Some(key) = deadlines.pop_due(Time::EPOCH) {
                            queue.add_due(key);
                        }
                        wanted.insert(key);
                    }
                    3 => { queue.add_background(key); wanted.insert(key); }
                    4 => if let Some(next) = queue.get() {
                        prop_assert!(!in_progress.contains(&next), "twice at once");
                        prop_assert!(wanted.remove(&next), "it was not added");
                        in_progress.push(next);
                    },
                    _ => if let Some(ended) = in_progress.pop() { queue.done(&ended); },
                }
            }
            for ended in in_progress.drain(..) {
                queue.done(&ended);
            }
            let mut rest = std::collections::BTreeSet::new();
            while let Some(next) = queue.get() {
                queue.done(&next);
                rest.insert(next);
            }
            prop_assert_eq!(rest, wanted);
            prop_assert_eq!((queue.background_len(), queue.has_waiting()), (0, false));
        }
    }
}
