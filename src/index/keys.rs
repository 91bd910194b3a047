//! Compact names, addresses, UIDs and versions: the index stores hundreds of thousands of them.

use crate::api::{Channel, ConversationReference};
use data_encoding::HEXLOWER;
use std::fmt::{Display, Formatter, Result};
use std::sync::Arc;

/// The namespace and name of a conversation. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName(Arc<str>);

impl NamespacedName {
    /// The conversation `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// The same as a reference of the API.
    #[must_use]
    pub fn reference(&self) -> ConversationReference {
        ConversationReference { namespace: self.namespace().to_owned(), name: self.name().to_owned() }
    }
}

impl From<&ConversationReference> for NamespacedName {
    fn from(reference: &ConversationReference) -> Self {
        Self::new(&reference.namespace, &reference.name)
    }
}

impl Display for NamespacedName {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&self.0)
    }
}

/// A proxy address and its channel. Clones share the text, and take 8 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyKey(Arc<(Channel, Box<str>)>);

impl ProxyKey {
    /// The proxy address `address` on `channel`.
    #[must_use]
    pub fn new(channel: Channel, address: &str) -> Self {
        Self(Arc::new((channel, address.into())))
    }

    /// The channel.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.0.0
    }

    /// Whether both share one text.
    #[cfg(test)]
    pub fn is_same_text(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.1
    }
}

/// A UID: the 16 bytes of a UUID, which is the form that the API server generates, or any other text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Uid {
    /// A UUID, written in its canonical form.
    Uuid([u8; 16]),
    /// Any other text.
    Other(Box<str>),
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let digits: String = text.split('-').collect();
        let bytes = HEXLOWER.decode(digits.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        // If formatting the bytes does not give the same text, the text is stored.
        bytes.map(Self::Uuid).filter(|uid| uid.to_string() == text).unwrap_or_else(|| Self::Other(text.into()))
    }
}

impl Display for Uid {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Uuid(bytes) => {
                let digits = HEXLOWER.encode(bytes);
                f.write_str(&[0..8, 8..12, 12..16, 16..20, 20..32].map(|group| &digits[group]).join("-"))
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// A resourceVersion: a number, which is the form that the API server generates, or any other text. Versions are only compared for
/// equality.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// A number, written in its canonical form.
    Number(u64),
    /// Any other text.
    Other(Box<str>),
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        let number = text.parse().ok().map(Self::Number);
        number.filter(|version| version.to_string() == text).unwrap_or_else(|| Self::Other(text.into()))
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: &str = "0f3c9a52-6f0e-4c1d-8a77-9b2f7e5d1c00";

    #[test]
    fn generated_uids_and_versions_take_few_bytes() {
        assert!(matches!(Uid::from(UUID), Uid::Uuid(_)));
        assert!(matches!(Version::from("18446744073709551615"), Version::Number(_)));
        assert!(size_of::<Uid>() <= 24 && size_of::<Version>() <= 16);
    }

    #[test]
    fn key_converts_to_a_reference_and_back() {
        let key = NamespacedName::new("sales", "alice");
        assert_eq!((key.namespace(), key.name()), ("sales", "alice"));
        assert_eq!(NamespacedName::from(&key.reference()), key);
    }

    #[test]
    fn uids_and_versions_in_other_formats_are_kept_as_text() {
        for other in [UUID.to_uppercase(), UUID.replace('-', ""), format!("-{UUID}"), String::new()] {
            assert_ne!(Uid::from(other.as_str()), Uid::from(UUID));
            assert_eq!(Uid::from(other.as_str()).to_string(), other);
        }
        for other in ["", "+7", "07", "-7", "18446744073709551616"] {
            assert_eq!(Version::from(other).to_string(), other);
        }
    }

    proptest! {
        #[test]
        fn uids_and_versions_convert_to_the_same_text(text in ".{0,40}", bytes in any::<[u8; 16]>(), number in any::<u64>()) {
            prop_assert_eq!(Uid::from(text.as_str()).to_string(), text.clone());
            prop_assert_eq!(Version::from(text.as_str()).to_string(), text);
            prop_assert_eq!(Uid::from(Uid::Uuid(bytes).to_string().as_str()), Uid::Uuid(bytes));
            prop_assert_eq!(Version::from(number.to_string().as_str()), Version::Number(number));
        }
    }
}
