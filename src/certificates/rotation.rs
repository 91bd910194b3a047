//! When a certificate is made, when it is served, and what is trusted meanwhile: a pure function of what is kept, of whether that is
//! trusted, and of the time.
//!
//! A rotation has three steps, each of them one write with a precondition, so that it does not matter which replica takes it:
//! the next certificate is *prepared*, and its CA is trusted beside the one before; when the API servers have had time to take that
//! up, the next one is *promoted*, and every replica serves it; the CA before is trusted until it has expired.

use super::issue::Issued;
use super::tls::{Pair, Validity};
use crate::api::Time;
use std::time::Duration;

/// What is kept of the certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What is served.
    pub serving: Pair,
    /// What is to be served next.
    pub next: Option<Pair>,
    /// The CAs of both, and those before that have not expired, PEM: the newest first.
    pub trusted: Vec<u8>,
}

/// What a certificate has to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The DNS names and IP addresses that it is for.
    pub names: Vec<String>,
    /// How long it is valid.
    pub life: Duration,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a certificate and serve it: there is none that can be served.
    Make,
    /// Make the next certificate, and trust its CA.
    Prepare,
    /// Serve the next certificate.
    Promote,
    /// Nothing now.
    Rest,
}

impl Step {
    /// The word for it in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Make => "make",
            Self::Prepare => "prepare",
            Self::Promote => "promote",
            Self::Rest => "rest",
        }
    }
}

/// What is to be done about `kept`. `is_settled` tells whether what it says is to be trusted has been so for long enough that
/// every API server knows.
pub fn step(kept: Option<&Kept>, wanted: &Wanted, is_settled: bool, now: Time) -> Step {
    let Some(kept) = kept else { return Step::Make };
    let Ok(serving) = Validity::of(&kept.serving.certificate) else { return Step::Make };
    let next = kept.next.as_ref().and_then(|next| Validity::of(&next.certificate).ok());
    let next_is_good = next.is_some_and(|next| next.expiry > now && wanted.is_met_by(&next));
    if serving.expiry <= now {
        return if next_is_good { Step::Promote } else { Step::Make };
    }
    let is_due = now.after(wanted.milliseconds() / 3) >= serving.expiry || !wanted.is_met_by(&serving);
    if next_is_good && is_settled {
        Step::Promote
    } else if is_due && !next_is_good {
        Step::Prepare
    } else {
        Step::Rest
    }
}

impl Wanted {
    fn is_met_by(&self, validity: &Validity) -> bool {
        self.names.iter().all(|name| validity.names.contains(name))
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.life.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Kept {
    /// `issued` is served from now on; what was trusted before and has not expired stays so.
    pub fn made(issued: Issued, before: &[u8], now: Time) -> Self {
        let Issued { authority, pair } = issued;
        Self { serving: pair, next: None, trusted: trusted(authority, before, now) }
    }

    /// `issued` is to be served next.
    pub fn prepared(self, issued: Issued, now: Time) -> Self {
        let Issued { authority, pair } = issued;
        Self { serving: self.serving, next: Some(pair), trusted: trusted(authority, &self.trusted, now) }
    }

    /// The next one is served from now on.
    pub fn promoted(self) -> Self {
        let Self { serving, next, trusted } = self;
        Self { serving: next.unwrap_or(serving), next: None, trusted }
    }
}

/// `newest`, and of `before` what has not expired.
fn trusted(newest: Vec<u8>, before: &[u8], now: Time) -> Vec<u8> {
    let text = String::from_utf8_lossy(before);
    let certificates = text.split_inclusive("-----END CERTIFICATE-----").filter_map(|pem| {
        let pem = &pem.as_bytes()[pem.find("-----BEGIN CERTIFICATE-----")?..];
        Validity::of(pem).is_ok_and(|validity| validity.expiry > now).then(|| [pem, b"\n"].concat())
    });
    std::iter::once(newest).chain(certificates).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::issue::issue;
    use crate::certificates::tls::certificates;

    const LIFE: Duration = Duration::from_hours(30);

    fn wanted() -> Wanted {
        Wanted { names: vec!["switchboard.ns.svc".to_owned()], life: LIFE }
    }

    /// So many hours after some instant.
    fn hour(hour: u64) -> Time {
        Time::EPOCH.after((1000 + hour) * 3_600_000)
    }

    fn made(now: Time) -> Kept {
        Kept::made(issue(&wanted().names, now, LIFE).unwrap(), b"", now)
    }

    fn prepared(now: Time) -> Kept {
        made(hour(0)).prepared(issue(&wanted().names, now, LIFE).unwrap(), now)
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
        let kept = made(hour(0));
        assert_eq!(step(None, &wanted(), false, hour(0)), Step::Make);
        assert_eq!(step(Some(&kept), &wanted(), true, hour(19)), Step::Rest);
        assert_eq!(step(Some(&kept), &wanted(), true, hour(20)), Step::Prepare);
        assert_eq!(step(Some(&kept), &wanted(), true, hour(30)), Step::Make, "it has expired");
    }

    #[test]
    fn the_next_certificate_is_served_once_its_authority_is_trusted_and_no_second_one_is_prepared_meanwhile() {
        let kept = prepared(hour(20));
        assert_eq!(step(Some(&kept), &wanted(), false, hour(21)), Step::Rest);
        assert_eq!(step(Some(&kept), &wanted(), true, hour(21)), Step::Promote);
        assert_eq!(step(Some(&kept), &wanted(), false, hour(30)), Step::Promote, "there is none better");
        let promoted = kept.clone().promoted();
        assert_eq!((&promoted.serving, &promoted.trusted), (kept.next.as_ref().unwrap(), &kept.trusted));
        assert_eq!(step(Some(&promoted), &wanted(), true, hour(39)), Step::Rest);
        assert_eq!(step(Some(&promoted), &wanted(), true, hour(40)), Step::Prepare);
    }

    #[test]
    fn an_authority_is_trusted_until_it_has_expired() {
        let count = |kept: &Kept| certificates(&kept.trusted, "CAs").unwrap().len();
        let first = prepared(hour(20));
        assert_eq!(count(&first), 2);
        let second = first.clone().promoted().prepared(issue(&wanted().names, hour(29), LIFE).unwrap(), hour(29));
        assert_eq!(count(&second), 3);
        let third = first.promoted().prepared(issue(&wanted().names, hour(40), LIFE).unwrap(), hour(40));
        assert_eq!(count(&third), 2, "the first one has expired");
    }

    #[test]
    fn another_name_is_reason_enough_for_another_certificate() {
        let other = Wanted { names: vec!["switchboard.other.svc".to_owned()], life: LIFE };
        assert_eq!(step(Some(&made(hour(0))), &other, true, hour(1)), Step::Prepare);
        assert_eq!(
            step(Some(&prepared(hour(20))), &other, true, hour(21)),
            Step::Prepare,
            "the next one lacks it, too"
        );
    }

    #[test]
    fn what_is_garbled_is_made_anew_and_what_else_is_trusted_stays_so() {
        let mut kept = made(hour(0));
        kept.serving.certificate = b"garbage".to_vec();
        assert_eq!(step(Some(&kept), &wanted(), true, hour(1)), Step::Make);
        let before = [b"garbage\n".as_slice(), &kept.trusted].concat();
        let kept = Kept::made(issue(&wanted().names, hour(1), LIFE).unwrap(), &before, hour(1));
        assert_eq!(certificates(&kept.trusted, "CAs").unwrap().len(), 2);
    }
}
