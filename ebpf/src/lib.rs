//! The layout of every map that Heddle's agent shares with its kernel programs.
//!
//! One place for keys, values, limits and codes. Everything is `#[repr(C)]` without implicit padding, so that a
//! key compares byte for byte and `bpftool map dump` (BTF) prints each field by its name. Who writes and who reads
//! a map is said beside it. A change of any layout here must change [`SCHEMA`], which is part of the pin path.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_op_in_unsafe_fn)]

mod address;
pub mod attach;
pub mod codes;
pub mod flows;
pub mod judge;
pub mod policy;

pub use address::Address;

/// Version of everything in this crate. Pins live under `<bpffs>/heddle/v<SCHEMA>/`.
pub const SCHEMA: u32 = 5;

/// Text in a map value. `i8` is turned into BTF's `char` when the programs are built, so that bpftool prints a string.
pub type Text<const N: usize> = [i8; N];

/// Turns `text` into map text: cut at `N - 1` bytes, padded with zeros.
pub const fn text<const N: usize>(text: &str) -> Text<N> {
    let bytes = text.as_bytes();
    let mut out = [0i8; N];
    let mut i = 0;
    while i < bytes.len() && i + 1 < N {
        out[i] = bytes[i] as i8;
        i += 1;
    }
    out
}

/// Declares that a `#[repr(C)]` value without padding may be copied into and out of the kernel as bytes.
#[cfg(feature = "user")]
macro_rules! plain {
    ($($name:ty),+ $(,)?) => { $(
        // SAFETY: `repr(C)`, integers and arrays of integers only, no padding (asserted by the size tests).
        unsafe impl aya::Pod for $name {}
    )+ };
}
#[cfg(not(feature = "user"))]
macro_rules! plain {
    ($($name:ty),+ $(,)?) => {};
}
pub(crate) use plain;

#[cfg(test)]
mod tests;
