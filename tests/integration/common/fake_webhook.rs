//! A validating webhook for tests. It records the reviews that the API server sends, and the test decides the answers.

use super::cluster::TIMEOUT;
use super::https::{self, json};
use control_plane::Authority;
use data_encoding::BASE64;
use hyper::{Response, StatusCode};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use switchboard::api::Conversation;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// The pause between two checks of whether the API server uses the new configuration.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The answer to a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// A denial with this code and this reason.
    Deny(u16, &'static str),
    /// An HTTP response with this code and no review, perhaps with a `Retry-After` header in seconds.
    Http(u16, Option<&'static str>),
    /// No answer: the connection is cut.
    Cut,
}

/// A review that the API server sent.
#[derive(Clone, Debug)]
pub struct Review {
    /// The number of reviews before it.
    pub number: usize,
    /// The `request` of the `AdmissionReview`.
    pub request: Value,
}

impl Review {
    /// The UID that the object will have if it is stored.
    pub fn object_uid(&self) -> &str {
        self.request["object"]["metadata"]["uid"].as_str().unwrap()
    }

    pub fn object_name(&self) -> &str {
        self.request["object"]["metadata"]["name"].as_str().unwrap()
    }
}

type Deciding = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// Answers reviews until it is dropped.
pub struct FakeWebhook {
    server: https::Server,
    authority: Authority,
    namespace: String,
    reviews: Arc<Mutex<Vec<Review>>>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    received: watch::Sender<usize>,
    /// The number of reviews that the API server gave up before they were answered.
    given_up: watch::Sender<usize>,
}

/// Counts a review as given up if it is dropped before the answer.
struct UntilAnswered(Option<Arc<Seen>>);

impl Drop for UntilAnswered {
    fn drop(&mut self) {
        if let Some(seen) = &self.0 {
            seen.given_up.send_modify(|count| *count += 1);
        }
    }
}

impl FakeWebhook {
    /// Reviews each create of a conversation in `namespace`. Returns once the API server uses the configuration. `timeout_seconds` is
    /// how long the API server waits for an answer.
    pub async fn start<F>(
        client: &Client,
        namespace: &str,
        timeout_seconds: u8,
        decide: impl Fn(Review) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Verdict> + Send + 'static,
    {
        let authority = Authority::new("fake-webhook").unwrap();
        let reviews = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::new(Seen::default());
        let decide: Arc<dyn Fn(Review) -> Deciding + Send + Sync> = Arc::new(move |review| Box::pin(decide(review)));
        let (recorded, noticed) = (reviews.clone(), seen.clone());
        let server = https::serve(&authority.issue("fake-webhook").unwrap(), move |request| {
            let (reviews, seen, decide) = (recorded.clone(), noticed.clone(), decide.clone());
            async move {
                let mut review: Value = serde_json::from_slice(request.body()).unwrap();
                let request = review["request"].take();
                let verdict = if request["name"] == PROBE {
                    Verdict::Deny(403, PROBE)
                } else {
                    let review = {
                        let mut reviews = reviews.lock().unwrap();
                        let review = Review { number: reviews.len(), request: request.clone() };
                        reviews.push(review.clone());
                        review
                    };
                    seen.received.send_modify(|count| *count += 1);
                    let mut waiting = UntilAnswered(Some(seen));
                    let verdict = decide(review).await;
                    waiting.0 = None;
                    verdict
                };
                answer(&request, verdict)
            }
        });
        let webhook = Self { server, authority, namespace: namespace.to_owned(), reviews, seen };
        webhook.register(client, timeout_seconds).await;
        webhook
    }

    async fn register(&self, client: &Client, timeout_seconds: u8) {
        let Self { namespace, server, authority, .. } = self;
        let configuration = json!({
            "metadata": {"name": format!("fake-webhook-{}", server.address.port())},
            "webhooks": [{
                "name": "fake-webhook.switchboard.dev",
                "rules": [{
                    "operations": ["CREATE"],
                    "apiGroups": ["switchboard.dev"],
                    "apiVersions": ["v1alpha1"],
                    "resources": ["conversations"],
                }],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "timeoutSeconds": timeout_seconds,
                "admissionReviewVersions": ["v1"],
                "clientConfig": {
                    "url": format!("https://{}/", server.address),
                    "caBundle": BASE64.encode(authority.certificate().as_bytes()),
                },
            }],
        });
        let configuration: ValidatingWebhookConfiguration = serde_json::from_value(configuration).unwrap();
        let configurations = Api::<ValidatingWebhookConfiguration>::all(client.clone());
        configurations.create(&PostParams::default(), &configuration).await.unwrap();
        // The operator's webhook allows a conversation without a contact.
        let spec = serde_json::from_value(json!({"channel": "Chat", "proxy": {"address": "desk"}})).unwrap();
        let probe = Conversation::new(PROBE, spec);
        let conversations = Api::<Conversation>::namespaced(client.clone(), namespace);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let deadline = Instant::now() + TIMEOUT;
        while conversations.create(&dry_run, &probe).await.is_ok() {
            assert!(Instant::now() < deadline, "the API server does not call the webhook of the test");
            sleep(POLL_INTERVAL).await;
        }
    }

    /// The reviews so far.
    pub fn reviews(&self) -> Vec<Review> {
        self.reviews.lock().unwrap().clone()
    }

    /// Waits until the API server has sent `count` reviews, and returns all reviews.
    pub async fn wait_for(&self, count: usize) -> Vec<Review> {
        reach(&self.seen.received, count).await;
        self.reviews()
    }

    /// Waits until the API server has given up `count` reviews.
    pub async fn wait_until_given_up(&self, count: usize) {
        reach(&self.seen.given_up, count).await;
    }
}

const PROBE: &str = "fake-webhook-probe";

async fn reach(counter: &watch::Sender<usize>, count: usize) {
    let mut counter = counter.subscribe();
    let reached = timeout(TIMEOUT, counter.wait_for(|seen| *seen >= count)).await;
    drop(reached.unwrap_or_else(|_| panic!("fewer than {count} reviews within {TIMEOUT:?}")));
}

fn answer(request: &Value, verdict: Verdict) -> Option<Response<https::Body>> {
    let mut response = json!({"uid": request["uid"], "allowed": true});
    match verdict {
        Verdict::Allow => {}
        Verdict::Deny(code, reason) => {
            response["allowed"] = false.into();
            response["status"] = json!({"code": code, "reason": reason, "message": reason});
        }
        Verdict::Http(code, retry_after) => {
            let mut response = json(StatusCode::from_u16(code).unwrap(), &Value::Null);
            if let Some(seconds) = retry_after {
                response.headers_mut().insert("Retry-After", seconds.parse().unwrap());
            }
            return Some(response);
        }
        Verdict::Cut => return None,
    }
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Some(json(StatusCode::OK, &review))
}
