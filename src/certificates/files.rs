//! The certificate that somebody else renews, in files: those of a Secret of cert-manager's, say. What changes there is served
//! without a restart.

use super::tls::{Pair, Publisher, TlsError, read};
use crate::telemetry::error_chain::ErrorChain;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::sleep;

/// How long between two looks at the files. A Secret reaches a pod's volume within a minute or so.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The files, PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, then what it rests on.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Files {
    /// Serves what the files hold.
    ///
    /// # Errors
    /// Where they cannot be read, or do not belong together.
    pub fn publish(&self, publisher: &mut Publisher) -> Result<(), TlsError> {
        let certificate = read(&self.certificate, "the serving certificate", "--tls-cert-file")?;
        let key = read(&self.key, "the key of the serving certificate", "--tls-key-file")?;
        publisher.publish(&Pair { certificate, key })
    }

    /// Serves what the files hold, for as long as the process lives.
    pub async fn run(self, mut publisher: Publisher) {
        loop {
            sleep(POLL_INTERVAL).await;
            if let Err(error) = self.publish(&mut publisher) {
                // One file may have changed before the other: what was served is served on.
                tracing::warn!(error = %ErrorChain(&error), "the files of the certificate are of no use; what was served before is served on");
            }
        }
    }
}
