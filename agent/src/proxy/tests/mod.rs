//! Relays over loopback, with real sockets and real TLS.
//!
//! One [`World`] has a node of the client's (outbound) and one of the server's (inbound), each with workers of its
//! own, and an application behind the second.

mod far_server;
mod limits;
mod neighbors;
mod open_server;
mod refusals;
mod renewals;
mod slow_wire;
mod speed;
mod streams;
mod world;
