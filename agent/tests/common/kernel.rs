//! The real kernel programs, loaded by the test itself onto a node of a lab: its own bpffs, its own cgroup.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use heddle::capture::{Capture, Kernel, KernelOptions};
use heddle_ebpf::{
    Address,
    attach::{Limits, Pod},
    text,
};
use xtask::lab::Lab;

/// The programs, loaded for a node on which no agent runs.
pub struct Loaded {
    pub capture: Arc<Capture>,
    options: KernelOptions,
}

impl Loaded {
    pub fn on(lab: &Lab, node: &str) -> Result<Self> {
        let node = lab.at(node)?;
        // /proc/<holder>/ns/net: the node's mounts are reached through the same process.
        let holder = node.host().netns().ancestors().nth(2).context("no holder")?;
        let options = KernelOptions {
            bpffs: holder.join("root/sys/fs/bpf"),
            cgroup: node.cgroup().path().to_owned(),
            limits: Limits { heartbeat_ns: 1, bare_segments_per_second: 1, kubelet_cgroup: 0 },
            capacity: Default::default(),
        };
        let capture = Capture::new(Kernel::load(&options)?, 1)?;
        capture.unfence()?;
        Ok(Self { capture, options })
    }

    /// The same maps again, with programs of their own: several threads may ask at the same time.
    pub fn another_reader(&self) -> Result<Kernel> {
        let kernel = Kernel::load(&self.options)?;
        assert!(kernel.adopted(), "the maps are the pinned ones");
        Ok(kernel)
    }

    fn pin(&self, map: &str) -> PathBuf {
        self.options.bpffs.join(format!("heddle/v{}/maps/{map}", heddle_ebpf::SCHEMA))
    }

    /// Writes the rows that attaching a pod writes, without a pod: `uid` is captured at `ip`.
    pub fn capture_at(&self, ip: IpAddr, netns: u64, uid: u64) -> Result<()> {
        let mut pods: HashMap<MapData, u64, Pod> =
            Map::HashMap(MapData::from_pin(self.pin("pods"))?).try_into()?;
        let mut addresses: HashMap<MapData, Address, u64> =
            Map::HashMap(MapData::from_pin(self.pin("pod_addresses"))?).try_into()?;
        let address = Address::from(ip);
        let none = Address::UNSPECIFIED;
        let (v4, v6) = if ip.is_ipv4() { (address, none) } else { (none, address) };
        let (name, path) = (text("test/pod"), text("/nowhere"));
        let row = Pod { uid, v4, v6, ifindex: 0, first_slot: 0, workers: 1, left: 0, name, netns: path };
        pods.insert(netns, row, 0)?;
        addresses.insert(address, netns, 0)?;
        Ok(())
    }

    /// Takes every row away that [`Self::capture_at`] wrote.
    pub fn capture_none(&self) -> Result<()> {
        let mut pods: HashMap<MapData, u64, Pod> =
            Map::HashMap(MapData::from_pin(self.pin("pods"))?).try_into()?;
        let mut addresses: HashMap<MapData, Address, u64> =
            Map::HashMap(MapData::from_pin(self.pin("pod_addresses"))?).try_into()?;
        for key in pods.keys().collect::<Result<Vec<_>, _>>()? {
            pods.remove(&key)?;
        }
        for key in addresses.keys().collect::<Result<Vec<_>, _>>()? {
            addresses.remove(&key)?;
        }
        Ok(())
    }
}
