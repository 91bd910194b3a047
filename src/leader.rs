//! Leader election by a Lease. At most one replica leads at a time: it stops before another one can start. No other module uses the
//! Lease.
//!
//! The semantics are those of client-go: `holderIdentity`, `renewTime`, `leaseTransitions`. Each replica measures the expiry with its own
//! monotonic clock, from its observation of the last change, so the clocks of the replicas may differ. Unlike client-go, a standby replica
//! watches the Lease instead of polling it, so that it observes renewals immediately.
//!
//! The operator's service account owns the Lease, so that the garbage collector deletes the Lease with the account. Otherwise the next
//! installation would wait until the Lease expires, because an uninstall removes the permissions before the leader can release it.

mod metrics;

pub use metrics::register as register_metrics;

use crate::api::FIELD_MANAGER;
use crate::clock::Clock;
use crate::kube_error::ErrorClass;
use crate::telemetry::error_chain::ErrorChain;
use futures::{StreamExt, TryFutureExt};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, Resource};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// The Lease and its durations.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The name of the Lease.
    pub name: String,
    /// The identity of this replica. It must be unique for each start of each replica.
    pub identity: String,
    /// How long standby replicas wait after the last observed renewal before they take over.
    pub duration: Duration,
    /// How long the leader may write, counted from the start of its last successful renewal. It must be shorter than `duration`.
    pub renew_deadline: Duration,
    /// The interval between renewals, and between attempts after a failure.
    pub retry_period: Duration,
}

/// Whether this replica is the leader.
#[derive(Clone, Debug)]
pub struct Leadership {
    clock: Clock,
    term: watch::Receiver<Option<Term>>,
}

/// The current term of this replica as the leader.
#[derive(Clone, Copy, Debug)]
struct Term {
    /// It ends then unless the Lease is renewed.
    until: Instant,
    /// Whether there was a leader before, whose last writes this replica may not have observed yet.
    follows_another: bool,
}

impl Leadership {
    /// Whether this replica may write now.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.term.borrow().is_some_and(|term| self.clock.monotonic() < term.until)
    }

    /// Whether there was a leader before this replica. Its last writes may still be in flight, or not observed yet.
    #[must_use]
    pub fn follows_another(&self) -> bool {
        self.term.borrow().is_some_and(|term| term.follows_another)
    }

    /// Waits until the Lease is acquired, renewed or lost.
    pub async fn changed(&mut self) {
        if self.term.changed().await.is_err() {
            // The elector has ended, so the process is about to exit.
            std::future::pending::<()>().await;
        }
    }
}

/// Why the Lease could not be acquired or renewed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request to the API server failed.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// The API server did not answer.
    #[error("no answer in time (timeout)")]
    NoAnswer,
    /// The Lease has a lower resourceVersion than before: etcd was restored from a backup, so the watches may have shown objects that no
    /// longer exist.
    #[error(
        "the resourceVersion of the Lease went back from {before} to {now}, as after a restore of etcd from a backup"
    )]
    HistoryRewound {
        /// The resourceVersion of the Lease that was observed before.
        before: u64,
        /// The current resourceVersion.
        now: u64,
    },
}

/// The `leaseDurationSeconds` of a Lease that was released, as in client-go.
const RELEASED: i32 = 1;

/// The timeout of releasing the Lease during a shutdown.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(4);

/// Competes for the Lease.
pub struct LeaderElector {
    leases: Api<Lease>,
    reviews: Api<SelfSubjectReview>,
    owner: Owner,
    /// Whether the API server refuses to change the owner of an existing Lease.
    is_owner_fixed: bool,
    settings: Settings,
    clock: Clock,
    term: watch::Sender<Option<Term>>,
    /// Whether there was a leader before the current term.
    follows_another: bool,
    observed: Option<Observed>,
}

/// The owner of a Lease that this replica writes.
#[derive(Clone, Debug, PartialEq)]
enum Owner {
    /// Not known yet.
    Unknown,
    /// None: this replica does not use a service account of the Lease's namespace.
    None,
    /// The service account of this replica.
    ServiceAccount(OwnerReference),
}

impl Owner {
    /// The owner of a Lease in `namespace` if the user of `review` writes it. A service account of another namespace cannot be the owner: the
    /// garbage collector would not find it, and would delete the Lease.
    fn of(review: SelfSubjectReview, namespace: &str) -> Self {
        let user = review.status.and_then(|status| status.user_info).unwrap_or_default();
        let name = user.username.as_deref().and_then(|name| name.strip_prefix("system:serviceaccount:"));
        match (name.and_then(|name| name.split_once(':')), user.uid) {
            (Some((of, name)), Some(uid)) if of == namespace => Self::ServiceAccount(OwnerReference {
                api_version: "v1".to_owned(),
                kind: "ServiceAccount".to_owned(),
                name: name.to_owned(),
                uid,
                block_owner_deletion: None,
                controller: None,
            }),
            _ => Self::None,
        }
    }

    /// The owners `before`, with this owner added. It replaces another service account, such as one of the same name that was deleted and
    /// recreated.
    fn added_to(&self, before: Option<Vec<OwnerReference>>) -> Option<Vec<OwnerReference>> {
        let Self::ServiceAccount(owner) = self else { return before };
        let mut owners = before.unwrap_or_default();
        owners.retain(|other| (&other.api_version, &other.kind) != (&owner.api_version, &owner.kind));
        owners.push(owner.clone());
        Some(owners)
    }
}

/// The last observed Lease, and when its spec was first observed.
#[derive(Clone, Debug)]
struct Observed {
    lease: Lease,
    since: Instant,
    /// Whether the Lease has been deleted since.
    is_gone: bool,
}

impl Observed {
    fn holder(&self) -> &str {
        let spec = self.lease.spec.as_ref();
        spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
    }

    /// The time until which a replica other than `identity` may write; `None` if the Lease was released or belongs to `identity`.
    ///
    /// The holder uses its own duration, which can differ from `ours` and, if a user has edited the Lease, from that in the Lease: the longer
    /// of the two counts. If a user removes the holder from the Lease, or deletes the Lease, the holder may not know it yet. A deleted Lease
    /// may have had another holder at the end, unless this replica is still the leader (`is_leader`).
    fn held_until(&self, identity: &str, is_leader: bool, ours: Duration) -> Option<Instant> {
        let recorded = self.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let is_ours = self.holder() == identity && (is_leader || !self.is_gone);
        let is_released = self.holder().is_empty() && recorded == RELEASED;
        let duration = ours.max(Duration::from_secs(u64::try_from(recorded).unwrap_or_default()));
        (!is_ours && !is_released).then(|| self.since + duration)
    }
}

impl LeaderElector {
    /// An elector, and the leadership that it maintains.
    #[must_use]
    pub fn new(client: Client, settings: Settings, clock: Clock) -> (Self, Leadership) {
        let (term, receiver) = watch::channel(None);
        let (leases, reviews) = (Api::namespaced(client.clone(), &settings.namespace), Api::all(client));
        let elector = Self {
            leases,
            reviews,
            owner: Owner::Unknown,
            is_owner_fixed: false,
            settings,
            clock,
            term,
            follows_another: false,
            observed: None,
        };
        (elector, Leadership { clock, term: receiver })
    }

    /// Competes until `shutdown`. Releases the Lease after `stopped`: this replica then no longer writes.
    ///
    /// # Errors
    /// [`Error::HistoryRewound`]: the process must restart to discard its state.
    pub async fn run(mut self, shutdown: CancellationToken, stopped: CancellationToken) -> Result<(), Error> {
        while !shutdown.is_cancelled() {
            let began = self.clock.monotonic();
            // Half of the deadline, so that there is time for another attempt if a request hangs.
            let attempt = timeout(self.settings.renew_deadline / 2, self.attempt()).await;
            let is_standby = match attempt.unwrap_or(Err(Error::NoAnswer)) {
                Ok(is_leader) => {
                    self.lead_until(is_leader.then(|| began + self.settings.renew_deadline));
                    !is_leader
                }
                Err(error @ Error::HistoryRewound { .. }) => {
                    self.lead_until(None);
                    return Err(error);
                }
                Err(error) => {
                    self.failed(&error);
                    false
                }
            };
            let pause = async {
                if is_standby {
                    self.watch_until_expired().await
                } else {
                    sleep(self.settings.retry_period).await;
                    Ok(())
                }
            };
            tokio::select! {
                ended = pause => ended?,
                () = shutdown.cancelled() => {}
            }
        }
        stopped.cancelled().await;
        // This replica no longer writes, so another one may lead from now on.
        self.lead_until(None);
        match timeout(self.settings.renew_deadline.min(RELEASE_TIMEOUT), self.release()).await {
            Ok(Ok(true)) => tracing::info!("released the Lease"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "cannot release the Lease: another replica leads after it expires");
            }
            Err(_) => tracing::warn!("cannot release the Lease in time: another replica leads after it expires"),
        }
        Ok(())
    }

    /// Handles a failed attempt. A leader remains the leader until its deadline.
    fn failed(&self, error: &Error) {
        tracing::warn!(error = %ErrorChain(error), "cannot reach the Lease");
        if !self.is_leader() {
            self.lead_until(None);
        }
    }

    fn is_leader(&self) -> bool {
        self.term.borrow().is_some_and(|term| self.clock.monotonic() < term.until)
    }

    fn lead_until(&self, until: Option<Instant>) {
        let (is_leader, was_leader) = (until.is_some(), self.term.borrow().is_some());
        if is_leader != was_leader {
            let identity = &self.settings.identity;
            if is_leader {
                tracing::info!(%identity, "leading");
            } else {
                tracing::info!(%identity, "no longer leading");
            }
        }
        let follows_another = self.follows_another;
        self.term.send_replace(until.map(|until| Term { until, follows_another }));
    }

    /// Attempts to acquire or renew the Lease. Returns whether this replica holds it afterwards. If there is no Lease and this replica has
    /// never observed one, as in a first installation, it acquires the Lease immediately.
    async fn attempt(&mut self) -> Result<bool, Error> {
        let found = self.leases.get_opt(&self.settings.name).await?;
        let now = self.clock.monotonic();
        match &found {
            Some(lease) => self.observe(lease, now)?,
            None => self.observe_deletion(now),
        }
        if self.held_until().is_some_and(|end| now < end) {
            return Ok(false);
        }
        self.write(found).await
    }

    /// The time until which another replica may write.
    fn held_until(&self) -> Option<Instant> {
        let observed = self.observed.as_ref()?;
        observed.held_until(&self.settings.identity, self.is_leader(), self.settings.duration)
    }

    /// Watches a Lease that another replica holds, and returns when an attempt may succeed: when the Lease is released or expires. Also
    /// returns if no event arrives for the renew deadline, because the watch may be dead. Each attempt reads the Lease first, so a missed
    /// event only causes a delay.
    async fn watch_until_expired(&mut self) -> Result<(), Error> {
        let mut last_event = self.clock.monotonic();
        let mut earliest = last_event + self.settings.retry_period;
        let observed = self.observed.as_ref().and_then(|observed| observed.lease.metadata.resource_version.clone());
        let parameters = WatchParams::default().fields(&format!("metadata.name={}", self.settings.name));
        let leases = self.leases.clone();
        // Without a version, the watch begins with the current Lease.
        let events = leases.watch(&parameters, observed.as_deref().unwrap_or_default());
        let mut events = pin!(events.try_flatten_stream());
        loop {
            let end = self.held_until().filter(|end| self.clock.monotonic() < *end);
            let event = tokio::select! {
                () = sleep_until(end.map_or(earliest, |end| end.min(last_event + self.settings.renew_deadline))) => return Ok(()),
                event = events.next() => event,
            };
            let now = self.clock.monotonic();
            match event {
                Some(Ok(WatchEvent::Added(lease) | WatchEvent::Modified(lease))) => {
                    self.observe(&lease, now)?;
                    (last_event, earliest) = (now, now);
                }
                Some(Ok(WatchEvent::Deleted(_))) => self.observe_deletion(now),
                Some(Ok(WatchEvent::Bookmark(_))) => {}
                Some(Ok(WatchEvent::Error(status))) => {
                    let error = kube::Error::Api(status);
                    tracing::debug!(error = %ErrorChain(&error), "the watch of the Lease ended");
                }
                Some(Err(error)) => tracing::warn!(error = %ErrorChain(&error), "cannot watch the Lease"),
                None => {
                    sleep_until(end.map_or(earliest, |end| end.min(earliest))).await;
                    return Ok(());
                }
            }
        }
    }

    /// Records the Lease, and the time at which its spec was first observed.
    fn observe(&mut self, lease: &Lease, now: Instant) -> Result<(), Error> {
        let before = self.observed.take();
        let since = before
            .as_ref()
            .filter(|before| before.lease.spec == lease.spec && !before.is_gone)
            .map_or(now, |before| before.since);
        self.observed = Some(Observed { lease: lease.clone(), since, is_gone: false });
        match (before.as_ref().and_then(|before| version(&before.lease)), version(lease)) {
            (Some(before), Some(now)) if now < before => Err(Error::HistoryRewound { before, now }),
            _ => Ok(()),
        }
    }

    /// Records that the Lease is gone. Its last holder may have renewed it without being observed.
    fn observe_deletion(&mut self, now: Instant) {
        if let Some(observed) = self.observed.as_mut().filter(|observed| !observed.is_gone) {
            (observed.since, observed.is_gone) = (now, true);
        }
    }

    /// Writes the Lease with this replica as the holder, if `before` has not changed. Returns whether it was written.
    async fn write(&mut self, before: Option<Lease>) -> Result<bool, Error> {
        let now = MicroTime(self.clock.now().timestamp());
        let spec = before.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_renewal = spec.holder_identity.as_deref() == Some(&self.settings.identity);
        if !self.is_leader() {
            // Without a Lease, there was no leader, unless this replica has observed one that is gone.
            self.follows_another = before.is_some() || self.observed.is_some();
        }
        let transitions = i32::from(!is_renewal && before.is_some());
        let spec = LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
            acquire_time: spec.acquire_time.filter(|_| is_renewal).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(spec.lease_transitions.unwrap_or_default().saturating_add(transitions)),
            ..LeaseSpec::default()
        };
        let (exists, unchanged) = (before.is_some(), Lease { spec: Some(spec), ..before.unwrap_or_default() });
        self.learn_owner(is_renewal).await;
        let mut lease = unchanged.clone();
        if !exists || !self.is_owner_fixed {
            lease.metadata.owner_references = self.owner.added_to(lease.metadata.owner_references);
        }
        let is_owner_new = lease.metadata.owner_references != unchanged.metadata.owner_references;
        match self.put(exists, lease).await {
            // The admission plugin OwnerReferencesPermissionEnforcement requires the permission to delete the Lease. If there is another
            // cause, the second attempt fails too.
            Err(Error::Api(error)) if ErrorClass::of(&error) == ErrorClass::Forbidden && exists && is_owner_new => {
                let is_written = self.put(exists, unchanged).await?;
                self.is_owner_fixed = true;
                tracing::info!(
                    error = %ErrorChain(&error),
                    "cannot set the service account as the owner of the Lease; an uninstall does not delete this Lease"
                );
                Ok(is_written)
            }
            result => result,
        }
    }

    /// Determines the owner of the Lease by a review. A standby replica repeats this before each write, because the service account may have
    /// been recreated. A leader does not: without its account it would have lost its permissions, and then the Lease.
    async fn learn_owner(&mut self, is_renewal: bool) {
        if is_renewal && self.owner != Owner::Unknown {
            return;
        }
        let (parameters, review) = (PostParams::default(), SelfSubjectReview::default());
        let asked = timeout(self.settings.retry_period, self.reviews.create(&parameters, &review)).await;
        self.owner = match asked {
            Ok(Ok(review)) => Owner::of(review, &self.settings.namespace),
            Ok(Err(error)) => {
                tracing::debug!(error = %ErrorChain(&error), "cannot determine the service account that owns the Lease");
                Owner::Unknown
            }
            Err(_) => Owner::Unknown,
        };
    }

    /// Releases the Lease if this replica holds it. Returns whether it did.
    async fn release(&mut self) -> Result<bool, Error> {
        loop {
            // Read the Lease, since the outcome of the last renewal may be unknown.
            let Some(lease) = self.leases.get_opt(&self.settings.name).await? else {
                return Ok(false);
            };
            let spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(&self.settings.identity) {
                return Ok(false);
            }
            let now = MicroTime(self.clock.now().timestamp());
            let spec = LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(RELEASED),
                renew_time: Some(now),
                ..spec
            };
            if self.put(true, Lease { spec: Some(spec), ..lease }).await? {
                return Ok(true);
            }
        }
    }

    /// Replaces the Lease by `lease` if it `exists`, otherwise creates it. Returns false if the Lease has changed since it was read.
    async fn put(&mut self, exists: bool, mut lease: Lease) -> Result<bool, Error> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let result = if exists {
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
            Err(error) if ErrorClass::of(&error).is_conflict() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// The resourceVersion as a number. Clients may compare resourceVersions since Kubernetes 1.35 (KEP-5504).
fn version(lease: &Lease) -> Option<u64> {
    lease.metadata.resource_version.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::{SelfSubjectReviewStatus, UserInfo};

    const OURS: Duration = Duration::from_secs(15);

    fn observed(holder: &str, seconds: i32) -> Observed {
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        };
        let lease = Lease { spec: Some(spec), ..Lease::default() };
        Observed { lease, since: Instant::now(), is_gone: false }
    }

    fn review(username: &str, uid: Option<&str>) -> SelfSubjectReview {
        let user =
            UserInfo { username: Some(username.to_owned()), uid: uid.map(ToOwned::to_owned), ..UserInfo::default() };
        let status = Some(SelfSubjectReviewStatus { user_info: Some(user) });
        SelfSubjectReview { status, ..SelfSubjectReview::default() }
    }

    #[test]
    fn owner_is_a_service_account_of_the_leases_namespace_or_none() {
        let owner_of = |username, uid| Owner::of(review(username, uid), "switchboard-system");
        let account = "system:serviceaccount:switchboard-system:switchboard";
        let Owner::ServiceAccount(owner) = owner_of(account, Some("u1")) else { panic!("no owner") };
        assert_eq!(
            (owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()),
            ("ServiceAccount", "switchboard", "u1")
        );
        for (username, uid) in [
            // The account is impersonated.
            (account, None),
            ("system:serviceaccount:elsewhere:switchboard", Some("u1")),
            ("administrator", Some("u1")),
            ("", None),
        ] {
            assert_eq!(owner_of(username, uid), Owner::None, "{username}");
        }
        assert_eq!(Owner::of(SelfSubjectReview::default(), "switchboard-system"), Owner::None);
    }

    #[test]
    fn owner_replaces_a_recreated_account_and_no_other_owner() {
        let owner = |kind: &str, uid: &str| OwnerReference {
            api_version: "v1".to_owned(),
            kind: kind.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        };
        let ours = Owner::ServiceAccount(owner("ServiceAccount", "u2"));
        let (other, before, after) =
            (owner("ConfigMap", "u0"), owner("ServiceAccount", "u1"), owner("ServiceAccount", "u2"));
        assert_eq!(ours.added_to(None), Some(vec![after.clone()]));
        assert_eq!(ours.added_to(Some(vec![before.clone(), other.clone()])), Some(vec![other, after]));
        for unset in [Owner::Unknown, Owner::None] {
            assert_eq!(unset.added_to(Some(vec![before.clone()])), Some(vec![before.clone()]));
            assert_eq!(unset.added_to(None), None);
        }
    }

    #[test]
    fn lease_is_held_for_the_longer_of_recorded_and_own_duration() {
        for (recorded, held) in [(15, 15), (60, 60), (1, 15), (0, 15), (-1, 15), (i32::MIN, 15)] {
            let observed = observed("another", recorded);
            let end = observed.since + Duration::from_secs(held);
            assert_eq!(observed.held_until("us", false, OURS), Some(end), "{recorded}");
        }
    }

    #[test]
    fn released_lease_is_free_but_lease_without_holder_is_not() {
        assert_eq!(observed("", 1).held_until("us", false, OURS), None);
        let emptied = observed("", 15);
        let bare = Observed { lease: Lease::default(), ..emptied.clone() };
        for removed in [emptied, bare] {
            assert_eq!(removed.held_until("us", false, OURS), Some(removed.since + OURS));
        }
    }

    #[test]
    fn deleted_lease_is_held_only_while_leading() {
        let ours = observed("us", 15);
        let gone = Observed { is_gone: true, ..ours.clone() };
        let end = Some(gone.since + OURS);
        assert_eq!([false, true].map(|is_leader| ours.held_until("us", is_leader, OURS)), [None, None]);
        assert_eq!([false, true].map(|is_leader| gone.held_until("us", is_leader, OURS)), [end, None]);
    }
}
