//! Two nodes without pods, and the words in which tests name pods and addresses.
#![allow(dead_code, reason = "each test uses its own share")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use xtask::lab::{Lab, OUTSIDE, Pod, PodSpec};

/// Nodes a and b.
pub fn lab(name: &str) -> Result<Lab> {
    let mut lab = Lab::new(name)?.node("node-a")?.node("node-b")?;
    lab.binary(env!("CARGO_BIN_EXE_heddle"));
    Ok(lab)
}

/// A meshed pod in namespace `shop` with an account of its own name.
pub fn shop(name: &str, node: &str) -> PodSpec {
    PodSpec::new(name, node).namespace("shop").account(name).meshed()
}

/// All the ways to write an address pair and a port.
pub fn every(v4: Ipv4Addr, v6: Ipv6Addr, port: u16) -> [SocketAddr; 3] {
    [(v4, port).into(), (v6, port).into(), (v4.to_ipv6_mapped(), port).into()]
}

/// All the ways to write a pod's port.
pub fn of_pod(pod: &Pod, port: u16) -> [SocketAddr; 3] {
    every(pod.v4, pod.v6, port)
}

/// The networks of whoever is outside, as a rule names them.
pub fn office() -> [String; 2] {
    let [v4, v6] = OUTSIDE;
    [format!("{v4}/32"), format!("{v6}/128")]
}
