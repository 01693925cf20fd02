//! The data plane: every connection that the agent carries.
//!
//! A few worker threads, each with a runtime, listeners, buffers and a pool of its own; a connection lives and dies
//! on one of them, as one task that carries both its directions. What the rest of the agent must provide is declared
//! in [`environment`]; what two agents say to each other is [`wire`] and `docs/wire.md`.
//!
//! ```text
//! application -> outbound -> relay ==TLS, heddle/1== relay <- inbound -> application
//!                   |          |                       |         |
//!                 pool       secure (tls, wire, buffers)     handshake
//! ```
#![forbid(unsafe_code)]

mod application;
mod buffers;
mod copy;
pub mod environment;
mod handshake;
mod inbound;
mod inflow;
mod outbound;
mod polling;
mod pool;
mod probe;
mod registry;
mod relay;
mod run;
mod secure;
mod settings;
mod sockets;
mod tls;
mod turns;
pub mod wire;
mod worker;
mod workers;

pub use settings::Settings;
pub use workers::{AttachError, PodListeners, WorkerListeners, Workers};

#[cfg(test)]
mod tests;
