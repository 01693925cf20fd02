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

/// A pod's, by where they lead.
type OfPod = HashMap<PoolKey, VecDeque<Idle>>;

/// A worker's idle connections.
#[derive(Debug)]
pub struct Pool {
    pods: RefCell<HashMap<PodId, (usize, OfPod)>>,
    limit: usize,
    per_key: usize,
    idle_timeout: Duration,
    age: Duration,
    closed: Cell<bool>,
}

impl Pool {
    pub fn new(settings: &Settings) -> Self {
        Self {
            pods: RefCell::default(),
            limit: settings.pooled,
            per_key: settings.pooled_per_destination,
            idle_timeout: settings.client_idle_timeout,
            age: settings.connection_age,
            closed: Cell::new(false),
        }
    }

    /// The connection of `key`, made with `config`, that was used last and that the kernel still holds for untouched.
    pub fn take(&self, key: &PoolKey, config: &Arc<ClientConfig>) -> Option<Pooled> {
        let mut pods = self.pods.borrow_mut();
        let (count, lists) = pods.get_mut(&key.pod)?;
        let list = lists.get_mut(key)?;
        let mut found = None;
        while let Some(candidate) = list.pop_back() {
            *count -= 1;
            let usable =
                candidate.pooled.may_go_on(self.age) && Arc::ptr_eq(&candidate.pooled.made.config, config);
            if usable && candidate.pooled.secure.is_untouched() {
                found = Some(candidate.pooled);
                break;
            }
            candidate.pooled.secure.close();
        }
        if list.is_empty() {
            lists.remove(key);
        }
        found
    }

    /// Keeps a connection that may carry another stream. Where there is no room, one of the pod that has most goes for it.
    pub fn put(&self, key: PoolKey, pooled: Pooled) {
        if self.closed.get() || !pooled.secure.is_reusable() || !pooled.may_go_on(self.age) {
            return pooled.secure.close();
        }
        let mut pods = self.pods.borrow_mut();
        let (count, lists) = pods.entry(key.pod).or_default();
        if lists.get(&key).is_some_and(|list| list.len() >= self.per_key) {
            // The one that has been idle longest goes.
            close_one(count, lists, Some(&key));
        } else {
            let own = *count;
            if pods.values().map(|(count, _)| count).sum::<usize>() >= self.limit {
                match pods.values_mut().max_by_key(|(count, _)| *count) {
                    Some((count, lists)) if *count > own => close_one(count, lists, None),
                    _ => return pooled.secure.close(),
                }
            }
        }
        let (count, lists) = pods.entry(key.pod).or_default();
        *count += 1;
        lists.entry(key).or_default().push_back(Idle { pooled, since: Instant::now() });
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
        self.pods.borrow_mut().retain(|_, (count, lists)| {
            lists.retain(|key, list| {
                for idle in std::mem::take(list) {
                    if keep(key, &idle) {
                        list.push_back(idle);
                    } else {
                        *count -= 1;
                        idle.pooled.secure.close();
                    }
                }
                !list.is_empty()
            });
            *count > 0
        });
    }
}

/// Closes a pod's connection that has been idle longest of those of `key`, or of one of its destinations.
fn close_one(count: &mut usize, lists: &mut OfPod, key: Option<&PoolKey>) {
    let list = match key {
        Some(key) => lists.get_mut(key),
        None => lists.values_mut().find(|list| !list.is_empty()),
    };
    if let Some(oldest) = list.and_then(VecDeque::pop_front) {
        *count -= 1;
        oldest.pooled.secure.close();
    }
}
