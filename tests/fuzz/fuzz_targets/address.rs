//! The parser of addresses never panics. An accepted address is printable ASCII with a bounded length, is its own canonical form, and is
//! accepted as a stored one. A proposal is accepted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchboard::api::Channel;
use switchboard::core::address::{Address, Role};

const CHANNELS: [Channel; 8] = [
    Channel::Sms,
    Channel::WhatsApp,
    Channel::Rcs,
    Channel::Messenger,
    Channel::Instagram,
    Channel::AppleMessages,
    Channel::Email,
    Channel::Chat,
];

fuzz_target!(|text: &str| {
    for channel in CHANNELS {
        for role in [Role::Contact, Role::Proxy] {
            match Address::parse(channel, role, text) {
                Ok(address) => {
                    let canonical = address.as_str();
                    assert!(!canonical.is_empty() && canonical.len() <= 256, "{canonical:?}");
                    assert!(canonical.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{canonical:?}");
                    assert_eq!(Address::parse(channel, role, canonical).as_ref(), Ok(&address));
                    assert_eq!(Address::stored(canonical).as_ref(), Ok(&address));
                }
                Err(error) => {
                    let message = error.to_string();
                    if let Some(proposal) = error.canonical {
                        assert!(message.ends_with(&format!("; write {proposal}")), "{message:?}");
                        assert_ne!(proposal, text);
                        assert!(Address::parse(channel, role, &proposal).is_ok(), "{text:?} {proposal:?}");
                    }
                }
            }
        }
    }
});
