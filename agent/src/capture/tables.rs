//! Publishing compiled policy: fill the set of maps that nobody reads, flip one word, wait until nobody reads the other.

use aya::{
    Pod as Plain,
    maps::{Array, HashMap, LpmTrie, MapData, lpm_trie::Key},
};
use heddle_ebpf::{
    Address,
    policy::{
        Allow, AllowKey, Backend, BackendKey, Name, Network, NetworkKey, PortKey, PortPolicy, Service,
        ServiceKey, Settings, State, Workload, maps,
    },
    text,
};
use heddle_policy::tables::TableSet;

use super::{error::CaptureError, kernel::Kernel, maps::Pins, syscalls::GracePeriod};

const WAITING: &str = "waiting for programs to leave the old tables";

/// A trie's key behind its prefix length: the set in network byte order, then the address.
#[derive(Clone, Copy)]
#[repr(C)]
struct NetworkData {
    set: u32,
    address: Address,
}

#[allow(unsafe_code)]
// SAFETY: `repr(C)`, an integer and bytes, no padding.
unsafe impl Plain for NetworkData {}

/// One of the two sets of maps.
struct Set {
    workloads: HashMap<MapData, Address, Workload>,
    ports: HashMap<MapData, PortKey, PortPolicy>,
    allows: HashMap<MapData, AllowKey, Allow>,
    networks: LpmTrie<MapData, NetworkData, Network>,
    services: HashMap<MapData, ServiceKey, Service>,
    backends: HashMap<MapData, BackendKey, Backend>,
    identities: HashMap<MapData, u32, Name>,
    rules: HashMap<MapData, u32, Name>,
}

/// Writes generation after generation. There is one of it.
pub struct Publication {
    state: Array<MapData, State>,
    settings: Array<MapData, Settings>,
    sets: [Set; 2],
    programs: GracePeriod,
    /// The generation in force when every program had left the set that is not. With another, somebody else has
    /// published, who may have ended before it had waited.
    left: Option<u64>,
}

/// How many rows a generation has, and whether all of them found their place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRows {
    /// Rows that are in the kernel.
    pub written: usize,
    /// The first table that had no room: the generation is closed, and refuses everything.
    pub full: Option<String>,
}

impl Publication {
    /// Opens the pinned tables.
    ///
    /// # Errors
    /// When a map cannot be opened, or programs could not be waited for.
    pub fn open(kernel: &Kernel) -> Result<Self, CaptureError> {
        let pins = &kernel.pins;
        Ok(Self {
            programs: GracePeriod::new().map_err(CaptureError::system(WAITING))?,
            left: None,
            state: pins.array(maps::STATE)?,
            settings: pins.array(maps::SETTINGS)?,
            sets: [Set::open(pins, 0)?, Set::open(pins, 1)?],
        })
    }

    /// The generation in force; 0: none was ever published.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn generation(&self) -> Result<u64, CaptureError> {
        Ok(self.state.get(&0, 0).map_err(CaptureError::map(maps::STATE))?.generation())
    }

    /// Puts `tables` in force as `generation`. Where a table has no room the generation is closed: it refuses
    /// everything rather than forget a rule.
    ///
    /// # Errors
    /// When the kernel refuses. The generation before stays in force, save where only the wait for programs to leave it has
    /// failed: they leave it all the same, and nothing is written over it before they have.
    pub fn publish(&mut self, tables: &TableSet, generation: u64) -> Result<TableRows, CaptureError> {
        let before = self.state.get(&0, 0).map_err(CaptureError::map(maps::STATE))?;
        // The first publication of all goes into set 0: with no generation in force nothing reads either.
        let next = if before.generation() == 0 { 0 } else { 1 - before.set() };
        if self.left != Some(before.generation()) {
            self.wait(before.generation())?;
        }
        let set = &mut self.sets[next as usize];
        set.clear()?;
        let rows = set.fill(tables)?;
        let settings = Settings { open: u32::from(rows.full.is_none()), ..tables.settings };
        self.settings.set(next, settings, 0).map_err(CaptureError::map(maps::SETTINGS))?;
        let flipped = State::new(generation, next);
        self.left = None;
        self.state.set(0, flipped, 0).map_err(CaptureError::map(maps::STATE))?;
        self.wait(generation)?;
        Ok(rows)
    }

    /// Waits until no program reads the set that is not in force; `generation` is.
    fn wait(&mut self, generation: u64) -> Result<(), CaptureError> {
        self.programs.wait().map_err(CaptureError::system(WAITING))?;
        self.left = Some(generation);
        Ok(())
    }
}

impl Set {
    fn open(pins: &Pins, number: u32) -> Result<Self, CaptureError> {
        let name = |table: &str| format!("{table}_{number}");
        Ok(Self {
            workloads: pins.hash(&name(maps::WORKLOADS))?,
            ports: pins.hash(&name(maps::PORTS))?,
            allows: pins.hash(&name(maps::ALLOWS))?,
            networks: pins.trie(&name(maps::NETWORKS))?,
            services: pins.hash(&name(maps::SERVICES))?,
            backends: pins.hash(&name(maps::BACKENDS))?,
            identities: pins.hash(&name(maps::IDENTITIES))?,
            rules: pins.hash(&name(maps::RULES))?,
        })
    }

    fn clear(&mut self) -> Result<(), CaptureError> {
        clear(&mut self.workloads, maps::WORKLOADS)?;
        clear(&mut self.ports, maps::PORTS)?;
        clear(&mut self.allows, maps::ALLOWS)?;
        clear(&mut self.services, maps::SERVICES)?;
        clear(&mut self.backends, maps::BACKENDS)?;
        clear(&mut self.identities, maps::IDENTITIES)?;
        clear(&mut self.rules, maps::RULES)?;
        // A row that stayed behind would be a rule of before: what cannot be read whole is an error.
        let keys: Result<Vec<_>, _> = self.networks.keys().collect();
        for key in keys.map_err(CaptureError::map(maps::NETWORKS))? {
            self.networks.remove(&key).map_err(CaptureError::map(maps::NETWORKS))?;
        }
        Ok(())
    }

    fn fill(&mut self, tables: &TableSet) -> Result<TableRows, CaptureError> {
        let mut rows = TableRows::default();
        fill(&mut self.workloads, maps::WORKLOADS, tables.workloads.iter().map(copied), &mut rows)?;
        fill(&mut self.ports, maps::PORTS, tables.ports.iter().map(copied), &mut rows)?;
        fill(&mut self.allows, maps::ALLOWS, tables.allows.iter().map(copied), &mut rows)?;
        fill(&mut self.services, maps::SERVICES, tables.services.iter().map(copied), &mut rows)?;
        fill(&mut self.backends, maps::BACKENDS, tables.backends.iter().map(copied), &mut rows)?;
        let named = |(id, name): (&u32, &String)| (*id, Name { name: text(name) });
        fill(&mut self.identities, maps::IDENTITIES, tables.identities.iter().map(named), &mut rows)?;
        fill(&mut self.rules, maps::RULES, tables.rules.iter().map(named), &mut rows)?;
        for (key, network) in &tables.networks {
            let NetworkKey { prefix_len, set, address } = *key;
            let key = Key::new(prefix_len, NetworkData { set, address });
            match self.networks.insert(&key, network, 0) {
                Ok(()) => rows.written += 1,
                Err(error) if full(&error) => {
                    rows.full.get_or_insert_with(|| maps::NETWORKS.to_owned());
                    break;
                }
                Err(error) => return Err(CaptureError::map(maps::NETWORKS)(error)),
            }
        }
        Ok(rows)
    }
}

fn copied<K: Copy, V: Copy>((key, value): (&K, &V)) -> (K, V) {
    (*key, *value)
}

fn clear<K: Plain, V: Plain>(map: &mut HashMap<MapData, K, V>, name: &str) -> Result<(), CaptureError> {
    let keys: Result<Vec<K>, _> = map.keys().collect();
    for key in keys.map_err(CaptureError::map(name))? {
        map.remove(&key).map_err(CaptureError::map(name))?;
    }
    Ok(())
}

fn fill<K: Plain, V: Plain>(
    map: &mut HashMap<MapData, K, V>,
    name: &str,
    rows: impl Iterator<Item = (K, V)>,
    written: &mut TableRows,
) -> Result<(), CaptureError> {
    for (key, value) in rows {
        match map.insert(key, value, 0) {
            Ok(()) => written.written += 1,
            Err(error) if full(&error) => {
                written.full.get_or_insert_with(|| name.to_owned());
                return Ok(());
            }
            Err(error) => return Err(CaptureError::map(name)(error)),
        }
    }
    Ok(())
}

/// The kernel's word for a map without room (ENOSPC in tries).
fn full(error: &aya::maps::MapError) -> bool {
    match error {
        aya::maps::MapError::SyscallError(error) => {
            matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM))
        }
        _ => false,
    }
}
