//! The simplest webhook, as a baseline: it looks up another open conversation with the binding, and allows the create if it finds none.
//! It makes no claim, so it allows two concurrent creates. The benchmark measures its speed and counts its duplicates.

use std::{net::SocketAddr, sync::Arc};

use control_plane::{Authority, ServingCertificate};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{
    Api, Client,
    api::ListParams,
    core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview},
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use switchboard::api::Conversation;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::{
    error::{Error, Result},
    sink::listen,
};

/// A webhook that answers until it is dropped.
pub struct Lookup {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Lookup {
    /// Starts a webhook that uses `client` for lookups and a certificate of `authority`.
    pub async fn start(client: Client, authority: &Authority) -> Result<Self> {
        let tls = TlsAcceptor::from(Arc::new(tls(&authority.issue("lookup")?)?));
        let (listener, address) = listen().await?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, tls.clone(), client.clone()));
            }
        });
        Ok(Self { address, task })
    }

    /// The URL of the webhook.
    pub fn url(&self) -> String {
        format!("https://{}/", self.address)
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn tls(certificate: &ServingCertificate) -> Result<ServerConfig> {
    let unusable = |error: String| Error::Unexpected(format!("the certificate of the webhook cannot be used: {error}"));
    let chain =
        CertificateDer::pem_slice_iter(certificate.certificate.as_bytes()).collect::<std::result::Result<_, _>>();
    let chain = chain.map_err(|error| unusable(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| unusable(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, client: Client) {
    // The API server reports an error if the connection breaks.
    let _ = stream.set_nodelay(true);
    let Ok(stream) = tls.accept(stream).await else { return };
    let service = service_fn(move |request| answer(request, client.clone()));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, client: Client) -> Result<Response<Full<Bytes>>> {
    let body = request.into_body().collect().await;
    let body = body.map_err(|error| Error::Unexpected(format!("a review is incomplete: {error}")))?.to_bytes();
    let review: AdmissionReview<Conversation> = serde_json::from_slice(&body)?;
    let request: AdmissionRequest<Conversation> =
        review.try_into().map_err(|_| Error::Unexpected("a review has no request".to_owned()))?;
    let mut response = AdmissionResponse::from(&request);
    if let Some(conversation) = &request.object
        && is_bound(client, conversation).await?
    {
        response = response.deny("the binding has a holder");
        response.result.code = 403;
    }
    Ok(Response::new(Full::from(serde_json::to_vec(&response.into_review())?)))
}

/// Whether another stored open conversation has the binding.
async fn is_bound(client: Client, conversation: &Conversation) -> Result<bool> {
    let spec = &conversation.spec;
    let Some(contact) = &spec.contact else { return Ok(false) };
    let fields = format!(
        "spec.channel={},spec.contact.address={},spec.proxy.address={},status.state!=Closed",
        spec.channel, contact.address, spec.proxy.address
    );
    let others = Api::<Conversation>::all(client).list(&ListParams::default().fields(&fields)).await?;
    Ok(!others.items.is_empty())
}
