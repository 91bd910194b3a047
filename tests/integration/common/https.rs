//! An HTTPS server for tests. It passes each request, with its whole body, to a function and returns the answer of that function; without
//! an answer it cuts the connection.

use control_plane::ServingCertificate;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, Error>;

/// A server that runs until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    _stop: DropGuard,
}

/// Serves on a free port of loopback, in a thread with its own runtime. The future of `handle` is dropped if the client disconnects
/// first. If it returns `None`, the server cuts the connection.
pub fn serve<H, F>(certificate: &ServingCertificate, handle: H) -> Server
where
    H: Fn(Request<Bytes>) -> F + Clone + Send + 'static,
    F: Future<Output = Option<Response<Body>>> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(config(certificate)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let stopped = stop.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                () = accept(listener, acceptor, handle) => {}
                () = stopped.cancelled() => {}
            }
        });
        runtime.shutdown_background();
    });
    Server { address, _stop: stop.drop_guard() }
}

async fn accept<H, F>(listener: TcpListener, acceptor: TlsAcceptor, handle: H)
where
    H: Fn(Request<Bytes>) -> F + Clone + Send + 'static,
    F: Future<Output = Option<Response<Body>>> + Send + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, handle) = (acceptor.clone(), handle.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let handle = handle.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
                    handle(Request::from_parts(parts, body)).await.ok_or(io::Error::other("cut on purpose"))
                }
            });
            // Tests break connections on purpose.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn config(certificate: &ServingCertificate) -> ServerConfig {
    let chain = CertificateDer::pem_slice_iter(certificate.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.unwrap(), key)
        .unwrap()
}

pub fn json(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let body = Full::from(body.to_string()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("Content-Type", "application/json").body(body).unwrap()
}
