//! A certificate in files that another controller renews, such as a Secret of cert-manager mounted into the pod. Changes are served without
//! a restart.

use super::tls::{Pair, Publisher, TlsError, read};
use crate::telemetry::error_chain::ErrorChain;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::sleep;

/// The interval between reads of the files. A changed Secret reaches the volume of a pod within about a minute.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The files, PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, followed by its intermediates.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Files {
    /// Reads the files and serves the certificate.
    ///
    /// # Errors
    /// If the files cannot be read or do not match each other.
    pub fn publish(&self, publisher: &mut Publisher) -> Result<(), TlsError> {
        let certificate = read(&self.certificate, "the serving certificate", "--tls-cert-file")?;
        let key = read(&self.key, "the key of the serving certificate", "--tls-key-file")?;
        publisher.publish(&Pair { certificate, key })
    }

    /// Serves changes of the files until the process exits.
    pub async fn run(self, mut publisher: Publisher) {
        loop {
            sleep(POLL_INTERVAL).await;
            if let Err(error) = self.publish(&mut publisher) {
                // One file may have changed before the other.
                tracing::warn!(error = %ErrorChain(&error), "failed to load certificate files; still serving the previous certificate");
            }
        }
    }
}
