//! Watches that nothing stored can stop, and that keep no more of an object than is decided from.

use crate::api::{AddressBinding, Conversation};
use crate::kube_error::ErrorClass;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt::Debug;

/// After so many seconds, and five more, a watch through which nothing has come is taken for dead: a connection can end without a
/// word, and a server lets one hear at least once in a watch that nothing has happened. A streamed list has to end in them, too.
const SECONDS: u32 = 60;
/// How many streamed lists in a row may begin and not end before lists are fetched by pages.
const STREAMED_ATTEMPTS: u32 = 3;

/// A stored object, with as much of its metadata as is decided from; or why it cannot be read.
#[derive(Clone, Debug)]
pub struct Guarded<K>(pub Result<K, InvalidObject>);

/// A stored object that cannot be read.
#[derive(Clone, Debug)]
pub struct InvalidObject {
    /// Which object.
    pub metadata: ObjectMeta,
    /// Why.
    pub error: String,
}

/// A kind that is watched.
pub trait Watched: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static {
    /// An object of its parts; or which of them cannot be read, and why.
    fn assemble(metadata: ObjectMeta, spec: Value, status: Value) -> Result<Self, String>;
}

impl Watched for Conversation {
    fn assemble(metadata: ObjectMeta, spec: Value, status: Value) -> Result<Self, String> {
        Ok(Self { metadata, spec: read("spec", spec)?, status: read("status", status)? })
    }
}

impl Watched for AddressBinding {
    fn assemble(metadata: ObjectMeta, spec: Value, _: Value) -> Result<Self, String> {
        Ok(Self { metadata, spec: read("spec", spec)? })
    }
}

fn read<T: DeserializeOwned>(part: &str, value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("{part}: {error}"))
}

/// An object as it arrives. What is not named here, the managed fields above all, is skipped unread.
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
}

impl<'de, K: Watched> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RawObject { metadata, spec, status } = RawObject::deserialize(deserializer)?;
        let Metadata { namespace, name, uid, resource_version, generation, creation_timestamp, deletion_timestamp } =
            metadata;
        let metadata = ObjectMeta {
            namespace,
            name,
            uid,
            resource_version,
            generation,
            creation_timestamp,
            deletion_timestamp,
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
        self.0.as_ref().map_or_else(|unreadable| &unreadable.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut unreadable.metadata, K::meta_mut)
    }
}

/// All objects of a kind that `config` selects, as they are and as they change, for ever.
///
/// The list that it begins with is streamed, one object at a time, where the server can do that, and fetched by pages otherwise.
pub fn watch<K: Watched>(
    client: Client,
    config: Config,
) -> impl Stream<Item = watcher::Result<Event<Guarded<K>>>> + Send {
    let (api, config) = (Api::<Guarded<K>>::all(client), config.timeout(SECONDS));
    let streamed = events(api.clone(), config.clone().streaming_lists());
    stream::unfold((streamed, Some((api, config)), 0), |(mut now, mut paged, mut unfinished)| async move {
        loop {
            let event = now.next().await?;
            match &event {
                Ok(Event::Init) => unfinished += 1,
                Ok(Event::InitDone) => unfinished = 0,
                _ => {}
            }
            let unsupported = event.as_ref().err().and_then(unknown_to_the_server);
            if (unfinished > STREAMED_ATTEMPTS || unsupported.is_some())
                && let Some((api, config)) = paged.take()
            {
                tracing::info!(
                    kind = %K::kind(&()),
                    reason = unsupported,
                    "the API server does not stream lists: they are fetched by pages"
                );
                now = events(api, config);
                if unsupported.is_some() {
                    // The fallback answers it, as designed: no failure for the caller to warn of.
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

/// Why what the server was asked for is no valid request to it, if it says so: it has no streamed lists, or they are switched off.
fn unknown_to_the_server(error: &watcher::Error) -> Option<&str> {
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
    use serde_json::json;

    fn stored(spec: &Value) -> Guarded<Conversation> {
        let metadata =
            json!({"name": "alice", "namespace": "sales", "resourceVersion": "7", "managedFields": "not read"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn what_can_be_read_is_read_with_the_metadata_that_is_decided_from() {
        let alice = stored(&json!({"channel": "SMS", "proxy": {"address": "+15017122661"}}));
        assert_eq!(alice.meta().resource_version.as_deref(), Some("7"));
        assert_eq!(alice.0.unwrap().spec.proxy.address, "+15017122661");
    }

    #[test]
    fn what_cannot_be_read_says_what_it_is_and_why() {
        for spec in [json!({"channel": "Fax", "proxy": {"address": "1"}}), json!(null), json!(7)] {
            let alice = stored(&spec);
            assert_eq!(alice.meta().name.as_deref(), Some("alice"));
            assert!(alice.0.unwrap_err().error.starts_with("spec: "));
        }
    }
}
