//! A new connection reached a pod: whose socket takes it? Sees every port, listened on or not, before any socket does.

use aya_ebpf::{
    bindings::bpf_sk_lookup, helpers::bpf_get_smp_processor_id, macros::sk_lookup, programs::SkLookupContext,
};
use heddle_ebpf::{
    Address,
    attach::{Direction, ListeningKey, Pod, slot},
    codes::{Hook, Outcome, Reason, Verdict},
    flows::{FlowKey, Tuple},
};

use crate::{
    context::{IPPROTO_TCP, agent_alive, direct_opening},
    maps,
    report::{Subject, report},
    tables::{KernelTables, Place, agent_answers, judge_inbound},
};
use heddle_policy::verdict::TCP;

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;

#[sk_lookup]
pub fn heddle_lookup(ctx: SkLookupContext) -> u32 {
    let lookup: *mut bpf_sk_lookup = ctx.lookup;
    if unsafe { core::ptr::read_volatile(&raw const (*lookup).protocol) } != IPPROTO_TCP {
        // Datagrams are judged by the guard.
        return SK_PASS;
    }
    let mut key = FlowKey { netns: 0, tuple: Tuple::default(), pad: 0 };
    asked(lookup, &mut key.tuple);
    if key.tuple.destination.is_loopback() {
        // The kernel drops packets with a loopback address from outside.
        return SK_PASS;
    }
    // SAFETY: entries are written whole at attach.
    let Some(netns) = (unsafe { maps::POD_ADDRESSES.get(&key.tuple.destination) }) else {
        return refuse(&key, Reason::NotCaptured);
    };
    key.netns = *netns;
    if direct_opening(&key.tuple) {
        return pass(&key);
    }
    // SAFETY: as above.
    let Some(pod) = (unsafe { maps::PODS.get(&key.netns) }) else {
        return refuse(&key, Reason::NotCaptured);
    };
    if maps::PROXIED.get_ptr(&key).is_some() {
        return assign(&ctx, pod, &key, Direction::Outbound, 0, &Verdict::proxy(Reason::Meshed, 0));
    }
    if maps::HOPS.get_ptr(&key).is_some() || pod.left != 0 {
        return pass(&key);
    }
    if key.tuple.source == key.tuple.destination || key.tuple.source.is_loopback() {
        return refuse(&key, Reason::NoOrigin);
    }
    let tables = KernelTables::current();
    if !listened(&key) && !agent_answers(&tables, &key.tuple.destination, key.tuple.destination_port) {
        return refuse(&key, Reason::NoListener);
    }
    if maps::PROBES.get_ptr(&key.tuple).is_some() {
        return assign(&ctx, pod, &key, Direction::Inbound, 0, &Verdict::proxy(Reason::Probe, 0));
    }
    let mut verdict = Verdict::refuse(Reason::TablesClosed, 0);
    judge_inbound(
        &tables,
        &key.tuple.source,
        &key.tuple.destination,
        Place::new(key.tuple.destination_port, TCP),
        &mut verdict,
    );
    if verdict.outcome != Outcome::Proxy {
        told(&key, tables.generation(), &verdict);
        return SK_DROP;
    }
    assign(&ctx, pod, &key, Direction::Inbound, tables.generation(), &verdict)
}

/// Lets the kernel find the application's socket.
#[inline(never)]
fn pass(key: &FlowKey) -> u32 {
    // Nobody dials the agent: on a port of its own the listener that would be found is the agent's.
    if of_agent(key) && !listened(key) {
        return refuse(key, Reason::NoListener);
    }
    SK_PASS
}

/// The connection's addresses, from the client to the pod.
#[inline(never)]
fn asked(lookup: *mut bpf_sk_lookup, tuple: &mut Tuple) {
    let read = |field: *const u32| unsafe { core::ptr::read_volatile(field) };
    // Both families' fields are read, then one is chosen: a choice between two fields of the context would be
    // compiled to a computed pointer, which the verifier forbids.
    let (remote4, local4) =
        unsafe { (read(&raw const (*lookup).remote_ip4), read(&raw const (*lookup).local_ip4)) };
    let (remote, local) = unsafe {
        ((&raw const (*lookup).remote_ip6).cast::<u32>(), (&raw const (*lookup).local_ip6).cast::<u32>())
    };
    let remote6 = unsafe { [read(remote), read(remote.add(1)), read(remote.add(2)), read(remote.add(3))] };
    let local6 = unsafe { [read(local), read(local.add(1)), read(local.add(2)), read(local.add(3))] };
    let v4 = read(unsafe { &raw const (*lookup).family }) == AF_INET;
    tuple.source = if v4 { Address::from_v4(remote4) } else { Address::from_v6(remote6) };
    tuple.destination = if v4 { Address::from_v4(local4) } else { Address::from_v6(local6) };
    tuple.source_port = u16::from_be(unsafe { core::ptr::read_volatile(&raw const (*lookup).remote_port) });
    tuple.destination_port = read(unsafe { &raw const (*lookup).local_port }) as u16;
}

/// Whether an application listens on the port.
#[inline(never)]
fn listened(key: &FlowKey) -> bool {
    let mut key = ListeningKey { netns: key.netns, port: u32::from(key.tuple.destination_port), early: 0 };
    // SAFETY: a word of a live entry, here and below.
    if matches!(unsafe { maps::LISTENING.get(&key) }, Some(count) if *count > 0) {
        return true;
    }
    key.early = 1;
    matches!(unsafe { maps::LISTENING.get(&key) }, Some(count) if *count > 0)
}

/// Whether one of the agent's listeners has the port.
#[inline(never)]
fn of_agent(key: &FlowKey) -> bool {
    let key = ListeningKey { netns: key.netns, port: u32::from(key.tuple.destination_port), early: 0 };
    maps::LISTENER_PORTS.get_ptr(&key).is_some()
}

/// Hands the connection to the agent's listener of this CPU's worker.
#[inline(always)]
fn assign(
    ctx: &SkLookupContext,
    pod: &Pod,
    key: &FlowKey,
    direction: Direction,
    generation: u64,
    verdict: &Verdict,
) -> u32 {
    if !agent_alive() || pod.workers == 0 {
        return refuse(key, Reason::AgentGone);
    }
    let worker = unsafe { bpf_get_smp_processor_id() } as u32 % pod.workers;
    let slot = slot(pod.first_slot, direction, key.tuple.destination.is_v4(), worker);
    // After a failed assignment SK_PASS would deliver to the application.
    match maps::LISTENERS.redirect_sk_lookup(ctx, slot, 0) {
        Ok(()) => {
            told(key, generation, verdict);
            SK_PASS
        }
        // The agent's listener is gone: so is the agent.
        Err(-2) => refuse(key, Reason::AgentGone),
        Err(_) => refuse(key, Reason::AssignFailed),
    }
}

#[inline(never)]
fn refuse(key: &FlowKey, reason: Reason) -> u32 {
    told(key, KernelTables::current().generation(), &Verdict::refuse(reason, 0));
    SK_DROP
}

#[inline(never)]
fn told(key: &FlowKey, generation: u64, verdict: &Verdict) {
    let subject = Subject {
        hook: Hook::Lookup,
        netns: key.netns,
        generation,
        tuple: &key.tuple,
        protocol: IPPROTO_TCP,
        detail: 0,
        length: 0,
        in_process: false,
    };
    report(&subject, verdict);
}
