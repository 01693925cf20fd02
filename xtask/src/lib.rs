//! What the developer's commands share with the privileged tests: the lab (nodes and pods out of network
//! namespaces), the demo that runs on it, the same over two machines, the bench, the verifier's cost, the chart, an API
//! server alone and SPIRE.
#![forbid(unsafe_code)]

pub mod api_server;
pub mod bench;
pub mod chart;
pub mod demo;
pub mod lab;
pub mod machines;
pub mod spire;
pub mod verifier;
