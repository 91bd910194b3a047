//! How many conversations are open, by channel and state, and which of them have been without participants for how long.
//! Pure: it is told what comes and goes.

use crate::api::{Channel, State, Time};
use crate::core::lifecycle::LifecycleInput;
use std::collections::BTreeMap;

/// What a conversation is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsKey {
    channel: Channel,
    state: State,
    /// Since when it has had no participant.
    unassigned_since: Option<Time>,
}

impl StatsKey {
    /// What the conversation of these facts is counted as.
    pub fn of(input: &LifecycleInput) -> Self {
        Self { channel: input.channel, state: input.state_in_effect(), unassigned_since: input.unassigned_since() }
    }
}

/// The open conversations, counted.
#[derive(Debug, Default)]
pub struct Stats {
    open: BTreeMap<(Channel, State), u64>,
    unassigned: BTreeMap<Time, usize>,
    unassigned_count: usize,
}

impl Stats {
    /// A conversation has come.
    pub fn add(&mut self, counted: StatsKey) {
        let StatsKey { channel, state, unassigned_since } = counted;
        if state == State::Closed {
            return;
        }
        *self.open.entry((channel, state)).or_default() += 1;
        if let Some(since) = unassigned_since {
            *self.unassigned.entry(since).or_default() += 1;
            self.unassigned_count += 1;
        }
    }

    /// A conversation that was counted so has gone.
    pub fn remove(&mut self, counted: StatsKey) {
        let StatsKey { channel, state, unassigned_since } = counted;
        if state == State::Closed {
            return;
        }
        if let Some(count) = self.open.get_mut(&(channel, state)) {
            *count = count.saturating_sub(1);
        }
        if let Some(since) = unassigned_since
            && let Some(count) = self.unassigned.get_mut(&since)
        {
            *count -= 1;
            self.unassigned_count -= 1;
            if *count == 0 {
                self.unassigned.remove(&since);
            }
        }
    }

    /// How many are open, by channel and state; a pair that there was once stays, with 0.
    pub fn open(&self) -> impl Iterator<Item = (Channel, State, u64)> + '_ {
        self.open.iter().map(|(&(channel, state), &count)| (channel, state, count))
    }

    /// How many have no participant, and since when the oldest of them.
    pub fn unassigned(&self) -> (usize, Option<Time>) {
        (self.unassigned_count, self.unassigned.keys().next().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_is_counted_and_the_oldest_unassigned_is_known() {
        let counted = |state, unassigned_since| StatsKey { channel: Channel::Sms, state, unassigned_since };
        let [first, second] = [1, 2].map(|second| Time::EPOCH.after(std::time::Duration::from_secs(second)));
        let mut stats = Stats::default();
        let all = [
            counted(State::Active, Some(second)),
            counted(State::Active, Some(first)),
            counted(State::Active, Some(first)),
            counted(State::Inactive, None),
            counted(State::Closed, Some(Time::EPOCH)),
        ];
        for counted in all {
            stats.add(counted);
        }
        assert_eq!(
            stats.open().collect::<Vec<_>>(),
            [(Channel::Sms, State::Active, 3), (Channel::Sms, State::Inactive, 1)]
        );
        assert_eq!(stats.unassigned(), (3, Some(first)));
        stats.remove(all[1]);
        assert_eq!(stats.unassigned(), (2, Some(first)), "two were as old");
        stats.remove(all[2]);
        assert_eq!(stats.unassigned(), (1, Some(second)));
        for counted in [all[0], all[3], all[4]] {
            stats.remove(counted);
        }
        assert!(stats.open().all(|(.., count)| count == 0));
        assert_eq!(stats.unassigned(), (0, None));
    }
}
