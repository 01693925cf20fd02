//! Metrics over HTTP, one client at a time: each look goes through every series.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use super::Node;
use crate::{
    cli::{listen, places::Places},
    observe::metrics::CONTENT_TYPE as OPEN_METRICS,
};

/// How many clients of the node's at a time.
const CLIENTS: usize = 64;
/// Of these, from one address: a monitoring system needs one, and whoever keeps more than it uses keeps nobody else out.
const CLIENTS_EACH: usize = 4;
/// How long a client may take for the head of its first request: it has come to ask.
const FIRST: Duration = Duration::from_secs(5);
/// How long a client may take between two requests: more than Prometheus does by itself, which is a minute.
const HEAD: Duration = Duration::from_secs(75);
/// How long a connection may last: a client that comes regularly makes another.
const LIFE: Duration = Duration::from_secs(3600);
/// How soon an address that is taken is tried again: another agent is about to leave it, or whoever has it ends.
const AGAIN: Duration = Duration::from_secs(1);

/// How often it is told that an address has too many connections, at most.
const TELL: Duration = Duration::from_secs(60);

/// What is asked for there.
const PATH: &str = "/metrics";

/// What clients are told.
#[derive(Clone)]
pub(super) struct Scrape {
    /// Whose, for the log.
    whose: Arc<str>,
    text: Arc<dyn Fn() -> Result<String, String> + Send + Sync>,
    turn: Arc<Semaphore>,
}

impl Scrape {
    /// What `text` makes, when it is this client's `turn`.
    pub(super) fn new(
        whose: Arc<str>,
        turn: Arc<Semaphore>,
        text: impl Fn() -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        Self { whose, text: Arc::new(text), turn }
    }

    /// Answers one client until it goes.
    pub(super) async fn serve(self, stream: TcpStream) {
        let asked = AtomicBool::new(false);
        let answer = service_fn(async |request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            Ok::<_, Infallible>(self.answer(&request).await)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), answer);
        tokio::pin!(connection);
        let ended = match tokio::time::timeout(FIRST, &mut connection).await {
            Err(_) if asked.load(Ordering::Relaxed) => tokio::time::timeout(LIFE, connection).await,
            ended => ended,
        };
        match ended {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => tracing::debug!(whose = &*self.whose, %error, "a client of metrics went wrong"),
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        if request.uri().path() != PATH {
            return told(StatusCode::NOT_FOUND, format!("metrics are at {PATH}\n"));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = told(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match self.text().await {
            Ok(text) => {
                let mut response = Response::new(text);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
                response
            }
            Err(error) => {
                tracing::error!(whose = &*self.whose, error, "metrics cannot be told");
                told(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the metrics cannot be told: see the agent's log\n".to_owned(),
                )
            }
        }
    }

    async fn text(&self) -> Result<String, String> {
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|error| error.to_string())?;
        let text = Arc::clone(&self.text);
        let making = tokio::task::spawn_blocking(move || {
            // The turn is over when the text is made, not when the client has gone.
            let _turn = turn;
            text()
        });
        making.await.map_err(|error| error.to_string())?
    }
}

fn told(status: StatusCode, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response
}

/// Serves a node's metrics at an address to whoever comes there, for as long as this is awaited.
pub(super) async fn at(address: SocketAddr, node: Arc<impl Node>) {
    let listener = listen_in_time(address).await;
    let scrape = Scrape::new("the node".into(), Arc::new(Semaphore::new(1)), move || Ok(node.metrics()));
    accept(listener, scrape).await;
}

async fn accept(listener: TcpListener, scrape: Scrape) {
    let (places, mut told) = (Places::new(CLIENTS, CLIENTS_EACH), None::<Instant>);
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if clients.len() < CLIENTS => match accepted {
                Ok((stream, peer)) => {
                    let address: IpAddr = peer.ip().to_canonical();
                    if let Some(place) = places.enter(address) {
                        let serving = scrape.clone().serve(stream);
                        drop(clients.spawn(async move {
                            serving.await;
                            drop(place);
                        }));
                    } else if told.is_none_or(|told| told.elapsed() >= TELL) {
                        told = Some(Instant::now());
                        tracing::warn!(%address, "has {CLIENTS_EACH} connections to the node's metrics already: closed");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a client of the node's metrics cannot be accepted");
                    tokio::time::sleep(AGAIN).await;
                }
            },
            Some(_) = clients.join_next(), if !clients.is_empty() => {}
        }
    }
}

/// Metrics are no reason for a node to be without an agent: what cannot be listened at is told, and tried again.
async fn listen_in_time(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match listen::listen(address).await {
            Ok(listener) => return listener,
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(%address, %error, "the node's metrics cannot be served yet; it is tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests;
