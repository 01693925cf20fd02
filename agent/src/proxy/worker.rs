//! What the connections of one worker share, and how many of them there may be.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    rc::Rc,
};

use heddle_ebpf::codes::Reason;
use tokio::net::TcpStream;

use super::{
    buffers::{Buffers, Quota},
    environment::{Environment, Flow, PodId, Refusal},
    polling::{Polling, Seats},
    pool::Pool,
    registry::Registry,
    secure::Supply,
    settings::Settings,
    sockets::abort,
    turns::{Rounds, Share},
};

/// How many of something there are, and may be.
#[derive(Debug)]
pub struct Tally {
    count: Rc<Cell<usize>>,
    limit: usize,
}

impl Tally {
    fn new(limit: usize) -> Self {
        Self { count: Rc::default(), limit }
    }

    /// One more, until it is dropped; `None`: the limit is reached.
    pub fn take(&self) -> Option<Held> {
        if self.count.get() >= self.limit {
            return None;
        }
        self.count.set(self.count.get() + 1);
        Some(Held(Rc::clone(&self.count)))
    }
}

/// One that is counted.
#[derive(Debug)]
pub struct Held(Rc<Cell<usize>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
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
            connections: Tally::new(settings.connections),
            handshakes: Tally::new(settings.handshakes),
            environment,
            settings,
        })
    }

    pub fn pod(&self, id: PodId) -> Rc<Pod> {
        Rc::new(Pod {
            id,
            supply: Supply {
                buffers: Rc::clone(&self.buffers),
                quota: Quota::new(self.settings.pod_buffers),
            },
            share: self.rounds.share(),
            own_address_only: RefCell::default(),
            connections: Tally::new(self.settings.pod_connections),
            handshakes: Tally::new(self.settings.pod_handshakes),
        })
    }

    /// Room for one more handshake, while this is held.
    ///
    /// # Errors
    /// The worker's or the pod's bound is reached.
    pub fn handshake(&self, pod: &Pod) -> Result<(Held, Held), Refusal> {
        both(&self.handshakes, &pod.handshakes)
    }

    /// Room for one more connection, while this is held.
    ///
    /// # Errors
    /// The worker's or the pod's bound is reached.
    pub fn connection(&self, pod: &Pod) -> Result<(Held, Held), Refusal> {
        both(&self.connections, &pod.connections)
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

fn both(all: &Tally, pod: &Tally) -> Result<(Held, Held), Refusal> {
    match (all.take(), pod.take()) {
        (Some(all), Some(pod)) => Ok((all, pod)),
        _ => Err(Refusal::new(Reason::LimitReached)),
    }
}
