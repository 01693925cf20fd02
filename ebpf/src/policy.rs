//! The compiled policy as the kernel holds it: what may talk to whom, in numbers.
//!
//! There are two sets of these maps, `…_0` and `…_1`. [`State::active`] says which one is in force; the agent fills
//! the other, flips the word, waits for a grace period and empties the old one. A reader takes the word once and
//! uses that set alone, so that it sees one generation whole. Written by the agent, read by every program.

use crate::{Address, Text};

/// Names of the maps of one set; `_0` or `_1` is appended.
pub mod maps {
    /// [`super::Address`] → [`super::Workload`].
    pub const WORKLOADS: &str = "workloads";
    /// [`super::PortKey`] → [`super::PortPolicy`].
    pub const PORTS: &str = "ports";
    /// [`super::AllowKey`] → [`super::Allow`].
    pub const ALLOWS: &str = "allows";
    /// [`super::NetworkKey`] → [`super::Network`].
    pub const NETWORKS: &str = "networks";
    /// [`super::ServiceKey`] → [`super::Service`].
    pub const SERVICES: &str = "services";
    /// [`super::BackendKey`] → [`super::Backend`].
    pub const BACKENDS: &str = "backends";
    /// identity id → [`super::Name`].
    pub const IDENTITIES: &str = "identities";
    /// rule id → [`super::Name`].
    pub const RULES: &str = "rules";
    /// Index 0 or 1 → [`super::Settings`] of that set.
    pub const SETTINGS: &str = "settings";
    /// Index 0 → [`super::State`].
    pub const STATE: &str = "state";
}

/// How many places each map of a set has where the configuration says nothing: for a cluster of some ten thousand
/// pods, and some hundred on the node.
#[allow(missing_docs)]
pub mod places {
    pub const WORKLOADS: u32 = 65_536;
    pub const PORTS: u32 = 16_384;
    pub const ALLOWS: u32 = 65_536;
    pub const NETWORKS: u32 = 16_384;
    pub const SERVICES: u32 = 16_384;
    pub const BACKENDS: u32 = 65_536;
    pub const IDENTITIES: u32 = 16_384;
    pub const RULES: u32 = 16_384;
}

/// Which set is in force. One word, so that a flip is one store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct State {
    /// `generation << 1 | set`; 0 before the first publication.
    pub active: u64,
}

impl State {
    /// The word that puts `set` in force as `generation`.
    pub const fn new(generation: u64, set: u32) -> Self {
        Self { active: generation << 1 | (set as u64 & 1) }
    }
    /// The set in force, 0 or 1.
    #[inline(always)]
    pub const fn set(self) -> u32 {
        (self.active & 1) as u32
    }
    /// The generation in force; 0: none was ever published.
    #[inline(always)]
    pub const fn generation(self) -> u64 {
        self.active >> 1
    }
}

/// The workload is meshed: it has an identity, and nobody speaks with it in the clear.
pub const WORKLOAD_MESHED: u32 = 1;
/// The workload runs on this node.
pub const WORKLOAD_LOCAL: u32 = 2;
/// The workload is an endpoint of the cluster's DNS Service.
pub const WORKLOAD_DNS: u32 = 4;
/// The workload enters the mesh or leaves it while it runs: it is spoken to in plain text, unless it is captured on this very
/// node.
pub const WORKLOAD_ASKED_PLAIN: u32 = 8;
/// The workload enters the mesh or leaves it while it runs: what was opened to it in plain text goes on.
pub const WORKLOAD_TAKES_PLAIN: u32 = 16;

/// From this bit on, [`Workload::flags`] holds the number of what leaves the pod: key of `ports` together with
/// [`EGRESS_POLICY`]. 0: only `defaultOutbound` decides.
pub const EGRESS_SHIFT: u32 = 16;
/// Marks a [`PortKey::policy`] as one about what leaves a pod. Of its rows only `networks` counts.
pub const EGRESS_POLICY: u32 = 1 << 30;

/// A pod, by its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Workload {
    /// Digest of the pod's UID: tells a pod from another that takes over its address.
    pub uid: u64,
    /// Key of `identities`; 0: none.
    pub identity: u32,
    /// The class of clients (same identity, same networks) that the pod belongs to; key of `allows`. 0: none.
    pub client: u32,
    /// Key of `ports`. 0: not meshed, or not on this node.
    pub policy: u32,
    /// `WORKLOAD_*`, and from [`EGRESS_SHIFT`] on a number.
    pub flags: u32,
}

/// One port of a pod's policy. Port 0 stands for every port of the protocol that has no row of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct PortKey {
    /// [`Workload::policy`].
    pub policy: u32,
    /// In host byte order.
    pub port: u16,
    /// 6: TCP, 17: UDP.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// The rules can be decided only by reading requests.
pub const PORT_NEEDS_REQUEST: u8 = 1;
/// Some rule may allow a client that has a mesh identity.
pub const PORT_MESH_CLIENTS: u8 = 2;
/// The port carries bytes that nobody needs to read (`opaque`, `TLS`): same-node flows may be `direct`.
pub const PORT_L4_ONLY: u8 = 4;
/// The port is detected as for HTTP later; carried as TCP by the agent now.
pub const PORT_DETECT: u8 = 8;
/// The agent answers at the port for the pod: no application needs to listen there.
pub const PORT_AGENT_ANSWERS: u8 = 16;

/// What holds for a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct PortPolicy {
    /// Key of `allows`. Ports with the same rules share it.
    pub rules: u32,
    /// Key of `networks`: the addresses that need no identity. 0: none.
    pub networks: u32,
    /// Key of `rules`: the Server or default policy that governs the port, named when nothing allows.
    pub governs: u32,
    /// `PORT_*`.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// A class of clients under a port's rules.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct AllowKey {
    /// [`PortPolicy::rules`].
    pub rules: u32,
    /// [`Workload::client`].
    pub client: u32,
}

/// Set in [`Allow::rule`] where the rule denies.
pub const ALLOW_DENIES: u32 = 1 << 31;

/// A rule is about the class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Allow {
    /// Key of `rules`: the rule that allows, or, with [`ALLOW_DENIES`], that denies.
    pub rule: u32,
}

/// The cluster's networks (`clusterNetworks`).
pub const NETWORKS_CLUSTER: u32 = 1;
/// The pods' and Services' own networks, in which an unknown address is refused.
pub const NETWORKS_PODS: u32 = 2;
/// The first set that stands for a port's rules.
pub const NETWORKS_FIRST_FREE: u32 = 16;

/// A network of a set: key of a longest-prefix-match trie.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct NetworkKey {
    /// 32 (the set's bits) plus the length of the prefix in the 128-bit form.
    pub prefix_len: u32,
    /// The set, in network byte order.
    pub set: u32,
    /// The network's address.
    pub address: Address,
}

impl NetworkKey {
    /// The key of `address/bits` (bits of the 128-bit form) in `set`.
    #[inline(always)]
    pub const fn new(set: u32, address: Address, bits: u32) -> Self {
        Self { prefix_len: 32 + bits, set: set.to_be(), address }
    }
}

/// The set says that the network is allowed.
pub const NETWORK_ALLOW: u32 = 1;
/// The set says that the network is denied.
pub const NETWORK_DENY: u32 = 2;
/// Of what leaves a pod: the name that is asked for decides, which the kernel cannot read.
pub const NETWORK_BY_NAME: u32 = 3;

/// What a network in a set means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Network {
    /// Key of `rules`.
    pub rule: u32,
    /// 0: nothing, as an `except` cuts it out; else `NETWORK_*`.
    pub allow: u32,
}

/// A Service's address and port. Port 0 says that the address is a Service's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct ServiceKey {
    /// The cluster address.
    pub address: Address,
    /// In host byte order.
    pub port: u16,
    /// 6: TCP, 17: UDP; 0 with port 0.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// A Service's port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Service {
    /// Key of `backends`.
    pub service: u32,
    /// How many ready endpoints there are: indexes 0 to `backends - 1`.
    pub backends: u32,
    /// `SERVICE_*`.
    pub flags: u32,
}

/// The cluster's DNS Service.
pub const SERVICE_DNS: u32 = 1;
/// Of a port for UDP: an endpoint is meshed. Which one a datagram reaches is decided behind the guard.
pub const SERVICE_MESHED: u32 = 2;

/// One endpoint of a Service's port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct BackendKey {
    /// [`Service::service`].
    pub service: u32,
    /// 0 to [`Service::backends`] − 1.
    pub index: u32,
}

/// Where an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Backend {
    /// The pod's address.
    pub address: Address,
    /// The target port, in host byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// A name for people: an identity (DNS form) or a rule (`kind namespace/name`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Name {
    /// Ends with a zero byte; longer names are cut.
    pub name: Text<192>,
}

/// Plain destinations may be anywhere.
pub const OUTBOUND_ALLOW: u32 = 1;
/// Plain destinations may be in the cluster's networks.
pub const OUTBOUND_CLUSTER: u32 = 2;
/// No plain destinations.
pub const OUTBOUND_DENY: u32 = 3;

/// What holds for the whole node in one generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Settings {
    /// `OUTBOUND_*`; anything else denies.
    pub default_outbound: u32,
    /// 1: same-node flows are encrypted like any other (`sameNode: encrypt`).
    pub same_node_encrypt: u32,
    /// 1: the tables are whole. 0 refuses everything: nothing was published, or something did not fit.
    pub open: u32,
    /// Zero.
    pub pad: u32,
}

crate::plain!(
    State, Workload, PortKey, PortPolicy, AllowKey, Allow, NetworkKey, Network, ServiceKey, Service,
    BackendKey, Backend, Name, Settings,
);
