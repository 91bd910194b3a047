//! Decides reviews: claims the binding and, for a denial, checks whether the requester may see the holder. It does not depend on HTTP.

use super::outcome::AdmissionOutcome;
use super::review::{InvalidReview, Review, ReviewKind, respond};
use crate::api::{Conversation, ConversationReference, GROUP};
use crate::claims::Claims;
use crate::core::claim::{Decision, Request};
use crate::core::denial::{self, Denial, Disclosure};
use crate::telemetry::error_chain::ErrorChain;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use tokio::time::{Instant, timeout_at};

/// Answers admission reviews.
#[derive(Clone)]
pub struct AdmissionHandler {
    client: Client,
    claims: Claims,
}

impl AdmissionHandler {
    /// A handler that decides reviews by `claims`.
    #[must_use]
    pub fn new(client: Client, claims: Claims) -> Self {
        Self { client, claims }
    }

    /// Decides the review in `body` by `deadline`. Returns the outcome and the bytes of the answering review.
    ///
    /// # Errors
    /// If `body` is not a review that can be answered.
    pub async fn answer(&self, body: &[u8], deadline: Instant) -> Result<(AdmissionOutcome, Vec<u8>), InvalidReview> {
        let review = Review::parse(body)?;
        let (outcome, denial) = match review.kind()? {
            ReviewKind::NoClaim => (AdmissionOutcome::NoClaim, None),
            ReviewKind::Invalid(error) => (AdmissionOutcome::Invalid, Some(denial::invalid_binding(&error))),
            ReviewKind::Claim(request) => self.claim(&request, &review, deadline).await,
        };
        Ok((outcome, respond(&review, denial)?))
    }

    async fn claim(&self, request: &Request, review: &Review, deadline: Instant) -> (AdmissionOutcome, Option<Denial>) {
        let decision = self.claims.admit(request, deadline).await;
        let outcome = match &decision {
            Decision::Allow => AdmissionOutcome::Allowed,
            Decision::AllowWaiting => AdmissionOutcome::Waiting,
            Decision::Deny { .. } => AdmissionOutcome::Denied,
            Decision::AlreadyExists => AdmissionOutcome::AlreadyExists,
            Decision::Undecided(_) => AdmissionOutcome::Undecided,
        };
        tracing::debug!(
            conversation = %request.conversation,
            binding = %request.binding.name(),
            dry_run = request.is_dry_run,
            outcome = outcome.as_str(),
            "decided a create"
        );
        let denial = match decision {
            Decision::Allow | Decision::AllowWaiting => None,
            Decision::AlreadyExists => Some(denial::already_exists(&request.conversation.name)),
            Decision::Undecided(why) => Some(denial::undecided(&why, &request.conversation.namespace)),
            Decision::Deny { holder, live } => {
                let may_read = holder.namespace == request.conversation.namespace
                    || self.may_read(&holder, review.user(), deadline).await;
                let disclosure = if may_read { Disclosure::Full } else { Disclosure::OtherNamespace };
                Some(denial::already_bound(&request.binding, &holder, &live, disclosure))
            }
        };
        (outcome, denial)
    }

    /// Whether the user may read the holder, which is in another namespace. If that cannot be determined, the user may not.
    async fn may_read(&self, holder: &ConversationReference, user: Option<UserInfo>, deadline: Instant) -> bool {
        let Some(UserInfo { extra, groups, uid, username }) = user else { return false };
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
            Ok(Ok(review)) => review.status.as_ref().is_some_and(|status| status.allowed),
            Err(_) => false,
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "cannot check whether the requester may read the holder");
                false
            }
        }
    }
}
