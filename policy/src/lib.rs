//! Heddle's policy: which workload may talk to which, and why.
//!
//! Pure: no I/O and no clock of its own. [`verdict`] is the one decision about connections; it needs no standard
//! library and is compiled into the kernel programs as well as into the agent.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
mod authorizations;
#[cfg(feature = "std")]
mod authorize;
#[cfg(feature = "std")]
mod compile;
#[cfg(feature = "std")]
mod defaults;
#[cfg(feature = "std")]
pub mod index;
#[cfg(feature = "std")]
pub mod names;
#[cfg(feature = "std")]
mod networks;
#[cfg(feature = "std")]
pub mod problems;
#[cfg(feature = "std")]
pub mod resources;
#[cfg(feature = "std")]
mod servers;
#[cfg(feature = "std")]
pub mod settings;
#[cfg(feature = "std")]
pub mod tables;
pub mod verdict;
#[cfg(feature = "std")]
mod workloads;

#[cfg(feature = "std")]
pub use self::{
    authorize::{ClientIdentity, Decision, Endpoint, Hop, Route},
    compile::Compiled,
    defaults::{DEFAULT_INBOUND_POLICY, DEFAULT_OPAQUE_PORTS, MESH, OPAQUE_PORTS, REQUIRE_IDENTITY_PORTS},
    index::Index,
    problems::{Origin, Problem, Severity},
    settings::{ClusterSettings, DefaultOutbound, SameNode},
    tables::{Capacity, TableSet},
    workloads::{Standing, WorkloadInfo, uid_digest},
};
