//! Makes the client of the sinks, for the operator and the router.

use super::Error;
use crate::clock::Clock;
use crate::cloud_events::{SigningSecrets, Sinks};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::{Path, PathBuf};

/// The settings of the client of the sinks.
#[derive(Clone, Debug)]
pub struct SinkSettings {
    /// The directory of the secrets by which events are signed; `None` if they are not signed.
    pub signing_secrets: Option<PathBuf>,
    /// The file of the certificate authorities that sinks may have in addition to the public ones.
    pub authorities: Option<PathBuf>,
}

/// The client of the sinks, and the secrets by which it signs, which must be run so that changes are taken up.
pub fn sinks(settings: SinkSettings, clock: Clock) -> Result<(Sinks, SigningSecrets), Error> {
    let SinkSettings { signing_secrets, authorities: path } = settings;
    let signing_secrets = SigningSecrets::read(signing_secrets)?;
    let authorities = path.as_deref().map(authorities).transpose()?.unwrap_or_default();
    let sinks = Sinks::new(authorities, signing_secrets.signer(), clock)
        .map_err(|error| Error::SinkAuthorities { path: path.unwrap_or_default(), cause: error.to_string() })?;
    Ok((sinks, signing_secrets))
}

/// Reads certificate authorities.
fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let error = |cause: String| Error::SinkAuthorities { path: path.to_owned(), cause };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|cause| error(cause.to_string()))?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(|cause| error(cause.to_string()))?;
    if certificates.is_empty() { Err(error("it has no certificate".to_owned())) } else { Ok(certificates) }
}
