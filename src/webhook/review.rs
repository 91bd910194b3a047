//! Parses an `AdmissionReview` into a request of the protocol of claims, and writes the `AdmissionReview` that answers it.
//!
//! It makes no decisions. Every client that can connect to the port may send reviews, so this module parses only the parts that it uses: when
//! parsed, an array of empty objects takes a hundred times its length in memory.

use crate::api::{Conversation, ConversationReference, ConversationSpec, ConversationStatus, State};
use crate::core::binding::{Binding, InvalidBinding};
use crate::core::claim::Request;
use crate::core::denial::Denial;
use crate::core::effective::state_in_effect;
use k8s_openapi::api::authentication::v1::UserInfo;
use kube::Resource;
use kube::core::Status;
use kube::core::admission::{META_API_VERSION_V1, META_KIND, Operation};
use kube::core::response::{StatusCause, StatusDetails, StatusSummary};
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The maximum length of a part of a review that is parsed, in bytes. Every spec that the schema admits is shorter, even if every character is
/// escaped.
const PART_BYTES: usize = 256 << 10;

/// The maximum length of a name or UID in Kubernetes, in bytes.
const NAME_BYTES: usize = 253;

/// A parsed review.
#[derive(Debug)]
pub struct Review {
    uid: String,
    operation: Operation,
    namespace: Option<String>,
    is_dry_run: bool,
    user: Option<Box<RawValue>>,
    object: Option<Object>,
}

/// The parts of the object that are used.
#[derive(Debug)]
struct Object {
    metadata: Metadata,
    conversation: Conversation,
}

/// The review on the wire.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: Option<WireRequest<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireRequest<'a> {
    uid: String,
    resource: WireResource,
    namespace: Option<String>,
    operation: Operation,
    #[serde(borrow)]
    user_info: &'a RawValue,
    object: Option<WireObject<'a>>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
struct WireResource {
    group: String,
    resource: String,
}

#[derive(Deserialize)]
struct WireObject<'a> {
    #[serde(default)]
    metadata: Metadata,
    #[serde(borrow)]
    spec: &'a RawValue,
    status: Option<WireStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    generate_name: Option<String>,
    managed_fields: Option<Managers>,
}

#[derive(Deserialize)]
struct WireStatus {
    state: Option<State>,
}

/// The managers of the object's fields.
#[derive(Debug)]
struct Managers {
    /// Whether there is at least one manager, and all managers used server-side apply.
    have_applied: bool,
}

impl<'de> Deserialize<'de> for Managers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Manager {
            operation: Option<String>,
        }
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Managers;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a list of managers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut managers: A) -> Result<Managers, A::Error> {
                let (mut is_empty, mut have_applied) = (true, true);
                while let Some(Manager { operation }) = managers.next_element()? {
                    is_empty = false;
                    have_applied &= operation.as_deref() == Some("Apply");
                }
                Ok(Managers { have_applied: have_applied && !is_empty })
            }
        }
        deserializer.deserialize_seq(Each)
    }
}

/// The kind of a review.
#[derive(Debug)]
pub enum ReviewKind {
    /// It needs no claim.
    NoClaim,
    /// A create that needs a claim.
    Claim(Request),
    /// A create whose addresses do not form a binding.
    Invalid(InvalidBinding),
}

/// Why a body is not a review that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum InvalidReview {
    /// It is not an `AdmissionReview` of version `admission.k8s.io/v1` of a conversation.
    #[error("cannot read the body as an admission.k8s.io/v1 AdmissionReview of a conversation: {0}")]
    Json(#[from] serde_json::Error),
    /// A required part is missing.
    #[error("the AdmissionReview has no {0}")]
    Missing(&'static str),
    /// A part is longer than the maximum.
    #[error("the {0} of the AdmissionReview is longer than the maximum")]
    TooLong(&'static str),
    /// It has another kind or version.
    #[error("the body is {0}, but must be admission.k8s.io/v1 AdmissionReview")]
    OtherVersion(String),
    /// It is about another resource.
    #[error("the AdmissionReview is about {0}, but must be about conversations.switchboard.dev")]
    OtherResource(String),
}

impl Review {
    /// Parses a review.
    ///
    /// # Errors
    /// If `body` is not a review of a conversation.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidReview> {
        let Envelope { api_version, kind, request } = serde_json::from_slice(body)?;
        if (api_version.as_str(), kind.as_str()) != (META_API_VERSION_V1, META_KIND) {
            return Err(InvalidReview::OtherVersion(format!("{api_version} {kind}")));
        }
        let request = request.ok_or(InvalidReview::Missing("request"))?;
        let WireRequest { uid, resource, namespace, operation, user_info, object, dry_run } = request;
        if resource.group != crate::api::GROUP || resource.resource != Conversation::plural(&()) {
            return Err(InvalidReview::OtherResource(format!("{}.{}", resource.resource, resource.group)));
        }
        if uid.len() > NAME_BYTES {
            return Err(InvalidReview::TooLong("request.uid"));
        }
        let object = object.map(Object::read).transpose()?;
        let user = (user_info.get().len() <= PART_BYTES).then(|| user_info.to_owned());
        Ok(Self { uid, operation, namespace, is_dry_run: dry_run, user, object })
    }

    /// The user who sent the request; `None` if the review has no valid user.
    #[must_use]
    pub fn user(&self) -> Option<UserInfo> {
        serde_json::from_str(self.user.as_ref()?.get()).ok()
    }

    /// The kind of the review.
    ///
    /// # Errors
    /// If a required part is missing.
    pub fn kind(&self) -> Result<ReviewKind, InvalidReview> {
        if self.operation != Operation::Create {
            return Ok(ReviewKind::NoClaim);
        }
        let Object { metadata, conversation } = self.object.as_ref().ok_or(InvalidReview::Missing("request.object"))?;
        let reported = conversation.status.as_ref().and_then(|status| status.state);
        if state_in_effect(conversation.spec.state, reported) == State::Closed {
            return Ok(ReviewKind::NoClaim);
        }
        let binding = match Binding::of(&conversation.spec) {
            Ok(Some(binding)) => binding,
            Ok(None) => return Ok(ReviewKind::NoClaim),
            Err(error) => return Ok(ReviewKind::Invalid(error)),
        };
        let present = |part: Option<&String>, name| match part {
            Some(part) if part.len() > NAME_BYTES => Err(InvalidReview::TooLong(name)),
            Some(part) if !part.is_empty() => Ok(part.clone()),
            _ => Err(InvalidReview::Missing(name)),
        };
        Ok(ReviewKind::Claim(Request {
            binding,
            conversation: ConversationReference {
                namespace: present(self.namespace.as_ref(), "request.namespace")?,
                name: present(metadata.name.as_ref(), "request.object.metadata.name")?,
            },
            uid: present(metadata.uid.as_ref(), "request.object.metadata.uid")?,
            // Every other kind of create adds a manager with the operation Update.
            is_server_side_apply: metadata.managed_fields.as_ref().is_some_and(|managers| managers.have_applied),
            has_generated_name: metadata.generate_name.as_ref().is_some_and(|prefix| !prefix.is_empty()),
            on_conflict: conversation.spec.on_conflict.unwrap_or_default(),
            is_dry_run: self.is_dry_run,
        }))
    }
}

impl Object {
    fn read(object: WireObject) -> Result<Self, InvalidReview> {
        let WireObject { metadata, spec, status } = object;
        if spec.get().len() > PART_BYTES {
            return Err(InvalidReview::TooLong("request.object.spec"));
        }
        let mut conversation = Conversation::new("", serde_json::from_str::<ConversationSpec>(spec.get())?);
        conversation.status =
            status.map(|WireStatus { state }| ConversationStatus { state, ..ConversationStatus::default() });
        Ok(Self { metadata, conversation })
    }
}

/// The answer on the wire.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireAnswer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: WireResponse<'a>,
}

#[derive(Serialize)]
struct WireResponse<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

/// The bytes of the review that answers `review`. It is allowed if there is no denial.
///
/// # Errors
/// Never in practice: every denial can be serialized.
pub fn respond(review: &Review, denial: Option<Denial>) -> Result<Vec<u8>, serde_json::Error> {
    let status = denial.map(status);
    let response = WireResponse { uid: &review.uid, allowed: status.is_none(), status };
    serde_json::to_vec(&WireAnswer { api_version: META_API_VERSION_V1, kind: META_KIND, response })
}

fn status(denial: Denial) -> Status {
    let Denial { code, reason, message, causes, name, retry_after_seconds } = denial;
    let causes = causes
        .into_iter()
        .map(|cause| StatusCause {
            reason: cause.reason.to_owned(),
            field: cause.field.to_owned(),
            message: cause.message,
        })
        .collect();
    Status {
        status: Some(StatusSummary::Failure),
        code,
        message,
        metadata: None,
        reason: reason.to_owned(),
        details: Some(StatusDetails {
            name: name.unwrap_or_default(),
            group: crate::api::GROUP.to_owned(),
            kind: "Conversation".to_owned(),
            uid: String::new(),
            causes,
            retry_after_seconds: retry_after_seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(0),
        }),
    }
}
