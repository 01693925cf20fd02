//! Callers, accepted within bounds; who they are is for each call to ask.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    attest::{Caller, Pods},
    counts::Counts,
};
use crate::cli::{patience::Patient, placed::Placed, places::Places};

/// Connections in all.
const CONNECTIONS: usize = 2048;
/// Connections from one pod; as many from all network namespaces that are no captured pod's.
const CONNECTIONS_EACH: usize = 32;

/// How long a caller has from its connection until one of its calls is attested. A client connects when it has something
/// to ask, and connects anew when it is closed.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// Whose places a connection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    /// A captured pod's, by the cookie of its network namespace.
    Pod(u64),
    /// Nobody's who would be answered. A process can make as many network namespaces as it likes: they share.
    Strangers,
}

impl Whose {
    fn of(cookie: u64, pods: &impl Pods) -> Self {
        pods.pod(cookie).map_or(Self::Strangers, |_| Self::Pod(cookie))
    }
}

/// A caller's connection.
pub(super) type Connection = Placed<Patient<UnixStream>, Arc<Caller>, Whose>;

/// Tells of refusals, at most one a second: somebody in a pod could fill the log.
#[derive(Debug)]
pub(super) struct Teller {
    counts: Arc<Counts>,
    told: Mutex<Option<Instant>>,
}

impl Teller {
    pub(super) fn new(counts: Arc<Counts>) -> Self {
        Self { counts, told: Mutex::new(None) }
    }

    pub(super) fn refused(&self, reason: &'static str, pid: u32, why: &str) {
        self.counts.refused(reason);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
            *told = Some(Instant::now());
            tracing::warn!(target: "heddle::workload_api", reason, pid, "a caller was refused: {why}");
        }
    }
}

/// Accepts for ever, and lets nobody be silent for longer than `silence`.
pub(super) fn connections(
    listener: UnixListener,
    pods: Arc<impl Pods>,
    silence: Duration,
    teller: Arc<Teller>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        let places = Places::new(CONNECTIONS, CONNECTIONS_EACH);
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    // Out of descriptors or memory: it passes, and the socket stays.
                    Err(error) => {
                        tracing::warn!(%error, "a workload's call could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = ready.closed() => return,
            };
            match Caller::of(&stream) {
                Ok(caller) => match places.enter(Whose::of(caller.cookie(), &*pods)) {
                    Some(place) => {
                        let caller = Arc::new(caller);
                        let stream = Patient::new(stream, caller.is_kept(), silence);
                        let connection = Placed::new(stream, caller, place);
                        // Gone: the agent ends.
                        let _ = ready.send(Ok(connection)).await;
                    }
                    // Closing at once is the answer.
                    None => teller.refused("too_many", caller.pid(), "it has too many connections"),
                },
                Err(refusal) => teller.refused(refusal.as_str(), 0, &refusal.to_string()),
            }
        }
    });
    ReceiverStream::new(connections)
}

#[cfg(test)]
mod tests;
