//! An authority and the serving certificates that it signs, all of them for loopback and for tests: they hardly expire. No I/O.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::Error;

/// Signs serving certificates; whoever trusts [`certificate`](Self::certificate) trusts them.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate for a server on loopback, and its key. PEM.
#[derive(Clone)]
pub struct ServingCertificate {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// A new one, by that common name.
    pub fn new(name: &str) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate, PEM: the `caBundle` of a webhook configuration before base64.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a server on 127.0.0.1 or `localhost`, which may also call others by that common name.
    pub fn issue(&self, name: &str) -> Result<ServingCertificate, Error> {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(ServingCertificate { certificate, key: key.serialize_pem() })
    }
}

/// A key pair, PEM, with which an API server signs and checks the tokens of service accounts.
pub(crate) struct TokenKey {
    pub(crate) private: String,
    pub(crate) public: String,
}

impl TokenKey {
    pub(crate) fn new() -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        Ok(Self { private: key.serialize_pem(), public: key.public_key_pem() })
    }
}
