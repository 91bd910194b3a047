//! The server that webhook and router run on: connections with or without TLS, HTTP/1.1, and the limits on what strangers can send. It does
//! not depend on what the requests are about.

mod bodies;
mod connections;
mod metrics;
mod transport;

pub use bodies::{Bodies, BodyError, BodyLimits};
pub use metrics::ConnectionMetrics;
pub use transport::{Endpoint, Security, Service, Shutdown, Tls, TransportLimits};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode};

/// A response of one line.
pub(crate) fn text(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{message}\n")));
    *response.status_mut() = status;
    response
}
