//! From a review to its answer: claims the binding, and asks who may learn of its holder. No HTTP here.

use super::review::{Asked, Review, Unreadable, respond};
use crate::api::{Conversation, ConversationReference, GROUP};
use crate::claims::Claims;
use crate::core::claim::{Answer, Request};
use crate::core::refusal::{self, Disclosure, Refusal};
use crate::telemetry::error_chain::ErrorChain;
use crate::telemetry::metrics::Admission;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use tokio::time::{Instant, timeout_at};

/// Answers reviews.
#[derive(Clone)]
pub struct Admitter {
    client: Client,
    claims: Claims,
}

impl Admitter {
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
            Asked::NoClaim => (Admission::NoClaim, None),
            Asked::Invalid(error) => (Admission::Invalid, Some(refusal::invalid_binding(&error))),
            Asked::Claim(request) => self.claim(&request, &review, deadline).await,
        };
        Ok((outcome, respond(&review, refusal)?))
    }

    async fn claim(&self, request: &Request, review: &Review, deadline: Instant) -> (Admission, Option<Refusal>) {
        let answer = self.claims.admit(request, deadline).await;
        let outcome = match &answer {
            Answer::Allow => Admission::Allowed,
            Answer::Refuse { .. } => Admission::Refused,
            Answer::AlreadyExists => Admission::AlreadyExists,
            Answer::Undecidable(_) => Admission::Undecidable,
        };
        tracing::debug!(
            conversation = %request.conversation,
            binding = %request.binding.name(),
            dry_run = request.is_dry_run,
            outcome = outcome.as_str(),
            "answered a create"
        );
        let refusal = match answer {
            Answer::Allow => None,
            Answer::AlreadyExists => Some(refusal::already_exists(&request.conversation.name)),
            Answer::Undecidable(why) => Some(refusal::undecidable(why)),
            Answer::Refuse { holder, stored } => {
                let disclosure = if holder.namespace == request.conversation.namespace {
                    Disclosure::Full
                } else {
                    self.disclosure(&holder, review.user(), deadline).await
                };
                Some(refusal::already_bound(&request.binding, &holder, &stored, disclosure))
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
