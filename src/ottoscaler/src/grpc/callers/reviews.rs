//! The two questions to the API server: whose token is this, and may its owner do that.
use std::{fmt, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo},
    authorization::v1::{LocalSubjectAccessReview, ResourceAttributes, SubjectAccessReviewSpec},
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::time::timeout;

use super::rights::Right;
use crate::cluster::Loggable;

/// The API group of the virtual resources that rights are about.
const GROUP: &str = "ottoscaler.io";
/// The time for the answer to each of the two questions.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(3);

/// A `NotReviewed` says why there was no answer. It quotes no token.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum NotReviewed {
    #[error("{0}")]
    Api(String),
    #[error("no answer in time")]
    Timeout,
    #[error("too many reviews are in flight")]
    Busy,
}

/// The questions to the API server.
#[tonic::async_trait]
pub(super) trait Reviews: fmt::Debug + Send + Sync + 'static {
    /// Asks whose token this is.
    async fn token(&self, token: &str, audience: &str) -> Result<TokenReviewStatus, NotReviewed>;
    /// Asks whether a user has a right.
    async fn access(&self, user: &UserInfo, right: Right) -> Result<bool, NotReviewed>;
}

/// A `KubeReviews` asks the API server.
#[derive(Debug)]
pub(super) struct KubeReviews {
    tokens: Api<TokenReview>,
    access: Api<LocalSubjectAccessReview>,
    namespace: String,
}

impl KubeReviews {
    pub(super) fn new(client: &kube::Client, namespace: &str) -> Self {
        Self {
            tokens: Api::all(client.clone()),
            access: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
        }
    }
}

/// Waits for an answer of the API server, for at most [`REVIEW_TIMEOUT`].
async fn answer<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, NotReviewed> {
    match timeout(REVIEW_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| NotReviewed::Api(Loggable(&error).to_string())),
        Err(_) => Err(NotReviewed::Timeout),
    }
}

#[tonic::async_trait]
impl Reviews for KubeReviews {
    async fn token(&self, token: &str, audience: &str) -> Result<TokenReviewStatus, NotReviewed> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![audience.to_owned()]),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        Ok(answer(self.tokens.create(&params, &review))
            .await?
            .status
            .unwrap_or_default())
    }

    async fn access(&self, user: &UserInfo, right: Right) -> Result<bool, NotReviewed> {
        let subresource = Some(right.subresource).filter(|name| !name.is_empty());
        let review = LocalSubjectAccessReview {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: SubjectAccessReviewSpec {
                user: user.username.clone(),
                uid: user.uid.clone(),
                groups: user.groups.clone(),
                extra: user.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(self.namespace.clone()),
                    group: Some(GROUP.to_owned()),
                    verb: Some(right.verb.to_owned()),
                    resource: Some(right.resource.to_owned()),
                    subresource: subresource.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            status: None,
        };
        let params = PostParams::default();
        let status = answer(self.access.create(&params, &review))
            .await?
            .status
            .unwrap_or_default();
        Ok(status.allowed && status.denied != Some(true))
    }
}
