//! What the connections of one worker share, and how many of them there may be.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    net::IpAddr,
    rc::{Rc, Weak},
};

use heddle_ebpf::codes::Reason;
use tokio::net::TcpStream;

use super::{
    buffers::{Buffers, Quota, Supply},
    environment::{Environment, Flow, PodId, Refusal},
    polling::{Polling, Seats},
    pool::Pool,
    registry::Registry,
    settings::Settings,
    sockets::abort,
    turns::{Rounds, Share},
};

/// How many of something there are, and may be.
#[derive(Debug)]
struct Tally {
    counts: Rc<Counts>,
    limit: usize,
    limit_of_one: usize,
}

#[derive(Debug, Default)]
struct Counts {
    all: Cell<usize>,
    of_clients: RefCell<HashMap<IpAddr, usize>>,
}

impl Tally {
    /// `limit` in all, `limit_of_one` for one client.
    fn new(limit: usize, limit_of_one: usize) -> Self {
        Self { counts: Rc::default(), limit, limit_of_one: limit_of_one.max(1) }
    }

    /// One more, until it is dropped; `None`: a limit is reached.
    fn take(&self, client: Option<IpAddr>) -> Option<Held> {
        let counts = &*self.counts;
        if counts.all.get() >= self.limit {
            return None;
        }
        if let Some(client) = client {
            let mut of_clients = counts.of_clients.borrow_mut();
            let count = of_clients.entry(client).or_default();
            if *count >= self.limit_of_one {
                return None;
            }
            *count += 1;
        }
        counts.all.set(counts.all.get() + 1);
        Some(Held { counts: Rc::clone(&self.counts), client })
    }
}

/// One that is counted.
#[derive(Debug)]
pub struct Held {
    counts: Rc<Counts>,
    client: Option<IpAddr>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.counts.all.set(self.counts.all.get() - 1);
        let Some(client) = self.client else { return };
        let mut of_clients = self.counts.of_clients.borrow_mut();
        if let Some(count) = of_clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                of_clients.remove(&client);
            }
        }
    }
}

/// A pod's share of a worker.
#[derive(Debug)]
pub struct Pod {
    /// Which pod.
    pub id: PodId,
    /// Its buffers.
    pub supply: Supply,
    /// Its turns.
    pub share: Rc<Share>,
    /// Ports whose application answers the pod's own address alone.
    own_address_only: RefCell<HashSet<u16>>,
    connections: Tally,
    handshakes: Tally,
}

impl Pod {
    /// Whether the application on this port is to be reached from the pod's own address, as far as is known.
    pub fn own_address_only(&self, port: u16) -> bool {
        self.own_address_only.borrow().contains(&port)
    }

    /// Remembers whether the application on this port answers the pod's own address alone.
    pub fn set_own_address_only(&self, port: u16, only: bool) {
        let mut ports = self.own_address_only.borrow_mut();
        if only {
            ports.insert(port)
        } else {
            ports.remove(&port)
        };
    }
}

/// What a worker's connections share.
#[derive(Debug)]
pub struct Worker {
    /// The rest of the agent.
    pub environment: Environment,
    /// Bounds.
    pub settings: Settings,
    /// The tasks.
    pub registry: Rc<Registry>,
    /// Idle connections to other agents.
    pub pool: Pool,
    /// Whether it stays awake.
    pub polling: Polling,
    /// Pods take turns.
    pub rounds: Rc<Rounds>,
    buffers: Rc<Buffers>,
    /// Those that are served, and those that still have connections.
    pods: RefCell<HashMap<PodId, Weak<Pod>>>,
    connections: Tally,
    handshakes: Tally,
}

impl Worker {
    pub fn new(environment: Environment, settings: Settings, seats: Seats) -> Rc<Self> {
        Rc::new(Self {
            registry: Rc::default(),
            pool: Pool::new(&settings),
            polling: Polling::new(settings.poll, seats),
            rounds: Rc::default(),
            buffers: Buffers::new(settings.buffers),
            pods: RefCell::default(),
            connections: Tally::new(settings.connections, settings.connections),
            handshakes: Tally::new(settings.handshakes, settings.handshakes),
            environment,
            settings,
        })
    }

    /// The pod's share: the same for as long as anything of it is served, however often its listeners change.
    pub fn pod(&self, id: PodId) -> Rc<Pod> {
        let mut pods = self.pods.borrow_mut();
        if let Some(pod) = pods.get(&id).and_then(Weak::upgrade) {
            return pod;
        }
        pods.retain(|_, pod| pod.strong_count() > 0);
        let pod = Rc::new(Pod {
            id,
            supply: Supply {
                buffers: Rc::clone(&self.buffers),
                quota: Quota::new(self.settings.pod_buffers, self.settings.reserved_buffers),
            },
            share: self.rounds.share(),
            own_address_only: RefCell::default(),
            connections: Tally::new(self.settings.pod_connections, self.settings.pod_connections / 2),
            handshakes: Tally::new(self.settings.pod_handshakes, self.settings.pod_handshakes / 4),
        });
        pods.insert(id, Rc::downgrade(&pod));
        pod
    }

    /// Room for one more handshake, while this is held. `client`: who comes to the pod from outside.
    ///
    /// # Errors
    /// The worker's, the pod's or the client's bound is reached.
    pub fn handshake(&self, pod: &Pod, client: Option<IpAddr>) -> Result<(Held, Held), Refusal> {
        both(&self.handshakes, &pod.handshakes, client)
    }

    /// Room for one more connection, while this is held. `client`: as in [`Self::handshake`].
    ///
    /// # Errors
    /// As [`Self::handshake`].
    pub fn connection(&self, pod: &Pod, client: Option<IpAddr>) -> Result<(Held, Held), Refusal> {
        both(&self.connections, &pod.connections, client)
    }

    /// Gives buffers back that nobody needs now.
    pub fn trim(&self) {
        self.buffers.trim();
    }

    /// Tells of a connection that is not carried, and resets it.
    pub fn refuse(&self, flow: &Flow, refusal: &Refusal, stream: TcpStream) {
        self.environment.recorder.refused(flow, refusal);
        abort(stream);
    }
}

fn both(all: &Tally, pod: &Tally, client: Option<IpAddr>) -> Result<(Held, Held), Refusal> {
    match (all.take(None), pod.take(client)) {
        (Some(all), Some(pod)) => Ok((all, pod)),
        _ => Err(Refusal::new(Reason::LimitReached)),
    }
}
