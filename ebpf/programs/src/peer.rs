//! `getpeername()` and `accept()` in a pod: the address that the application asked for, or its real client.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use heddle_ebpf::{
    Address,
    flows::{ASKED_CLIENT, ASKED_DIRECT, ASKED_PROXY, ASKED_SELF},
};

use crate::{
    connect::{user_port, user_v4, user_v6, write_port, write_v4, write_v6},
    maps,
};

/// These hooks can only say yes.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn heddle_peer4(ctx: SockAddrContext) -> i32 {
    if let Some((address, port)) = real_peer(&ctx, &user_v4(ctx.sock_addr)) {
        write_v4(ctx.sock_addr, &address);
        write_port(ctx.sock_addr, port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn heddle_peer6(ctx: SockAddrContext) -> i32 {
    if let Some((address, port)) = real_peer(&ctx, &user_v6(ctx.sock_addr)) {
        write_v6(ctx.sock_addr, &address);
        write_port(ctx.sock_addr, port);
    }
    ALLOW
}

#[inline(always)]
fn real_peer(ctx: &SockAddrContext, shown: &Address) -> Option<(Address, u16)> {
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if socket.is_null() {
        return None;
    }
    let asked = maps::ASKED.get(socket.cast())?;
    let real = match asked.kind {
        ASKED_CLIENT => true,
        // Only while the connection is the one that was rewritten.
        ASKED_PROXY | ASKED_DIRECT | ASKED_SELF => {
            asked.rewritten == *shown && asked.rewritten_port == u32::from(user_port(ctx.sock_addr))
        }
        _ => false,
    };
    if !real || asked.address.is_v4() != shown.is_v4() {
        return None;
    }
    Some((asked.address, asked.port as u16))
}
