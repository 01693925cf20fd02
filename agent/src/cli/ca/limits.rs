//! Bounds: whoever asks too much is refused, and nobody else notices.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use governor::{Quota, RateLimiter, clock::DefaultClock, state::keyed::HashMapStateStore};

/// What an authority takes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address: an agent needs one, and a rollout has two agents on a node.
    pub connections_per_address: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a connection may go on without a token that is believed: its place is not held by silence.
    pub silence: Duration,
    /// How long a connection may live: agents come back, and are spread over the replicas anew.
    pub connection_age: Duration,
    /// How long a request may take.
    pub request: Duration,
    /// Bytes of a request.
    pub request_bytes: usize,
    /// Requests at once on one connection.
    pub at_once_per_connection: u32,
    /// Tokens that are looked at at once on connections on which one was believed.
    pub at_once: usize,
    /// And on all other connections, in all and from one address; of each connection one at a time.
    pub strangers_at_once: (usize, usize),
    /// Requests on those that wait for their turn, in all and from one address.
    pub strangers_waiting: (usize, usize),
    /// Tokens from one address that are looked at on connections on which none was believed yet, a second, and how many
    /// at first. An agent needs one for each connection.
    pub strangers_per_address: Rate,
    /// Certificates for one node, a second, and how many at first: a node's pods at its agent's start.
    pub issued_per_node: Rate,
}

/// So many a second, and so many at first.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// A second.
    pub per_second: u32,
    /// At first.
    pub burst: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 16,
            handshake: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            connection_age: Duration::from_secs(600),
            request: Duration::from_secs(15),
            request_bytes: 16 * 1024,
            at_once_per_connection: 64,
            at_once: 256,
            strangers_at_once: (64, 4),
            strangers_waiting: (1024, 64),
            strangers_per_address: Rate { per_second: 1, burst: 60 },
            issued_per_node: Rate { per_second: 50, burst: 2000 },
        }
    }
}

impl Rate {
    fn quota(self) -> Quota {
        let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        Quota::per_second(at_least_one(self.per_second)).allow_burst(at_least_one(self.burst))
    }
}

type Keyed<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// How fast each asks.
#[derive(Debug)]
pub struct Rates {
    strangers: Keyed<IpAddr>,
    issued: Keyed<String>,
}

impl Rates {
    /// With nobody known.
    pub fn new(bounds: &Bounds) -> Self {
        Self {
            strangers: RateLimiter::hashmap(bounds.strangers_per_address.quota()),
            issued: RateLimiter::hashmap(bounds.issued_per_node.quota()),
        }
    }

    /// A token from this address is to be looked at, on a connection on which none was believed; false: that is one too
    /// many. Asked before anything is done about it: looking is what costs.
    pub fn stranger(&self, address: IpAddr) -> bool {
        self.strangers.check_key(&address).is_ok()
    }

    /// A certificate is asked for by the agent of this node; false: that is one too many.
    pub fn issue(&self, node: &str) -> bool {
        self.issued.check_key(&node.to_owned()).is_ok()
    }

    /// Forgets those who have been quiet.
    pub fn forget(&self) {
        self.strangers.retain_recent();
        self.issued.retain_recent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_one_is_not_anothers() {
        let bounds = Bounds { issued_per_node: Rate { per_second: 1, burst: 5 }, ..Bounds::default() };
        let rates = Rates::new(&bounds);
        assert_eq!((0..100).filter(|_| rates.issue("a")).count(), 5);
        assert!(rates.issue("b"));
        rates.forget();
        assert!(!rates.issue("a"), "what is recent is not forgotten");
    }
}
