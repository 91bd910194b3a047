//! What is to be done, and when: no piece of work twice at once, failures with backoff, deadlines in the order in which they
//! are due, and neither what is due nor what is new kept waiting by the other. It must not know what the work is.

use super::keys::NamespacedName;
use crate::api::Time;
use crate::core::binding::BindingName;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::{self, Display, Formatter};
use std::hash::BuildHasher;
use std::time::Duration;
use tokio::time::Instant;

/// A queue that was long and is empty keeps room for no more than this.
const RETAINED_CAPACITY: usize = 1024;

/// The longest sleep while a deadline is set, so that a clock that jumps is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(2);

/// A piece of work.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Bring a conversation's status up to date.
    Conversation(NamespacedName),
    /// See whether a claim is to be released.
    Claim(BindingName),
}

impl Display for Task {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conversation(key) => write!(f, "conversation {key}"),
            Self::Claim(name) => write!(f, "claim {name}"),
        }
    }
}

/// Where a task waits for its turn. The lanes take turns, so that the length of one does not hold up the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// What an event has asked for.
    New,
    /// What is due, and what a new leader finds to do.
    Due,
}

/// Why a piece of work is to be done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backoff {
    /// It was no fault of what was asked: the API server was not reached, was busy, or failed.
    Transient,
    /// The API server does not accept what was asked. It will once the object has changed, which an event tells; or a right, a
    /// policy, a schema, which nobody tells.
    Refused,
}

impl Backoff {
    /// How long to wait after the first failure in a row, and at most.
    const fn bounds(self) -> (Duration, Duration) {
        match self {
            Self::Transient => (Duration::from_millis(50), Duration::from_secs(30)),
            Self::Refused => (Duration::from_secs(5), Duration::from_mins(5)),
        }
    }
}

/// The work of one leader.
#[derive(Debug, Default)]
pub struct Queue {
    new: VecDeque<Task>,
    due: VecDeque<Task>,
    /// Whose turn it was last.
    is_turn_of_due: bool,
    /// What waits, and in which lane: the same task found in the other one has moved.
    queued: HashMap<Task, Lane>,
    /// What is under way, and whether it was asked for again meanwhile.
    under_way: HashMap<Task, bool>,
    /// What is to be looked at again some time from now.
    delayed: BTreeSet<(Instant, Task)>,
    /// When the state of a conversation will change by itself.
    deadlines: BTreeSet<(Time, NamespacedName)>,
    deadline_of: HashMap<NamespacedName, Time>,
    /// How often in a row a task has failed.
    failures: HashMap<Task, u32>,
    /// Until when a task may rest that only follows what keeps changing, in the order in which that is over.
    resting: HashMap<Task, Instant>,
    rests: VecDeque<(Instant, Task)>,
    /// Of this queue, for jitter.
    random: RandomState,
}

impl Queue {
    /// Asks for `task`, once: also when it is under way, since what it rests on may have changed since it began.
    pub fn add(&mut self, task: Task) {
        self.add_to(Lane::New, task);
    }

    /// Asks for `task` as for one that is due. What is new does not wait for it.
    pub fn add_due(&mut self, task: Task) {
        self.add_to(Lane::Due, task);
    }

    fn add_to(&mut self, lane: Lane, task: Task) {
        if let Some(again) = self.under_way.get_mut(&task) {
            *again = true;
            return;
        }
        match self.queued.get(&task) {
            Some(Lane::New) => return,
            Some(Lane::Due) if lane == Lane::Due => return,
            // It waits among what is due, and is overtaken by itself.
            Some(Lane::Due) | None => {}
        }
        self.queued.insert(task.clone(), lane);
        match lane {
            Lane::New => self.new.push_back(task),
            Lane::Due => self.due.push_back(task),
        }
    }

    /// Asks for `task` at `instant`.
    pub fn add_at(&mut self, task: Task, instant: Instant) {
        self.delayed.insert((instant, task));
    }

    /// The next task to begin; it counts as under way until [`Queue::done`].
    pub fn next(&mut self) -> Option<Task> {
        let first = if self.is_turn_of_due { Lane::New } else { Lane::Due };
        let second = if self.is_turn_of_due { Lane::Due } else { Lane::New };
        let taken = self.take(first).map(|task| (first, task)).or_else(|| Some((second, self.take(second)?)));
        let Some((lane, task)) = taken else {
            self.queued.shrink_to(RETAINED_CAPACITY);
            self.new.shrink_to(RETAINED_CAPACITY);
            self.due.shrink_to(RETAINED_CAPACITY);
            return None;
        };
        self.is_turn_of_due = lane == Lane::Due;
        self.under_way.insert(task.clone(), false);
        Some(task)
    }

    fn take(&mut self, lane: Lane) -> Option<Task> {
        let waiting = match lane {
            Lane::New => &mut self.new,
            Lane::Due => &mut self.due,
        };
        while let Some(task) = waiting.pop_front() {
            if self.queued.get(&task) == Some(&lane) {
                self.queued.remove(&task);
                return Some(task);
            }
        }
        None
    }

    /// Whether something waits for its turn.
    pub fn has_waiting(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Whether `task` has begun and not ended.
    pub fn is_in_progress(&self, task: &Task) -> bool {
        self.under_way.contains_key(task)
    }

    /// `task` has ended.
    pub fn done(&mut self, task: &Task) {
        if self.under_way.remove(task) == Some(true) {
            self.add(task.clone());
        }
    }

    /// `task` has come out well: the next failure is the first.
    pub fn forget(&mut self, task: &Task) {
        self.failures.remove(task);
    }

    /// Asks for `task` again after a while, a longer one after each failure in a row. The waits of different tasks differ, so
    /// that what failed together does not come again together.
    pub fn add_rate_limited(&mut self, task: Task, backoff: Backoff, now: Instant) {
        let failures = self.failures.entry(task.clone()).or_default();
        let (first, longest) = backoff.bounds();
        let longest = first.saturating_mul(1 << (*failures).min(16)).min(longest);
        *failures += 1;
        // Between half of it and all of it.
        let jitter = self.random.hash_one((&task, *failures)) % 1024;
        let wait = longest / 2 + (longest / 2).mul_f64(f64::from(u32::try_from(jitter).unwrap_or(0)) / 1024.0);
        self.delayed.insert((now + wait, task));
    }

    /// Lets `task` rest until `instant`; see [`Queue::rests`]. To be called with instants that only move forward.
    pub fn start_cooldown(&mut self, task: Task, instant: Instant) {
        self.resting.insert(task.clone(), instant);
        self.rests.push_back((instant, task));
    }

    /// Until when `task` may rest.
    pub fn cooldown_until(&self, task: &Task) -> Option<Instant> {
        self.resting.get(task).copied()
    }

    /// From now on the conversation is asked for at `deadline`, or at no time.
    pub fn set_deadline(&mut self, key: &NamespacedName, deadline: Option<Time>) {
        let before = match deadline {
            Some(deadline) => self.deadline_of.insert(key.clone(), deadline),
            None => self.deadline_of.remove(key),
        };
        if before != deadline {
            if let Some(before) = before {
                self.deadlines.remove(&(before, key.clone()));
            }
            if let Some(deadline) = deadline {
                self.deadlines.insert((deadline, key.clone()));
            }
        }
    }

    /// Takes up what is due.
    pub fn promote_due(&mut self, now: Time, monotonic: Instant) {
        while let Some((instant, _)) = self.rests.front()
            && *instant <= monotonic
            && let Some((_, task)) = self.rests.pop_front()
        {
            self.resting.remove(&task);
        }
        while let Some((instant, _)) = self.delayed.first()
            && *instant <= monotonic
            && let Some((_, task)) = self.delayed.pop_first()
        {
            self.add_due(task);
        }
        while let Some((deadline, _)) = self.deadlines.first()
            && *deadline <= now
            && let Some((_, key)) = self.deadlines.pop_first()
        {
            self.deadline_of.remove(&key);
            self.add_due(Task::Conversation(key));
        }
    }

    /// How long to sleep until something may be due; nothing where nothing is set.
    pub fn next_wake(&self, now: Time, monotonic: Instant) -> Option<Duration> {
        let delayed = self.delayed.first().map(|(instant, _)| instant.saturating_duration_since(monotonic));
        let deadline =
            self.deadlines.first().map(|(deadline, _)| deadline.duration_since(now));
        let deadline = deadline.map(|wait| wait.min(MAX_SLEEP));
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
    use proptest::prelude::*;

    fn task(name: &str) -> Task {
        Task::Claim(BindingName::existing(name.to_owned()))
    }

    fn key(name: &str) -> NamespacedName {
        NamespacedName::new("sales", name)
    }

    fn in_turn(queue: &mut Queue) -> Vec<Task> {
        std::iter::from_fn(|| queue.next()).collect()
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
    fn what_is_due_and_what_is_new_take_turns() {
        let mut queue = Queue::default();
        for name in ["d1", "d2", "d3"] {
            queue.add_due(task(name));
        }
        for name in ["n1", "n2"] {
            queue.add(task(name));
        }
        assert_eq!(in_turn(&mut queue), ["d1", "n1", "d2", "n2", "d3"].map(task));
    }

    #[test]
    fn what_is_due_and_becomes_new_overtakes_and_runs_once() {
        let mut queue = Queue::default();
        for name in ["d1", "d2", "d3"] {
            queue.add_due(task(name));
        }
        queue.add(task("d3"));
        queue.add_due(task("d3"));
        assert_eq!(in_turn(&mut queue), ["d1", "d3", "d2"].map(task));
        assert!(!queue.has_waiting());
    }

    #[test]
    fn what_is_new_waits_for_one_of_ten_thousand_that_are_due_at_once() {
        let mut queue = Queue::default();
        for number in 0..10_000 {
            queue.set_deadline(&key(&format!("c{number:05}")), Some(Time::EPOCH));
        }
        queue.promote_due(Time::EPOCH, Instant::now());
        assert_eq!(queue.next(), Some(Task::Conversation(key("c00000"))));
        for number in 1..100 {
            queue.add(task("new"));
            let two = [queue.next(), queue.next()];
            assert!(two.contains(&Some(task("new"))), "the new one waits for more than one");
            assert!(two.contains(&Some(Task::Conversation(key(&format!("c{number:05}"))))), "the due ones wait");
            queue.done(&task("new"));
        }
    }

    #[test]
    fn failures_in_a_row_wait_longer_each_time_and_a_success_ends_the_row() {
        for (backoff, first, longest) in [
            (Backoff::Transient, Duration::from_millis(50), Duration::from_secs(30)),
            (Backoff::Refused, Duration::from_secs(5), Duration::from_mins(5)),
        ] {
            let mut queue = Queue::default();
            let now = Instant::now();
            let mut waits = Vec::new();
            for _ in 0..12 {
                queue.add_rate_limited(task("a"), backoff, now);
                waits.push(queue.next_wake(Time::EPOCH, now).unwrap());
                queue.promote_due(Time::EPOCH, now + longest);
                assert_eq!(queue.next(), Some(task("a")));
                queue.done(&task("a"));
            }
            assert!((first / 2..=first).contains(&waits[0]), "{waits:?}");
            assert!((first..=first * 2).contains(&waits[1]), "{waits:?}");
            assert!((longest / 2..=longest).contains(&waits[11]), "{waits:?}");
            queue.forget(&task("a"));
            queue.add_rate_limited(task("a"), backoff, now);
            assert!(queue.next_wake(Time::EPOCH, now).unwrap() <= first);
        }
    }

    #[test]
    fn what_failed_together_does_not_come_again_together() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for number in 0..100 {
            queue.add_rate_limited(task(&number.to_string()), Backoff::Transient, now);
        }
        let instants: std::collections::HashSet<_> = queue.delayed.iter().map(|(instant, _)| *instant).collect();
        assert!(instants.len() > 50, "{} different waits", instants.len());
    }

    #[test]
    fn a_rest_is_over_when_it_is() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        queue.start_cooldown(task("a"), later);
        queue.promote_due(Time::EPOCH, now);
        assert_eq!((queue.cooldown_until(&task("a")), queue.cooldown_until(&task("b"))), (Some(later), None));
        queue.promote_due(Time::EPOCH, later);
        assert_eq!(queue.cooldown_until(&task("a")), None);
    }

    #[test]
    fn a_deadline_that_moves_is_due_once() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set_deadline(&key("a"), Some(Time::EPOCH.after(Duration::from_secs(1))));
        queue.set_deadline(&key("b"), Some(Time::EPOCH.after(Duration::from_secs(2))));
        queue.set_deadline(&key("a"), Some(Time::EPOCH.after(Duration::from_secs(3))));
        assert_eq!(queue.next_wake(Time::EPOCH, now), Some(Duration::from_secs(2)));
        queue.promote_due(Time::EPOCH.after(Duration::from_millis(1_999)), now);
        assert_eq!(queue.next(), None);
        queue.promote_due(Time::EPOCH.after(Duration::from_secs(3)), now);
        let due = [queue.next(), queue.next(), queue.next()];
        assert_eq!(due, [Some(Task::Conversation(key("b"))), Some(Task::Conversation(key("a"))), None]);
        queue.set_deadline(&key("c"), Some(Time::EPOCH.after(Duration::from_secs(4))));
        queue.set_deadline(&key("c"), None);
        assert_eq!(queue.next_wake(Time::EPOCH, now), None);
    }

    #[test]
    fn ten_years_are_waited_for() {
        let (mut queue, monotonic) = (Queue::default(), Instant::now());
        let ten_years = Duration::from_hours(87_600);
        queue.set_deadline(&key("a"), Some(Time::EPOCH.after(ten_years)));
        queue.promote_due(Time::EPOCH.after(ten_years - Duration::from_millis(1)), monotonic);
        assert_eq!(queue.next(), None);
        assert_eq!(queue.next_wake(Time::EPOCH.after(ten_years - Duration::from_millis(1)), monotonic), Some(Duration::from_millis(1)));
        queue.promote_due(Time::EPOCH.after(ten_years), monotonic);
        assert_eq!(queue.next(), Some(Task::Conversation(key("a"))));
    }

    #[test]
    fn a_clock_that_jumps_forward_makes_due_and_one_that_jumps_back_makes_nothing_late() {
        let (mut queue, monotonic) = (Queue::default(), Instant::now());
        let at = |second: u64| Time::EPOCH.after(Duration::from_secs(second));
        queue.set_deadline(&key("a"), Some(at(100)));
        queue.set_deadline(&key("b"), Some(at(200)));
        assert_eq!(queue.next_wake(at(50), monotonic), Some(MAX_SLEEP), "so that a jump is noticed");
        assert_eq!(queue.next_wake(at(99), monotonic), Some(Duration::from_secs(1)));
        // It was set back: the deadline is farther away by as much.
        queue.promote_due(at(10), monotonic);
        assert_eq!(queue.next(), None);
        // It was set forward beyond both.
        assert_eq!(queue.next_wake(at(300), monotonic), Some(Duration::ZERO));
        queue.promote_due(at(300), monotonic);
        assert_eq!(in_turn(&mut queue), [key("a"), key("b")].map(Task::Conversation));
        // And back once more: what was set since then is due at its time by the clock of then.
        queue.set_deadline(&key("c"), Some(at(20)));
        queue.promote_due(at(19), monotonic);
        assert_eq!(queue.next(), None);
        queue.promote_due(at(20), monotonic);
        assert_eq!(queue.next(), Some(Task::Conversation(key("c"))));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_in_whatever_order_runs_and_never_twice_at_once(
            steps in prop::collection::vec((0_u8..6, 0_u8..5), 0..200),
        ) {
            let (mut queue, now) = (Queue::default(), Instant::now());
            let mut under_way = Vec::new();
            // What was asked for since it last began.
            let mut wanted = std::collections::BTreeSet::new();
            for (step, which) in steps {
                let key = key(&which.to_string());
                let task = Task::Conversation(key.clone());
                match step {
                    0 => { queue.add(task.clone()); wanted.insert(task); }
                    1 => { queue.add_due(task.clone()); wanted.insert(task); }
                    2 => { queue.set_deadline(&key, Some(Time::EPOCH)); queue.promote_due(Time::EPOCH, now); wanted.insert(task); }
                    3 => if let Some(next) = queue.next() {
                        prop_assert!(!under_way.contains(&next), "twice at once");
                        prop_assert!(wanted.remove(&next), "nobody asked for it");
                        under_way.push(next);
                    },
                    _ => if let Some(ended) = under_way.pop() { queue.done(&ended); },
                }
            }
            for ended in under_way.drain(..) {
                queue.done(&ended);
            }
            let rest: std::collections::BTreeSet<_> = in_turn(&mut queue).into_iter().collect();
            prop_assert_eq!(rest, wanted);
        }
    }
}
