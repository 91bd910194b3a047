//! Deadlines in wall-clock time, at most one for each key, in order.

use crate::api::Time;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

/// The longest sleep while a deadline is set, so that a jump of the wall clock is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(2);

/// Deadlines of keys.
#[derive(Debug)]
pub struct Deadlines<K> {
    in_order: BTreeSet<(Time, K)>,
    by_key: HashMap<K, Time>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self { in_order: BTreeSet::new(), by_key: HashMap::new() }
    }
}

impl<K: Clone + Hash + Ord> Deadlines<K> {
    /// Replaces the deadline of `key`, or removes it.
    pub fn set(&mut self, key: &K, deadline: Option<Time>) {
        let before = match deadline {
            Some(deadline) => self.by_key.insert(key.clone(), deadline),
            None => self.by_key.remove(key),
        };
        if before != deadline {
            if let Some(before) = before {
                self.in_order.remove(&(before, key.clone()));
            }
            if let Some(deadline) = deadline {
                self.in_order.insert((deadline, key.clone()));
            }
        }
    }

    /// Removes the earliest deadline that is due, and returns its key.
    pub fn pop_due(&mut self, now: Time) -> Option<K> {
        self.in_order.first().filter(|(deadline, _)| *deadline <= now)?;
        let (_, key) = self.in_order.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }

    /// Time to sleep until a deadline may be due, at most [`MAX_SLEEP`]; `None` without deadlines.
    pub fn next_wake(&self, now: Time) -> Option<Duration> {
        self.in_order.first().map(|(deadline, _)| deadline.duration_since(now).min(MAX_SLEEP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_YEARS: Duration = Duration::from_hours(87_600);
    const MILLISECOND: Duration = Duration::from_millis(1);

    fn at(second: u64) -> Time {
        Time::EPOCH.after(Duration::from_secs(second))
    }

    fn due(deadlines: &mut Deadlines<&'static str>, now: Time) -> Vec<&'static str> {
        std::iter::from_fn(|| deadlines.pop_due(now)).collect()
    }

    #[test]
    fn moved_deadline_is_due_once() {
        let mut deadlines = Deadlines::default();
        deadlines.set(&"a", Some(at(1)));
        deadlines.set(&"b", Some(at(2)));
        deadlines.set(&"a", Some(at(3)));
        assert_eq!(deadlines.next_wake(Time::EPOCH), Some(Duration::from_secs(2)));
        assert_eq!(due(&mut deadlines, Time::EPOCH.after(Duration::from_millis(1_999))), [""; 0]);
        assert_eq!(due(&mut deadlines, at(3)), ["b", "a"]);
        deadlines.set(&"c", Some(at(4)));
        deadlines.set(&"c", None);
        assert_eq!(deadlines.next_wake(Time::EPOCH), None);
    }

    #[test]
    fn deadline_in_ten_years_is_kept_to_the_millisecond() {
        let mut deadlines = Deadlines::default();
        deadlines.set(&"a", Some(Time::EPOCH.after(TEN_YEARS)));
        let just_before = Time::EPOCH.after(TEN_YEARS).before(MILLISECOND);
        assert_eq!(due(&mut deadlines, just_before), [""; 0]);
        assert_eq!(deadlines.next_wake(just_before), Some(MILLISECOND));
        assert_eq!(due(&mut deadlines, Time::EPOCH.after(TEN_YEARS)), ["a"]);
    }

    #[test]
    fn deadlines_follow_clock_jumps() {
        let mut deadlines = Deadlines::default();
        deadlines.set(&"a", Some(at(100)));
        deadlines.set(&"b", Some(at(200)));
        assert_eq!(deadlines.next_wake(at(50)), Some(MAX_SLEEP), "so that a jump is noticed");
        assert_eq!(deadlines.next_wake(at(99)), Some(Duration::from_secs(1)));
        // The clock was set back: the deadline is farther away by as much.
        assert_eq!(due(&mut deadlines, at(10)), [""; 0]);
        // The clock was set forward beyond both.
        assert_eq!(deadlines.next_wake(at(300)), Some(Duration::ZERO));
        assert_eq!(due(&mut deadlines, at(300)), ["a", "b"]);
        // The clock was set back again: a deadline set since then is due by the new time.
        deadlines.set(&"c", Some(at(20)));
        assert_eq!(due(&mut deadlines, at(19)), [""; 0]);
        assert_eq!(due(&mut deadlines, at(20)), ["c"]);
    }
}
