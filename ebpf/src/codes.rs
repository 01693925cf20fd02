//! What a decision can be and why: the same numbers in the kernel, in the agent, in metrics and in logs.

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Outcome {
    /// The kernel carries it alone, from socket to socket.
    Direct = 1,
    /// The agent carries it.
    Proxy = 2,
    /// Nothing carries it.
    Refuse = 3,
}

impl Outcome {
    /// The outcome as metrics, logs and events name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Proxy => "proxy",
            Self::Refuse => "refuse",
        }
    }

    /// The outcome of a code that the kernel reported.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Direct),
            2 => Some(Self::Proxy),
            3 => Some(Self::Refuse),
            _ => None,
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $text:literal;)+) => {
        /// Why. The text of each is a metric label and a log field, unchanged.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason { $($(#[doc = $doc])+ $name = $code,)+ }

        impl Reason {
            /// Every reason, in the order of its code.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The reason as metrics, logs and events name it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What the reason means, in a sentence.
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }

            /// The reason of a code that the kernel reported.
            pub const fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// A rule names this client and this port.
    Authorized = 1, "authorized";
    /// Loopback inside the pod, or the pod itself by its own address.
    Loopback = 2, "loopback";
    /// The destination is meshed: the agent speaks mutual TLS with its agent.
    Meshed = 3, "meshed";
    /// The destination is in the cluster but not meshed, and `defaultOutbound` lets it pass in plain text.
    PlainCluster = 4, "plain_cluster";
    /// The destination is outside the cluster, and `defaultOutbound` lets it pass in plain text.
    PlainOutside = 5, "plain_outside";
    /// The client is at no meshed address and a rule written in addresses may allow it: the agent looks closer.
    Unauthenticated = 6, "unauthenticated";
    /// A health probe from this node's kubelet.
    Probe = 7, "probe";
    /// One of the agent's own connections.
    Agent = 8, "agent";
    /// The Service's endpoint whose turn it was is refused; the agent looks for one that is not.
    AnotherEndpoint = 9, "another_endpoint";

    /// No rule allows this client on this port.
    Unauthorized = 20, "unauthorized";
    /// The client shows no mesh identity and no rule allows clients without one.
    NoIdentity = 21, "no_identity";
    /// The port's rules can be decided only by reading requests, which is not done here.
    NeedsRequest = 22, "needs_request";
    /// `defaultOutbound: deny` forbids every plain destination.
    OutboundDenied = 23, "outbound_denied";
    /// `defaultOutbound: cluster` forbids plain destinations outside the cluster's networks.
    OutboundOutsideCluster = 24, "outbound_outside_cluster";
    /// The address belongs to the pods' or Services' networks, but to no pod or Service that is known.
    UnknownClusterAddress = 25, "unknown_cluster_address";
    /// The Service has no such port.
    NoServicePort = 26, "no_service_port";
    /// The Service has no ready endpoint.
    NoEndpoints = 27, "no_endpoints";
    /// The pod at this address is not captured on this node, or is another than the one that is known.
    NotCaptured = 28, "not_captured";
    /// The agent has not been heard of within the heartbeat's bound.
    AgentGone = 29, "agent_gone";
    /// Nobody listens on this port.
    NoListener = 30, "no_listener";
    /// A kernel map is full.
    MapFull = 31, "map_full";
    /// No tables have been published, or they did not fit: everything is refused until they are.
    TablesClosed = 32, "tables_closed";
    /// The connection bears no registered origin.
    NoOrigin = 33, "no_origin";
    /// The flow was allowed once; the rules in force now do not allow it.
    Revoked = 34, "revoked";
    /// A packet with payload whose socket the agent does not own and no table allowed.
    UnmarkedSocket = 35, "unmarked_socket";
    /// A source address or MAC address that is not the pod's.
    Spoofed = 36, "spoofed";
    /// A protocol, an option or a kind of packet that no policy can judge.
    Protocol = 37, "protocol";
    /// A packet that ends early or contradicts itself.
    Malformed = 38, "malformed";
    /// UDP or ICMP between meshed pods, which nothing would encrypt.
    PlainToMeshed = 39, "plain_to_meshed";
    /// The kernel would not hand the connection to the agent's listener.
    AssignFailed = 40, "assign_failed";
    /// A fragment that no policy can judge.
    Fragment = 41, "fragment";
    /// More packets or requests of a kind than may pass in a while.
    RateLimited = 42, "rate_limited";
    /// A rule that denies names this client or this destination, whatever others allow.
    Denied = 43, "denied";
    /// No route of the Server's takes the request.
    NoRoute = 44, "no_route";
    /// Something that is attached to the Server cannot be read.
    InvalidPolicy = 45, "invalid_policy";
    /// The request can be read in two ways, or is none.
    BadRequest = 46, "bad_request";

    /// TLS failed: no ClientHello for this pod's name, no certificate, or one that does not verify.
    TlsFailed = 60, "tls_failed";
    /// The peer's certificate names another identity than the one that the snapshot gives for the address.
    WrongIdentity = 61, "wrong_identity";
    /// The far side's agent or application could not be reached.
    Unreachable = 62, "unreachable";
    /// The far side's agent refused the stream.
    RefusedByPeer = 63, "refused_by_peer";
    /// No certificate for the pod's identity is at hand.
    NoCertificate = 64, "no_certificate";
    /// The client took too long to say who it is.
    TimedOut = 65, "timed_out";
    /// The peer broke the wire protocol.
    BadPeer = 66, "bad_peer";
    /// A limit of the agent's was reached.
    LimitReached = 67, "limit_reached";
    /// The kubelet asked for something else than a probe that the pod declares on this port.
    NotTheProbe = 68, "not_the_probe";
}

/// Which program, or which part of the agent, decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Hook {
    /// `connect()` in a pod.
    Connect = 1,
    /// A new connection that reached a pod.
    Lookup = 2,
    /// A packet that left a pod, seen on the host's side of its veth.
    GuardFromPod = 3,
    /// A packet on its way to a pod, seen on the host's side of its veth.
    GuardToPod = 4,
    /// Socket events in a pod.
    SockOps = 5,
    /// `bind()` in a pod.
    Bind = 6,
    /// The agent, for a connection out of a pod.
    Outbound = 16,
    /// The agent, for a connection into a pod.
    Inbound = 17,
}

impl Hook {
    /// Every hook.
    pub const ALL: &'static [Self] = &[
        Self::Connect,
        Self::Lookup,
        Self::GuardFromPod,
        Self::GuardToPod,
        Self::SockOps,
        Self::Bind,
        Self::Outbound,
        Self::Inbound,
    ];

    /// The hook as metrics, logs and events name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Lookup => "lookup",
            Self::GuardFromPod => "guard_from_pod",
            Self::GuardToPod => "guard_to_pod",
            Self::SockOps => "sock_ops",
            Self::Bind => "bind",
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }

    /// The hook of a code that the kernel reported.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Connect),
            2 => Some(Self::Lookup),
            3 => Some(Self::GuardFromPod),
            4 => Some(Self::GuardToPod),
            5 => Some(Self::SockOps),
            6 => Some(Self::Bind),
            16 => Some(Self::Outbound),
            17 => Some(Self::Inbound),
            _ => None,
        }
    }
}

/// A decision: what, why, and by which rule (an id of the `rules` table of the same generation; 0: none).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Verdict {
    /// What becomes of it.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The rule that decided, or the Server or default policy for want of one.
    pub rule: u32,
}

impl Verdict {
    /// The kernel carries it.
    #[inline(always)]
    pub const fn direct(reason: Reason, rule: u32) -> Self {
        Self { outcome: Outcome::Direct, reason, rule }
    }
    /// The agent carries it.
    #[inline(always)]
    pub const fn proxy(reason: Reason, rule: u32) -> Self {
        Self { outcome: Outcome::Proxy, reason, rule }
    }
    /// Nothing carries it.
    #[inline(always)]
    pub const fn refuse(reason: Reason, rule: u32) -> Self {
        Self { outcome: Outcome::Refuse, reason, rule }
    }
}
