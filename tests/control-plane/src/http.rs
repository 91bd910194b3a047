//! Synchronous HTTP requests to health endpoints and to API servers. The set-up uses them instead of starting kubectl for each request.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::crypto::ring;
use ureq::{
    Agent,
    http::{Request, Response},
    tls::{Certificate, RootCerts, TlsConfig},
};

/// The time limit for an answer. The API server waits up to ten seconds for its webhooks.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A request to an API server.
pub(crate) enum Call<'a> {
    Get,
    /// Creates this object, which is YAML or JSON.
    Create(&'a str),
    /// Changes the object by this merge patch.
    Merge(&'a str),
    Delete,
}

/// A client of an API server, for a user with a token.
#[derive(Clone)]
pub(crate) struct ApiClient {
    agent: Agent,
    address: SocketAddr,
    token: String,
}

/// The status and the body of an answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl ApiClient {
    /// Creates a client that trusts the authority with this certificate (PEM).
    pub(crate) fn new(address: SocketAddr, authority: &str, token: &str) -> Result<Self, String> {
        let certificate = Certificate::from_pem(authority.as_bytes()).map_err(|error| error.to_string())?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[certificate]))
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build();
        Ok(Self { agent: agent(tls), address, token: token.to_owned() })
    }

    /// Calls the API server; `path` begins with a slash and may have a query.
    pub(crate) fn call(&self, call: &Call<'_>, path: &str) -> Result<Answer, String> {
        let url = format!("https://{}{path}", self.address);
        let (method, media_type, body) = match *call {
            Call::Get => ("GET", "", ""),
            Call::Create(body) => ("POST", "application/yaml", body),
            Call::Merge(body) => ("PATCH", "application/merge-patch+json", body),
            Call::Delete => ("DELETE", "", ""),
        };
        let bearer = format!("Bearer {}", self.token);
        let request = Request::builder().method(method).uri(&url).header("Authorization", bearer);
        let answered = if body.is_empty() {
            request.body(()).map_err(ureq::Error::from).and_then(|request| self.agent.run(request))
        } else {
            let request = request.header("Content-Type", media_type).body(body);
            request.map_err(ureq::Error::from).and_then(|request| self.agent.run(request))
        };
        read(answered, &url)
    }
}

/// Returns `Ok` if a GET over plain HTTP is answered with 200, otherwise the reason as a message.
pub(crate) fn is_ok(address: SocketAddr, path: &str) -> Result<(), String> {
    let url = format!("http://{address}{path}");
    let answer = read(agent(TlsConfig::default()).get(&url).call(), &url)?;
    if answer.status == 200 {
        Ok(())
    } else {
        Err(format!("{url} answers {}: {:?}", answer.status, answer.body.trim()))
    }
}

/// Creates an agent that keeps no idle connections, because the server may restart between two requests.
fn agent(tls: TlsConfig) -> Agent {
    let config = Agent::config_builder().tls_config(tls).http_status_as_error(false).timeout_global(Some(TIMEOUT));
    config.max_idle_connections(0).proxy(None).build().new_agent()
}

fn read(response: Result<Response<ureq::Body>, ureq::Error>, url: &str) -> Result<Answer, String> {
    let failed = |error: ureq::Error| format!("{url}: {error}");
    let mut response = response.map_err(failed)?;
    let body = response.body_mut().read_to_string().map_err(failed)?;
    Ok(Answer { status: response.status().as_u16(), body })
}
