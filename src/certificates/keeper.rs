//! The certificate that the operator makes for itself: in a Secret, with its CA in the `caBundle` of the webhook's configuration.
//! It carries out what `rotation` decides.
//!
//! Every replica does so, whoever leads: each write has a precondition, so replicas that act at once agree on what came first.

use super::issue::issue;
use super::rotation::{Kept, Step, Wanted, step};
use super::tls::{Pair, Publisher, TlsError, is_usable};
use crate::api::FIELD_MANAGER;
use crate::clock::Clock;
use crate::telemetry::error_chain::ErrorChain;
use data_encoding::BASE64;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long between two looks, and how long it takes at most until every API server knows a `caBundle`: it watches the
/// configurations, which takes milliseconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The pause before what follows from a write is seen to, so that replicas and others that write the same do not spin.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(10);

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const TRUSTED: &str = "ca.crt";

/// Where the certificate is kept, and what for.
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
pub struct Keeper {
    secrets: Api<Secret>,
    configurations: Api<ValidatingWebhookConfiguration>,
    settings: Settings,
    wanted: Wanted,
    clock: Clock,
    publisher: Publisher,
    /// What the configuration was seen to trust, and since when.
    in_force: Option<(Vec<u8>, Instant)>,
}

/// Why the certificate could not be kept.
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
enum Looked {
    /// Something was written, by us or by another: what follows from it is to be seen.
    Again,
    /// All is as it should be.
    Done,
}

impl Keeper {
    /// One that keeps what `settings` say, and hands what is to be served to `publisher`.
    #[must_use]
    pub fn new(client: Client, settings: Settings, clock: Clock, publisher: Publisher) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &settings.namespace),
            configurations: Api::all(client),
            wanted: Wanted { names: settings.names.iter().map(|name| spelled(name)).collect(), life: settings.life },
            settings,
            clock,
            publisher,
            in_force: None,
        }
    }

    /// Keeps the certificate for as long as the process lives.
    pub async fn run(mut self) {
        loop {
            let pause = match timeout(PATIENCE, self.look()).await {
                Ok(Ok(Looked::Again)) => SHORT_PAUSE,
                Ok(Ok(Looked::Done)) => self.pause(),
                Ok(Err(error)) => {
                    tracing::warn!(error = %ErrorChain(&error), "cannot keep the certificate of the webhook");
                    self.pause()
                }
                Err(_) => {
                    tracing::warn!("the certificate of the webhook could not be looked after in time");
                    self.pause()
                }
            };
            sleep(pause).await;
        }
    }

    /// Short enough that several looks fit between the renewal of a certificate and its end.
    fn pause(&self) -> Duration {
        (self.settings.life / 30).min(LONGEST_PAUSE)
    }

    async fn look(&mut self) -> Result<Looked, Error> {
        let secret = self.secrets.get_opt(&self.settings.secret).await?;
        let kept = secret.as_ref().and_then(kept);
        let trusted = match &kept {
            Some(kept) => self.trust(&kept.trusted).await?,
            None => false,
        };
        let is_settled =
            trusted && self.in_force.as_ref().is_some_and(|(_, since)| self.clock.monotonic() >= *since + self.pause());
        let now = self.clock.now();
        let step = step(kept.as_ref(), &self.wanted, is_settled, now);
        let issue = || issue(&self.wanted.names, now, self.wanted.life);
        let changed = match (step, kept) {
            (Step::Rest, kept) => {
                if let Some(kept) = kept.filter(|_| trusted) {
                    self.publisher.publish(&kept.serving)?;
                    return Ok(Looked::Done);
                }
                return Ok(Looked::Again);
            }
            (Step::Prepare, Some(kept)) => kept.prepared(issue()?, now),
            (Step::Promote, Some(kept)) => kept.promoted(),
            (Step::Make | Step::Prepare | Step::Promote, kept) => {
                let before =
                    kept.map(|kept| kept.trusted).or_else(|| secret.as_ref().and_then(|secret| part(secret, TRUSTED)));
                Kept::made(issue()?, &before.unwrap_or_default(), now)
            }
        };
        if self.store(secret, &changed).await? {
            tracing::info!(
                step = step.as_str(),
                secret = self.settings.secret,
                "changed what is kept of the webhook's certificates"
            );
        }
        Ok(Looked::Again)
    }

    /// Writes what is kept, if it is still as it was read in `before`.
    async fn store(&self, before: Option<Secret>, kept: &Kept) -> Result<bool, Error> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let name = &self.settings.secret;
        let result = if let Some(before) = before {
            let secret = Secret { data: Some(data(kept)), ..before };
            self.secrets.replace(name, &parameters, &secret).await
        } else {
            // Of no type, as the chart's: the next upgrade takes it over, and a type cannot be changed.
            let secret = Secret {
                metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
                data: Some(data(kept)),
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

    /// Sees to it that the webhook's configuration trusts `trusted`, and no more. Whether it does.
    async fn trust(&mut self, trusted: &[u8]) -> Result<bool, Error> {
        let name = &self.settings.configuration;
        let configuration = self.configurations.get_opt(name).await?;
        let configuration = configuration.ok_or_else(|| Error::NoConfiguration(name.clone()))?;
        let webhooks = configuration.webhooks.iter().flatten();
        if webhooks.clone().all(|webhook| webhook.client_config.ca_bundle.as_ref().is_some_and(|ca| ca.0 == trusted)) {
            if self.in_force.as_ref().is_none_or(|(known, _)| known != trusted) {
                self.in_force = Some((trusted.to_vec(), self.clock.monotonic()));
            }
            return Ok(true);
        }
        self.in_force = None;
        let bundle = BASE64.encode(trusted);
        let webhooks = webhooks
            .map(|webhook| serde_json::json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect::<Vec<_>>();
        let patch = serde_json::json!({
            "metadata": {"resourceVersion": configuration.resource_version()},
            "webhooks": webhooks,
        });
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

/// An IP address as certificates have it, however it was spelled; any other name as it is.
fn spelled(name: &str) -> String {
    name.parse().map_or_else(|_| name.to_owned(), |address: IpAddr| address.to_string())
}

fn part(secret: &Secret, key: &str) -> Option<Vec<u8>> {
    secret.data.as_ref()?.get(key).map(|bytes| bytes.0.clone())
}

/// What a Secret keeps; none where parts of it are missing or of no use.
fn kept(secret: &Secret) -> Option<Kept> {
    let pair = |certificate, key| {
        let pair = Pair { certificate: part(secret, certificate)?, key: part(secret, key)? };
        Some(pair).filter(is_usable)
    };
    Some(Kept {
        serving: pair(CERTIFICATE, KEY)?,
        next: pair(NEXT_CERTIFICATE, NEXT_KEY),
        trusted: part(secret, TRUSTED)?,
    })
}

fn data(kept: &Kept) -> BTreeMap<String, ByteString> {
    let Kept { serving, next, trusted } = kept;
    let next = next.iter().flat_map(|next| [(NEXT_CERTIFICATE, &next.certificate), (NEXT_KEY, &next.key)]);
    let parts = [(CERTIFICATE, &serving.certificate), (KEY, &serving.key), (TRUSTED, trusted)];
    parts.into_iter().chain(next).map(|(key, bytes)| (key.to_owned(), ByteString(bytes.clone()))).collect()
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
}
