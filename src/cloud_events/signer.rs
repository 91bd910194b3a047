//! Signs events as Standard Webhooks say, by secrets that can be replaced without a restart.
//!
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use crate::api::Time;
use crate::secret_files::{self, POLL_INTERVAL, Unreadable};
use crate::telemetry::error_chain::ErrorChain;
use data_encoding::BASE64;
use hyper::header::{HeaderMap, HeaderName};
use ring::hmac;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::sleep;

/// Signs events. Without secrets, it signs nothing.
#[derive(Clone, Default)]
pub struct Signer(Vec<hmac::Key>);

/// Why a signing secret is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a signing secret must be `whsec_` and the base64 of 24 to 64 bytes, as `echo whsec_$(openssl rand -base64 32)` makes"
)]
pub struct InvalidSecret;

impl Signer {
    /// Signs by each of `secrets`, so that they can be replaced one after the other.
    ///
    /// # Errors
    /// If a secret is not valid.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, InvalidSecret> {
        let key = |secret: &[u8]| {
            let encoded = secret.trim_ascii().strip_prefix(b"whsec_").ok_or(InvalidSecret)?;
            let bytes = BASE64.decode(encoded).map_err(|_| InvalidSecret)?;
            if (24..=64).contains(&bytes.len()) {
                Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
            } else {
                Err(InvalidSecret)
            }
        };
        Ok(Self(secrets.into_iter().map(key).collect::<Result<_, _>>()?))
    }

    /// The headers that sign `body` at `now` as that of the webhook `id`, which is computed only for them.
    pub(super) fn headers(&self, id: impl FnOnce() -> String, body: &[u8], now: Time) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.0.is_empty() {
            return headers;
        }
        let id = id();
        let timestamp = now.timestamp().as_second().to_string();
        let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
        let signature = |key| format!("v1,{}", BASE64.encode(hmac::sign(key, &signed).as_ref()));
        let signatures = self.0.iter().map(signature).collect::<Vec<_>>().join(" ");
        for (name, value) in
            [("webhook-id", &id), ("webhook-timestamp", &timestamp), ("webhook-signature", &signatures)]
        {
            if let Ok(value) = value.parse() {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers
    }
}

/// Why the signing secrets cannot be used, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// One of them is not valid.
    #[error("the signing secrets in {} are not usable: {source}", .path.display())]
    Invalid {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: InvalidSecret,
    },
    /// There is none.
    #[error("{} has no signing secret, so events would not be signed", .0.display())]
    Missing(PathBuf),
}

/// The signing secrets, from the files of a mounted Secret.
pub struct SigningSecrets {
    directory: Option<PathBuf>,
    signer: watch::Sender<Arc<Signer>>,
}

impl SigningSecrets {
    /// Reads the secrets in `directory`. Without a directory, events are not signed.
    ///
    /// # Errors
    /// If there is none, or one cannot be read or is not valid.
    pub fn read(directory: Option<PathBuf>) -> Result<Self, Error> {
        let signer = directory.as_deref().map(signer).transpose()?.unwrap_or_default();
        Ok(Self { directory, signer: watch::Sender::new(Arc::new(signer)) })
    }

    /// The signer, with the current secrets.
    #[must_use]
    pub fn signer(&self) -> watch::Receiver<Arc<Signer>> {
        self.signer.subscribe()
    }

    /// Takes up changed secrets until the process exits.
    pub async fn run(self) {
        let Some(directory) = self.directory else { return std::future::pending().await };
        let mut failure = None;
        loop {
            sleep(POLL_INTERVAL).await;
            match signer(&directory) {
                Ok(signer) => {
                    failure = None;
                    self.signer.send_replace(Arc::new(signer));
                }
                Err(error) => {
                    let error = ErrorChain(&error).to_string();
                    // Once, and not at each attempt.
                    if failure.as_ref() != Some(&error) {
                        tracing::warn!(error, "failed to load the signing secrets; the previous ones sign");
                        failure = Some(error);
                    }
                }
            }
        }
    }
}

fn signer(directory: &Path) -> Result<Signer, Error> {
    let files = secret_files::read(directory)?;
    if files.is_empty() {
        return Err(Error::Missing(directory.to_owned()));
    }
    Signer::new(files.values().map(Vec::as_slice))
        .map_err(|source| Error::Invalid { path: directory.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_matches_the_example_of_the_specification() {
        let signer = Signer::new([&b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"[..]]).unwrap();
        let body = br#"{"test": 2432232314}"#;
        let at = Time::new(k8s_openapi::jiff::Timestamp::from_second(1_614_265_330).unwrap());
        let headers = signer.headers(|| "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned(), body, at);
        assert_eq!(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(headers["webhook-timestamp"], "1614265330");
    }

    #[test]
    fn each_secret_signs_and_an_invalid_one_is_an_error() {
        let secrets = [&b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"[..], b"whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"];
        let headers = Signer::new(secrets).unwrap().headers(|| "msg_a".to_owned(), b"{}", Time::EPOCH);
        assert_eq!(headers["webhook-signature"].to_str().unwrap().split(' ').count(), 2);
        assert_eq!(headers["webhook-id"], "msg_a");
        for invalid in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_AAEC", "whsec_?"] {
            assert!(Signer::new([invalid.as_bytes()]).is_err(), "{invalid}");
        }
    }
}
