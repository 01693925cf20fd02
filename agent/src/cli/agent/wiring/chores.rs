//! What goes on beside the pods' connections for as long as the agent runs.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use heddle_identity::Store;
use heddle_policy::Compiled;
use tokio::sync::{RwLock, broadcast, oneshot, watch};

use super::{super::Before, listening::by_worker, pods::Pods, recorder::Told};
use crate::{
    capture::{Capture, PodListener},
    cluster::snapshot::SnapshotReader,
    observe::{
        events::{Events, Told as Heard},
        flows::FlowBook,
        metrics::Metrics,
    },
    proxy::{Workers, environment::PodId},
};

/// How often it is looked whether captured pods' namespaces are still there.
const SWEEP: Duration = Duration::from_millis(250);
/// How often free memory is given back.
const MEMORY: Duration = Duration::from_secs(5);
/// How long renewals are gathered before connections look at their certificates.
const SETTLED: Duration = Duration::from_millis(200);
/// How long an agent before this one may take to close its listeners in a pod: the application waits for a second.
const CLOSES: Duration = Duration::from_millis(500);

/// Puts the pod's listeners on other ports, then lets the application that waits go on.
pub(super) async fn give_way(
    capture: &Capture,
    workers: &RwLock<Option<Workers>>,
    before: &Mutex<Option<Before>>,
    cookie: u64,
    port: u16,
) {
    let moved = match capture.move_listeners(cookie, port) {
        Ok(Some(moved)) => moved,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(port, %error, "cannot give way to an application's bind");
            return;
        }
    };
    let name = moved.pod.name();
    // An agent before this one may still have listeners in the pod.
    let asked = before.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(before) = asked {
        let (done, closed) = oneshot::channel();
        if before.send((cookie, done)).is_ok() && tokio::time::timeout(CLOSES, closed).await.is_err() {
            tracing::warn!(pod = name, "the agent before this one does not close its listeners");
        }
    }
    replace(capture, workers, cookie, moved.listeners).await;
    tracing::info!(pod = name, port, "gave way to an application");
}

/// Gives new listeners of a pod's to the workers, which close those that they had.
pub(super) async fn replace(
    capture: &Capture,
    workers: &RwLock<Option<Workers>>,
    cookie: u64,
    listeners: Vec<PodListener>,
) {
    let kept: HashSet<u16> =
        listeners.iter().filter_map(|listener| Some(listener.socket.local_addr().ok()?.port())).collect();
    if let Some(workers) = workers.read().await.as_ref()
        && let Err(error) = workers.attach(by_worker(PodId(cookie), listeners, workers.count())).await
    {
        tracing::error!(pod = cookie, %error, "the pod's listeners are lost: its connections are refused");
    }
    capture.gave_way(cookie, &kept);
}

/// Puts events into lines for the door, and refusals into the book of flows.
pub(super) async fn tell(events: Arc<Events>, lines: broadcast::Sender<Arc<str>>, flows: Arc<FlowBook>) {
    let mut listener = events.subscribe();
    while let Some(heard) = listener.next().await {
        match &heard {
            Heard::Event(record) => flows.refused(record),
            Heard::Missed(count) => flows.lost(*count),
        }
        let line = match heard {
            Heard::Event(record) => serde_json::to_string(&*record),
            Heard::Missed(count) => serde_json::to_string(&serde_json::json!({ "lost": count })),
        };
        match line {
            // Nobody listening is no error.
            Ok(line) => drop(lines.send(line.into())),
            Err(error) => tracing::error!(%error, "an event cannot be written"),
        }
    }
}

/// After each change: live connections that the rules no longer allow end, those of the kernel's own here, those of
/// the proxy by the number that it watches.
pub(super) async fn judge_again(
    capture: Arc<Capture>,
    rules: SnapshotReader<Compiled>,
    changed: Arc<watch::Sender<u64>>,
    told: Arc<Told>,
) {
    let mut publications = rules.watch();
    loop {
        publications.mark_unchanged();
        changed.send_modify(|changes| *changes += 1);
        let capture = Arc::clone(&capture);
        match tokio::task::spawn_blocking(move || capture.end_revoked()).await {
            Ok(Ok(ended)) => ended.iter().for_each(|ended| told.revoked(ended)),
            Ok(Err(error)) => {
                tracing::error!(%error, "live connections could not be judged again; the guard drops them")
            }
            Err(error) => tracing::error!(%error, "judging live connections failed within the agent"),
        }
        if publications.changed().await.is_err() {
            return;
        }
    }
}

/// After each change of the anchors live connections whose peers are believed no longer end; after a renewal idle ones
/// with the old certificate do.
pub(super) async fn believe_again(store: Arc<Store>, changed: Arc<watch::Sender<u64>>) {
    let (mut trust, mut renewals) = (store.trust().watch(), store.renewals());
    loop {
        tokio::select! {
            Ok(()) = trust.changed() => {}
            Ok(()) = renewals.changed() => {
                // A node's certificates are renewed together: all connections look once.
                tokio::time::sleep(SETTLED).await;
                renewals.mark_unchanged();
            }
            else => return,
        }
        changed.send_modify(|changes| *changes += 1);
    }
}

/// Takes away what belongs to pods whose namespace is gone.
pub(super) async fn sweep(
    capture: Arc<Capture>,
    pods: Arc<Pods>,
    metrics: Arc<Metrics>,
    workers: Arc<RwLock<Option<Workers>>>,
) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let sweeping = Arc::clone(&capture);
        let Ok(gone) = tokio::task::spawn_blocking(move || sweeping.sweep()).await else { continue };
        for pod in &gone {
            tracing::info!(
                name = pod.name(),
                "its network namespace's path leads there no longer: it passes nothing until the namespace is gone"
            );
        }
        // Also whom another took the name of. Whoever is known here was captured before.
        let known = pods.all().into_iter().map(|entry| (PodId(entry.captured.namespace.cookie()), entry));
        for (id, entry) in known.filter(|(id, _)| capture.pod(id.0).is_none()) {
            pods.remove(id);
            metrics.forget_pod(&entry.name);
            if let Some(workers) = workers.read().await.as_ref() {
                workers.detach(id).await;
            }
        }
    }
}

/// Now and then, and first when what the start took is no longer needed.
pub(super) async fn give_memory_back() {
    tokio::time::sleep(MEMORY).await;
    crate::capture::let_go_of_text();
    loop {
        if let Err(error) = tokio::task::spawn_blocking(crate::capture::give_memory_back).await {
            tracing::debug!(%error, "memory was not given back");
        }
        tokio::time::sleep(MEMORY).await;
    }
}

/// Whether every worker made progress within a bound, asked every so often. What counts is how often a worker was seen to stand still and
/// not the time that went by: where the whole machine stood still, nobody hangs.
pub(super) fn liveness(
    workers: Arc<RwLock<Option<Workers>>>,
    bound: Duration,
) -> impl FnMut(Duration) -> bool + Send + 'static {
    let mut seen: Vec<(u64, Duration)> = Vec::new();
    move |period| {
        // While a pod is being attached the lock may be held: readers share it.
        let Ok(workers) = workers.try_read() else { return true };
        let Some(workers) = workers.as_ref() else { return false };
        let beats = workers.beats();
        seen.resize(beats.len(), (u64::MAX, Duration::ZERO));
        for ((last, still), beat) in seen.iter_mut().zip(beats) {
            *still = if *last == beat { still.saturating_add(period) } else { Duration::ZERO };
            *last = beat;
        }
        let alive = seen.iter().all(|(_, still)| *still < bound);
        if !alive {
            tracing::error!("a worker of the data plane hangs: the kernel refuses what it would carry");
        }
        alive
    }
}
