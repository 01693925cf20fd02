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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Json, Router, extract::State, routing::post};
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};

    /// An API server that answers every review with what it was told, and keeps what it was asked.
    async fn api(status: Value) -> (TokenReviews, Arc<Mutex<Vec<Value>>>) {
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = Arc::clone(&asked);
        let review = async move |State(kept): State<Arc<Mutex<Vec<Value>>>>, Json(body): Json<Value>| {
            kept.lock().unwrap().push(body.clone());
            let mut answer = body;
            answer["status"] = status;
            Json(answer)
        };
        let app =
            Router::new().route("/apis/authentication.k8s.io/v1/tokenreviews", post(review)).with_state(kept);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let client = Client::try_from(kube::Config::new(uri)).unwrap();
        (TokenReviews::new(client, "heddle-system", "heddle-agent"), asked)
    }

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": [AUDIENCE],
            "user": {
                "username": "system:serviceaccount:heddle-system:heddle-agent",
                "extra": {POD: ["heddle-agent-x"], POD_UID: ["u1"], NODE: ["node-a"]},
            },
        })
    }

    #[tokio::test]
    async fn what_the_api_server_says_of_a_token_is_believed() {
        let (reviews, asked) = api(good()).await;
        let agent = reviews.attest("the token", SystemTime::now()).await.unwrap();
        assert_eq!(agent.node, "node-a");
        assert_eq!(agent.name, "system:serviceaccount:heddle-system:heddle-agent/heddle-agent-x");
        let asked = asked.lock().unwrap();
        assert_eq!(asked[0]["spec"], json!({"token": "the token", "audiences": ["ca.heddle.io"]}));
    }

    #[tokio::test]
    async fn whatever_is_missing_or_differs_is_refused() {
        let changes: [(&str, Value); 12] = [
            ("/authenticated", json!(false)),
            ("/authenticated", Value::Null),
            ("/audiences", json!([])),
            ("/audiences", Value::Null),
            ("/audiences", json!(["https://kubernetes.default.svc"])),
            ("/audiences", json!([AUDIENCE, "https://kubernetes.default.svc"])),
            ("/user/username", json!("system:serviceaccount:heddle-system:other")),
            ("/user/username", json!("system:serviceaccount:shop:heddle-agent")),
            ("/user/username", json!("system:node:node-a")),
            ("/user/extra", json!({POD: ["p"], POD_UID: ["u"]})),
            ("/user/extra", json!({POD: ["p"], POD_UID: ["u"], NODE: ["a", "b"]})),
            ("/user/extra", json!({NODE: ["node-a"]})),
        ];
        for (place, value) in changes {
            let mut status = good();
            *status.pointer_mut(place).unwrap() = value.clone();
            let (reviews, _) = api(status).await;
            let refused = reviews.attest("t", SystemTime::now()).await;
            assert!(matches!(refused, Err(AttestError::Refused(_))), "{place} {value}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_is_no_refusal() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let reviews = TokenReviews::new(Client::try_from(config).unwrap(), "heddle-system", "heddle-agent");
        assert!(matches!(reviews.attest("t", SystemTime::now()).await, Err(AttestError::Away(_))));
    }
}
