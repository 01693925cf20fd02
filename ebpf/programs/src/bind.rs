//! `bind()` in a pod: where an application wants a port that one of the agent's listeners occupies, the agent gives way.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns, generated::bpf_loop},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use heddle_ebpf::{
    Address,
    attach::ListeningKey,
    codes::{Hook, Reason, Verdict},
    flows::Tuple,
};

use crate::{
    connect::{user_port, user_v4, user_v6},
    context::{IPPROTO_MPTCP, IPPROTO_TCP, agent_alive},
    maps,
    report::{Subject, report},
};

const ALLOW: i32 = 1;
/// Looks at the map this often at most, and for this long, before it lets the call fail as it would. The processor and
/// the kernel's grace periods wait for it.
const LOOKS: u32 = 1 << 23;
const PATIENCE_NS: u64 = 1_000_000_000;

/// What is waited for.
struct Wanted {
    key: ListeningKey,
    until: u64,
}

#[cgroup_sock_addr(bind4)]
pub fn heddle_bind4(ctx: SockAddrContext) -> i32 {
    give_way(&ctx, &user_v4(ctx.sock_addr))
}

#[cgroup_sock_addr(bind6)]
pub fn heddle_bind6(ctx: SockAddrContext) -> i32 {
    give_way(&ctx, &user_v6(ctx.sock_addr))
}

#[inline(always)]
fn give_way(ctx: &SockAddrContext, address: &Address) -> i32 {
    let protocol = unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).protocol) };
    let port = u32::from(user_port(ctx.sock_addr));
    if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) || port == 0 {
        return ALLOW;
    }
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let key = ListeningKey { netns, port, early: 0 };
    if maps::LISTENER_PORTS.get_ptr(&key).is_none() {
        return ALLOW;
    }
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if socket.is_null() || maps::AGENT_MARKS.get(socket.cast()).is_some() || !agent_alive() {
        return ALLOW;
    }
    let tuple = Tuple {
        source: *address,
        destination: Address::UNSPECIFIED,
        source_port: port as u16,
        destination_port: 0,
    };
    let subject = Subject {
        hook: Hook::Bind,
        netns,
        generation: 0,
        tuple: &tuple,
        protocol,
        detail: port,
        length: 0,
        in_process: true,
    };
    // An event wakes the agent, which closes that listener and takes the entry away.
    report(&subject, &Verdict::refuse(Reason::Agent, 0));
    // SAFETY: a helper without conditions.
    let mut wanted = Wanted { key, until: unsafe { bpf_ktime_get_ns() } + PATIENCE_NS };
    unsafe { bpf_loop(LOOKS, occupied as *mut core::ffi::c_void, (&raw mut wanted).cast(), 0) };
    ALLOW
}

/// One look: 0 goes on, 1 ends the loop.
extern "C" fn occupied(_look: u64, wanted: *mut core::ffi::c_void) -> i64 {
    // SAFETY: what `give_way` lent to the loop; and a helper without conditions.
    let (wanted, now) = unsafe { (&*wanted.cast::<Wanted>(), bpf_ktime_get_ns()) };
    if maps::LISTENER_PORTS.get_ptr(&wanted.key).is_some() && now < wanted.until { 0 } else { 1 }
}
