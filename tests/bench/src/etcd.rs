//! etcd itself, by the JSON gateway that it has on its client port: for what would take the API server minutes. Nothing here is
//! measured.

use std::net::SocketAddr;

use data_encoding::BASE64;
use futures::{StreamExt, TryStreamExt, stream};
use hyper::Request;
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Where the API server keeps both kinds.
pub const CONVERSATIONS: &str = "/registry/switchboard.dev/conversations/";
/// The same for claims.
pub const CLAIMS: &str = "/registry/switchboard.dev/addressbindings/";

/// As many operations as etcd takes in a transaction unless told otherwise.
const BATCH: usize = 128;
/// How many transactions are under way at once.
const CONCURRENCY: usize = 8;

/// One etcd.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
}

impl Etcd {
    /// The one that listens there.
    pub fn at(address: SocketAddr) -> Result<Self> {
        let url = format!("http://{address}").parse();
        let url = url.map_err(|error| Error::Unexpected(format!("{address} makes no URL: {error}")))?;
        Ok(Self { client: Client::try_from(Config::new(url))? })
    }

    /// What is stored under a key, as the API server wrote it.
    pub async fn read(&self, key: &str) -> Result<Value> {
        let answer = self.call("range", &json!({"key": encode(key)})).await?;
        let stored = answer["kvs"][0]["value"].as_str().unwrap_or_default();
        let bytes = BASE64.decode(stored.as_bytes()).unwrap_or_default();
        if bytes.is_empty() {
            return Err(Error::Unexpected(format!("etcd has nothing under {key}")));
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Stores objects under their keys, many in one transaction.
    pub async fn write(&self, objects: impl Iterator<Item = (String, Value)>) -> Result<()> {
        let puts = objects.map(|(key, value)| {
            json!({"request_put": {"key": encode(&key), "value": BASE64.encode(value.to_string().as_bytes())}})
        });
        let batches = stream::iter(puts).chunks(BATCH);
        let written = batches.map(|batch| async move { self.call("txn", &json!({"success": batch})).await.map(drop) });
        written.buffer_unordered(CONCURRENCY).try_collect().await
    }

    /// Removes whatever has a key that begins so.
    pub async fn clear(&self, prefix: &str) -> Result<()> {
        // The prefixes here end in a character that is not the last of its alphabet.
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let range = json!({"key": encode(prefix), "range_end": BASE64.encode(&end)});
        self.call("deleterange", &range).await.map(drop)
    }

    async fn call(&self, method: &str, body: &Value) -> Result<Value> {
        let body = serde_json::to_vec(body)?;
        let request = Request::post(format!("/v3/kv/{method}")).body(body);
        let request =
            request.map_err(|error| Error::Unexpected(format!("/v3/kv/{method} makes no request: {error}")))?;
        Ok(self.client.request(request).await?)
    }
}

fn encode(text: &str) -> String {
    BASE64.encode(text.as_bytes())
}
