//! Addresses: parsed by channel, and canonicalised where a canonical spelling can be computed.
//!
//! The schema states the same formats in CEL (`api::rules`); both are held against the same manifests by the tests.

use crate::api::{Channel, MAX_ADDRESS_LENGTH};

/// An address in the canonical spelling of its channel, so that equal addresses are equal strings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

/// Whose address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The person outside.
    Contact,
    /// The business.
    Proxy,
}

/// A text is no address on its channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be {allowed}{}", .canonical.as_ref().map(|canonical| format!("; write {canonical}")).unwrap_or_default())]
pub struct InvalidAddress {
    /// What is allowed.
    pub allowed: &'static str,
    /// The canonical spelling of what was meant, where that is clear.
    pub canonical: Option<String>,
}

impl Address {
    /// Takes `text` for an address on `channel` if it is canonical.
    ///
    /// # Errors
    /// Where it is not, with what is allowed and, where it can be computed, the canonical spelling.
    pub fn parse(channel: Channel, role: Role, text: &str) -> Result<Self, InvalidAddress> {
        let invalid = |allowed, canonical| Err(InvalidAddress { allowed, canonical });
        match channel {
            Channel::Sms | Channel::WhatsApp | Channel::Rcs => {
                let short_codes = channel == Channel::Sms && role == Role::Proxy;
                if is_e164(text) || (short_codes && is_short_code(text)) {
                    return Ok(Self(text.to_owned()));
                }
                let allowed = if short_codes {
                    "E.164: '+' and 2 to 15 digits, the first not 0, or a short code of 3 to 8 digits"
                } else {
                    "E.164: '+' and 2 to 15 digits, the first not 0"
                };
                invalid(allowed, canonical_e164(text))
            }
            Channel::Messenger | Channel::Instagram | Channel::AppleMessages => {
                if is_bounded(text) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Ok(Self(text.to_owned()));
                }
                invalid("the platform's id: printable ASCII, no spaces, at most 256 characters", None)
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
                invalid("an identity: printable ASCII, no space at either end, at most 256 characters", None)
            }
        }
    }

    /// The address as it is written.
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

/// E.164 from what people put around the digits: separators, and `00` for `+`.
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
    fn other_spellings_are_refused_with_the_canonical_one_where_it_is_clear() {
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
