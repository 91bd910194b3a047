//! Inbound messages as Twilio sends them, and a client that sends them. It signs with an implementation of its own.

use std::{net::SocketAddr, sync::Arc};

use data_encoding::BASE64;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use ring::hmac;

use crate::error::{Error, Result};

/// The URL at which Twilio sends messages. Its signature covers it.
pub const PUBLIC_URL: &str = "https://inbound.example.com/v1/sources/twilio";
/// The path of the source at the router.
pub const PATH: &str = "/v1/sources/twilio";
/// The token by which requests are signed.
pub const AUTH_TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// The header with the signature.
pub const SIGNATURE: &str = "x-twilio-signature";
/// The media type of the body.
pub const FORM: &str = "application/x-www-form-urlencoded";
/// The address of the business.
pub const PROXY: &str = "+15017122661";

/// The signature of a request with these parameters, which are sorted by name.
pub fn sign<'a>(key: &hmac::Key, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = PUBLIC_URL.to_owned();
    for (name, value) in parameters {
        text += name;
        text += value;
    }
    BASE64.encode(hmac::sign(key, text.as_bytes()).as_ref())
}

/// The key of [`AUTH_TOKEN`].
pub fn key() -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, AUTH_TOKEN.as_bytes())
}

/// A client of a router, of a forwarder or of a sink, which keeps its connections.
#[derive(Clone)]
pub struct Sender {
    client: Client<HttpConnector, Full<Bytes>>,
    key: Arc<hmac::Key>,
}

impl Sender {
    /// A client without open connections.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { client: Client::builder(TokioExecutor::new()).build(connector), key: Arc::new(key()) }
    }

    /// Sends a message of `contact` to the router or forwarder at this address, which must accept it.
    pub async fn send(&self, to: SocketAddr, contact: &str, id: &str) -> Result<()> {
        let parameters = [
            ("AccountSid", "AC0123456789abcdef0123456789abcdef"),
            ("ApiVersion", "2010-04-01"),
            ("Body", "Is the blue one still available? I saw it on your page this morning."),
            ("From", contact),
            ("FromCountry", "US"),
            ("MessageSid", id),
            ("NumMedia", "0"),
            ("NumSegments", "1"),
            ("SmsMessageSid", id),
            ("SmsSid", id),
            ("SmsStatus", "received"),
            ("To", PROXY),
            ("ToCountry", "US"),
        ];
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        let request = Request::post(format!("http://{to}{PATH}"))
            .header("content-type", FORM)
            .header(SIGNATURE, sign(&self.key, parameters))
            .body(Full::from(body));
        self.accepted(request, id).await
    }

    /// Posts a small event to a sink, which must accept it.
    pub async fn post(&self, sink: SocketAddr, id: &str) -> Result<()> {
        let request = Request::post(format!("http://{sink}/")).header("ce-id", id).body(Full::from("{}"));
        self.accepted(request, id).await
    }

    async fn accepted(&self, request: hyper::http::Result<Request<Full<Bytes>>>, id: &str) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| Error::Unexpected(format!("message {id}: {error}"));
        let request = request.map_err(|error| failed(&error))?;
        let response = self.client.request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
        if status == StatusCode::OK || status == StatusCode::ACCEPTED {
            return Ok(());
        }
        Err(failed(&format!("{status} {}", String::from_utf8_lossy(&body))))
    }
}
