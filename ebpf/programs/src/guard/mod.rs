//! The guard: every packet that leaves a pod or is on its way to one, on the host side of its veth, where the pod
//! can neither remove nor bypass it. Returns `TCX_NEXT`, so that the CNI's own programs still run.

mod datagram;
mod neighbor;
mod packet;
mod segment;

use aya_ebpf::{helpers::bpf_get_prandom_u32, macros::classifier, programs::TcContext};
use heddle_ebpf::{
    Address,
    attach::Veth,
    codes::{Hook, Outcome, Reason, Verdict},
    flows::{DirectMark, LAYER3_ARP, LAYER3_IPV6, Packet, ROLE_CLIENT, ROLE_SERVER, Tuple},
    policy::WORKLOAD_TAKES_PLAIN,
};
use heddle_policy::verdict::{Connect, Outbound, TCP, Tables as _};

use crate::{
    maps,
    report::{Subject, report},
    tables::{KernelTables, Place, judge_inbound, judge_outbound},
};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` below 6.6.
const NEXT: i32 = -1;
/// `TCX_DROP`.
const DROP: i32 = 2;

/// Rows of `packets`.
const FROM_POD: u32 = 0;
const TO_POD: u32 = 1;

/// What becomes of a packet.
pub enum Judgement {
    Pass,
    /// Passes, and is counted under this reason.
    Counted(Reason),
    Drop(Reason, u32),
    /// The tables decide about what the pod opens.
    AskAsClient,
    /// The tables decide about what somebody opens to the pod.
    AskAsServer,
}

#[classifier]
pub fn heddle_from_pod(ctx: TcContext) -> i32 {
    let Some(veth) = veth(&ctx) else {
        return DROP;
    };
    let Some(packet) = place(FROM_POD) else {
        return DROP;
    };
    let judgement = match packet::parse(&ctx, packet) {
        Err(reason) => Judgement::Drop(reason, 0),
        Ok(()) => from_pod(&ctx, veth, packet),
    };
    conclude(Hook::GuardFromPod, veth, &ctx, packet, judgement)
}

#[classifier]
pub fn heddle_to_pod(ctx: TcContext) -> i32 {
    let Some(veth) = veth(&ctx) else {
        return DROP;
    };
    let Some(packet) = place(TO_POD) else {
        return DROP;
    };
    let judgement = match packet::parse(&ctx, packet) {
        Err(reason) => Judgement::Drop(reason, 0),
        Ok(()) => to_pod(&ctx, veth, packet),
    };
    conclude(Hook::GuardToPod, veth, &ctx, packet, judgement)
}

/// Where this CPU keeps the packet that it looks at.
#[inline(always)]
fn place<'a>(direction: u32) -> Option<&'a mut Packet> {
    // SAFETY: a program for packets runs to its end before another begins on its CPU, and each direction has a row.
    unsafe { maps::PACKETS.get_ptr_mut(direction)?.as_mut() }
}

#[inline(always)]
fn from_pod(ctx: &TcContext, veth: &Veth, packet: &Packet) -> Judgement {
    if packet.mac != veth.mac {
        return Judgement::Drop(Reason::Spoofed, 0);
    }
    match packet.layer3 {
        LAYER3_ARP => return neighbor::arp_from_pod(ctx, veth),
        LAYER3_IPV6 if packet.protocol == packet::ICMPV6 && neighbor::is_discovery(packet) => {
            return neighbor::discovery_from_pod(ctx, veth, packet);
        }
        _ => {}
    }
    let own = &packet.tuple.source;
    if *own != veth.v4 && *own != veth.v6 || own.is_unspecified() {
        return Judgement::Drop(Reason::Spoofed, 0);
    }
    match packet.protocol {
        packet::TCP => segment::from_pod(ctx, veth, packet),
        packet::UDP | packet::ICMP | packet::ICMPV6 => {
            match datagram::settled_from_pod(ctx, packet, veth.netns) {
                Judgement::AskAsClient => asked(veth, packet, FROM_POD, ROLE_CLIENT),
                Judgement::AskAsServer => asked(veth, packet, FROM_POD, ROLE_SERVER),
                settled => settled,
            }
        }
        _ => Judgement::Drop(Reason::Protocol, 0),
    }
}

#[inline(always)]
fn to_pod(ctx: &TcContext, veth: &Veth, packet: &Packet) -> Judgement {
    if entered(ctx) == index(ctx) {
        // A bridge's port in hairpin mode gives back what the pod sent to all: it was judged when it left.
        return Judgement::Pass;
    }
    match packet.layer3 {
        LAYER3_ARP => return neighbor::arp_to_pod(ctx, veth),
        LAYER3_IPV6 if packet.protocol == packet::ICMPV6 && neighbor::is_discovery(packet) => {
            return neighbor::discovery_to_pod(ctx, veth, packet);
        }
        _ => {}
    }
    let source = &packet.tuple.source;
    if source.is_loopback() || *source == veth.v4 || *source == veth.v6 {
        return Judgement::Drop(Reason::Spoofed, 0);
    }
    if !by_its_own_veth(entered(ctx), source) && entered_elsewhere(entered(ctx), source) {
        return Judgement::Drop(Reason::Spoofed, 0);
    }
    match packet.protocol {
        packet::TCP => segment::to_pod(ctx, packet),
        packet::UDP | packet::ICMP | packet::ICMPV6 => match datagram::settled_to_pod(packet, veth.netns) {
            Judgement::AskAsClient => asked(veth, packet, TO_POD, ROLE_CLIENT),
            Judgement::AskAsServer => asked(veth, packet, TO_POD, ROLE_SERVER),
            settled => settled,
        },
        _ => Judgement::Drop(Reason::Protocol, 0),
    }
}

/// The interface by which the packet came to this node, or to the bridge that it crosses; 0: it was made here.
#[inline(always)]
fn entered(ctx: &TcContext) -> u32 {
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).ingress_ifindex) }
}

/// Whether `entered` is a guarded veth and `address` its pod's.
#[inline(always)]
fn by_its_own_veth(entered: u32, address: &Address) -> bool {
    // SAFETY: entries are written whole before a program is attached.
    match unsafe { maps::VETHS.get(&entered) } {
        Some(veth) => (*address == veth.v4 || *address == veth.v6) && !address.is_unspecified(),
        None => false,
    }
}

/// Whether `address` is a local pod's and `entered` is not that pod's veth.
#[inline(always)]
fn entered_elsewhere(entered: u32, address: &Address) -> bool {
    // SAFETY: entries are written whole at attach.
    let Some(netns) = (unsafe { maps::POD_ADDRESSES.get(address) }) else {
        return false;
    };
    // SAFETY: as above.
    !matches!(unsafe { maps::PODS.get(netns) }, Some(pod) if pod.ifindex == entered)
}

/// Asks the tables about a datagram or an echo. Judged here, not in a function of its own: the judgement needs what is
/// left of 512 bytes of stack.
#[inline(always)]
fn asked(veth: &Veth, packet: &Packet, direction: u32, role: u32) -> Judgement {
    let tables = KernelTables::current();
    let own = datagram::own(packet, direction == TO_POD);
    let verdict = if role == ROLE_CLIENT {
        judged(&tables, &own, packet.protocol)
    } else {
        let mut verdict = Verdict::refuse(Reason::TablesClosed, 0);
        let port = if packet.protocol == packet::UDP { own.source_port } else { 0 };
        judge_inbound(
            &tables,
            &own.destination,
            &own.source,
            Place::new(port, packet.protocol),
            &mut verdict,
        );
        verdict
    };
    let now = datagram::Judged { netns: veth.netns, generation: tables.generation(), role };
    datagram::concluded(packet, &own, &now, &verdict)
}

/// Judges a live `direct` flow by the tables in force now.
#[inline(always)]
pub fn rejudge(tables: &KernelTables, mark: &DirectMark) -> Verdict {
    judged(tables, &mark.tuple, TCP)
}

/// Judges what leaves a pod by its addresses alone, be it live already.
#[inline(always)]
pub fn judged(tables: &KernelTables, tuple: &Tuple, protocol: u8) -> Verdict {
    let asked = Connect {
        source: tuple.source,
        destination: tuple.destination,
        port: tuple.destination_port,
        protocol,
        random: unsafe { bpf_get_prandom_u32() },
    };
    let mut decided = Outbound {
        verdict: Verdict::refuse(Reason::TablesClosed, 0),
        destination: tuple.destination,
        port: tuple.destination_port,
    };
    judge_outbound(tables, &asked, &mut decided);
    if decided.verdict.outcome == Outcome::Proxy
        && let Some(workload) = tables.workload(&tuple.destination)
        && workload.flags & WORKLOAD_TAKES_PLAIN != 0
    {
        // It entered the mesh while it ran: what had been opened to it before goes on for now.
        return Verdict::direct(Reason::PlainCluster, 0);
    }
    decided.verdict
}

/// The interface that the packet is on.
#[inline(always)]
fn index(ctx: &TcContext) -> u32 {
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).ifindex) }
}

#[inline(always)]
fn veth<'a>(ctx: &TcContext) -> Option<&'a Veth> {
    // SAFETY: entries are written whole before a program is attached.
    unsafe { maps::VETHS.get(&index(ctx)) }
}

#[inline(always)]
fn conclude(hook: Hook, veth: &Veth, ctx: &TcContext, packet: &Packet, judgement: Judgement) -> i32 {
    let (verdict, answer) = match judgement {
        Judgement::Pass => return NEXT,
        Judgement::Counted(reason) => (Verdict::direct(reason, 0), NEXT),
        Judgement::Drop(reason, rule) => (Verdict::refuse(reason, rule), DROP),
        // Nothing leaves this undecided.
        Judgement::AskAsClient | Judgement::AskAsServer => (Verdict::refuse(Reason::Protocol, 0), DROP),
    };
    told(hook, veth.netns, ctx.len(), packet, &verdict);
    answer
}

#[inline(never)]
fn told(hook: Hook, netns: u64, length: u32, packet: &Packet, verdict: &Verdict) {
    let subject = Subject {
        hook,
        netns,
        generation: KernelTables::current().generation(),
        tuple: &packet.tuple,
        protocol: u32::from(packet.protocol),
        detail: u32::from(packet.flags),
        length,
        in_process: false,
    };
    report(&subject, verdict);
}

/// The packet's tuple as the flow that it belongs to was registered, for either direction.
#[inline(always)]
pub fn same(mark: &DirectMark, tuple: &Tuple) -> bool {
    let of = &mark.tuple;
    if mark.role == heddle_ebpf::flows::ROLE_SERVER {
        of.source_port == tuple.destination_port
            && of.destination_port == tuple.source_port
            && of.source == tuple.destination
            && of.destination == tuple.source
    } else {
        *of == *tuple
    }
}
