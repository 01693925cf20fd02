//! Connections: the tuples that were registered before their SYN left, the marks on sockets, counters and events.

use crate::{Address, Text};

/// Names of the maps.
pub mod maps {
    /// [`super::FlowKey`] → [`super::Origin`]: connections on their way to the agent's outbound listeners. Written by sockops before
    /// the SYN, read by sk_lookup, taken by the agent at accept.
    pub const PROXIED: &str = "proxied";
    /// `PROBES`: [`super::Tuple`] → time: connections of the kubelet's, seen on the host side of the veth. Written by the guard, read by sk_lookup and the agent.
    pub const PROBES: &str = "probes";
    /// [`super::Tuple`] → [`super::DirectFlow`]: every live `direct` connection, from before its SYN until its client's
    /// socket closes. Written by sockops, read by sk_lookup, the guard and the agent.
    pub const DIRECT_FLOWS: &str = "direct_flows";
    /// [`super::SeenKey`] → count: `direct` connections that were accepted. Written by sockops, read and emptied by the agent.
    pub const DIRECT_SEEN: &str = "direct_seen";
    /// [`super::FlowKey`] → [`super::Asked`]: the agent's hops to applications under way, with the real client. Written and deleted by sockops.
    pub const HOPS: &str = "hops";
    /// Socket storage, inherited by accepted children: [`super::AgentMark`]. Written by the agent.
    pub const AGENT_MARKS: &str = "agent_marks";
    /// Socket storage, not inherited: [`super::DirectMark`]. Written by sockops, read and renewed by the guard.
    pub const DIRECT_MARKS: &str = "direct_marks";
    /// Socket storage: [`super::Asked`], what the application asked for or who its client is. Written by connect and sockops, read by getpeername.
    pub const ASKED: &str = "asked";
    /// [`super::PendingKey`] → [`super::Pending`]: connects of MPTCP sockets, whose first subflow is another socket. Least recently used goes first.
    pub const PENDING: &str = "pending";
    /// [`super::UdpFlow`] → [`super::UdpSeen`]: UDP that left or reached a pod, so that answers pass. Least recently used goes first.
    pub const UDP_FLOWS: &str = "udp_flows";
    /// Host-side interface index → [`super::BareSegments`]. Written by the guard, removed by the agent with the pod.
    pub const BARE_SEGMENTS: &str = "bare_segments";
    /// Direction (0: from a pod, 1: to a pod) → [`super::Packet`] a CPU: what the guard is looking at. Written and read by it alone.
    pub const PACKETS: &str = "packets";
    /// [`super::CounterKey`] → [`super::Count`] a CPU. Written by the programs.
    pub const COUNTERS: &str = "counters";
    /// Ring buffer of [`super::Event`]. Written by the programs, read by the agent.
    pub const EVENTS: &str = "events";
}

/// A connection's addresses: from the client to the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct Tuple {
    /// The client's address.
    pub source: Address,
    /// The server's address.
    pub destination: Address,
    /// The client's port, in host byte order.
    pub source_port: u16,
    /// The server's port, in host byte order.
    pub destination_port: u16,
}

impl Tuple {
    /// The same connection as the other side's packets show it.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// A connection inside one pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct FlowKey {
    /// The pod's network-namespace cookie.
    pub netns: u64,
    /// Its addresses.
    pub tuple: Tuple,
    /// Zero.
    pub pad: u32,
}

/// What the application asked for when its connection was turned to the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Origin {
    /// The application's socket.
    pub socket: u64,
    /// The address it asked for.
    pub address: Address,
    /// The port it asked for, in host byte order.
    pub port: u32,
    /// Zero.
    pub pad: u32,
}

/// A live `direct` connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct DirectFlow {
    /// The client pod's network-namespace cookie.
    pub netns: u64,
    /// The generation that allowed it.
    pub generation: u64,
    /// The rule that allowed it.
    pub rule: u32,
    /// 1: it leads to a captured pod of this node that has not accepted it yet.
    pub opening: u32,
}

/// The socket is the client's.
pub const ROLE_CLIENT: u32 = 1;
/// The socket is the server's.
pub const ROLE_SERVER: u32 = 2;

/// The packet carries ARP.
pub const LAYER3_ARP: u8 = 1;
/// It carries IPv4.
pub const LAYER3_IPV4: u8 = 2;
/// It carries IPv6.
pub const LAYER3_IPV6: u8 = 3;

/// What the guard has read of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Packet {
    /// From the sender to the receiver, zero where there are no ports. For an echo its identifier is the source port.
    pub tuple: Tuple,
    /// Where the transport header begins.
    pub transport: u32,
    /// Bytes after the transport header.
    pub payload: u32,
    /// `LAYER3_*`; 0: nothing was read.
    pub layer3: u8,
    /// The IP protocol.
    pub protocol: u8,
    /// TCP flags, or ICMP's type.
    pub flags: u8,
    /// IPv6 hop limit or IPv4 time to live.
    pub hops: u8,
    /// 1: a fragment after the first; it has no ports.
    pub fragment: u8,
    /// Zero.
    pub pad: u8,
    /// The sender's MAC address.
    pub mac: [u8; 6],
}

/// `direct` connections that are alike. All zeros: those for which the map had no room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct SeenKey {
    /// The client's address.
    pub source: Address,
    /// The server's address.
    pub destination: Address,
    /// The generation that allowed them.
    pub generation: u64,
    /// The rule that allowed them.
    pub rule: u32,
    /// The server's port, in host byte order.
    pub port: u32,
}

/// What a socket of the agent's is for.
pub const MARK_LISTENER: u32 = 1;
/// A connection from the agent to the destination's agent or to a plain destination.
pub const MARK_UPSTREAM: u32 = 2;
/// The agent's hop to the application inside the pod.
pub const MARK_HOP: u32 = 3;

/// The agent's mark on its own sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct AgentMark {
    /// `MARK_*`.
    pub kind: u32,
    /// The real client's port, for a hop; in host byte order.
    pub client_port: u32,
    /// The real client's address, for a hop.
    pub client: Address,
}

/// The kernel tables' permission on a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct DirectMark {
    /// The generation under which it was last judged.
    pub generation: u64,
    /// From the client to the server.
    pub tuple: Tuple,
    /// `ROLE_*`.
    pub role: u32,
    /// The rule that allowed it.
    pub rule: u32,
    /// Zero.
    pub pad: u32,
}

/// The socket's connection was rewritten and goes to the agent.
pub const ASKED_PROXY: u32 = 1;
/// The kernel carries it; the address may have been a Service's.
pub const ASKED_DIRECT: u32 = 2;
/// The socket was accepted from the agent's hop: the address is the real client's.
pub const ASKED_CLIENT: u32 = 3;
/// Inside the pod: loopback or its own address.
pub const ASKED_SELF: u32 = 4;

/// What getpeername shows: the address that the application asked for, or its real client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Asked {
    /// The address.
    pub address: Address,
    /// The address that `connect()` was rewritten to.
    pub rewritten: Address,
    /// In host byte order.
    pub port: u32,
    /// The port that `connect()` was rewritten to, in host byte order.
    pub rewritten_port: u32,
    /// `ASKED_*`.
    pub kind: u32,
    /// The rule that decided.
    pub rule: u32,
    /// The generation that decided.
    pub generation: u64,
}

/// A connect of an MPTCP socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct PendingKey {
    /// The pod's network-namespace cookie.
    pub netns: u64,
    /// Where `connect()` was rewritten to.
    pub address: Address,
    /// In host byte order.
    pub port: u32,
    /// Zero.
    pub pad: u32,
}

/// Its decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Pending {
    /// What was asked.
    pub asked: Asked,
}

/// UDP between a pod and somebody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct UdpFlow {
    /// As the pod's own packets show it.
    pub tuple: Tuple,
    /// 17: UDP, 1 or 58: an echo, whose identifier is the source port.
    pub protocol: u32,
}

/// A conversation in UDP, or an echo and its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct UdpSeen {
    /// `bpf_ktime_get_ns()` of its last packet.
    pub seen_ns: u64,
    /// The generation under which it was last judged.
    pub generation: u64,
    /// The pod's network-namespace cookie: who takes over its address does not take over its conversations.
    pub netns: u64,
    /// `ROLE_*`: whether the pod opened it or somebody else.
    pub role: u32,
    /// Zero.
    pub pad: u32,
}

/// How many payload-free segments of unmarked sockets a pod sent in the current second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct BareSegments {
    /// `bpf_ktime_get_ns()` of the second's beginning.
    pub since_ns: u64,
    /// Segments since then.
    pub count: u64,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct CounterKey {
    /// The pod's network-namespace cookie; 0: none.
    pub netns: u64,
    /// [`crate::codes::Hook`].
    pub hook: u32,
    /// [`crate::codes::Outcome`].
    pub outcome: u32,
    /// [`crate::codes::Reason`].
    pub reason: u32,
    /// Zero.
    pub pad: u32,
}

/// How often, and how much.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Count {
    /// Connections or packets.
    pub count: u64,
    /// Bytes, where packets are counted.
    pub bytes: u64,
}

/// A refusal or a drop, told as it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Event {
    /// `bpf_ktime_get_ns()`.
    pub time_ns: u64,
    /// The pod's network-namespace cookie.
    pub netns: u64,
    /// The generation that decided.
    pub generation: u64,
    /// From the client to the server, or from sender to receiver of a packet.
    pub tuple: Tuple,
    /// [`crate::codes::Hook`].
    pub hook: u32,
    /// [`crate::codes::Outcome`].
    pub outcome: u32,
    /// [`crate::codes::Reason`].
    pub reason: u32,
    /// Key of `rules` in that generation.
    pub rule: u32,
    /// IP protocol.
    pub protocol: u32,
    /// TCP flags of a dropped segment, or the port that a bind asked for; else 0.
    pub detail: u32,
    /// Length of a dropped packet; else 0.
    pub length: u32,
    /// The process that called, as `comm`.
    pub command: Text<16>,
    /// Its process id in the host's pid namespace; 0 where packets are judged.
    pub pid: u32,
    /// Zero.
    pub pad: u32,
}

impl Event {
    /// Whether an event's bytes say that socket events refused a connection under way: the pod's cookie, and the tuple.
    pub fn unregistered(bytes: &[u8]) -> Option<(u64, Tuple)> {
        let take = |at: usize, length: usize| bytes.get(at..at + length);
        let word = |at| Some(u32::from_ne_bytes(take(at, 4)?.try_into().ok()?));
        let port = |at| Some(u16::from_ne_bytes(take(at, 2)?.try_into().ok()?));
        let address = |at| Some(Address { bytes: take(at, 16)?.try_into().ok()? });
        if bytes.len() < size_of::<Self>()
            || word(core::mem::offset_of!(Self, hook))? != crate::codes::Hook::SockOps as u32
            || word(core::mem::offset_of!(Self, outcome))? != crate::codes::Outcome::Refuse as u32
        {
            return None;
        }
        let netns = u64::from_ne_bytes(take(core::mem::offset_of!(Self, netns), 8)?.try_into().ok()?);
        let tuple = core::mem::offset_of!(Self, tuple);
        let tuple = Tuple {
            source: address(tuple + core::mem::offset_of!(Tuple, source))?,
            destination: address(tuple + core::mem::offset_of!(Tuple, destination))?,
            source_port: port(tuple + core::mem::offset_of!(Tuple, source_port))?,
            destination_port: port(tuple + core::mem::offset_of!(Tuple, destination_port))?,
        };
        Some((netns, tuple))
    }

    /// Whether an event's bytes ask the agent to give way to a `bind()`: the pod's cookie, and the port.
    pub fn wanted_port(bytes: &[u8]) -> Option<(u64, u16)> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if bytes.len() < size_of::<Self>()
            || word(core::mem::offset_of!(Self, hook))? != crate::codes::Hook::Bind as u32
        {
            return None;
        }
        let netns = core::mem::offset_of!(Self, netns);
        let netns = u64::from_ne_bytes(bytes.get(netns..netns + 8)?.try_into().ok()?);
        Some((netns, u16::try_from(word(core::mem::offset_of!(Self, detail))?).ok()?))
    }
}

crate::plain!(
    BareSegments,
    Tuple,
    FlowKey,
    Origin,
    DirectFlow,
    SeenKey,
    AgentMark,
    DirectMark,
    Asked,
    PendingKey,
    Pending,
    UdpFlow,
    UdpSeen,
    CounterKey,
    Count,
    Event,
);
