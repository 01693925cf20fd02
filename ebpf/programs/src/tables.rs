//! The compiled policy as the kernel's maps hold it: one set of the two, taken once for each decision.

use heddle_ebpf::{
    Address,
    codes::Verdict,
    policy::{
        Allow, AllowKey, Backend, BackendKey, Network, NetworkKey, PORT_AGENT_ANSWERS, PortKey, PortPolicy,
        Service, ServiceKey, Settings, State, Workload,
    },
};
use heddle_policy::verdict::{self, Connect, Outbound, TCP, Tables};

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

/// Declares a look-up in the set in force, with its key on a stack of its own: the judgement's is too small for all keys.
macro_rules! lookup {
    ($name:ident($($argument:ident: $type:ty),+) -> $value:ty { $key:expr, $zero:ident, $one:ident }) => {
        #[inline(never)]
        fn $name(set: u32, $($argument: $type),+) -> *const $value {
            let key = $key;
            // SAFETY: the set in force is not written to before a grace period after it was replaced.
            let found = unsafe { if set == 0 { maps::$zero.get(&key) } else { maps::$one.get(&key) } };
            found.map_or(core::ptr::null(), core::ptr::from_ref)
        }
    };
}

lookup!(port_entry(policy: u32, port: u16, protocol: u8) -> PortPolicy {
    PortKey { policy, port, protocol, pad: 0 }, PORTS_0, PORTS_1
});
lookup!(allow_entry(rules: u32, client: u32) -> Allow { AllowKey { rules, client }, ALLOWS_0, ALLOWS_1 });
lookup!(service_entry(address: &Address, port: u16, protocol: u8) -> Service {
    ServiceKey { address: *address, port, protocol, pad: 0 }, SERVICES_0, SERVICES_1
});
lookup!(backend_entry(service: u32, index: u32) -> Backend { BackendKey { service, index }, BACKENDS_0, BACKENDS_1 });

/// A look-up in the trie; its key as above.
#[inline(never)]
fn network_entry(active: u32, set: u32, address: &Address) -> *const Network {
    let key = NetworkKey::new(set, *address, 128);
    let found = if active == 0 { maps::NETWORKS_0.get(&key) } else { maps::NETWORKS_1.get(&key) };
    found.map_or(core::ptr::null(), core::ptr::from_ref)
}

impl Tables for KernelTables {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        if self.state.active == 0 {
            return None;
        }
        maps::SETTINGS.get(self.state.set())
    }
    #[inline(always)]
    fn workload(&self, address: &Address) -> Option<&Workload> {
        // SAFETY: the set in force is not written to before a grace period after it was replaced.
        unsafe {
            if self.state.set() == 0 {
                maps::WORKLOADS_0.get(address)
            } else {
                maps::WORKLOADS_1.get(address)
            }
        }
    }
    #[inline(always)]
    fn port(&self, policy: u32, port: u16, protocol: u8) -> Option<&PortPolicy> {
        // SAFETY: here and below, null or a map value that lives as long as the program runs.
        unsafe { port_entry(self.state.set(), policy, port, protocol).as_ref() }
    }
    #[inline(always)]
    fn allow(&self, rules: u32, client: u32) -> Option<&Allow> {
        unsafe { allow_entry(self.state.set(), rules, client).as_ref() }
    }
    #[inline(always)]
    fn network(&self, set: u32, address: &Address) -> Option<&Network> {
        unsafe { network_entry(self.state.set(), set, address).as_ref() }
    }
    #[inline(always)]
    fn service(&self, address: &Address, port: u16, protocol: u8) -> Option<&Service> {
        unsafe { service_entry(self.state.set(), address, port, protocol).as_ref() }
    }
    #[inline(always)]
    fn backend(&self, service: u32, index: u32) -> Option<&Backend> {
        unsafe { backend_entry(self.state.set(), service, index).as_ref() }
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

/// A port and the protocol that it is one of, in the one register that is left.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Place(u32);

impl Place {
    /// A port of a protocol's.
    #[inline(always)]
    pub const fn new(port: u16, protocol: u8) -> Self {
        Self(port as u32 | (protocol as u32) << 16)
    }
}

/// Judges a connection or a datagram into a pod.
#[inline(never)]
pub fn judge_inbound(
    tables: &KernelTables,
    client: &Address,
    server: &Address,
    place: Place,
    decided: &mut Verdict,
) {
    *decided = verdict::inbound(tables, client, server, place.0 as u16, (place.0 >> 16) as u8);
}

/// Whether the agent answers at a port of a pod's for the pod, so that nobody needs to listen there.
#[inline(never)]
pub fn agent_answers(tables: &KernelTables, server: &Address, port: u16) -> bool {
    let Some(pod) = tables.workload(server) else {
        return false;
    };
    match verdict::port_policy(tables, pod.policy, port, TCP) {
        Some(row) => row.flags & PORT_AGENT_ANSWERS != 0,
        None => false,
    }
}
