//! ARP and neighbor discovery: a pod speaks for its own addresses alone, and nobody else speaks for them.

use aya_ebpf::programs::TcContext;
use heddle_ebpf::{Address, attach::Veth, codes::Reason, flows::Packet};

use super::{Judgement, entered, entered_elsewhere};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORTS: [u8; 3] = [131, 132, 143];
const LISTENER_QUERY: u8 = 130;

/// The Ethernet header's length, behind which ARP begins.
const ARP: usize = 14;

/// RFC 826: the sender's hardware address at 8, its protocol address at 14.
#[inline(never)]
pub fn arp_from_pod(ctx: &TcContext, veth: &Veth) -> Judgement {
    let Ok(arp) = ctx.load::<[u8; 28]>(ARP) else {
        return Judgement::Drop(Reason::Malformed, 0);
    };
    let plain = arp[0] == 0 && arp[1] == 1 && arp[2] == 8 && arp[3] == 0 && arp[4] == 6 && arp[5] == 4;
    let request_or_reply = arp[6] == 0 && (arp[7] == 1 || arp[7] == 2);
    if !plain || !request_or_reply {
        return Judgement::Drop(Reason::Malformed, 0);
    }
    let mac = [arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]];
    let sender = Address::from_v4(u32::from_ne_bytes([arp[14], arp[15], arp[16], arp[17]]));
    if mac != veth.mac || (sender != veth.v4 && !sender.is_unspecified()) {
        return Judgement::Drop(Reason::Spoofed, 0);
    }
    Judgement::Pass
}

#[inline(never)]
pub fn arp_to_pod(ctx: &TcContext, veth: &Veth) -> Judgement {
    let Ok(arp) = ctx.load::<[u8; 28]>(ARP) else {
        return Judgement::Drop(Reason::Malformed, 0);
    };
    let sender = Address::from_v4(u32::from_ne_bytes([arp[14], arp[15], arp[16], arp[17]]));
    if !sender.is_unspecified() && (sender == veth.v4 || spoken_for(ctx, &sender)) {
        return Judgement::Drop(Reason::Spoofed, 0);
    }
    Judgement::Pass
}

/// Whether a neighbor on the link says something of a local pod's address, and is not that pod.
///
/// What the node itself says passes: where it forwards between its pods it may answer for each of them (proxy ARP).
#[inline(always)]
fn spoken_for(ctx: &TcContext, address: &Address) -> bool {
    let entered = entered(ctx);
    entered != 0 && entered_elsewhere(entered, address)
}

/// Whether an ICMPv6 packet belongs to neighbor or listener discovery (RFC 4861, RFC 3810).
#[inline(always)]
pub fn is_discovery(packet: &Packet) -> bool {
    matches!(packet.flags, LISTENER_QUERY..=REDIRECT | 143)
}

#[inline(never)]
pub fn discovery_from_pod(ctx: &TcContext, veth: &Veth, packet: &Packet) -> Judgement {
    let source = &packet.tuple.source;
    let own = *source == veth.v6 && !source.is_unspecified();
    if !own && !source.is_unspecified() && !source.is_link_local_v6() {
        return Judgement::Drop(Reason::Spoofed, 0);
    }
    let kind = packet.flags;
    if LISTENER_REPORTS[0] == kind || LISTENER_REPORTS[1] == kind || LISTENER_REPORTS[2] == kind {
        return if packet.hops == 1 { Judgement::Pass } else { Judgement::Drop(Reason::Malformed, 0) };
    }
    if packet.hops != 255 {
        return Judgement::Drop(Reason::Malformed, 0);
    }
    match kind {
        ROUTER_SOLICITATION | NEIGHBOR_SOLICITATION => Judgement::Pass,
        NEIGHBOR_ADVERTISEMENT => {
            let Ok(words) = ctx.load::<[u32; 4]>(packet.transport as usize + 8) else {
                return Judgement::Drop(Reason::Malformed, 0);
            };
            let target = Address::from_v6(words);
            if target == veth.v6 || target.is_link_local_v6() {
                Judgement::Pass
            } else {
                Judgement::Drop(Reason::Spoofed, 0)
            }
        }
        // Router advertisements and redirects would make the pod a router of its neighbors.
        _ => Judgement::Drop(Reason::Spoofed, 0),
    }
}

#[inline(never)]
pub fn discovery_to_pod(ctx: &TcContext, veth: &Veth, packet: &Packet) -> Judgement {
    let source = &packet.tuple.source;
    if !source.is_unspecified() && (*source == veth.v6 || entered_elsewhere(entered(ctx), source)) {
        return Judgement::Drop(Reason::Spoofed, 0);
    }
    match packet.flags {
        ROUTER_ADVERTISEMENT | REDIRECT => Judgement::Drop(Reason::Spoofed, 0),
        NEIGHBOR_ADVERTISEMENT => {
            let Ok(words) = ctx.load::<[u32; 4]>(packet.transport as usize + 8) else {
                return Judgement::Drop(Reason::Malformed, 0);
            };
            let target = Address::from_v6(words);
            if !target.is_unspecified() && (target == veth.v6 || spoken_for(ctx, &target)) {
                return Judgement::Drop(Reason::Spoofed, 0);
            }
            Judgement::Pass
        }
        _ => Judgement::Pass,
    }
}
