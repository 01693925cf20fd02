//! The rows of captured pods, in every map that holds some.

use std::{collections::HashSet, net::IpAddr};

use aya::{
    Pod as Plain,
    maps::{HashMap, MapData, SockMap},
};
use heddle_ebpf::{
    Address,
    attach::{ListeningKey, MAX_PODS, Pod, SLOTS_PER_POD, Veth, maps},
    flows::{BareSegments, maps as flow_maps},
};

use super::{error::CaptureError, maps::Pins, walk::Walk};

/// The maps that hold what is attached.
pub(super) struct Maps {
    pub pods: HashMap<MapData, u64, Pod>,
    pub addresses: HashMap<MapData, Address, u64>,
    pub veths: HashMap<MapData, u32, Veth>,
    pub listeners: SockMap<MapData>,
    pub listener_ports: HashMap<MapData, ListeningKey, u32>,
    pub listening: HashMap<MapData, ListeningKey, u64>,
    pub listening_sockets: HashMap<MapData, u64, ListeningKey>,
    pub all_listener_ports: Walk<ListeningKey, u32>,
    pub all_listening: Walk<ListeningKey, u64>,
    pub all_listening_sockets: Walk<u64, ListeningKey>,
    pub bare_segments: HashMap<MapData, u32, BareSegments>,
}

impl Maps {
    pub fn open(pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self {
            pods: pins.hash(maps::PODS)?,
            addresses: pins.hash(maps::POD_ADDRESSES)?,
            veths: pins.hash(maps::VETHS)?,
            listeners: pins.sockets(maps::LISTENERS)?,
            listener_ports: pins.hash(maps::LISTENER_PORTS)?,
            listening: pins.hash(maps::LISTENING)?,
            listening_sockets: pins.hash(maps::LISTENING_SOCKETS)?,
            all_listener_ports: pins
                .walk(maps::LISTENER_PORTS, "reading the ports of the agent's listeners")?,
            all_listening: pins.walk(maps::LISTENING, "reading the ports on which pods listen")?,
            all_listening_sockets: pins
                .walk(maps::LISTENING_SOCKETS, "reading the pods' listening sockets")?,
            bare_segments: pins.hash(flow_maps::BARE_SEGMENTS)?,
        })
    }
}

/// All rows; none where they cannot be read, which is told: those of a namespace that is gone take up room then, and let
/// nobody in.
fn read_or_told<K: Plain, V: Plain>(walk: &Walk<K, V>) -> Vec<(K, V)> {
    walk.rows().unwrap_or_else(|error| {
        tracing::error!(%error, "rows of a pod that is let go stay in a map");
        Vec::new()
    })
}

/// Takes away every row of a namespace's.
pub(super) fn remove_rows(maps: &mut Maps, cookie: u64, addresses: &[Address]) {
    for address in addresses {
        if maps.addresses.get(address, 0).is_ok_and(|owner| owner == cookie) {
            let _ = maps.addresses.remove(address);
        }
    }
    let _ = maps.pods.remove(&cookie);
    for index in interfaces_of(maps, cookie).unwrap_or_else(|error| {
        tracing::error!(%error, "rows of a pod that is let go stay in a map");
        Vec::new()
    }) {
        let _ = maps.veths.remove(&index);
    }
    let ports = read_or_told(&maps.all_listener_ports);
    for (key, _) in ports.iter().filter(|(key, _)| key.netns == cookie) {
        let _ = maps.listener_ports.remove(key);
    }
    let listening = read_or_told(&maps.all_listening);
    for (key, _) in listening.iter().filter(|(key, _)| key.netns == cookie) {
        let _ = maps.listening.remove(key);
    }
    let sockets = read_or_told(&maps.all_listening_sockets);
    for (socket, _) in sockets.iter().filter(|(_, key)| key.netns == cookie) {
        let _ = maps.listening_sockets.remove(socket);
    }
}

/// The host's interfaces that lead into the namespace.
///
/// # Errors
/// When the map cannot be read.
pub(super) fn interfaces_of(maps: &Maps, cookie: u64) -> Result<Vec<u32>, CaptureError> {
    let mut found = Vec::new();
    for row in maps.veths.iter() {
        let (index, veth) = row.map_err(CaptureError::map(maps::VETHS))?;
        if veth.netns == cookie {
            found.push(index);
        }
    }
    Ok(found)
}

/// The ports that the agent's listeners have in the namespace, and an earlier agent's.
///
/// # Errors
/// When the map cannot be read.
pub(super) fn occupied(maps: &Maps, cookie: u64) -> Result<HashSet<u16>, CaptureError> {
    let rows = maps.all_listener_ports.rows()?;
    let own = rows.into_iter().filter(|(key, _)| key.netns == cookie);
    Ok(own.filter_map(|(key, _)| u16::try_from(key.port).ok()).collect())
}

/// The first slots that neither a pod has whose slots are `used` nor one of an earlier agent's that could not be adopted.
///
/// # Errors
/// When the map cannot be read: a slot that is not seen to be used would be given to two.
pub(super) fn free_slot(maps: &Maps, used: impl Iterator<Item = u32>) -> Result<Option<u32>, CaptureError> {
    let mut used: HashSet<u32> = used.collect();
    for row in maps.pods.iter() {
        used.insert(row.map_err(CaptureError::map(maps::PODS))?.1.first_slot);
    }
    Ok((0..MAX_PODS).map(|number| number * SLOTS_PER_POD).find(|first| !used.contains(first)))
}

/// The first of a pod's addresses that is of a family; unspecified: none.
pub(super) fn address(addresses: &[IpAddr], family: impl Fn(&IpAddr) -> bool) -> Address {
    addresses.iter().find(|ip| family(ip)).map_or(Address::UNSPECIFIED, |ip| Address::from(*ip))
}
