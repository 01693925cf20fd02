//! The framing `heddle/1`: what two agents say to each other inside TLS.
//!
//! One stream at a time per TLS connection; when its stream is over the connection is idle and carries the next.
//! [`frame`] is the layout of bytes, [`Connection`] is who may say what and when. Neither knows sockets, clocks or
//! buffers: a record's plaintext is an argument, and what is to be sent is returned as a small array. `docs/wire.md`
//! describes the whole byte by byte.

mod connection;
pub mod frame;

pub use connection::{Connection, Event, Misuse, Role, Violation};
pub use frame::{Frame, FrameError, HEADER, MAX_PAYLOAD, Open, RECORD};

/// The name that both sides offer in ALPN; another framing would have another name.
pub const ALPN: &[u8] = b"heddle/1";

/// How many bytes of DATA a side takes and throws away after it sent RESET or REFUSED, until the peer's last frame.
///
/// More than two default-sized kernel buffers hold (`tcp_wmem` and `tcp_rmem` end at 4 and 6 MiB): an honest peer
/// that hears of the reset when it arrives stays below it.
pub const DISCARD_LIMIT: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
