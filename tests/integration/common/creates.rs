//! Creates conversations all the time, each with a binding of its own, and never tries again.

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

/// Creates through one of the API servers until `done`, and tolerates no failure. Returns how many were created.
///
/// # Panics
/// At the first create that fails.
pub async fn create_until(
    cluster: &Cluster,
    desk: &TestNamespace,
    api_server: usize,
    done: &CancellationToken,
) -> usize {
    let desk = without_retries(cluster, desk, api_server).await;
    let mut count = 0;
    while !done.is_cancelled() {
        create_once(&desk).await.unwrap_or_else(|error| panic!("the create after {count} others failed: {error}"));
        count += 1;
    }
    count
}

/// The same, and goes on after a create that fails. Returns how many were sent, and why some of them failed.
pub async fn count_until(
    cluster: &Cluster,
    desk: &TestNamespace,
    api_server: usize,
    done: &CancellationToken,
) -> (usize, Vec<String>) {
    let desk = without_retries(cluster, desk, api_server).await;
    let (mut sent, mut failures) = (0, Vec::new());
    while !done.is_cancelled() {
        sent += 1;
        failures.extend(create_once(&desk).await.err().map(|error| error.to_string()));
    }
    (sent, failures)
}

/// Creates a conversation that nobody else has the binding of, and deletes it.
pub async fn create_once(desk: &TestNamespace) -> kube::Result<()> {
    let (name, conversation) = next(desk);
    desk.conversations().create(&PostParams::default(), &conversation).await?;
    desk.conversations().delete(&name, &DeleteParams::default()).await.unwrap();
    Ok(())
}

/// Creates at a steady rate through all API servers in turn, each in a task of its own, and records the failures.
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
    pub async fn start(cluster: &Cluster, desk: &TestNamespace, per_second: u32) -> Self {
        let mut desks = Vec::new();
        for api_server in 0..cluster.control_plane.api_servers().len() {
            desks.push(without_retries(cluster, desk, api_server).await);
        }
        let (done, (in_a_row, successes)) = (CancellationToken::new(), watch::channel(0));
        let creates = tokio::spawn(create_steadily(desks, per_second, in_a_row, done.clone()));
        Self { done, successes, creates }
    }

    /// Waits until that many have succeeded in a row from now on.
    pub async fn wait_for_successes(&mut self, count: usize) {
        let before = *self.successes.borrow_and_update();
        // Fewer than before are those since a failure.
        let is_enough = |in_a_row: &usize| *in_a_row >= if *in_a_row < before { count } else { before + count };
        let succeeded = timeout(TIMEOUT, self.successes.wait_for(is_enough)).await;
        drop(succeeded.unwrap_or_else(|_| panic!("fewer than {count} creates in a row succeed")));
    }

    /// Waits for those that are under way.
    pub async fn stop(self) -> Creates {
        self.done.cancel();
        self.creates.await.unwrap()
    }
}

impl Creates {
    /// From the first create that failed to the last one.
    pub fn outage(&self) -> Duration {
        let sent = || self.failures.iter().map(|failure| failure.sent);
        sent().max().zip(sent().min()).map_or(Duration::ZERO, |(last, first)| last - first)
    }
}

async fn create_steadily(
    desks: Vec<TestNamespace>,
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
    for desk in desks.iter().cycle() {
        tokio::select! {
            _ = ticks.tick() => {}
            () = done.cancelled() => break,
        }
        creates.sent += 1;
        let (conversations, (_, conversation)) = (desk.conversations(), next(desk));
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

/// That desk by a client that repeats nothing.
pub async fn without_retries(cluster: &Cluster, desk: &TestNamespace, api_server: usize) -> TestNamespace {
    let kubeconfig = Kubeconfig::read_from(cluster.control_plane.kubeconfig()).unwrap();
    let context = Some(format!("api-{}", api_server + 1));
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.default_retry = false;
    TestNamespace { client: Client::try_from(config).unwrap(), ..desk.clone() }
}

/// A conversation whose name and binding no other one has.
fn next(desk: &TestNamespace) -> (String, Conversation) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("create-{number}");
    let contact = json!({"contact": {"address": format!("+1666{number:07}")}});
    let conversation = desk.conversation(&name, contact);
    (name, conversation)
}
