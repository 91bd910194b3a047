//! The claim of a binding, and the conversation that it names.

use super::cluster::{Cluster, Stored, existing};
use super::error::Error;
use crate::api::AddressBinding;
use crate::claims::{self, claim_of};
use crate::core::binding::Binding;
use crate::core::claim::Claim;
use crate::kube_error::ErrorClass;
use kube::Api;

/// Reads the claim of a binding by its computed name.
///
/// # Errors
/// If it cannot be read, or its name does not match its binding.
pub async fn read_claim(cluster: &Cluster, binding: &Binding) -> Result<Option<Claim>, Error> {
    let name = binding.name();
    let claims = Api::<AddressBinding>::all(cluster.client.clone());
    let claim = existing(&claims, name.as_str(), &format!("read AddressBinding {name}")).await?;
    let claim = claim.map(|object| claim_of(&object).ok_or(claims::Error::NameMismatch(name)));
    Ok(claim.transpose()?)
}

/// The conversation that a claim names.
pub enum Claimed {
    /// The user may not read it.
    Unreadable,
    /// It does not exist: its create is in flight or has failed, or it was deleted.
    Absent,
    /// It exists, whether it holds the binding or not.
    Stored(Box<Stored>),
}

impl Claimed {
    /// Reads the conversation.
    ///
    /// # Errors
    /// If the request fails for another reason than missing permission.
    pub async fn read(cluster: &Cluster, claim: &Claim) -> Result<Self, Error> {
        match cluster.read_opt(&claim.holder).await {
            Err(Error::Request { source, .. }) if ErrorClass::of(&source) == ErrorClass::Forbidden => {
                Ok(Self::Unreadable)
            }
            stored => Ok(stored?.map_or(Self::Absent, |stored| Self::Stored(Box::new(stored)))),
        }
    }
}
