//! `AdmissionReview` in and out: from the bytes of a review to a request of the protocol, and from an answer to a review.
//!
//! It trusts the new object alone, and decides nothing.

use crate::api::{Conversation, ConversationReference};
use crate::core::binding::{Binding, InvalidBinding};
use crate::core::claim::{Request, state_in_effect};
use crate::core::refusal::Refusal;
use k8s_openapi::api::authentication::v1::UserInfo;
use kube::Resource;
use kube::core::admission::{
    AdmissionRequest, AdmissionResponse, AdmissionReview, META_API_VERSION_V1, META_KIND, Operation,
};
use kube::core::response::{StatusCause, StatusDetails, StatusSummary};
use kube::core::{Status, TypeMeta};

/// A review that was read.
#[derive(Debug)]
pub struct Review {
    request: AdmissionRequest<Conversation>,
}

/// What a review asks for.
#[derive(Debug)]
pub enum Asked {
    /// Nothing that needs a claim.
    NoClaim,
    /// A claim on a binding, for this create.
    Claim(Request),
    /// A claim on something that is no binding.
    Invalid(InvalidBinding),
}

/// The bytes are no review that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// They are no `AdmissionReview` of version `admission.k8s.io/v1` of a conversation.
    #[error("cannot read the body as an admission.k8s.io/v1 AdmissionReview of a conversation: {0}")]
    Json(#[from] serde_json::Error),
    /// A part that every API server sends is missing.
    #[error("the AdmissionReview has no {0}")]
    Missing(&'static str),
    /// They are something else than an `AdmissionReview`, or one of another version.
    #[error("the body is {0}: switchboard reads admission.k8s.io/v1 AdmissionReview alone")]
    OtherVersion(String),
    /// It is about something else than conversations.
    #[error("the AdmissionReview is about {0}: switchboard reviews conversations.switchboard.dev alone")]
    OtherResource(String),
}

impl Review {
    /// Reads a review.
    ///
    /// # Errors
    /// Where the bytes are none, or one that is about something else.
    pub fn parse(body: &[u8]) -> Result<Self, Unreadable> {
        let review: AdmissionReview<Conversation> = serde_json::from_slice(body)?;
        let TypeMeta { api_version, kind } = &review.types;
        if (api_version.as_str(), kind.as_str()) != (META_API_VERSION_V1, META_KIND) {
            return Err(Unreadable::OtherVersion(format!("{api_version} {kind}")));
        }
        let request: AdmissionRequest<Conversation> = review.try_into().map_err(|_| Unreadable::Missing("request"))?;
        let resource = &request.resource;
        if resource.group != crate::api::GROUP || resource.resource != Conversation::plural(&()) {
            return Err(Unreadable::OtherResource(format!("{}.{}", resource.resource, resource.group)));
        }
        Ok(Self { request })
    }

    /// Who asks.
    #[must_use]
    pub fn user(&self) -> &UserInfo {
        &self.request.user_info
    }

    /// What is asked for.
    ///
    /// # Errors
    /// Where a part that every API server sends is missing.
    pub fn asked(&self) -> Result<Asked, Unreadable> {
        if self.request.operation != Operation::Create {
            return Ok(Asked::NoClaim);
        }
        let object = self.request.object.as_ref().ok_or(Unreadable::Missing("request.object"))?;
        if state_in_effect(object) == crate::api::State::Closed {
            return Ok(Asked::NoClaim);
        }
        let binding = match Binding::of(&object.spec) {
            Ok(Some(binding)) => binding,
            Ok(None) => return Ok(Asked::NoClaim),
            Err(error) => return Ok(Asked::Invalid(error)),
        };
        let metadata = &object.metadata;
        let present = |part: Option<&String>, name| {
            part.filter(|part| !part.is_empty()).cloned().ok_or(Unreadable::Missing(name))
        };
        Ok(Asked::Claim(Request {
            binding,
            conversation: ConversationReference {
                namespace: present(self.request.namespace.as_ref(), "request.namespace")?,
                name: present(metadata.name.as_ref(), "request.object.metadata.name")?,
            },
            uid: present(metadata.uid.as_ref(), "request.object.metadata.uid")?,
            // Every other way to create records an Update, also where the object that is sent brings fields of its own.
            is_server_side_apply: metadata.managed_fields.as_ref().is_some_and(|managers| {
                !managers.is_empty() && managers.iter().all(|manager| manager.operation.as_deref() == Some("Apply"))
            }),
            is_dry_run: self.request.dry_run,
        }))
    }
}

/// The bytes of the review that answers `review`: allowed where there is no refusal.
///
/// # Errors
/// Never in fact: what is written can be written as JSON.
pub fn respond(review: &Review, refusal: Option<Refusal>) -> Result<Vec<u8>, serde_json::Error> {
    let mut response = AdmissionResponse::from(&review.request);
    if let Some(refusal) = refusal {
        response.allowed = false;
        response.result = status(refusal);
    }
    serde_json::to_vec(&response.into_review())
}

fn status(refusal: Refusal) -> Status {
    let Refusal { code, reason, message, cause, name, retry_after_seconds } = refusal;
    let causes = cause
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
