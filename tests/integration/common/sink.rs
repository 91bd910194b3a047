//! A sink for tests: an HTTP server that records the events it receives, and answers as a test says.

use data_encoding::BASE64;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, LOCATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::hmac;
use serde_json::Value;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::cluster::TIMEOUT;

/// An event as it was received.
#[derive(Clone, Debug)]
pub struct Received {
    pub headers: HeaderMap,
    pub body: Bytes,
    pub data: Value,
    /// When the answer was ready.
    pub answered: Instant,
    /// The status of the answer; 0 if there is none.
    pub status: u16,
}

impl Received {
    /// An attribute of the event.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.headers.get(format!("ce-{name}")).map(|value| value.to_str().unwrap())
    }

    /// The last part of the type before its version, such as `received`.
    pub fn kind(&self) -> &str {
        self.attribute("type").unwrap().rsplit('.').nth(1).unwrap()
    }

    /// The conversation, as `NAMESPACE/NAME`.
    pub fn conversation(&self) -> Option<&str> {
        self.attribute("subject")
    }

    /// Whether the sink accepted it.
    pub fn is_accepted(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether it has the signature that Standard Webhooks define, by this secret.
    pub fn is_signed_by(&self, secret: &str) -> bool {
        let header = |name: &str| self.headers[name].to_str().unwrap();
        let signed = [header("webhook-id"), header("webhook-timestamp"), ""].join(".").into_bytes();
        let secret = BASE64.decode(secret.strip_prefix("whsec_").unwrap().as_bytes()).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let signed = [signed, self.body.to_vec()].concat();
        header("webhook-signature").split(' ').any(|signature| {
            let signature = BASE64.decode(signature.strip_prefix("v1,").unwrap().as_bytes()).unwrap();
            hmac::verify(&key, &signed, &signature).is_ok()
        })
    }
}

/// The answer to an event.
#[derive(Clone, Debug)]
pub enum Answer {
    Status(u16),
    Redirect(String),
    /// None before the next change of the answers.
    Never,
}

type Answers = Arc<dyn Fn(&Received) -> Answer + Send + Sync>;

/// A server that runs until it is dropped.
pub struct Sink {
    pub address: SocketAddr,
    state: Arc<State>,
    _stop: DropGuard,
}

struct State {
    received: Mutex<Vec<Received>>,
    count: watch::Sender<usize>,
    answers: watch::Sender<Answers>,
}

impl Sink {
    /// Serves on a free port of loopback, in a thread with its own runtime. It accepts every event.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let state = Arc::new(State {
            received: Mutex::default(),
            count: watch::Sender::new(0),
            answers: watch::Sender::new(Arc::new(|_| Answer::Status(202))),
        });
        let (serving, stopped) = (state.clone(), stop.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let accepting = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let state = serving.clone();
                        tokio::spawn(async move {
                            let service =
                                service_fn(|request| async { Ok::<_, Infallible>(state.answer(request).await) });
                            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                        });
                    }
                };
                tokio::select! {
                    () = accepting => {}
                    () = stopped.cancelled() => {}
                }
            });
        });
        Self { address, state, _stop: stop.drop_guard() }
    }

    pub fn url(&self) -> String {
        format!("http://{}/messages", self.address)
    }

    /// Answers from now on as `answers` says, also the events that have no answer yet.
    pub fn answer(&self, answers: impl Fn(&Received) -> Answer + Send + Sync + 'static) {
        self.state.answers.send_replace(Arc::new(answers));
    }

    /// All events so far, in the order of their arrival.
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    /// The events of one kind that were accepted so far.
    pub fn accepted(&self, kind: &str) -> Vec<Received> {
        self.received().into_iter().filter(|event| event.is_accepted() && event.kind() == kind).collect()
    }

    /// Waits until `is_so` is true of all events so far.
    pub async fn wait_until(&self, is_so: impl Fn(&[Received]) -> bool) {
        let mut count = self.state.count.subscribe();
        let waiting = async {
            while !is_so(&self.received()) {
                count.changed().await.unwrap();
            }
        };
        let is_over = timeout(TIMEOUT, waiting).await.is_ok();
        assert!(is_over, "the sink did not receive what was expected within {TIMEOUT:?}: {:#?}", self.received());
    }
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let data = serde_json::from_slice(&body).unwrap_or_default();
        let mut received = Received { headers: parts.headers, body, data, answered: Instant::now(), status: 0 };
        let index = self.record(&received);
        let mut answers = self.answers.subscribe();
        let answer = loop {
            let answer = answers.borrow_and_update()(&received);
            match answer {
                Answer::Never => answers.changed().await.unwrap(),
                answer => break answer,
            }
        };
        let mut response = Response::new(Full::default());
        match answer {
            Answer::Status(status) => *response.status_mut() = status.try_into().unwrap(),
            Answer::Redirect(location) => {
                *response.status_mut() = 307.try_into().unwrap();
                response.headers_mut().insert(LOCATION, location.parse().unwrap());
            }
            Answer::Never => unreachable!("it is not an answer"),
        }
        (received.status, received.answered) = (response.status().as_u16(), Instant::now());
        self.received.lock().unwrap()[index] = received;
        self.count.send_modify(|count| *count += 1);
        response
    }

    /// Records an event that has no answer yet. Returns its index.
    fn record(&self, received: &Received) -> usize {
        let mut all = self.received.lock().unwrap();
        all.push(received.clone());
        self.count.send_modify(|count| *count += 1);
        all.len() - 1
    }
}
