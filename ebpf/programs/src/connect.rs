//! `connect()` in a pod: leave it alone, turn it to the agent, or refuse it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, generated::bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use heddle_ebpf::{
    Address,
    codes::{Hook, Outcome, Reason, Verdict},
    flows::{ASKED_DIRECT, ASKED_PROXY, ASKED_SELF, Asked, Pending, PendingKey, Tuple},
};
use heddle_policy::verdict::{Connect, Outbound, TCP};

use crate::{
    context::{IPPROTO_MPTCP, IPPROTO_TCP, agent_alive},
    maps,
    report::{Subject, report},
    tables::{KernelTables, judge_outbound},
};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(connect4)]
pub fn heddle_connect4(ctx: SockAddrContext) -> i32 {
    let mut decided = leave(user_v4(ctx.sock_addr), user_port(ctx.sock_addr));
    match connect(&ctx, &mut decided) {
        Decision::Leave => {}
        Decision::Refuse => return refuse(),
        Decision::Rewrite => {
            write_v4(ctx.sock_addr, &decided.destination);
            write_port(ctx.sock_addr, decided.port);
        }
    }
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn heddle_connect6(ctx: SockAddrContext) -> i32 {
    let mut decided = leave(user_v6(ctx.sock_addr), user_port(ctx.sock_addr));
    match connect(&ctx, &mut decided) {
        Decision::Leave => {}
        Decision::Refuse => return refuse(),
        Decision::Rewrite => {
            write_v6(ctx.sock_addr, &decided.destination);
            write_port(ctx.sock_addr, decided.port);
        }
    }
    ALLOW
}

enum Decision {
    Leave,
    Refuse,
    Rewrite,
}

/// What was asked for, before anything is decided.
#[inline(always)]
fn leave(destination: Address, port: u16) -> Outbound {
    Outbound { verdict: Verdict::refuse(Reason::TablesClosed, 0), destination, port }
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, decided: &mut Outbound) -> Decision {
    let protocol = read(unsafe { &raw const (*ctx.sock_addr).protocol });
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        // Datagrams are judged by the guard, packet by packet.
        return Decision::Leave;
    }
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if socket.is_null() {
        return Decision::Leave;
    }
    // The agent's own connections in the pod's namespace would come back to it for ever.
    if maps::AGENT_MARKS.get(socket.cast()).is_some() {
        return Decision::Leave;
    }
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: entries are written whole at attach.
    let Some(pod) = (unsafe { maps::PODS.get(&netns) }) else {
        return Decision::Leave;
    };
    if pod.left != 0 {
        return Decision::Leave;
    }
    let asked = Connect {
        source: if decided.destination.is_v4() { pod.v4 } else { pod.v6 },
        destination: decided.destination,
        port: decided.port,
        protocol: TCP,
        random: unsafe { bpf_get_prandom_u32() },
    };
    if asked.source.is_unspecified()
        && !asked.destination.is_loopback()
        && !asked.destination.is_unspecified()
    {
        // The pod has no address of this family: the kernel says so itself, and the guard passes none.
        return Decision::Leave;
    }
    let tables = KernelTables::current();
    judge_outbound(&tables, &asked, decided);
    if decided.verdict.outcome == Outcome::Proxy {
        if agent_alive() {
            // Any port will do, the connection is told by its whole tuple, but its own: it would connect to itself.
            // The kernel gives out none below 1024, and one that the application has bound is seen here.
            decided.destination = asked.source;
            decided.port = (1 + unsafe { bpf_get_prandom_u32() } % 1022) as u16;
            if u32::from(decided.port) == read(unsafe { &raw const (*socket).src_port }) {
                decided.port = 1023;
            }
        } else {
            decided.verdict = Verdict::refuse(Reason::AgentGone, decided.verdict.rule);
        }
    }
    if decided.verdict.outcome != Outcome::Refuse
        && !remember(socket.cast(), &asked, decided, tables.generation())
    {
        decided.verdict = Verdict::refuse(Reason::MapFull, decided.verdict.rule);
    }
    if decided.verdict.outcome != Outcome::Refuse && protocol == IPPROTO_MPTCP {
        // The first subflow is a socket of its own, without this storage.
        if !remember_pending(netns, &asked, decided, tables.generation()) {
            decided.verdict = Verdict::refuse(Reason::MapFull, decided.verdict.rule);
        }
    }
    report_connect(netns, protocol, tables.generation(), &asked, &decided.verdict);
    if decided.verdict.outcome == Outcome::Refuse {
        return Decision::Refuse;
    }
    if decided.destination == asked.destination && decided.port == asked.port {
        return Decision::Leave;
    }
    Decision::Rewrite
}

/// What getpeername will show and what the socket events will compare with.
#[inline(always)]
fn record(asked: &Connect, decided: &Outbound, generation: u64) -> Asked {
    let kind = match decided.verdict.outcome {
        Outcome::Proxy => ASKED_PROXY,
        _ if decided.verdict.reason == Reason::Loopback => ASKED_SELF,
        _ => ASKED_DIRECT,
    };
    Asked {
        address: asked.destination,
        rewritten: decided.destination,
        port: u32::from(asked.port),
        rewritten_port: u32::from(decided.port),
        kind,
        rule: decided.verdict.rule,
        generation,
    }
}

#[inline(never)]
fn remember(socket: *mut core::ffi::c_void, asked: &Connect, decided: &Outbound, generation: u64) -> bool {
    maps::ASKED.set(socket, &record(asked, decided, generation))
}

#[inline(never)]
fn remember_pending(netns: u64, asked: &Connect, decided: &Outbound, generation: u64) -> bool {
    let key = PendingKey { netns, address: decided.destination, port: u32::from(decided.port), pad: 0 };
    maps::PENDING.insert(&key, &Pending { asked: record(asked, decided, generation) }, BPF_ANY.into()).is_ok()
}

#[inline(never)]
fn report_connect(netns: u64, protocol: u32, generation: u64, asked: &Connect, verdict: &Verdict) {
    let tuple = Tuple {
        source: asked.source,
        destination: asked.destination,
        source_port: 0,
        destination_port: asked.port,
    };
    let subject = Subject {
        hook: Hook::Connect,
        netns,
        generation,
        tuple: &tuple,
        protocol,
        detail: 0,
        length: 0,
        in_process: true,
    };
    report(&subject, verdict);
}

#[inline(always)]
fn refuse() -> i32 {
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// Reads a word of the context. Volatile: the verifier wants each field read at its own width.
#[inline(always)]
fn read(field: *const u32) -> u32 {
    unsafe { core::ptr::read_volatile(field) }
}

/// The IPv4 address that the call names.
#[inline(always)]
pub fn user_v4(ctx: *mut bpf_sock_addr) -> Address {
    Address::from_v4(read(unsafe { &raw const (*ctx).user_ip4 }))
}

/// The IPv6 address that the call names.
#[inline(always)]
pub fn user_v6(ctx: *mut bpf_sock_addr) -> Address {
    let words = unsafe { &raw const (*ctx).user_ip6 }.cast::<u32>();
    unsafe { Address::from_v6([read(words), read(words.add(1)), read(words.add(2)), read(words.add(3))]) }
}

/// The port that the call names, in host byte order.
#[inline(always)]
pub fn user_port(ctx: *mut bpf_sock_addr) -> u16 {
    u16::from_be(read(unsafe { &raw const (*ctx).user_port }) as u16)
}

/// Puts another IPv4 address into the call.
#[inline(always)]
pub fn write_v4(ctx: *mut bpf_sock_addr, address: &Address) {
    unsafe { core::ptr::write_volatile(&raw mut (*ctx).user_ip4, address.to_v4()) };
}

/// Puts another IPv6 address into the call.
#[inline(always)]
pub fn write_v6(ctx: *mut bpf_sock_addr, address: &Address) {
    let words = unsafe { &raw mut (*ctx).user_ip6 }.cast::<u32>();
    let new = address.to_v6();
    unsafe {
        core::ptr::write_volatile(words, new[0]);
        core::ptr::write_volatile(words.add(1), new[1]);
        core::ptr::write_volatile(words.add(2), new[2]);
        core::ptr::write_volatile(words.add(3), new[3]);
    }
}

/// Puts another port into the call.
#[inline(always)]
pub fn write_port(ctx: *mut bpf_sock_addr, port: u16) {
    unsafe { core::ptr::write_volatile(&raw mut (*ctx).user_port, u32::from(port.to_be())) };
}
