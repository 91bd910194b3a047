//! Creates conversations all the time, each with a binding of its own, and tolerates no failure.

use super::cluster::{Cluster, Desk};
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio_util::sync::CancellationToken;

/// Creates through one of the API servers, without ever trying again, until `done`. Returns how many were created.
///
/// # Panics
/// At the first create that fails.
pub async fn create_until(cluster: &Cluster, desk: &Desk, api_server: usize, done: &CancellationToken) -> usize {
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
    desk: &Desk,
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

/// The desk of a user whose client repeats nothing by itself.
pub async fn without_retries(cluster: &Cluster, desk: &Desk, api_server: usize) -> Desk {
    let kubeconfig = Kubeconfig::read_from(cluster.control_plane.kubeconfig()).unwrap();
    let context = Some(format!("api-{}", api_server + 1));
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.default_retry = false;
    Desk { client: Client::try_from(config).unwrap(), ..desk.clone() }
}

/// Creates a conversation that nobody else has the binding of, and deletes it.
pub async fn create_once(desk: &Desk) -> kube::Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("create-{number}");
    let contact = json!({"contact": {"address": format!("+1666{number:07}")}});
    desk.conversations().create(&PostParams::default(), &desk.conversation(&name, contact)).await?;
    desk.conversations().delete(&name, &DeleteParams::default()).await.unwrap();
    Ok(())
}
