//! Socket events in a pod: tuples are registered before their SYN leaves, sockets are marked, listeners counted.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_ANY, BPF_NOEXIST, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE,
        BPF_TCP_LISTEN, bpf_sock_ops,
    },
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::sock_ops,
    programs::SockOpsContext,
};
use heddle_ebpf::{
    Address,
    attach::ListeningKey,
    codes::{Hook, Outcome, Reason, Verdict},
    flows::{
        ASKED_CLIENT, ASKED_DIRECT, ASKED_PROXY, ASKED_SELF, AgentMark, Asked, DirectFlow, DirectMark,
        FlowKey, MARK_HOP, Origin, PendingKey, ROLE_CLIENT, ROLE_SERVER, SeenKey, Tuple,
    },
};

use crate::{
    guard::judged,
    maps,
    report::{Subject, report},
    tables::KernelTables,
};

const AF_INET: u32 = 2;

#[sock_ops]
pub fn heddle_sockops(ctx: SockOpsContext) -> u32 {
    // The kernel calls for every socket and often: what says nothing here goes before anything is looked up.
    let op = ctx.op();
    let wanted = match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB | BPF_SOCK_OPS_TCP_LISTEN_CB => {
            true
        }
        BPF_SOCK_OPS_STATE_CB => ctx.arg(0) == BPF_TCP_LISTEN || ctx.arg(1) == BPF_TCP_CLOSE,
        _ => false,
    };
    if !wanted {
        return 1;
    }
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if maps::PODS.get_ptr(&netns).is_none() {
        return 1;
    }
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        // One after the other, not one within the other: both need their share of 512 bytes of stack.
        if connecting(ctx.ops, netns) {
            direct(ctx.ops, netns);
        }
    } else if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        accepted(ctx.ops, netns);
    } else if op == BPF_SOCK_OPS_TCP_LISTEN_CB {
        listening(ctx.ops, netns);
    } else if ctx.arg(0) == BPF_TCP_LISTEN {
        listens_no_more(ctx.ops, netns);
    } else {
        closed(ctx.ops, netns);
    }
    1
}

/// The SYN is about to leave. `true`: the kernel is to carry the connection, which [`direct`] registers.
#[inline(never)]
fn connecting(ops: *mut bpf_sock_ops, netns: u64) -> bool {
    let ctx = &SockOpsContext::new(ops);
    let socket = socket(ctx);
    if socket.is_null() {
        return false;
    }
    let mut tuple = Tuple::default();
    outgoing(ops, &mut tuple);
    if let Some(mark) = maps::AGENT_MARKS.get(socket.cast()) {
        if mark.kind == MARK_HOP {
            hop(netns, &tuple, mark);
            watch(ctx);
        }
        return false;
    }
    let Some(asked) = asked(socket.cast(), netns, &tuple) else {
        return false;
    };
    match asked.kind {
        ASKED_PROXY => {
            if !proxied(netns, &tuple, cookie(ctx), asked) {
                tell(netns, &tuple, asked.generation, &Verdict::refuse(Reason::MapFull, asked.rule));
            }
            watch(ctx);
        }
        ASKED_SELF if !tuple.destination.is_loopback() => {
            if !register(netns, &tuple, asked, true) {
                tell(netns, &tuple, asked.generation, &Verdict::refuse(Reason::MapFull, asked.rule));
            }
            watch(ctx);
        }
        ASKED_DIRECT => return true,
        _ => {}
    }
    false
}

/// What was decided about this connect. None: nothing judged it, it is not registered, and the guard holds its SYN.
#[inline(always)]
fn asked<'a>(socket: *mut core::ffi::c_void, netns: u64, tuple: &Tuple) -> Option<&'a Asked> {
    let asked: &Asked = match maps::ASKED.get(socket) {
        // SAFETY: the storage lives as long as the program runs.
        Some(asked) => unsafe { &*core::ptr::from_ref(asked) },
        // SAFETY: null or a map value; what a concurrent eviction would leave is checked against the tuple below.
        None => unsafe { pending(netns, tuple).as_ref() }?,
    };
    let same = asked.rewritten_port == u32::from(tuple.destination_port)
        && (asked.rewritten == tuple.destination || asked.rewritten.is_unspecified());
    if same { Some(asked) } else { None }
}

/// Registers the agent's hop to an application, with the real client. Where this fails the look-up refuses the hop.
#[inline(never)]
fn hop(netns: u64, tuple: &Tuple, mark: &AgentMark) {
    let client =
        Asked { address: mark.client, port: mark.client_port, kind: ASKED_CLIENT, ..Asked::default() };
    let _ = maps::HOPS.insert(&FlowKey { netns, tuple: *tuple, pad: 0 }, &client, BPF_ANY.into());
}

/// What the multipath socket whose subflow this is asked for.
#[inline(never)]
fn pending(netns: u64, tuple: &Tuple) -> *const Asked {
    let key =
        PendingKey { netns, address: tuple.destination, port: u32::from(tuple.destination_port), pad: 0 };
    match maps::PENDING.get_ptr(&key) {
        // SAFETY: a field of a map value.
        Some(pending) => unsafe { &raw const (*pending).asked },
        None => core::ptr::null(),
    }
}

/// Registers a connection to the agent.
#[inline(never)]
fn proxied(netns: u64, tuple: &Tuple, socket: u64, asked: &Asked) -> bool {
    let origin = Origin { socket, address: asked.address, port: asked.port, pad: 0 };
    maps::PROXIED.insert(&FlowKey { netns, tuple: *tuple, pad: 0 }, &origin, BPF_ANY.into()).is_ok()
}

/// Registers a connection that the kernel carries alone.
#[inline(never)]
fn register(netns: u64, tuple: &Tuple, asked: &Asked, opening: bool) -> bool {
    let flow = DirectFlow { netns, generation: asked.generation, rule: asked.rule, opening: opening.into() };
    maps::DIRECT_FLOWS.insert(tuple, &flow, BPF_ANY.into()).is_ok()
}

/// Registers it, and gives its socket the tables' permission.
#[inline(never)]
fn direct(ops: *mut bpf_sock_ops, netns: u64) {
    let ctx = &SockOpsContext::new(ops);
    let socket = socket(ctx);
    if socket.is_null() {
        return;
    }
    let mut tuple = Tuple::default();
    outgoing(ops, &mut tuple);
    let tuple = &tuple;
    let Some(asked) = asked(socket.cast(), netns, tuple) else {
        return;
    };
    // SAFETY: entries are written whole at attach.
    let Some(pod) = (unsafe { maps::PODS.get(&netns) }) else {
        return;
    };
    // A nested namespace's or an added address is not the pod's: its flows are not registered.
    if tuple.source != pod.v4 && tuple.source != pod.v6 {
        return;
    }
    let captured = maps::POD_ADDRESSES.get_ptr(&tuple.destination).is_some();
    if !register(netns, tuple, asked, captured) {
        tell(netns, tuple, asked.generation, &Verdict::refuse(Reason::MapFull, asked.rule));
        return;
    }
    // From here on the flow is in the map that the agent walks after a change. Whatever was published, or taken away,
    // before is seen here; whatever is later finds it there. What a rule allowed leads to a captured pod.
    let now = KernelTables::current();
    let gone = asked.rule != 0 && maps::POD_ADDRESSES.get_ptr(&tuple.destination).is_none();
    if gone || now.generation() != asked.generation {
        let verdict = judged(&now, tuple, 6);
        if verdict.outcome != Outcome::Direct {
            let _ = maps::DIRECT_FLOWS.remove(tuple);
            tell(netns, tuple, now.generation(), &Verdict::refuse(Reason::Revoked, verdict.rule));
            return;
        }
    }
    if !mark(socket.cast(), asked.generation, tuple, ROLE_CLIENT, asked.rule) {
        let _ = maps::DIRECT_FLOWS.remove(tuple);
        tell(netns, tuple, asked.generation, &Verdict::refuse(Reason::MapFull, asked.rule));
        return;
    }
    watch(ctx);
}

/// A connection was accepted; its socket exists, `accept()` has not yet returned it.
#[inline(never)]
fn accepted(ops: *mut bpf_sock_ops, netns: u64) {
    let ctx = &SockOpsContext::new(ops);
    let socket = socket(ctx);
    if socket.is_null() || maps::AGENT_MARKS.get(socket.cast()).is_some() {
        return;
    }
    // It has the listener's wish to be told of its states; what is registered goes with the client's socket.
    unwatch(ctx);
    let mut key = FlowKey { netns, tuple: Tuple::default(), pad: 0 };
    incoming(ops, &mut key.tuple);
    // SAFETY: the client's socket is being opened, and takes the entry away only when it closes.
    let flow = maps::DIRECT_FLOWS.get_ptr_mut(&key.tuple).map(|flow| unsafe { &mut *flow });
    if let Some(flow) = flow
        && flow.opening == 1
    {
        if !accepted_direct(socket.cast(), netns, &key.tuple, flow) {
            tell(netns, &key.tuple, flow.generation, &Verdict::refuse(Reason::MapFull, flow.rule));
        }
        return;
    }
    // SAFETY: copied into the socket's storage at once.
    if let Some(client) = unsafe { maps::HOPS.get(&key) } {
        // Without it the application would see the agent's address; nothing more depends on it.
        maps::ASKED.set(socket.cast(), client);
        let _ = maps::HOPS.remove(&key);
    }
}

/// The server's end of a connection that the kernel carries alone; `false` if there is no room for its mark.
#[inline(never)]
fn accepted_direct(socket: *mut core::ffi::c_void, netns: u64, tuple: &Tuple, flow: &mut DirectFlow) -> bool {
    flow.opening = 0;
    // The pod itself crosses no veth. Without a mark the guard drops what this socket sends.
    if flow.netns == netns {
        return true;
    }
    let marked = mark(socket, flow.generation, tuple, ROLE_SERVER, flow.rule);
    if marked {
        seen(tuple, flow.generation, flow.rule);
    }
    marked
}

/// Counts a connection that the kernel carries alone, for those who want to know who reaches whom.
#[inline(never)]
fn seen(tuple: &Tuple, generation: u64, rule: u32) {
    let mut key = SeenKey {
        source: tuple.source,
        destination: tuple.destination,
        generation,
        rule,
        port: u32::from(tuple.destination_port),
    };
    if maps::DIRECT_SEEN.get_ptr_mut(&key).is_none()
        && maps::DIRECT_SEEN.insert(&key, &0, BPF_NOEXIST.into()).is_err()
    {
        // Another processor was first, or there is no room: then the entry that the agent keeps for this counts it.
        if maps::DIRECT_SEEN.get_ptr_mut(&key).is_none() {
            key = SeenKey::default();
        }
    }
    if let Some(count) = maps::DIRECT_SEEN.get_ptr_mut(&key) {
        // SAFETY: a word of a map value; one that the agent has just removed is counted into nothing.
        unsafe { add(count, 1) };
    }
}

/// Gives a socket the tables' permission.
#[inline(never)]
fn mark(socket: *mut core::ffi::c_void, generation: u64, tuple: &Tuple, role: u32, rule: u32) -> bool {
    maps::DIRECT_MARKS.set(socket, &DirectMark { generation, tuple: *tuple, role, rule, pad: 0 })
}

/// An application listens.
#[inline(never)]
fn listening(ops: *mut bpf_sock_ops, netns: u64) {
    let ctx = &SockOpsContext::new(ops);
    let socket = socket(ctx);
    if socket.is_null() || maps::AGENT_MARKS.get(socket.cast()).is_some() {
        return;
    }
    let key = ListeningKey { netns, port: local_port(ctx), early: 0 };
    if maps::LISTENING_SOCKETS.insert(&cookie(ctx), &key, BPF_NOEXIST.into()).is_err() {
        return;
    }
    match maps::LISTENING.get_ptr_mut(&key) {
        // SAFETY: a word of a live entry; entries are removed by the agent alone, long after they fell to zero.
        Some(count) => unsafe { add(count, 1) },
        None => {
            if maps::LISTENING.insert(&key, &1, BPF_NOEXIST.into()).is_err() {
                match maps::LISTENING.get_ptr_mut(&key) {
                    // SAFETY: as above; another processor made the entry in between.
                    Some(count) => unsafe { add(count, 1) },
                    None => {
                        // No room. What is not counted must not seem to be: an agent that starts counts it then.
                        let _ = maps::LISTENING_SOCKETS.remove(&cookie(ctx));
                        return;
                    }
                }
            }
        }
    }
    watch(ctx);
}

/// An application listens no longer.
#[inline(never)]
fn listens_no_more(ops: *mut bpf_sock_ops, netns: u64) {
    let ctx = &SockOpsContext::new(ops);
    let id = cookie(ctx);
    let key = ListeningKey { netns, port: local_port(ctx), early: 0 };
    if maps::LISTENING_SOCKETS.remove(&id).is_err() {
        return;
    }
    if let Some(count) = maps::LISTENING.get_ptr_mut(&key) {
        // SAFETY: as in `listening`.
        unsafe { add(count, -1) };
    }
}

/// What was registered for a connection goes with its client's socket.
#[inline(never)]
fn closed(ops: *mut bpf_sock_ops, netns: u64) {
    let ctx = &SockOpsContext::new(ops);
    let socket = socket(ctx);
    if socket.is_null() {
        return;
    }
    let mut key = FlowKey { netns, tuple: Tuple::default(), pad: 0 };
    outgoing(ops, &mut key.tuple);
    let kind = maps::ASKED.get(socket.cast()).map_or(0, |asked| asked.kind);
    if kind != ASKED_PROXY {
        let _ = maps::DIRECT_FLOWS.remove(&key.tuple);
    }
    if kind != ASKED_DIRECT && kind != ASKED_SELF {
        // A connect to the agent, or a hop to an application; a multipath subflow has no word of what it is.
        let _ = maps::PROXIED.remove(&key);
        let _ = maps::HOPS.remove(&key);
    }
}

/// Adds to a word of a map at once for all processors. (The target has no atomics in `core`.)
///
/// # Safety
/// `word` must point to a live map value.
#[inline(always)]
unsafe fn add(word: *mut u64, amount: i64) {
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {amount}", word = in(reg) word, amount = in(reg) amount)
    };
}

/// Tells of a refusal. Called by the outermost functions alone: Linux 7.2 keeps what a call reads of its callers' stacks by
/// the place and depth of the call, and takes one depth for the other where a chain of calls has both.
#[inline(never)]
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

/// Asks for it no longer.
#[inline(always)]
fn unwatch(ctx: &SockOpsContext) {
    let flags = ctx.cb_flags() & !BPF_SOCK_OPS_STATE_CB_FLAG;
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
#[inline(never)]
fn outgoing(ops: *mut bpf_sock_ops, tuple: &mut Tuple) {
    let read = |field: *const u32| unsafe { core::ptr::read_volatile(field) };
    // Both families' fields are read, then one is chosen: a choice between two fields of the context would be
    // compiled to a computed pointer, which the verifier forbids.
    let (local4, remote4) =
        unsafe { (read(&raw const (*ops).local_ip4), read(&raw const (*ops).remote_ip4)) };
    let (local, remote) = unsafe {
        ((&raw const (*ops).local_ip6).cast::<u32>(), (&raw const (*ops).remote_ip6).cast::<u32>())
    };
    let local6 = unsafe { [read(local), read(local.add(1)), read(local.add(2)), read(local.add(3))] };
    let remote6 = unsafe { [read(remote), read(remote.add(1)), read(remote.add(2)), read(remote.add(3))] };
    let v4 = read(unsafe { &raw const (*ops).family }) == AF_INET;
    tuple.source = if v4 { Address::from_v4(local4) } else { Address::from_v6(local6) };
    tuple.destination = if v4 { Address::from_v4(remote4) } else { Address::from_v6(remote6) };
    tuple.source_port = read(unsafe { &raw const (*ops).local_port }) as u16;
    // Network byte order in the upper half of the word.
    tuple.destination_port = u32::from_be(read(unsafe { &raw const (*ops).remote_port })) as u16;
}

/// The socket's addresses, from its peer to itself.
#[inline(never)]
fn incoming(ops: *mut bpf_sock_ops, tuple: &mut Tuple) {
    outgoing(ops, tuple);
    *tuple = tuple.reversed();
}
