//! The ProxyAddresses and the labels of the namespaces, as the watches show them: an immutable catalog, replaced at each change. It
//! decides nothing, and does not know who reads it.

use crate::api::{Channel, ProxyAddress, Timers};
use crate::clock::Clock;
use crate::core::proxy_address::{Grant, Labels, grant, precedence};
use crate::kube_error::ErrorClass;
use crate::telemetry::error_chain::ErrorChain;
use crate::watch::{Guarded, Watched, watch};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Api, Client, Resource, ResourceExt};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch as channel;
use tokio::time::{Instant, sleep};

/// The delay before a watch that has failed starts again. It is also the interval of the attempts while the kind is not installed.
const RESTART_DELAY: Duration = Duration::from_secs(5);
/// The same until the first list is complete. An API server answers 429 for a moment after the kind was installed, and a replica that starts
/// then is not ready before.
const START_DELAY: Duration = Duration::from_millis(250);
/// The time for which a catalog is believed while a watch fails.
const MAX_DOUBT: Duration = Duration::from_mins(2);
/// The minimum interval between two catalogs.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// The stored ProxyAddresses, and the labels of the namespaces.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    by_name: HashMap<String, Arc<ProxyAddress>>,
    /// Those with the same channel and address; the one in effect comes first.
    by_address: HashMap<Channel, HashMap<String, Vec<Arc<ProxyAddress>>>>,
    /// Shared between catalogs, since it may be large and seldom changes.
    namespaces: Arc<HashMap<String, Arc<Labels>>>,
}

impl Catalog {
    /// All stored ProxyAddresses, also those that are not in effect.
    pub fn all(&self) -> impl ExactSizeIterator<Item = &ProxyAddress> {
        self.by_name.values().map(Arc::as_ref)
    }

    /// The ProxyAddress of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ProxyAddress> {
        self.by_name.get(name).map(Arc::as_ref)
    }

    /// The ProxyAddress that is in effect for an address.
    #[must_use]
    pub fn in_effect(&self, channel: Channel, address: &str) -> Option<&ProxyAddress> {
        self.shared(channel, address).map(Arc::as_ref)
    }

    /// The same, to be kept.
    #[must_use]
    pub fn shared(&self, channel: Channel, address: &str) -> Option<&Arc<ProxyAddress>> {
        self.by_address.get(&channel)?.get(address)?.first()
    }

    /// The default timers of the conversations behind an address, according to its ProxyAddress.
    #[must_use]
    pub fn default_timers(&self, channel: Channel, address: &str) -> Timers {
        default_timers(self.in_effect(channel, address))
    }

    /// The labels of a namespace; `None` if there is no such namespace.
    #[must_use]
    pub fn labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace).map(Arc::as_ref)
    }

    /// Whether `namespace` may use an address.
    #[must_use]
    pub fn grant(&self, channel: Channel, address: &str, namespace: &str) -> Grant {
        grant(self.in_effect(channel, address), self.labels(namespace))
    }

    fn insert(&mut self, proxy_address: ProxyAddress) {
        let name = proxy_address.name_any();
        self.remove(&name);
        let proxy_address = Arc::new(proxy_address);
        let ProxyAddress { spec, .. } = proxy_address.as_ref();
        let same = self.by_address.entry(spec.channel).or_default().entry(spec.address.clone()).or_default();
        let position = same.partition_point(|other| precedence(other) < precedence(&proxy_address));
        same.insert(position, proxy_address.clone());
        self.by_name.insert(name, proxy_address);
    }

    fn remove(&mut self, name: &str) {
        let Some(removed) = self.by_name.remove(name) else { return };
        let Some(of_channel) = self.by_address.get_mut(&removed.spec.channel) else { return };
        if let Some(same) = of_channel.get_mut(&removed.spec.address) {
            same.retain(|other| other.name_any() != name);
            if same.is_empty() {
                of_channel.remove(&removed.spec.address);
            }
        }
    }

    /// The same catalog without the ProxyAddress of this name.
    #[cfg(test)]
    pub(crate) fn without(&self, name: &str) -> Self {
        let mut catalog = self.clone();
        catalog.remove(name);
        catalog
    }

    fn clear(&mut self) {
        self.by_name.clear();
        self.by_address.clear();
    }
}

/// The catalog of these ProxyAddresses, and of no namespaces.
#[cfg(test)]
impl FromIterator<ProxyAddress> for Catalog {
    fn from_iter<I: IntoIterator<Item = ProxyAddress>>(proxy_addresses: I) -> Self {
        let mut catalog = Self::default();
        proxy_addresses.into_iter().for_each(|proxy_address| catalog.insert(proxy_address));
        catalog
    }
}

/// Readers of the catalog.
#[derive(Clone, Debug)]
pub struct ProxyAddresses(channel::Receiver<Option<Arc<Catalog>>>);

impl ProxyAddresses {
    /// The latest catalog; `None` until both watches have completed a list, and while one of them has failed for too long.
    #[must_use]
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        self.0.borrow().clone()
    }

    /// Waits until the catalog has changed since the last call, and returns it.
    pub async fn changed(&mut self) -> Option<Arc<Catalog>> {
        if self.0.changed().await.is_err() {
            // The watcher has ended, and the process is about to.
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }
}

/// The default timers of the conversations behind an address that `in_effect` declares.
#[must_use]
pub fn default_timers(in_effect: Option<&ProxyAddress>) -> Timers {
    let defaults = in_effect.and_then(|declared| declared.spec.defaults.as_ref());
    defaults.and_then(|defaults| defaults.timers).unwrap_or_default()
}

/// The ProxyAddress that is in effect for an address, read live. If the kind is not installed, there is none. `known` is the one
/// that the catalog has: if it is still stored, it is still in effect, since an older one cannot appear; otherwise all are listed, which
/// costs more.
///
/// # Errors
/// If the ProxyAddresses cannot be read.
pub async fn read_in_effect(
    client: Client,
    channel: Channel,
    address: &str,
    known: Option<&ProxyAddress>,
) -> Result<Option<ProxyAddress>, kube::Error> {
    let proxy_addresses = Api::<Guarded<ProxyAddress>>::all(client);
    if let Some(known) = known
        && let Some(Guarded(Ok(stored))) = proxy_addresses.get_opt(&known.name_any()).await?
        && stored.metadata.uid == known.metadata.uid
    {
        return Ok(Some(stored));
    }
    let selector = format!("spec.channel={channel},spec.address={}", escape(address));
    match proxy_addresses.list(&ListParams::default().fields(&selector)).await {
        Ok(list) => {
            let readable = list.items.into_iter().filter_map(|Guarded(object)| object.ok());
            Ok(readable.min_by(|one, other| precedence(one).cmp(&precedence(other))))
        }
        Err(error) if ErrorClass::of(&error).is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// `value` as a field selector spells it.
pub(crate) fn escape(value: &str) -> String {
    value
        .chars()
        .flat_map(|character| [Some('\\').filter(|_| "\\,=".contains(character)), Some(character)])
        .flatten()
        .collect()
}

/// The labels of a namespace, read live; `None` if there is no such namespace.
///
/// # Errors
/// If the namespace cannot be read.
pub async fn read_labels(client: Client, namespace: &str) -> Result<Option<Labels>, kube::Error> {
    let namespace = Api::<Namespace>::all(client).get_metadata_opt(namespace).await?;
    Ok(namespace.map(|namespace| namespace.metadata.labels.unwrap_or_default()))
}

/// Keeps the catalog up to date.
pub struct ProxyAddressWatcher {
    client: Client,
    clock: Clock,
    state: State,
    sender: channel::Sender<Option<Arc<Catalog>>>,
}

/// What the watches have shown so far.
#[derive(Debug, Default)]
struct State {
    catalog: Arc<Catalog>,
    /// The lists in progress. An object that is not in a list is gone when the list is complete.
    listed_proxy_addresses: Vec<ProxyAddress>,
    listed_namespaces: HashMap<String, Arc<Labels>>,
    proxy_addresses: Sync,
    namespaces: Sync,
}

/// How far a watch has come.
#[derive(Clone, Copy, Debug, Default)]
struct Sync {
    /// Whether it has completed a list.
    is_complete: bool,
    /// The time of the first failure since the last list, after which the catalog may be outdated.
    failed_since: Option<Instant>,
    /// Whether the last attempt met that the kind is not installed.
    is_missing: bool,
}

impl Sync {
    /// A list is complete.
    fn completed(&mut self) {
        *self = Self { is_complete: true, ..Self::default() };
    }

    /// The delay before the watch starts again.
    fn restart_delay(&self) -> Duration {
        if self.is_complete { RESTART_DELAY } else { START_DELAY }
    }

    fn failed(&mut self, now: Instant) {
        self.failed_since.get_or_insert(now);
    }

    fn is_believed(&self, now: Instant) -> bool {
        let has_failed_for = self.failed_since.map(|since| now.saturating_duration_since(since));
        self.is_complete && has_failed_for.is_none_or(|duration| duration < MAX_DOUBT)
    }
}

impl ProxyAddressWatcher {
    /// A watcher, and the reader of its catalog.
    #[must_use]
    pub fn new(client: Client, clock: Clock) -> (Self, ProxyAddresses) {
        let (sender, receiver) = channel::channel(None);
        (Self { client, clock, state: State::default(), sender }, ProxyAddresses(receiver))
    }

    /// Runs until the process exits. A watch that fails starts again with a list: it cannot tell what it has missed.
    pub async fn run(mut self) {
        let mut proxy_addresses = self.restarted::<ProxyAddress>(Duration::ZERO);
        let mut namespaces = self.restarted::<Namespace>(Duration::ZERO);
        loop {
            tokio::select! {
                Some(event) = proxy_addresses.next() => {
                    let mut next = Some(event);
                    // One catalog for the events that have arrived together.
                    while let Some(event) = next {
                        if self.state.proxy_address_event(event, self.clock.monotonic()) == Progress::Failed {
                            proxy_addresses = self.restarted(self.state.proxy_addresses.restart_delay());
                        }
                        next = proxy_addresses.next().now_or_never().flatten();
                    }
                }
                Some(event) = namespaces.next() => {
                    let mut next = Some(event);
                    while let Some(event) = next {
                        if self.state.namespace_event(event, self.clock.monotonic()) == Progress::Failed {
                            namespaces = self.restarted(self.state.namespaces.restart_delay());
                        }
                        next = namespaces.next().now_or_never().flatten();
                    }
                }
                else => return,
            }
            if self.publish() {
                // Each catalog is a copy, so a burst of changes makes few of them.
                sleep(PUBLISH_INTERVAL).await;
            }
        }
    }

    /// A new watch, which starts after `delay`.
    fn restarted<K: Watched>(&self, delay: Duration) -> BoxStream<'static, watcher::Result<Event<Guarded<K>>>> {
        let client = self.client.clone();
        stream::once(sleep(delay)).flat_map(move |()| watch::<K>(client.clone(), Config::default())).boxed()
    }

    /// Publishes the catalog if it has changed, and withdraws one that may have been outdated for too long: then live reads decide.
    fn publish(&self) -> bool {
        let State { catalog, proxy_addresses, namespaces, .. } = &self.state;
        let now = self.clock.monotonic();
        let current = (proxy_addresses.is_believed(now) && namespaces.is_believed(now)).then(|| catalog.clone());
        self.sender.send_if_modified(|published| {
            let is_new = published.as_ref().map(Arc::as_ptr) != current.as_ref().map(Arc::as_ptr);
            if is_new {
                *published = current;
            }
            is_new
        })
    }
}

/// Whether a watch goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It does.
    Continues,
    /// It must start again.
    Failed,
}

impl State {
    fn proxy_address_event(&mut self, event: watcher::Result<Event<Guarded<ProxyAddress>>>, now: Instant) -> Progress {
        match event {
            Ok(Event::Init) => self.listed_proxy_addresses.clear(),
            Ok(Event::InitApply(Guarded(object))) => match object {
                Ok(object) => self.listed_proxy_addresses.push(object),
                Err(invalid) => log_invalid(invalid.metadata.name.as_deref()),
            },
            Ok(Event::InitDone) => {
                let catalog = Arc::make_mut(&mut self.catalog);
                catalog.clear();
                for object in std::mem::take(&mut self.listed_proxy_addresses) {
                    catalog.insert(object);
                }
                self.proxy_addresses.completed();
            }
            Ok(Event::Apply(Guarded(object))) => match object {
                Ok(object) => Arc::make_mut(&mut self.catalog).insert(object),
                Err(invalid) => {
                    log_invalid(invalid.metadata.name.as_deref());
                    Arc::make_mut(&mut self.catalog).remove(invalid.metadata.name.as_deref().unwrap_or_default());
                }
            },
            Ok(Event::Delete(object)) => Arc::make_mut(&mut self.catalog).remove(&object.name_any()),
            Err(error) if is_not_found(&error) => {
                self.missing();
                return Progress::Failed;
            }
            Err(error) => {
                log_interrupted("ProxyAddresses", &error);
                self.proxy_addresses.failed(now);
                return Progress::Failed;
            }
        }
        Progress::Continues
    }

    /// The kind is not installed: there are no ProxyAddresses. A single answer may come from a server that is not up to date, or from a
    /// load balancer, so it takes two to forget those that are known.
    fn missing(&mut self) {
        if !self.proxy_addresses.is_missing {
            tracing::info!("the kind ProxyAddress is not installed; checking again every few seconds");
        } else if !self.catalog.by_name.is_empty() {
            Arc::make_mut(&mut self.catalog).clear();
        }
        self.proxy_addresses = Sync { is_complete: true, failed_since: None, is_missing: true };
    }

    fn namespace_event(&mut self, event: watcher::Result<Event<Guarded<Namespace>>>, now: Instant) -> Progress {
        let labels = |object: &Guarded<Namespace>| Arc::new(object.meta().labels.clone().unwrap_or_default());
        match event {
            Ok(Event::Init) => self.listed_namespaces.clear(),
            Ok(Event::InitApply(object)) => {
                self.listed_namespaces.insert(object.name_any(), labels(&object));
            }
            Ok(Event::InitDone) => {
                let listed = std::mem::take(&mut self.listed_namespaces);
                Arc::make_mut(&mut self.catalog).namespaces = Arc::new(listed);
                self.namespaces.completed();
            }
            Ok(Event::Apply(object)) => {
                let (name, labels) = (object.name_any(), labels(&object));
                // Most events of a namespace do not change its labels.
                if self.catalog.namespaces.get(&name) != Some(&labels) {
                    self.namespaces_mut().insert(name, labels);
                }
            }
            Ok(Event::Delete(object)) => {
                self.namespaces_mut().remove(&object.name_any());
            }
            Err(error) => {
                log_interrupted("namespaces", &error);
                self.namespaces.failed(now);
                return Progress::Failed;
            }
        }
        Progress::Continues
    }

    fn namespaces_mut(&mut self) -> &mut HashMap<String, Arc<Labels>> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.catalog).namespaces)
    }
}

fn log_interrupted(watch: &str, error: &watcher::Error) {
    tracing::warn!(watch, error = %ErrorChain(error), "watch interrupted; retrying");
}

fn log_invalid(name: Option<&str>) {
    tracing::error!(
        proxy_address = name.unwrap_or_default(),
        "a stored ProxyAddress cannot be decoded and is ignored; correct or delete it"
    );
}

/// Whether the kind is not installed.
fn is_not_found(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            ErrorClass::of(error).is_not_found()
        }
        watcher::Error::WatchError(status) => ErrorClass::of_status(status).is_not_found(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::InvalidObject;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use kube::core::Status;
    use serde_json::json;

    const ADDRESS: &str = "+15017122661";

    fn proxy_address(name: &str, created: &str, team: &str) -> ProxyAddress {
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"channel": "SMS", "address": ADDRESS, "namespaces": {"selector": {"matchLabels": {"team": team}}}},
        }))
        .unwrap()
    }

    fn namespace(name: &str, team: &str) -> Guarded<Namespace> {
        let object = json!({"metadata": {"name": name, "labels": {"team": team}}});
        Guarded(Ok(serde_json::from_value(object).unwrap()))
    }

    fn not_found() -> watcher::Error {
        let status = Status { code: 404, ..Status::default() };
        watcher::Error::WatchStartFailed(kube::Error::Api(status.boxed()))
    }

    fn synced() -> State {
        let mut state = State::default();
        let now = Instant::now();
        for event in [Event::Init, Event::InitApply(namespace("sales", "sales")), Event::InitDone] {
            state.namespace_event(Ok(event), now);
        }
        let older = Guarded(Ok(proxy_address("older", "2026-01-01T00:00:00Z", "sales")));
        for event in [Event::Init, Event::InitApply(older), Event::InitDone] {
            state.proxy_address_event(Ok(event), now);
        }
        state
    }

    fn grant_of(state: &State) -> Grant {
        state.catalog.grant(Channel::Sms, ADDRESS, "sales")
    }

    #[test]
    fn list_that_starts_again_forgets_the_objects_of_the_first() {
        let (mut state, now) = (State::default(), Instant::now());
        let [first, second] =
            ["first", "second"].map(|name| Guarded(Ok(proxy_address(name, "2026-01-01T00:00:00Z", "sales"))));
        for event in [Event::Init, Event::InitApply(first), Event::Init, Event::InitApply(second), Event::InitDone] {
            assert!(state.catalog.by_name.is_empty(), "the list is not complete");
            state.proxy_address_event(Ok(event), now);
        }
        assert_eq!(state.catalog.all().map(ResourceExt::name_any).collect::<Vec<_>>(), ["second"]);
        assert!(state.proxy_addresses.is_believed(now) && !state.namespaces.is_believed(now));
    }

    #[test]
    fn oldest_is_in_effect_until_it_is_deleted_or_unreadable() {
        let (mut state, now) = (synced(), Instant::now());
        assert_eq!(grant_of(&state), Grant::Granted);
        let younger = proxy_address("younger", "2026-01-02T00:00:00Z", "support");
        state.proxy_address_event(Ok(Event::Apply(Guarded(Ok(younger)))), now);
        assert_eq!(grant_of(&state), Grant::Granted, "the older one is in effect");
        let older = proxy_address("older", "2026-01-01T00:00:00Z", "sales");
        let metadata = ObjectMeta { name: Some("older".to_owned()), ..ObjectMeta::default() };
        let unreadable = || Guarded(Err(InvalidObject { metadata: metadata.clone(), error: String::new() }));
        state.proxy_address_event(Ok(Event::Apply(unreadable())), now);
        assert_eq!(grant_of(&state), Grant::NotGranted("younger".to_owned()));
        state.proxy_address_event(Ok(Event::Apply(Guarded(Ok(older)))), now);
        state.proxy_address_event(Ok(Event::Delete(unreadable())), now);
        assert_eq!(grant_of(&state), Grant::NotGranted("younger".to_owned()));
    }

    #[test]
    fn labels_follow_the_watch_of_the_namespaces() {
        let (mut state, now) = (synced(), Instant::now());
        state.namespace_event(Ok(Event::Apply(namespace("sales", "support"))), now);
        assert_eq!(grant_of(&state), Grant::NotGranted("older".to_owned()));
        state.namespace_event(Ok(Event::Apply(namespace("sales", "sales"))), now);
        assert_eq!(grant_of(&state), Grant::Granted);
        let published = state.catalog.clone();
        state.namespace_event(Ok(Event::Apply(namespace("sales", "sales"))), now);
        assert!(Arc::ptr_eq(&published, &state.catalog), "nothing has changed");
        state.namespace_event(Ok(Event::Delete(namespace("sales", "sales"))), now);
        assert_eq!(grant_of(&state), Grant::NotGranted("older".to_owned()));
    }

    #[test]
    fn missing_kind_counts_as_none_at_the_second_attempt() {
        let now = Instant::now();
        let mut state = State::default();
        assert_eq!(state.proxy_address_event(Err(not_found()), now), Progress::Failed);
        assert!(state.proxy_addresses.is_believed(now), "there are none");
        let mut state = synced();
        state.proxy_address_event(Err(not_found()), now);
        assert_eq!(grant_of(&state), Grant::Granted, "a single answer may be wrong");
        state.proxy_address_event(Err(not_found()), now);
        assert_eq!(grant_of(&state), Grant::Undeclared);
    }

    #[test]
    fn failing_watch_is_not_believed_for_long() {
        let (mut state, now) = (synced(), Instant::now());
        assert!(State::default().namespaces.restart_delay() < Duration::from_secs(1), "a start does not wait for long");
        assert_eq!(state.proxy_addresses.restart_delay(), RESTART_DELAY);
        for seconds in [0, 60] {
            let error = watcher::Error::NoResourceVersion;
            let now = now + Duration::from_secs(seconds);
            assert_eq!(state.proxy_address_event(Err(error), now), Progress::Failed);
            assert!(state.proxy_addresses.is_believed(now));
        }
        assert!(!state.proxy_addresses.is_believed(now + MAX_DOUBT), "counted from the first failure");
        state.proxy_address_event(Ok(Event::InitDone), now + MAX_DOUBT);
        assert!(state.proxy_addresses.is_believed(now + 2 * MAX_DOUBT));
    }

    #[tokio::test(start_paused = true)]
    async fn catalog_is_withdrawn_until_a_failing_watch_lists_again() {
        let client = Client::try_from(kube::Config::new("http://localhost".parse().unwrap())).unwrap();
        let (mut watcher, mut reader) = ProxyAddressWatcher::new(client, Clock);
        watcher.state = synced();
        assert!(watcher.publish());
        let is_known = |catalog: Option<Arc<Catalog>>| catalog.is_some_and(|catalog| catalog.get("older").is_some());
        assert!(is_known(reader.changed().await));
        for fail_namespaces in [false, true] {
            let fail = |watcher: &mut ProxyAddressWatcher| {
                let (error, now) = (watcher::Error::NoResourceVersion, Clock.monotonic());
                if fail_namespaces {
                    watcher.state.namespace_event(Err(error), now);
                } else {
                    watcher.state.proxy_address_event(Err(error), now);
                }
                watcher.publish()
            };
            assert!(!fail(&mut watcher), "it is believed at first");
            tokio::time::advance(MAX_DOUBT).await;
            assert!(fail(&mut watcher));
            assert!(reader.changed().await.is_none() && reader.catalog().is_none());
            let older = Guarded(Ok(proxy_address("older", "2026-01-01T00:00:00Z", "sales")));
            for event in [Event::Init, Event::InitApply(older), Event::InitDone] {
                watcher.state.proxy_address_event(Ok(event), Clock.monotonic());
            }
            for event in [Event::Init, Event::InitApply(namespace("sales", "sales")), Event::InitDone] {
                watcher.state.namespace_event(Ok(event), Clock.monotonic());
            }
            assert!(watcher.publish());
            assert!(is_known(reader.changed().await));
        }
    }
}
