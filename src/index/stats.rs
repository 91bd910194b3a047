//! Counts of the stored conversations, and the metrics that serve them. The index updates the counts; a scrape reads them.

use crate::api::{Channel, State, Time};
use crate::clock::Clock;
use crate::core::lifecycle::LifecycleInput;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The group that an open conversation is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsKey {
    channel: Channel,
    state: State,
    /// Time at which it became unassigned; `None` if it has a participant.
    unassigned_since: Option<Time>,
    /// Time since which it has waited for its binding; `None` if it does not wait.
    waiting_since: Option<Time>,
}

impl StatsKey {
    /// The group of the conversation with this input.
    pub fn of(input: &LifecycleInput) -> Self {
        Self {
            channel: input.channel,
            state: input.state_in_effect(),
            unassigned_since: input.unassigned_since(),
            waiting_since: input.waiting_since(),
        }
    }
}

/// Counts of the stored conversations. A clone shares the counts.
#[derive(Clone, Debug, Default)]
pub struct Stats(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    open: BTreeMap<(Channel, State), u64>,
    unassigned: Ages,
    waiting: Ages,
    invalid: usize,
    deferred: usize,
    has_synced: bool,
}

/// A number of conversations, and since when each has been in some condition.
#[derive(Debug, Default)]
struct Ages {
    since: BTreeMap<Time, usize>,
    count: usize,
}

impl Ages {
    fn add(&mut self, since: Option<Time>) {
        if let Some(since) = since {
            *self.since.entry(since).or_default() += 1;
            self.count += 1;
        }
    }

    fn remove(&mut self, since: Option<Time>) {
        if let Some(since) = since
            && let Some(count) = self.since.get_mut(&since)
        {
            *count -= 1;
            self.count -= 1;
            if *count == 0 {
                self.since.remove(&since);
            }
        }
    }

    fn oldest(&self) -> Option<Time> {
        self.since.keys().next().copied()
    }
}

impl Stats {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a conversation, unless it is closed.
    pub fn add(&self, StatsKey { channel, state, unassigned_since, waiting_since }: StatsKey) {
        if state == State::Closed {
            return;
        }
        let counts = &mut *self.counts();
        *counts.open.entry((channel, state)).or_default() += 1;
        counts.unassigned.add(unassigned_since);
        counts.waiting.add(waiting_since);
    }

    /// Removes a conversation that was added with the same key.
    pub fn remove(&self, StatsKey { channel, state, unassigned_since, waiting_since }: StatsKey) {
        if state == State::Closed {
            return;
        }
        let counts = &mut *self.counts();
        if let Some(count) = counts.open.get_mut(&(channel, state)) {
            *count = count.saturating_sub(1);
        }
        counts.unassigned.remove(unassigned_since);
        counts.waiting.remove(waiting_since);
    }

    /// Sets the number of stored conversations that cannot be decoded.
    pub fn set_invalid(&self, count: usize) {
        self.counts().invalid = count;
    }

    /// Sets the number of conversations whose status the leader updates in the background.
    pub fn set_deferred(&self, count: usize) {
        self.counts().deferred = count;
    }

    /// Marks the counts as complete. Until then a scrape reports no conversations, because the counts would be too low.
    pub fn set_synced(&self) {
        self.counts().has_synced = true;
    }
}

/// Serves [`Stats`] as metrics.
#[derive(Debug)]
pub struct StatsCollector {
    stats: Stats,
    clock: Clock,
}

impl StatsCollector {
    /// A collector of `stats`. Ages are measured by `clock`.
    #[must_use]
    pub fn new(stats: Stats, clock: Clock) -> Self {
        Self { stats, clock }
    }
}

impl Collector for StatsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let (counts, empty) = (self.stats.counts(), Counts::default());
        let counts = if counts.has_synced { &*counts } else { &empty };
        if !counts.open.is_empty() {
            let help = "Open conversations by channel and state in effect";
            let mut family = encoder.encode_descriptor("conversations", help, None, MetricType::Gauge)?;
            for ((channel, state), count) in &counts.open {
                let labels = [("channel", channel.as_str()), ("state", state.as_str())];
                ConstGauge::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut gauge = |name, help, value: u64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let age = |ages: &Ages| ages.oldest().map_or(0, |since| self.clock.now().duration_since(since).as_secs());
        let Counts { unassigned, waiting, .. } = counts;
        gauge("unassigned_conversations", "Open conversations without a participant", number(unassigned.count))?;
        gauge(
            "oldest_unassigned_age_seconds",
            "Longest time that an open conversation has been unassigned; 0 if none is unassigned",
            age(unassigned),
        )?;
        gauge(
            "waiting_conversations",
            "Open conversations that wait for a binding that another conversation holds",
            number(waiting.count),
        )?;
        gauge(
            "oldest_waiting_age_seconds",
            "Longest time that an open conversation has waited for its binding; 0 if none waits",
            age(waiting),
        )?;
        gauge(
            "invalid_conversations",
            "Stored conversations that cannot be decoded, and are not reconciled until they are corrected",
            number(counts.invalid),
        )?;
        gauge(
            "deferred_conversations",
            "Conversations whose timers and deadlines in the status are outdated, and are updated in the background by the leader",
            number(counts.deferred),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// The open conversations by channel and state; a pair that was counted once is kept with 0.
    fn open(stats: &Stats) -> Vec<(Channel, State, u64)> {
        stats.counts().open.iter().map(|(&(channel, state), &count)| (channel, state, count)).collect()
    }

    /// The number of unassigned conversations, and the earliest time since which one is.
    fn unassigned(stats: &Stats) -> (usize, Option<Time>) {
        let counts = stats.counts();
        (counts.unassigned.count, counts.unassigned.oldest())
    }

    #[test]
    fn conversations_and_the_oldest_unassigned_are_counted() {
        let counted =
            |state, unassigned_since| StatsKey { channel: Channel::Sms, state, unassigned_since, waiting_since: None };
        let [first, second] = [1, 2].map(|millisecond| Time::EPOCH.after(Duration::from_millis(millisecond)));
        let stats = Stats::default();
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
        assert_eq!(open(&stats), [(Channel::Sms, State::Active, 3), (Channel::Sms, State::Inactive, 1)]);
        assert_eq!(unassigned(&stats), (3, Some(first)));
        stats.remove(all[1]);
        assert_eq!(unassigned(&stats), (2, Some(first)), "two were as old");
        stats.remove(all[2]);
        assert_eq!(unassigned(&stats), (1, Some(second)));
        for counted in [all[0], all[3], all[4]] {
            stats.remove(counted);
        }
        assert!(open(&stats).iter().all(|(.., count)| *count == 0));
        assert_eq!(unassigned(&stats), (0, None));
    }

    #[test]
    fn metrics_report_nothing_before_the_index_has_synced() {
        let stats = Stats::default();
        let mut registry = prometheus_client::registry::Registry::with_prefix("switchboard");
        registry.register_collector(Box::new(StatsCollector::new(stats.clone(), Clock)));
        let scrape = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            samples.filter(|line| !line.contains("_age_")).map(str::to_owned).collect::<Vec<_>>()
        };
        let key = StatsKey {
            channel: Channel::Sms,
            state: State::Active,
            unassigned_since: Some(Time::EPOCH),
            waiting_since: None,
        };
        stats.add(key);
        stats.set_invalid(2);
        stats.set_deferred(3);
        let unsynced = [
            "switchboard_unassigned_conversations 0",
            "switchboard_waiting_conversations 0",
            "switchboard_invalid_conversations 0",
            "switchboard_deferred_conversations 0",
        ];
        assert_eq!(scrape(), unsynced);
        stats.set_synced();
        let synced = [
            r#"switchboard_conversations{channel="SMS",state="Active"} 1"#,
            "switchboard_unassigned_conversations 1",
            "switchboard_waiting_conversations 0",
            "switchboard_invalid_conversations 2",
            "switchboard_deferred_conversations 3",
        ];
        assert_eq!(scrape(), synced);
    }
}
