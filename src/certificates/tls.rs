//! Builds the TLS configuration from PEM and publishes it to the listener. It does not know where the PEM comes from.

use super::metrics::CertificateMetrics;
use crate::admin::Readiness;
use crate::api::Time;
use k8s_openapi::jiff::Timestamp;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use x509_parser::extensions::GeneralName;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {what} from {path}: {source}; set the file by {flag}")]
    File {
        /// The content of the file.
        what: &'static str,
        /// The path.
        path: String,
        /// The flag that names the file.
        flag: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// The PEM is not valid.
    #[error("{what} is not valid: {why}")]
    Pem {
        /// The content of the file.
        what: &'static str,
        /// The cause.
        why: String,
    },
    /// The key does not match the certificate, or one of them is not usable.
    #[error("cannot serve the certificate with its key: {0}")]
    Rustls(#[from] rustls::Error),
    /// The CA of the clients is not usable.
    #[error("cannot authenticate clients by the certificates of --client-ca-file: {0}")]
    Clients(#[from] rustls::server::VerifierBuilderError),
}

/// A certificate chain and its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, followed by its intermediates.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

/// The key stays out of logs.
impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

/// The clients that may call the webhook.
#[derive(Clone, Debug)]
pub struct Clients {
    /// The file with the CA of the clients' certificates, PEM.
    pub authority: PathBuf,
    /// The common names of the clients; any name if empty.
    pub names: Vec<String>,
}

/// Publishes the TLS configuration to the listener, to readiness and to metrics.
pub struct Publisher {
    clients: Option<Clients>,
    sender: watch::Sender<Option<Arc<ServerConfig>>>,
    readiness: Readiness,
    metrics: CertificateMetrics,
    /// The pair that was published last, and the CA of the clients.
    published: Option<(Pair, Vec<u8>)>,
}

impl Publisher {
    /// A publisher that admits `clients` only, if there are any, and the configuration that it publishes.
    #[must_use]
    pub fn new(
        clients: Option<Clients>,
        readiness: Readiness,
        metrics: CertificateMetrics,
    ) -> (Self, watch::Receiver<Option<Arc<ServerConfig>>>) {
        let (sender, receiver) = watch::channel(None);
        (Self { clients, sender, readiness, metrics, published: None }, receiver)
    }

    /// Serves `pair` from now on. Does nothing if it is published already.
    ///
    /// # Errors
    /// If `pair` or the CA of the clients is not usable. The previous pair is still served.
    pub fn publish(&mut self, pair: &Pair) -> Result<(), TlsError> {
        let trusted = match &self.clients {
            Some(Clients { authority, .. }) => read(authority, "a CA of clients", "--client-ca-file")?,
            None => Vec::new(),
        };
        if self.published.as_ref().is_some_and(|(before, trust)| before == pair && *trust == trusted) {
            return Ok(());
        }
        let names = self.clients.as_ref().map(|clients| &clients.names[..]);
        self.sender.send_replace(Some(Arc::new(config(pair, names.map(|names| (&trusted[..], names)))?)));
        let expiry = Validity::of(&pair.certificate)?.expiry;
        self.metrics.expiry(expiry);
        tracing::info!(%expiry, "serving a certificate");
        self.published = Some((pair.clone(), trusted));
        self.readiness.serving();
        Ok(())
    }
}

/// Reads the file that `flag` sets.
pub fn read(path: &std::path::Path, what: &'static str, flag: &'static str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File { what, path: path.display().to_string(), flag, source })
}

/// Whether `pair` can be served.
pub fn is_usable(pair: &Pair) -> bool {
    config(pair, None).is_ok()
}

/// The TLS configuration that serves `pair` over HTTP/1.1, to `clients` only if given.
fn config(pair: &Pair, clients: Option<(&[u8], &[String])>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let key = PrivateKeyDer::from_pem_slice(&pair.key)
        .map_err(|error| TlsError::Pem { what: "the key of the serving certificate", why: error.to_string() })?;
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some((trusted, names)) => builder.with_client_cert_verifier(verifier(trusted, names, provider)?),
    };
    let mut config = builder.with_single_cert(certificates(&pair.certificate, "the serving certificate")?, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates of a PEM, at least one.
pub fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |why: String| TlsError::Pem { what, why };
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
    if certificates.is_empty() { Err(failed("it contains no certificate".to_owned())) } else { Ok(certificates) }
}

fn verifier(
    trusted: &[u8],
    names: &[String],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(trusted, "a CA of clients")? {
        roots.add(certificate)?;
    }
    let any = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    Ok(if names.is_empty() { any } else { Arc::new(Named { any, names: names.to_vec() }) })
}

/// Accepts a valid client certificate that has one of the common names.
#[derive(Debug)]
struct Named {
    any: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.any.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.any.verify_client_cert(certificate, intermediates, now)?;
        let (_, read) = x509_parser::parse_x509_certificate(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let mut names = read.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        if names.any(|name| self.names.iter().any(|allowed| allowed == name)) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any.supported_verify_schemes()
    }
}

/// The expiry and the names of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The time at which it expires.
    pub expiry: Time,
    /// Its DNS names and IP addresses.
    pub names: Vec<String>,
}

impl Validity {
    /// The validity of the first certificate of a PEM.
    pub fn of(pem: &[u8]) -> Result<Self, TlsError> {
        let what = "the certificate";
        let failed = |why: String| TlsError::Pem { what, why };
        let certificates = certificates(pem, what)?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(&certificates[0]).map_err(|error| failed(error.to_string()))?;
        let expiry = Timestamp::from_second(certificate.validity().not_after.timestamp());
        let names = match certificate.subject_alternative_name() {
            Ok(Some(names)) => &names.value.general_names[..],
            _ => &[],
        };
        let name = |name: &GeneralName| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
                _ => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            },
            _ => None,
        };
        Ok(Self {
            expiry: Time::new(expiry.map_err(|error| failed(error.to_string()))?),
            names: names.iter().filter_map(name).collect(),
        })
    }
}
