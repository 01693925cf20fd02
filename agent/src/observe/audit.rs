//! The audit log: every refusal as a structured record of `tracing`, under a target of its own.
//!
//! Bounded, so that a pod that knocks without pause fills no disk and drowns nobody else's refusals: what is over the
//! bound is counted, and the log says how many were left out. Events and metrics have them all.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::record::EventRecord;

/// The target to select in a filter: `heddle::audit=info`.
pub const TARGET: &str = "heddle::audit";

/// What the bounds are counted over.
const WINDOW: Duration = Duration::from_secs(1);
/// Refusals of one pod in a window.
const OF_ONE_POD: u32 = 20;
/// Refusals of all pods in a window.
const OF_ALL: u32 = 500;

/// The log, and what was left out of it.
#[derive(Debug, Default)]
pub struct Audit {
    window: Mutex<Window>,
    left_out: AtomicU64,
}

/// What was logged since `began`, by pod.
#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    of_pods: HashMap<Option<Arc<str>>, u32>,
    logged: u32,
    left_out: u64,
}

/// What becomes of a refusal.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    /// It is logged, after word of what was left out before.
    Logged { left_out_before: u64 },
    /// It is the window's first to be left out.
    FirstLeftOut,
    /// It is counted.
    LeftOut,
}

impl Window {
    fn enter(&mut self, pod: Option<&Arc<str>>, now: Instant) -> Entry {
        let mut left_out_before = 0;
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            left_out_before = self.left_out;
            *self = Self { began: Some(now), ..Self::default() };
        }
        if self.logged < OF_ALL {
            let of_pod = self.of_pods.entry(pod.cloned()).or_default();
            if *of_pod < OF_ONE_POD {
                *of_pod += 1;
                self.logged += 1;
                return Entry::Logged { left_out_before };
            }
        }
        self.left_out += 1;
        if self.left_out == 1 { Entry::FirstLeftOut } else { Entry::LeftOut }
    }
}

impl Audit {
    /// Logs `record` if it tells of a refusal and there is room for it.
    pub fn refusal(&self, record: &EventRecord, now: Instant) {
        if !record.is_refusal() {
            return;
        }
        let entry = {
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            window.enter(record.pod.as_ref(), now)
        };
        match entry {
            Entry::Logged { left_out_before } => {
                if left_out_before > 0 {
                    tracing::warn!(
                        target: TARGET,
                        left_out = left_out_before,
                        "{left_out_before} refusals were left out of this log; events and metrics have them"
                    );
                }
                log(record);
            }
            Entry::FirstLeftOut => {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    target: TARGET,
                    pod = record.pod.as_deref(),
                    "more refusals than are logged in a second: the rest is counted"
                );
            }
            Entry::LeftOut => {
                self.left_out.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How many refusals were left out of the log.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}

fn log(record: &EventRecord) {
    tracing::info!(
        target: TARGET,
        node = &*record.node,
        pod = record.pod.as_deref(),
        hook = record.hook,
        outcome = record.outcome,
        reason = record.reason,
        rule = record.rule.as_deref(),
        generation = record.generation,
        source = %record.source.address,
        source_port = record.source.port,
        source_workload = record.source.workload.as_deref(),
        source_identity = record.source.identity.as_deref(),
        destination = %record.destination.address,
        destination_port = record.destination.port,
        destination_workload = record.destination.workload.as_deref(),
        destination_identity = record.destination.identity.as_deref(),
        protocol = &*record.protocol,
        command = record.command.as_deref(),
        pid = record.pid,
        "{}",
        record.sentence
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_s_flood_leaves_room_for_the_others_and_is_counted() {
        let mut window = Window::default();
        let (flooding, quiet): (Arc<str>, Arc<str>) = ("shop/loud".into(), "shop/quiet".into());
        let start = Instant::now();
        let mut entered = Vec::new();
        for _ in 0..OF_ONE_POD + 100 {
            entered.push(window.enter(Some(&flooding), start));
        }
        let logged = |entry: &&Entry| matches!(entry, Entry::Logged { .. });
        assert_eq!(entered.iter().filter(logged).count(), OF_ONE_POD as usize);
        assert_eq!(entered.iter().filter(|entry| **entry == Entry::FirstLeftOut).count(), 1);
        assert_eq!(window.enter(Some(&quiet), start), Entry::Logged { left_out_before: 0 });
        // The next second has room again, and begins with what was left out.
        let next = start + WINDOW;
        assert_eq!(window.enter(Some(&flooding), next), Entry::Logged { left_out_before: 100 });
        assert_eq!(window.enter(Some(&flooding), next), Entry::Logged { left_out_before: 0 });
    }

    #[test]
    fn all_pods_together_are_bounded() {
        let (mut window, now) = (Window::default(), Instant::now());
        let pods: Vec<Arc<str>> = (0..OF_ALL).map(|number| format!("shop/p{number}").into()).collect();
        for pod in &pods {
            assert_eq!(window.enter(Some(pod), now), Entry::Logged { left_out_before: 0 });
        }
        assert_eq!(window.enter(Some(&pods[0]), now), Entry::FirstLeftOut);
        assert_eq!(window.enter(None, now), Entry::LeftOut);
    }
}
