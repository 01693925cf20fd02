//! The data plane.
#![forbid(unsafe_code)]

pub mod wire;
