//! The rotation of the certificate, as a pure function of the stored state and the time.
//!
//! Each step is one write with a precondition, so any replica may take it. First the next certificate is *staged*: its CA is trusted in
//! addition to the previous one. When all API servers have had time to observe this, the next certificate is *promoted*: every replica
//! serves it. The previous CA is trusted until it expires.
//!
//! If the Secret was deleted, the certificate is *reissued* by the same steps: while the next one is staged, the replicas continue to serve
//! the previous certificate, and the API servers continue to trust it. Then the previous CA is *retired* as soon as every replica has had
//! time to serve the next certificate, because the Secret may have been deleted after a leak of its key.

use super::issue::Issued;
use super::tls::{Pair, Validity};
use crate::api::Time;
use std::time::Duration;
use strum::IntoStaticStr;

/// The certificates as the Secret stores them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateState {
    /// The certificate that is served.
    pub serving: Pair,
    /// The staged certificate, to be served next.
    pub next: Option<Pair>,
    /// The CAs of both certificates, and the previous CAs that have not expired, as PEM, the newest first.
    pub trusted: Vec<u8>,
    /// The CAs that replace `trusted` when every replica serves the next certificate.
    pub next_trusted: Option<Vec<u8>>,
}

/// The desired certificate.
#[derive(Clone, Debug)]
pub struct CertificateSpec {
    /// Its DNS names and IP addresses.
    pub names: Vec<String>,
    /// How long it is valid.
    pub life: Duration,
}

/// The next step of the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Step {
    /// Issue a certificate and serve it: there is no usable one.
    Issue,
    /// Store the lost certificate, which is still served, together with a staged one.
    Reissue,
    /// Issue the next certificate, and trust its CA.
    Stage,
    /// Serve the next certificate.
    Promote,
    /// Trust only the CA of the certificate that is served.
    Retire,
    /// No step is due.
    None,
}

/// The next step for `state`. If the Secret has no state, `known` is the last one that this replica observed. `is_settled` is whether `state`
/// has been stored and trusted for so long that every API server and every replica has observed it.
pub fn step(
    state: Option<&CertificateState>,
    known: Option<&CertificateState>,
    spec: &CertificateSpec,
    is_settled: bool,
    now: Time,
) -> Step {
    let is_valid = |pair: &Pair| Validity::of(&pair.certificate).is_ok_and(|validity| validity.expiry > now);
    let Some(state) = state else {
        return if known.is_some_and(|known| is_valid(&known.serving)) { Step::Reissue } else { Step::Issue };
    };
    let Ok(serving) = Validity::of(&state.serving.certificate) else { return Step::Issue };
    let next = state.next.as_ref().and_then(|next| Validity::of(&next.certificate).ok());
    let is_next_valid = next.is_some_and(|next| next.expiry > now && spec.is_met_by(&next));
    if serving.expiry <= now {
        return if is_next_valid { Step::Promote } else { Step::Issue };
    }
    let is_due = now.after(spec.life / 3) >= serving.expiry || !spec.is_met_by(&serving);
    if is_next_valid && is_settled {
        Step::Promote
    } else if is_due && !is_next_valid {
        Step::Stage
    } else if state.next.is_none() && state.next_trusted.is_some() && is_settled {
        Step::Retire
    } else {
        Step::None
    }
}

impl CertificateSpec {
    /// The names of the certificate that follows `before`. If `before` lacks a name, a rollout is changing the names. The new certificate then
    /// has the old names too, so that neither the old nor the new replicas issue another one.
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
    /// The state in which `issued` is served. CAs of `before` that have not expired are trusted until every replica serves `issued`.
    pub fn issued(issued: Issued, before: &[u8], now: Time) -> Self {
        let Issued { authority, pair } = issued;
        let trusted = trusted(&authority, before, now);
        let next_trusted = (trusted != authority).then_some(authority);
        Self { serving: pair, next: None, trusted, next_trusted }
    }

    /// The state in which the lost certificate is served and `issued` is staged. CAs that were trusted, by this state or by the API servers
    /// (`bundle`), are trusted until every replica serves `issued`.
    pub fn reissued(self, issued: Issued, bundle: &[u8], now: Time) -> Self {
        let made = Self::issued(issued, &[&self.trusted, bundle].concat(), now);
        Self { serving: self.serving, next: Some(made.serving), ..made }
    }

    /// The state in which `issued` is staged.
    pub fn staged(self, issued: Issued, now: Time) -> Self {
        let Issued { authority, pair } = issued;
        let next_trusted = self.next_trusted.map(|before| trusted(&authority, &before, now));
        Self { serving: self.serving, next: Some(pair), trusted: trusted(&authority, &self.trusted, now), next_trusted }
    }

    /// The state in which the staged certificate is served.
    pub fn promoted(self) -> Self {
        Self { serving: self.next.unwrap_or(self.serving), next: None, ..self }
    }

    /// The state in which previous CAs are no longer trusted.
    pub fn retired(self) -> Self {
        Self { trusted: self.next_trusted.unwrap_or(self.trusted), next_trusted: None, ..self }
    }
}

/// `newest`, followed by each certificate of `before` that has not expired, once.
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

    /// A time, `hour` hours after a fixed one.
    fn hour(hour: u64) -> Time {
        Time::EPOCH.after(Duration::from_hours(1000 + hour))
    }

    fn issued(now: Time) -> Issued {
        issue(&spec().names, now, LIFE).unwrap()
    }

    fn new_state(now: Time) -> CertificateState {
        CertificateState::issued(issued(now), b"", now)
    }

    /// The number of trusted CAs.
    fn count(state: &CertificateState) -> usize {
        certificates(&state.trusted, "CAs").unwrap().len()
    }

    fn staged(now: Time) -> CertificateState {
        new_state(hour(0)).staged(issued(now), now)
    }

    #[test]
    fn certificate_is_renewed_at_two_thirds_of_its_life() {
        let state = new_state(hour(0));
        assert_eq!(step(None, None, &spec(), false, hour(0)), Step::Issue);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(19)), Step::None);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(20)), Step::Stage);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(30)), Step::Issue, "it has expired");
    }

    #[test]
    fn staged_certificate_is_promoted_once_its_authority_is_trusted() {
        let state = staged(hour(20));
        assert_eq!(step(Some(&state), None, &spec(), false, hour(21)), Step::None);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(21)), Step::Promote);
        assert_eq!(step(Some(&state), None, &spec(), false, hour(30)), Step::Promote, "the served one has expired");
        let promoted = state.clone().promoted();
        assert_eq!((&promoted.serving, &promoted.trusted), (state.next.as_ref().unwrap(), &state.trusted));
        assert_eq!(step(Some(&promoted), None, &spec(), true, hour(39)), Step::None);
        assert_eq!(step(Some(&promoted), None, &spec(), true, hour(40)), Step::Stage);
    }

    #[test]
    fn authority_is_trusted_until_it_expires() {
        let first = staged(hour(20));
        assert_eq!(count(&first), 2);
        let second = first.clone().promoted().staged(issued(hour(29)), hour(29));
        assert_eq!(count(&second), 3);
        let third = first.promoted().staged(issued(hour(40)), hour(40));
        assert_eq!(count(&third), 2, "the first one has expired");
    }

    #[test]
    fn certificate_that_lacks_a_name_is_replaced() {
        let other = CertificateSpec { names: vec!["switchboard.other.svc".to_owned()], life: LIFE };
        assert_eq!(step(Some(&new_state(hour(0))), None, &other, true, hour(1)), Step::Stage);
        assert_eq!(
            step(Some(&staged(hour(20))), None, &other, true, hour(21)),
            Step::Stage,
            "the staged one lacks it too"
        );
    }

    #[test]
    fn invalid_certificate_is_reissued_and_other_authorities_kept() {
        let mut state = new_state(hour(0));
        state.serving.certificate = b"garbage".to_vec();
        assert_eq!(step(Some(&state), None, &spec(), true, hour(1)), Step::Issue);
        let before = [b"garbage\n".as_slice(), &state.trusted].concat();
        let state = CertificateState::issued(issued(hour(1)), &before, hour(1));
        assert_eq!(certificates(&state.trusted, "CAs").unwrap().len(), 2);
    }

    #[test]
    fn lost_secret_is_reissued_with_the_served_certificate() {
        let known = new_state(hour(0));
        assert_eq!(step(None, Some(&known), &spec(), true, hour(1)), Step::Reissue);
        assert_eq!(step(None, Some(&known), &spec(), true, hour(30)), Step::Issue, "it has expired");
        let state = known.clone().reissued(issued(hour(1)), &known.trusted, hour(1));
        assert_eq!((&state.serving, count(&state)), (&known.serving, 2), "the CA is still trusted, once");
        assert_ne!(state.next.as_ref(), Some(&known.serving));
    }

    #[test]
    fn reissued_certificate_is_promoted_and_old_authority_retired() {
        let known = new_state(hour(0));
        let state = known.clone().reissued(issued(hour(1)), b"", hour(1));
        assert_eq!(step(Some(&state), None, &spec(), false, hour(1)), Step::None);
        assert_eq!(step(Some(&state), None, &spec(), true, hour(1)), Step::Promote);
        let promoted = state.clone().promoted();
        assert_eq!((Some(&promoted.serving), count(&promoted)), (state.next.as_ref(), 2));
        assert_eq!(
            step(Some(&promoted), None, &spec(), false, hour(1)),
            Step::None,
            "a replica may serve the previous one"
        );
        assert_eq!(step(Some(&promoted), None, &spec(), true, hour(1)), Step::Retire);
        let retired = promoted.retired();
        assert_eq!(count(&retired), 1);
        assert!(!String::from_utf8(known.trusted).unwrap().contains(std::str::from_utf8(&retired.trusted).unwrap()));
        assert_eq!(step(Some(&retired), None, &spec(), true, hour(1)), Step::None);
    }

    #[test]
    fn authorities_in_the_bundle_are_trusted_until_retired() {
        let of_others = new_state(hour(0)).trusted;
        let bundle = [&b"garbage\n"[..], &of_others].concat();
        for state in [
            new_state(hour(0)).reissued(issued(hour(1)), &bundle, hour(1)),
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
        assert_eq!(new_state(hour(0)).next_trusted, None);
        let renewed = staged(hour(20)).promoted();
        assert_eq!(step(Some(&renewed), None, &spec(), true, hour(21)), Step::None, "a renewal retires none either");
    }

    #[test]
    fn certificate_staged_before_a_retirement_stays_trusted() {
        let state = new_state(hour(0)).reissued(issued(hour(1)), b"", hour(1)).staged(issued(hour(2)), hour(2));
        assert_eq!(count(&state), 3);
        let retired = state.promoted().retired();
        assert_eq!(count(&retired), 2, "of the one that is served, and of the one that other replicas may serve");
    }

    #[test]
    fn certificate_issued_during_a_rollout_has_both_sets_of_names() {
        let other = CertificateSpec { names: vec!["switchboard.other.svc".to_owned()], life: LIFE };
        let state = new_state(hour(0));
        let names = other.names_after(Some(&state));
        assert_eq!(names, ["switchboard.other.svc", "switchboard.ns.svc"]);
        let both = state.staged(issue(&names, hour(1), LIFE).unwrap(), hour(1));
        for spec in [&spec(), &other] {
            assert_eq!(step(Some(&both), None, spec, false, hour(1)), Step::None, "neither issues another one");
        }
        assert_eq!(other.names_after(Some(&both.promoted())), other.names, "the next one has the names of the spec");
        assert_eq!(other.names_after(None), other.names);
    }
}
