//! Decides reviews: checks the grant, claims the binding and, for a denial, checks whether the requester may see what it names. It does not
//! depend on HTTP.

use super::grants::{GrantDecision, Grants};
use super::outcome::AdmissionOutcome;
use super::review::{InvalidReview, Review, ReviewKind, respond};
use crate::api::{Conversation, GROUP, ProxyAddress};
use crate::claims::Claims;
use crate::core::claim::{Decision, Request, Source};
use crate::core::denial::{self, Denial, Disclosure};
use crate::core::proxy_address::Grant;
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
    grants: Grants,
}

impl AdmissionHandler {
    /// A handler that decides reviews by `grants` and `claims`.
    #[must_use]
    pub fn new(client: Client, claims: Claims, grants: Grants) -> Self {
        Self { client, claims, grants }
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
            // The grant comes first: a 48031 would tell that a conversation exists.
            ReviewKind::Claim(request) => match self.grants.decide(&request, deadline).await {
                GrantDecision::Allowed => self.claim(&request, &review, deadline).await,
                GrantDecision::Denied(grant) => self.not_granted(&request, grant, &review, deadline).await,
                GrantDecision::Undecided => (AdmissionOutcome::Undecided, Some(denial::undecided_grant())),
            },
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
                let of_holder = || ResourceAttributes {
                    resource: Some(Conversation::plural(&()).into_owned()),
                    namespace: Some(holder.namespace.clone()),
                    name: Some(holder.name.clone()),
                    ..ResourceAttributes::default()
                };
                let may_read = holder.namespace == request.conversation.namespace
                    || self.may_read(of_holder(), review.user(), deadline).await;
                let disclosure = if may_read { Disclosure::Full } else { Disclosure::OtherNamespace };
                Some(denial::already_bound(&request.binding, &holder, &live, disclosure))
            }
        };
        (outcome, denial)
    }

    /// The answer to a create that may not use its proxy address.
    async fn not_granted(
        &self,
        request: &Request,
        grant: Grant,
        review: &Review,
        deadline: Instant,
    ) -> (AdmissionOutcome, Option<Denial>) {
        // A withdrawn grant leaves stored conversations alone: whoever creates one again learns that it exists.
        if request.has_name_of_its_own() {
            match timeout_at(deadline, self.claims.exists(&request.conversation, Source::Live)).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => {
                    let denial = denial::already_exists(&request.conversation.name);
                    return (AdmissionOutcome::AlreadyExists, Some(denial));
                }
                Ok(Err(_)) | Err(_) => return (AdmissionOutcome::Undecided, Some(denial::undecided_grant())),
            }
        }
        tracing::debug!(conversation = %request.conversation, outcome = "not_granted", "decided a create");
        let proxy_address = match grant {
            Grant::Granted | Grant::Undeclared => None,
            Grant::NotGranted(name) => Some(name),
        };
        let disclosed = match &proxy_address {
            None => None,
            Some(name) => {
                let attributes = ResourceAttributes {
                    resource: Some(ProxyAddress::plural(&()).into_owned()),
                    name: Some(name.clone()),
                    ..ResourceAttributes::default()
                };
                self.may_read(attributes, review.user(), deadline).await.then_some(name.as_str())
            }
        };
        let is_declared = proxy_address.is_some();
        let denial = denial::not_granted(&request.binding, &request.conversation.namespace, is_declared, disclosed);
        (AdmissionOutcome::NotGranted, Some(denial))
    }

    /// Whether the user may get the object of the group switchboard.dev that `attributes` name. If that cannot be determined, the user
    /// may not.
    async fn may_read(&self, attributes: ResourceAttributes, user: Option<UserInfo>, deadline: Instant) -> bool {
        let Some(UserInfo { extra, groups, uid, username }) = user else { return false };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                extra,
                groups,
                uid,
                user: username,
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    verb: Some("get".to_owned()),
                    ..attributes
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
                tracing::warn!(error = %ErrorChain(&error), "cannot check what the requester may read");
                false
            }
        }
    }
}
