//! An authority and the certificates that it signs, all of them for tests: they hardly expire. No I/O.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::Error;

/// Signs serving certificates; whoever trusts [`certificate`](Self::certificate) trusts them.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate of a server or of a client, and its key. PEM.
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
        self.issue_for(name, None, &["127.0.0.1", "localhost"])
    }

    /// A certificate for the server at these DNS names and IP addresses, which is also that of the client with this common name: the
    /// user's name to an API server, as the organization is the user's group.
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

/// A key pair, PEM, with which an API server signs and checks the tokens of service accounts.
pub struct TokenKey {
    /// Signs.
    pub private: String,
    /// Checks.
    pub public: String,
}

impl TokenKey {
    /// A new one.
    pub fn new() -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        Ok(Self { private: key.serialize_pem(), public: key.public_key_pem() })
    }
}
