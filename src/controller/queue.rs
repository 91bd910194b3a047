//! What is to be done, and when: no piece of work twice at once, failures with backoff, deadlines in the order in which they
//! are due. It must not know what the work is.

use crate::api::{ConversationReference, Time};
use crate::core::binding::BindingName;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// A piece of work.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Bring a conversation's status up to date.
    Conversation(Arc<ConversationReference>),
    /// See whether a claim is to be released.
    Claim(BindingName),
}

/// The work of one leader.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Task>,
    /// What stands in `waiting`.
    queued: HashSet<Task>,
    /// What is under way, and whether it was asked for again meanwhile.
    under_way: HashMap<Task, bool>,
    /// What is to be looked at again some time from now.
    delayed: BTreeSet<(Instant, Task)>,
    /// When the state of a conversation will change by itself.
    deadlines: BTreeSet<(Time, Arc<ConversationReference>)>,
    deadline_of: HashMap<Arc<ConversationReference>, Time>,
    /// How often in a row a task has failed.
    failures: HashMap<Task, u32>,
}

impl Queue {
    /// Asks for `task`, once: also when it is under way, since what it rests on may have changed since it began.
    pub fn add(&mut self, task: Task) {
        if let Some(again) = self.under_way.get_mut(&task) {
            *again = true;
        } else if self.queued.insert(task.clone()) {
            self.waiting.push_back(task);
        }
    }

    /// Asks for `task` at `instant`.
    pub fn add_at(&mut self, task: Task, instant: Instant) {
        self.delayed.insert((instant, task));
    }

    /// The next task to begin; it counts as under way until [`Queue::done`].
    pub fn next(&mut self) -> Option<Task> {
        let task = self.waiting.pop_front()?;
        self.queued.remove(&task);
        self.under_way.insert(task.clone(), false);
        Some(task)
    }

    /// Whether `task` has begun and not ended.
    pub fn is_under_way(&self, task: &Task) -> bool {
        self.under_way.contains_key(task)
    }

    /// `task` has ended.
    pub fn done(&mut self, task: &Task) {
        if self.under_way.remove(task) == Some(true) {
            self.add(task.clone());
        }
    }

    /// `task` has come out well: the next failure is the first.
    pub fn succeeded(&mut self, task: &Task) {
        self.failures.remove(task);
    }

    /// Asks for `task` again after a while, a longer one after each failure in a row.
    pub fn retry(&mut self, task: Task, now: Instant) {
        let failures = self.failures.entry(task.clone()).or_default();
        let backoff = FIRST_BACKOFF.saturating_mul(1 << (*failures).min(16)).min(LONGEST_BACKOFF);
        *failures += 1;
        self.delayed.insert((now + backoff, task));
    }

    /// From now on the conversation is asked for at `deadline`, or at no time.
    pub fn set_deadline(&mut self, place: &Arc<ConversationReference>, deadline: Option<Time>) {
        let before = match deadline {
            Some(deadline) => self.deadline_of.insert(place.clone(), deadline),
            None => self.deadline_of.remove(place),
        };
        if before != deadline {
            if let Some(before) = before {
                self.deadlines.remove(&(before, place.clone()));
            }
            if let Some(deadline) = deadline {
                self.deadlines.insert((deadline, place.clone()));
            }
        }
    }

    /// Takes up what is due.
    pub fn wake(&mut self, now: Time, monotonic: Instant) {
        while let Some((instant, _)) = self.delayed.first()
            && *instant <= monotonic
            && let Some((_, task)) = self.delayed.pop_first()
        {
            self.add(task);
        }
        while let Some((deadline, _)) = self.deadlines.first()
            && *deadline <= now
            && let Some((_, place)) = self.deadlines.pop_first()
        {
            self.deadline_of.remove(&place);
            self.add(Task::Conversation(place));
        }
    }

    /// How long until something is due; nothing where nothing is set.
    pub fn next_wake(&self, now: Time, monotonic: Instant) -> Option<Duration> {
        let delayed = self.delayed.first().map(|(instant, _)| instant.saturating_duration_since(monotonic));
        let deadline =
            self.deadlines.first().map(|(deadline, _)| Duration::from_millis(deadline.milliseconds_since(now)));
        delayed.into_iter().chain(deadline).min()
    }

    /// Forgets everything but what is under way.
    pub fn clear(&mut self) {
        let under_way = std::mem::take(&mut self.under_way);
        *self = Self { under_way: under_way.into_keys().map(|task| (task, false)).collect(), ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str) -> Task {
        Task::Claim(BindingName::existing(name.to_owned()))
    }

    fn place(name: &str) -> Arc<ConversationReference> {
        Arc::new(ConversationReference { namespace: "sales".into(), name: name.into() })
    }

    #[test]
    fn a_task_waits_once_and_in_its_turn() {
        let mut queue = Queue::default();
        for name in ["a", "b", "a"] {
            queue.add(task(name));
        }
        assert_eq!([queue.next(), queue.next(), queue.next()], [Some(task("a")), Some(task("b")), None]);
    }

    #[test]
    fn a_task_that_is_asked_for_while_it_is_under_way_runs_again_afterwards() {
        let mut queue = Queue::default();
        queue.add(task("a"));
        assert_eq!(queue.next(), Some(task("a")));
        queue.add(task("a"));
        assert_eq!(queue.next(), None, "twice at once");
        queue.done(&task("a"));
        assert_eq!(queue.next(), Some(task("a")));
        queue.done(&task("a"));
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn failures_in_a_row_wait_longer_each_time_and_a_success_ends_the_row() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..12 {
            queue.retry(task("a"), now);
            waits.push(queue.next_wake(Time::EPOCH, now).unwrap());
            queue.wake(Time::EPOCH, now + LONGEST_BACKOFF);
            assert_eq!(queue.next(), Some(task("a")));
            queue.done(&task("a"));
        }
        assert_eq!(waits[0], FIRST_BACKOFF);
        assert_eq!(waits[1], FIRST_BACKOFF * 2);
        assert_eq!(waits[11], LONGEST_BACKOFF);
        queue.succeeded(&task("a"));
        queue.retry(task("a"), now);
        assert_eq!(queue.next_wake(Time::EPOCH, now), Some(FIRST_BACKOFF));
    }

    #[test]
    fn a_deadline_that_moves_is_due_once() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set_deadline(&place("a"), Some(Time::EPOCH.after(1_000)));
        queue.set_deadline(&place("b"), Some(Time::EPOCH.after(2_000)));
        queue.set_deadline(&place("a"), Some(Time::EPOCH.after(3_000)));
        assert_eq!(queue.next_wake(Time::EPOCH, now), Some(Duration::from_secs(2)));
        queue.wake(Time::EPOCH.after(1_999), now);
        assert_eq!(queue.next(), None);
        queue.wake(Time::EPOCH.after(3_000), now);
        let due = [queue.next(), queue.next(), queue.next()];
        assert_eq!(due, [Some(Task::Conversation(place("b"))), Some(Task::Conversation(place("a"))), None]);
        queue.set_deadline(&place("c"), Some(Time::EPOCH.after(4_000)));
        queue.set_deadline(&place("c"), None);
        assert_eq!(queue.next_wake(Time::EPOCH, now), None);
    }

    #[test]
    fn ten_years_are_waited_for() {
        let mut queue = Queue::default();
        queue.set_deadline(&place("a"), Some(Time::EPOCH.after(315_360_000_000)));
        let wait = queue.next_wake(Time::EPOCH, Instant::now());
        assert_eq!(wait, Some(Duration::from_hours(87_600)));
    }
}
