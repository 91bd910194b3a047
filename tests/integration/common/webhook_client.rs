//! Calls a webhook by TLS without an API server, with any bytes.

use super::cluster::TestNamespace;
use control_plane::ServingCertificate;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A client of a webhook: the CAs that it trusts, and its certificate.
pub struct WebhookClient {
    config: ClientConfig,
}

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    pub body: String,
}

impl WebhookClient {
    /// A client that trusts the CAs in the PEM text `trusted`, authenticates with `identity` if there is one, and offers no protocol by
    /// ALPN.
    pub fn new(trusted: &[u8], identity: Option<&ServingCertificate>) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(trusted) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(ServingCertificate { certificate, key }) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        Self { config }
    }

    /// The same client, which offers these protocols by ALPN.
    pub fn offering(mut self, protocols: &[&str]) -> Self {
        self.config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Opens a connection. It is an error if either side rejects the other's certificate.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(self.config.clone())).connect(ServerName::from(address.ip()), stream).await
    }

    /// Sends `body` as a review on a new connection. The webhook may answer and close the connection before it has received the whole
    /// body.
    pub async fn review(&self, address: SocketAddr, body: &[u8]) -> io::Result<Answer> {
        let (mut answers, mut sends) = tokio::io::split(self.connect(address).await?);
        let request = request(body.len(), body);
        let send = async {
            sends.write_all(&request).await?;
            sends.flush().await
        };
        let (answer, _) = tokio::join!(answer(&mut answers), send);
        answer
    }
}

/// The bytes of a request with `body`, and with `length` as its `Content-Length`.
pub fn request(length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /admit?timeout=10s HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Sends all bytes. TLS may buffer some of them until a flush, and a read does not flush.
pub async fn send(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Reads the answer until the connection ends. It is an error if there is none.
pub async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes).await
        && bytes.is_empty()
    {
        return Err(error);
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("no answer but {text:?}")))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer { code: code.ok_or_else(|| io::Error::other(head.to_owned()))?, body: body.to_owned() })
}

/// The review of a create in `ns`, as an API server sends it.
pub fn review(ns: &TestNamespace, name: &str, uid: &str) -> Value {
    let mut object = serde_json::to_value(ns.conversation(name, json!({}))).unwrap();
    object["metadata"]["namespace"] = ns.namespace.clone().into();
    object["metadata"]["uid"] = uid.into();
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "switchboard.dev", "version": "v1alpha1", "kind": "Conversation"},
            "resource": {"group": "switchboard.dev", "version": "v1alpha1", "resource": "conversations"},
            "name": name,
            "namespace": ns.namespace,
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:sales:robot"},
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": null,
        },
    })
}
