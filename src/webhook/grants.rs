//! Whether a namespace may use a proxy address. A grant that the watches show needs no read; a denial rests on live reads, since a
//! ProxyAddress may have been created a moment ago. It does not depend on HTTP or on claims.

use crate::core::claim::Request;
use crate::core::proxy_address::{Grant, grant};
use crate::proxy_addresses::{ProxyAddresses, read_in_effect, read_labels};
use crate::telemetry::error_chain::ErrorChain;
use kube::Client;
use tokio::time::{Instant, timeout_at};

/// The grants of the cluster.
#[derive(Clone)]
pub struct Grants {
    client: Client,
    proxy_addresses: ProxyAddresses,
    is_declaration_required: bool,
}

/// Whether a create may use its proxy address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantDecision {
    /// It may.
    Allowed,
    /// It may not, according to live reads.
    Denied(Grant),
    /// The API server could not be read in time.
    Undecided,
}

impl Grants {
    /// The grants that `proxy_addresses` declare. If `is_declaration_required`, an address that none of them declares is denied.
    #[must_use]
    pub fn new(client: Client, proxy_addresses: ProxyAddresses, is_declaration_required: bool) -> Self {
        Self { client, proxy_addresses, is_declaration_required }
    }

    /// Decides by `deadline` whether `request` may use its proxy address.
    pub async fn decide(&self, request: &Request, deadline: Instant) -> GrantDecision {
        let (channel, address) = (request.binding.channel(), request.binding.proxy().as_str());
        let namespace = &request.conversation.namespace;
        let catalog = self.proxy_addresses.catalog();
        let known = catalog.as_ref().map(|catalog| catalog.grant(channel, address, namespace));
        if known.is_some_and(|known| known.allows(self.is_declaration_required)) {
            return GrantDecision::Allowed;
        }
        let known = catalog.as_ref().and_then(|catalog| catalog.in_effect(channel, address));
        let reads = async {
            let in_effect = read_in_effect(self.client.clone(), channel, address, known).await?;
            match grant(in_effect.as_ref(), None) {
                Grant::NotGranted(_) => {
                    let labels = read_labels(self.client.clone(), namespace).await?;
                    Ok::<_, kube::Error>(grant(in_effect.as_ref(), labels.as_ref()))
                }
                independent => Ok(independent),
            }
        };
        match timeout_at(deadline, reads).await {
            Ok(Ok(grant)) if grant.allows(self.is_declaration_required) => GrantDecision::Allowed,
            Ok(Ok(grant)) => GrantDecision::Denied(grant),
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), %namespace, "failed to read the ProxyAddress or the namespace");
                GrantDecision::Undecided
            }
            Err(_) => GrantDecision::Undecided,
        }
    }
}
