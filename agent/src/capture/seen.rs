//! What the kernel carried alone: connections as its programs count them, and conversations in UDP.

use std::{
    collections::HashMap as Known,
    net::SocketAddr,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData};
use heddle_ebpf::flows::{SeenKey, maps};

use super::{conversations::Conversations, error::CaptureError, maps::Pins};

/// Entries that count nothing for so long are removed, so that the map holds what happens now.
const IDLE: Duration = Duration::from_secs(60);
/// Only where there is none yet.
const NOEXIST: u64 = 1;

/// `direct` connections that are alike, or a conversation in UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectSeen {
    /// The client's address; its port is 0.
    pub client: SocketAddr,
    /// The server's address and port.
    pub server: SocketAddr,
    /// The generation that allowed them.
    pub generation: u64,
    /// The rule of that generation; 0 for UDP, of which the kernel keeps none.
    pub rule: u32,
    /// Whether it is a conversation in UDP.
    pub udp: bool,
    /// How many there were since the last time.
    pub count: u64,
}

/// What the kernel counted, and how much of it was told.
pub struct DirectCounts {
    map: HashMap<MapData, SeenKey, u64>,
    told: Known<SeenKey, (u64, Instant)>,
    conversations: Conversations,
}

impl DirectCounts {
    pub(super) fn open(pins: &Pins) -> Result<Self, CaptureError> {
        let mut map: HashMap<MapData, SeenKey, u64> = pins.hash(maps::DIRECT_SEEN)?;
        // Counts what the map has no room for. It may be there from an earlier agent.
        let _ = map.insert(SeenKey::default(), 0, NOEXIST);
        let conversations = Conversations::new(pins.walk(maps::UDP_FLOWS, "reading conversations in UDP")?);
        Ok(Self { map, told: Known::new(), conversations })
    }

    /// Takes what was counted until now for told: the agent before this one told it.
    #[must_use]
    pub fn from_now_on(mut self, now: Instant) -> Self {
        self.told = self.map.iter().flatten().map(|(key, count)| (key, (count, now))).collect();
        let _ = self.conversations.take(now);
        self
    }

    /// What was counted since the last time, and how many connections found no room to be counted apart.
    pub fn take(&mut self, now: Instant) -> (Vec<DirectSeen>, u64) {
        let counted: Vec<(SeenKey, u64)> = self.map.iter().flatten().collect();
        let (mut seen, mut lost) = (Vec::new(), 0);
        for (key, count) in counted {
            let (before, since) = self.told.get(&key).copied().unwrap_or((0, now));
            // A count that fell is of an entry that was made anew.
            let more = if count >= before { count - before } else { count };
            if more == 0 {
                if key != SeenKey::default() && now.duration_since(since) >= IDLE {
                    let _ = self.map.remove(&key);
                    self.told.remove(&key);
                } else {
                    self.told.entry(key).or_insert((count, now));
                }
                continue;
            }
            self.told.insert(key, (count, now));
            if key == SeenKey::default() {
                lost += more;
                continue;
            }
            seen.push(DirectSeen {
                client: SocketAddr::new(key.source.to_ip(), 0),
                server: SocketAddr::new(key.destination.to_ip(), u16::try_from(key.port).unwrap_or(0)),
                generation: key.generation,
                rule: key.rule,
                udp: false,
                count: more,
            });
        }
        let (conversations, crowded) = self.conversations.take(now);
        lost += u64::from(crowded);
        seen.extend(conversations.into_iter().map(|(flow, of)| DirectSeen {
            // As the pod's own packets show it: the pod is whom it reached.
            client: SocketAddr::new(flow.tuple.destination.to_ip(), 0),
            server: SocketAddr::new(flow.tuple.source.to_ip(), flow.tuple.source_port),
            generation: of.generation,
            rule: 0,
            udp: true,
            count: 1,
        }));
        (seen, lost)
    }
}
