//! The default timers of each proxy address, as the watch of the ProxyAddresses has shown them, and when they may close conversations.
//!
//! Closing is final, so a default closes nothing until it has been in effect for a while, and until a live read has confirmed it. Both
//! are kept in memory only: after a restart, the defaults count as new.

use super::keys::{NamespacedName, ProxyKey};
use crate::api::{Time, Timers};
use crate::core::lifecycle::{Defaults, with_defaults};
use crate::proxy_addresses::Catalog;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a live read permits closes by the defaults of its address. One read thus serves a batch of conversations.
const CONFIRMATION_TTL: Duration = Duration::from_secs(1);

/// The default timers of all proxy addresses.
#[derive(Debug, Default)]
pub struct DefaultTimers {
    installation: Timers,
    /// The time from the observation of a default until it closes a conversation.
    delay: Duration,
    catalog: Option<Arc<Catalog>>,
    /// Whether `catalog` may be outdated, because a watch has failed for too long.
    is_withdrawn: bool,
    /// The defaults of the addresses that are not in `declared`.
    undeclared: Option<Observed>,
    /// The addresses whose defaults are not those of the installation, or were not until recently.
    declared: HashMap<ProxyKey, Observed>,
    /// The last live read of each address whose defaults are about to close a conversation.
    live_reads: HashMap<ProxyKey, LiveRead>,
    /// The conversations that wait for a live read.
    waiting: HashMap<ProxyKey, HashSet<NamespacedName>>,
}

/// Defaults, and when this replica first observed them. The observation of a ProxyAddress that has the same defaults as before, because
/// it was listed again or another field changed, is none.
#[derive(Clone, Copy, Debug)]
struct Observed {
    timers: Timers,
    time: Time,
    instant: Instant,
}

/// The result of a live read.
#[derive(Clone, Copy, Debug)]
enum LiveRead {
    /// It showed the same defaults as the watch.
    Same(Instant),
    /// It failed, or showed other defaults, which the watch is about to show.
    Other,
}

/// Whether the defaults of an address may close a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// They may.
    Granted,
    /// They must be read live first.
    Unconfirmed,
    /// They may not, until another live read shows the same defaults as the watch.
    Withheld,
    /// They may not before this instant, because they have changed.
    NotBefore(Instant),
    /// They may not, until the watch shows them again.
    Withdrawn,
}

/// The proxy addresses whose defaults have changed.
#[derive(Debug, PartialEq, Eq)]
pub enum ChangedDefaults {
    /// These.
    Of(HashSet<ProxyKey>),
    /// All, since changes may have been missed.
    All,
}

impl DefaultTimers {
    /// The defaults of the installation, before any ProxyAddress is known. A default closes nothing until it has been observed for
    /// `delay`.
    pub fn new(installation: Timers, delay: Duration) -> Self {
        Self { installation, delay, ..Self::default() }
    }

    /// Whether the ProxyAddresses are known.
    pub fn has_synced(&self) -> bool {
        self.catalog.is_some()
    }

    /// The stored ProxyAddresses.
    pub fn catalog(&self) -> Option<&Arc<Catalog>> {
        self.catalog.as_ref()
    }

    /// The defaults of a proxy address, and whether they may close a conversation at `now`.
    pub fn of(&self, proxy: Option<&ProxyKey>, now: Instant) -> (Defaults, Permission) {
        let Some((proxy, observed)) = proxy.and_then(|proxy| Some((proxy, self.observed(proxy)?))) else {
            return (Defaults::default(), Permission::Unconfirmed);
        };
        let not_before = observed.instant + self.delay;
        let permission = if self.is_withdrawn {
            Permission::Withdrawn
        } else if now < not_before {
            Permission::NotBefore(not_before)
        } else {
            match self.live_reads.get(proxy) {
                Some(LiveRead::Other) => Permission::Withheld,
                Some(LiveRead::Same(read)) if now.saturating_duration_since(*read) < CONFIRMATION_TTL => {
                    Permission::Granted
                }
                Some(LiveRead::Same(_)) | None => Permission::Unconfirmed,
            }
        };
        let defaults = Defaults {
            timers: observed.timers,
            closes_from: Some(observed.time.after(self.delay)),
            // The wall clock that `closes_from` is compared with may be set forward. The monotonic clock is not.
            are_withheld: matches!(permission, Permission::Withheld | Permission::NotBefore(_) | Permission::Withdrawn),
        };
        (defaults, permission)
    }

    fn observed(&self, proxy: &ProxyKey) -> Option<&Observed> {
        self.declared.get(proxy).or(self.undeclared.as_ref())
    }

    /// The watch has failed for so long that changes may have been missed. No default closes anything until it shows the ProxyAddresses
    /// again.
    pub fn catalog_withdrawn(&mut self) {
        self.is_withdrawn = true;
    }

    /// Replaces the ProxyAddresses. Returns the addresses whose defaults have changed. After a withdrawal all defaults count as new.
    pub fn catalog_changed(&mut self, catalog: Arc<Catalog>, time: Time, instant: Instant) -> ChangedDefaults {
        let installation = self.installation;
        let was_withdrawn = std::mem::take(&mut self.is_withdrawn);
        if was_withdrawn {
            *self = Self::new(installation, self.delay);
        }
        let undeclared = *self.undeclared.get_or_insert(Observed { timers: installation, time, instant });
        let declared = catalog.all().map(|proxy_address| &proxy_address.spec).filter(|spec| spec.defaults.is_some());
        let mut current: HashMap<ProxyKey, Timers> = declared
            .map(|spec| {
                let timers = catalog.default_timers(spec.channel, &spec.address);
                (ProxyKey::new(spec.channel, &spec.address), with_defaults(timers, installation))
            })
            .collect();
        // An address that is no longer declared has the defaults of the installation again.
        for proxy in self.declared.keys() {
            current.entry(proxy.clone()).or_insert(installation);
        }
        let mut changed = HashSet::new();
        for (proxy, timers) in current {
            if self.declared.get(&proxy).unwrap_or(&undeclared).timers != timers {
                self.declared.insert(proxy.clone(), Observed { timers, time, instant });
                self.live_reads.remove(&proxy);
                self.waiting.remove(&proxy);
                changed.insert(proxy);
            }
        }
        let is_settled = |observed: &Observed| instant >= observed.instant + self.delay;
        self.declared.retain(|_, observed| observed.timers != installation || !is_settled(observed));
        self.catalog = Some(catalog);
        if was_withdrawn { ChangedDefaults::All } else { ChangedDefaults::Of(changed) }
    }

    /// A conversation is due to be closed by the defaults of `proxy`, and waits for a live read.
    pub fn await_live_read(&mut self, proxy: ProxyKey, conversation: NamespacedName) {
        self.waiting.entry(proxy).or_default().insert(conversation);
    }

    /// A live read of the ProxyAddress of `proxy` showed these default timers; `None` if it failed. Returns whether they are the same as
    /// those that the watch has shown, and the conversations whose plan depends on it.
    pub fn live_read(
        &mut self,
        proxy: &ProxyKey,
        timers: Option<Timers>,
        now: Instant,
    ) -> (bool, HashSet<NamespacedName>) {
        let timers = timers.map(|timers| with_defaults(timers, self.installation));
        let is_same = timers.is_some() && timers == self.observed(proxy).map(|observed| observed.timers);
        let is_current = |read: &LiveRead| match read {
            LiveRead::Same(read) => now.saturating_duration_since(*read) < CONFIRMATION_TTL,
            LiveRead::Other => true,
        };
        self.live_reads.retain(|_, read| is_current(read));
        let read = if is_same { LiveRead::Same(now) } else { LiveRead::Other };
        let before = self.live_reads.insert(proxy.clone(), read);
        let is_unchanged = matches!((before, read), (Some(LiveRead::Other), LiveRead::Other));
        let affected = if is_unchanged { None } else { self.waiting.remove(proxy) };
        (is_same, affected.unwrap_or_default())
    }

    /// This replica starts to lead. Nothing waits yet.
    pub fn leadership_started(&mut self) {
        self.live_reads.clear();
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::NamespacedName;
    use super::*;
    use crate::api::{Channel, ProxyAddress};
    use serde_json::{Value, json};

    const DELAY: Duration = Duration::from_mins(10);
    const ADDRESS: &str = "+15017122661";

    fn timers(close_after: &str) -> Timers {
        let close_after = (!close_after.is_empty()).then(|| close_after.parse().unwrap());
        Timers { close_after, ..Timers::default() }
    }

    /// A ProxyAddress of the address with this default `closeAfter`.
    fn proxy_address(name: &str, close_after: &str, labels: &Value) -> ProxyAddress {
        let metadata = json!({"name": name, "creationTimestamp": "2026-11-24T10:00:00Z", "labels": labels});
        let defaults = json!({"timers": timers(close_after)});
        let spec = json!({"channel": "SMS", "address": ADDRESS, "defaults": defaults});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn catalog(stored: &[ProxyAddress]) -> Arc<Catalog> {
        Arc::new(stored.iter().cloned().collect())
    }

    fn key() -> ProxyKey {
        ProxyKey::new(Channel::Sms, ADDRESS)
    }

    struct Timeline {
        defaults: DefaultTimers,
        start: Instant,
    }

    impl Timeline {
        /// Defaults of an installation, whose first catalog was observed at minute 0.
        fn new(installation: &str, stored: &[ProxyAddress]) -> Self {
            let mut timeline =
                Self { defaults: DefaultTimers::new(timers(installation), DELAY), start: Instant::now() };
            timeline.observe(0, stored);
            timeline
        }

        fn instant(&self, minute: u64) -> Instant {
            self.start + Duration::from_mins(minute)
        }

        fn observe(&mut self, minute: u64, stored: &[ProxyAddress]) -> bool {
            let (time, instant) = (at(minute), self.instant(minute));
            match self.defaults.catalog_changed(catalog(stored), time, instant) {
                ChangedDefaults::All => true,
                ChangedDefaults::Of(changed) => {
                    assert!(changed.iter().all(|changed| *changed == key()), "{changed:?}");
                    !changed.is_empty()
                }
            }
        }

        /// The default `closeAfter`, and the minute from which it closes.
        fn in_effect(&self) -> (Timers, Option<Time>) {
            let (defaults, _) = self.defaults.of(Some(&key()), self.instant(0));
            (defaults.timers, defaults.closes_from)
        }

        fn permission(&self, minute: u64) -> Permission {
            self.defaults.of(Some(&key()), self.instant(minute)).1
        }
    }

    fn at(minute: u64) -> Time {
        Time::EPOCH.after(Duration::from_mins(minute))
    }

    #[test]
    fn defaults_count_as_new_at_the_start() {
        for timeline in [Timeline::new("24h", &[]), Timeline::new("", &[proxy_address("sales", "24h", &json!({}))])] {
            assert_eq!(timeline.in_effect(), (timers("24h"), Some(at(10))));
            assert_eq!(timeline.permission(9), Permission::NotBefore(timeline.instant(10)));
            assert_eq!(timeline.permission(10), Permission::Unconfirmed);
        }
    }

    #[test]
    fn nothing_applies_before_the_first_catalog() {
        let defaults = DefaultTimers::new(timers("24h"), DELAY);
        assert!(!defaults.has_synced());
        assert_eq!(defaults.of(Some(&key()), Instant::now()).0, Defaults::default());
    }

    #[test]
    fn changed_default_counts_as_new() {
        let mut timeline = Timeline::new("", &[proxy_address("sales", "24h", &json!({}))]);
        assert!(timeline.observe(60, &[proxy_address("sales", "24s", &json!({}))]));
        assert_eq!(timeline.in_effect(), (timers("24s"), Some(at(70))));
        assert!(timeline.observe(65, &[proxy_address("sales", "24h", &json!({}))]));
        assert_eq!(timeline.in_effect(), (timers("24h"), Some(at(75))));
    }

    #[test]
    fn default_of_a_new_recreated_or_removed_object_counts_as_new() {
        let sales = [proxy_address("sales", "24h", &json!({}))];
        let mut timeline = Timeline::new("1h", &[]);
        assert!(timeline.observe(60, &sales), "new");
        assert_eq!(timeline.in_effect(), (timers("24h"), Some(at(70))));
        assert!(timeline.observe(100, &[]), "removed");
        assert_eq!(timeline.in_effect(), (timers("1h"), Some(at(110))), "that of the installation is shorter");
        assert!(timeline.observe(101, &sales), "re-created");
        assert_eq!(timeline.in_effect(), (timers("24h"), Some(at(111))));
        assert!(timeline.observe(200, &[]));
        assert!(!timeline.observe(210, &[]), "the address is forgotten");
        assert_eq!((timeline.in_effect(), timeline.defaults.declared.len()), ((timers("1h"), Some(at(10))), 0));
    }

    #[test]
    fn observation_of_the_same_defaults_resets_nothing() {
        let mut timeline = Timeline::new("1h", &[proxy_address("sales", "24h", &json!({}))]);
        for stored in [
            &[proxy_address("sales", "24h", &json!({"team": "sales"}))][..],
            &[proxy_address("another", "24h", &json!({}))],
            &[proxy_address("another", "24h", &json!({})), proxy_address("conflicted", "1s", &json!({}))],
        ] {
            assert!(!timeline.observe(60, stored));
            assert_eq!(timeline.in_effect(), (timers("24h"), Some(at(10))));
        }
        let mut timeline = Timeline::new("1h", &[]);
        assert!(!timeline.observe(60, &[proxy_address("sales", "1h", &json!({}))]), "as that of the installation");
        assert_eq!(timeline.in_effect(), (timers("1h"), Some(at(10))));
    }

    #[test]
    fn default_closes_nothing_while_the_catalog_is_withdrawn() {
        for (installation, stored) in [("1h", vec![]), ("", vec![proxy_address("sales", "24h", &json!({}))])] {
            let mut timeline = Timeline::new(installation, &stored);
            timeline.defaults.live_read(&key(), Some(timeline.in_effect().0), timeline.instant(20));
            assert_eq!(timeline.permission(20), Permission::Granted);
            timeline.defaults.catalog_withdrawn();
            timeline.defaults.live_read(&key(), Some(timeline.in_effect().0), timeline.instant(20));
            assert_eq!(timeline.permission(20), Permission::Withdrawn, "whatever a live read shows");
            assert!(timeline.defaults.of(Some(&key()), timeline.instant(20)).0.are_withheld);
            assert!(timeline.defaults.has_synced(), "other work goes on");
            assert!(timeline.observe(30, &stored), "another default may have been in effect meanwhile");
            assert_eq!(timeline.permission(39), Permission::NotBefore(timeline.instant(40)));
            assert_eq!(timeline.permission(40), Permission::Unconfirmed);
            assert!(!timeline.observe(50, &stored), "nothing was missed");
            assert_eq!(timeline.permission(50), Permission::Unconfirmed);
        }
    }

    #[test]
    fn live_read_of_the_same_defaults_permits_closes_for_a_second() {
        let mut timeline = Timeline::new("1h", &[proxy_address("sales", "24h", &json!({}))]);
        let (now, alice) = (timeline.instant(10), NamespacedName::new("sales", "alice"));
        timeline.defaults.await_live_read(key(), alice.clone());
        let affected = timeline.defaults.live_read(&key(), Some(timers("24h")), now);
        assert_eq!(affected, (true, HashSet::from([alice])));
        let permission = |after| timeline.defaults.of(Some(&key()), now + Duration::from_millis(after)).1;
        assert_eq!([permission(0), permission(999)], [Permission::Granted; 2]);
        assert_eq!(permission(1_000), Permission::Unconfirmed);
    }

    #[test]
    fn live_read_of_other_defaults_withholds_closes() {
        let mut timeline = Timeline::new("1h", &[proxy_address("sales", "24h", &json!({}))]);
        let (now, alice) = (timeline.instant(10), NamespacedName::new("sales", "alice"));
        for read in [Some(timers("48h")), Some(timers("")), None] {
            timeline.defaults.leadership_started();
            timeline.defaults.await_live_read(key(), alice.clone());
            let affected = timeline.defaults.live_read(&key(), read, now);
            assert_eq!(affected, (false, HashSet::from([alice.clone()])), "its status is written without the close");
            assert_eq!(timeline.permission(30), Permission::Withheld);
            timeline.defaults.await_live_read(key(), alice.clone());
            assert_eq!(timeline.defaults.live_read(&key(), read, now), (false, HashSet::new()), "nothing is new");
        }
        let affected = timeline.defaults.live_read(&key(), Some(timers("24h")), now);
        assert_eq!(affected, (true, HashSet::from([alice])), "the watch was right after all");
        timeline.defaults.live_read(&key(), None, now);
        timeline.observe(20, &[proxy_address("sales", "48h", &json!({}))]);
        assert_eq!(timeline.permission(30), Permission::Unconfirmed, "the watch shows another default");
    }
}
