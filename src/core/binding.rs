//! The binding, and the name derived from it, by which it exists once in a cluster.

use super::address::{Address, InvalidAddress, Role};
use crate::api::{AddressBindingSpec, Channel, ConversationSpec};
use data_encoding::BASE32_NOPAD;
use ring::digest;
use std::sync::Arc;

/// The triple by which an inbound message finds its conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    channel: Channel,
    contact: Address,
    proxy: Address,
}

/// Why there is no binding of a channel and two addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBinding {
    /// The contact's address is not valid on the channel.
    #[error("the contact address {0}")]
    Contact(InvalidAddress),
    /// The proxy's address is not valid on the channel.
    #[error("the proxy address {0}")]
    Proxy(InvalidAddress),
    /// Both addresses are the same.
    #[error("the contact address and the proxy address must differ")]
    Equal,
}

/// The name of the `AddressBinding` of a binding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BindingName(Arc<str>);

impl Binding {
    /// The binding of two addresses on a channel.
    ///
    /// # Errors
    /// Where an address is not canonical, or both are the same.
    pub fn parse(channel: Channel, contact: &str, proxy: &str) -> Result<Self, InvalidBinding> {
        let contact = Address::parse(channel, Role::Contact, contact).map_err(InvalidBinding::Contact)?;
        let proxy = Address::parse(channel, Role::Proxy, proxy).map_err(InvalidBinding::Proxy)?;
        if contact == proxy { Err(InvalidBinding::Equal) } else { Ok(Self { channel, contact, proxy }) }
    }

    /// The binding that a conversation of this spec needs while it is open; none where it has no contact.
    ///
    /// # Errors
    /// As [`Binding::parse`].
    pub fn of(spec: &ConversationSpec) -> Result<Option<Self>, InvalidBinding> {
        let parse = |contact: &crate::api::Contact| Self::parse(spec.channel, &contact.address, &spec.proxy.address);
        spec.contact.as_ref().map(parse).transpose()
    }

    /// The binding that a claim is for.
    ///
    /// # Errors
    /// As [`Binding::parse`].
    pub fn claimed(spec: &AddressBindingSpec) -> Result<Self, InvalidBinding> {
        Self::parse(spec.channel, &spec.contact_address, &spec.proxy_address)
    }

    /// The channel of both addresses.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// The address of the person outside.
    #[must_use]
    pub fn contact(&self) -> &Address {
        &self.contact
    }

    /// The business's own address.
    #[must_use]
    pub fn proxy(&self) -> &Address {
        &self.proxy
    }

    /// The name of the `AddressBinding`: the channel in lower case, `-`, and the first 26 characters of the lower-case RFC 4648
    /// base32 of SHA-256 over channel, contact and proxy, each preceded by its length in bytes as a 32-bit big-endian integer.
    ///
    /// It is part of the API: routers compute it.
    #[must_use]
    pub fn name(&self) -> BindingName {
        let mut hash = digest::Context::new(&digest::SHA256);
        for part in [self.channel.as_str(), self.contact.as_str(), self.proxy.as_str()] {
            // An address has at most 256 bytes.
            hash.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut encoded = BASE32_NOPAD.encode(hash.finish().as_ref()).to_ascii_lowercase();
        encoded.truncate(26);
        BindingName(format!("{}-{encoded}", self.channel.as_str().to_ascii_lowercase()).into())
    }
}

impl BindingName {
    /// The name of a claim that exists: whatever stands in its metadata.
    #[must_use]
    pub fn existing(name: String) -> Self {
        Self(name.into())
    }

    /// The name as Kubernetes spells it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for BindingName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(channel: Channel, contact: &str, proxy: &str) -> String {
        Binding::parse(channel, contact, proxy).unwrap().name().to_string()
    }

    #[test]
    fn names_are_those_that_routers_compute() {
        assert_eq!(name(Channel::Sms, "+15558675310", "+15017122661"), "sms-67e3eom4uehoawfojbv6j3egtc");
        assert_eq!(name(Channel::Email, "alice@example.com", "desk@example.org"), "email-pfrzam47ufpq7dbz7qdpo5w3su");
    }

    #[test]
    fn each_part_makes_another_name() {
        let names = [
            name(Channel::Chat, "ab", "c"),
            name(Channel::Chat, "a", "bc"),
            name(Channel::Chat, "c", "ab"),
            name(Channel::Messenger, "ab", "c"),
            name(Channel::AppleMessages, "ab", "c"),
        ];
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        assert!(names[4].starts_with("applemessages-"));
    }

    #[test]
    fn what_is_no_binding_is_refused() {
        assert!(matches!(Binding::parse(Channel::Sms, "1", "+49"), Err(InvalidBinding::Contact(_))));
        assert!(matches!(Binding::parse(Channel::Sms, "+49", "1"), Err(InvalidBinding::Proxy(_))));
        assert_eq!(Binding::parse(Channel::Sms, "+49", "+49"), Err(InvalidBinding::Equal));
    }

    #[test]
    fn a_conversation_with_a_contact_names_a_binding() {
        let spec = |contact: &str| -> ConversationSpec {
            let spec = format!(r#"{{"channel": "Chat", "contact": {contact}, "proxy": {{"address": "desk"}}}}"#);
            serde_json::from_str(&spec).unwrap()
        };
        let alice = Binding::parse(Channel::Chat, "alice", "desk");
        assert_eq!(Binding::of(&spec(r#"{"address": "alice"}"#)), alice.map(Some));
        assert_eq!(Binding::of(&spec("null")), Ok(None));
        assert_eq!(Binding::of(&spec(r#"{"address": "desk"}"#)), Err(InvalidBinding::Equal));
    }
}
