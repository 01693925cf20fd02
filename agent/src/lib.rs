//! Heddle's agent: the one binary's rooms.
//!
//! Imports run one way: `cli` wires the rooms together; `capture`, `proxy` and `observe` read `cluster` and never
//! each other.
#![deny(unsafe_code)]

pub mod capture;
pub mod cli;
pub mod cluster;
pub mod observe;
pub mod proxy;
