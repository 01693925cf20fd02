//! What the developer's commands share with the privileged tests: the lab (nodes and pods out of network
//! namespaces), the demo that runs on it, the same over two machines, the bench and the verifier's cost.
#![forbid(unsafe_code)]

pub mod bench;
pub mod demo;
pub mod lab;
pub mod machines;
pub mod verifier;
