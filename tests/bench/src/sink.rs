//! A sink that accepts every event, and records when.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::error::{Error, Result};

/// An event that was accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its ID.
    pub id: String,
    /// When its answer was ready.
    pub at: Instant,
}

/// A sink that runs until it is dropped.
pub struct Sink {
    address: SocketAddr,
    accepted: Arc<Mutex<Vec<Accepted>>>,
    task: JoinHandle<()>,
}

impl Sink {
    /// Serves on a free port of loopback.
    pub async fn start() -> Result<Self> {
        let (listener, address) = listen().await?;
        let accepted = Arc::<Mutex<Vec<Accepted>>>::default();
        let task = tokio::spawn({
            let accepted = accepted.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    let accepted = accepted.clone();
                    tokio::spawn(async move {
                        let service = service_fn(|request| answer(request, &accepted));
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
                    });
                }
            }
        });
        Ok(Self { address, accepted, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The events since the last call of this function.
    pub fn take(&self) -> Vec<Accepted> {
        std::mem::take(&mut lock(&self.accepted))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens on a free port of loopback.
pub async fn listen() -> Result<(TcpListener, SocketAddr)> {
    let listening = async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        listener.local_addr().map(|address| (listener, address))
    };
    listening.await.map_err(|source| Error::Io { doing: "listen on 127.0.0.1".to_owned(), source })
}

fn lock(accepted: &Mutex<Vec<Accepted>>) -> MutexGuard<'_, Vec<Accepted>> {
    accepted.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(
    request: Request<Incoming>,
    accepted: &Mutex<Vec<Accepted>>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let id = request.headers().get("ce-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    // The sender reports an error if the connection breaks.
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::ACCEPTED;
    lock(accepted).push(Accepted { id, at: Instant::now() });
    Ok(response)
}
