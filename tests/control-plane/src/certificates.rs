//! A certificate authority for tests and the certificates that it signs, which are valid for centuries. No I/O.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::Error;

/// Signs serving certificates. Clients that trust [`certificate`](Self::certificate) trust them.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate of a server or of a client, and its key, as PEM.
#[derive(Clone)]
pub struct ServingCertificate {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// Creates an authority with this common name.
    pub fn new(name: &str) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate, as PEM. The `caBundle` of a webhook configuration is its base64.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Issues a certificate for a server on 127.0.0.1 or `localhost`. It is also a client certificate with this common name.
    pub fn issue(&self, name: &str) -> Result<ServingCertificate, Error> {
        self.issue_for(name, None, &["127.0.0.1", "localhost"])
    }

    /// Issues a certificate for a server with these DNS names and IP addresses. It is also a client certificate: an API server takes the
    /// common name as the name of the user, and the organization as the group.
    pub fn issue_for(
        &self,
        name: &str,
        organization: Option<&str>,
        hosts: &[&str],
    ) -> Result<ServingCertificate, Error> {
        let mut params = CertificateParams::new(hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(ServingCertificate { certificate, key: key.serialize_pem() })
    }
}

/// The key pair, as PEM, with which an API server signs and verifies the tokens of service accounts.
pub struct TokenKey {
    /// Signs tokens.
    pub private: String,
    /// Verifies tokens.
    pub public: String,
}

impl TokenKey {
    /// Generates a key pair.
    pub fn new() -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        Ok(Self { private: key.serialize_pem(), public: key.public_key_pem() })
    }
}
