//! Refusals and drops as they happen, from the kernel's ring buffer and from the agent itself, told to whoever listens.
//!
//! Nobody who listens slowly holds anything up: the queue is bounded, and a laggard is told how many events it missed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use tokio::sync::broadcast;

mod decode;

pub use decode::{Malformed, decode, monotonic_epoch};

use super::{
    audit::Audit,
    record::{EventRecord, Names, Occurrence},
};

/// What a listener hears next.
#[derive(Clone, Debug)]
pub enum Told {
    /// An event.
    Event(Arc<EventRecord>),
    /// So many events came faster than they were read, and are lost to this listener.
    Missed(u64),
}

/// Where events are told.
pub struct Events {
    node: Arc<str>,
    names: Arc<dyn Names>,
    sender: broadcast::Sender<Arc<EventRecord>>,
    told: AtomicU64,
    malformed: AtomicU64,
    missed: Arc<AtomicU64>,
    audit: Audit,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("node", &self.node)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// How many events there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EventCounts {
    /// Events told.
    pub told: u64,
    /// Byte strings from the ring buffer that are no event.
    pub malformed: u64,
    /// Events that slow listeners missed, together.
    pub missed: u64,
    /// Refusals that the audit log had no room for.
    pub unlogged: u64,
}

impl Events {
    /// Events of `node`; each listener may be `capacity` events behind.
    pub fn new(node: &str, names: Arc<dyn Names>, capacity: usize) -> Self {
        Self {
            node: node.into(),
            names,
            sender: broadcast::Sender::new(capacity.clamp(1, 1 << 16)),
            told: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            missed: Arc::new(AtomicU64::new(0)),
            audit: Audit::default(),
        }
    }

    /// Takes one item of the kernel's ring buffer. `epoch` is [`monotonic_epoch`], asked for now and then.
    ///
    /// # Errors
    /// Bytes that are no event: counted, and told to nobody.
    pub fn kernel(&self, bytes: &[u8], epoch: SystemTime) -> Result<(), Malformed> {
        match decode(bytes, epoch, self.names.as_ref()) {
            Ok(occurrence) => {
                self.tell(occurrence);
                Ok(())
            }
            Err(malformed) => {
                self.malformed.fetch_add(1, Ordering::Relaxed);
                Err(malformed)
            }
        }
    }

    /// Tells of something; names that the teller does not know are looked up.
    pub fn tell(&self, occurrence: Occurrence) {
        let record = Arc::new(EventRecord::new(&self.node, occurrence, self.names.as_ref()));
        self.told.fetch_add(1, Ordering::Relaxed);
        self.audit.refusal(&record, Instant::now());
        // Nobody listening is no error.
        let _ = self.sender.send(record);
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> Listener {
        Listener { receiver: self.sender.subscribe(), missed: Arc::clone(&self.missed) }
    }

    /// How many there were.
    pub fn counts(&self) -> EventCounts {
        EventCounts {
            told: self.told.load(Ordering::Relaxed),
            malformed: self.malformed.load(Ordering::Relaxed),
            missed: self.missed.load(Ordering::Relaxed),
            unlogged: self.audit.left_out(),
        }
    }
}

/// One who listens.
#[derive(Debug)]
pub struct Listener {
    receiver: broadcast::Receiver<Arc<EventRecord>>,
    missed: Arc<AtomicU64>,
}

impl Listener {
    /// The next event, or how many were missed; `None`: there will be no more. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Told> {
        match self.receiver.recv().await {
            Ok(event) => Some(Told::Event(event)),
            Err(broadcast::error::RecvError::Lagged(count)) => {
                self.missed.fetch_add(count, Ordering::Relaxed);
                Some(Told::Missed(count))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests;
