//! The serving certificate, from PEM files.

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;

/// Why the serving certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of the kind that is needed.
    #[error("cannot read {what} from {path}: {source}; give the file by {flag}")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: String,
        /// The flag that names the file.
        flag: &'static str,
        /// Why it failed.
        source: rustls::pki_types::pem::Error,
    },
    /// The key does not belong to the certificate, or one of them is of no use.
    #[error("cannot serve with the certificate and its key: {0}")]
    Rustls(#[from] rustls::Error),
}

/// What serves with the certificate chain and the key of two PEM files, by HTTP/2 or HTTP/1.1.
///
/// # Errors
/// Where a file cannot be read, or the two do not belong together.
pub fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let unreadable = |what, path: &Path, flag| {
        let path = path.display().to_string();
        move |source| TlsError::Pem { what, path, flag, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unreadable("a certificate", certificate, "--tls-cert-file"))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(unreadable("a private key", key, "--tls-key-file"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
