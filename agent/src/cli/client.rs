//! Asking the agent, over its unix socket.

use super::{Failure, door::api::ErrorBody};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use miette::miette;
use std::{
    future::Future,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;

/// Longer than the agent takes to say that it goes on working.
const PATIENCE: Duration = Duration::from_secs(25);
/// A status of some hundred pods is far below.
const ANSWER_BYTES: usize = 64 << 20;

/// Runs what a command asks for.
pub(super) fn run<T>(asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| miette!("cannot start: {error}"))?;
    runtime.block_on(asked)
}

/// The agent gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Away(pub(super) String);

/// The agent at a socket.
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks and reads the whole answer.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, Failure> {
        let whole = async {
            let answer = self.send(method, path, body).await?;
            self.read(answer).await
        };
        tokio::time::timeout(PATIENCE, whole).await.unwrap_or_else(|_| {
            Err(miette!(
                help = "it may be stopped: look at its process and its log",
                "the agent at {} did not answer within {PATIENCE:?}",
                self.socket.display()
            ))
        })
    }

    /// Asks and gives back whatever the agent answers, for a program to judge.
    pub(super) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), Away> {
        let whole = async {
            let answer = self.send(method, path, body).await.map_err(|error| Away(error.to_string()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| Away(error.to_string()))?.to_bytes()))
        };
        let late = || Away(format!("it did not answer within {PATIENCE:?}"));
        tokio::time::timeout(PATIENCE, whole).await.unwrap_or_else(|_| Err(late()))
    }

    /// Asks and gives back the answer as it comes, if it is a good one.
    pub(super) async fn follow(&self, path: &str) -> Result<Incoming, Failure> {
        let answer = self.send(Method::GET, path, Vec::new()).await?;
        if answer.status() == StatusCode::OK {
            return Ok(answer.into_body());
        }
        self.read(answer).await?;
        Err(miette!("the agent at {} gave no stream", self.socket.display()))
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let broken = |error: hyper::Error| {
            miette!(
                help = "is it Heddle's agent that listens there? its log says more",
                "the agent at {} broke the conversation off: {error}",
                self.socket.display()
            )
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the conversation with the agent ended");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "heddle")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| miette!("cannot ask for {path}: {error}"))?;
        sender.send_request(request).await.map_err(broken)
    }

    async fn read(&self, answer: Response<Incoming>) -> Result<Bytes, Failure> {
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| miette!("the agent's answer cannot be read: {error}"))?
            .to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let told: ErrorBody = serde_json::from_slice(&body).unwrap_or_default();
        let about = if told.field.is_empty() { String::new() } else { format!("{}: ", told.field) };
        let error = if told.error.is_empty() { format!("the agent answered {status}") } else { told.error };
        Err(if told.remedy.is_empty() {
            miette!("{about}{error}")
        } else {
            miette!(help = told.remedy, "{about}{error}")
        })
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::NotFound => miette!(
                help = "start one with `heddle agent --config FILE`, or name its socket: --socket RUNDIRECTORY/agent.sock",
                "no agent runs here: there is no socket {socket}"
            ),
            ErrorKind::ConnectionRefused => miette!(
                help =
                    "start it again with `heddle agent --config FILE`; until then what it carried is refused",
                "the agent is gone: nobody listens on {socket}, which it left behind"
            ),
            ErrorKind::PermissionDenied => {
                miette!(help = "ask as root", "the agent's socket {socket} is closed to this user")
            }
            _ => miette!(help = "is it the agent's socket?", "cannot reach the agent at {socket}: {error}"),
        }
    }
}
