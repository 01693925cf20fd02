//! Accepting callers, within bounds.

use super::{
    Door,
    bounds::{Bounds, Counts},
    caller::{Caller, Own, Refusal},
    routes::{Followed, Shared, router},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
};

/// The door's server.
pub struct Server<D> {
    shared: Arc<Shared<D>>,
    own: Own,
    callers: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    told: Mutex<Option<Instant>>,
}

impl<D: Door> Server<D> {
    /// A server for what is behind the door.
    ///
    /// # Errors
    /// If the agent's own namespaces cannot be read.
    pub fn new(door: D, bounds: Bounds) -> std::io::Result<Self> {
        let (counts, streams) = (Arc::default(), Arc::new(Semaphore::new(bounds.streams)));
        Ok(Self {
            shared: Arc::new(Shared { door, bounds, counts, streams }),
            own: Own::read()?,
            callers: Arc::new(Semaphore::new(bounds.connections)),
            refused: Arc::new(Semaphore::new(8)),
            told: Mutex::new(None),
        })
    }

    /// What happened at the door so far, for metrics.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.shared.counts)
    }

    /// Serves until `stop` becomes true or its sender is gone.
    pub async fn run(self, listener: UnixListener, mut stop: watch::Receiver<bool>) {
        let app = router(Arc::clone(&self.shared));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, _)) => self.answer(stream, &app),
                // Out of descriptors or memory: it passes, and the door stays.
                Err(error) => {
                    tracing::warn!(%error, "a caller at the door could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn answer(&self, stream: UnixStream, app: &axum::Router) {
        match self.own.admit(&stream) {
            Ok(caller) => match Arc::clone(&self.callers).try_acquire_owned() {
                Ok(permit) => {
                    let (bounds, counts) = (self.shared.bounds, Arc::clone(&self.shared.counts));
                    let app = app.clone();
                    tokio::spawn(async move {
                        converse(stream, app, caller, bounds, &counts).await;
                        drop(permit);
                    });
                }
                Err(_) => {
                    self.shared.counts.add("refused_too_many");
                    let message =
                        format!("{} callers are at the door already", self.shared.bounds.connections);
                    self.turn_away(stream, "503 Service Unavailable", "too_many", message, "try again");
                }
            },
            Err(refusal) => self.refuse(stream, refusal),
        }
    }

    fn refuse(&self, stream: UnixStream, refusal: Refusal) {
        self.shared.counts.add(&format!("refused_{}", refusal.as_str()));
        // Somebody in a pod could fill the log by asking again and again: the counters tell how often.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
            *told = Some(Instant::now());
            tracing::warn!(reason = refusal.as_str(), %refusal, "a caller at the door was refused");
        }
        drop(told);
        let remedy = "ask as root on the node itself, in the agent's own pid and user namespaces";
        self.turn_away(stream, "403 Forbidden", "caller_refused", refusal.to_string(), remedy);
    }

    /// Says no without reading a byte, and leaves the caller a moment to hear it.
    fn turn_away(
        &self,
        mut stream: UnixStream,
        status: &'static str,
        code: &'static str,
        error: String,
        remedy: &'static str,
    ) {
        let Ok(permit) = Arc::clone(&self.refused).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let body =
                serde_json::json!({"error": error, "code": code, "field": "", "remedy": remedy}).to_string();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let said = async {
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await?;
                // Closing with bytes unread would reset what the caller is still sending.
                let mut sink = [0; 4096];
                while stream.read(&mut sink).await? > 0 {}
                std::io::Result::Ok(())
            };
            if !matches!(tokio::time::timeout(Duration::from_millis(250), said).await, Ok(Ok(()))) {
                tracing::debug!("a caller that was refused did not listen");
            }
            drop(permit);
        });
    }
}

async fn converse(stream: UnixStream, app: axum::Router, caller: Caller, bounds: Bounds, counts: &Counts) {
    let following = watch::Sender::new(false);
    let follows = following.subscribe();
    let app = app.layer(axum::middleware::map_response(move |answer: axum::response::Response| {
        if answer.extensions().get::<Followed>().is_some() {
            following.send_replace(true);
        }
        std::future::ready(answer)
    }));
    let conversation = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_time)
        .max_buf_size(bounds.head_bytes)
        .max_headers(32)
        // One request a connection: nothing lingers.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(conversation);
    let ended = match tokio::time::timeout(bounds.connection_time, &mut conversation).await {
        Err(_) if *follows.borrow() => conversation.await,
        Err(_) => {
            counts.add("timed_out");
            tracing::warn!(
                pid = caller.pid,
                "a caller at the door took longer than {:?}",
                bounds.connection_time
            );
            return;
        }
        Ok(ended) => ended,
    };
    if let Err(error) = ended {
        // hyper has answered what is no HTTP with a 400 already.
        let kind = if error.is_timeout() {
            "timed_out"
        } else if error.is_parse() || error.is_parse_too_large() {
            "no_http"
        } else {
            "broken_off"
        };
        counts.add(kind);
        tracing::debug!(pid = caller.pid, uid = caller.uid, kind, %error, "a caller at the door was not understood");
    }
}
