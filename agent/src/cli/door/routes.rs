//! The routes, over whatever is behind the door.

use super::{
    Door,
    api::{
        AttachBody, AttachError, AttachErrorCode, AttachRequest, CheckRequest, DetachRequest, ErrorBody,
        NetnsQuery, PodName,
    },
    bounds::{Bounds, Counts},
};
use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, Query, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use std::{convert::Infallible, future::Future, sync::Arc};
use tokio::sync::{
    Semaphore,
    broadcast::{self, error::RecvError},
};
use tokio_stream::wrappers::ReceiverStream;

pub(super) struct Shared<D> {
    pub(super) door: D,
    pub(super) bounds: Bounds,
    pub(super) counts: Arc<Counts>,
    pub(super) streams: Arc<Semaphore>,
}

/// An answer that is followed: it lasts for as long as its caller reads it, whatever the bound of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Followed;

type App<D> = State<Arc<Shared<D>>>;

pub(super) fn router<D: Door>(shared: Arc<Shared<D>>) -> Router {
    Router::new()
        .route("/v1/pods", post(attach::<D>))
        .route("/v1/pods/{namespace}/{name}", get(check::<D>).delete(detach::<D>))
        .route("/v1/status", get(status::<D>))
        .route("/v1/events", get(events::<D>))
        .route("/v1/flows", get(flows::<D>))
        .route("/v1/metrics", get(metrics::<D>))
        .route("/v1/policy", get(policy::<D>))
        .route("/v1/identities", get(identities::<D>))
        .route("/v1/identities/renew", post(renew::<D>))
        .fallback(|| async { error(StatusCode::NOT_FOUND, "no_route", "there is no such path", ROUTES) })
        .method_not_allowed_fallback(|| async {
            error(StatusCode::METHOD_NOT_ALLOWED, "no_method", "this path does not know the method", ROUTES)
        })
        .with_state(shared)
}

const ROUTES: &str = "POST /v1/pods, GET or DELETE /v1/pods/NAMESPACE/NAME, GET /v1/status, GET /v1/events, GET /v1/flows, GET /v1/metrics, GET /v1/policy, GET /v1/identities or POST /v1/identities/renew";

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn error(status: StatusCode, code: &str, message: &str, remedy: &str) -> Response {
    let (error, code, remedy) = (message.into(), code.into(), remedy.into());
    json(status, &ErrorBody { error, code, field: String::new(), remedy })
}

impl IntoResponse for AttachError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (error, code) = (self.message, self.code.as_str().into());
        json(status, &ErrorBody { error, code, field: self.field, remedy: self.remedy })
    }
}

fn bad_request(message: String, remedy: &str) -> AttachError {
    AttachError::new(AttachErrorCode::BadRequest, message).remedy(remedy)
}

/// Reads a body that is bounded in size and time.
async fn body(request: Request, bounds: &Bounds) -> Result<Bytes, Response> {
    let limited = Limited::new(request.into_body(), bounds.body_bytes).collect();
    match tokio::time::timeout(bounds.body_time, limited).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(failed)) if failed.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the body is longer than {} bytes", bounds.body_bytes);
            Err(error(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                &message,
                "send what the documentation shows",
            ))
        }
        Ok(Err(failed)) => {
            Err(bad_request(format!("the body cannot be read: {failed}"), "send it whole").into_response())
        }
        Err(_) => {
            let message = format!("the body did not arrive within {:?}", bounds.body_time);
            Err(error(StatusCode::REQUEST_TIMEOUT, "timed_out", &message, "send it at once"))
        }
    }
}

/// Runs `work` to its end whether or not the caller waits for it: half an attachment helps nobody.
async fn to_its_end<T: Send + 'static>(
    bounds: &Bounds,
    work: impl Future<Output = Result<T, AttachError>> + Send + 'static,
) -> Result<T, AttachError> {
    match tokio::time::timeout(bounds.work_time, tokio::spawn(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(panicked)) => {
            tracing::error!(%panicked, "a request at the door failed within the agent");
            let message = "the agent failed while it worked on this; its log says more";
            Err(AttachError::new(AttachErrorCode::Kernel, message)
                .remedy("`heddle status` shows what is in force"))
        }
        Err(_) => {
            let message = format!("it is not done after {:?} and goes on", bounds.work_time);
            Err(AttachError::new(AttachErrorCode::TimedOut, message).remedy("ask again for the same pod"))
        }
    }
}

async fn attach<D: Door>(State(app): App<D>, request: Request) -> Response {
    let body = match body(request, &app.bounds).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let asked = serde_json::from_slice::<AttachBody>(&body).map_err(|error| {
        bad_request(
            format!("the body is not what is asked for: {error}"),
            r#"send {"namespace":…,"name":…,"netns":…}"#,
        )
    });
    let asked = match asked.and_then(AttachRequest::try_from) {
        Ok(asked) => asked,
        Err(refused) => return refused.into_response(),
    };
    let (pod, netns) = (asked.pod.to_string(), asked.netns.display().to_string());
    let own = Arc::clone(&app);
    match to_its_end(&app.bounds, async move { own.door.attach(asked).await }).await {
        Ok(attached) => {
            app.counts.add("attached");
            tracing::info!(pod, netns, identity = attached.identity, "pod is captured");
            json(StatusCode::OK, &attached)
        }
        Err(error) => {
            app.counts.add(&format!("attach_refused_{}", error.code.as_str()));
            tracing::warn!(pod, netns, code = error.code.as_str(), %error, remedy = error.remedy, "pod is not captured");
            error.into_response()
        }
    }
}

async fn check<D: Door>(
    State(app): App<D>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<NetnsQuery>,
) -> Response {
    let checked = PodName::new(&namespace, &name)
        .and_then(|pod| app.door.check(&CheckRequest { pod, netns: query.netns }));
    match checked {
        Ok(captured) => json(StatusCode::OK, &captured),
        Err(refused) => refused.into_response(),
    }
}

async fn detach<D: Door>(
    State(app): App<D>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<NetnsQuery>,
) -> Response {
    let pod = match PodName::new(&namespace, &name) {
        Ok(pod) => pod,
        Err(refused) => return refused.into_response(),
    };
    let (own, asked) = (Arc::clone(&app), DetachRequest { pod: pod.clone(), netns: query.netns });
    match to_its_end(&app.bounds, async move { own.door.detach(asked).await }).await {
        Ok(()) => {
            app.counts.add("detached");
            tracing::info!(%pod, "pod is no longer captured");
            json(StatusCode::OK, &serde_json::json!({"namespace": namespace, "name": name}))
        }
        Err(error) => {
            app.counts.add(&format!("detach_refused_{}", error.code.as_str()));
            error.into_response()
        }
    }
}

async fn status<D: Door>(State(app): App<D>) -> Response {
    let mut status = app.door.status();
    status.door = app.counts.read();
    json(StatusCode::OK, &status)
}

async fn metrics<D: Door>(State(app): App<D>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], app.door.metrics()).into_response()
}

async fn policy<D: Door>(State(app): App<D>) -> Response {
    json(StatusCode::OK, &app.door.policy())
}

async fn identities<D: Door>(State(app): App<D>) -> Response {
    json(StatusCode::OK, &app.door.identities())
}

async fn renew<D: Door>(State(app): App<D>) -> Response {
    let count = app.door.renew_identities();
    app.counts.add("renewals_asked_for");
    tracing::info!(count, "every certificate is renewed, as was asked for at the door");
    json(StatusCode::OK, &serde_json::json!({"renewing": count}))
}

async fn events<D: Door>(State(app): App<D>) -> Response {
    let events = app.door.events();
    stream(&app, events, |lost| format!("{{\"lost\":{lost}}}"))
}

async fn flows<D: Door>(State(app): App<D>) -> Response {
    let (flows, own) = (app.door.flows(), Arc::clone(&app));
    stream(&app, flows, move |lost| own.door.flows_missed(lost))
}

/// Lines as they come. `missed` is the line for those that came faster than they were read.
fn stream<D: Door>(
    app: &Arc<Shared<D>>,
    mut told: broadcast::Receiver<Arc<str>>,
    missed: impl Fn(u64) -> String + Send + 'static,
) -> Response {
    let Ok(permit) = Arc::clone(&app.streams).try_acquire_owned() else {
        let message = format!("{} others follow events or flows already", app.bounds.streams);
        return error(StatusCode::SERVICE_UNAVAILABLE, "too_many", &message, "end one of them");
    };
    let quiet = app.bounds.quiet;
    let (lines, body) = tokio::sync::mpsc::channel::<Result<Bytes, Infallible>>(64);
    tokio::spawn(async move {
        let _permit = permit;
        loop {
            let line = match tokio::time::timeout(quiet, told.recv()).await {
                Ok(Ok(line)) => format!("{line}\n"),
                Ok(Err(RecvError::Lagged(lost))) => format!("{}\n", missed(lost)),
                Ok(Err(RecvError::Closed)) => return,
                // An empty line shows whether anybody still reads.
                Err(_) => "\n".into(),
            };
            if lines.send(Ok(line.into())).await.is_err() {
                return;
            }
        }
    });
    let body = Body::from_stream(ReceiverStream::new(body));
    (Extension(Followed), [(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
