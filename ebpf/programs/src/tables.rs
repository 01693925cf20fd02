//! The compiled policy as the kernel's maps hold it: one set of the two, taken once for each decision.

use heddle_ebpf::{
    Address,
    codes::Verdict,
    policy::{
        Allow, AllowKey, Backend, BackendKey, Network, NetworkKey, PortKey, PortPolicy, Service, ServiceKey, Settings,
        State, Workload,
    },
};
use heddle_policy::verdict::{self, Connect, Outbound, Tables};

use crate::maps;

/// The generation in force when it was taken.
#[derive(Clone, Copy)]
pub struct KernelTables {
    state: State,
}

impl KernelTables {
    /// Takes the generation that is in force now.
    #[inline(always)]
    pub fn current() -> Self {
        let active = match maps::STATE.get(0) {
            // SAFETY: an aligned word of a live array; volatile, so that it is read once.
            Some(state) => unsafe { core::ptr::read_volatile(&raw const state.active) },
            None => 0,
        };
        Self { state: State { active } }
    }

    /// Its number.
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.state.generation()
    }
}

/// Reads `$key` from the set in force and copies the value.
macro_rules! get {
    ($self:ident, $zero:ident, $one:ident, $key:expr) => {{
        // SAFETY: the set in force is not written to before a grace period after it was replaced.
        let found = unsafe {
            if $self.state.set() == 0 { maps::$zero.get($key) } else { maps::$one.get($key) }
        };
        found.copied()
    }};
}

impl Tables for KernelTables {
    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        if self.state.active == 0 {
            return None;
        }
        maps::SETTINGS.get(self.state.set()).copied()
    }
    #[inline(always)]
    fn workload(&self, address: &Address) -> Option<Workload> {
        get!(self, WORKLOADS_0, WORKLOADS_1, address)
    }
    #[inline(always)]
    fn port(&self, key: &PortKey) -> Option<PortPolicy> {
        get!(self, PORTS_0, PORTS_1, key)
    }
    #[inline(always)]
    fn allow(&self, key: &AllowKey) -> Option<Allow> {
        get!(self, ALLOWS_0, ALLOWS_1, key)
    }
    #[inline(always)]
    fn network(&self, set: u32, address: &Address) -> Option<Network> {
        let key = NetworkKey::new(set, *address, 128);
        let found = if self.state.set() == 0 { maps::NETWORKS_0.get(&key) } else { maps::NETWORKS_1.get(&key) };
        found.copied()
    }
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        get!(self, SERVICES_0, SERVICES_1, key)
    }
    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        get!(self, BACKENDS_0, BACKENDS_1, key)
    }
    #[inline(always)]
    fn captured(&self, address: &Address) -> Option<u64> {
        // SAFETY: entries are written whole at attach; a reader of a removed one sees the old pod or none.
        unsafe {
            let netns = maps::POD_ADDRESSES.get(address)?;
            Some(maps::PODS.get(netns)?.uid)
        }
    }
}

// The judgements are functions of their own with a stack of their own; results go through pointers, as BPF's calls
// return one register.

/// Judges a connection out of a pod.
#[inline(never)]
pub fn judge_outbound(tables: &KernelTables, asked: &Connect, decided: &mut Outbound) {
    *decided = verdict::outbound(tables, asked);
}

/// Judges a connection into a pod.
#[inline(never)]
pub fn judge_inbound(tables: &KernelTables, client: &Address, server: &Address, port: u16, decided: &mut Verdict) {
    *decided = verdict::inbound(tables, client, server, port);
}
