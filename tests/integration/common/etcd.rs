//! etcd's JSON gateway, on its client port. The tests use it to read revisions, and to change the store in ways in which no API server
//! would.

#![allow(dead_code, reason = "each test module uses a part of it")]

use control_plane::ControlPlane;
use hyper::Request;
use kube::{Client, Config};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// A client of the gateway that does not retry. It belongs to the runtime in which it is created.
pub fn client(etcd: SocketAddr) -> Client {
    let mut config = Config::new(format!("http://{etcd}").parse().unwrap());
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

pub fn post(path: &str, body: &Value) -> Request<Vec<u8>> {
    Request::post(path).header("Content-Type", "application/json").body(body.to_string().into_bytes()).unwrap()
}

async fn call(control_plane: &ControlPlane, path: &str, body: Value) -> Value {
    let request = post(path, &body);
    client(control_plane.etcd().address()).request(request).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Compacts every revision before the current one. A request for an older revision then fails.
pub async fn compact(control_plane: &ControlPlane) {
    let current = call(control_plane, "/v3/kv/range", json!({"key": "eA==", "count_only": true})).await;
    let revision = &current["header"]["revision"];
    call(control_plane, "/v3/kv/compaction", json!({"revision": revision, "physical": true})).await;
}

/// Turns the alarm on or off that etcd raises when its disk quota is used up. While it is on, etcd accepts deletions but no other
/// writes.
pub async fn set_disk_full(control_plane: &ControlPlane, is_full: bool) {
    let action = if is_full { "ACTIVATE" } else { "DEACTIVATE" };
    call(control_plane, "/v3/maintenance/alarm", json!({"action": action, "memberID": "0", "alarm": "NOSPACE"})).await;
}
