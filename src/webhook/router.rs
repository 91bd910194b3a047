//! The HTTP interface of the webhook: answers requests at `/admit`, and enforces the limits on reviews. It does not depend on the transport
//! or on how reviews are decided.

use super::limits::Limits;
use super::metrics::WebhookMetrics;
use super::outcome::{AdmissionOutcome, Answer};
use super::review::InvalidReview;
use crate::clock::Clock;
use crate::server::{Bodies, BodyError, BodyLimits, Service, text};
use crate::telemetry::traces;
use futures::FutureExt;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// The only path that is served.
const PATH: &str = "/admit";

/// The maximum length of an error message in a response.
const MAX_ERROR_CHARACTERS: usize = 1000;

/// Answers requests by calling `handler` with the body of each review.
pub struct Router<H> {
    handler: H,
    clock: Clock,
    metrics: WebhookMetrics,
    answer_timeout: Duration,
    permits: Semaphore,
    bodies: Bodies,
}

impl<H, F> Router<H>
where
    H: Fn(Bytes, Instant) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(AdmissionOutcome, Vec<u8>), InvalidReview>> + Send + 'static,
{
    /// A router that enforces `limits`. `handler` gets the body of a review and a deadline, and returns the body of the answer. If it panics,
    /// the response is a 500.
    #[must_use]
    pub fn new(handler: H, clock: Clock, limits: &Limits, metrics: WebhookMetrics) -> Self {
        let Limits { body_bytes, small_body_bytes, large_bodies_bytes, read, answer, concurrency, .. } = *limits;
        let bodies = BodyLimits { largest: body_bytes, small: small_body_bytes, budget: large_bodies_bytes, read };
        Self {
            handler,
            clock,
            metrics,
            answer_timeout: answer,
            permits: Semaphore::new(concurrency),
            bodies: Bodies::new(bodies),
        }
    }

    async fn review(&self, request: Request<Incoming>, began: Instant, on_permit: impl FnOnce() + Send) -> Answer {
        let deadline = began + self.answer_timeout.min(time_left(request.uri().query()));
        // The share is kept until the answer, since the values parsed from the body may be as large as the body.
        let (body, _share) = match self.bodies.read(request.into_body()).await {
            Ok(body) => body,
            Err(error) => return reject_body(error),
        };
        // The permit is acquired after the body has arrived, so that clients that send their bodies slowly hold no permits.
        let Ok(_permit) = self.permits.try_acquire() else {
            return Answer::rejected(AdmissionOutcome::TooMany, "too many simultaneous reviews");
        };
        on_permit();
        match (self.handler)(body, deadline).await {
            Ok((outcome, review)) => Answer::review(outcome, review),
            Err(error) => {
                // The message may quote the body.
                let error: String = error.to_string().chars().take(MAX_ERROR_CHARACTERS).collect();
                Answer::rejected(AdmissionOutcome::Malformed, &error)
            }
        }
    }
}

impl<H, F> Service for Router<H>
where
    H: Fn(Bytes, Instant) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(AdmissionOutcome, Vec<u8>), InvalidReview>> + Send + 'static,
{
    async fn respond(&self, request: Request<Incoming>, on_permit: impl FnOnce() + Send) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return text(StatusCode::NOT_FOUND, "the only path is /admit");
        }
        if request.method() != Method::POST {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "the only method is POST");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let began = self.clock.monotonic();
        let span = tracing::info_span!("admission", outcome = Empty, code = Empty);
        traces::set_parent(&span, request.headers());
        let review = self.review(request, began, on_permit).instrument(span.clone());
        let mut record =
            Record { metrics: &self.metrics, clock: self.clock, began, span, outcome: AdmissionOutcome::Cancelled };
        let answered = AssertUnwindSafe(review).catch_unwind().await;
        let Answer { outcome, response } = answered.unwrap_or_else(|_| {
            self.metrics.panicked();
            Answer::rejected(AdmissionOutcome::Panicked, "switchboard panicked; see its log")
        });
        record.outcome = outcome;
        response
    }
}

fn reject_body(error: BodyError) -> Answer {
    let (outcome, message) = match error {
        BodyError::TooMany => (AdmissionOutcome::TooMany, "too many simultaneous large reviews"),
        BodyError::TooLarge => (AdmissionOutcome::TooLarge, "the review is larger than the maximum"),
        BodyError::TooSlow => (AdmissionOutcome::TooSlow, "the body did not arrive in time"),
        BodyError::Malformed => (AdmissionOutcome::Malformed, "the body is not valid HTTP"),
        // The client has closed the connection, so this message is not sent.
        BodyError::Cancelled => (AdmissionOutcome::Cancelled, "the body did not arrive"),
    };
    Answer::rejected(outcome, message)
}

/// Records a review in metrics and trace when it is dropped: after the answer, or when hyper drops the service because the client has
/// disconnected.
struct Record<'a> {
    metrics: &'a WebhookMetrics,
    clock: Clock,
    began: Instant,
    span: Span,
    outcome: AdmissionOutcome,
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        self.span.record("outcome", self.outcome.as_str()).record("code", self.outcome.code());
        self.metrics.reviewed(self.outcome, self.clock.monotonic().duration_since(self.began));
    }
}

/// Four fifths of the API server's timeout, which is in the query as `timeout=10s`. The rest is for the network.
fn time_left(query: Option<&str>) -> Duration {
    query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .find_map(|pair| pair.strip_prefix("timeout=")?.strip_suffix('s')?.parse::<u64>().ok())
        .map_or(Duration::MAX, |seconds| Duration::from_secs(seconds).mul_f64(0.8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::test_server::{TestServer, all, last, request, send};

    #[tokio::test]
    async fn panic_in_the_handler_returns_500_and_keeps_connection() {
        let served = TestServer::start(Limits::default()).await;
        let answers = served.ask(&format!("{}{}", request("panic"), last("else"))).await;
        let codes: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(codes, ["500", "200"], "{answers}");
        assert!(answers.ends_with("fine"), "{answers}");
        assert!(served.has_counted("switchboard_panics_total 1"));
        assert!(served.has_counted(r#"switchboard_admission_requests_total{outcome="panicked",code="500"} 1"#));
    }

    #[tokio::test]
    async fn body_above_the_limit_returns_413_with_or_without_length() {
        let served = TestServer::start(Limits { body_bytes: 8, ..Limits::default() }).await;
        let answer = served.ask(&last("123456789")).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        let chunked = "POST /admit HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                       9\r\n123456789\r\n0\r\n\r\n";
        let answer = served.ask(chunked).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        let answer = served.ask(&last("12345678")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn large_bodies_above_the_budget_return_429_but_not_small_ones() {
        let served =
            TestServer::start(Limits { small_body_bytes: 4, large_bodies_bytes: 16, ..Limits::default() }).await;
        let large = last("a large body");
        let (mut first, half) = (served.connect().await, large.len() - 6);
        send(&mut first, &large.as_bytes()[..half]).await;
        served.until_refused(&last("large")).await;
        let chunked = |body: &str| {
            format!(
                "POST /admit HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                 {:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )
        };
        assert!(served.ask(&chunked("55555")).await.starts_with("HTTP/1.1 429 "));
        assert!(served.ask(&chunked("4444")).await.starts_with("HTTP/1.1 200 "), "it is small");
        assert!(served.ask(&last("4444")).await.starts_with("HTTP/1.1 200 "), "a small body needs no share");
        send(&mut first, &large.as_bytes()[half..]).await;
        assert!(all(&mut first).await.starts_with("HTTP/1.1 200 "));
        assert!(served.ask(&large).await.starts_with("HTTP/1.1 200 "), "its share is returned");
    }

    #[tokio::test]
    async fn review_of_a_disconnected_client_is_counted_as_cancelled() {
        let limits = Limits { concurrency: 1, small_body_bytes: 5, large_bodies_bytes: 6, ..Limits::default() };
        let served = TestServer::start(limits).await;
        // While its body is read, and while it is answered.
        let mut stream = served.connect().await;
        send(&mut stream, request("large!").replace("large!", "lar").as_bytes()).await;
        served.until_refused(&last("large!")).await;
        drop(stream);
        served.until_counted(r#"switchboard_admission_requests_total{outcome="cancelled",code="0"} 1"#).await;
        let mut stream = served.connect().await;
        send(&mut stream, request("never").as_bytes()).await;
        served.until_refused(&last("else")).await;
        drop(stream);
        served.until_counted(r#"switchboard_admission_requests_total{outcome="cancelled",code="0"} 2"#).await;
        let answered = served.metrics();
        let count = |name: &str| answered.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let refused = count(r#"switchboard_admission_requests_total{outcome="too_many",code="429"}"#);
        assert_eq!(
            count("switchboard_admission_duration_seconds_count"),
            refused,
            "cancelled reviews have no duration"
        );
    }

    #[tokio::test]
    async fn review_above_the_concurrency_limit_returns_429() {
        let served = TestServer::start(Limits { concurrency: 1, ..Limits::default() }).await;
        let mut first = served.in_flight().await;
        served.release.notify_one();
        assert!(all(&mut first).await.starts_with("HTTP/1.1 200 "));
        assert!(served.ask(&last("else")).await.starts_with("HTTP/1.1 200 "), "its permit is returned");
    }

    #[tokio::test]
    async fn body_that_is_being_read_holds_no_permit() {
        let limits = Limits { concurrency: 1, small_body_bytes: 2, large_bodies_bytes: 4, ..Limits::default() };
        let served = TestServer::start(limits).await;
        let mut slow = served.connect().await;
        send(&mut slow, last("body").replace("body", "bo").as_bytes()).await;
        served.until_refused(&last("else")).await;
        assert!(served.ask(&last("ok")).await.starts_with("HTTP/1.1 200 "));
        send(&mut slow, b"dy").await;
        assert!(all(&mut slow).await.starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn timeout_of_the_api_server_limits_the_answer() {
        assert_eq!(time_left(Some("timeout=10s")), Duration::from_secs(8));
        assert_eq!(time_left(Some("a=b&timeout=1s")), Duration::from_millis(800));
        assert_eq!(time_left(Some("timeout=soon")), Duration::MAX);
        assert_eq!(time_left(None), Duration::MAX);
    }
}
