//! Parses addresses by channel. The error about an invalid address suggests its canonical form, if that can be computed.
//!
//! The schema states the same formats in CEL (`api::rules`); the tests check both against the same manifests.

use crate::api::{Channel, MAX_ADDRESS_LENGTH};

/// An address in the canonical form of its channel, so that equal addresses are equal strings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

/// The side of the conversation that an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The contact.
    Contact,
    /// The business, behind its proxy address.
    Proxy,
}

/// A text that is not a canonical address on its channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be {allowed}{}", .canonical.as_ref().map(|canonical| format!("; write {canonical}")).unwrap_or_default())]
pub struct InvalidAddress {
    /// The format that is allowed.
    pub allowed: &'static str,
    /// The canonical form of the address, if it can be computed.
    pub canonical: Option<String>,
}

impl Address {
    /// Parses `text`, which must be canonical, as an address on `channel`.
    ///
    /// # Errors
    /// If it is not canonical; the error has the allowed format and, if it can be computed, the canonical form.
    pub fn parse(channel: Channel, role: Role, text: &str) -> Result<Self, InvalidAddress> {
        let invalid = |allowed, canonical| Err(InvalidAddress { allowed, canonical });
        match channel {
            Channel::Sms | Channel::WhatsApp | Channel::Rcs => {
                let short_codes = channel == Channel::Sms && role == Role::Proxy;
                if is_e164(text) || (short_codes && is_short_code(text)) {
                    return Ok(Self(text.to_owned()));
                }
                let allowed = if short_codes {
                    "an E.164 number ('+' and 2 to 15 digits without a leading zero) or a short code of 3 to 8 digits"
                } else {
                    "an E.164 number: '+' and 2 to 15 digits without a leading zero"
                };
                invalid(allowed, canonical_e164(text))
            }
            Channel::Messenger | Channel::Instagram | Channel::AppleMessages => {
                if is_bounded(text) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Ok(Self(text.to_owned()));
                }
                invalid("an ID issued by the platform: printable ASCII, no spaces, at most 256 characters", None)
            }
            Channel::Email => {
                if is_email(text) {
                    return Ok(Self(text.to_owned()));
                }
                let canonical = Some(text.trim().to_ascii_lowercase()).filter(|canonical| is_email(canonical));
                invalid("lower-case local@domain, at most 254 characters", canonical)
            }
            Channel::Chat => {
                let printable = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
                if is_bounded(text) && printable && !text.starts_with(' ') && !text.ends_with(' ') {
                    return Ok(Self(text.to_owned()));
                }
                invalid("an identity: printable ASCII, no leading or trailing space, at most 256 characters", None)
            }
        }
    }

    /// The address as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_bounded(text: &str) -> bool {
    (1..=MAX_ADDRESS_LENGTH).contains(&text.len())
}

fn is_e164(text: &str) -> bool {
    text.strip_prefix('+').is_some_and(|digits| {
        (2..=15).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn is_short_code(text: &str) -> bool {
    (3..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// An E.164 number from common notations: with separators, and with `00` for `+`.
fn canonical_e164(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|character| !" -.()/".contains(*character)).collect();
    let telephone = digits.strip_prefix("00").map_or(digits.clone(), |rest| format!("+{rest}"));
    is_e164(&telephone).then_some(telephone)
}

/// A dot-atom of RFC 5322, `@`, and a host name of RFC 1123, all in lower case; at most 254 characters (RFC 5321).
fn is_email(text: &str) -> bool {
    let is_atom = |atom: &str| {
        !atom.is_empty()
            && atom.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+/=?^_`{|}~-".contains(&byte)
            })
    };
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 254
        && text
            .split_once('@')
            .is_some_and(|(local, domain)| local.split('.').all(is_atom) && domain.split('.').all(is_label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_spellings_are_accepted() {
        use {Channel as C, Role as R};
        for (channel, role, text) in [
            (C::Sms, R::Contact, "+49"),
            (C::Rcs, R::Contact, "+123456789012345"),
            (C::Sms, R::Proxy, "007"),
            (C::Sms, R::Proxy, "12345678"),
            (C::Messenger, R::Contact, "!~"),
            (C::Email, R::Contact, "a.b+c@x-y.example"),
            (C::Email, R::Contact, "o'neil@localhost"),
            (C::Chat, R::Contact, "Agent Smith"),
        ] {
            assert_eq!(Address::parse(channel, role, text).map(|address| address.0), Ok(text.to_owned()));
        }
    }

    #[test]
    fn other_spellings_are_rejected_with_the_canonical_spelling() {
        use {Channel as C, Role as R};
        for (channel, role, text, canonical) in [
            (C::Sms, R::Contact, "", None),
            (C::Sms, R::Contact, "+1", None),
            (C::Sms, R::Contact, "+1234567890123456", None),
            (C::Sms, R::Contact, "+012", None),
            (C::Sms, R::Contact, "12345", None),
            (C::Rcs, R::Proxy, "12345", None),
            (C::Sms, R::Proxy, "12", None),
            (C::Sms, R::Proxy, "123456789", None),
            (C::Sms, R::Contact, "+1 (555) 867-5310", Some("+15558675310")),
            (C::WhatsApp, R::Contact, "0049.30/1234", Some("+49301234")),
            (C::Sms, R::Contact, "+٣٤٥", None),
            (C::Messenger, R::Contact, "a b", None),
            (C::Instagram, R::Contact, "ü", None),
            (C::Email, R::Contact, " Alice@Example.com", Some("alice@example.com")),
            (C::Email, R::Contact, "alice", None),
            (C::Email, R::Contact, "a@b@c", None),
            (C::Email, R::Contact, "a..b@c", None),
            (C::Email, R::Contact, "@c", None),
            (C::Email, R::Contact, "a@-c", None),
            (C::Email, R::Contact, "a@c-", None),
            (C::Email, R::Contact, "a@c.", None),
            (C::Chat, R::Contact, " a", None),
            (C::Chat, R::Contact, "a ", None),
            (C::Chat, R::Contact, "a\u{200f}b", None),
        ] {
            let error = Address::parse(channel, role, text).expect_err(text);
            assert_eq!(error.canonical.as_deref(), canonical, "{text:?}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let id = "a".repeat(256);
        assert!(Address::parse(Channel::Chat, Role::Contact, &id).is_ok());
        assert!(Address::parse(Channel::Chat, Role::Contact, &format!("{id}a")).is_err());
        assert!(Address::parse(Channel::Messenger, Role::Contact, &format!("{id}a")).is_err());
        let local = "a".repeat(254 - "@example.org".len());
        assert!(Address::parse(Channel::Email, Role::Contact, &format!("{local}@example.org")).is_ok());
        assert!(Address::parse(Channel::Email, Role::Contact, &format!("{local}a@example.org")).is_err());
        assert!(Address::parse(Channel::Email, Role::Contact, &format!("a@{}", "b".repeat(63))).is_ok());
        assert!(Address::parse(Channel::Email, Role::Contact, &format!("a@{}", "b".repeat(64))).is_err());
    }
}
