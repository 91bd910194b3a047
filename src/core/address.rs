//! Parses addresses by channel and side. The error about an invalid address names the mistake, and suggests the canonical spelling if
//! that can be computed.
//!
//! The schema states the same rule in CEL (`api::rules::address`), from the same constants (`api::address_format`). The tests check both
//! on the same data.

use crate::api::address_format::{
    NUMBER_SCHEMES, SCHEMES, SEPARATORS, TRUNK_ZERO, UNCLEAR, UNSEEN, is_telephone, of_contact, of_proxy, own_schemes,
};
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
#[error("must be {allowed}{}{}", .mistake.as_ref().map(Mistake::to_string).unwrap_or_default(), .canonical.as_ref().map(|canonical| format!("; write {canonical}")).unwrap_or_default())]
pub struct InvalidAddress {
    /// The format that is allowed.
    pub allowed: &'static str,
    /// The mistake, if it is a known one.
    pub mistake: Option<Mistake>,
    /// The canonical form of the address, if it can be computed.
    pub canonical: Option<String>,
}

/// A mistake that the allowed format does not make plain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A character is not printable ASCII.
    Character {
        /// The first of them.
        character: char,
        /// Its position, counted in characters from 1.
        position: usize,
        /// Whether it is in the domain of a mailbox.
        is_in_domain: bool,
    },
    /// The address starts with a scheme.
    Scheme,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Scheme => f.write_str("; it must have no scheme such as 'tel:' in front"),
            Self::Character { character, position, is_in_domain } => {
                let is_unseen = UNSEEN.iter().any(|(first, last)| (*first..=*last).contains(&character));
                if is_unseen {
                    return write!(f, "; it has U+{:04X} at position {position}", u32::from(character));
                }
                write!(f, "; it has '{character}' at position {position}")?;
                if is_in_domain {
                    f.write_str("; spell an internationalized domain in punycode (xn--…)")
                } else {
                    Ok(())
                }
            }
        }
    }
}

impl Address {
    /// Parses `text`, which must be canonical, as an address on `channel`, as a create requires it.
    ///
    /// # Errors
    /// If it is not canonical; the error has the allowed format and, if it can be computed, the canonical form.
    pub fn parse(channel: Channel, role: Role, text: &str) -> Result<Self, InvalidAddress> {
        if after_scheme(&SCHEMES, text).is_none() && is_well_formed(channel, role, text) {
            return Ok(Self(text.to_owned()));
        }
        let mistake = Mistake::of(channel, text);
        let is_ascii = !matches!(mistake, Some(Mistake::Character { .. }));
        Err(InvalidAddress {
            allowed: match role {
                Role::Contact => of_contact(channel),
                Role::Proxy => of_proxy(channel),
            },
            canonical: is_ascii.then(|| canonical(channel, role, text)).flatten(),
            mistake,
        })
    }

    /// The address in a stored object. Its format was checked when it was created, maybe by an earlier version whose rules admitted more.
    /// Every version requires printable ASCII.
    ///
    /// # Errors
    /// If no version can have admitted it.
    pub fn stored(text: &str) -> Result<Self, InvalidAddress> {
        if is_bounded(text) && text.bytes().all(is_printable) {
            return Ok(Self(text.to_owned()));
        }
        let allowed = "printable ASCII, from 1 to 256 characters";
        Err(InvalidAddress { allowed, mistake: Mistake::character(text, false), canonical: None })
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

impl Mistake {
    fn of(channel: Channel, text: &str) -> Option<Self> {
        let scheme = || after_scheme(&SCHEMES, text).map(|_| Self::Scheme);
        Self::character(text, channel == Channel::Email).or_else(scheme)
    }

    fn character(text: &str, is_mailbox: bool) -> Option<Self> {
        let is_foreign = |character: char| !matches!(character, ' '..='~');
        let (before, character) = text.find(is_foreign).and_then(|index| {
            let (before, rest) = text.split_at(index);
            Some((before, rest.chars().next()?))
        })?;
        let is_in_domain = is_mailbox && before.contains('@');
        Some(Self::Character { character, position: before.len() + 1, is_in_domain })
    }
}

/// Whether `text` has the format of its channel and side.
fn is_well_formed(channel: Channel, role: Role, text: &str) -> bool {
    match channel {
        Channel::Sms => is_e164(text) || is_short_code(role, text) || is_sender_id(text),
        Channel::WhatsApp => is_e164(text) || (role == Role::Contact && is_user_id(text)),
        Channel::Rcs => is_e164(text) || (role == Role::Proxy && !text.starts_with('+') && is_opaque_id(text)),
        Channel::Messenger | Channel::Instagram | Channel::AppleMessages => is_opaque_id(text),
        Channel::Email => is_email(text),
        Channel::Chat => {
            let is_trimmed = !text.starts_with(' ') && !text.ends_with(' ');
            is_bounded(text) && text.bytes().all(is_printable) && is_trimmed
        }
    }
}

fn is_bounded(text: &str) -> bool {
    (1..=MAX_ADDRESS_LENGTH).contains(&text.len())
}

fn is_printable(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte == b' '
}

fn is_e164(text: &str) -> bool {
    text.strip_prefix('+').is_some_and(|digits| {
        (2..=15).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// A short code. Digits of 7 and 8 are national numbers in many countries, so a contact with them would be a second binding of one person.
fn is_short_code(role: Role, text: &str) -> bool {
    let longest = if role == Role::Proxy { 8 } else { 6 };
    (3..=longest).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// An alphanumeric sender ID of SMS, in the case that the carrier uses.
fn is_sender_id(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b" -+_&".contains(&byte);
    (1..=11).contains(&text.len())
        && text.bytes().all(is_allowed)
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !text.starts_with(' ')
        && !text.ends_with(' ')
}

/// A business-scoped user ID of WhatsApp, which a contact without a visible number has.
fn is_user_id(text: &str) -> bool {
    text.split_once('.').is_some_and(|(country, id)| {
        country.len() == 2
            && country.bytes().all(|byte| byte.is_ascii_uppercase())
            && (1..=128).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

fn is_opaque_id(text: &str) -> bool {
    is_bounded(text) && text.bytes().all(|byte| byte.is_ascii_graphic())
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

/// The rest of `text` after one of `schemes` and a colon.
fn after_scheme<'a>(schemes: &[&str], text: &'a str) -> Option<&'a str> {
    let (scheme, rest) = text.split_once(':')?;
    schemes.iter().any(|known| known.eq_ignore_ascii_case(scheme)).then_some(rest)
}

/// The canonical spelling of an invalid address in printable ASCII. A wrong proposal would open a second binding for one person, so there
/// is none if the meaning of the address is not clear.
fn canonical(channel: Channel, role: Role, text: &str) -> Option<String> {
    let own = after_scheme(own_schemes(channel), text);
    // A URI can have escapes and parameters after the address.
    let is_uri = || text.contains(['%', '?']);
    match channel {
        Channel::Email => {
            let mailbox = own.unwrap_or(text).trim_matches(' ').to_ascii_lowercase();
            let is_clear = after_scheme(&SCHEMES, text).is_none() || !is_uri();
            Some(mailbox).filter(|mailbox| is_clear && is_email(mailbox))
        }
        _ if is_telephone(channel) && number(channel, text).is_some() => number(channel, text),
        _ => {
            // Numbers have been tried. On SMS one with letters can be meant.
            let is_clear = |rest: &&str| match channel {
                Channel::Sms => {
                    is_short_code(role, rest) || rest.starts_with(|first: char| first.is_ascii_alphabetic())
                }
                _ => !is_telephone(channel) || !rest.starts_with('+'),
            };
            let rest = own.filter(is_clear).filter(|_| !is_uri())?;
            Address::parse(channel, role, rest).ok().map(|address| address.0)
        }
    }
}

/// The E.164 number in international notation, with separators, a scheme, or a bracketed trunk zero. `None` if it is unclear: a national
/// number, also one with the international prefix of its country; an extension; letters; a number that only a list of the country's
/// prefixes could resolve.
fn number(channel: Channel, text: &str) -> Option<String> {
    let own = || after_scheme(own_schemes(channel), text);
    let text = after_scheme(&NUMBER_SCHEMES, text).or_else(own).unwrap_or(text).trim_start_matches([' ', '(']);
    let is_spelled_out = |rest: &str| rest.chars().all(|letter| letter.is_ascii_digit() || SEPARATORS.contains(letter));
    // A slash before a few digits makes them an extension, or the end of a range.
    let has_extension = text.rsplit_once('/').is_some_and(|(_, end)| {
        let end = end.trim_matches(' ');
        (1..=3).contains(&end.len()) && end.bytes().all(|byte| byte.is_ascii_digit())
    });
    if !text.strip_prefix('+').is_some_and(is_spelled_out) || has_extension {
        return None;
    }
    let without_separators =
        |text: &str| -> String { text.chars().filter(|letter| !SEPARATORS.contains(*letter)).collect() };
    let number = match text.split_once("(0)") {
        None => without_separators(text),
        Some((code, rest)) => {
            let (code, rest) = (without_separators(code), without_separators(rest));
            let has_trunk_zero = code.strip_prefix('+').is_some_and(|code| TRUNK_ZERO.contains(&code));
            if !has_trunk_zero || rest.is_empty() {
                return None;
            }
            code + &rest
        }
    };
    let digits = number.strip_prefix('+')?;
    let starts_with_trunk_zero =
        TRUNK_ZERO.iter().any(|code| digits.strip_prefix(code).is_some_and(|rest| rest.starts_with('0')));
    let is_clear = !starts_with_trunk_zero && !UNCLEAR.iter().any(|prefix| digits.starts_with(prefix));
    Some(number).filter(|number| is_clear && is_e164(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposal_is_valid_and_parses_to_itself() {
        use {Channel as C, Role as R};
        for (channel, role, text, canonical) in [
            (C::Sms, R::Contact, "+1 (555) 867-5310", Some("+15558675310")),
            (C::WhatsApp, R::Contact, "whatsapp:+44 (0)20 7946 0018", Some("+442079460018")),
            (C::Rcs, R::Proxy, "rcs:desk@rbm.goog", Some("desk@rbm.goog")),
            (C::Email, R::Contact, " Alice@Example.com", Some("alice@example.com")),
            (C::Sms, R::Contact, "0049.30/1234", None),
            (C::Sms, R::Contact, "+44 (0)", None),
            (C::Chat, R::Contact, " a", None),
        ] {
            let error = Address::parse(channel, role, text).expect_err(text);
            assert_eq!(error.canonical.as_deref(), canonical, "{text:?}");
            if let Some(canonical) = canonical {
                assert_eq!(Address::parse(channel, role, canonical).unwrap().as_str(), canonical);
            }
        }
    }

    #[test]
    fn error_names_the_first_mistake() {
        let error = |channel, text| Address::parse(channel, Role::Contact, text).unwrap_err().to_string();
        assert!(error(Channel::Sms, "+1555\u{200f}8675310").ends_with("; it has U+200F at position 6"));
        assert!(error(Channel::Sms, "ü\u{200f}").ends_with("; it has 'ü' at position 1"));
        assert!(error(Channel::Email, "alice@bücher.example").contains("punycode"));
        assert!(!error(Channel::Email, "bücher").contains("punycode"));
        assert!(error(Channel::Messenger, "tel:1").ends_with("; it must have no scheme such as 'tel:' in front"));
    }

    #[test]
    fn stored_address_is_only_printable_and_bounded() {
        for text in ["whatsapp:+1", "tel:1", " ", "~", &"a".repeat(256)] {
            assert_eq!(Address::stored(text).unwrap().as_str(), text);
        }
        for text in ["", "a\nb", "\u{200f}", "ü", &"a".repeat(257)] {
            Address::stored(text).unwrap_err();
        }
    }
}
