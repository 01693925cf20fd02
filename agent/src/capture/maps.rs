//! Every pinned map by name, opened with its types.

use std::path::{Path, PathBuf};

use aya::{
    Pod as Plain,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuHashMap, RingBuf, SkStorage, SockMap},
};

use super::{error::CaptureError, walk::Walk};

/// Every map of the kernel programs; each is pinned under its name.
pub(super) const ALL: &[&str] = &[
    "state",
    "settings",
    "workloads_0",
    "workloads_1",
    "ports_0",
    "ports_1",
    "allows_0",
    "allows_1",
    "networks_0",
    "networks_1",
    "services_0",
    "services_1",
    "backends_0",
    "backends_1",
    "identities_0",
    "identities_1",
    "rules_0",
    "rules_1",
    "pods",
    "pod_addresses",
    "veths",
    "listeners",
    "listening",
    "listening_socks",
    "listener_ports",
    "heartbeat",
    "limits",
    "bare_segments",
    "proxied",
    "direct_flows",
    "direct_seen",
    "hops",
    "probes",
    "pending",
    "udp_flows",
    "agent_marks",
    "direct_marks",
    "asked",
    "packets",
    "counters",
    "events",
];

/// Where the maps are pinned.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    directory: PathBuf,
}

macro_rules! open {
    ($self:ident, $name:ident, $variant:ident, $type:ident) => {
        $type::try_from(Map::$variant($self.data($name)?)).map_err(CaptureError::map($name))
    };
}

impl Pins {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn data(&self, name: &str) -> Result<MapData, CaptureError> {
        MapData::from_pin(self.path(name)).map_err(CaptureError::map(name))
    }

    pub(super) fn hash<K: Plain, V: Plain>(
        &self,
        name: &str,
    ) -> Result<HashMap<MapData, K, V>, CaptureError> {
        open!(self, name, HashMap, HashMap)
    }

    /// A hash map, to be read whole while programs change it.
    pub(super) fn walk<K: Plain, V: Plain>(
        &self,
        name: &str,
        what: &'static str,
    ) -> Result<Walk<K, V>, CaptureError> {
        Ok(Walk::new(what, self.data(name)?))
    }

    pub(super) fn lru<K: Plain, V: Plain>(&self, name: &str) -> Result<HashMap<MapData, K, V>, CaptureError> {
        open!(self, name, LruHashMap, HashMap)
    }

    pub(super) fn array<V: Plain>(&self, name: &str) -> Result<Array<MapData, V>, CaptureError> {
        open!(self, name, Array, Array)
    }

    pub(super) fn trie<K: Plain, V: Plain>(
        &self,
        name: &str,
    ) -> Result<LpmTrie<MapData, K, V>, CaptureError> {
        open!(self, name, LpmTrie, LpmTrie)
    }

    pub(super) fn per_cpu<K: Plain, V: Plain>(
        &self,
        name: &str,
    ) -> Result<PerCpuHashMap<MapData, K, V>, CaptureError> {
        open!(self, name, PerCpuHashMap, PerCpuHashMap)
    }

    pub(super) fn storage<V: Plain>(&self, name: &str) -> Result<SkStorage<MapData, V>, CaptureError> {
        open!(self, name, SkStorage, SkStorage)
    }

    pub(super) fn sockets(&self, name: &str) -> Result<SockMap<MapData>, CaptureError> {
        open!(self, name, SockMap, SockMap)
    }

    pub(super) fn ring(&self, name: &str) -> Result<RingBuf<MapData>, CaptureError> {
        open!(self, name, RingBuf, RingBuf)
    }
}

/// Key and value size of a map whose layout `heddle-ebpf` gives.
pub(super) fn layout(name: &str) -> Option<(u32, u32)> {
    use heddle_ebpf::{Address, attach::*, flows::*, policy::*};
    fn of<K, V>() -> Option<(u32, u32)> {
        Some((size_of::<K>() as u32, size_of::<V>() as u32))
    }
    match name {
        "state" => of::<u32, State>(),
        "settings" => of::<u32, Settings>(),
        "workloads_0" | "workloads_1" => of::<Address, Workload>(),
        "ports_0" | "ports_1" => of::<PortKey, PortPolicy>(),
        "allows_0" | "allows_1" => of::<AllowKey, Allow>(),
        "networks_0" | "networks_1" => of::<NetworkKey, Network>(),
        "services_0" | "services_1" => of::<ServiceKey, Service>(),
        "backends_0" | "backends_1" => of::<BackendKey, Backend>(),
        "identities_0" | "identities_1" | "rules_0" | "rules_1" => of::<u32, Name>(),
        "pods" => of::<u64, Pod>(),
        "pod_addresses" => of::<Address, u64>(),
        "veths" => of::<u32, Veth>(),
        "listening" => of::<ListeningKey, u64>(),
        "listening_socks" => of::<u64, ListeningKey>(),
        "listener_ports" => of::<ListeningKey, u32>(),
        "heartbeat" => of::<u32, u64>(),
        "limits" => of::<u32, Limits>(),
        "proxied" => of::<FlowKey, Origin>(),
        "direct_flows" => of::<Tuple, DirectFlow>(),
        "direct_seen" => of::<SeenKey, u64>(),
        "hops" => of::<FlowKey, Asked>(),
        "probes" => of::<Tuple, u64>(),
        "pending" => of::<PendingKey, Pending>(),
        "udp_flows" => of::<UdpFlow, UdpSeen>(),
        "agent_marks" => of::<i32, AgentMark>(),
        "direct_marks" => of::<i32, DirectMark>(),
        "asked" => of::<i32, Asked>(),
        "bare_segments" => of::<u32, BareSegments>(),
        "packets" => of::<u32, Packet>(),
        "counters" => of::<CounterKey, Count>(),
        _ => None,
    }
}
