//! UDP and echoes: what opens a conversation is judged by the tables, what answers one passes as long as they allow what
//! opened it.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_ns, programs::TcContext};
use heddle_ebpf::{
    codes::{Outcome, Reason, Verdict},
    flows::{LAYER3_IPV4, Packet, ROLE_CLIENT, ROLE_SERVER, Tuple, UdpFlow, UdpSeen},
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

/// What an ICMP error may carry of the packet that it is about: what fits into 576 bytes (RFC 1812), and into 1,280 over IPv6
/// (RFC 4443).
const ERROR_BYTES: u32 = 576 - 20 - 8;
const ERROR_BYTES_V6: u32 = 1_280 - 40 - 8;

/// What leaves a pod and needs no judgement: what belongs to a conversation that was judged under these tables, errors,
/// and what no policy could judge. `Ask…` for the rest.
#[inline(never)]
pub fn settled_from_pod(ctx: &TcContext, packet: &Packet, netns: u64) -> Judgement {
    if packet.protocol != UDP && !is_echo(packet) && !is_reply(packet) {
        let most = if packet.layer3 == LAYER3_IPV4 { ERROR_BYTES } else { ERROR_BYTES_V6 };
        return if is_error(packet) && packet.payload <= most && is_about_a_conversation(ctx, packet, netns) {
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

/// Whether an error that leaves a pod is about a datagram of a conversation that the tables in force allow: else it would be
/// a way out that nobody has judged. Of anything else than a datagram a pod's kernel has no error to tell.
#[inline(never)]
fn is_about_a_conversation(ctx: &TcContext, packet: &Packet, netns: u64) -> bool {
    let at = packet.transport as usize + 8;
    let ports = if packet.layer3 == LAYER3_IPV4 {
        // Without options, and no fragment but the first.
        let Ok(quoted) = ctx.load::<[u8; 24]>(at) else { return false };
        if quoted[0] != 0x45 || quoted[9] != UDP || quoted[6] & 0x1f != 0 || quoted[7] != 0 {
            return false;
        }
        [quoted[20], quoted[21], quoted[22], quoted[23]]
    } else {
        let Ok(quoted) = ctx.load::<[u8; 44]>(at) else { return false };
        if quoted[0] >> 4 != 6 || quoted[6] != UDP {
            return false;
        }
        [quoted[40], quoted[41], quoted[42], quoted[43]]
    };
    // It was sent to the pod: what it came from is where the error goes.
    let own = Tuple {
        source: packet.tuple.source,
        destination: packet.tuple.destination,
        source_port: u16::from_be_bytes([ports[2], ports[3]]),
        destination_port: u16::from_be_bytes([ports[0], ports[1]]),
    };
    matches!(standing(&own, UDP, netns), Standing::Judged)
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
