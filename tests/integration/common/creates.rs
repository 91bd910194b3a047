//! Clients that create conversations all the time, each with its own binding, and never retry.

use super::cluster::{Cluster, TIMEOUT, TestNamespace};
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use switchboard::api::Conversation;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Creates through one of the API servers until `done`. Returns the number of creates.
///
/// # Panics
/// At the first create that fails.
pub async fn create_until(cluster: &Cluster, ns: &TestNamespace, api_server: usize, done: &CancellationToken) -> usize {
    let ns = without_retries(cluster, ns, api_server).await;
    let mut count = 0;
    while !done.is_cancelled() {
        create_once(&ns).await.unwrap_or_else(|error| panic!("the create after {count} others failed: {error}"));
        count += 1;
    }
    count
}

/// As [`create_until`], but continues after a failed create. Returns the number of creates, and the errors.
pub async fn count_until(
    cluster: &Cluster,
    ns: &TestNamespace,
    api_server: usize,
    done: &CancellationToken,
) -> (usize, Vec<String>) {
    let ns = without_retries(cluster, ns, api_server).await;
    let (mut sent, mut failures) = (0, Vec::new());
    while !done.is_cancelled() {
        sent += 1;
        failures.extend(create_once(&ns).await.err().map(|error| error.to_string()));
    }
    (sent, failures)
}

/// Creates a conversation with its own binding, and deletes it.
pub async fn create_once(ns: &TestNamespace) -> kube::Result<()> {
    let (name, conversation) = next(ns);
    ns.conversations().create(&PostParams::default(), &conversation).await?;
    ns.conversations().delete(&name, &DeleteParams::default()).await.unwrap();
    Ok(())
}

/// Creates at a steady rate through all API servers in turn, each create in its own task, and records the failures.
pub struct CreateStream {
    done: CancellationToken,
    successes: watch::Receiver<usize>,
    creates: JoinHandle<Creates>,
}

/// The creates of a [`CreateStream`].
#[derive(Debug)]
pub struct Creates {
    pub sent: usize,
    pub failures: Vec<Failure>,
}

/// A create that failed.
#[derive(Debug)]
pub struct Failure {
    pub sent: Instant,
    pub error: String,
}

impl CreateStream {
    pub async fn start(cluster: &Cluster, ns: &TestNamespace, per_second: u32) -> Self {
        let mut namespaces = Vec::new();
        for api_server in 0..cluster.control_plane.api_servers().len() {
            namespaces.push(without_retries(cluster, ns, api_server).await);
        }
        let (done, (in_a_row, successes)) = (CancellationToken::new(), watch::channel(0));
        let creates = tokio::spawn(create_steadily(namespaces, per_second, in_a_row, done.clone()));
        Self { done, successes, creates }
    }

    /// Waits until `count` creates in a row have succeeded from now on.
    pub async fn wait_for_successes(&mut self, count: usize) {
        let before = *self.successes.borrow_and_update();
        // The counter restarts at 0 after a failure: a lower value than before counts only new creates.
        let is_enough = |in_a_row: &usize| *in_a_row >= if *in_a_row < before { count } else { before + count };
        let succeeded = timeout(TIMEOUT, self.successes.wait_for(is_enough)).await;
        drop(succeeded.unwrap_or_else(|_| panic!("fewer than {count} creates in a row succeeded within {TIMEOUT:?}")));
    }

    /// Stops, and waits for the creates in progress.
    pub async fn stop(self) -> Creates {
        self.done.cancel();
        self.creates.await.unwrap()
    }
}

impl Creates {
    /// The time from the first failed create to the last one.
    pub fn outage(&self) -> Duration {
        let sent = || self.failures.iter().map(|failure| failure.sent);
        sent().max().zip(sent().min()).map_or(Duration::ZERO, |(last, first)| last - first)
    }
}

async fn create_steadily(
    namespaces: Vec<TestNamespace>,
    per_second: u32,
    in_a_row: watch::Sender<usize>,
    done: CancellationToken,
) -> Creates {
    let (mut ticks, mut tasks) = (interval(Duration::from_secs(1) / per_second), JoinSet::new());
    let mut creates = Creates { sent: 0, failures: Vec::new() };
    let mut record = |failure: Option<Failure>| {
        in_a_row.send_modify(|successes| *successes = if failure.is_some() { 0 } else { *successes + 1 });
        creates.failures.extend(failure);
    };
    for ns in namespaces.iter().cycle() {
        tokio::select! {
            _ = ticks.tick() => {}
            () = done.cancelled() => break,
        }
        creates.sent += 1;
        let (conversations, (_, conversation)) = (ns.conversations(), next(ns));
        tasks.spawn(async move {
            let sent = Instant::now();
            let result = conversations.create(&PostParams::default(), &conversation).await;
            result.err().map(|error| Failure { sent, error: error.to_string() })
        });
        while let Some(result) = tasks.try_join_next() {
            record(result.unwrap());
        }
    }
    while let Some(result) = tasks.join_next().await {
        record(result.unwrap());
    }
    creates
}

/// The same namespace with a client that does not retry.
pub async fn without_retries(cluster: &Cluster, ns: &TestNamespace, api_server: usize) -> TestNamespace {
    let kubeconfig = Kubeconfig::read_from(cluster.control_plane.kubeconfig()).unwrap();
    let context = Some(format!("api-{}", api_server + 1));
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.default_retry = false;
    TestNamespace { client: Client::try_from(config).unwrap(), ..ns.clone() }
}

/// A conversation with a unique name and a unique binding.
fn next(ns: &TestNamespace) -> (String, Conversation) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("create-{number}");
    let contact = json!({"contact": {"address": format!("+1666{number:07}")}});
    let conversation = ns.conversation(&name, contact);
    (name, conversation)
}
