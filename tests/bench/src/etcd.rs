//! A client of etcd that uses the JSON gateway on its client port, for operations that would take minutes through the API server. The
//! benchmark does not measure them.

use std::net::SocketAddr;

use data_encoding::BASE64;
use futures::{StreamExt, TryStreamExt, stream};
use hyper::Request;
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The prefix under which the API server stores conversations.
pub const CONVERSATIONS: &str = "/registry/switchboard.dev/conversations/";
/// The prefix under which the API server stores claims.
pub const CLAIMS: &str = "/registry/switchboard.dev/addressbindings/";

/// The default limit of etcd for operations in a transaction.
const BATCH: usize = 128;
/// The number of concurrent transactions.
const CONCURRENCY: usize = 8;

/// A client of one etcd.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
}

impl Etcd {
    /// Creates a client of the etcd at this address.
    pub fn at(address: SocketAddr) -> Result<Self> {
        let url = format!("http://{address}").parse();
        let url = url.map_err(|error| Error::Unexpected(format!("{address} is not a valid URL: {error}")))?;
        Ok(Self { client: Client::try_from(Config::new(url))? })
    }

    /// Reads the object under a key, as the API server wrote it.
    pub async fn read(&self, key: &str) -> Result<Value> {
        let answer = self.call("range", &json!({"key": encode(key)})).await?;
        let stored = answer["kvs"][0]["value"].as_str().unwrap_or_default();
        let bytes = BASE64.decode(stored.as_bytes()).unwrap_or_default();
        if bytes.is_empty() {
            return Err(Error::Unexpected(format!("etcd has no object under {key}")));
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Stores objects under their keys, with many objects in one transaction.
    pub async fn write(&self, objects: impl Iterator<Item = (String, Value)>) -> Result<()> {
        let puts = objects.map(|(key, value)| {
            json!({"request_put": {"key": encode(&key), "value": BASE64.encode(value.to_string().as_bytes())}})
        });
        let batches = stream::iter(puts).chunks(BATCH);
        let written = batches.map(|batch| async move { self.call("txn", &json!({"success": batch})).await.map(drop) });
        written.buffer_unordered(CONCURRENCY).try_collect().await
    }

    /// Removes all objects whose key has this prefix.
    pub async fn clear(&self, prefix: &str) -> Result<()> {
        // The last byte of the prefixes is less than 255.
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
            request.map_err(|error| Error::Unexpected(format!("/v3/kv/{method} is not a valid request: {error}")))?;
        Ok(self.client.request(request).await?)
    }
}

fn encode(text: &str) -> String {
    BASE64.encode(text.as_bytes())
}
