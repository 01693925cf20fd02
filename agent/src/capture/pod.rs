//! One captured pod.

use std::net::IpAddr;

use heddle_ebpf::{Text, attach::Pod};

use super::namespace::Namespace;

/// A pod that is captured.
#[derive(Clone, Debug)]
pub struct CapturedPod {
    /// Its row in the kernel.
    pub row: Pod,
    /// Its network namespace.
    pub namespace: Namespace,
    /// Its host-side interfaces, the one with its addresses first: index and name.
    pub interfaces: Vec<(u32, String)>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl CapturedPod {
    /// `namespace/name`.
    pub fn name(&self) -> String {
        string(&self.row.name)
    }
}

/// Text of a map, as it is.
pub(super) fn string<const N: usize>(text: &Text<N>) -> String {
    let bytes: Vec<u8> =
        text.iter().take_while(|byte| **byte != 0).map(|byte| byte.cast_unsigned()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
