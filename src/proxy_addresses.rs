//! The ProxyAddresses and the labels of the namespaces, as the watches show them: an immutable catalog, replaced at each change. It
//! decides nothing, and does not know who reads it.

use crate::api::{Channel, ProxyAddress, Timers};
use crate::core::proxy_address::{Grant, Labels, grant, precedence};
use crate::kube_error::ErrorClass;
use crate::telemetry::error_chain::ErrorChain;
use crate::watch::{Guarded, watch};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Api, Client, Resource, ResourceExt};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch as channel;

/// The stored ProxyAddresses, and the labels of the namespaces.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    by_name: HashMap<String, Arc<ProxyAddress>>,
    /// Those with the same channel and address; the one in effect comes first.
    by_address: HashMap<Channel, HashMap<String, Vec<Arc<ProxyAddress>>>>,
    namespaces: HashMap<String, Arc<Labels>>,
}

impl Catalog {
    /// All stored ProxyAddresses, also those that are not in effect.
    pub fn all(&self) -> impl Iterator<Item = &ProxyAddress> {
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
        self.by_address.get(&channel)?.get(address)?.first().map(Arc::as_ref)
    }

    /// The default timers of the conversations behind an address, according to its ProxyAddress.
    #[must_use]
    pub fn default_timers(&self, channel: Channel, address: &str) -> Timers {
        let declared = self.in_effect(channel, address).and_then(|declared| declared.spec.defaults.as_ref());
        declared.and_then(|defaults| defaults.timers).unwrap_or_default()
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

    fn clear(&mut self) {
        self.by_name.clear();
        self.by_address.clear();
    }
}

/// Readers of the catalog.
#[derive(Clone, Debug)]
pub struct ProxyAddresses(channel::Receiver<Option<Arc<Catalog>>>);

impl ProxyAddresses {
    /// The latest catalog; `None` until both watches have completed a list.
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

/// The ProxyAddress that is in effect for an address, read live. If the kind is not installed, there is none.
///
/// # Errors
/// If the ProxyAddresses cannot be read.
pub async fn read_in_effect(
    client: Client,
    channel: Channel,
    address: &str,
) -> Result<Option<ProxyAddress>, kube::Error> {
    let selector = format!("spec.channel={channel},spec.address={}", escape(address));
    match Api::<Guarded<ProxyAddress>>::all(client).list(&ListParams::default().fields(&selector)).await {
        Ok(list) => {
            let readable = list.items.into_iter().filter_map(|Guarded(object)| object.ok());
            Ok(readable.min_by(|one, other| precedence(one).cmp(&precedence(other))))
        }
        Err(error) if ErrorClass::of(&error).is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// `value` as a field selector spells it.
fn escape(value: &str) -> String {
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
    state: State,
    sender: channel::Sender<Option<Arc<Catalog>>>,
}

/// What the watches have shown so far.
#[derive(Default)]
struct State {
    catalog: Arc<Catalog>,
    /// The lists in progress. An object that is not in a list is gone when the list is complete.
    listed_proxy_addresses: Vec<ProxyAddress>,
    listed_namespaces: HashMap<String, Arc<Labels>>,
    has_proxy_addresses: bool,
    has_namespaces: bool,
}

impl ProxyAddressWatcher {
    /// A watcher, and the reader of its catalog.
    #[must_use]
    pub fn new(client: Client) -> (Self, ProxyAddresses) {
        let (sender, receiver) = channel::channel(None);
        (Self { client, state: State::default(), sender }, ProxyAddresses(receiver))
    }

    /// Runs until the process exits.
    pub async fn run(mut self) {
        let mut proxy_addresses = Box::pin(watch::<ProxyAddress>(self.client.clone(), Config::default()));
        let mut namespaces = Box::pin(watch::<Namespace>(self.client.clone(), Config::default()));
        loop {
            tokio::select! {
                Some(event) = proxy_addresses.next() => self.state.proxy_address_event(event),
                Some(event) = namespaces.next() => self.state.namespace_event(event),
                else => return,
            }
            // One catalog for the events that have arrived together.
            while let Some(Some(event)) = proxy_addresses.next().now_or_never() {
                self.state.proxy_address_event(event);
            }
            while let Some(Some(event)) = namespaces.next().now_or_never() {
                self.state.namespace_event(event);
            }
            self.publish();
        }
    }

    fn publish(&self) {
        let State { catalog, has_proxy_addresses: true, has_namespaces: true, .. } = &self.state else { return };
        self.sender.send_if_modified(|published| {
            let is_new = published.as_ref().is_none_or(|published| !Arc::ptr_eq(published, catalog));
            if is_new {
                *published = Some(catalog.clone());
            }
            is_new
        });
    }
}

impl State {
    fn proxy_address_event(&mut self, event: watcher::Result<Event<Guarded<ProxyAddress>>>) {
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
                self.has_proxy_addresses = true;
            }
            Ok(Event::Apply(Guarded(object))) => match object {
                Ok(object) => Arc::make_mut(&mut self.catalog).insert(object),
                Err(invalid) => {
                    log_invalid(invalid.metadata.name.as_deref());
                    Arc::make_mut(&mut self.catalog).remove(invalid.metadata.name.as_deref().unwrap_or_default());
                }
            },
            Ok(Event::Delete(object)) => Arc::make_mut(&mut self.catalog).remove(&object.name_any()),
            Err(error) => {
                log_interrupted("ProxyAddresses", &error);
                if is_not_found(&error) {
                    // The kind is not installed. A catalog that is empty already stays the same.
                    if !self.catalog.by_name.is_empty() {
                        Arc::make_mut(&mut self.catalog).clear();
                    }
                    self.has_proxy_addresses = true;
                }
            }
        }
    }

    fn namespace_event(&mut self, event: watcher::Result<Event<Guarded<Namespace>>>) {
        let labels = |object: &Guarded<Namespace>| Arc::new(object.meta().labels.clone().unwrap_or_default());
        match event {
            Ok(Event::Init) => self.listed_namespaces.clear(),
            Ok(Event::InitApply(object)) => {
                self.listed_namespaces.insert(object.name_any(), labels(&object));
            }
            Ok(Event::InitDone) => {
                Arc::make_mut(&mut self.catalog).namespaces = std::mem::take(&mut self.listed_namespaces);
                self.has_namespaces = true;
            }
            Ok(Event::Apply(object)) => {
                let (name, labels) = (object.name_any(), labels(&object));
                // Most events of a namespace do not change its labels.
                if self.catalog.namespaces.get(&name) != Some(&labels) {
                    Arc::make_mut(&mut self.catalog).namespaces.insert(name, labels);
                }
            }
            Ok(Event::Delete(object)) => {
                Arc::make_mut(&mut self.catalog).namespaces.remove(&object.name_any());
            }
            Err(error) => log_interrupted("namespaces", &error),
        }
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
