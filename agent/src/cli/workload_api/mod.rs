//! The SPIFFE Workload API: certificates with keys of their own for workloads that speak TLS themselves.
//!
//! A unix socket that pods mount. Nobody says who they are: [`attest`] tells it by the network namespace that the caller's
//! socket was made in, by the namespace that its process is in, and by its cgroup, which must all be one captured
//! pod's. [`listener`] takes connections within bounds, [`service`] answers; a stream is attested again before each
//! message and ends with its pod.
//!
//! The key in an answer is never the one that the agent speaks with for the pod, and the certificate bears the SPIFFE
//! name alone: see [`heddle_identity::Svid`].

mod attest;
mod counts;
mod limits;
mod listener;
mod service;
mod socket;

/// The protocol, as `proto/workload.proto` has it.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]
mod rpc {
    tonic::include_proto!("_");
}

pub use attest::{Pod, Pods, Refusal};
pub use counts::Counts;
pub use service::{Parts, serve};
pub use socket::{Beside, SOCKET, listen, withdraw};
