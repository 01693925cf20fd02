//! What is in force is looked for in the kernel, and whoever takes it away is told of.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::{RwLock, broadcast};

use super::chores::replace;
use crate::{capture::Capture, cli::door::RepairStatus, proxy::Workers};

/// How often it is looked in the kernel whether what was put in force is there.
const LOOK: Duration = Duration::from_secs(1);
/// How many repairs of a pod are remembered for its status.
const REPAIRS: usize = 4;

/// What was taken away behind the agent's back of late, by the pod's cookie.
#[derive(Default)]
pub(super) struct Repairs(Mutex<BTreeMap<u64, VecDeque<RepairStatus>>>);

impl Repairs {
    /// Of one pod, the latest last.
    pub fn of(&self, cookie: u64) -> Vec<RepairStatus> {
        self.lock().get(&cookie).map(|repairs| repairs.iter().cloned().collect()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, VecDeque<RepairStatus>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts back what somebody takes away from under the agent, and says so.
pub(super) async fn look_after(
    capture: Arc<Capture>,
    repairs: Arc<Repairs>,
    workers: Arc<RwLock<Option<Workers>>>,
    lines: broadcast::Sender<Arc<str>>,
) {
    loop {
        tokio::time::sleep(LOOK).await;
        if workers.read().await.is_none() {
            // The agent ends: its listeners are closed on purpose.
            return;
        }
        let looking = Arc::clone(&capture);
        let look = move || (looking.forget_closed_ports(), looking.repair());
        let Ok((forgotten, repaired)) = tokio::task::spawn_blocking(look).await else { continue };
        if let Err(error) = forgotten {
            tracing::warn!(%error, "ports on which nobody listens cannot be forgotten");
        }
        let mut told = Vec::new();
        for mut repair in repaired {
            let listeners = std::mem::take(&mut repair.listeners);
            if !listeners.is_empty() {
                replace(&capture, &workers, repair.pod.namespace.cookie(), listeners).await;
            }
            told.push(repair);
        }
        let mut known = repairs.lock();
        known.retain(|cookie, _| capture.pod(*cookie).is_some());
        for repair in told {
            let known = known.entry(repair.pod.namespace.cookie()).or_default();
            let now = RepairStatus {
                time: OffsetDateTime::now_utc(),
                missing: repair.missing,
                failed: repair.failed,
            };
            // As long as it fails it is tried again: told once.
            if known.back().is_some_and(|last| last.failed.is_some() && last.failed == now.failed) {
                continue;
            }
            tell_repair(&repair.pod.name(), &now, &lines);
            known.push_back(now);
            if known.len() > REPAIRS {
                known.pop_front();
            }
        }
    }
}

fn tell_repair(pod: &str, repair: &RepairStatus, lines: &broadcast::Sender<Arc<str>>) {
    let missing = repair.missing.join("; ");
    let sentence = match &repair.failed {
        None => format!("was taken away behind the agent's back and is in force again: {missing}"),
        Some(error) => {
            format!("was taken away behind the agent's back: {missing}; the pod is cut off, for: {error}")
        }
    };
    tracing::error!(pod, "{sentence}");
    let event = serde_json::json!({
        "time": repair.time.format(&Rfc3339).unwrap_or_default(),
        "hook": "upkeep", "outcome": if repair.failed.is_none() { "repair" } else { "refuse" },
        "reason": "capture_taken_away", "pod": pod, "sentence": sentence,
    });
    // Nobody listening is no error.
    drop(lines.send(event.to_string().into()));
}
