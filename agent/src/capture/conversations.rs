//! Conversations in UDP that somebody opened with a captured pod, found in the kernel's map of them.

use std::{
    collections::HashMap as Known,
    time::{Duration, Instant},
};

use heddle_ebpf::flows::{ROLE_SERVER, UdpFlow, UdpSeen};

use super::walk::Walk;

/// Where so many are kept at once, some may have gone before they were seen: the map holds 65,536, least recently used first
/// to go.
const CROWDED: usize = 58_000;
/// An answer is expected for so long; what comes later is another conversation.
const ANSWER_NS: u64 = 180_000_000_000;
/// A walk through the map that took long is followed by a rest of so many times its length.
const REST: u32 = 20;
const UDP: u32 = 17;

/// What the kernel holds of conversations, and which of them were told.
pub(super) struct Conversations {
    map: Walk<UdpFlow, UdpSeen>,
    told: Told,
    resting: Option<Instant>,
}

/// Conversations that were told, by their last packet.
#[derive(Default)]
struct Told(Known<UdpFlow, u64>);

impl Told {
    /// Those that are new among all that there are.
    fn fresh(&mut self, all: impl Iterator<Item = (UdpFlow, UdpSeen)>) -> Vec<(UdpFlow, UdpSeen)> {
        let mut fresh = Vec::new();
        let mut now = Known::new();
        for (flow, seen) in all {
            // A pod's own questions are told by whom they reach.
            if flow.protocol != UDP || seen.role != ROLE_SERVER {
                continue;
            }
            let before = self.0.get(&flow);
            if before.is_none_or(|before| seen.seen_ns.saturating_sub(*before) > ANSWER_NS)
                && !now.contains_key(&flow)
            {
                fresh.push((flow, seen));
            }
            now.insert(flow, seen.seen_ns);
        }
        self.0 = now;
        fresh
    }
}

impl Conversations {
    pub(super) fn new(map: Walk<UdpFlow, UdpSeen>) -> Self {
        Self { map, told: Told::default(), resting: None }
    }

    /// Those that were opened since the last time, and whether some may be missing.
    pub(super) fn take(&mut self, now: Instant) -> (Vec<(UdpFlow, UdpSeen)>, bool) {
        if self.resting.is_some_and(|until| now < until) {
            return (Vec::new(), false);
        }
        let start = Instant::now();
        let all = match self.map.rows() {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(%error, "conversations in UDP are not told until they can be read");
                Vec::new()
            }
        };
        let crowded = all.len() >= CROWDED;
        let fresh = self.told.fresh(all.into_iter());
        self.resting = now.checked_add(start.elapsed().min(Duration::from_secs(3)) * REST);
        (fresh, crowded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_ebpf::flows::{ROLE_CLIENT, Tuple};

    fn of(port: u16, protocol: u32, role: u32, seconds: u64) -> (UdpFlow, UdpSeen) {
        let tuple = Tuple { source_port: port, ..Tuple::default() };
        (
            UdpFlow { tuple, protocol },
            UdpSeen { role, seen_ns: seconds * 1_000_000_000, ..UdpSeen::default() },
        )
    }

    #[test]
    fn a_conversation_is_told_once_by_whom_it_reaches_and_again_when_it_is_another() {
        let mut told = Told::default();
        let mut ports = |all: &[(UdpFlow, UdpSeen)]| -> Vec<u16> {
            told.fresh(all.iter().copied()).iter().map(|(flow, _)| flow.tuple.source_port).collect()
        };
        let first = [of(53, UDP, ROLE_SERVER, 1), of(1, 1, ROLE_SERVER, 1), of(2, UDP, ROLE_CLIENT, 1)];
        assert_eq!(ports(&first), [53]);
        assert_eq!(ports(&[of(53, UDP, ROLE_SERVER, 100)]), [0_u16; 0], "it goes on");
        assert_eq!(ports(&[of(53, UDP, ROLE_SERVER, 281)]), [53], "nobody waited for an answer any more");
        assert_eq!(ports(&[]), [0_u16; 0]);
        assert_eq!(ports(&[of(53, UDP, ROLE_SERVER, 282)]), [53], "it had gone");
    }
}
