//! One generation of policy in numbers: what the kernel's maps hold, in memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use foldhash::fast::RandomState;
use heddle_ebpf::{
    Address,
    policy::{
        Allow, AllowKey, Backend, BackendKey, Network, NetworkKey, PortKey, PortPolicy, Service, ServiceKey,
        Settings, Workload, places,
    },
};
use serde::{Deserialize, Serialize};

use crate::{address_map::AddressMap, networks::masked, verdict::Tables};

/// The tables, each exactly as its map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TableSet {
    /// What holds for the node.
    pub settings: Settings,
    /// Pods by address.
    pub workloads: Workloads,
    /// The ports of this node's meshed pods.
    pub ports: BTreeMap<PortKey, PortPolicy>,
    /// Which classes of this node's clients are allowed under which rules.
    pub allows: BTreeMap<AllowKey, Allow>,
    /// Networks by set.
    pub networks: BTreeMap<NetworkKey, Network>,
    /// Services by address and port.
    pub services: Arc<BTreeMap<ServiceKey, Service>>,
    /// Endpoints of Services.
    pub backends: Arc<BTreeMap<BackendKey, Backend>>,
    /// Identities in their DNS form.
    pub identities: Arc<BTreeMap<u32, String>>,
    /// Rules as people read them.
    pub rules: BTreeMap<u32, String>,
}

/// Pods by address: those of other nodes, which generations share until a pod changes, and those of this one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Workloads {
    elsewhere: AddressMap<Workload>,
    here: HashMap<Address, Workload, RandomState>,
}

impl Workloads {
    pub(crate) fn new(
        elsewhere: AddressMap<Workload>,
        here: impl IntoIterator<Item = (Address, Workload)>,
    ) -> Self {
        Self { elsewhere, here: here.into_iter().collect() }
    }

    /// The pod at an address.
    pub fn get(&self, address: &Address) -> Option<&Workload> {
        self.here.get(address).or_else(|| self.elsewhere.get(address))
    }

    /// Whether a pod is known at an address.
    pub fn contains_key(&self, address: &Address) -> bool {
        self.get(address).is_some()
    }

    /// How many addresses are known.
    pub fn len(&self) -> usize {
        self.here.len() + self.elsewhere.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every one, sorted by address.
    pub fn iter(&self) -> impl Iterator<Item = (&Address, &Workload)> {
        let mut all: Vec<_> = self.here.iter().chain(self.elsewhere.iter()).collect();
        all.sort_unstable_by_key(|(address, _)| **address);
        all.into_iter()
    }

    /// Every address, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &Address> {
        self.iter().map(|(address, _)| address)
    }
}

impl FromIterator<(Address, Workload)> for Workloads {
    fn from_iter<I: IntoIterator<Item = (Address, Workload)>>(rows: I) -> Self {
        Self { elsewhere: AddressMap::default(), here: rows.into_iter().collect() }
    }
}

/// How many entries each map has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Capacity {
    pub workloads: u32,
    pub ports: u32,
    pub allows: u32,
    pub networks: u32,
    pub services: u32,
    pub backends: u32,
    pub identities: u32,
    pub rules: u32,
}

impl Default for Capacity {
    /// Those that the kernel programs are built with.
    fn default() -> Self {
        Self {
            workloads: places::WORKLOADS,
            ports: places::PORTS,
            allows: places::ALLOWS,
            networks: places::NETWORKS,
            services: places::SERVICES,
            backends: places::BACKENDS,
            identities: places::IDENTITIES,
            rules: places::RULES,
        }
    }
}

impl Capacity {
    /// How many places a table has, by its name.
    pub(crate) fn of(&self, table: &str) -> u32 {
        self.by_table().into_iter().find(|(name, _)| *name == table).map_or(0, |(_, places)| places)
    }

    fn by_table(&self) -> [(&'static str, u32); 8] {
        [
            ("workloads", self.workloads),
            ("ports", self.ports),
            ("allows", self.allows),
            ("networks", self.networks),
            ("services", self.services),
            ("backends", self.backends),
            ("identities", self.identities),
            ("rules", self.rules),
        ]
    }
}

/// A table has more entries than its map has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "table {table} needs {needed} entries and has room for {capacity}: raise capacity.{table} in the agent's configuration"
)]
pub struct TooLarge {
    /// The table, as the configuration names it.
    pub table: &'static str,
    /// How many entries it needs.
    pub needed: usize,
    /// How many it has room for.
    pub capacity: u32,
}

impl TableSet {
    /// Whether every table fits into its map.
    pub fn fits(&self, capacity: &Capacity) -> Result<(), TooLarge> {
        let all = capacity.by_table().into_iter();
        all.filter_map(|(table, _)| self.too_large(table, capacity)).next().map_or(Ok(()), Err)
    }

    /// Whether a table does not fit into its map.
    pub(crate) fn too_large(&self, table: &'static str, capacity: &Capacity) -> Option<TooLarge> {
        let needed = usize::try_from(self.rows(table)).unwrap_or(usize::MAX);
        let capacity = capacity.of(table);
        (u32::try_from(needed).map_or(true, |needed| needed > capacity)).then_some(TooLarge {
            table,
            needed,
            capacity,
        })
    }

    /// How many entries a table has, by its name.
    pub fn rows(&self, table: &str) -> u64 {
        let rows = match table {
            "workloads" => self.workloads.len(),
            "ports" => self.ports.len(),
            "allows" => self.allows.len(),
            "networks" => self.networks.len(),
            "services" => self.services.len(),
            "backends" => self.backends.len(),
            "identities" => self.identities.len(),
            "rules" => self.rules.len(),
            _ => 0,
        };
        rows as u64
    }

    /// The tables together with which pods are captured (the digest of the UID, by address), as decisions need them.
    pub fn with_captured<F: Fn(&Address) -> Option<u64>>(&self, captured: F) -> View<'_, F> {
        View { tables: self, captured }
    }

    /// The text of a rule; empty for 0.
    pub fn rule(&self, id: u32) -> &str {
        self.rules.get(&id).map_or("", String::as_str)
    }

    /// The longest prefix of `set` that holds `address`. Keys sort by the prefix's length first, so that the lengths at
    /// which no set has an entry are leapt over.
    fn longest(&self, set: u32, address: &Address) -> Option<&Network> {
        let mut bits = 128;
        loop {
            let key = NetworkKey::new(set, masked(address, bits), bits);
            let (found, network) = self.networks.range(..=key).next_back()?;
            if *found == key {
                return Some(network);
            }
            let below = found.prefix_len.checked_sub(32)?;
            bits = if below < bits { below } else { bits.checked_sub(1)? };
        }
    }
}

/// Tables that the decision can be made over.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, F> {
    tables: &'a TableSet,
    captured: F,
}

impl<F: Fn(&Address) -> Option<u64>> Tables for View<'_, F> {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.tables.settings)
    }
    fn workload(&self, address: &Address) -> Option<&Workload> {
        self.tables.workloads.get(address)
    }
    fn port(&self, policy: u32, port: u16, protocol: u8) -> Option<&PortPolicy> {
        self.tables.ports.get(&PortKey { policy, port, protocol, pad: 0 })
    }
    fn allow(&self, rules: u32, client: u32) -> Option<&Allow> {
        self.tables.allows.get(&AllowKey { rules, client })
    }
    fn network(&self, set: u32, address: &Address) -> Option<&Network> {
        self.tables.longest(set, address)
    }
    fn service(&self, address: &Address, port: u16, protocol: u8) -> Option<&Service> {
        self.tables.services.get(&ServiceKey { address: *address, port, protocol, pad: 0 })
    }
    fn backend(&self, service: u32, index: u32) -> Option<&Backend> {
        self.tables.backends.get(&BackendKey { service, index })
    }
    fn captured(&self, address: &Address) -> Option<u64> {
        (self.captured)(address)
    }
}

#[cfg(test)]
mod tests;
