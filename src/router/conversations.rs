//! The requests about conversations: who holds a binding, the create of a conversation, and reports of activity. It decides nothing.

use super::activity::{Due, WindowEnd, Windows};
use super::watcher::SharedKnown;
use crate::api::{AddressBinding, Conversation, ConversationReference, State, Time};
use crate::claims::claim_of;
use crate::clock::Clock;
use crate::core::binding::{Binding, BindingName};
use crate::core::claim::LiveConversation;
use crate::core::denial::ALREADY_BOUND;
use crate::core::inbound::{BindingStatus, Creation, OwnConversation, Recipient, Report, WaitingSource};
use crate::kube_error::ErrorClass;
use crate::proxy_addresses::escape;
use crate::telemetry::error_chain::ErrorChain;
use crate::watch::Guarded;
use json_patch::{AddOperation, PatchOperation, TestOperation};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::Instrument;

/// The field manager of the router, apart from that of the controller.
const ROUTER: &str = "switchboard-router";
/// The window of a conversation whose timers are not known.
const UNKNOWN_WINDOW: Duration = Duration::from_secs(10);
/// The timeout of a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a message waits for its report. Usually a few milliseconds are enough to learn that its conversation has been closed.
const REPORT_WAIT: Duration = Duration::from_millis(300);
/// The interval of looks at the length of a window that is open.
const WINDOW_STEP: Duration = Duration::from_secs(10);
/// The time after which a create is given up that nobody waits for. An API server answers within 34 s, or never.
const CREATE_TIMEOUT: Duration = Duration::from_secs(40);
/// The maximum number of simultaneous reports at the end of windows: those of many conversations can end at the same time.
const MAX_REPORTS: usize = 8;

/// The conversations of the cluster.
#[derive(Clone)]
pub struct Conversations {
    /// Retries requests that the API server rejects because it is too busy.
    retrying: Client,
    client: Client,
    known: SharedKnown,
    windows: Arc<Windows>,
    reports: Arc<Semaphore>,
    clock: Clock,
}

impl Conversations {
    /// The conversations that `retrying` reads, and `client` writes.
    #[must_use]
    pub fn new(retrying: Client, client: Client, known: SharedKnown, clock: Clock) -> Self {
        Self { retrying, client, known, windows: Arc::default(), reports: Arc::new(Semaphore::new(MAX_REPORTS)), clock }
    }

    /// Reads live who has a binding.
    pub async fn sight(&self, binding: &Binding, source: WaitingSource, deadline: Instant) -> BindingStatus {
        let reads = async {
            let name = binding.name();
            let claim = Api::<AddressBinding>::all(self.retrying.clone()).get_opt(name.as_str()).await?;
            if let Some(claim) = claim.as_ref().and_then(claim_of)
                && let Some(conversation) = self.get(&claim.holder).await?
            {
                let live = LiveConversation::of(&conversation);
                if claim.is_held_by(&live) {
                    return Ok(BindingStatus::Held(recipient(claim.holder, live)));
                }
            }
            let is_awaited = self.is_awaited(binding, &name, source).await?;
            Ok::<_, kube::Error>(if is_awaited { BindingStatus::Awaited } else { BindingStatus::Free })
        };
        match timeout_at(deadline, reads).await {
            Ok(Ok(sight)) => sight,
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "failed to read who holds a binding");
                BindingStatus::Unknown
            }
            Err(_) => BindingStatus::Unknown,
        }
    }

    /// Whether an open conversation waits for a binding that nobody holds.
    async fn is_awaited(
        &self,
        binding: &Binding,
        name: &BindingName,
        source: WaitingSource,
    ) -> Result<bool, kube::Error> {
        let watched = self.known.read().is_awaited(name, self.clock.monotonic());
        let is_believed = |is_awaited: &bool| match source {
            WaitingSource::Watches => true,
            WaitingSource::FreeByList => *is_awaited,
            WaitingSource::List => false,
        };
        if let Some(is_awaited) = watched.filter(is_believed) {
            return Ok(is_awaited);
        }
        let [contact, proxy] = [binding.contact(), binding.proxy()].map(|address| escape(address.as_str()));
        let channel = binding.channel();
        let selector = format!("spec.channel={channel},spec.contact.address={contact},spec.proxy.address={proxy}");
        let conversations = Api::<Guarded<Conversation>>::all(self.retrying.clone());
        let listed = conversations.list(&ListParams::default().fields(&selector)).await?;
        let needs =
            |conversation: &Conversation| LiveConversation::of(conversation).needed_binding.as_ref() == Some(name);
        Ok(listed.items.iter().any(|Guarded(object)| object.as_ref().is_ok_and(needs)))
    }

    async fn get(&self, place: &ConversationReference) -> Result<Option<Conversation>, kube::Error> {
        let conversations = Api::<Guarded<Conversation>>::namespaced(self.retrying.clone(), &place.namespace);
        // One that cannot be decoded gets no messages.
        Ok(conversations.get_opt(&place.name).await?.and_then(|Guarded(object)| object.ok()))
    }

    /// Reads live the conversation that has the name of the one that a message would create.
    pub async fn own(&self, place: &ConversationReference, binding: &Binding, deadline: Instant) -> OwnConversation {
        match timeout_at(deadline, self.get(place)).await {
            Ok(Ok(None)) => OwnConversation::Closed,
            Ok(Ok(Some(conversation))) => {
                let live = LiveConversation::of(&conversation);
                if live.needed_binding.as_ref() == Some(&binding.name()) {
                    OwnConversation::Open(recipient(place.clone(), live))
                } else if live.state == State::Closed || conversation.metadata.deletion_timestamp.is_some() {
                    OwnConversation::Closed
                } else {
                    OwnConversation::Other
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), conversation = %place, "failed to read a conversation");
                OwnConversation::Unknown
            }
            Err(_) => OwnConversation::Unknown,
        }
    }

    /// Creates a conversation. If that is refused, also returns the API server's message, which may contain addresses. The request is not
    /// cut off if the caller stops waiting: its outcome would be unknown, and the binding would not be free for a while.
    pub async fn create(&self, conversation: Conversation, deadline: Instant) -> (Creation, Option<String>) {
        let namespace = conversation.metadata.namespace.clone().unwrap_or_default();
        let conversations = Api::<Conversation>::namespaced(self.client.clone(), &namespace);
        let request = async move {
            let parameters = PostParams { field_manager: Some(ROUTER.to_owned()), ..PostParams::default() };
            timeout(CREATE_TIMEOUT, conversations.create(&parameters, &conversation)).await
        };
        let request = tokio::spawn(request.in_current_span());
        let created = match timeout_at(deadline, request).await {
            Ok(Ok(Ok(Ok(created)))) => created,
            Ok(Ok(Ok(Err(error)))) => return refused(&error, &namespace),
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => return (Creation::Undecided, None),
        };
        let name = created.metadata.name.clone().unwrap_or_default();
        let place = ConversationReference { namespace, name };
        (Creation::Created(recipient(place, LiveConversation::of(&created))), None)
    }

    /// Reports the activity of a conversation where that is due. It does not hold up a message for long: a report that takes longer, or
    /// fails, is repeated at the end of the window.
    pub async fn report(&self, recipient: &Recipient) -> Report {
        let (time, now) = (self.clock.now(), self.clock.monotonic());
        let due = self.windows.activity(&recipient.uid, time, now, self.window(recipient));
        if due == Due::Later {
            return Report::Done;
        }
        // It goes on if the caller stops waiting, so that the window always ends.
        let (this, reported) = (self.clone(), recipient.clone());
        let report = async move {
            let report = this.write_report(&reported, time).await;
            if due == Due::Now && report == Report::Done {
                tokio::spawn(this.report_ends(reported));
            }
            report
        };
        match timeout(REPORT_WAIT, tokio::spawn(report.in_current_span())).await {
            Ok(Ok(report)) => report,
            Ok(Err(_)) | Err(_) => Report::Done,
        }
    }

    /// The present length of the windows of a conversation.
    fn window(&self, recipient: &Recipient) -> Duration {
        self.known.read().window(recipient).unwrap_or(UNKNOWN_WINDOW)
    }

    /// Reports what happens until the end of each window, until a window is over in which nothing happened.
    async fn report_ends(self, recipient: Recipient) {
        loop {
            let now = self.clock.monotonic();
            match self.windows.end(&recipient.uid, now, self.window(&recipient)) {
                // Its length may change meanwhile.
                WindowEnd::At(end) => sleep_until(end.min(now + WINDOW_STEP)).await,
                WindowEnd::Over => return,
                WindowEnd::Report(time) => {
                    // The semaphore is never closed.
                    let _permit = self.reports.acquire().await;
                    if self.write_report(&recipient, time).await == Report::Gone {
                        return;
                    }
                }
            }
        }
    }

    /// Writes a report. One that fails is put back.
    async fn write_report(&self, recipient: &Recipient, time: Time) -> Report {
        let uid = &recipient.uid;
        match timeout(REPORT_TIMEOUT, self.write_activity(recipient, time)).await {
            Ok(Ok(Written::Stored)) => Report::Done,
            Ok(Ok(Written::Refused)) => {
                // It has no status yet. Its creation counts as activity.
                self.windows.forget(uid);
                Report::Done
            }
            Ok(Ok(Written::Gone)) => {
                self.windows.forget(uid);
                Report::Gone
            }
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), conversation = %recipient.conversation, "failed to report activity");
                self.windows.put_back(uid, time);
                Report::Done
            }
            Err(_) => {
                self.windows.put_back(uid, time);
                Report::Done
            }
        }
    }

    /// Writes the time of the activity, unless the conversation is another object by now. A merge patch would not find out: for a status, the
    /// API server takes the stored metadata before it compares the UID.
    async fn write_activity(&self, recipient: &Recipient, time: Time) -> Result<Written, kube::Error> {
        let ConversationReference { namespace, name } = &recipient.conversation;
        let conversations = Api::<Guarded<Conversation>>::namespaced(self.client.clone(), namespace);
        let pointer = |text: &'static str| json_patch::jsonptr::PointerBuf::from_tokens(text.split('/').skip(1));
        let patch = Patch::Json::<()>(json_patch::Patch(vec![
            PatchOperation::Test(TestOperation { path: pointer("/metadata/uid"), value: recipient.uid.clone().into() }),
            PatchOperation::Add(AddOperation {
                path: pointer("/status/reportedActivityTime"),
                value: time.to_string().into(),
            }),
        ]));
        let parameters = PatchParams { field_manager: Some(ROUTER.to_owned()), ..PatchParams::default() };
        match conversations.patch_status(name, &parameters, &patch).await {
            Ok(Guarded(stored)) => {
                let is_recipient = stored.is_ok_and(|stored| is_open(recipient, &stored));
                Ok(if is_recipient { Written::Stored } else { Written::Gone })
            }
            Err(error) if ErrorClass::of(&error).is_not_found() => Ok(Written::Gone),
            // It is another object, or has no status yet.
            Err(error) if matches!(ErrorClass::of(&error), ErrorClass::Invalid | ErrorClass::Rejected) => {
                let stored = self.get(&recipient.conversation).await?;
                let is_recipient = stored.is_some_and(|stored| is_open(recipient, &stored));
                Ok(if is_recipient { Written::Refused } else { Written::Gone })
            }
            Err(error) => Err(error),
        }
    }
}

/// The outcome of a write of activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// It is stored.
    Stored,
    /// The API server refused it, although the conversation is open.
    Refused,
    /// The conversation is closed, or is another object by now.
    Gone,
}

/// Whether `stored` is the recipient, and still needs its binding.
fn is_open(recipient: &Recipient, stored: &Conversation) -> bool {
    let live = LiveConversation::of(stored);
    live.uid == recipient.uid && live.needed_binding.is_some()
}

fn recipient(conversation: ConversationReference, live: LiveConversation) -> Recipient {
    let LiveConversation { uid, state, participants, .. } = live;
    Recipient { conversation, uid, state, participants }
}

/// Why the API server did not create a conversation.
fn refused(error: &kube::Error, namespace: &str) -> (Creation, Option<String>) {
    let class = ErrorClass::of(error);
    let is_already_bound = || match error {
        kube::Error::Api(status) => {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            causes.into_iter().any(|cause| cause.reason == ALREADY_BOUND)
        }
        _ => false,
    };
    match class {
        ErrorClass::Forbidden if is_already_bound() => (Creation::AlreadyBound, None),
        ErrorClass::AlreadyExists => (Creation::AlreadyExists, None),
        _ if class.is_transient() || class == ErrorClass::InvalidResponse => (Creation::Undecided, None),
        _ => {
            // Logs contain no addresses.
            tracing::warn!(
                ?class,
                namespace,
                "a conversation for an inbound message is not admitted; the sink gets the cause"
            );
            (Creation::Refused, Some(ErrorChain(error).to_string()))
        }
    }
}
