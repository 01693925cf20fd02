//! Heddle's policy: which workload may talk to which, and why.
//!
//! Pure: no I/O and no clock of its own. [`verdict`] is the one decision about connections; it needs no standard
//! library and is compiled into the kernel programs as well as into the agent.
//!
//! # From manifests to an answer
//!
//! 1. [`resources::parse_file`] reads documents into [`resources::Resource`]s and tells what is wrong with each as a
//!    [`Problem`] with its file, line, field, reason and remedy.
//! 2. A [`Compiler`] takes resources as they come and go, in any order, and compiles: for one node, or (without a node)
//!    for the whole cluster. Only what a change touches is worked out anew. [`Index`] is the resources alone, for a
//!    folder that is looked at once: `Index::of(parsed).compile_cluster(&settings, now)`.
//! 3. [`Compiled`] answers:
//!    - [`Compiled::decide`] judges a [`Connection`] that reached a pod, [`Compiled::decide_datagram`] a [`Datagram`];
//!    - [`Compiled::decide_request`] judges a [`Request`] of it, and names the route that takes it and the limits on its rate;
//!    - [`Compiled::explain`] gives the same with the chain of rules that were considered, and why each did or did not match;
//!    - [`Compiled::outbound`] tells where a connection out of a pod leads, and [`Compiled::by_name`] judges the name
//!      that it asks for;
//!    - [`Compiled::pods`], [`Compiled::workload`] and [`Compiled::service`] tell who is where;
//!    - [`Compiled::tables`] are what the kernel holds, [`Compiled::problems`] what is wrong with the resources taken
//!      together, [`Compiled::next_expiry`] when to compile again.
//!
//! A [`Decision`] is a verdict (outcome, reason, the rule's number), the rule as people read it, whether only `audit`
//! allows it, and which rule that is only tried would have turned it.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
mod address_map;
#[cfg(feature = "std")]
mod applying;
#[cfg(feature = "std")]
mod authorizations;
#[cfg(feature = "std")]
mod base;
#[cfg(feature = "std")]
mod churn;
#[cfg(feature = "std")]
mod clients;
#[cfg(feature = "std")]
mod compile;
#[cfg(feature = "std")]
mod compiler;
#[cfg(feature = "std")]
mod datagrams;
#[cfg(feature = "std")]
mod decide;
#[cfg(feature = "std")]
mod defaults;
#[cfg(feature = "std")]
mod egress;
#[cfg(feature = "std")]
mod endpoints;
#[cfg(feature = "std")]
mod explain;
#[cfg(feature = "std")]
mod grant_set;
#[cfg(feature = "std")]
mod grants;
#[cfg(feature = "std")]
pub mod index;
#[cfg(feature = "std")]
mod limits;
#[cfg(feature = "std")]
pub mod lint;
#[cfg(feature = "std")]
pub mod names;
#[cfg(feature = "std")]
mod namespace;
#[cfg(feature = "std")]
mod networks;
#[cfg(feature = "std")]
mod outbound;
#[cfg(feature = "std")]
mod parts;
#[cfg(feature = "std")]
mod path;
#[cfg(feature = "std")]
mod policy;
#[cfg(feature = "std")]
pub mod problems;
#[cfg(feature = "std")]
pub mod request;
#[cfg(feature = "std")]
pub mod resources;
#[cfg(feature = "std")]
mod room;
#[cfg(feature = "std")]
mod rule_ids;
#[cfg(feature = "std")]
mod rules;
#[cfg(feature = "std")]
mod servers;
#[cfg(feature = "std")]
mod services;
#[cfg(feature = "std")]
pub mod settings;
#[cfg(feature = "std")]
pub mod tables;
pub mod verdict;
#[cfg(feature = "std")]
mod ways;
#[cfg(feature = "std")]
mod workloads;

#[cfg(feature = "std")]
pub use self::{
    base::External,
    clients::ClientIdentity,
    compile::Compiled,
    compiler::Compiler,
    datagrams::{Datagram, Sender},
    decide::{Connection, Decision, MatchedRoute, RequestDecision},
    defaults::{
        DEFAULT_INBOUND_POLICY, DEFAULT_OPAQUE_PORTS, INJECT, MESH, OPAQUE_PORTS, REQUIRE_IDENTITY_PORTS,
    },
    explain::{Effect, Explanation, Step},
    index::Index,
    limits::{Bucket, Budget, RateLimits},
    outbound::{Endpoint, Hop, Route},
    problems::{Origin, Problem, Severity},
    request::Request,
    settings::{ClusterSettings, DefaultOutbound, EndpointSource, SameNode},
    tables::{Capacity, TableSet},
    workloads::{Standing, WorkloadInfo, uid_digest},
};
