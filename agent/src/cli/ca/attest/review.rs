//! Tokens of service accounts, which Kubernetes reviews.
//!
//! What counts is what the API server says of the token, never what stands in it: that it is authentic, for this
//! audience, of the agents' own account, bound to a pod that exists, and bound to a node.

use std::{collections::BTreeMap, time::SystemTime};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::{Api, Client, api::PostParams};

use super::{Agent, Attest, AttestError, Attesting};
use crate::cli::ca::AUDIENCE;

/// What the API server tells of a token's pod and node (Kubernetes 1.30 and newer).
const POD: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE: &str = "authentication.kubernetes.io/node-name";

/// Asks the API server.
pub struct TokenReviews {
    api: Api<TokenReview>,
    /// `system:serviceaccount:<namespace>:<name>`.
    account: String,
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReviews").field("account", &self.account).finish_non_exhaustive()
    }
}

impl TokenReviews {
    /// Believes tokens of the service account `name` in `namespace`.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::all(client), account: format!("system:serviceaccount:{namespace}:{name}") }
    }

    async fn review(&self, token: &str) -> Result<Agent, AttestError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let answer =
            self.api.create(&PostParams::default(), &review).await.map_err(|error| {
                AttestError::Away(format!("Kubernetes cannot review the token now: {error}"))
            })?;
        self.judge(answer.status.unwrap_or_default())
    }

    fn judge(&self, status: TokenReviewStatus) -> Result<Agent, AttestError> {
        let refused = |why: String| Err(AttestError::Refused(format!("the token is not believed: {why}")));
        if status.authenticated != Some(true) {
            return refused(status.error.unwrap_or_else(|| "Kubernetes does not know it".to_owned()));
        }
        // An API server that does not know audiences answers without one: such a token is for anybody.
        if status.audiences.unwrap_or_default() != [AUDIENCE] {
            return refused(format!("it is not for {AUDIENCE} alone"));
        }
        let UserInfo { username, extra, .. } = status.user.unwrap_or_default();
        if username.as_deref() != Some(&self.account) {
            let found = username.unwrap_or_default();
            return refused(format!("it is of {found:?}, and the agents are {:?}", self.account));
        }
        let extra = extra.unwrap_or_default();
        let (Some(pod), Some(_)) = (one(&extra, POD), one(&extra, POD_UID)) else {
            return refused("it is bound to no pod: mount a projected service account token".to_owned());
        };
        match one(&extra, NODE) {
            Some(node) => Ok(Agent { name: format!("{}/{pod}", self.account), node: node.to_owned() }),
            None => refused("it names no node: Kubernetes 1.30 or newer is needed".to_owned()),
        }
    }
}

/// The one value of a key that has exactly one.
fn one<'a>(extra: &'a BTreeMap<String, Vec<String>>, key: &str) -> Option<&'a str> {
    match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value),
        _ => None,
    }
}

impl Attest for TokenReviews {
    fn attest<'a>(&'a self, token: &'a str, _: SystemTime) -> Attesting<'a> {
        Box::pin(self.review(token))
    }
}
