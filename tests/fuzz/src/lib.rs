//! The properties of every source of the router, which the fuzz targets of the sources share.

use hyper::Method;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use switchboard::router::source::{
    Keys, MAX_ID_LENGTH, MAX_MESSAGES, Parsed, Rejection, Source, SourceRequest, SourceType, parse,
};

/// The secret under every data key.
pub const SECRET: &str = "secret";

/// The URL of the source of type Twilio.
pub const URL: &str = "https://hooks.example.com/v1/sources/a";

/// A source with keys.
pub struct Target {
    source: Source,
    keys: Keys,
}

impl Target {
    /// A source of type `type_` with [`SECRET`] under each of `data_keys`.
    pub fn new(type_: SourceType, data_keys: &[&str]) -> Self {
        let files = data_keys.iter().map(|name| ((*name).to_owned(), SECRET.as_bytes().to_vec())).collect();
        Self { source: Source::new(type_, Some(URL)).unwrap(), keys: Keys::of(type_, files).unwrap() }
    }

    /// Parses an authentic request. It is not refused as unauthenticated, its messages are bounded, and a repetition has the same messages.
    pub fn accept(&self, request: &SourceRequest) {
        let parsed = parse(&self.source, &self.keys, request);
        assert_eq!(parsed, parse(&self.source, &self.keys, request));
        match parsed {
            Ok(Parsed::Messages(messages)) => {
                assert!(messages.len() <= MAX_MESSAGES);
                for message in messages {
                    assert!((1..=MAX_ID_LENGTH).contains(&message.id.chars().count()), "{:?}", message.id);
                    assert!(!message.id.chars().any(char::is_control), "{:?}", message.id);
                    assert!(!message.kind.is_empty());
                }
            }
            Ok(Parsed::Challenge(challenge)) => panic!("{challenge:?}"),
            Err(rejection) => assert_ne!(rejection, Rejection::Unauthenticated),
        }
    }

    /// Parses a request that is not authentic. It is refused.
    pub fn refuse(&self, request: &SourceRequest) {
        parse(&self.source, &self.keys, request).unwrap_err();
    }

    /// Parses a GET, which contains no message.
    pub fn get(&self, query: String) {
        let request = SourceRequest { query: Some(query), ..post(&[], b"") };
        let get = SourceRequest { method: Method::GET, ..request };
        assert!(!matches!(parse(&self.source, &self.keys, &get), Ok(Parsed::Messages(_))));
    }
}

/// A POST of `body` with these headers.
pub fn post(headers: &[(&'static str, &str)], body: &[u8]) -> SourceRequest {
    let headers = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect::<HeaderMap>();
    SourceRequest { method: Method::POST, query: None, headers, body: body.to_vec().into() }
}
