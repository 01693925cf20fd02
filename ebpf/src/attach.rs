//! What is attached: the pods on this node, their veths, the agent's listeners and its heartbeat.

use crate::{Address, Text};

/// Names of the maps.
pub mod maps {
    /// Network-namespace cookie → [`super::Pod`]. Written by the agent at attach, read by every cgroup program.
    pub const PODS: &str = "pods";
    /// [`crate::Address`] → network-namespace cookie. Written by the agent at attach, read by sk_lookup, the guard and connect.
    pub const POD_ADDRESSES: &str = "pod_addresses";
    /// Host-side interface index → [`super::Veth`]. Written by the agent at attach, read by the guard.
    pub const VETHS: &str = "veths";
    /// Slot → listening socket of the agent's in a pod. Written by the agent, read by sk_lookup.
    pub const LISTENERS: &str = "listeners";
    /// [`super::ListeningKey`] → number of listening sockets. Written by sockops (and seeded at attach), read by sk_lookup.
    pub const LISTENING: &str = "listening";
    /// Socket cookie → [`super::ListeningKey`]: which sockets were counted. Written by sockops and at attach.
    pub const LISTENING_SOCKETS: &str = "listening_socks";
    /// [`super::ListeningKey`] → slot: ports that the agent's listeners occupy, and from which it gives way to a `bind()`.
    pub const LISTENER_PORTS: &str = "listener_ports";
    /// Index 0 → `bpf_ktime_get_ns()` of the agent's last sign of life. Written by the agent.
    pub const HEARTBEAT: &str = "heartbeat";
    /// Index 0 → [`super::Limits`]. Written by the agent at start.
    pub const LIMITS: &str = "limits";
}

/// How many workers of the agent listen in each pod, at most.
pub const WORKERS: u32 = 4;
/// Slots in `listeners` for each pod: outbound and inbound, IPv4 and IPv6, a slot for each worker.
pub const SLOTS_PER_POD: u32 = 4 * WORKERS;
/// How many pods a node may have.
pub const MAX_PODS: u32 = 512;

/// What a listener is for; with the family and the worker it gives the slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum Direction {
    /// Connections of the pod's applications.
    Outbound = 0,
    /// Connections to the pod's applications.
    Inbound = 1,
}

/// The slot of a listener.
#[inline(always)]
pub const fn slot(first: u32, direction: Direction, v4: bool, worker: u32) -> u32 {
    first + (direction as u32 * 2 + if v4 { 0 } else { 1 }) * WORKERS + worker % WORKERS
}

/// Room for `namespace/name` and a zero behind it.
pub const POD_NAME: usize = 128;

/// A captured pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Pod {
    /// Digest of the pod's UID.
    pub uid: u64,
    /// Its IPv4 address in mapped form; unspecified: none.
    pub v4: Address,
    /// Its IPv6 address; unspecified: none.
    pub v6: Address,
    /// The host-side interface.
    pub ifindex: u32,
    /// First slot in `listeners`.
    pub first_slot: u32,
    /// How many workers listen.
    pub workers: u32,
    /// 1: it leaves the mesh. What is carried goes on, and what it opens or is opened to it from now on is left alone.
    pub left: u32,
    /// `namespace/name`.
    pub name: Text<POD_NAME>,
    /// The network namespace's path, by which a restarted agent finds it again.
    pub netns: Text<128>,
}

/// The host side of a captured pod's veth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Veth {
    /// The pod's network-namespace cookie.
    pub netns: u64,
    /// The pod's IPv4 address in mapped form.
    pub v4: Address,
    /// The pod's IPv6 address.
    pub v6: Address,
    /// The pod's MAC address.
    pub mac: [u8; 6],
    /// 1: the pod was captured while it ran, and what its sockets had open before goes on for now. 2: it is being
    /// captured, and what they open now is not judged yet; or it leaves the mesh, and that is judged no longer.
    pub settling: u8,
    /// Zero.
    pub pad: u8,
}

/// A port of a pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct ListeningKey {
    /// The pod's network-namespace cookie.
    pub netns: u64,
    /// In host byte order.
    pub port: u32,
    /// 1: sockets from before the capture, counted by the agent; 0: those that the programs counted.
    pub early: u32,
}

/// Bounds that the programs obey.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Limits {
    /// How old a heartbeat may be, in nanoseconds.
    pub heartbeat_ns: u64,
    /// How many payload-free segments of unmarked sockets a pod may send in a second.
    pub bare_segments_per_second: u64,
    /// The kubelet's cgroup on this node (cgroup v2 id); 0: none, and no probe passes.
    pub kubelet_cgroup: u64,
}

crate::plain!(Pod, Veth, ListeningKey, Limits);
