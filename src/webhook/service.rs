//! From a review to its answer: claims the binding, and asks who may learn of its holder. No HTTP here.

use super::review::{Review, ReviewKind, Unreadable, respond};
use crate::api::{Conversation, ConversationReference, GROUP};
use crate::claims::Claims;
use crate::core::claim::{Decision, Request};
use crate::core::denial::{self, Denial, Disclosure};
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::metrics::Admission;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use tokio::time::{Instant, timeout_at};

/// Answers reviews.
#[derive(Clone)]
pub struct AdmissionHandler {
    client: Client,
    claims: Claims,
}

impl AdmissionHandler {
    /// Answers reviews with what `claims` says.
    #[must_use]
    pub fn new(client: Client, claims: Claims) -> Self {
        Self { client, claims }
    }

    /// The bytes of the review that answers the one in `body`, by `deadline`, and what was answered.
    ///
    /// # Errors
    /// Where the body is no review that can be answered.
    pub async fn answer(&self, body: &[u8], deadline: Instant) -> Result<(Admission, Vec<u8>), Unreadable> {
        let review = Review::parse(body)?;
        let (outcome, refusal) = match review.asked()? {
            ReviewKind::NoClaim => (Admission::NoClaim, None),
            ReviewKind::Invalid(error) => (Admission::Invalid, Some(denial::invalid_binding(&error))),
            ReviewKind::Claim(request) => self.claim(&request, &review, deadline).await,
        };
        Ok((outcome, respond(&review, refusal)?))
    }

    async fn claim(&self, request: &Request, review: &Review, deadline: Instant) -> (Admission, Option<Denial>) {
        let answer = self.claims.admit(request, deadline).await;
        let outcome = match &answer {
            Decision::Allow => Admission::Allowed,
            Decision::Deny { .. } => Admission::Refused,
            Decision::AlreadyExists => Admission::AlreadyExists,
            Decision::Undecided(_) => Admission::Undecided,
        };
        tracing::debug!(
            conversation = %request.conversation,
            binding = %request.binding.name(),
            dry_run = request.is_dry_run,
            outcome = outcome.as_str(),
            "answered a create"
        );
        let refusal = match answer {
            Decision::Allow => None,
            Decision::AlreadyExists => Some(denial::already_exists(&request.conversation.name)),
            Decision::Undecided(why) => Some(denial::undecided(why)),
            Decision::Deny { holder, live } => {
                let disclosure = if holder.namespace == request.conversation.namespace {
                    Disclosure::Full
                } else {
                    self.disclosure(&holder, review.user(), deadline).await
                };
                Some(denial::already_bound(&request.binding, &holder, &live, disclosure))
            }
        };
        (outcome, refusal)
    }

    /// A holder in another namespace is named only to somebody who may read it. Where that cannot be found out it is not.
    async fn disclosure(
        &self,
        holder: &ConversationReference,
        user: Option<UserInfo>,
        deadline: Instant,
    ) -> Disclosure {
        let Some(UserInfo { extra, groups, uid, username }) = user else { return Disclosure::OtherNamespace };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                extra,
                groups,
                uid,
                user: username,
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    resource: Some(Conversation::plural(&()).into_owned()),
                    namespace: Some(holder.namespace.clone()),
                    name: Some(holder.name.clone()),
                    verb: Some("get".to_owned()),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.client.clone());
        match timeout_at(deadline, reviews.create(&PostParams::default(), &review)).await {
            Ok(Ok(review)) if review.status.as_ref().is_some_and(|status| status.allowed) => Disclosure::Full,
            Ok(Ok(_)) | Err(_) => Disclosure::OtherNamespace,
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "cannot ask whether the requester may read the holder");
                Disclosure::OtherNamespace
            }
        }
    }
}
