//! What a caller at the door may take, and how often something happened there.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// What a caller may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Callers at a time.
    pub connections: usize,
    /// Of these, callers that follow events or flows.
    pub streams: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Time for a request's head.
    pub head_time: Duration,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Time for a request's body.
    pub body_time: Duration,
    /// Time for the work itself; it goes on, but the caller is told.
    pub work_time: Duration,
    /// Time for a whole connection, save one that follows events or flows.
    pub connection_time: Duration,
    /// How long what is followed may be silent before an empty line is sent.
    pub quiet: Duration,
}

impl Default for Bounds {
    /// A CNI plugin is given tens of seconds by the kubelet; an attach takes tens of milliseconds.
    fn default() -> Self {
        Self {
            connections: 64,
            streams: 16,
            head_bytes: 16 << 10,
            head_time: Duration::from_secs(2),
            body_bytes: 64 << 10,
            body_time: Duration::from_secs(2),
            work_time: Duration::from_secs(20),
            connection_time: Duration::from_secs(30),
            quiet: Duration::from_secs(15),
        }
    }
}

/// How often something happened at the door, by name.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<String, u64>>);

impl Counts {
    pub(super) fn add(&self, name: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Names come from this program alone; a caller cannot make new ones.
        *counts.entry(name.to_owned()).or_default() += 1;
    }

    /// All of them.
    pub fn read(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
