//! The Lease: of all replicas one leads, and stops leading before another can start. Nobody else touches the Lease.
//!
//! The semantics are client-go's: `holderIdentity`, `renewTime`, `leaseTransitions`; expiry is judged by when a change was
//! observed, with the observer's own monotonic clock, so that clocks need not agree. Unlike client-go, who stands by watches the
//! Lease instead of reading it every now and then: a renewal is observed when it happens, and so the Lease's end when it comes.

use crate::api::FIELD_MANAGER;
use crate::clock::Clock;
use futures::{StreamExt, TryFutureExt};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, Resource};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// Which Lease, and how long it binds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The name of the Lease.
    pub name: String,
    /// Who this replica is: different for each, also after a restart.
    pub identity: String,
    /// How long the others wait after a renewal that they observed before they take over.
    pub duration: Duration,
    /// How long after it began its last renewal that succeeded a leader goes on writing; shorter than `duration`.
    pub renew_deadline: Duration,
    /// How long between two renewals, and between two attempts to acquire where the first did not succeed.
    pub retry_period: Duration,
}

/// Whether this replica leads.
#[derive(Clone, Debug)]
pub struct Leadership {
    clock: Clock,
    leads_until: watch::Receiver<Option<Instant>>,
}

impl Leadership {
    /// Whether this replica may write now.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leads_until.borrow().is_some_and(|until| self.clock.monotonic() < until)
    }

    /// Waits until the Lease was acquired, renewed or lost.
    pub async fn changed(&mut self) {
        if self.leads_until.changed().await.is_err() {
            // The elector has ended, and with it the process is about to.
            std::future::pending::<()>().await;
        }
    }
}

/// Why the Lease could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do what was asked.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// The Lease is older than it was: etcd was restored from a backup, and what the watches have shown is of another history.
    #[error("resourceVersions went back from {before} to {now}, as after a restore of etcd from a backup")]
    WentBack {
        /// The resourceVersion at which the Lease was last observed.
        before: u64,
        /// Its present one.
        now: u64,
    },
}

/// Competes for the Lease.
pub struct Elector {
    leases: Api<Lease>,
    settings: Settings,
    clock: Clock,
    leads_until: watch::Sender<Option<Instant>>,
    observed: Option<Observed>,
}

/// The Lease as last observed, and when it was first observed to be so.
#[derive(Clone, Debug)]
struct Observed {
    lease: Lease,
    since: Instant,
}

impl Observed {
    fn holder(&self) -> &str {
        let spec = self.lease.spec.as_ref();
        spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
    }

    /// Until when its holder may still write, where it has one. A holder goes by the duration that it was started with, which is
    /// `ours` unless replicas were started with different ones, and which a hand may have changed in the Lease: the longer of the
    /// two counts.
    fn ends(&self, ours: Duration) -> Option<Instant> {
        let recorded = self.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let duration = ours.max(Duration::from_secs(u64::try_from(recorded).unwrap_or_default()));
        (!self.holder().is_empty()).then(|| self.since + duration)
    }
}

impl Elector {
    /// One that competes with `settings`, and what tells of its success.
    #[must_use]
    pub fn new(client: Client, settings: Settings, clock: Clock) -> (Self, Leadership) {
        let (leads_until, receiver) = watch::channel(None);
        let leases = Api::namespaced(client, &settings.namespace);
        (Self { leases, settings, clock, leads_until, observed: None }, Leadership { clock, leads_until: receiver })
    }

    /// Competes until `shutdown`, and gives the Lease back once `stopped` says that nothing is written any more.
    ///
    /// # Errors
    /// [`Error::WentBack`]: whatever this process knows is to be forgotten.
    pub async fn run(mut self, shutdown: CancellationToken, stopped: CancellationToken) -> Result<(), Error> {
        while !shutdown.is_cancelled() {
            let began = self.clock.monotonic();
            // Half of what there is, so that a call which hangs leaves time for another one.
            let stands_by = match timeout(self.settings.renew_deadline / 2, self.attempt()).await {
                Ok(Ok(leads)) => {
                    self.lead_until(leads.then(|| began + self.settings.renew_deadline));
                    !leads
                }
                Ok(Err(error @ Error::WentBack { .. })) => {
                    self.lead_until(None);
                    return Err(error);
                }
                Ok(Err(error)) => {
                    self.failed(&error.to_string());
                    false
                }
                Err(_) => {
                    self.failed("no answer in time");
                    false
                }
            };
            let rest = async {
                if stands_by {
                    return self.stand_by().await;
                }
                sleep(self.settings.retry_period).await;
                Ok(())
            };
            tokio::select! {
                rested = rest => rested?,
                () = shutdown.cancelled() => {}
            }
        }
        stopped.cancelled().await;
        // Nothing is written any more, so that another may lead from here on.
        self.lead_until(None);
        match timeout(self.settings.renew_deadline, self.release()).await {
            Ok(Ok(true)) => tracing::info!("gave the Lease back"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot give the Lease back: another will lead once it has expired");
            }
            Err(_) => tracing::warn!("cannot give the Lease back in time: another will lead once it has expired"),
        }
        Ok(())
    }

    /// The Lease was not reached: what it allowed before is allowed until its time is over.
    fn failed(&self, why: &str) {
        tracing::warn!(why, "cannot reach the Lease");
        if self.leads_until.borrow().is_some_and(|until| self.clock.monotonic() >= until) {
            self.lead_until(None);
        }
    }

    fn lead_until(&self, until: Option<Instant>) {
        let (leads, led) = (until.is_some(), self.leads_until.borrow().is_some());
        if leads != led {
            let identity = &self.settings.identity;
            if leads { tracing::info!(%identity, "leading") } else { tracing::info!(%identity, "no longer leading") }
        }
        self.leads_until.send_replace(until);
    }

    /// One attempt to acquire or to renew: whether this replica holds the Lease after it.
    async fn attempt(&mut self) -> Result<bool, Error> {
        let found = self.leases.get_opt(&self.settings.name).await?;
        let now = self.clock.monotonic();
        if let Some(lease) = &found {
            self.observe(lease, now)?;
        }
        // Also where it was deleted by hand: its holder does not know of that yet.
        if self.is_held_until().is_some_and(|end| now < end) {
            return Ok(false);
        }
        self.write(found).await
    }

    /// Until when another one may write, as far as is known.
    fn is_held_until(&self) -> Option<Instant> {
        let of_another = self.observed.as_ref().filter(|observed| observed.holder() != self.settings.identity);
        of_another.and_then(|observed| observed.ends(self.settings.duration))
    }

    /// Watches the Lease, which was not to be had, until another attempt may succeed: until it is given back or is over. What is
    /// missed here costs time alone, since each attempt reads the Lease first; so does a watch that dies without a word, which
    /// ends with the Lease that it last showed.
    async fn stand_by(&mut self) -> Result<(), Error> {
        let mut earliest = self.clock.monotonic() + self.settings.retry_period;
        let observed = self.observed.as_ref().and_then(|observed| observed.lease.metadata.resource_version.clone());
        let parameters = WatchParams::default().fields(&format!("metadata.name={}", self.settings.name));
        let leases = self.leases.clone();
        // Without a version it begins with the Lease as it is.
        let events = leases.watch(&parameters, observed.as_deref().unwrap_or_default());
        let mut events = pin!(events.try_flatten_stream());
        loop {
            let end = self.is_held_until().filter(|end| self.clock.monotonic() < *end);
            let event = tokio::select! {
                () = sleep_until(end.unwrap_or(earliest)) => return Ok(()),
                event = events.next() => event,
            };
            match event {
                Some(Ok(WatchEvent::Added(lease) | WatchEvent::Modified(lease))) => {
                    earliest = self.clock.monotonic();
                    self.observe(&lease, earliest)?;
                }
                // Its holder does not know of that yet.
                Some(Ok(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_))) => {}
                Some(Ok(WatchEvent::Error(status))) => {
                    tracing::debug!(why = %status, "the watch of the Lease has ended");
                }
                Some(Err(error)) => tracing::warn!(%error, "cannot watch the Lease"),
                None => {
                    sleep_until(earliest).await;
                    return Ok(());
                }
            }
        }
    }

    /// Notes what the Lease is, and since when it has been so.
    fn observe(&mut self, lease: &Lease, now: Instant) -> Result<(), Error> {
        let before = self.observed.take();
        let since = before.as_ref().filter(|before| before.lease.spec == lease.spec).map_or(now, |before| before.since);
        self.observed = Some(Observed { lease: lease.clone(), since });
        match (before.as_ref().and_then(|before| version(&before.lease)), version(lease)) {
            (Some(before), Some(now)) if now < before => Err(Error::WentBack { before, now }),
            _ => Ok(()),
        }
    }

    /// Writes the Lease in our name, over `before` if it is still as it was.
    async fn write(&mut self, before: Option<Lease>) -> Result<bool, Error> {
        let now = MicroTime(self.clock.now().timestamp());
        let spec = before.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_renewal = spec.holder_identity.as_deref() == Some(&self.settings.identity);
        let changes_hands = i32::from(!is_renewal && before.is_some());
        let spec = LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
            acquire_time: spec.acquire_time.filter(|_| is_renewal).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(spec.lease_transitions.unwrap_or_default().saturating_add(changes_hands)),
            ..LeaseSpec::default()
        };
        self.put(before, spec).await
    }

    /// Gives the Lease back, if it is ours and still as it was. Whether it was.
    async fn release(&mut self) -> Result<bool, Error> {
        let Some(Observed { lease, .. }) = self.observed.clone() else {
            return Ok(false);
        };
        match lease.spec.clone() {
            Some(spec) if spec.holder_identity.as_deref() == Some(&self.settings.identity) => {
                let now = MicroTime(self.clock.now().timestamp());
                let spec = LeaseSpec {
                    holder_identity: Some(String::new()),
                    lease_duration_seconds: Some(1),
                    renew_time: Some(now),
                    ..spec
                };
                self.put(Some(lease), spec).await
            }
            _ => Ok(false),
        }
    }

    /// Whether the write took effect: it fails where the Lease has changed since `before`.
    async fn put(&mut self, before: Option<Lease>, spec: LeaseSpec) -> Result<bool, Error> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let mut lease = before.clone().unwrap_or_default();
        lease.spec = Some(spec);
        let result = if before.is_some() {
            self.leases.replace(&self.settings.name, &parameters, &lease).await
        } else {
            lease.meta_mut().name = Some(self.settings.name.clone());
            self.leases.create(&parameters, &lease).await
        };
        match result {
            Ok(lease) => {
                let now = self.clock.monotonic();
                self.observe(&lease, now).map(|()| true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// The resourceVersion as a number, which the API conventions allow to compare since Kubernetes 1.35 (KEP-5504).
fn version(lease: &Lease) -> Option<u64> {
    lease.metadata.resource_version.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Duration = Duration::from_secs(15);

    fn observed(holder: &str, seconds: i32) -> Observed {
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        };
        Observed { lease: Lease { spec: Some(spec), ..Lease::default() }, since: Instant::now() }
    }

    #[test]
    fn a_lease_is_held_for_the_longer_of_the_duration_that_it_records_and_ours() {
        for (recorded, held) in [(15, 15), (60, 60), (1, 15), (0, 15), (-1, 15), (i32::MIN, 15)] {
            let observed = observed("another", recorded);
            let ends = observed.since + Duration::from_secs(held);
            assert_eq!(observed.ends(OURS), Some(ends), "{recorded}");
        }
    }

    #[test]
    fn a_lease_that_was_given_back_or_says_nothing_is_free_at_once() {
        assert_eq!(observed("", 1).ends(OURS), None);
        assert_eq!(Observed { lease: Lease::default(), since: Instant::now() }.ends(OURS), None);
    }
}
