//! The Lease: of all replicas one leads, and stops leading before another can start. Nobody else touches the Lease.
//!
//! The semantics are client-go's: `holderIdentity`, `renewTime`, `leaseTransitions`; expiry is judged by when a change was
//! observed, with the observer's own monotonic clock, so that clocks need not agree.

use crate::claims::FIELD_MANAGER;
use crate::clock::Clock;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
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
    /// How long between two attempts to acquire or to renew.
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
    /// The Lease as last observed, and when it was first observed to be so.
    observed: Option<(Lease, Instant)>,
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
            match timeout(self.settings.renew_deadline, self.attempt()).await {
                Ok(Ok(true)) => self.lead_until(Some(began + self.settings.renew_deadline)),
                Ok(Ok(false)) => self.lead_until(None),
                Ok(Err(error @ Error::WentBack { .. })) => {
                    self.lead_until(None);
                    return Err(error);
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot reach the Lease"),
                Err(_) => tracing::warn!("the Lease could not be reached in time"),
            }
            tokio::select! {
                () = sleep(self.settings.retry_period) => {}
                () = shutdown.cancelled() => {}
            }
        }
        stopped.cancelled().await;
        if let Err(error) = self.release().await {
            tracing::warn!(%error, "cannot give the Lease back: another replica will lead once it has expired");
        }
        self.lead_until(None);
        Ok(())
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
        let Some(lease) = self.leases.get_opt(&self.settings.name).await? else {
            return self.write(None).await;
        };
        let now = self.clock.monotonic();
        let since = self.observe(&lease, now)?;
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
        let is_free = holder.is_empty() || now >= since + Duration::from_secs(seconds);
        if holder == self.settings.identity || is_free { self.write(Some(lease)).await } else { Ok(false) }
    }

    /// Since when the Lease has been as it is.
    fn observe(&mut self, lease: &Lease, now: Instant) -> Result<Instant, Error> {
        let since = match &self.observed {
            Some((observed, since)) if observed.spec == lease.spec => *since,
            _ => now,
        };
        let versions = (self.observed.as_ref().and_then(|(observed, _)| version(observed)), version(lease));
        self.observed = Some((lease.clone(), since));
        match versions {
            (Some(before), Some(now)) if now < before => Err(Error::WentBack { before, now }),
            _ => Ok(since),
        }
    }

    /// Writes the Lease in our name, over `before` if it is still as it was.
    async fn write(&mut self, before: Option<Lease>) -> Result<bool, Error> {
        let now = MicroTime(self.clock.now().timestamp());
        let spec = before.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_renewal = spec.holder_identity.as_deref() == Some(&self.settings.identity);
        let transitions = spec.lease_transitions.unwrap_or_default() + i32::from(!is_renewal && before.is_some());
        let spec = LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
            acquire_time: spec.acquire_time.filter(|_| is_renewal).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        self.put(before, spec).await
    }

    async fn release(&mut self) -> Result<(), Error> {
        let Some((lease, _)) = self.observed.clone() else {
            return Ok(());
        };
        let Some(spec) = lease.spec.clone() else {
            return Ok(());
        };
        if spec.holder_identity.as_deref() == Some(&self.settings.identity) {
            let spec = LeaseSpec { holder_identity: Some(String::new()), lease_duration_seconds: Some(1), ..spec };
            self.put(Some(lease), spec).await?;
            tracing::info!("gave the Lease back");
        }
        Ok(())
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
                self.observe(&lease, now).map(|_| true)
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
