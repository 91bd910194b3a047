//! The certificate that the operator makes for itself: in a Secret, with its CA in the `caBundle` of the webhook's configuration.
//! It carries out what `rotation` decides.
//!
//! Every replica does so, whoever leads: each write has a precondition, so replicas that act at once agree on what came first. Both
//! objects are watched, and looked at every few seconds besides: a watch may die and say nothing.

use super::issue::issue;
use super::rotation::{CertificateSpec, CertificateState, Step, step};
use super::tls::{Pair, Publisher, TlsError, is_usable};
use crate::api::FIELD_MANAGER;
use crate::clock::Clock;
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

/// How long between two looks where the watches show nothing.
const RESYNC_INTERVAL: Duration = Duration::from_secs(10);
/// The least time between two looks. After each one that had to write, or failed, it doubles, until nothing happens for a while:
/// whoever undoes every write does not make the replicas spin.
const MIN_RECONCILE_INTERVAL: Duration = Duration::from_millis(100);
/// How long one look may take.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(10);

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const TRUSTED: &str = "ca.crt";
const NEXT_TRUSTED: &str = "next-ca.crt";

/// Where the certificate is stored, and for which names.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of the Secret.
    pub namespace: String,
    /// The name of the Secret.
    pub secret: String,
    /// The name of the webhook's configuration.
    pub configuration: String,
    /// The DNS names and IP addresses at which the API server calls the webhook.
    pub names: Vec<String>,
    /// How long a certificate is valid. It is renewed at two thirds of that.
    pub life: Duration,
}

/// Keeps the certificate.
pub struct SelfManagedCertificate {
    client: Client,
    secrets: Api<Secret>,
    configurations: Api<ValidatingWebhookConfiguration>,
    settings: Settings,
    spec: CertificateSpec,
    clock: Clock,
    publisher: Publisher,
    /// What the Secret held when it was last seen.
    known: Option<CertificateState>,
    /// What the Secret was seen to hold and the configuration to trust, and since when.
    in_force: Option<(CertificateState, Instant)>,
}

/// Why reconciling the certificate failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("there is no ValidatingWebhookConfiguration {0}: install the chart, or name it by --webhook-configuration")]
    NoConfiguration(String),
    #[error("cannot make a certificate: {0}; check --webhook-dns-name")]
    Issue(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Whether there is more to be done at once.
enum Reconciled {
    /// Something was written, by us or by another: what follows from it is to be seen.
    Requeue,
    /// All is as it should be.
    Done,
}

impl SelfManagedCertificate {
    /// One that keeps what `settings` say, and hands what is to be served to `publisher`.
    #[must_use]
    pub fn new(client: Client, settings: Settings, clock: Clock, publisher: Publisher) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &settings.namespace),
            configurations: Api::all(client.clone()),
            client,
            spec: CertificateSpec {
                names: settings.names.iter().map(|name| spelled(name)).collect(),
                life: settings.life,
            },
            settings,
            clock,
            publisher,
            known: None,
            in_force: None,
        }
    }

    /// Keeps the certificate for as long as the process lives.
    pub async fn run(mut self) {
        let mut changes = pin!(self.changes());
        // The looks that wrote or failed since nothing has happened for a while.
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
                    tracing::warn!(error = %ErrorChain(&error), "cannot keep the certificate of the webhook");
                    true
                }
                Err(_) => {
                    tracing::warn!("the certificate of the webhook could not be looked after in time");
                    true
                }
            };
            attempts += 1;
            let pause = sleep(spacing(attempts).min(self.pause()));
            if has_failed {
                // What was missing or out of reach may be back: a registration is mended at once, however long it was away.
                tokio::select! {
                    () = pause => {}
                    Some(()) = changes.next() => {}
                }
            } else {
                // Not at once, so that replicas and others that write the same do not spin.
                pause.await;
            }
        }
    }

    /// Tells whenever the Secret or the configuration may have changed.
    fn changes(&self) -> impl Stream<Item = ()> + use<> {
        let secrets = Api::namespaced(self.client.clone(), &self.settings.namespace);
        select(
            changes::<Secret>(secrets, &self.settings.secret),
            changes::<ValidatingWebhookConfiguration>(Api::all(self.client.clone()), &self.settings.configuration),
        )
    }

    /// Short enough that several looks fit between the renewal of a certificate and its end.
    fn pause(&self) -> Duration {
        (self.settings.life / 30).min(RESYNC_INTERVAL)
    }

    /// How long it takes at most until every API server knows a `caBundle`, and every replica what the Secret holds: by their
    /// watches, which takes milliseconds, or where those have died, by a replica's next look.
    fn settling(&self) -> Duration {
        self.pause() * 3 / 2
    }

    fn next_reconcile(&self) -> Instant {
        let now = self.clock.monotonic();
        let settled = self.in_force.as_ref().map(|(_, since)| *since + self.settling());
        settled.into_iter().filter(|settled| *settled > now).fold(now + self.pause(), Instant::min)
    }

    async fn reconcile(&mut self) -> Result<Reconciled, Error> {
        // The configuration first: it is written on its resourceVersion, and so by nobody who has read an older Secret than
        // whoever wrote it last.
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
            tracing::info!(
                step = step.as_str(),
                secret = self.settings.secret,
                "changed what is state of the webhook's certificates"
            );
            self.trust(&configuration, &changed.trusted).await?;
        }
        Ok(Reconciled::Requeue)
    }

    /// Whether all know what is in force now, which is noted.
    fn is_settled(&mut self, in_force: Option<&CertificateState>) -> bool {
        let now = self.clock.monotonic();
        if self.in_force.as_ref().map(|(state, _)| state) != in_force {
            self.in_force = in_force.map(|state| (state.clone(), now));
        }
        self.in_force.as_ref().is_some_and(|(_, since)| now >= *since + self.settling())
    }

    /// Writes `state`, if the Secret is still as it was read in `before`.
    async fn store(&self, before: Option<Secret>, state: &CertificateState) -> Result<bool, Error> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let name = &self.settings.secret;
        let result = if let Some(before) = before {
            let secret = Secret { data: Some(data(state)), ..before };
            self.secrets.replace(name, &parameters, &secret).await
        } else {
            // Of no type, as the chart's: the next upgrade takes it over, and a type cannot be changed.
            let secret = Secret {
                metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
                data: Some(data(state)),
                ..Secret::default()
            };
            self.secrets.create(&parameters, &secret).await
        };
        match result {
            Ok(_) => Ok(true),
            // Another replica was first, and what it wrote is looked at next.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sees to it that the webhook's configuration trusts `trusted`, and no more, if it is still as it was read. Whether it did.
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
            // Somebody else has written it, and that is looked at next.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }
}

/// Tells whenever the object of that name may have changed, and at first. Its metadata is enough: what it is now is read by a look.
fn changes<K>(api: Api<PartialObjectMeta<K>>, name: &str) -> impl Stream<Item = ()> + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    watch_object(api, name).default_backoff().filter_map(|state| {
        ready(match state {
            Ok(_) => Some(()),
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), kind = %K::kind(&()), "cannot watch what the certificate depends on");
                None
            }
        })
    })
}

/// The least time between two looks after so many that wrote or failed.
fn spacing(attempts: u32) -> Duration {
    MIN_RECONCILE_INTERVAL.saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX))
}

/// What the configuration trusts.
fn bundle(configuration: &ValidatingWebhookConfiguration) -> Vec<u8> {
    let webhooks = configuration.webhooks.iter().flatten();
    webhooks
        .filter_map(|webhook| webhook.client_config.ca_bundle.as_ref())
        .flat_map(|bundle| bundle.0.clone())
        .collect()
}

/// An IP address as certificates have it, however it was spelled; any other name as it is.
fn spelled(name: &str) -> String {
    name.parse().map_or_else(|_| name.to_owned(), |address: IpAddr| address.to_string())
}

fn part(secret: &Secret, key: &str) -> Option<Vec<u8>> {
    secret.data.as_ref()?.get(key).map(|bytes| bytes.0.clone())
}

/// What a Secret keeps; none where parts of it are missing or of no use.
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
    fn an_address_is_spelled_as_a_certificate_has_it() {
        for (name, expected) in [("FD00:0::1", "fd00::1"), ("10.0.0.1", "10.0.0.1"), ("hook.example", "hook.example")] {
            let issued = issue(&[spelled(name)], Clock.now(), Duration::from_hours(30)).unwrap();
            assert_eq!(Validity::of(&issued.pair.certificate).unwrap().names, [expected]);
            assert_eq!(spelled(name), expected);
        }
    }

    #[test]
    fn looks_come_less_often_the_more_of_them_had_to_write() {
        assert_eq!([0, 1, 2, 3].map(spacing), [100, 100, 200, 400].map(Duration::from_millis));
        assert!(spacing(u32::MAX) > RESYNC_INTERVAL);
    }
}
