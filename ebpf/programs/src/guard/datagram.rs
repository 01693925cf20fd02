//! UDP and echoes: out of a pod by the tables, into a pod as an answer or where a rule written in addresses allows.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_ns};
use heddle_ebpf::{
    codes::{Outcome, Reason, Verdict},
    flows::{Packet, Tuple, UdpFlow},
    policy::WORKLOAD_DNS,
};
use heddle_policy::verdict::{Tables as _, UDP};

use super::{Judgement, packet::ICMP};
use crate::{
    maps,
    tables::{KernelTables, judge_inbound},
};

/// How long an answer is expected: the time that Linux's connection tracking gives an UDP stream.
const ANSWER_NS: u64 = 180 * 1_000_000_000;
const DNS: u16 = 53;

const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// What leaves a pod and needs no judgement: answers, errors, and what no policy could judge. `Ask` for the rest.
#[inline(never)]
pub fn settled_from_pod(packet: &Packet) -> Judgement {
    if packet.protocol == UDP {
        return if answers(&packet.tuple, u32::from(UDP)) { Judgement::Pass } else { Judgement::Ask };
    }
    let v4 = packet.protocol == ICMP;
    if matches!((v4, packet.flags), (true, ECHO) | (false, ECHO_V6)) {
        return Judgement::Ask;
    }
    let reply = matches!((v4, packet.flags), (true, ECHO_REPLY) | (false, ECHO_REPLY_V6));
    if reply && answers(&packet.tuple, u32::from(packet.protocol)) {
        return Judgement::Pass;
    }
    if is_error(packet) && packet.payload <= ERROR_BYTES {
        return Judgement::Counted(Reason::Protocol);
    }
    Judgement::Drop(Reason::Protocol, 0)
}

/// A datagram that opens a flow out of the pod, under this verdict.
#[inline(never)]
pub fn opened(packet: &Packet, verdict: &Verdict) -> Judgement {
    if verdict.outcome != Outcome::Direct {
        return Judgement::Drop(verdict.reason, verdict.rule);
    }
    if packet.fragment == 0 {
        remember(&packet.tuple, u32::from(packet.protocol));
    }
    Judgement::Counted(verdict.reason)
}

#[inline(never)]
pub fn udp_to_pod(packet: &Packet) -> Judgement {
    if packet.fragment != 0 || answers(&packet.tuple.reversed(), u32::from(UDP)) {
        // A fragment is nothing without its first, which is judged.
        return Judgement::Pass;
    }
    arriving(packet, u32::from(UDP))
}

#[inline(never)]
pub fn icmp_to_pod(packet: &Packet) -> Judgement {
    if is_error(packet) {
        // Path MTU discovery and refusals of what the pod sent.
        return Judgement::Pass;
    }
    let reply =
        matches!((packet.protocol == ICMP, packet.flags), (true, ECHO_REPLY) | (false, ECHO_REPLY_V6));
    if reply && answers(&packet.tuple.reversed_echo(), u32::from(packet.protocol)) {
        return Judgement::Pass;
    }
    if matches!((packet.protocol == ICMP, packet.flags), (true, ECHO) | (false, ECHO_V6)) {
        return arriving(packet, u32::from(packet.protocol));
    }
    Judgement::Drop(Reason::Protocol, 0)
}

/// What an ICMP error may carry of the packet that it is about.
const ERROR_BYTES: u32 = 576;

#[inline(always)]
fn is_error(packet: &Packet) -> bool {
    if packet.protocol == ICMP { matches!(packet.flags, 3 | 11 | 12) } else { matches!(packet.flags, 1..=4) }
}

/// A datagram that opens a flow into the pod.
#[inline(always)]
fn arriving(packet: &Packet, protocol: u32) -> Judgement {
    let tables = KernelTables::current();
    let dns = packet.tuple.destination_port == DNS
        && protocol == u32::from(UDP)
        && matches!(tables.workload(&packet.tuple.destination), Some(pod) if pod.flags & WORKLOAD_DNS != 0);
    if !dns {
        let mut verdict = Verdict::refuse(Reason::TablesClosed, 0);
        judge_inbound(
            &tables,
            &packet.tuple.source,
            &packet.tuple.destination,
            packet.tuple.destination_port,
            &mut verdict,
        );
        if verdict.outcome != Outcome::Proxy {
            return Judgement::Drop(verdict.reason, verdict.rule);
        }
        if verdict.reason != Reason::Unauthenticated {
            return Judgement::Drop(Reason::PlainToMeshed, verdict.rule);
        }
    }
    let mut tuple = packet.tuple.reversed();
    if protocol != u32::from(UDP) {
        tuple = packet.tuple.reversed_echo();
    }
    remember(&tuple, protocol);
    Judgement::Counted(Reason::Unauthenticated)
}

/// Whether the pod, or somebody who was allowed to, opened this flow; `tuple` is as the pod's own packets show it.
#[inline(always)]
fn answers(tuple: &Tuple, protocol: u32) -> bool {
    let key = UdpFlow { tuple: *tuple, protocol };
    match maps::UDP_FLOWS.get_ptr_mut(&key) {
        // SAFETY: a word of an entry; an eviction between would cost one datagram.
        Some(seen) => unsafe {
            let now = bpf_ktime_get_ns();
            if now.wrapping_sub(*seen) > ANSWER_NS {
                return false;
            }
            *seen = now;
            true
        },
        None => false,
    }
}

#[inline(always)]
fn remember(tuple: &Tuple, protocol: u32) {
    let now = unsafe { bpf_ktime_get_ns() };
    let _ = maps::UDP_FLOWS.insert(&UdpFlow { tuple: *tuple, protocol }, &now, BPF_ANY.into());
}

/// The other direction of an echo, whose identifier stays where it is.
trait Echo {
    fn reversed_echo(&self) -> Tuple;
}

impl Echo for Tuple {
    #[inline(always)]
    fn reversed_echo(&self) -> Tuple {
        Tuple { source: self.destination, destination: self.source, ..*self }
    }
}
