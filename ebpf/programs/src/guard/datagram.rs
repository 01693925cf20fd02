//! UDP and echoes: what opens a conversation is judged by the tables, what answers one passes as long as they allow what
//! opened it.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_ns};
use heddle_ebpf::{
    codes::{Outcome, Reason, Verdict},
    flows::{Packet, ROLE_CLIENT, ROLE_SERVER, Tuple, UdpFlow, UdpSeen},
};
use heddle_policy::verdict::UDP;

use super::{Judgement, packet::ICMP};
use crate::{maps, tables::KernelTables};

/// How long an answer is expected: the time that Linux's connection tracking gives an UDP stream.
const ANSWER_NS: u64 = 180 * 1_000_000_000;

const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// What an ICMP error may carry of the packet that it is about.
const ERROR_BYTES: u32 = 576;

/// What leaves a pod and needs no judgement: what belongs to a conversation that was judged under these tables, errors,
/// and what no policy could judge. `Ask…` for the rest.
#[inline(never)]
pub fn settled_from_pod(packet: &Packet, netns: u64) -> Judgement {
    if packet.protocol != UDP && !is_echo(packet) && !is_reply(packet) {
        return if is_error(packet) && packet.payload <= ERROR_BYTES {
            Judgement::Counted(Reason::Protocol)
        } else {
            Judgement::Drop(Reason::Protocol, 0)
        };
    }
    match standing(&own(packet, false), packet.protocol, netns) {
        Standing::None if is_reply(packet) => Judgement::Drop(Reason::Protocol, 0),
        Standing::None => Judgement::AskAsClient,
        Standing::Old(ROLE_CLIENT) => Judgement::AskAsClient,
        Standing::Old(_) => Judgement::AskAsServer,
        Standing::Judged => Judgement::Pass,
    }
}

/// The same of what is on its way to a pod.
#[inline(never)]
pub fn settled_to_pod(packet: &Packet, netns: u64) -> Judgement {
    if packet.protocol == UDP {
        if packet.fragment != 0 {
            // A fragment is nothing without its first, which is judged.
            return Judgement::Pass;
        }
    } else if is_error(packet) {
        // Path MTU discovery and refusals of what the pod sent.
        return Judgement::Pass;
    } else if !is_echo(packet) && !is_reply(packet) {
        return Judgement::Drop(Reason::Protocol, 0);
    }
    match standing(&own(packet, true), packet.protocol, netns) {
        Standing::None if is_reply(packet) => Judgement::Drop(Reason::Protocol, 0),
        Standing::None => Judgement::AskAsServer,
        Standing::Old(ROLE_CLIENT) => Judgement::AskAsClient,
        Standing::Old(_) => Judgement::AskAsServer,
        Standing::Judged => Judgement::Pass,
    }
}

/// The tuple as the pod's own packets show it. An echo's identifier stays where it is.
#[inline(always)]
pub fn own(packet: &Packet, to_pod: bool) -> Tuple {
    let tuple = &packet.tuple;
    match (to_pod, packet.protocol) {
        (false, _) => *tuple,
        (true, UDP) => tuple.reversed(),
        (true, _) => Tuple { source: tuple.destination, destination: tuple.source, ..*tuple },
    }
}

/// A judgement: whose pod it was, under which tables, and who opened the conversation.
pub struct Judged {
    pub netns: u64,
    pub generation: u64,
    pub role: u32,
}

/// What the tables said of a conversation's first packet, or of a later one under other tables.
#[inline(never)]
pub fn concluded(packet: &Packet, own: &Tuple, judged: &Judged, verdict: &Verdict) -> Judgement {
    let key = UdpFlow { tuple: *own, protocol: u32::from(packet.protocol) };
    let passes = match verdict.outcome {
        Outcome::Direct => true,
        // Who shows no identity at an address that a rule names: an echo is carried by nobody else.
        Outcome::Proxy => judged.role == ROLE_SERVER && verdict.reason == Reason::Unauthenticated,
        Outcome::Refuse => false,
    };
    if !passes {
        let reason = match verdict.outcome {
            Outcome::Refuse => verdict.reason,
            // Only the agent could tell who it is, and it carries no datagrams.
            _ => Reason::PlainToMeshed,
        };
        let reason = if maps::UDP_FLOWS.remove(&key).is_ok() { Reason::Revoked } else { reason };
        return Judgement::Drop(reason, verdict.rule);
    }
    if packet.fragment == 0 {
        let seen_ns = unsafe { bpf_ktime_get_ns() };
        let Judged { netns, generation, role } = *judged;
        let seen = UdpSeen { seen_ns, generation, netns, role, pad: 0 };
        if maps::UDP_FLOWS.insert(&key, &seen, BPF_ANY.into()).is_err() {
            return Judgement::Drop(Reason::MapFull, verdict.rule);
        }
    }
    Judgement::Counted(verdict.reason)
}

#[inline(always)]
fn is_echo(packet: &Packet) -> bool {
    matches!((packet.protocol == ICMP, packet.flags), (true, ECHO) | (false, ECHO_V6))
}

#[inline(always)]
fn is_reply(packet: &Packet) -> bool {
    packet.protocol != UDP
        && matches!((packet.protocol == ICMP, packet.flags), (true, ECHO_REPLY) | (false, ECHO_REPLY_V6))
}

#[inline(always)]
fn is_error(packet: &Packet) -> bool {
    if packet.protocol == ICMP { matches!(packet.flags, 3 | 11 | 12) } else { matches!(packet.flags, 1..=4) }
}

/// What is known of a conversation.
enum Standing {
    /// There is none.
    None,
    /// It was judged under other tables than those in force; and who opened it.
    Old(u32),
    /// It was judged under the tables in force.
    Judged,
}

#[inline(always)]
fn standing(own: &Tuple, protocol: u8, netns: u64) -> Standing {
    let key = UdpFlow { tuple: *own, protocol: u32::from(protocol) };
    let Some(seen) = maps::UDP_FLOWS.get_ptr_mut(&key) else {
        return Standing::None;
    };
    // SAFETY: a live entry; an eviction between would cost one datagram.
    let seen = unsafe { &mut *seen };
    let now = unsafe { bpf_ktime_get_ns() };
    if seen.netns != netns || now.wrapping_sub(seen.seen_ns) > ANSWER_NS {
        return Standing::None;
    }
    if seen.generation != KernelTables::current().generation() {
        return Standing::Old(seen.role);
    }
    seen.seen_ns = now;
    Standing::Judged
}
