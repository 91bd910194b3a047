//! Watches that do not fail if an object cannot be decoded. They decode only the parts of an object that decisions depend on. This module
//! does not depend on what the objects are used for.

use crate::api::{AddressBinding, Conversation, ProxyAddress};
use crate::kube_error::ErrorClass;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// The duration of one watch request, in seconds, after which the API server ends it. If no event arrives for this duration plus five
/// seconds, kube considers the connection dead, because a server sends at least one bookmark in each watch request. A streamed list must
/// complete within this duration, too.
const WATCH_TIMEOUT_SECONDS: u32 = 60;
/// The number of consecutive streamed lists that may fail to complete. After it, lists are fetched in pages.
const STREAMED_ATTEMPTS: u32 = 3;

/// A stored object, with the parts of its metadata that decisions depend on; or the error if it cannot be decoded.
#[derive(Clone, Debug)]
pub struct Guarded<K>(pub Result<K, InvalidObject>);

/// A stored object that cannot be decoded.
#[derive(Clone, Debug)]
pub struct InvalidObject {
    /// The metadata of the object.
    pub metadata: ObjectMeta,
    /// The error.
    pub error: String,
}

/// A kind that can be watched.
pub trait Watched: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static {
    /// Assembles an object from its parts. The error names the part that cannot be decoded.
    fn assemble(metadata: ObjectMeta, spec: Value, status: Value) -> Result<Self, String>;
}

impl Watched for Conversation {
    fn assemble(metadata: ObjectMeta, spec: Value, status: Value) -> Result<Self, String> {
        Ok(Self { metadata, spec: parse("spec", spec)?, status: parse("status", status)? })
    }
}

impl Watched for AddressBinding {
    fn assemble(metadata: ObjectMeta, spec: Value, _: Value) -> Result<Self, String> {
        Ok(Self { metadata, spec: parse("spec", spec)? })
    }
}

/// A newer version may have written fields that this one cannot decode. The address stays declared, and its namespaces granted, as long as
/// these two can be decoded: otherwise it would be open to everybody. Defaults that cannot be decoded close nothing.
impl Watched for ProxyAddress {
    fn assemble(metadata: ObjectMeta, mut spec: Value, status: Value) -> Result<Self, String> {
        let mut whole = parse("spec", spec.clone());
        let never =
            json!({"timers": {"inactiveAfter": "never", "closeAfter": "never", "closeUnassignedAfter": "never"}});
        for (unreadable, substitute) in [("inbound", Value::Null), ("defaults", never)] {
            if whole.is_err()
                && let Some(fields) = spec.as_object_mut()
            {
                fields.insert(unreadable.to_owned(), substitute);
                whole = parse("spec", spec.clone());
            }
        }
        Ok(Self { metadata, spec: whole?, status: parse("status", status).ok().flatten() })
    }
}

impl Watched for Namespace {
    fn assemble(metadata: ObjectMeta, _: Value, _: Value) -> Result<Self, String> {
        Ok(Self { metadata, spec: None, status: None })
    }
}

fn parse<T: DeserializeOwned>(part: &str, value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("{part}: {error}"))
}

/// An object as the server sends it. Other fields, above all the managed fields, are skipped.
#[derive(Deserialize)]
struct RawObject {
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
}

impl<'de, K: Watched> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RawObject { metadata, spec, status } = RawObject::deserialize(deserializer)?;
        let Metadata {
            namespace,
            name,
            uid,
            resource_version,
            generation,
            creation_timestamp,
            deletion_timestamp,
            labels,
        } = metadata;
        let metadata = ObjectMeta {
            namespace,
            name,
            uid,
            resource_version,
            generation,
            creation_timestamp,
            deletion_timestamp,
            labels,
            ..ObjectMeta::default()
        };
        let object = K::assemble(metadata.clone(), spec, status);
        Ok(Self(object.map_err(|error| InvalidObject { metadata, error })))
    }
}

impl<K: Watched> Resource for Guarded<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|invalid| &invalid.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|invalid| &mut invalid.metadata, K::meta_mut)
    }
}

/// Lists and watches the objects of a kind that `config` selects. The stream never ends.
///
/// The initial list is streamed, one object at a time, if the server supports that, and fetched in pages otherwise.
pub fn watch<K: Watched>(
    client: Client,
    config: Config,
) -> impl Stream<Item = watcher::Result<Event<Guarded<K>>>> + Send {
    let (api, config) = (Api::<Guarded<K>>::all(client), config.timeout(WATCH_TIMEOUT_SECONDS));
    let streamed = events(api.clone(), config.clone().streaming_lists());
    stream::unfold((streamed, Some((api, config)), 0), |(mut now, mut paged, mut unfinished)| async move {
        loop {
            let event = now.next().await?;
            match &event {
                Ok(Event::Init) => unfinished += 1,
                Ok(Event::InitDone) => unfinished = 0,
                _ => {}
            }
            let unsupported = event.as_ref().err().and_then(rejected_as_invalid);
            if (unfinished > STREAMED_ATTEMPTS || unsupported.is_some())
                && let Some((api, config)) = paged.take()
            {
                tracing::info!(
                    kind = %K::kind(&()),
                    reason = unsupported,
                    "the API server does not support streaming lists; fetching them in pages"
                );
                now = events(api, config);
                if unsupported.is_some() {
                    // The fallback handles this error, so the caller need not log it.
                    continue;
                }
            }
            return Some((event, (now, paged, unfinished)));
        }
    })
}

fn events<K: Watched>(api: Api<Guarded<K>>, config: Config) -> BoxStream<'static, watcher::Result<Event<Guarded<K>>>> {
    watcher(api, config).default_backoff().boxed()
}

/// The server's message if it rejects the request as invalid, because it has no streaming lists or they are disabled.
fn rejected_as_invalid(error: &watcher::Error) -> Option<&str> {
    match error {
        watcher::Error::WatchStartFailed(error @ kube::Error::Api(status))
            if matches!(ErrorClass::of(error), ErrorClass::BadRequest | ErrorClass::Invalid) =>
        {
            Some(&status.message)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Timer;

    fn stored(spec: &Value) -> Guarded<Conversation> {
        let metadata =
            json!({"name": "alice", "namespace": "sales", "resourceVersion": "7", "managedFields": "not read"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn valid_object_is_parsed_with_its_metadata() {
        let alice = stored(&json!({"channel": "SMS", "proxy": {"address": "+15017122661"}}));
        assert_eq!(alice.meta().resource_version.as_deref(), Some("7"));
        assert_eq!(alice.0.unwrap().spec.proxy.address, "+15017122661");
    }

    #[test]
    fn proxy_address_of_a_newer_version_stays_declared() {
        let read = |spec: Value, status: Value| {
            let object = json!({"metadata": {"name": "sales-sms"}, "spec": spec, "status": status});
            serde_json::from_value::<Guarded<ProxyAddress>>(object).unwrap().0.map_err(|invalid| invalid.error)
        };
        let address = json!({"channel": "SMS", "address": "+15017122661"});
        let with = |field: &str, value: Value| {
            let mut spec = address.clone();
            spec["defaults"] = json!({"timers": {"closeAfter": "1h"}});
            spec[field] = value;
            spec
        };
        let status = json!({"conditions": [{"type": "Unheard"}]});
        let newer = read(with("inbound", json!({"sources": 7})), status).unwrap();
        assert!(newer.spec.inbound.is_none() && newer.spec.defaults.is_some() && newer.status.is_none());
        let newer = read(with("defaults", json!({"timers": 7})), json!(null)).unwrap();
        let timers = newer.spec.defaults.and_then(|defaults| defaults.timers).unwrap();
        assert_eq!(timers.close_after, Some(Timer::Never), "no other default may close its conversations");
        assert!(read(with("namespaces", json!(7)), json!(null)).is_err());
    }

    #[test]
    fn invalid_object_keeps_its_name_and_the_error() {
        for spec in [json!({"channel": "Fax", "proxy": {"address": "1"}}), json!(null), json!(7)] {
            let alice = stored(&spec);
            assert_eq!(alice.meta().name.as_deref(), Some("alice"));
            assert!(alice.0.unwrap_err().error.starts_with("spec: "));
        }
    }
}
