//! What several programs ask of their surroundings.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use heddle_ebpf::flows::Tuple;

use crate::maps;

/// The loopback's share of a program: TCP and its multipath form.
pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_MPTCP: u32 = 262;

/// Whether this is the handshake of a `direct` connection.
#[inline(always)]
pub fn direct_opening(tuple: &Tuple) -> bool {
    // SAFETY: a word of an entry, which its owner alone takes away.
    matches!(unsafe { maps::DIRECT_FLOWS.get(tuple) }, Some(flow) if flow.opening == 1)
}

/// Whether the agent has shown a sign of life within the bound.
#[inline(always)]
pub fn agent_alive() -> bool {
    let (Some(heartbeat), Some(limits)) = (maps::HEARTBEAT.get(0), maps::LIMITS.get(0)) else {
        return false;
    };
    // SAFETY: an aligned word of a live array; and a helper without conditions.
    let (last, now) = unsafe { (core::ptr::read_volatile(heartbeat), bpf_ktime_get_ns()) };
    last != 0 && now.wrapping_sub(last) <= limits.heartbeat_ns
}
