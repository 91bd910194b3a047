//! The HTTP interface of the router: authenticates and parses requests at `/v1/sources/SOURCE`, routes their messages, and answers when each
//! was accepted. It does not know how messages are routed.

use super::messages::{Deadlines, Messages, Origin};
use super::metrics::RouterMetrics;
use super::outcome::{MessageOutcome, RequestOutcome};
use super::source::{self, InboundMessage, Parsed, Rejection, Source, SourceRequest, SourceType};
use super::sources::Sources;
use crate::clock::Clock;
use crate::server::{Bodies, BodyError, BodyLimits, Service, TransportLimits, text};
use crate::telemetry::traces;
use futures::{FutureExt, StreamExt, stream};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument;
use tracing::field::Empty;

/// The path of a source, before its name.
const PREFIX: &str = "/v1/sources/";
/// The seconds after which a client may send again what was not accepted.
const RETRY_AFTER_SECONDS: &str = "1";

/// Limits on what a stranger can use. If all are reached at the same time by requests that are authenticated and crafted for this, the memory
/// is about 250 MiB: JSON takes up to twelve times its size while it is parsed, and each message and its event keep it as text; the
/// connections take 20 MiB.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum size of a body, in bytes. Meta's batches reach 3 MiB.
    pub body_bytes: usize,
    /// The maximum size of a small body, in bytes. Small bodies do not count for `large_bodies_bytes`.
    pub small_body_bytes: usize,
    /// The maximum total size of larger bodies, in bytes.
    pub large_bodies_bytes: usize,
    /// The timeout of a header, and of a body.
    pub read: Duration,
    /// How long a connection without a request is kept. It is longer than the hour of Envoy and the 90 s of others, so that the proxy closes
    /// it: a request that meets a close is lost, if its provider does not repeat it.
    pub idle: Duration,
    /// The time in which a message finds its conversation. It begins again when the messages of its binding before it are done. The
    /// delivery comes on top of it.
    pub routing: Duration,
    /// The time for all messages of a request. It is less than the 15 s after which Twilio gives up.
    pub request: Duration,
    /// The maximum number of simultaneous requests.
    pub concurrency: usize,
    /// The maximum number of messages of one request that are routed at the same time.
    pub batch_concurrency: usize,
    /// The maximum number of connections.
    pub connections: usize,
    /// The timeout of the requests in flight at the end of a shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            small_body_bytes: 32 << 10,
            large_bodies_bytes: 8 << 20,
            read: Duration::from_secs(5),
            idle: Duration::from_mins(65),
            routing: Duration::from_secs(5),
            request: Duration::from_secs(12),
            concurrency: 256,
            batch_concurrency: 16,
            connections: 512,
            drain: Duration::from_secs(15),
        }
    }
}

impl Limits {
    /// The limits on connections.
    #[must_use]
    pub fn transport(&self) -> TransportLimits {
        let Self { read, idle, connections, drain, .. } = *self;
        TransportLimits { read, idle, connections, drain }
    }
}

/// Answers the requests of sources.
pub struct Handler {
    sources: Sources,
    messages: Messages,
    bodies: Bodies,
    permits: Semaphore,
    limits: Limits,
    clock: Clock,
    metrics: RouterMetrics,
}

impl Handler {
    /// Routes the messages of `sources` within `limits`.
    #[must_use]
    pub fn new(sources: Sources, messages: Messages, limits: Limits, clock: Clock, metrics: RouterMetrics) -> Self {
        let Limits { body_bytes, small_body_bytes, large_bodies_bytes, read, concurrency, .. } = limits;
        let bodies = BodyLimits { largest: body_bytes, small: small_body_bytes, budget: large_bodies_bytes, read };
        Self {
            sources,
            messages,
            bodies: Bodies::new(bodies),
            permits: Semaphore::new(concurrency),
            limits,
            clock,
            metrics,
        }
    }

    async fn answer(
        &self,
        name: &str,
        request: Request<Incoming>,
        on_permit: impl FnOnce() + Send,
    ) -> (RequestOutcome, Response<Full<Bytes>>) {
        let began = self.clock.monotonic();
        let Some((source, keys)) = self.sources.get(name) else {
            return rejected(RequestOutcome::NotFound, "there is no such source");
        };
        let Some(keys) = keys else {
            return rejected(
                RequestOutcome::Unavailable,
                "the keys of the source are not usable; see the log of the router",
            );
        };
        let (parts, body) = request.into_parts();
        // The share is kept until the answer, since the values parsed from the body may be as large as the body.
        let (body, _share) = match self.bodies.read(body).await {
            Ok(body) => body,
            Err(error) => return rejected_body(error),
        };
        let Ok(_permit) = self.permits.try_acquire() else {
            return rejected(RequestOutcome::Overloaded, "too many simultaneous requests");
        };
        on_permit();
        let request = SourceRequest {
            method: parts.method,
            query: parts.uri.query().map(str::to_owned),
            headers: parts.headers,
            body,
        };
        let messages = match source::parse(source, &keys, &request) {
            Ok(Parsed::Messages(messages)) => messages,
            Ok(Parsed::Challenge(challenge)) => {
                return (RequestOutcome::Challenge, Response::new(Full::from(challenge)));
            }
            Err(rejection) => return rejected_request(rejection),
        };
        // Strangers may not choose what is traced, so the span begins only now.
        let span = tracing::info_span!("inbound", outcome = Empty);
        traces::set_parent(&span, &request.headers);
        drop(request);
        let origin = Origin { source: name, repeats: source.repeats() };
        let outcome = self.route(origin, messages, began + self.limits.request).instrument(span.clone()).await;
        span.record("outcome", outcome.as_str());
        match outcome {
            RequestOutcome::Accepted => (RequestOutcome::Accepted, accepted(source)),
            RequestOutcome::NotFound => rejected(RequestOutcome::NotFound, "no ProxyAddress accepts the message"),
            outcome => rejected(outcome, "a message was not accepted; send it again"),
        }
    }

    /// Routes messages until `end`, those of one binding one after the other. The outcome is that of the worst.
    async fn route(&self, origin: Origin<'_>, messages: Vec<InboundMessage>, end: Instant) -> RequestOutcome {
        // Most requests have one message, which needs no grouping by binding.
        if messages.len() == 1 {
            return RequestOutcome::of(self.route_in_order(origin, &messages, end).await);
        }
        let mut of_binding = BTreeMap::<_, Vec<InboundMessage>>::new();
        for message in messages {
            let binding = (message.channel, message.contact.clone(), message.proxy.clone());
            of_binding.entry(binding).or_default().push(message);
        }
        let worst = stream::iter(of_binding.into_values())
            .map(async |messages| self.route_in_order(origin, &messages, end).await)
            .buffer_unordered(self.limits.batch_concurrency)
            .fold(MessageOutcome::Delivered, async |worst, outcome| worst.max(outcome));
        RequestOutcome::of(worst.await)
    }

    /// Routes the messages of one binding until `end`. The outcome is the worst.
    async fn route_in_order(&self, origin: Origin<'_>, messages: &[InboundMessage], end: Instant) -> MessageOutcome {
        let mut worst = MessageOutcome::Delivered;
        for message in messages {
            if self.clock.monotonic() >= end {
                return MessageOutcome::Failed;
            }
            let limits = Deadlines { end, routing: self.limits.routing };
            worst = worst.max(self.messages.route(origin, message, limits).await);
            if worst == MessageOutcome::Failed {
                // Those after it would overtake it.
                break;
            }
        }
        worst
    }
}

impl Service for Handler {
    async fn respond(&self, request: Request<Incoming>, on_permit: impl FnOnce() + Send) -> Response<Full<Bytes>> {
        let Some(name) = request.uri().path().strip_prefix(PREFIX).map(str::to_owned) else {
            return text(StatusCode::NOT_FOUND, "the only path is /v1/sources/SOURCE");
        };
        let known = if self.sources.get(&name).is_some() { name.as_str() } else { "unknown" };
        let mut record = Record { metrics: &self.metrics, source: known, outcome: RequestOutcome::Cancelled };
        let answer = self.answer(&name, request, on_permit);
        let answered = AssertUnwindSafe(answer).catch_unwind().await;
        let (outcome, response) = answered.unwrap_or_else(|_| {
            self.metrics.panicked();
            rejected(RequestOutcome::Panicked, "switchboard panicked; see its log")
        });
        record.outcome = outcome;
        response
    }
}

/// Records a request when it is dropped: after the answer, or when hyper drops the service because the client has disconnected.
struct Record<'a> {
    metrics: &'a RouterMetrics,
    source: &'a str,
    outcome: RequestOutcome,
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        self.metrics.requested(self.source, self.outcome);
    }
}

fn accepted(source: &Source) -> Response<Full<Bytes>> {
    match source.type_() {
        // An empty list of instructions. Without it, Twilio logs a warning.
        SourceType::Twilio => {
            let mut response = Response::new(Full::from("<Response/>"));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
            response
        }
        SourceType::Meta | SourceType::CloudEvents => Response::new(Full::default()),
    }
}

fn rejected(outcome: RequestOutcome, message: &str) -> (RequestOutcome, Response<Full<Bytes>>) {
    let status = outcome.status();
    let mut response = text(status, message);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    (outcome, response)
}

fn rejected_body(error: BodyError) -> (RequestOutcome, Response<Full<Bytes>>) {
    match error {
        BodyError::TooMany => rejected(RequestOutcome::Overloaded, "too many simultaneous large requests"),
        BodyError::TooLarge => rejected(RequestOutcome::TooLarge, "the body is larger than 4 MiB"),
        BodyError::TooSlow => rejected(RequestOutcome::TooSlow, "the body did not arrive in time"),
        BodyError::Malformed => rejected(RequestOutcome::Malformed, "the body is not valid HTTP"),
        // The client has closed the connection, so this message is not sent.
        BodyError::Cancelled => rejected(RequestOutcome::Cancelled, "the body did not arrive"),
    }
}

fn rejected_request(rejection: Rejection) -> (RequestOutcome, Response<Full<Bytes>>) {
    match rejection {
        Rejection::Unauthenticated => {
            rejected(RequestOutcome::Unauthenticated, "the signature or the token is missing or wrong")
        }
        Rejection::Method => rejected(RequestOutcome::Method, "the method is not one of the source"),
        Rejection::MediaType => rejected(RequestOutcome::MediaType, "the media type is not one of the source"),
        Rejection::TooMany => rejected(RequestOutcome::TooLarge, "the request has too many messages"),
        Rejection::Malformed(why) => rejected(RequestOutcome::Malformed, why),
    }
}
