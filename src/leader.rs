//! The Lease: of all replicas one leads, and stops leading before another can start. Nobody else touches the Lease.
//!
//! The semantics are client-go's: `holderIdentity`, `renewTime`, `leaseTransitions`; expiry is judged by when a change was
//! observed, with the observer's own monotonic clock, so that clocks need not agree. Other than with client-go, a replica that stands
//! by watches the Lease instead of reading it every now and then: it sees a renewal when it happens, and so the end when it comes.
//!
//! The operator's service account owns the Lease, so that the garbage collector deletes it with the account: after an uninstall the
//! rights are gone before the leader could give it back, and the next installation would wait for it to expire.

use crate::api::FIELD_MANAGER;
use crate::clock::Clock;
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
    /// How long between two renewals, and until the next attempt after one that failed.
    pub retry_period: Duration,
}

/// Whether this replica leads.
#[derive(Clone, Debug)]
pub struct Leadership {
    clock: Clock,
    leader_until: watch::Receiver<Option<Instant>>,
}

impl Leadership {
    /// Whether this replica may write now.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader_until.borrow().is_some_and(|until| self.clock.monotonic() < until)
    }

    /// Waits until the Lease was acquired, renewed or lost.
    pub async fn changed(&mut self) {
        if self.leader_until.changed().await.is_err() {
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
    /// The API server did not answer.
    #[error("no answer in time (timeout)")]
    NoAnswer,
    /// The Lease is older than it was: etcd was restored from a backup, and what the watches have shown is of another history.
    #[error("resourceVersions went back from {before} to {now}, as after a restore of etcd from a backup")]
    HistoryRewound {
        /// The resourceVersion at which the Lease was last observed.
        before: u64,
        /// Its present one.
        now: u64,
    },
}

/// What the duration of a Lease says that was given back, in seconds: here as in client-go.
const RELEASED_DURATION: i32 = 1;

/// How long giving the Lease back may take: the process is about to end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(4);

/// Competes for the Lease.
pub struct LeaderElector {
    leases: Api<Lease>,
    reviews: Api<SelfSubjectReview>,
    owner: Owner,
    /// Whether the API server refuses to change the owner of a Lease that there is.
    is_owner_fixed: bool,
    settings: Settings,
    clock: Clock,
    leader_until: watch::Sender<Option<Instant>>,
    observed: Option<Observed>,
}

/// The owner that a Lease gets which is written in our name.
#[derive(Clone, Debug, PartialEq)]
enum Owner {
    /// It is not known yet.
    Unknown,
    /// The Lease gets none: this replica runs under no service account of the Lease's namespace.
    None,
    /// The service account of this replica.
    ServiceAccount(OwnerReference),
}

impl Owner {
    /// The owner of a Lease in `namespace` that is written by whom a review says we are. Another namespace's account cannot own it:
    /// the garbage collector would not find that owner, and delete the Lease.
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

    /// The owners of a Lease that has `before`: an account that was deleted, and made again under the same name, is replaced.
    fn added_to(&self, before: Option<Vec<OwnerReference>>) -> Option<Vec<OwnerReference>> {
        let Self::ServiceAccount(owner) = self else { return before };
        let mut owners = before.unwrap_or_default();
        owners.retain(|other| (&other.api_version, &other.kind) != (&owner.api_version, &owner.kind));
        owners.push(owner.clone());
        Some(owners)
    }
}

/// The Lease as last observed, and when it was first observed to be so.
#[derive(Clone, Debug)]
struct Observed {
    lease: Lease,
    since: Instant,
    /// Whether it has been deleted since.
    is_gone: bool,
}

impl Observed {
    fn holder(&self) -> &str {
        let spec = self.lease.spec.as_ref();
        spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
    }

    /// Until when another than `identity` may write, as far as is known; nothing where it was given back. A holder goes by the
    /// duration that it was started with, which is `ours` unless replicas were started with different ones, and which a hand may have
    /// changed in the Lease: the longer of the two counts. Nor does it know at once that a hand has removed it from the Lease, or
    /// the Lease with it; and what is gone may have been another's at the end, unless `leads` says that we hold it.
    fn held_until(&self, identity: &str, leads: bool, ours: Duration) -> Option<Instant> {
        let recorded = self.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let is_ours = self.holder() == identity && (leads || !self.is_gone);
        let is_given_back = self.holder().is_empty() && recorded == RELEASED_DURATION;
        let duration = ours.max(Duration::from_secs(u64::try_from(recorded).unwrap_or_default()));
        (!is_ours && !is_given_back).then(|| self.since + duration)
    }
}

impl LeaderElector {
    /// One that competes with `settings`, and what tells of its success.
    #[must_use]
    pub fn new(client: Client, settings: Settings, clock: Clock) -> (Self, Leadership) {
        let (leader_until, receiver) = watch::channel(None);
        let (leases, reviews) = (Api::namespaced(client.clone(), &settings.namespace), Api::all(client));
        let elector = Self {
            leases,
            reviews,
            owner: Owner::Unknown,
            is_owner_fixed: false,
            settings,
            clock,
            leader_until,
            observed: None,
        };
        (elector, Leadership { clock, leader_until: receiver })
    }

    /// Competes until `shutdown`, and gives the Lease back once `stopped` says that nothing is written any more.
    ///
    /// # Errors
    /// [`Error::HistoryRewound`]: whatever this process knows is to be forgotten.
    pub async fn run(mut self, shutdown: CancellationToken, stopped: CancellationToken) -> Result<(), Error> {
        while !shutdown.is_cancelled() {
            let began = self.clock.monotonic();
            // Half of what there is, so that a call which hangs leaves time for another one.
            let attempt = timeout(self.settings.renew_deadline / 2, self.attempt()).await;
            let stands_by = match attempt.unwrap_or(Err(Error::NoAnswer)) {
                Ok(leads) => {
                    self.lead_until(leads.then(|| began + self.settings.renew_deadline));
                    !leads
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
            let rest = async {
                if stands_by {
                    self.watch_until_expired().await
                } else {
                    sleep(self.settings.retry_period).await;
                    Ok(())
                }
            };
            tokio::select! {
                rested = rest => rested?,
                () = shutdown.cancelled() => {}
            }
        }
        stopped.cancelled().await;
        // Nothing is written any more, so that another may lead from here on.
        self.lead_until(None);
        match timeout(self.settings.renew_deadline.min(RELEASE_TIMEOUT), self.release()).await {
            Ok(Ok(true)) => tracing::info!("gave the Lease back"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "cannot give the Lease back: another will lead once it has expired");
            }
            Err(_) => tracing::warn!("cannot give the Lease back in time: another will lead once it has expired"),
        }
        Ok(())
    }

    /// The Lease was not reached: what it allowed before is allowed until its time is over.
    fn failed(&self, error: &Error) {
        tracing::warn!(error = %ErrorChain(error), "cannot reach the Lease");
        if !self.is_leader() {
            self.lead_until(None);
        }
    }

    fn is_leader(&self) -> bool {
        self.leader_until.borrow().is_some_and(|until| self.clock.monotonic() < until)
    }

    fn lead_until(&self, until: Option<Instant>) {
        let (leads, led) = (until.is_some(), self.leader_until.borrow().is_some());
        if leads != led {
            let identity = &self.settings.identity;
            if leads { tracing::info!(%identity, "leading") } else { tracing::info!(%identity, "no longer leading") }
        }
        self.leader_until.send_replace(until);
    }

    /// One attempt to acquire or to renew: whether this replica holds the Lease after it. Where there is none and never was one that
    /// this replica has seen, it is taken at once, as at the first installation.
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

    /// Until when another one may write, as far as is known.
    fn held_until(&self) -> Option<Instant> {
        let observed = self.observed.as_ref()?;
        observed.held_until(&self.settings.identity, self.is_leader(), self.settings.duration)
    }

    /// Watches the Lease, which was not to be had, until another attempt may succeed: until it is given back or is over. Each attempt
    /// reads the Lease first, so what is missed here costs time alone; and where nothing comes for longer than a leader that can
    /// renew is ever silent, there is an attempt too, and another watch after it.
    async fn watch_until_expired(&mut self) -> Result<(), Error> {
        let mut heard = self.clock.monotonic();
        let mut earliest = heard + self.settings.retry_period;
        let observed = self.observed.as_ref().and_then(|observed| observed.lease.metadata.resource_version.clone());
        let parameters = WatchParams::default().fields(&format!("metadata.name={}", self.settings.name));
        let leases = self.leases.clone();
        // Without a version it begins with a Lease that there is.
        let events = leases.watch(&parameters, observed.as_deref().unwrap_or_default());
        let mut events = pin!(events.try_flatten_stream());
        loop {
            let end = self.held_until().filter(|end| self.clock.monotonic() < *end);
            let event = tokio::select! {
                () = sleep_until(end.map_or(earliest, |end| end.min(heard + self.settings.renew_deadline))) => return Ok(()),
                event = events.next() => event,
            };
            let now = self.clock.monotonic();
            match event {
                Some(Ok(WatchEvent::Added(lease) | WatchEvent::Modified(lease))) => {
                    self.observe(&lease, now)?;
                    (heard, earliest) = (now, now);
                }
                Some(Ok(WatchEvent::Deleted(_))) => self.observe_deletion(now),
                Some(Ok(WatchEvent::Bookmark(_))) => {}
                Some(Ok(WatchEvent::Error(status))) => {
                    let error = kube::Error::Api(status);
                    tracing::debug!(error = %ErrorChain(&error), "the watch of the Lease has ended");
                }
                Some(Err(error)) => tracing::warn!(error = %ErrorChain(&error), "cannot watch the Lease"),
                None => {
                    sleep_until(end.map_or(earliest, |end| end.min(earliest))).await;
                    return Ok(());
                }
            }
        }
    }

    /// Notes what the Lease is, and since when it has been so.
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

    /// Notes that there is no Lease any more: who held it at the end may have renewed it unseen.
    fn observe_deletion(&mut self, now: Instant) {
        if let Some(observed) = self.observed.as_mut().filter(|observed| !observed.is_gone) {
            (observed.since, observed.is_gone) = (now, true);
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
        let (is_one, unchanged) = (before.is_some(), Lease { spec: Some(spec), ..before.unwrap_or_default() });
        self.learn_owner(is_renewal).await;
        let mut lease = unchanged.clone();
        if !is_one || !self.is_owner_fixed {
            lease.metadata.owner_references = self.owner.added_to(lease.metadata.owner_references);
        }
        let is_owner_new = lease.metadata.owner_references != unchanged.metadata.owner_references;
        match self.put(is_one, lease).await {
            // OwnerReferencesPermissionEnforcement, an admission plugin, asks for the right to delete the Lease. If it was something
            // else, the second attempt fails as well.
            Err(Error::Api(kube::Error::Api(status))) if status.code == 403 && is_one && is_owner_new => {
                let is_written = self.put(is_one, unchanged).await?;
                self.is_owner_fixed = true;
                let error = kube::Error::Api(status);
                tracing::info!(
                    error = %ErrorChain(&error),
                    "cannot make the service account the owner of the Lease: an uninstall does not delete this Lease"
                );
                Ok(is_written)
            }
            result => result,
        }
    }

    /// Asks the API server whose Lease it is to be, where that is not known. Whoever does not hold the Lease asks again, since the
    /// account may have been deleted and made again meanwhile; a holder would have lost its rights by that, and so the Lease.
    async fn learn_owner(&mut self, is_renewal: bool) {
        if is_renewal && self.owner != Owner::Unknown {
            return;
        }
        let (parameters, review) = (PostParams::default(), SelfSubjectReview::default());
        let asked = timeout(self.settings.retry_period, self.reviews.create(&parameters, &review)).await;
        self.owner = match asked {
            Ok(Ok(review)) => Owner::of(review, &self.settings.namespace),
            Ok(Err(error)) => {
                tracing::debug!(error = %ErrorChain(&error), "cannot ask for the service account that is to own the Lease");
                Owner::Unknown
            }
            Err(_) => Owner::Unknown,
        };
    }

    /// Gives the Lease back, if it is ours. Whether it was.
    async fn release(&mut self) -> Result<bool, Error> {
        loop {
            // What the last renewal has come to need not be known.
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
                lease_duration_seconds: Some(RELEASED_DURATION),
                renew_time: Some(now),
                ..spec
            };
            if self.put(true, Lease { spec: Some(spec), ..lease }).await? {
                return Ok(true);
            }
        }
    }

    /// Writes `lease`, over the one that it was made of where there `is_one`. Whether that took effect: it fails where the Lease has
    /// changed since.
    async fn put(&mut self, is_one: bool, mut lease: Lease) -> Result<bool, Error> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let result = if is_one {
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
        let of = |username, uid| Owner::of(review(username, uid), "switchboard-system");
        let account = "system:serviceaccount:switchboard-system:switchboard";
        let Owner::ServiceAccount(owner) = of(account, Some("u1")) else { panic!("no owner") };
        assert_eq!(
            (owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()),
            ("ServiceAccount", "switchboard", "u1")
        );
        for (username, uid) in [
            // As where somebody impersonates it.
            (account, None),
            ("system:serviceaccount:elsewhere:switchboard", Some("u1")),
            ("administrator", Some("u1")),
            ("", None),
        ] {
            assert_eq!(of(username, uid), Owner::None, "{username}");
        }
        assert_eq!(Owner::of(SelfSubjectReview::default(), "switchboard-system"), Owner::None);
    }

    #[test]
    fn owner_replaces_an_account_that_was_made_again_and_no_other_owner() {
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
    fn a_lease_is_held_for_the_longer_of_the_duration_that_it_records_and_ours() {
        for (recorded, held) in [(15, 15), (60, 60), (1, 15), (0, 15), (-1, 15), (i32::MIN, 15)] {
            let observed = observed("another", recorded);
            let end = observed.since + Duration::from_secs(held);
            assert_eq!(observed.held_until("us", false, OURS), Some(end), "{recorded}");
        }
    }

    #[test]
    fn a_lease_is_free_at_once_where_it_was_given_back_and_not_where_a_hand_has_removed_its_holder() {
        assert_eq!(observed("", 1).held_until("us", false, OURS), None);
        let emptied = observed("", 15);
        let bare = Observed { lease: Lease::default(), ..emptied.clone() };
        for removed in [emptied, bare] {
            assert_eq!(removed.held_until("us", false, OURS), Some(removed.since + OURS));
        }
    }

    #[test]
    fn what_is_gone_is_ours_while_we_lead_and_may_be_anothers_otherwise() {
        let ours = observed("us", 15);
        let gone = Observed { is_gone: true, ..ours.clone() };
        let end = Some(gone.since + OURS);
        assert_eq!([false, true].map(|leads| ours.held_until("us", leads, OURS)), [None, None]);
        assert_eq!([false, true].map(|leads| gone.held_until("us", leads, OURS)), [end, None]);
    }
}
