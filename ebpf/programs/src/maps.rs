//! Every map, by the name that bpftool shows. What each holds, who writes and who reads it is said in `heddle-ebpf`.
//! Sizes are defaults; the agent sets them from its configuration when it loads the programs.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SockMap},
    macros::btf_map,
};
use heddle_ebpf::{
    Address,
    attach::{Limits, ListeningKey, MAX_PODS, Pod, SLOTS_PER_POD, Veth},
    flows::{
        AgentMark, Asked, BareSegments, Count, CounterKey, DirectFlow, DirectMark, FlowKey, Origin, Packet,
        Pending, PendingKey, SeenKey, Tuple, UdpFlow, UdpSeen,
    },
    policy::{
        Allow, AllowKey, Backend, BackendKey, Name, Network, NetworkKey, PortKey, PortPolicy, Service,
        ServiceKey, Settings, State, Workload, places,
    },
};

use crate::storage::{INHERITED, OWN, SkStorage, Trie};

const LAZY: usize = BPF_F_NO_PREALLOC as usize;

macro_rules! maps {
    ($($name:literal $ident:ident: $type:ty;)+) => {
        $(#[btf_map(name = $name)] pub static $ident: $type = <$type>::new();)+
    };
}

maps! {
    "state" STATE: Array<State, 1>;
    "settings" SETTINGS: Array<Settings, 2>;
    "workloads_0" WORKLOADS_0: HashMap<Address, Workload, { places::WORKLOADS as usize }, LAZY>;
    "workloads_1" WORKLOADS_1: HashMap<Address, Workload, { places::WORKLOADS as usize }, LAZY>;
    "ports_0" PORTS_0: HashMap<PortKey, PortPolicy, { places::PORTS as usize }, LAZY>;
    "ports_1" PORTS_1: HashMap<PortKey, PortPolicy, { places::PORTS as usize }, LAZY>;
    "allows_0" ALLOWS_0: HashMap<AllowKey, Allow, { places::ALLOWS as usize }, LAZY>;
    "allows_1" ALLOWS_1: HashMap<AllowKey, Allow, { places::ALLOWS as usize }, LAZY>;
    "networks_0" NETWORKS_0: Trie<NetworkKey, Network, { places::NETWORKS as usize }>;
    "networks_1" NETWORKS_1: Trie<NetworkKey, Network, { places::NETWORKS as usize }>;
    "services_0" SERVICES_0: HashMap<ServiceKey, Service, { places::SERVICES as usize }, LAZY>;
    "services_1" SERVICES_1: HashMap<ServiceKey, Service, { places::SERVICES as usize }, LAZY>;
    "backends_0" BACKENDS_0: HashMap<BackendKey, Backend, { places::BACKENDS as usize }, LAZY>;
    "backends_1" BACKENDS_1: HashMap<BackendKey, Backend, { places::BACKENDS as usize }, LAZY>;
    "identities_0" IDENTITIES_0: HashMap<u32, Name, { places::IDENTITIES as usize }, LAZY>;
    "identities_1" IDENTITIES_1: HashMap<u32, Name, { places::IDENTITIES as usize }, LAZY>;
    "rules_0" RULES_0: HashMap<u32, Name, { places::RULES as usize }, LAZY>;
    "rules_1" RULES_1: HashMap<u32, Name, { places::RULES as usize }, LAZY>;

    "pods" PODS: HashMap<u64, Pod, { MAX_PODS as usize }, LAZY>;
    "pod_addresses" POD_ADDRESSES: HashMap<Address, u64, { 2 * MAX_PODS as usize }, LAZY>;
    "veths" VETHS: HashMap<u32, Veth, { MAX_PODS as usize }, LAZY>;
    "listeners" LISTENERS: SockMap<{ (MAX_PODS * SLOTS_PER_POD) as usize }>;
    "listening" LISTENING: HashMap<ListeningKey, u64, 65536, LAZY>;
    "listening_socks" LISTENING_SOCKETS: HashMap<u64, ListeningKey, 65536, LAZY>;
    "listener_ports" LISTENER_PORTS: HashMap<ListeningKey, u32, { (MAX_PODS * SLOTS_PER_POD) as usize }, LAZY>;
    "heartbeat" HEARTBEAT: Array<u64, 1>;
    "limits" LIMITS: Array<Limits, 1>;
    "bare_segments" BARE_SEGMENTS: HashMap<u32, BareSegments, { MAX_PODS as usize }, LAZY>;

    "proxied" PROXIED: HashMap<FlowKey, Origin, 65536, LAZY>;
    "direct_flows" DIRECT_FLOWS: HashMap<Tuple, DirectFlow, 262144, LAZY>;
    "direct_seen" DIRECT_SEEN: HashMap<SeenKey, u64, 16384, LAZY>;
    "hops" HOPS: HashMap<FlowKey, Asked, 65536, LAZY>;
    "probes" PROBES: LruHashMap<Tuple, u64, 4096>;
    "pending" PENDING: LruHashMap<PendingKey, Pending, 4096>;
    "udp_flows" UDP_FLOWS: LruHashMap<UdpFlow, UdpSeen, 65536>;
    "agent_marks" AGENT_MARKS: SkStorage<AgentMark, INHERITED>;
    "direct_marks" DIRECT_MARKS: SkStorage<DirectMark, OWN>;
    "asked" ASKED: SkStorage<Asked, OWN>;

    // Not on the stack: a value that comes out of a map has one state for the verifier, whichever way it came in, so
    // that what follows is verified once and not once for each kind of packet.
    "packets" PACKETS: PerCpuArray<Packet, 2>;
    "counters" COUNTERS: PerCpuHashMap<CounterKey, Count, 16384, LAZY>;
    // No value of its own: what is in it is reserved as an `Event`. libbpf loads no ring buffer that declares one.
    "events" EVENTS: RingBuf<(), 262144>;
}
