//! The JSON gateway that etcd has on its client port: by it the tests see revisions, and do to the store what no API server would.

#![allow(dead_code, reason = "each test file uses a part of it")]

use control_plane::ControlPlane;
use hyper::Request;
use kube::{Client, Config};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// A client of the gateway that repeats nothing by itself. It belongs to the runtime that it is made in.
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

/// Forgets every revision before the present one: whoever asks for one is told that it is gone.
pub async fn compact(control_plane: &ControlPlane) {
    let present = call(control_plane, "/v3/kv/range", json!({"key": "eA==", "count_only": true})).await;
    let revision = &present["header"]["revision"];
    call(control_plane, "/v3/kv/compaction", json!({"revision": revision, "physical": true})).await;
}

/// The alarm that etcd raises when its disk quota is used up, on or off: while it is on etcd takes deletions and nothing else.
pub async fn set_disk_full(control_plane: &ControlPlane, is_full: bool) {
    let action = if is_full { "ACTIVATE" } else { "DEACTIVATE" };
    call(control_plane, "/v3/maintenance/alarm", json!({"action": action, "memberID": "0", "alarm": "NOSPACE"})).await;
}
