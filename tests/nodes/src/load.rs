//! Sends creates at a steady rate from the network of the first node, without retries, so that every failure is counted.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use switchboard::{
    api::{Channel, Contact, Conversation, ConversationSpec, Proxy},
    telemetry::error_chain::ErrorChain,
};
use tokio::{
    task::{JoinError, JoinSet},
    time,
};

use crate::{Cluster, Error, Result};

/// The time limit of a create. The API server waits up to ten seconds for the webhook.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);

/// A create that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The time at which it was sent, since the start of the load.
    pub sent: Duration,
    /// The time at which it was answered, since the start of the load.
    pub answered: Duration,
    /// The error of the client.
    pub message: String,
}

/// The outcome of the creates.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The number of creates that were sent.
    pub sent: usize,
    /// The creates that failed.
    pub failures: Vec<Failure>,
}

impl Outcome {
    /// `N creates, N failed`, and the first failure.
    #[must_use]
    pub fn summary(&self) -> String {
        let first = self.failures.first().map(|failure| {
            let Failure { sent, message, .. } = failure;
            format!(" (the first after {:.1} s: {message})", sent.as_secs_f32())
        });
        format!("{} creates, {} failed{}", self.sent, self.failures.len(), first.unwrap_or_default())
    }

    /// The time from sending the first create that failed with this text to the answer of the last one; zero if none failed with it.
    #[must_use]
    pub fn failing_with(&self, text: &str) -> Duration {
        let failures = || self.failures.iter().filter(|failure| failure.message.contains(text));
        let first = failures().map(|failure| failure.sent).min();
        let last = failures().map(|failure| failure.answered).max();
        first.zip(last).map_or(Duration::ZERO, |(first, last)| last.saturating_sub(first))
    }

    /// Asserts that every create succeeded.
    ///
    /// # Errors
    /// If a create failed, or none was sent.
    pub fn none_failed(&self) -> Result<()> {
        if self.sent == 0 || !self.failures.is_empty() {
            return Err(Error::Unexpected(self.summary()));
        }
        Ok(())
    }
}

/// A running load of creates.
pub struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Outcome>>,
}

struct Shared {
    began: Instant,
    sent: AtomicUsize,
    is_stopped: AtomicBool,
}

impl Load {
    /// Sends one create each `interval` until [`stop`](Self::stop), without waiting for the answers. `name` makes the names of its
    /// conversations, in the namespace `default`, unique. The interval varies by one percent in both directions. If a peer closes
    /// connections after a round time, creates arrive shortly before and shortly after it.
    ///
    /// # Errors
    /// If the API server at this port cannot be called.
    pub fn start(cluster: &Cluster, port: u16, name: &str, interval: Duration) -> Result<Self> {
        Self::start_limited(cluster, port, name, interval, usize::MAX)
    }

    /// Like [`start`](Self::start), but sends at most `limit` creates.
    ///
    /// # Errors
    /// If the API server at this port cannot be called.
    pub fn start_limited(cluster: &Cluster, port: u16, name: &str, interval: Duration, limit: usize) -> Result<Self> {
        let kubeconfig = cluster.kubeconfig_at(port)?;
        let network = cluster.nodes()[0].namespaces()?.network()?;
        let shared = Shared { began: Instant::now(), sent: AtomicUsize::new(0), is_stopped: AtomicBool::new(false) };
        let (shared, name) = (Arc::new(shared), name.to_owned());
        let (started, has_started) = mpsc::channel();
        let thread = thread::spawn({
            let shared = shared.clone();
            move || {
                network.enter()?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| Error::io("start a runtime", error))?;
                runtime.block_on(async {
                    let client = client(&kubeconfig).await?;
                    let _ = started.send(());
                    Ok(send(&client, &name, interval, limit, &shared).await)
                })
            }
        });
        // If the thread has already ended, joining it returns the error.
        if has_started.recv().is_err() {
            return Err(match thread.join() {
                Ok(Err(error)) => error,
                _ => Error::Unexpected("creates cannot be sent".to_owned()),
            });
        }
        Ok(Self { shared, thread })
    }

    /// The number of creates that were sent so far.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The time since the start of the load.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// Stops sending, waits for the last answers, and returns the outcome.
    ///
    /// # Errors
    /// If they could not be sent.
    pub fn stop(self) -> Result<Outcome> {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits until the limit is reached and all creates are answered.
    ///
    /// # Errors
    /// If they could not be sent.
    pub fn finish(self) -> Result<Outcome> {
        self.thread.join().unwrap_or_else(|_| Err(Error::Unexpected("the sender of creates panicked".to_owned())))
    }
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let failed = |error: &dyn std::fmt::Display| Error::Unexpected(format!("cannot create a client: {error}"));
    let kubeconfig = Kubeconfig::read_from(kubeconfig).map_err(|error| failed(&error))?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| failed(&error))?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn send(client: &Client, name: &str, interval: Duration, limit: usize, shared: &Shared) -> Outcome {
    let began = shared.began;
    let (mut outcome, mut running) = (Outcome::default(), JoinSet::new());
    let mut next = time::Instant::now();
    while outcome.sent < limit && !shared.is_stopped.load(Ordering::Relaxed) {
        tokio::select! {
            () = time::sleep_until(next) => {
                next = time::Instant::now() + varied(interval, outcome.sent);
                outcome.sent += 1;
                shared.sent.store(outcome.sent, Ordering::Relaxed);
                let conversation = conversation(name, outcome.sent);
                let conversations = Api::<Conversation>::default_namespaced(client.clone());
                running.spawn(async move {
                    let sent = began.elapsed();
                    let parameters = PostParams::default();
                    let creating = conversations.create(&parameters, &conversation);
                    let message = match time::timeout(ANSWER_TIMEOUT, creating).await {
                        Ok(Ok(_)) => return None,
                        Ok(Err(error)) => ErrorChain(&error).to_string(),
                        Err(_) => format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
                    };
                    Some(Failure { sent, answered: began.elapsed(), message })
                });
            }
            Some(answered) = running.join_next() => outcome.failures.extend(failure(answered, began)),
            () = time::sleep(Duration::from_millis(200)) => {}
        }
    }
    while let Some(answered) = running.join_next().await {
        outcome.failures.extend(failure(answered, began));
    }
    outcome.failures.sort_by_key(|failure| failure.sent);
    outcome
}

/// The failure of a create, if it failed or its task panicked.
fn failure(answered: std::result::Result<Option<Failure>, JoinError>, began: Instant) -> Option<Failure> {
    answered.unwrap_or_else(|error| {
        let now = began.elapsed();
        Some(Failure { sent: now, answered: now, message: error.to_string() })
    })
}

/// `interval`, varied from minus one to plus one percent in forty steps.
fn varied(interval: Duration, number: usize) -> Duration {
    const STEPS: u32 = 40;
    let step = u32::try_from(number).unwrap_or_default() % STEPS;
    interval * 99 / 100 + interval / 50 * step / STEPS
}

fn conversation(name: &str, number: usize) -> Conversation {
    let spec = ConversationSpec {
        channel: Channel::Chat,
        contact: Some(Contact { address: format!("{name}-{number}"), display_name: None }),
        proxy: Proxy { address: "desk".to_owned() },
        state: None,
        participants: None,
        timers: None,
        ttl_after_closed: None,
        on_conflict: None,
    };
    Conversation::new(&format!("{name}-{number}"), spec)
}
