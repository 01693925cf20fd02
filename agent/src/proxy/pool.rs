//! Idle connections to other agents, kept for the next stream of the same pod to the same destination.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::ClientConfig;

use super::{
    environment::{PeerName, PodId, Standing},
    secure::Secure,
    settings::Settings,
};

/// Whose connection it is, where it leads, and who is at its ends.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PoolKey {
    /// The source pod.
    pub pod: PodId,
    /// The endpoint.
    pub destination: SocketAddr,
    /// The pod's own identity.
    pub own: PeerName,
    /// The identity that the server proved.
    pub expected: PeerName,
}

/// A connection and how it was made.
#[derive(Debug)]
pub struct Pooled {
    /// The connection; on the heap, so that it is not copied from future to future.
    pub secure: Box<Secure>,
    /// Its handshake; in a box, since connections' futures hold several of these.
    pub made: Box<Made>,
}

/// A handshake, and what both sides were believed by.
#[derive(Debug)]
pub struct Made {
    /// When it was.
    pub born: Instant,
    /// What the server was believed by.
    pub standing: Arc<dyn Standing>,
    /// What it was made with: after a renewal no stream begins on a connection with the old certificate.
    pub config: Arc<ClientConfig>,
}

impl Pooled {
    /// Whether it may carry another stream, as far as its age and its peer are concerned.
    fn may_go_on(&self, age: Duration) -> bool {
        self.made.born.elapsed() < age && self.made.standing.may_begin()
    }
}

#[derive(Debug)]
struct Idle {
    pooled: Pooled,
    since: Instant,
}

/// A worker's idle connections.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<HashMap<PoolKey, VecDeque<Idle>>>,
    count: Cell<usize>,
    limit: usize,
    per_key: usize,
    idle_timeout: Duration,
    age: Duration,
    closed: Cell<bool>,
}

impl Pool {
    pub fn new(settings: &Settings) -> Self {
        Self {
            idle: RefCell::default(),
            count: Cell::new(0),
            limit: settings.pooled,
            per_key: settings.pooled_per_destination,
            idle_timeout: settings.client_idle_timeout,
            age: settings.connection_age,
            closed: Cell::new(false),
        }
    }

    /// The connection of `key`, made with `config`, that was used last and that the kernel still holds for untouched.
    pub fn take(&self, key: &PoolKey, config: &Arc<ClientConfig>) -> Option<Pooled> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(key)?;
        let mut found = None;
        while let Some(candidate) = list.pop_back() {
            self.count.set(self.count.get() - 1);
            let usable =
                candidate.pooled.may_go_on(self.age) && Arc::ptr_eq(&candidate.pooled.made.config, config);
            if usable && candidate.pooled.secure.is_untouched() {
                found = Some(candidate.pooled);
                break;
            }
            candidate.pooled.secure.close();
        }
        if list.is_empty() {
            idle.remove(key);
        }
        found
    }

    /// Keeps a connection that may carry another stream; closes it where there is no room for it.
    pub fn put(&self, key: PoolKey, pooled: Pooled) {
        if self.closed.get() || !pooled.secure.is_reusable() || !pooled.may_go_on(self.age) {
            return pooled.secure.close();
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(key).or_default();
        if list.len() >= self.per_key {
            // The one that has been idle longest goes.
            if let Some(oldest) = list.pop_front() {
                self.count.set(self.count.get() - 1);
                oldest.pooled.secure.close();
            }
        } else if self.count.get() >= self.limit {
            return pooled.secure.close();
        }
        list.push_back(Idle { pooled, since: Instant::now() });
        self.count.set(self.count.get() + 1);
    }

    /// Closes those that were idle too long, are too old, or that the peer closed.
    pub fn sweep(&self) {
        self.close_unless(|_, idle| {
            idle.since.elapsed() < self.idle_timeout
                && idle.pooled.may_go_on(self.age)
                && idle.pooled.secure.is_untouched()
        });
    }

    /// Closes those of a pod.
    pub fn forget(&self, pod: PodId) {
        self.close_unless(|key, _| key.pod != pod);
    }

    /// Closes all, and whatever comes from now on.
    pub fn close(&self) {
        self.closed.set(true);
        self.close_unless(|_, _| false);
    }

    fn close_unless(&self, keep: impl Fn(&PoolKey, &Idle) -> bool) {
        self.idle.borrow_mut().retain(|key, list| {
            for idle in std::mem::take(list) {
                if keep(key, &idle) {
                    list.push_back(idle);
                } else {
                    self.count.set(self.count.get() - 1);
                    idle.pooled.secure.close();
                }
            }
            !list.is_empty()
        });
    }
}
