//! Keeps what is known up to date: runs the watches of the open conversations and of the claims. It decides nothing.

use super::known::{Conversations, Known};
use crate::admin::Readiness;
use crate::clock::Clock;
use crate::index::{AddressBindings, dispatch, watch_for};
use crate::proxy_addresses::ProxyAddresses;
use futures::StreamExt;
use kube::Client;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Shared access to what is known.
#[derive(Clone, Debug, Default)]
pub struct SharedKnown(Arc<RwLock<Known>>);

impl SharedKnown {
    /// What is known now. The guard must not be kept across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, to change it.
    pub fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches until the process exits. Sets `readiness` once everything that a message needs is known.
pub async fn run(
    client: Client,
    known: SharedKnown,
    mut proxy_addresses: ProxyAddresses,
    readiness: Readiness,
    clock: Clock,
) {
    let mut conversations = Box::pin(watch_for::<Conversations>(client.clone()));
    let mut claims = Box::pin(watch_for::<AddressBindings>(client));
    loop {
        tokio::select! {
            Some(event) = conversations.next() => {
                let (now, mut known) = (clock.monotonic(), known.write());
                known.conversations_watched(&event, now);
                dispatch(Conversations { known: &mut known, now }, event);
            }
            Some(event) = claims.next() => {
                let (now, mut known) = (clock.monotonic(), known.write());
                known.claims_watched(&event, now);
                dispatch(known.claims(now), event);
            }
            _ = proxy_addresses.changed() => {}
        }
        if known.read().has_synced() && proxy_addresses.catalog().is_some() {
            readiness.synced();
        }
    }
}
