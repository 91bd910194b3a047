//! The baseline of the router: it verifies the signature of a message, posts the event to one sink, and answers when the sink has answered.
//! It looks up no conversation, reports no activity, retries nothing and has no limits. It is a process of its own, as the router is.

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode, sync::Arc};

use data_encoding::BASE64;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use ring::hmac;
use serde_json::json;

use crate::{
    error::{Error, Result},
    messages::{PUBLIC_URL, SIGNATURE, key},
    sink::listen,
};

/// The first argument of the program of the benchmark for it to be the forwarder. The address of the sink follows.
pub const ARGUMENT: &str = "forwarder";

struct Forwarder {
    sink: SocketAddr,
    key: hmac::Key,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Runs until it is killed. It prints its own address, on a free port of loopback.
pub fn main(arguments: &[String]) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match (arguments, runtime) {
        ([sink], Ok(runtime)) => runtime.block_on(serve(sink)),
        _ => Err(Error::Unexpected("the forwarder needs the address of the sink".to_owned())),
    };
    result.map_or_else(
        |error| {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

async fn serve(sink: &str) -> Result<()> {
    let sink = sink.parse().map_err(|_| Error::Unexpected(format!("{sink} is not an address")))?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let forwarder = Arc::new(Forwarder { sink, key: key(), client });
    let (listener, address) = listen().await?;
    println!("{address}");
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let forwarder = forwarder.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| forwarder.answer(request));
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
        });
    }
    Ok(())
}

impl Forwarder {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let status = match self.forward(request).await? {
            Some(status) if status.is_success() => StatusCode::OK,
            Some(_) => StatusCode::SERVICE_UNAVAILABLE,
            None => StatusCode::FORBIDDEN,
        };
        let response = Response::builder().status(status).header("content-type", "text/xml");
        response.body(Full::from("<Response/>")).map_err(|error| Error::Unexpected(error.to_string()))
    }

    /// The status of the sink's answer; `None` if the signature is wrong.
    async fn forward(&self, request: Request<Incoming>) -> Result<Option<StatusCode>> {
        let failed = |error: &dyn std::fmt::Display| Error::Unexpected(error.to_string());
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|error| failed(&error))?.to_bytes();
        // They are sorted by name.
        let parameters: BTreeMap<_, _> = form_urlencoded::parse(&body).collect();
        let mut text = PUBLIC_URL.to_owned();
        for (name, value) in &parameters {
            text += name;
            text += value;
        }
        let signature = parts.headers.get(SIGNATURE).and_then(|value| BASE64.decode(value.as_bytes()).ok());
        if signature.is_none_or(|signature| hmac::verify(&self.key, text.as_bytes(), &signature).is_err()) {
            return Ok(None);
        }
        let event = json!({
            "conversation": {
                "namespace": "sales", "name": "alice", "uid": "0f3c9a52-6f0e-4c1d-8a77-9b2f7e5d1c00", "state": "Active",
                "participants": ["agent-7"], "created": false,
            },
            "kind": "message", "channel": "SMS", "contact": parameters.get("From"), "proxy": parameters.get("To"),
            "raw": parameters,
        });
        let id = parameters.get("MessageSid").map(AsRef::as_ref).unwrap_or_default();
        let request = Request::post(format!("http://{}/", self.sink))
            .header("content-type", "application/json")
            .header("ce-specversion", "1.0")
            .header("ce-type", "dev.switchboard.message.received.v1")
            .header("ce-source", "/proxyaddresses/sales-sms")
            .header("ce-id", id)
            .header("ce-subject", "sales/alice")
            .header("ce-partitionkey", "0f3c9a52-6f0e-4c1d-8a77-9b2f7e5d1c00")
            .body(Full::from(event.to_string()))
            .map_err(|error| failed(&error))?;
        let answer = self.client.request(request).await.map_err(|error| failed(&error))?;
        let status = answer.status();
        answer.into_body().collect().await.map_err(|error| failed(&error))?;
        Ok(Some(status))
    }
}
