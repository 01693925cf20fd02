//! Socket events in a pod: tuples are registered before their SYN leaves, sockets are marked, listeners counted.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_ANY, BPF_NOEXIST, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, BPF_TCP_LISTEN, bpf_sock_ops,
    },
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::sock_ops,
    programs::SockOpsContext,
};
use heddle_ebpf::{
    Address,
    attach::{ListeningKey, Pod},
    codes::{Hook, Outcome, Reason, Verdict},
    flows::{
        ASKED_CLIENT, ASKED_DIRECT, ASKED_PROXY, ASKED_SELF, Asked, DirectFlow, DirectMark, FlowKey, HalfOpen,
        MARK_HOP, Origin, PendingKey, ROLE_CLIENT, ROLE_SERVER, Tuple,
    },
};

use crate::{
    maps,
    report::{Subject, report},
    tables::KernelTables,
    guard::rejudge,
};

const AF_INET: u32 = 2;

#[sock_ops]
pub fn heddle_sockops(ctx: SockOpsContext) -> u32 {
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: entries are written whole at attach.
    if let Some(pod) = unsafe { maps::PODS.get(&netns) } {
        let op = ctx.op();
        if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
            connecting(&ctx, netns, pod);
        } else if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
            accepted(&ctx, netns);
        } else if op == BPF_SOCK_OPS_TCP_LISTEN_CB {
            listening(&ctx, netns);
        } else if op == BPF_SOCK_OPS_STATE_CB {
            changed(&ctx, netns);
        }
    }
    1
}

/// The SYN is about to leave.
#[inline(always)]
fn connecting(ctx: &SockOpsContext, netns: u64, pod: &Pod) {
    let socket = socket(ctx);
    if socket.is_null() {
        return;
    }
    let tuple = outgoing(ctx);
    if let Some(mark) = maps::AGENT_MARKS.get(socket.cast()) {
        if mark.kind == MARK_HOP {
            let client = Asked {
                address: mark.client,
                port: mark.client_port,
                kind: ASKED_CLIENT,
                ..Asked::default()
            };
            // Where this fails the look-up refuses the hop.
            let _ = maps::HOPS.insert(&FlowKey { netns, tuple, pad: 0 }, &client, BPF_ANY.into());
            watch(ctx);
        }
        return;
    }
    let asked = match maps::ASKED.get(socket.cast()) {
        Some(asked) => *asked,
        None => {
            let key = PendingKey {
                netns,
                address: tuple.destination,
                port: u32::from(tuple.destination_port),
                pad: 0,
            };
            // SAFETY: copied at once; what an eviction would leave is checked against the tuple below.
            match unsafe { maps::PENDING.get(&key) } {
                Some(pending) => {
                    let asked = pending.asked;
                    let _ = maps::PENDING.remove(&key);
                    asked
                }
                // Nothing judged this connect: it is not registered, and the guard holds its SYN.
                None => return,
            }
        }
    };
    if asked.rewritten != tuple.destination && !asked.rewritten.is_unspecified()
        || asked.rewritten_port != u32::from(tuple.destination_port)
    {
        return;
    }
    match asked.kind {
        ASKED_PROXY => {
            let origin = Origin {
                socket: cookie(ctx),
                address: asked.address,
                port: asked.port,
                pad: 0,
            };
            if maps::PROXIED.insert(&FlowKey { netns, tuple, pad: 0 }, &origin, BPF_ANY.into()).is_err() {
                tell(netns, &tuple, asked.generation, &Verdict::refuse(Reason::MapFull, asked.rule));
            }
            watch(ctx);
        }
        ASKED_SELF => {
            if tuple.destination.is_loopback() {
                return;
            }
            let half = HalfOpen { netns, generation: asked.generation, rule: 0, pad: 0 };
            let _ = maps::DIRECT_HALF_OPEN.insert(&tuple, &half, BPF_ANY.into());
            watch(ctx);
        }
        ASKED_DIRECT => direct(ctx, netns, pod, &tuple, &asked),
        _ => {}
    }
}

/// Registers a connection that the kernel carries alone.
#[inline(always)]
fn direct(ctx: &SockOpsContext, netns: u64, pod: &Pod, tuple: &Tuple, asked: &Asked) {
    // A nested namespace's or an added address is not the pod's: its flows are not registered.
    if tuple.source != pod.v4 && tuple.source != pod.v6 {
        return;
    }
    let socket = socket(ctx);
    let id = cookie(ctx);
    let flow = DirectFlow { netns, tuple: *tuple, role: ROLE_CLIENT, rule: asked.rule, pad: 0 };
    if maps::DIRECT_FLOWS.insert(&id, &flow, BPF_ANY.into()).is_err() {
        tell(netns, tuple, asked.generation, &Verdict::refuse(Reason::MapFull, asked.rule));
        return;
    }
    // From here on the flow is in the map that the agent walks after a change. Whatever was published before is seen
    // here; whatever is published later finds it there.
    let now = KernelTables::current();
    let mark = DirectMark {
        generation: asked.generation,
        tuple: *tuple,
        role: ROLE_CLIENT,
        rule: asked.rule,
        pad: 0,
    };
    if now.generation() != asked.generation {
        let verdict = rejudge(&now, &mark);
        if verdict.outcome != Outcome::Direct {
            let _ = maps::DIRECT_FLOWS.remove(&id);
            tell(netns, tuple, now.generation(), &Verdict::refuse(Reason::Revoked, verdict.rule));
            return;
        }
    }
    // SAFETY: only whether there is an entry matters.
    if maps::POD_ADDRESSES.get_ptr(&tuple.destination).is_some() {
        let half = HalfOpen { netns, generation: asked.generation, rule: asked.rule, pad: 0 };
        if maps::DIRECT_HALF_OPEN.insert(tuple, &half, BPF_ANY.into()).is_err() {
            let _ = maps::DIRECT_FLOWS.remove(&id);
            tell(netns, tuple, now.generation(), &Verdict::refuse(Reason::MapFull, asked.rule));
            return;
        }
    }
    if !maps::DIRECT_MARKS.set(socket.cast(), &mark) {
        let _ = maps::DIRECT_HALF_OPEN.remove(tuple);
        let _ = maps::DIRECT_FLOWS.remove(&id);
        tell(netns, tuple, now.generation(), &Verdict::refuse(Reason::MapFull, asked.rule));
        return;
    }
    watch(ctx);
}

/// A connection was accepted; its socket exists, `accept()` has not yet returned it.
#[inline(always)]
fn accepted(ctx: &SockOpsContext, netns: u64) {
    let socket = socket(ctx);
    if socket.is_null() || maps::AGENT_MARKS.get(socket.cast()).is_some() {
        return;
    }
    let tuple = outgoing(ctx).reversed();
    let key = FlowKey { netns, tuple, pad: 0 };
    // SAFETY: copied at once.
    if let Some(client) = unsafe { maps::HOPS.get(&key) } {
        let client = *client;
        // Without it the application would see the agent's address; nothing more depends on it.
        maps::ASKED.set(socket.cast(), &client);
        let _ = maps::HOPS.remove(&key);
        return;
    }
    // SAFETY: copied at once.
    let Some(half) = (unsafe { maps::DIRECT_HALF_OPEN.get(&tuple) }) else {
        return;
    };
    let half = *half;
    if half.netns == netns {
        // The pod itself: it crosses no veth.
        let _ = maps::DIRECT_HALF_OPEN.remove(&tuple);
        return;
    }
    let id = cookie(ctx);
    let flow = DirectFlow { netns, tuple, role: ROLE_SERVER, rule: half.rule, pad: 0 };
    let mark = DirectMark { generation: half.generation, tuple, role: ROLE_SERVER, rule: half.rule, pad: 0 };
    // Without a mark the guard drops what this socket sends.
    if maps::DIRECT_FLOWS.insert(&id, &flow, BPF_ANY.into()).is_err() || !maps::DIRECT_MARKS.set(socket.cast(), &mark)
    {
        let _ = maps::DIRECT_FLOWS.remove(&id);
        tell(netns, &tuple, half.generation, &Verdict::refuse(Reason::MapFull, half.rule));
    }
    let _ = maps::DIRECT_HALF_OPEN.remove(&tuple);
    watch(ctx);
}

/// An application listens.
#[inline(always)]
fn listening(ctx: &SockOpsContext, netns: u64) {
    let socket = socket(ctx);
    if socket.is_null() || maps::AGENT_MARKS.get(socket.cast()).is_some() {
        return;
    }
    let key = ListeningKey { netns, port: local_port(ctx), pad: 0 };
    if maps::LISTENING_SOCKETS.insert(&cookie(ctx), &key, BPF_NOEXIST.into()).is_err() {
        return;
    }
    match maps::LISTENING.get_ptr_mut(&key) {
        // SAFETY: a word of a live entry; entries are removed by the agent alone, long after they fell to zero.
        Some(count) => unsafe { add(count, 1) },
        None => {
            if maps::LISTENING.insert(&key, &1, BPF_NOEXIST.into()).is_err()
                && let Some(count) = maps::LISTENING.get_ptr_mut(&key)
            {
                // SAFETY: as above; another processor made the entry in between.
                unsafe { add(count, 1) };
            }
        }
    }
    watch(ctx);
}

/// A watched socket changed its state.
#[inline(always)]
fn changed(ctx: &SockOpsContext, netns: u64) {
    let (old, new) = (ctx.arg(0), ctx.arg(1));
    if old == BPF_TCP_LISTEN {
        let id = cookie(ctx);
        let key = ListeningKey { netns, port: local_port(ctx), pad: 0 };
        if maps::LISTENING_SOCKETS.remove(&id).is_err() {
            return;
        }
        if let Some(count) = maps::LISTENING.get_ptr_mut(&key) {
            // SAFETY: as in `listening`.
            unsafe { add(count, -1) };
        }
        return;
    }
    if new != BPF_TCP_CLOSE {
        return;
    }
    let id = cookie(ctx);
    // SAFETY: copied at once.
    let flow = match unsafe { maps::DIRECT_FLOWS.get(&id) } {
        Some(flow) => *flow,
        None => {
            // A connect that failed, or one to the agent, to the pod itself or to an application.
            let key = FlowKey { netns, tuple: outgoing(ctx), pad: 0 };
            let _ = maps::PROXIED.remove(&key);
            let _ = maps::HOPS.remove(&key);
            let _ = maps::DIRECT_HALF_OPEN.remove(&key.tuple);
            return;
        }
    };
    let _ = maps::DIRECT_FLOWS.remove(&id);
    if flow.role == ROLE_CLIENT {
        let _ = maps::DIRECT_HALF_OPEN.remove(&flow.tuple);
    }
}

/// Adds to a word of a map at once for all processors. (The target has no atomics in `core`.)
///
/// # Safety
/// `word` must point to a live map value.
#[inline(always)]
unsafe fn add(word: *mut u64, amount: i64) {
    unsafe { core::arch::asm!("lock *(u64 *)({word} + 0) += {amount}", word = in(reg) word, amount = in(reg) amount) };
}

#[inline(always)]
fn tell(netns: u64, tuple: &Tuple, generation: u64, verdict: &Verdict) {
    let subject = Subject {
        hook: Hook::SockOps,
        netns,
        generation,
        tuple,
        protocol: 6,
        detail: 0,
        length: 0,
        in_process: false,
    };
    report(&subject, verdict);
}

/// Asks to be told when the socket closes.
#[inline(always)]
fn watch(ctx: &SockOpsContext) {
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    let _ = ctx.set_cb_flags(flags as i32);
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut aya_ebpf::bindings::bpf_sock {
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn local_port(ctx: &SockOpsContext) -> u32 {
    unsafe { core::ptr::read_volatile(&raw const (*ctx.ops).local_port) }
}

/// The socket's addresses, from itself to its peer.
#[inline(always)]
fn outgoing(ctx: &SockOpsContext) -> Tuple {
    let ops: *mut bpf_sock_ops = ctx.ops;
    let read = |field: *const u32| unsafe { core::ptr::read_volatile(field) };
    let (source, destination) = if ctx.family() == AF_INET {
        (
            Address::from_v4(read(unsafe { &raw const (*ops).local_ip4 })),
            Address::from_v4(read(unsafe { &raw const (*ops).remote_ip4 })),
        )
    } else {
        let (local, remote) = unsafe {
            ((&raw const (*ops).local_ip6).cast::<u32>(), (&raw const (*ops).remote_ip6).cast::<u32>())
        };
        unsafe {
            (
                Address::from_v6([read(local), read(local.add(1)), read(local.add(2)), read(local.add(3))]),
                Address::from_v6([read(remote), read(remote.add(1)), read(remote.add(2)), read(remote.add(3))]),
            )
        }
    };
    Tuple {
        source,
        destination,
        source_port: local_port(ctx) as u16,
        // Network byte order in the upper half of the word.
        destination_port: u32::from_be(read(unsafe { &raw const (*ops).remote_port })) as u16,
    }
}
