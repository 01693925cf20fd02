//! Heddle's kernel programs. One decision, `heddle_policy::verdict`, in five places: `connect()`, socket events,
//! the look-up of a socket for a new connection, and packets on the host side of a pod's veth, out and in.
#![no_std]
#![no_main]
// BPF's only assembly here is an atomic addition, which `core` lacks for this target.
#![feature(asm_experimental_arch)]
// A key handed over by value would be copied onto a stack of 512 bytes.
#![allow(clippy::needless_borrows_for_generic_args)]

mod bind;
mod connect;
mod context;
mod guard;
mod judge;
mod lookup;
mod maps;
mod peer;
mod report;
mod sockops;
mod storage;
mod tables;

/// The kernel offers `bpf_sk_storage_get` and others only to programs under a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program reaches this.
    loop {}
}
