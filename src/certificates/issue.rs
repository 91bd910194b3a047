//! Issues a certificate and a CA for it. The key of the CA is discarded: anyone who can read the Secret can impersonate the webhook until the
//! certificate expires, but cannot sign other certificates.

use super::tls::Pair;
use crate::api::Time;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::time::Duration;
use time::OffsetDateTime;

/// How far a certificate is backdated, so that an API server whose clock is behind accepts it.
const BACKDATED: Duration = Duration::from_mins(5);

/// An issued certificate and its CA.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate of the CA, PEM.
    pub authority: Vec<u8>,
    /// The certificate to serve, and its key.
    pub pair: Pair,
}

/// Issues a serving certificate for DNS names and IP addresses. The certificate and its CA are valid from `now` for `life`.
///
/// # Errors
/// If a name is not valid, or the system provides no random numbers.
pub fn issue(names: &[String], now: Time, life: Duration) -> Result<Issued, rcgen::Error> {
    let second = now.timestamp().as_second();
    let instant = |second| OffsetDateTime::from_unix_timestamp(second).map_err(|_| rcgen::Error::Time);
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let (not_before, not_after) =
        (instant(second.saturating_sub(seconds(BACKDATED)))?, instant(second.saturating_add(seconds(life)))?);
    let params = |names: &[String], name: String| -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (not_before, not_after);
        Ok(params)
    };
    // Each CA has a unique name, since two of them are trusted during a rotation.
    let mut authority = params(&[], format!("switchboard webhook CA {second}"))?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate()?;
    let authority_certificate = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);

    let mut serving = params(names, "switchboard webhook".to_owned())?;
    serving.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    serving.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = serving.signed_by(&key, &issuer)?.pem();
    Ok(Issued {
        authority: authority_certificate.into_bytes(),
        pair: Pair { certificate: certificate.into_bytes(), key: key.serialize_pem().into_bytes() },
    })
}
