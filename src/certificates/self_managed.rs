//! The certificate that the operator issues for itself. A Secret stores it, and the `caBundle` of the webhook configuration has its CA. This
//! module applies the steps of `rotation`.
//!
//! Every replica does this, not only the leader. Each write has a precondition, so if several replicas write, one succeeds and the others
//! continue from its state. Both objects are watched, and also reconciled every few seconds, because a watch may stall.

use super::issue::issue;
use super::rotation::{CertificateSpec, CertificateState, Step, step};
use super::tls::{Pair, Publisher, TlsError, is_usable};
use crate::api::FIELD_MANAGER;
use crate::clock::Clock;
use crate::kube_error::ErrorClass;
use crate::telemetry::error_chain::ErrorChain;
use data_encoding::BASE64;
use futures::future::ready;
use futures::stream::{Stream, StreamExt, select};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The interval between reconciliations if the watches show no change.
const RESYNC_INTERVAL: Duration = Duration::from_secs(10);
/// The minimum interval between reconciliations. It doubles after each reconciliation that writes or fails, and is reset when nothing has
/// changed until the next resync. So the replicas do not spin if another controller reverts every write.
const MIN_RECONCILE_INTERVAL: Duration = Duration::from_millis(100);
/// The timeout of a reconciliation.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(10);

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const TRUSTED: &str = "ca.crt";
const NEXT_TRUSTED: &str = "next-ca.crt";

/// The names of the certificate, and the objects that store it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of the Secret.
    pub namespace: String,
    /// The name of the Secret.
    pub secret: String,
    /// The name of the ValidatingWebhookConfiguration.
    pub configuration: String,
    /// The DNS names and IP addresses at which the API server calls the webhook.
    pub names: Vec<String>,
    /// How long a certificate is valid. It is renewed at two thirds of that.
    pub life: Duration,
}

/// Issues and renews the certificate.
pub struct SelfManagedCertificate {
    client: Client,
    secrets: Api<Secret>,
    configurations: Api<ValidatingWebhookConfiguration>,
    settings: Settings,
    spec: CertificateSpec,
    clock: Clock,
    publisher: Publisher,
    /// The last observed state of the Secret.
    known: Option<CertificateState>,
    /// The state that is stored and trusted, and since when.
    in_force: Option<(CertificateState, Instant)>,
}

/// Why reconciling the certificate failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("there is no ValidatingWebhookConfiguration {0}: install the chart, or name it by --webhook-configuration")]
    NoConfiguration(String),
    #[error("cannot issue a certificate: {0}; check --webhook-dns-name")]
    Issue(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Whether another reconciliation is due.
enum Reconciled {
    /// Yes: this or another replica has written.
    Requeue,
    /// No: the state is the desired one.
    Done,
}

impl SelfManagedCertificate {
    /// A certificate as `settings` say, which is served by `publisher`.
    #[must_use]
    pub fn new(client: Client, settings: Settings, clock: Clock, publisher: Publisher) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &settings.namespace),
            configurations: Api::all(client.clone()),
            client,
            spec: CertificateSpec {
                names: settings.names.iter().map(|name| canonical(name)).collect(),
                life: settings.life,
            },
            settings,
            clock,
            publisher,
            known: None,
            in_force: None,
        }
    }

    /// Reconciles the certificate until the process exits.
    pub async fn run(mut self) {
        let mut changes = pin!(self.changes());
        // The number of reconciliations in a row that wrote or failed.
        let mut attempts = 0;
        loop {
            let has_failed = match timeout(RECONCILE_TIMEOUT, self.reconcile()).await {
                Ok(Ok(Reconciled::Done)) => {
                    sleep(spacing(attempts).min(self.pause())).await;
                    tokio::select! {
                        () = sleep_until(self.next_reconcile()) => attempts = 0,
                        Some(()) = changes.next() => {}
                    }
                    continue;
                }
                Ok(Ok(Reconciled::Requeue)) => false,
                Ok(Err(error)) => {
                    tracing::warn!(error = %ErrorChain(&error), "cannot reconcile the certificate of the webhook");
                    true
                }
                Err(_) => {
                    tracing::warn!("cannot reconcile the certificate of the webhook in time");
                    true
                }
            };
            attempts += 1;
            let pause = sleep(spacing(attempts).min(self.pause()));
            if has_failed {
                // A missing object may have been restored: its caBundle is written immediately, even after a long absence.
                tokio::select! {
                    () = pause => {}
                    Some(()) = changes.next() => {}
                }
            } else {
                // Not immediately, so that writers of the same objects do not spin.
                pause.await;
            }
        }
    }

    /// Yields when the Secret or the configuration may have changed.
    fn changes(&self) -> impl Stream<Item = ()> + use<> {
        let secrets = Api::namespaced(self.client.clone(), &self.settings.namespace);
        select(
            changes::<Secret>(secrets, &self.settings.secret),
            changes::<ValidatingWebhookConfiguration>(Api::all(self.client.clone()), &self.settings.configuration),
        )
    }

    /// The resync interval. It is so short that there are several reconciliations between the renewal of a certificate and its expiry.
    fn pause(&self) -> Duration {
        (self.settings.life / 30).min(RESYNC_INTERVAL)
    }

    /// The maximum time until every API server has observed the `caBundle`, and every replica the Secret. Their watches usually need
    /// milliseconds; if the watch of a replica stalls, its next reconciliation observes the Secret.
    fn settling(&self) -> Duration {
        self.pause() * 3 / 2
    }

    fn next_reconcile(&self) -> Instant {
        let now = self.clock.monotonic();
        let settled = self.in_force.as_ref().map(|(_, since)| *since + self.settling());
        settled.into_iter().filter(|settled| *settled > now).fold(now + self.pause(), Instant::min)
    }

    async fn reconcile(&mut self) -> Result<Reconciled, Error> {
        // The configuration is read before the Secret, and written with its resourceVersion as a precondition. So the writer has read a Secret
        // that is at least as new as that of the previous writer.
        let name = &self.settings.configuration;
        let configuration = self.configurations.get_opt(name).await?;
        let configuration = configuration.ok_or_else(|| Error::NoConfiguration(name.clone()))?;
        let secret = self.secrets.get_opt(&self.settings.secret).await?;
        let state = secret.as_ref().and_then(state);
        let is_trusted = match &state {
            Some(state) => self.trust(&configuration, &state.trusted).await?,
            None => false,
        };
        let is_settled = self.is_settled(state.as_ref().filter(|_| is_trusted));
        let now = self.clock.now();
        let step = step(state.as_ref(), self.known.as_ref(), &self.spec, is_settled, now);
        if let Some(state) = &state {
            self.known = Some(state.clone());
        }
        let issue = || issue(&self.spec.names_after(self.known.as_ref()), now, self.spec.life);
        let changed = match (step, state.or_else(|| self.known.clone())) {
            (Step::None, state) => {
                let Some(state) = state.filter(|_| is_trusted) else { return Ok(Reconciled::Requeue) };
                self.publisher.publish(&state.serving)?;
                return Ok(Reconciled::Done);
            }
            (Step::Reissue, Some(known)) => known.reissued(issue()?, &bundle(&configuration), now),
            (Step::Stage, Some(state)) => state.staged(issue()?, now),
            (Step::Promote, Some(state)) => state.promoted(),
            (Step::Retire, Some(state)) => state.retired(),
            (Step::Issue | Step::Reissue | Step::Stage | Step::Promote | Step::Retire, state) => {
                let stored = secret.as_ref().and_then(|secret| part(secret, TRUSTED));
                let before = state.map(|state| state.trusted).or(stored).unwrap_or_default();
                CertificateState::issued(issue()?, &[before, bundle(&configuration)].concat(), now)
            }
        };
        if self.store(secret, &changed).await? {
            tracing::info!(step = <&str>::from(step), secret = self.settings.secret, "updated the certificate Secret");
            self.trust(&configuration, &changed.trusted).await?;
        }
        Ok(Reconciled::Requeue)
    }

    /// Records the state in force. Returns whether all replicas and API servers have observed it.
    fn is_settled(&mut self, in_force: Option<&CertificateState>) -> bool {
        let now = self.clock.monotonic();
        if self.in_force.as_ref().map(|(state, _)| state) != in_force {
            self.in_force = in_force.map(|state| (state.clone(), now));
        }
        self.in_force.as_ref().is_some_and(|(_, since)| now >= *since + self.settling())
    }

    /// Writes `state` to the Secret if `before` has not changed. Returns whether it was written.
    async fn store(&self, before: Option<Secret>, state: &CertificateState) -> Result<bool, Error> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let name = &self.settings.secret;
        let result = if let Some(before) = before {
            let secret = Secret { data: Some(data(state)), ..before };
            self.secrets.replace(name, &parameters, &secret).await
        } else {
            // Without a type, like the Secret of the chart: an upgrade adopts it, and a type is immutable.
            let secret = Secret {
                metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
                data: Some(data(state)),
                ..Secret::default()
            };
            self.secrets.create(&parameters, &secret).await
        };
        match result {
            Ok(_) => Ok(true),
            // Another replica was first; its state is reconciled next.
            Err(error) if ErrorClass::of(&error).is_conflict() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes `trusted` to the `caBundle` of the configuration, unless it is there already. Returns whether it was.
    async fn trust(&self, configuration: &ValidatingWebhookConfiguration, trusted: &[u8]) -> Result<bool, Error> {
        let webhooks = configuration.webhooks.iter().flatten();
        if webhooks.clone().all(|webhook| webhook.client_config.ca_bundle.as_ref().is_some_and(|ca| ca.0 == trusted)) {
            return Ok(true);
        }
        let bundle = BASE64.encode(trusted);
        let webhooks = webhooks
            .map(|webhook| serde_json::json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect::<Vec<_>>();
        let patch = serde_json::json!({
            "metadata": {"resourceVersion": configuration.resource_version()},
            "webhooks": webhooks,
        });
        let name = &self.settings.configuration;
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match self.configurations.patch(name, &parameters, &Patch::Strategic(patch)).await {
            Ok(_) => tracing::info!(configuration = name, "wrote the caBundle"),
            // Another writer was first; the configuration is reconciled next.
            Err(error) if ErrorClass::of(&error).is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }
}

/// Yields at the start, and when the object of that name may have changed. It watches only the metadata; a reconciliation reads the object.
fn changes<K>(api: Api<PartialObjectMeta<K>>, name: &str) -> impl Stream<Item = ()> + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    watch_object(api, name).default_backoff().filter_map(|state| {
        ready(match state {
            Ok(_) => Some(()),
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), kind = %K::kind(&()), "cannot watch an object of the certificate");
                None
            }
        })
    })
}

/// The minimum interval between reconciliations after `attempts` that wrote or failed.
fn spacing(attempts: u32) -> Duration {
    MIN_RECONCILE_INTERVAL.saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX))
}

/// The CAs that the configuration trusts.
fn bundle(configuration: &ValidatingWebhookConfiguration) -> Vec<u8> {
    let webhooks = configuration.webhooks.iter().flatten();
    webhooks
        .filter_map(|webhook| webhook.client_config.ca_bundle.as_ref())
        .flat_map(|bundle| bundle.0.clone())
        .collect()
}

/// An IP address in its canonical spelling, as in certificates; any other name unchanged.
fn canonical(name: &str) -> String {
    name.parse().map_or_else(|_| name.to_owned(), |address: IpAddr| address.to_string())
}

fn part(secret: &Secret, key: &str) -> Option<Vec<u8>> {
    secret.data.as_ref()?.get(key).map(|bytes| bytes.0.clone())
}

/// The state that a Secret stores; `None` if a part is missing or not usable.
fn state(secret: &Secret) -> Option<CertificateState> {
    let pair = |certificate, key| {
        let pair = Pair { certificate: part(secret, certificate)?, key: part(secret, key)? };
        Some(pair).filter(is_usable)
    };
    Some(CertificateState {
        serving: pair(CERTIFICATE, KEY)?,
        next: pair(NEXT_CERTIFICATE, NEXT_KEY),
        trusted: part(secret, TRUSTED)?,
        next_trusted: part(secret, NEXT_TRUSTED),
    })
}

fn data(state: &CertificateState) -> BTreeMap<String, ByteString> {
    let CertificateState { serving, next, trusted, next_trusted } = state;
    let next = next.iter().flat_map(|next| [(NEXT_CERTIFICATE, &next.certificate), (NEXT_KEY, &next.key)]);
    let parts = [(CERTIFICATE, &serving.certificate), (KEY, &serving.key), (TRUSTED, trusted)];
    let next_trusted = next_trusted.iter().map(|trusted| (NEXT_TRUSTED, trusted));
    parts
        .into_iter()
        .chain(next)
        .chain(next_trusted)
        .map(|(key, bytes)| (key.to_owned(), ByteString(bytes.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::tls::Validity;

    #[test]
    fn ip_addresses_are_formatted_as_in_certificates() {
        for (name, expected) in [("FD00:0::1", "fd00::1"), ("10.0.0.1", "10.0.0.1"), ("hook.example", "hook.example")] {
            let issued = issue(&[canonical(name)], Clock.now(), Duration::from_hours(30)).unwrap();
            assert_eq!(Validity::of(&issued.pair.certificate).unwrap().names, [expected]);
            assert_eq!(canonical(name), expected);
        }
    }

    #[test]
    fn interval_grows_with_each_reconciliation_that_writes() {
        assert_eq!([0, 1, 2, 3].map(spacing), [100, 100, 200, 400].map(Duration::from_millis));
        assert!(spacing(u32::MAX) > RESYNC_INTERVAL);
    }
}
