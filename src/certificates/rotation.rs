//! When a certificate is made, when it is served, and what is trusted meanwhile: a pure function of the stored state, of whether that is
//! trusted, and of the time.
//!
//! A rotation has three steps, each of them one write with a precondition, so that it does not matter which replica takes it:
//! the next certificate is *prepared*, and its CA is trusted beside the one before; when the API servers have had time to take that
//! up, the next one is *promoted*, and every replica serves it; the CA before is trusted until it has expired.
//!
//! A Secret that was lost is *reissued* by the same steps: the replicas serve on what they served, and the API servers trust it on,
//! while the next certificate is prepared. Here the CA before is *retired* as soon as every replica has had time to take up the next
//! certificate: the Secret may have been deleted because somebody else knows the key.

use super::issue::Issued;
use super::tls::{Pair, Validity};
use crate::api::Time;
use std::time::Duration;

/// The certificates as the Secret stores them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateState {
    /// What is served.
    pub serving: Pair,
    /// What is to be served next.
    pub next: Option<Pair>,
    /// The CAs of both, and those before that have not expired, PEM: the newest first.
    pub trusted: Vec<u8>,
    /// What is to be trusted instead, once no replica serves anything else any more.
    pub next_trusted: Option<Vec<u8>>,
}

/// What a certificate has to be.
#[derive(Clone, Debug)]
pub struct CertificateSpec {
    /// The DNS names and IP addresses that it is for.
    pub names: Vec<String>,
    /// How long it is valid.
    pub life: Duration,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a certificate and serve it: there is none that can be served.
    Issue,
    /// Keep again what was lost and is still served, with a next certificate.
    Reissue,
    /// Make the next certificate, and trust its CA.
    Stage,
    /// Serve the next certificate.
    Promote,
    /// Trust the CA of the certificate that is served, and no other one.
    Retire,
    /// Nothing now.
    None,
}

impl Step {
    /// The word for it in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Issue => "make",
            Self::Reissue => "reissue",
            Self::Stage => "prepare",
            Self::Promote => "promote",
            Self::Retire => "retire",
            Self::None => "rest",
        }
    }
}

/// What is to be done about `state`; where there is none, `known` is what this replica saw last. `is_settled` tells whether what
/// `state` says has been served and trusted for long enough that every API server and every replica knows.
pub fn step(
    state: Option<&CertificateState>,
    known: Option<&CertificateState>,
    spec: &CertificateSpec,
    is_settled: bool,
    now: Time,
) -> Step {
    let is_good = |pair: &Pair| Validity::of(&pair.certificate).is_ok_and(|validity| validity.expiry > now);
    let Some(state) = state else {
        return if known.is_some_and(|known| is_good(&known.serving)) { Step::Reissue } else { Step::Issue };
    };
    let Ok(serving) = Validity::of(&state.serving.certificate) else { return Step::Issue };
    let next = state.next.as_ref().and_then(|next| Validity::of(&next.certificate).ok());
    let next_is_good = next.is_some_and(|next| next.expiry > now && spec.is_met_by(&next));
    if serving.expiry <= now {
        return if next_is_good { Step::Promote } else { Step::Issue };
    }
    let is_due = now.after(spec.life / 3) >= serving.expiry || !spec.is_met_by(&serving);
    if next_is_good && is_settled {
        Step::Promote
    } else if is_due && !next_is_good {
        Step::Stage
    } else if state.next.is_none() && state.next_trusted.is_some() && is_settled {
        Step::Retire
    } else {
        Step::None
    }
}

impl CertificateSpec {
    /// The names of the certificate after `before`. Where that one lacks a name, it is in the middle of a rollout, and the replicas
    /// that are about to be replaced want the names before: a certificate for both is one that neither has to make anew.
    pub fn names_after(&self, before: Option<&CertificateState>) -> Vec<String> {
        let before = before.and_then(|state| Validity::of(&state.serving.certificate).ok());
        let before = before.filter(|before| !self.is_met_by(before)).map(|before| before.names).unwrap_or_default();
        let others = before.into_iter().filter(|name| !self.names.contains(name));
        self.names.iter().cloned().chain(others).collect()
    }

    fn is_met_by(&self, validity: &Validity) -> bool {
        self.names.iter().all(|name| validity.names.contains(name))
    }
}

impl CertificateState {
    /// `issued` is served from now on. What was trusted before and has not expired stays so until every replica serves it.
    pub fn issued(issued: Issued, before: &[u8], now: Time) -> Self {
        let Issued { authority, pair } = issued;
        let trusted = trusted(&authority, before, now);
        let next_trusted = (trusted != authority).then_some(authority);
        Self { serving: pair, next: None, trusted, next_trusted }
    }

    /// What was lost is served on, and `issued` is to be served next. What was trusted before, here or by the API servers, stays so
    /// until every replica serves that.
    pub fn reissued(self, issued: Issued, bundle: &[u8], now: Time) -> Self {
        let made = Self::issued(issued, &[&self.trusted, bundle].concat(), now);
        Self { serving: self.serving, next: Some(made.serving), ..made }
    }

    /// `issued` is to be served next.
    pub fn staged(self, issued: Issued, now: Time) -> Self {
        let Issued { authority, pair } = issued;
        let next_trusted = self.next_trusted.map(|before| trusted(&authority, &before, now));
        Self { serving: self.serving, next: Some(pair), trusted: trusted(&authority, &self.trusted, now), next_trusted }
    }

    /// The next one is served from now on.
    pub fn promoted(self) -> Self {
        Self { serving: self.next.unwrap_or(self.serving), next: None, ..self }
    }

    /// Nothing is trusted any more but what has to be.
    pub fn retired(self) -> Self {
        Self { trusted: self.next_trusted.unwrap_or(self.trusted), next_trusted: None, ..self }
    }
}

/// `newest`, and of `before` each that has not expired, once.
fn trusted(newest: &[u8], before: &[u8], now: Time) -> Vec<u8> {
    let text = String::from_utf8_lossy(before);
    let mut trusted = vec![newest.to_vec()];
    for pem in text.split_inclusive("-----END CERTIFICATE-----") {
        let Some(start) = pem.find("-----BEGIN CERTIFICATE-----") else { continue };
        let pem = [&pem.as_bytes()[start..], b"\n"].concat();
        if Validity::of(&pem).is_ok_and(|validity| validity.expiry > now) && !trusted.contains(&pem) {
            trusted.push(pem);
        }
    }
    trusted.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::issue::issue;
    use crate::certificates::tls::certificates;

    const LIFE: Duration = Duration::from_hours(30);

    fn spec() -> CertificateSpec {
        CertificateSpec { names: vec!["switchboard.ns.svc".to_owned()], life: LIFE }
    }

    /// So many hours after some instant.
    fn hour(hour: u64) -> Time {
        Time::EPOCH.after(Duration::from_hours(1000 + hour))
    }

    fn issued(now: Time) -> Issued {
        issue(&spec().names, now, LIFE).unwrap()
    }

    fn made(now: Time) -> CertificateState {
        CertificateState::issued(issued(now), b"", now)
    }

    /// How many CAs are trusted.
    fn count(state: &CertificateState) -> usize {
        certificates(&state.trusted, "CAs").unwrap().len()
    }

    fn staged(now: Time) -> CertificateState {
        made(hour(0)).staged(issued(now), now)
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
        let state = made(hour(0));
        assert_eq!(step(None, None, &spec(), false, hour(0)), Step::Issue);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(19)), Step::None);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(20)), Step::Stage);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(30)), Step::Issue, "it has expired");
    }

    #[test]
    fn the_next_certificate_is_served_once_its_authority_is_trusted_and_no_second_one_is_prepared_meanwhile() {
        let state = staged(hour(20));
        assert_eq!(step(Some(&state), None, &spec(), false, hour(21)), Step::None);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(21)), Step::Promote);
        assert_eq!(step(Some(&state), None, &spec(), false, hour(30)), Step::Promote, "there is none better");
        let promoted = state.clone().promoted();
        assert_eq!((&promoted.serving, &promoted.trusted), (state.next.as_ref().unwrap(), &state.trusted));
        assert_eq!(step(Some(&promoted), None, &spec(), true, hour(39)), Step::None);
        assert_eq!(step(Some(&promoted), None, &spec(), true, hour(40)), Step::Stage);
    }

    #[test]
    fn an_authority_is_trusted_until_it_has_expired() {
        let first = staged(hour(20));
        assert_eq!(count(&first), 2);
        let second = first.clone().promoted().staged(issued(hour(29)), hour(29));
        assert_eq!(count(&second), 3);
        let third = first.promoted().staged(issued(hour(40)), hour(40));
        assert_eq!(count(&third), 2, "the first one has expired");
    }

    #[test]
    fn another_name_is_reason_enough_for_another_certificate() {
        let other = CertificateSpec { names: vec!["switchboard.other.svc".to_owned()], life: LIFE };
        assert_eq!(step(Some(&made(hour(0))), None, &other, true, hour(1)), Step::Stage);
        assert_eq!(
            step(Some(&staged(hour(20))), None, &other, true, hour(21)),
            Step::Stage,
            "the next one lacks it, too"
        );
    }

    #[test]
    fn what_is_garbled_is_made_anew_and_what_else_is_trusted_stays_so() {
        let mut state = made(hour(0));
        state.serving.certificate = b"garbage".to_vec();
        assert_eq!(step(Some(&state), None, &spec(), true, hour(1)), Step::Issue);
        let before = [b"garbage\n".as_slice(), &state.trusted].concat();
        let state = CertificateState::issued(issued(hour(1)), &before, hour(1));
        assert_eq!(certificates(&state.trusted, "CAs").unwrap().len(), 2);
    }

    #[test]
    fn lost_secret_is_reissued_with_the_certificate_that_is_served() {
        let known = made(hour(0));
        assert_eq!(step(None, Some(&known), &spec(), true, hour(1)), Step::Reissue);
        assert_eq!(step(None, Some(&known), &spec(), true, hour(30)), Step::Issue, "it has expired");
        let state = known.clone().reissued(issued(hour(1)), &known.trusted, hour(1));
        assert_eq!((&state.serving, count(&state)), (&known.serving, 2), "the CA is trusted on, once");
        assert_ne!(state.next.as_ref(), Some(&known.serving));
    }

    #[test]
    fn reissued_certificate_is_promoted_and_the_authority_before_retired() {
        let known = made(hour(0));
        let state = known.clone().reissued(issued(hour(1)), b"", hour(1));
        assert_eq!(step(Some(&state), None, &spec(), false, hour(1)), Step::None);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(1)), Step::Promote);
        let promoted = state.clone().promoted();
        assert_eq!((Some(&promoted.serving), count(&promoted)), (state.next.as_ref(), 2));
        assert_eq!(step(Some(&promoted), None, &spec(), false, hour(1)), Step::None, "a replica may serve the other");
        assert_eq!(step(Some(&promoted), None, &spec(), true, hour(1)), Step::Retire);
        let retired = promoted.retired();
        assert_eq!(count(&retired), 1);
        assert!(!String::from_utf8(known.trusted).unwrap().contains(std::str::from_utf8(&retired.trusted).unwrap()));
        assert_eq!(step(Some(&retired), None, &spec(), true, hour(1)), Step::None);
    }

    #[test]
    fn authorities_in_the_bundle_are_trusted_until_all_serve_the_new_one() {
        let of_others = made(hour(0)).trusted;
        let bundle = [&b"garbage\n"[..], &of_others].concat();
        for state in [
            made(hour(0)).reissued(issued(hour(1)), &bundle, hour(1)),
            CertificateState::issued(issued(hour(1)), &bundle, hour(1)),
        ] {
            let is_trusted = |state: &CertificateState| {
                let [trusted, others] = [&state.trusted, &of_others].map(|pem| certificates(pem, "CAs").unwrap());
                trusted.contains(&others[0])
            };
            assert!(is_trusted(&state) && is_trusted(&state.clone().promoted()));
            assert!(!is_trusted(&state.promoted().retired()));
        }
    }

    #[test]
    fn first_certificate_has_no_authority_to_retire() {
        assert_eq!(made(hour(0)).next_trusted, None);
        let renewed = staged(hour(20)).promoted();
        assert_eq!(step(Some(&renewed), None, &spec(), true, hour(21)), Step::None, "a renewal retires none either");
    }

    #[test]
    fn certificate_prepared_before_the_retirement_outlives_it() {
        let state = made(hour(0)).reissued(issued(hour(1)), b"", hour(1)).staged(issued(hour(2)), hour(2));
        assert_eq!(count(&state), 3);
        let retired = state.promoted().retired();
        assert_eq!(count(&retired), 2, "of the one that is served, and of the one that others may serve");
    }

    #[test]
    fn certificate_made_during_a_rollout_has_the_names_of_both_sides() {
        let other = CertificateSpec { names: vec!["switchboard.other.svc".to_owned()], life: LIFE };
        let state = made(hour(0));
        let names = other.names_after(Some(&state));
        assert_eq!(names, ["switchboard.other.svc", "switchboard.ns.svc"]);
        let both = state.staged(issue(&names, hour(1), LIFE).unwrap(), hour(1));
        for spec in [&spec(), &other] {
            assert_eq!(step(Some(&both), None, spec, false, hour(1)), Step::None, "nobody makes another one");
        }
        assert_eq!(other.names_after(Some(&both.promoted())), other.names, "the next one is for those that are spec");
        assert_eq!(other.names_after(None), other.names);
    }
}
