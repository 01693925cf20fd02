//! A new connection reached a pod: whose socket takes it? Sees every port, listened on or not, before any socket does.

use aya_ebpf::{
    bindings::bpf_sk_lookup,
    helpers::bpf_get_smp_processor_id,
    macros::sk_lookup,
    programs::SkLookupContext,
};
use heddle_ebpf::{
    Address,
    attach::{Direction, ListeningKey, Pod, slot},
    codes::{Hook, Outcome, Reason, Verdict},
    flows::{FlowKey, Tuple},
};

use crate::{
    context::{IPPROTO_TCP, agent_alive},
    maps,
    report::{Subject, report},
    tables::{KernelTables, judge_inbound},
};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;

#[sk_lookup]
pub fn heddle_lookup(ctx: SkLookupContext) -> u32 {
    let lookup: *mut bpf_sk_lookup = ctx.lookup;
    let read = |field: *const u32| unsafe { core::ptr::read_volatile(field) };
    if read(unsafe { &raw const (*lookup).protocol }) != IPPROTO_TCP {
        // Datagrams are judged by the guard.
        return SK_PASS;
    }
    let (client, server) = if read(unsafe { &raw const (*lookup).family }) == AF_INET {
        (
            Address::from_v4(read(unsafe { &raw const (*lookup).remote_ip4 })),
            Address::from_v4(read(unsafe { &raw const (*lookup).local_ip4 })),
        )
    } else {
        let (remote, local) = unsafe {
            ((&raw const (*lookup).remote_ip6).cast::<u32>(), (&raw const (*lookup).local_ip6).cast::<u32>())
        };
        unsafe {
            (
                Address::from_v6([read(remote), read(remote.add(1)), read(remote.add(2)), read(remote.add(3))]),
                Address::from_v6([read(local), read(local.add(1)), read(local.add(2)), read(local.add(3))]),
            )
        }
    };
    if server.is_loopback() {
        // The kernel drops packets with a loopback address from outside.
        return SK_PASS;
    }
    let tuple = Tuple {
        source: client,
        destination: server,
        source_port: u16::from_be(unsafe { core::ptr::read_volatile(&raw const (*lookup).remote_port) }),
        destination_port: read(unsafe { &raw const (*lookup).local_port }) as u16,
    };
    // SAFETY: entries are written whole at attach.
    let Some(netns) = (unsafe { maps::POD_ADDRESSES.get(&server) }).copied() else {
        return refuse(0, &tuple, 0, Verdict::refuse(Reason::NotCaptured, 0));
    };
    // SAFETY: as above.
    let Some(pod) = (unsafe { maps::PODS.get(&netns) }) else {
        return refuse(netns, &tuple, 0, Verdict::refuse(Reason::NotCaptured, 0));
    };
    let key = FlowKey { netns, tuple, pad: 0 };
    if maps::PROXIED.get_ptr(&key).is_some() {
        return assign(&ctx, netns, pod, &tuple, Direction::Outbound, 0, Verdict::proxy(Reason::Meshed, 0));
    }
    if maps::DIRECT_HALF_OPEN.get_ptr(&tuple).is_some() || maps::HOPS.get_ptr(&key).is_some() {
        return SK_PASS;
    }
    if client == server || client.is_loopback() {
        return refuse(netns, &tuple, 0, Verdict::refuse(Reason::NoOrigin, 0));
    }
    let listening = ListeningKey { netns, port: u32::from(tuple.destination_port), pad: 0 };
    // SAFETY: a word of a live entry.
    if !matches!(unsafe { maps::LISTENING.get(&listening) }, Some(count) if *count > 0) {
        return refuse(netns, &tuple, 0, Verdict::refuse(Reason::NoListener, 0));
    }
    if maps::PROBES.get_ptr(&tuple).is_some() {
        return assign(&ctx, netns, pod, &tuple, Direction::Inbound, 0, Verdict::proxy(Reason::Probe, 0));
    }
    let tables = KernelTables::current();
    let mut verdict = Verdict::refuse(Reason::TablesClosed, 0);
    judge_inbound(&tables, &client, &server, tuple.destination_port, &mut verdict);
    if verdict.outcome != Outcome::Proxy {
        return refuse(netns, &tuple, tables.generation(), verdict);
    }
    assign(&ctx, netns, pod, &tuple, Direction::Inbound, tables.generation(), verdict)
}

/// Hands the connection to the agent's listener of this CPU's worker.
#[inline(always)]
fn assign(
    ctx: &SkLookupContext,
    netns: u64,
    pod: &Pod,
    tuple: &Tuple,
    direction: Direction,
    generation: u64,
    verdict: Verdict,
) -> u32 {
    if !agent_alive() || pod.workers == 0 {
        return refuse(netns, tuple, generation, Verdict::refuse(Reason::AgentGone, 0));
    }
    let worker = unsafe { bpf_get_smp_processor_id() } as u32 % pod.workers;
    let slot = slot(pod.first_slot, direction, tuple.destination.is_v4(), worker);
    // After a failed assignment SK_PASS would deliver to the application.
    match maps::LISTENERS.redirect_sk_lookup(ctx, slot, 0) {
        Ok(()) => {
            told(netns, tuple, generation, verdict);
            SK_PASS
        }
        // The agent's listener is gone: so is the agent.
        Err(-2) => refuse(netns, tuple, generation, Verdict::refuse(Reason::AgentGone, 0)),
        Err(_) => refuse(netns, tuple, generation, Verdict::refuse(Reason::AssignFailed, 0)),
    }
}

#[inline(always)]
fn refuse(netns: u64, tuple: &Tuple, generation: u64, verdict: Verdict) -> u32 {
    told(netns, tuple, generation, verdict);
    SK_DROP
}

#[inline(always)]
fn told(netns: u64, tuple: &Tuple, generation: u64, verdict: Verdict) {
    let subject = Subject {
        hook: Hook::Lookup,
        netns,
        generation,
        tuple,
        protocol: IPPROTO_TCP,
        detail: 0,
        length: 0,
        in_process: false,
    };
    report(&subject, &verdict);
}
