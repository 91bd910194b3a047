//! The keys of a source: the data of its Secret. Several are valid at once, so that they can be rotated.

use super::SourceType;
use ring::hmac;
use std::collections::BTreeMap;

/// The keys of a source. `Debug` shows none of them.
#[derive(Clone)]
pub struct Keys(KeysOfType);

/// The keys of each type of source.
#[derive(Clone)]
pub(super) enum KeysOfType {
    Twilio {
        /// Of accounts and subaccounts. They sign with HMAC-SHA1.
        auth_tokens: Vec<hmac::Key>,
        /// By the ID that Twilio gave to the key.
        shared_keys: BTreeMap<String, SharedKey>,
    },
    Meta {
        /// They sign with HMAC-SHA256.
        app_secrets: Vec<hmac::Key>,
        verify_tokens: Vec<Token>,
    },
    CloudEvents {
        tokens: Vec<Token>,
    },
}

/// A shared key of Twilio. The request says which algorithm it signs with.
#[derive(Clone)]
pub(super) struct SharedKey {
    pub(super) sha1: hmac::Key,
    pub(super) sha256: hmac::Key,
}

/// A secret that the request contains itself. Only its HMAC is kept and compared, so that the comparison takes the same time for every
/// secret, whatever its length and its first characters are.
#[derive(Clone)]
pub(super) struct Token(hmac::Tag);

/// Why the data of a Secret are not the keys of a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// The type of source has no such key.
    #[error("data key {name:?} of the Secret is unknown; a source of type {type_:?} uses {}; rename it or remove it", allowed(*.type_))]
    Unknown {
        /// The data key.
        name: String,
        /// The type of the source.
        type_: SourceType,
    },
    /// Everybody knows the empty key.
    #[error("data key {name:?} of the Secret is empty; set it or remove it")]
    Empty {
        /// The data key.
        name: String,
    },
    /// Nothing could be authenticated.
    #[error("the Secret has no key that authenticates messages; a source of type {type_:?} uses {}; add {}", allowed(*.type_), required(*.type_))]
    Missing {
        /// The type of the source.
        type_: SourceType,
    },
}

/// The data keys that a type of source uses. `*` stands for any text, also for none.
const fn allowed(type_: SourceType) -> &'static str {
    match type_ {
        SourceType::Twilio => "authToken* and sharedKey.KEY_SID",
        SourceType::Meta => "appSecret* and verifyToken*",
        SourceType::CloudEvents => "token*",
    }
}

/// The data keys of which a type of source needs at least one. Meta's verify token is needed only while the webhook is set up.
const fn required(type_: SourceType) -> &'static str {
    match type_ {
        SourceType::Twilio => "authToken or sharedKey.KEY_SID",
        SourceType::Meta => "appSecret",
        SourceType::CloudEvents => "token",
    }
}

impl Keys {
    /// The keys of a source of type `type_` from the data of its Secret, by data key. One line break at the end of a value does not belong
    /// to the key.
    pub fn of(type_: SourceType, files: BTreeMap<String, Vec<u8>>) -> Result<Self, InvalidKeys> {
        let (mut signing, mut tokens, mut shared_keys) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (name, value) in files {
            let secret = without_line_break(&value);
            if secret.is_empty() {
                return Err(InvalidKeys::Empty { name });
            }
            let shared_key_id = name.strip_prefix("sharedKey.").filter(|id| !id.is_empty());
            match (type_, shared_key_id) {
                (SourceType::Twilio, Some(id)) => {
                    shared_keys.insert(id.to_owned(), SharedKey::of(secret));
                }
                (SourceType::Twilio, _) if name.starts_with("authToken") => {
                    signing.push(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret));
                }
                (SourceType::Meta, _) if name.starts_with("appSecret") => {
                    signing.push(hmac::Key::new(hmac::HMAC_SHA256, secret));
                }
                (SourceType::Meta, _) if name.starts_with("verifyToken") => tokens.push(Token::of(secret)),
                (SourceType::CloudEvents, _) if name.starts_with("token") => tokens.push(Token::of(secret)),
                _ => return Err(InvalidKeys::Unknown { name, type_ }),
            }
        }
        let has_required = match type_ {
            SourceType::Twilio => !signing.is_empty() || !shared_keys.is_empty(),
            SourceType::Meta => !signing.is_empty(),
            SourceType::CloudEvents => !tokens.is_empty(),
        };
        if !has_required {
            return Err(InvalidKeys::Missing { type_ });
        }
        Ok(Self(match type_ {
            SourceType::Twilio => KeysOfType::Twilio { auth_tokens: signing, shared_keys },
            SourceType::Meta => KeysOfType::Meta { app_secrets: signing, verify_tokens: tokens },
            SourceType::CloudEvents => KeysOfType::CloudEvents { tokens },
        }))
    }

    pub(super) const fn of_type(&self) -> &KeysOfType {
        &self.0
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl SharedKey {
    fn of(secret: &[u8]) -> Self {
        Self {
            sha1: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret),
            sha256: hmac::Key::new(hmac::HMAC_SHA256, secret),
        }
    }
}

impl Token {
    fn of(secret: &[u8]) -> Self {
        Self(hmac::sign(&Self::key(), secret))
    }

    /// Whether `presented` is this secret.
    pub(super) fn is(&self, presented: &[u8]) -> bool {
        hmac::verify(&Self::key(), presented, self.0.as_ref()).is_ok()
    }

    /// The key of the HMACs that are compared. It need not be secret: nobody sees the HMACs.
    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, b"switchboard")
    }
}

fn without_line_break(value: &[u8]) -> &[u8] {
    value.strip_suffix(b"\r\n").or_else(|| value.strip_suffix(b"\n")).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(type_: SourceType, files: &[(&str, &str)]) -> Result<Keys, InvalidKeys> {
        let files = files.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        Keys::of(type_, files)
    }

    #[test]
    fn data_keys_of_the_type_are_accepted() {
        let files = [("authToken", "a\n"), ("authToken-old", "b"), ("sharedKey.webhooks_sharedkey_01", "c")];
        let keys_of_twilio = keys(SourceType::Twilio, &files).unwrap();
        let KeysOfType::Twilio { auth_tokens, shared_keys } = keys_of_twilio.of_type() else { panic!() };
        assert_eq!(auth_tokens.len(), 2);
        assert!(shared_keys.keys().eq(["webhooks_sharedkey_01"]));

        let files = [("appSecret", "a"), ("appSecret2", "b"), ("verifyToken", "c"), ("verifyToken.old", "d")];
        let keys_of_meta = keys(SourceType::Meta, &files).unwrap();
        let KeysOfType::Meta { app_secrets, verify_tokens } = keys_of_meta.of_type() else { panic!() };
        assert_eq!((app_secrets.len(), verify_tokens.len()), (2, 2));

        let keys_of_gateway = keys(SourceType::CloudEvents, &[("token", "a"), ("token-new", "b")]).unwrap();
        let KeysOfType::CloudEvents { tokens } = keys_of_gateway.of_type() else { panic!() };
        assert_eq!(tokens.iter().map(|token| token.is(b"b")).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn unusable_data_are_refused_with_the_next_step() {
        for (type_, files, message) in [
            (SourceType::Twilio, &[][..], "uses authToken* and sharedKey.KEY_SID; add authToken or sharedKey.KEY_SID"),
            (SourceType::Meta, &[("verifyToken", "a")], "uses appSecret* and verifyToken*; add appSecret"),
            (SourceType::CloudEvents, &[("token", "a"), ("tokn", "b")], "\"tokn\" of the Secret is unknown; a source"),
            (SourceType::CloudEvents, &[("authToken", "a")], "uses token*; rename it or remove it"),
            (SourceType::Twilio, &[("sharedKey.", "a")], "\"sharedKey.\" of the Secret is unknown"),
            (SourceType::Meta, &[("sharedKey.appSecret", "a")], "\"sharedKey.appSecret\" of the Secret is unknown"),
            (SourceType::Twilio, &[("authToken", "\n")], "\"authToken\" of the Secret is empty; set it or remove it"),
            (SourceType::CloudEvents, &[("token", "a"), ("token-old", "")], "\"token-old\" of the Secret is empty"),
        ] {
            let error = keys(type_, files).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn line_break_at_the_end_does_not_belong_to_the_key() {
        for (value, key) in [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("a\r", "a\r")]
        {
            assert_eq!(without_line_break(value.as_bytes()), key.as_bytes(), "{value:?}");
        }
    }

    #[test]
    fn token_is_equal_to_nothing_else() {
        let token = Token::of(b"secret");
        assert!(token.is(b"secret"));
        for other in ["", "s", "secre", "secret ", "secreT", "secret\0"] {
            assert!(!token.is(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn debug_output_has_no_key() {
        let keys = keys(SourceType::Twilio, &[("authToken", "xyzzy"), ("sharedKey.a", "xyzzy")]).unwrap();
        assert_eq!(format!("{keys:?}"), "Keys { .. }");
    }
}
