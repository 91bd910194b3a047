//! Every metric of the process: its name, its labels, and what it means. METRICS.md tells the same to people, and a test compares
//! the two with what `/metrics` serves.
//!
//! Names begin with `switchboard_`, units are the base units, and each label has few values: none is an address, a namespace or a
//! name.

use crate::api::Time;
use crate::leader::Leadership;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The media type of what [`Metrics::encode`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the buckets of what takes an API call or two, in seconds.
const CALLS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds of the buckets of what may be late by a whole outage, in seconds.
const LATENESS: [f64; 11] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0, 300.0, 3600.0];

/// What became of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It was allowed, with a claim.
    Allowed,
    /// It was allowed, since it needs no claim.
    NoClaim,
    /// 48031: another conversation holds the binding.
    Refused,
    /// Its addresses make no binding.
    Invalid,
    /// The conversation exists.
    AlreadyExists,
    /// It could not be decided in time.
    Undecided,
    /// It was no review that can be answered.
    Unreadable,
    /// Its body did not arrive in time.
    TooSlow,
    /// Its body was larger than any review is.
    TooLarge,
    /// There were too many at once.
    TooMany,
    /// The handler panicked.
    Panicked,
    /// The client went away before the answer.
    Cancelled,
}

impl Admission {
    const ALL: [Self; 12] = [
        Self::Allowed,
        Self::NoClaim,
        Self::Refused,
        Self::Invalid,
        Self::AlreadyExists,
        Self::Undecided,
        Self::Unreadable,
        Self::TooSlow,
        Self::TooLarge,
        Self::TooMany,
        Self::Panicked,
        Self::Cancelled,
    ];

    /// The word for it in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.parts().0
    }

    /// The code that it is answered with: of the review's status, or of HTTP where no review is answered; 0 where nobody waits for an
    /// answer.
    #[must_use]
    pub fn code(self) -> u16 {
        self.parts().1
    }

    fn parts(self) -> (&'static str, u16) {
        match self {
            Self::Allowed => ("allowed", 200),
            Self::NoClaim => ("no_claim", 200),
            Self::Refused => ("refused", 403),
            Self::Invalid => ("invalid", 403),
            Self::AlreadyExists => ("already_exists", 409),
            Self::Undecided => ("undecidable", 503),
            Self::Unreadable => ("unreadable", 400),
            Self::TooSlow => ("too_slow", 408),
            Self::TooLarge => ("too_large", 413),
            Self::TooMany => ("too_many", 429),
            Self::Panicked => ("panicked", 500),
            Self::Cancelled => ("cancelled", 0),
        }
    }
}

/// Why the webhook closes a connection that its client would have kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionClose {
    /// Its TLS handshake took too long.
    HandshakeTimeout,
    /// The header of a request took too long.
    HeaderTimeout,
    /// Nothing came for long.
    IdleTimeout,
    /// It made room for another one.
    Evicted,
}

impl ConnectionClose {
    const ALL: [Self; 4] = [Self::HandshakeTimeout, Self::HeaderTimeout, Self::IdleTimeout, Self::Evicted];

    /// The word for it in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HeaderTimeout => "header_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::Evicted => "evicted",
        }
    }
}

/// What was written to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimWrite {
    /// It was made.
    Create,
    /// Its content was replaced.
    Replace,
    /// It was deleted.
    Delete,
}

/// What became of a write to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It took effect.
    Applied,
    /// A precondition did not hold.
    Conflict,
    /// The API server did not do it.
    Failed,
}

impl ClaimWrite {
    const ALL: [Self; 3] = [Self::Create, Self::Replace, Self::Delete];

    fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Replace => "replace",
            Self::Delete => "delete",
        }
    }
}

impl WriteOutcome {
    const ALL: [Self; 3] = [Self::Applied, Self::Conflict, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

/// What a piece of the leader's work is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconciled {
    /// A conversation.
    Conversation,
    /// A claim.
    Claim,
}

/// Why a piece of the leader's work failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The API server could not be reached, or its answer not read.
    Transport,
    /// It did not answer in time.
    TimedOut,
    /// It asked for patience (429).
    Throttled,
    /// The operator lacks a right (401, 403).
    Forbidden,
    /// It refused for another reason (4xx).
    Rejected,
    /// It failed itself (5xx).
    Server,
    /// An AddressBinding does not bear the name of its binding.
    NameMismatch,
}

impl Failure {
    const ALL: [Self; 7] = [
        Self::Transport,
        Self::TimedOut,
        Self::Throttled,
        Self::Forbidden,
        Self::Rejected,
        Self::Server,
        Self::NameMismatch,
    ];

    /// The class of an API call's error.
    #[must_use]
    pub fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                429 => Self::Throttled,
                401 | 403 => Self::Forbidden,
                400..=499 => Self::Rejected,
                _ => Self::Server,
            },
            _ => Self::Transport,
        }
    }

    /// The word for it in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transport => "transport",
            Self::TimedOut => "timed_out",
            Self::Throttled => "throttled",
            Self::Forbidden => "forbidden",
            Self::Rejected => "rejected",
            Self::Server => "server",
            Self::NameMismatch => "name_mismatch",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdmissionLabels {
    outcome: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClaimWriteLabels {
    operation: &'static str,
    outcome: &'static str,
}

impl ClaimWriteLabels {
    fn of(write: ClaimWrite, outcome: WriteOutcome) -> Self {
        Self { operation: write.as_str(), outcome: outcome.as_str() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabels {
    task: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabels {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

/// What is counted and measured. A clone counts into the same.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Mutex<Registry>,
    admissions: Family<AdmissionLabels, Counter>,
    admission_duration: Histogram,
    webhook_connections: Gauge,
    closed_connections: Family<ReasonLabels, Counter>,
    claim_writes: Family<ClaimWriteLabels, Counter>,
    released: Counter,
    orphans: Counter,
    lateness: Histogram,
    reconcile_duration: Family<TaskLabels, Histogram>,
    reconcile_errors: Family<ClassLabels, Counter>,
    api_calls: Family<CallLabels, Counter>,
    panics: Counter,
    self_check_failures: Counter,
    live: Arc<Live>,
}

/// What is found out when it is asked for.
#[derive(Debug, Default)]
struct Live {
    state: Mutex<LiveState>,
}

#[derive(Debug, Default)]
struct LiveState {
    leadership: Option<Leadership>,
    is_webhook_in_force: Option<bool>,
    certificate_expiry: Option<Time>,
}

impl Default for Metrics {
    /// All metrics, at their beginning.
    fn default() -> Self {
        let mut registry = Registry::with_prefix("switchboard");
        let admissions = counters(
            &mut registry,
            "admission_requests",
            "Reviews by outcome, with the code they were answered with",
            Admission::ALL.map(|outcome| AdmissionLabels { outcome: outcome.as_str(), code: outcome.code() }),
        );
        let admission_duration = Histogram::new(CALLS);
        registry.register(
            "admission_duration_seconds",
            "How long reviews took from their header to their answer",
            admission_duration.clone(),
        );
        let webhook_connections = registered(&mut registry, "webhook_connections", "Open connections to the webhook");
        let closed_connections = counters(
            &mut registry,
            "webhook_connections_closed",
            "Connections that the webhook closed because of a limit, by reason",
            ConnectionClose::ALL.map(|reason| ReasonLabels { reason: reason.as_str() }),
        );
        let write_outcomes = |write| WriteOutcome::ALL.map(|outcome| ClaimWriteLabels::of(write, outcome));
        let claim_writes = counters(
            &mut registry,
            "claim_writes",
            "Writes to claims: done, lost to another writer, or failed",
            ClaimWrite::ALL.into_iter().flat_map(write_outcomes),
        );
        let released = registered(&mut registry, "claims_released", "Claims that the leader released");
        let orphans = registered(
            &mut registry,
            "orphans_collected",
            "Released claims of creates that were admitted and never stored",
        );
        let lateness = Histogram::new(LATENESS);
        registry.register(
            "timer_lateness_seconds",
            "How long after its deadline a state that a timer brought about was written",
            lateness.clone(),
        );
        let calls: fn() -> Histogram = || Histogram::new(CALLS);
        let reconcile_duration = Family::<TaskLabels, Histogram>::new_with_constructor(calls);
        for task in [Reconciled::Conversation, Reconciled::Claim] {
            drop(reconcile_duration.get_or_create(&TaskLabels { task: task.as_str() }));
        }
        registry.register(
            "reconcile_duration_seconds",
            "How long the leader's work on a conversation or a claim took",
            reconcile_duration.clone(),
        );
        let reconcile_errors = counters(
            &mut registry,
            "reconcile_errors",
            "Pieces of the leader's work that failed, by class",
            Failure::ALL.map(|class| ClassLabels { class: class.as_str() }),
        );
        let api_calls = registered(
            &mut registry,
            "api_requests",
            "Calls of the API server, by the code of its last answer; 0 where there was none in time",
        );
        let panics = registered(&mut registry, "panics", "Handlers that panicked");
        let self_check_failures = registered(
            &mut registry,
            "self_check_failures",
            "Dry runs of a create that told the leader nothing, since the webhook, or the API server, could not be reached",
        );
        registry.register("build", "What runs", Info::new([("version", VERSION), ("commit", COMMIT)]));
        let live = Arc::new(Live::default());
        registry.register_collector(Box::new(live.clone()));
        Self(Arc::new(Inner {
            registry: Mutex::new(registry),
            admissions,
            admission_duration,
            webhook_connections,
            closed_connections,
            claim_writes,
            released,
            orphans,
            lateness,
            reconcile_duration,
            reconcile_errors,
            api_calls,
            panics,
            self_check_failures,
            live,
        }))
    }
}

impl Metrics {
    /// The text that Prometheus reads, of the type [`CONTENT_TYPE`].
    ///
    /// # Errors
    /// Never in fact: text can be written to a string.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut encoded = String::new();
        text::encode(&mut encoded, &self.0.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(encoded)
    }

    /// A review was answered, or given up by its client: then it has no answer that could have been slow.
    pub fn admission(&self, outcome: Admission, took: Duration) {
        let labels = AdmissionLabels { outcome: outcome.as_str(), code: outcome.code() };
        self.0.admissions.get_or_create(&labels).inc();
        if outcome != Admission::Cancelled {
            self.0.admission_duration.observe(took.as_secs_f64());
        }
    }

    /// So many connections to the webhook are open.
    pub fn webhook_connections(&self, count: usize) {
        self.0.webhook_connections.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The webhook closed a connection because of a limit.
    pub fn webhook_connection_closed(&self, reason: ConnectionClose) {
        self.0.closed_connections.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc();
    }

    /// A claim was to be written.
    pub fn claim_write(&self, write: ClaimWrite, outcome: WriteOutcome) {
        self.0.claim_writes.get_or_create(&ClaimWriteLabels::of(write, outcome)).inc();
    }

    /// The leader released a claim: `is_orphan` where it was that of a create that was never stored.
    pub fn released(&self, is_orphan: bool) {
        self.0.released.inc();
        if is_orphan {
            self.0.orphans.inc();
        }
    }

    /// Registers a collector, whose metrics are read at each scrape.
    pub fn register(&self, collector: impl Collector) {
        let mut registry = self.0.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(collector));
    }

    /// A state that a timer brought about was written so long after its deadline.
    pub fn late(&self, by: Duration) {
        self.0.lateness.observe(by.as_secs_f64());
    }

    /// A piece of the leader's work has ended.
    pub fn reconciled(&self, task: Reconciled, took: Duration, failure: Option<Failure>) {
        self.0.reconcile_duration.get_or_create(&TaskLabels { task: task.as_str() }).observe(took.as_secs_f64());
        if let Some(failure) = failure {
            self.0.reconcile_errors.get_or_create(&ClassLabels { class: failure.as_str() }).inc();
        }
    }

    /// The API server was called. `code` is 0 where it did not answer.
    pub fn api_call(&self, verb: &'static str, resource: &'static str, code: u16) {
        self.0.api_calls.get_or_create(&CallLabels { verb, resource, code }).inc();
    }

    /// The certificate that is served expires then.
    pub fn certificate_expires(&self, time: Time) {
        self.0.live.change(|state| state.certificate_expiry = Some(time));
    }

    /// A handler panicked.
    pub fn panicked(&self) {
        self.0.panics.inc();
    }

    /// Whether this replica leads is to be asked there.
    pub fn leadership(&self, leadership: Leadership) {
        self.0.live.change(|state| state.leadership = Some(leadership));
    }

    /// Whether the webhook was found to be in force; nothing where this replica does not know.
    pub fn webhook_in_force(&self, is_in_force: Option<bool>) {
        self.0.live.change(|state| state.is_webhook_in_force = is_in_force);
    }

    /// It could not be found out whether the webhook is in force.
    pub fn self_check_failed(&self) {
        self.0.self_check_failures.inc();
        self.webhook_in_force(None);
    }
}

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that was built, where whoever built it said so by `SWITCHBOARD_COMMIT`.
pub const COMMIT: &str = match option_env!("SWITCHBOARD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

impl Reconciled {
    fn as_str(self) -> &'static str {
        match self {
            Self::Conversation => "conversation",
            Self::Claim => "claim",
        }
    }
}

impl Live {
    fn change(&self, change: impl FnOnce(&mut LiveState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let leads = state.leadership.as_ref().is_some_and(Leadership::is_leader);
        let mut gauge = |name, help, value: u64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("leader", "1 in the replica that leads, else 0", u64::from(leads))?;
        if let Some(expiry) = state.certificate_expiry {
            let seconds = u64::try_from(expiry.timestamp().as_second()).unwrap_or_default();
            gauge(
                "certificate_expiry_timestamp_seconds",
                "When the certificate that the webhook serves expires, since 1970",
                seconds,
            )?;
        }
        if let Some(is_in_force) = state.is_webhook_in_force.filter(|_| leads) {
            gauge(
                "webhook_in_force",
                "1 where a second holder was refused when the leader last tried by a dry run, 0 where not; absent in the others, where \
                 nobody holds a binding, and where the last try failed",
                u64::from(is_in_force),
            )?;
        }
        Ok(())
    }
}

/// New counters that the registry knows by `name` and explains by `help`, which serve 0 until they count.
fn counters<L>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    labels: impl IntoIterator<Item = L>,
) -> Family<L, Counter>
where
    L: Clone + Debug + Eq + Hash + EncodeLabelSet + Send + Sync + 'static,
{
    let family: Family<L, Counter> = registered(registry, name, help);
    for labels in labels {
        drop(family.get_or_create(&labels));
    }
    family
}

/// A new metric that the registry knows by `name` and explains by `help`.
fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}
