//! The requests of the plugin, as the user of the kubeconfig or the one that it impersonates.

use super::error::{Error, is_unknown_kind};
use super::target::Target;
use crate::api::{Condition, ConditionType, Conversation, ConversationReference};
use crate::kube_error::ErrorClass;
use clap::Args;
use kube::api::DynamicObject;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ApiResource;
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::PathBuf;

/// The flags by which kubectl chooses a cluster, a user and a namespace.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub struct Connection {
    /// Namespace of the conversations [default: that of the context]
    #[arg(long, short, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, global = true)]
    context: Option<String>,
    /// Path of the kubeconfig [default: KUBECONFIG, else ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// User to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    as_user: Option<String>,
    /// Group to impersonate, together with --as; may be repeated
    #[arg(long, global = true, value_name = "GROUP")]
    as_group: Vec<String>,
}

/// A cluster, and the namespace of names without one.
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The namespace of `--namespace`, or that of the context.
    pub namespace: String,
    /// Whether `--namespace` is set.
    is_namespace_set: bool,
}

/// A stored conversation.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As the API server sent it, so that no field is lost that this version does not know.
    pub object: Value,
    /// Its typed form.
    pub conversation: Conversation,
}

impl Connection {
    /// Reads the kubeconfig. Does not call the API server.
    ///
    /// # Errors
    /// If there is no valid configuration.
    pub async fn connect(&self) -> Result<Cluster, Error> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match (&self.kubeconfig, &self.context) {
            (Some(path), _) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
            (None, Some(_)) => Config::from_kubeconfig(&options).await?,
            // In a pod, the service account.
            (None, None) => Config::infer().await?,
        };
        if let Some(user) = &self.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = Some(self.as_group.clone()).filter(|groups| !groups.is_empty());
        } else if !self.as_group.is_empty() {
            return Err(Error::Usage("--as-group needs --as: only a user can be in a group".to_owned()));
        }
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let is_namespace_set = self.namespace.is_some();
        Ok(Cluster { client: Client::try_from(config).map_err(Error::BadConfig)?, namespace, is_namespace_set })
    }
}

impl Cluster {
    /// The place of a conversation that the command line names.
    ///
    /// # Errors
    /// If it contradicts `--namespace`.
    pub fn place(&self, target: &Target) -> Result<ConversationReference, Error> {
        let namespace = target.namespace.as_ref().unwrap_or(&self.namespace);
        if self.is_namespace_set && *namespace != self.namespace {
            return Err(Error::Usage(format!(
                "{namespace}/{} is not in the namespace {} of --namespace; omit one of them",
                target.name, self.namespace
            )));
        }
        Ok(ConversationReference { namespace: namespace.clone(), name: target.name.clone() })
    }

    /// The conversations of a namespace, or of all namespaces.
    pub fn conversations(&self, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<Conversation>(&());
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Reads a conversation.
    ///
    /// # Errors
    /// If it does not exist, or cannot be read.
    pub async fn read(&self, place: &ConversationReference) -> Result<Stored, Error> {
        self.read_opt(place).await?.ok_or_else(|| Error::NotFound(place.to_string()))
    }

    /// Reads a conversation that may not exist.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn read_opt(&self, place: &ConversationReference) -> Result<Option<Stored>, Error> {
        let action = format!("read conversation {place}");
        let object = existing(&self.conversations(Some(&place.namespace)), &place.name, &action).await?;
        object.map(Stored::of).transpose()
    }
}

/// Reads an object; `None` if it does not exist.
pub async fn existing<K: Clone + DeserializeOwned + std::fmt::Debug>(
    objects: &Api<K>,
    name: &str,
    action: &str,
) -> Result<Option<K>, Error> {
    match objects.get(name).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if ErrorClass::of(&error).is_not_found() && !is_unknown_kind(&error) => Ok(None),
        Err(error) => Err(Error::request(action)(error)),
    }
}

impl Stored {
    /// A conversation that was read.
    ///
    /// # Errors
    /// If it cannot be decoded: somebody bypassed the schema, or its version is newer.
    pub fn of(object: DynamicObject) -> Result<Self, Error> {
        let (namespace, name) = (object.metadata.namespace.as_deref(), object.metadata.name.as_deref());
        let what = format!("conversation {}/{}", namespace.unwrap_or_default(), name.unwrap_or_default());
        let object = serde_json::to_value(object)?;
        match serde_json::from_value(object.clone()) {
            Ok(conversation) => Ok(Self { object, conversation }),
            Err(cause) => Err(Error::Undecodable { what, cause }),
        }
    }

    /// A condition of its status.
    pub fn condition(&self, type_: ConditionType) -> Option<&Condition> {
        let conditions = &self.conversation.status.as_ref()?.conditions;
        conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// Its namespace and name.
    pub fn place(&self) -> ConversationReference {
        let metadata = self.conversation.metadata.clone();
        ConversationReference {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
        }
    }
}

/// An object as kubectl prints it: without the managed fields, which are long.
pub fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}
