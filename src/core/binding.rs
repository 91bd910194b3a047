//! The binding, and the name derived from it. The API server stores a name at most once, so the binding is unique in the cluster.

use super::address::{Address, InvalidAddress, Role};
use crate::api::{AddressBindingSpec, Channel, ConversationSpec};
use data_encoding::BASE32_NOPAD;
use ring::digest;
use std::sync::Arc;

/// The triple of channel, contact address and proxy address, by which inbound messages are routed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    channel: Channel,
    contact: Address,
    proxy: Address,
}

/// Why a channel and two addresses are not a valid binding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBinding {
    /// The contact address is not valid on the channel.
    #[error("the contact address {0}")]
    Contact(InvalidAddress),
    /// The proxy address is not valid on the channel.
    #[error("the proxy address {0}")]
    Proxy(InvalidAddress),
    /// Both addresses are equal.
    #[error("the contact address and the proxy address must be different")]
    Equal,
}

/// The name of the `AddressBinding` of a binding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BindingName(Arc<str>);

impl Binding {
    /// The binding of two addresses on a channel, as a create requires them.
    ///
    /// # Errors
    /// If an address is not canonical, or both are equal.
    pub fn parse(channel: Channel, contact: &str, proxy: &str) -> Result<Self, InvalidBinding> {
        Self::new(channel, Address::parse(channel, Role::Contact, contact), Address::parse(channel, Role::Proxy, proxy))
    }

    /// The binding of two addresses in a stored object.
    ///
    /// # Errors
    /// If no version of the schema admits an address, or both are equal.
    pub fn stored(channel: Channel, contact: &str, proxy: &str) -> Result<Self, InvalidBinding> {
        Self::new(channel, Address::stored(contact), Address::stored(proxy))
    }

    fn new(
        channel: Channel,
        contact: Result<Address, InvalidAddress>,
        proxy: Result<Address, InvalidAddress>,
    ) -> Result<Self, InvalidBinding> {
        let contact = contact.map_err(InvalidBinding::Contact)?;
        let proxy = proxy.map_err(InvalidBinding::Proxy)?;
        if contact == proxy { Err(InvalidBinding::Equal) } else { Ok(Self { channel, contact, proxy }) }
    }

    /// The binding that a new conversation with this spec needs, or `None` if it has no contact.
    ///
    /// # Errors
    /// As [`Binding::parse`].
    pub fn of(spec: &ConversationSpec) -> Result<Option<Self>, InvalidBinding> {
        let parse = |contact: &crate::api::Contact| Self::parse(spec.channel, &contact.address, &spec.proxy.address);
        spec.contact.as_ref().map(parse).transpose()
    }

    /// The binding that a stored conversation with this spec needs while it is open, or `None` if it has no contact.
    ///
    /// # Errors
    /// As [`Binding::stored`].
    pub fn of_stored(spec: &ConversationSpec) -> Result<Option<Self>, InvalidBinding> {
        let stored = |contact: &crate::api::Contact| Self::stored(spec.channel, &contact.address, &spec.proxy.address);
        spec.contact.as_ref().map(stored).transpose()
    }

    /// The binding that an `AddressBinding` claims.
    ///
    /// # Errors
    /// As [`Binding::stored`].
    pub fn claimed(spec: &AddressBindingSpec) -> Result<Self, InvalidBinding> {
        Self::stored(spec.channel, &spec.contact_address, &spec.proxy_address)
    }

    /// The channel of both addresses.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// The address of the contact.
    #[must_use]
    pub fn contact(&self) -> &Address {
        &self.contact
    }

    /// The address of the business.
    #[must_use]
    pub fn proxy(&self) -> &Address {
        &self.proxy
    }

    /// The name of the `AddressBinding`: the channel in lower case, `-`, and the first 26 characters of the lower-case RFC 4648
    /// base32 of SHA-256 over channel, contact and proxy, each preceded by its length in bytes as a 32-bit big-endian integer.
    ///
    /// The name is part of the API: routers compute it.
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
    /// The name of an existing claim, taken from its metadata.
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
    fn names_match_the_published_vectors() {
        assert_eq!(name(Channel::Sms, "+15558675310", "+15017122661"), "sms-67e3eom4uehoawfojbv6j3egtc");
        assert_eq!(name(Channel::Email, "alice@example.com", "desk@example.org"), "email-pfrzam47ufpq7dbz7qdpo5w3su");
    }

    #[test]
    fn name_depends_on_every_part_of_the_binding() {
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
    fn invalid_bindings_are_rejected() {
        assert!(matches!(Binding::parse(Channel::Sms, "1", "+49"), Err(InvalidBinding::Contact(_))));
        assert!(matches!(Binding::parse(Channel::Sms, "+49", "1"), Err(InvalidBinding::Proxy(_))));
        assert_eq!(Binding::parse(Channel::Sms, "+49", "+49"), Err(InvalidBinding::Equal));
        assert!(matches!(Binding::stored(Channel::Sms, "ü", "+49"), Err(InvalidBinding::Contact(_))));
        assert!(matches!(Binding::stored(Channel::Sms, "+49", ""), Err(InvalidBinding::Proxy(_))));
        assert_eq!(Binding::stored(Channel::Sms, "+49", "+49"), Err(InvalidBinding::Equal));
    }

    #[test]
    fn stored_binding_may_have_addresses_that_a_create_may_not() {
        let stored = |contact: &str, proxy: &str| Binding::stored(Channel::Messenger, contact, proxy).unwrap().name();
        assert!(Binding::parse(Channel::Messenger, "messenger:7036", "desk").is_err());
        assert_ne!(stored("messenger:7036", "desk"), stored("7036", "desk"), "the spelling is the name");
        assert_eq!(stored("7036", "desk").to_string(), name(Channel::Messenger, "7036", "desk"));
    }

    #[test]
    fn conversation_names_a_binding_if_it_has_a_contact() {
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
