//! Sockets that listened in a pod before it was captured. No program hears of their end, so the agent looks.

use std::collections::{BTreeMap, HashMap as Map, HashSet};

use aya::maps::{HashMap, MapData};
use heddle_ebpf::attach::{ListeningKey, maps};

use super::{error::CaptureError, maps::Pins, namespace::Namespace, sock_diag};

/// `BPF_NOEXIST`.
const NEW: u64 = 1;

pub(super) struct EarlyListeners {
    counts: HashMap<MapData, ListeningKey, u64>,
    sockets: HashMap<MapData, u64, ListeningKey>,
    /// By network namespace: the sockets' cookies and ports.
    known: BTreeMap<u64, Map<u64, u32>>,
}

impl EarlyListeners {
    pub fn open(pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self {
            counts: pins.hash(maps::LISTENING)?,
            sockets: pins.hash(maps::LISTENING_SOCKETS)?,
            known: BTreeMap::new(),
        })
    }

    /// Counts what listens in a namespace and was not counted by the programs: neither those sockets nor the agent's,
    /// whose ports are `agents`. What an earlier agent counted is known again.
    pub fn count(&mut self, namespace: &Namespace, agents: &HashSet<u16>) -> Result<(), CaptureError> {
        let netns = namespace.cookie();
        let listed = CaptureError::system("listing listening sockets");
        for socket in sock_diag::listening(namespace).map_err(listed)? {
            if !agents.contains(&socket.port) {
                let key = ListeningKey { netns, port: socket.port.into(), early: 1 };
                // In the map already: the programs saw it begin, or an earlier agent found it.
                let _ = self.sockets.insert(socket.cookie, key, NEW);
            }
        }
        let found: Map<u64, u32> = self
            .sockets
            .iter()
            .flatten()
            .filter(|(_, key)| key.netns == netns && key.early == 1)
            .map(|(socket, key)| (socket, key.port))
            .collect();
        let ports: HashSet<u32> = found.values().copied().collect();
        self.known.insert(netns, found);
        ports.into_iter().try_for_each(|port| self.tell(netns, port))
    }

    /// Whether any of a namespace's is left to be looked after.
    pub fn any(&self, netns: u64) -> bool {
        self.known.get(&netns).is_some_and(|sockets| !sockets.is_empty())
    }

    /// Forgets those that do not listen any more.
    pub fn look_again(&mut self, namespace: &Namespace) -> Result<(), CaptureError> {
        let netns = namespace.cookie();
        let listed = CaptureError::system("listing listening sockets");
        let now: HashSet<u64> = sock_diag::listening(namespace)
            .map_err(listed)?
            .into_iter()
            .map(|socket| socket.cookie)
            .collect();
        let Some(sockets) = self.known.get_mut(&netns) else { return Ok(()) };
        let gone: Vec<(u64, u32)> = sockets.extract_if(|socket, _| !now.contains(socket)).collect();
        for (socket, port) in gone {
            let _ = self.sockets.remove(&socket);
            self.tell(netns, port)?;
        }
        Ok(())
    }

    /// The namespace is no longer captured.
    pub fn forget(&mut self, netns: u64) {
        self.known.remove(&netns);
    }

    /// Puts the number of a port's sockets where the look-up reads it.
    fn tell(&mut self, netns: u64, port: u32) -> Result<(), CaptureError> {
        let count =
            self.known.get(&netns).map_or(0, |sockets| sockets.values().filter(|own| **own == port).count());
        let key = ListeningKey { netns, port, early: 1 };
        self.counts.insert(key, count as u64, 0).map_err(CaptureError::map(maps::LISTENING))
    }
}
