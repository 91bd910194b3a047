//! Sends inbound messages at a steady rate from the network of the first node, each once, so that every failure is counted.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ureq::Agent;

use crate::{Cluster, Error, Result};

/// The number of clients that send at the same time, each on connections of its own.
const CLIENTS: u32 = 4;
/// The time limit of an answer. The router answers within ten seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where messages are sent.
#[derive(Clone, Debug)]
pub struct Source {
    /// The address of the router's Service.
    pub router: SocketAddr,
    /// The name of the source, which accepts `CloudEvents`.
    pub name: String,
    /// Its bearer token.
    pub token: String,
    /// The address of the business, on the channel `Chat`.
    pub proxy: String,
}

/// A message that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its ID.
    pub id: String,
    /// Its contact. Each client sends every second message for the same contact, and every other one for a new contact.
    pub contact: String,
    /// Why it was not accepted; `None` if it was.
    pub failure: Option<String>,
}

impl Source {
    /// Sends one message. Returns why it was not accepted.
    fn send(&self, agent: &Agent, id: &str, contact: &str) -> Option<String> {
        let Self { router, name, token, proxy } = self;
        let event = serde_json::json!({
            "specversion": "1.0", "type": "dev.switchboard.message.v1", "source": "/tests/e2e", "id": id,
            "datacontenttype": "application/json", "data": {"channel": "Chat", "contact": contact, "proxy": proxy},
        });
        let request = agent
            .post(format!("http://{router}/v1/sources/{name}"))
            .header("content-type", "application/cloudevents+json")
            .header("authorization", format!("Bearer {token}"));
        match request.send(event.to_string()) {
            Ok(answered) if answered.status() == 200 => None,
            Ok(mut answered) => {
                let body = answered.body_mut().read_to_string().unwrap_or_default();
                Some(format!("{}: {body}", answered.status()))
            }
            Err(error) => Some(error.to_string()),
        }
    }
}

/// A running stream of messages.
pub struct Stream {
    is_stopped: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<Vec<Sent>>>>,
}

impl Stream {
    /// Sends one message each `interval` until [`stop`](Self::stop), if each answer takes less than four intervals; otherwise fewer.
    ///
    /// # Errors
    /// If the first node has no power.
    pub fn start(cluster: &Cluster, source: &Source, interval: Duration) -> Result<Self> {
        let is_stopped = Arc::<AtomicBool>::default();
        let clients = (0..CLIENTS).map(|client| {
            let network = cluster.nodes()[0].namespaces()?.network()?;
            let (source, is_stopped) = (source.clone(), is_stopped.clone());
            Ok(thread::spawn(move || {
                network.enter()?;
                thread::sleep(interval * client);
                Ok(send(&source, client, interval * CLIENTS, &is_stopped))
            }))
        });
        Ok(Self { clients: clients.collect::<Result<_>>()?, is_stopped })
    }

    /// Stops sending, waits for the last answers, and returns all messages.
    ///
    /// # Errors
    /// If they could not be sent.
    pub fn stop(self) -> Result<Vec<Sent>> {
        self.is_stopped.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in self.clients {
            let panicked = |_| Err(Error::Unexpected("a sender of messages panicked".to_owned()));
            all.extend(client.join().unwrap_or_else(panicked)?);
        }
        Ok(all)
    }
}

fn send(source: &Source, client: u32, interval: Duration, is_stopped: &AtomicBool) -> Vec<Sent> {
    let agent = Agent::config_builder().http_status_as_error(false).timeout_global(Some(ANSWER_TIMEOUT));
    let agent: Agent = agent.build().into();
    let mut all = Vec::new();
    for number in 0.. {
        let due = Instant::now() + interval;
        let id = format!("message-{client}-{number}");
        let contact = if number % 2 == 0 { format!("known-{client}") } else { format!("new-{client}-{number}") };
        let failure = source.send(&agent, &id, &contact);
        all.push(Sent { id, contact, failure });
        if is_stopped.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    all
}
