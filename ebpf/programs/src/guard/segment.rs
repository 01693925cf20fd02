//! TCP: a segment leaves a pod only if its socket bears the agent's mark or the tables' permission.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, bpf_sock},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_listener_sock, bpf_sk_fullsock, bpf_skb_cgroup_id},
    },
    programs::TcContext,
};
use heddle_ebpf::{
    attach::Veth,
    codes::{Outcome, Reason},
    flows::{BareSegments, Packet},
};

use super::{
    Judgement,
    packet::{ACK, RST, SYN},
    rejudge, same,
};
use crate::{context::direct_opening, maps, tables::KernelTables};

const SOCK_STREAM: u32 = 1;
const SECOND_NS: u64 = 1_000_000_000;

/// A segment that leaves a pod.
#[inline(always)]
pub fn from_pod(ctx: &TcContext, veth: &Veth, packet: &Packet) -> Judgement {
    if let Some(socket) = full_socket(ctx) {
        let stream = unsafe { core::ptr::read_volatile(&raw const (*socket).type_) } == SOCK_STREAM;
        if stream
            && let Some(mark) = maps::DIRECT_MARKS.get(socket.cast())
            && same(mark, &packet.tuple)
        {
            let tables = KernelTables::current();
            if mark.generation == tables.generation() {
                return Judgement::Pass;
            }
            let verdict = rejudge(&tables, mark);
            if verdict.outcome == Outcome::Direct {
                mark.generation = tables.generation();
                return Judgement::Pass;
            }
            if packet.payload == 0 && packet.flags & RST != 0 {
                // The agent ends the flow; a peer that never hears of it would hang.
                return Judgement::Counted(Reason::Revoked);
            }
            return Judgement::Drop(Reason::Revoked, verdict.rule);
        }
        if stream && maps::AGENT_MARKS.get(socket.cast()).is_some() {
            return Judgement::Pass;
        }
        if stream && (veth.settling == 2 || veth.settling == 1 && packet.flags & (SYN | ACK) != SYN) {
            // Open since before the capture: the agent looks at each, and ends what may not go on.
            return Judgement::Pass;
        }
    }
    let listener = listener(ctx);
    if listener == Listener::Agents || direct_opening(&packet.tuple.reversed()) {
        // A SYN-ACK of the agent's, or of an application to a registered client.
        if packet.payload == 0 {
            return Judgement::Pass;
        }
        return Judgement::Drop(Reason::UnmarkedSocket, 0);
    }
    if listener == Listener::Applications && packet.flags & (SYN | ACK) == SYN | ACK {
        if veth.settling != 0 && packet.payload == 0 {
            // Its SYN came just before the capture.
            return Judgement::Pass;
        }
        // Its client came past the look-up: somebody has detached that.
        return Judgement::Drop(Reason::UnmarkedSocket, 0);
    }
    bare(ctx, packet)
}

/// Segments of the kernel's own control socket, of TIME_WAIT and of syncookies cannot be told from a raw socket's:
/// they pass without payload, never as a connection's opening SYN, and in bounded numbers.
#[inline(always)]
fn bare(ctx: &TcContext, packet: &Packet) -> Judgement {
    if packet.payload != 0 || packet.flags & (SYN | ACK) == SYN {
        return Judgement::Drop(Reason::UnmarkedSocket, 0);
    }
    if packet.flags & RST != 0 {
        return Judgement::Pass;
    }
    let Some(limits) = maps::LIMITS.get(0) else {
        return Judgement::Drop(Reason::RateLimited, 0);
    };
    let ifindex = unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).ifindex) };
    let now = unsafe { bpf_ktime_get_ns() };
    match maps::BARE_SEGMENTS.get_ptr_mut(&ifindex) {
        Some(seen) => {
            // SAFETY: a live entry; a lost update between CPUs lets a few more pass.
            let seen = unsafe { &mut *seen };
            if now.wrapping_sub(seen.since_ns) > SECOND_NS {
                seen.since_ns = now;
                seen.count = 0;
            }
            seen.count += 1;
            if seen.count > limits.bare_segments_per_second {
                return Judgement::Drop(Reason::RateLimited, 0);
            }
        }
        // Without a row nothing would be counted.
        None if maps::BARE_SEGMENTS
            .insert(&ifindex, &BareSegments { since_ns: now, count: 1 }, BPF_ANY.into())
            .is_err() =>
        {
            return Judgement::Drop(Reason::MapFull, 0);
        }
        None => {}
    }
    Judgement::Pass
}

/// A segment on its way to a pod. Whose it is the look-up decides; here only the kubelet's probes are recognized.
#[inline(always)]
pub fn to_pod(ctx: &TcContext, packet: &Packet) -> Judgement {
    if packet.flags & (SYN | ACK) == SYN
        && let Some(limits) = maps::LIMITS.get(0)
        && limits.kubelet_cgroup != 0
    {
        // Forwarded and masqueraded packets have no socket on this host.
        let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
        if cgroup == limits.kubelet_cgroup && full_socket(ctx).is_some() {
            let now = unsafe { bpf_ktime_get_ns() };
            let _ = maps::PROBES.insert(&packet.tuple, &now, BPF_ANY.into());
        } else {
            // A probe that was refused before it was accepted leaves its entry: not for whoever has its port next.
            let _ = maps::PROBES.remove(&packet.tuple);
        }
    }
    Judgement::Pass
}

#[inline(always)]
fn full_socket(ctx: &TcContext) -> Option<*mut bpf_sock> {
    let socket = socket(ctx.skb.skb)?;
    let full = unsafe { bpf_sk_fullsock(socket) };
    if full.is_null() { None } else { Some(full) }
}

/// Whose listener a packet's socket is, or is a request to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listener {
    None,
    Agents,
    Applications,
}

#[inline(always)]
fn listener(ctx: &TcContext) -> Listener {
    let Some(socket) = socket(ctx.skb.skb) else {
        return Listener::None;
    };
    let listener = unsafe { bpf_get_listener_sock(socket) };
    if listener.is_null() {
        Listener::None
    } else if maps::AGENT_MARKS.get(listener.cast()).is_some() {
        Listener::Agents
    } else {
        Listener::Applications
    }
}

#[inline(always)]
fn socket(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // Read anew for each helper: the verifier ties the check to the value.
    let socket = unsafe { core::ptr::read_volatile(&raw const (*skb).__bindgen_anon_2.sk) };
    if socket.is_null() { None } else { Some(socket) }
}
