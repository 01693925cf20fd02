//! The interfaces of a network namespace, asked of the kernel by netlink.

use std::{collections::BTreeSet, io, net::IpAddr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::{
    address::AddressAttribute,
    link::{InfoKind, LinkAttribute, LinkInfo},
};

use super::namespace::Namespace;

/// An interface.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
    /// The index of the other end, in the other end's namespace.
    pub peer: Option<u32>,
    pub kind: Kind,
    /// Its addresses beyond the link.
    pub addresses: BTreeSet<IpAddr>,
}

/// What matters of an interface's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Loopback,
    Veth,
    /// Leads nowhere but through another interface of the namespace.
    Inner,
    /// Leads out of the namespace past any veth.
    Other,
}

/// Every interface of `namespace`.
pub(super) fn interfaces(namespace: &Namespace) -> io::Result<Vec<Interface>> {
    namespace.run(list)?
}

fn list() -> io::Result<Vec<Interface>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        let mut found = Vec::new();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(io::Error::other)? {
            let mut interface = Interface {
                index: link.header.index,
                name: String::new(),
                mac: [0; 6],
                peer: None,
                kind: Kind::Other,
                addresses: BTreeSet::new(),
            };
            if link.header.link_layer_type == rtnetlink::packet_route::link::LinkLayerType::Loopback {
                interface.kind = Kind::Loopback;
            }
            let mut elsewhere = false;
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => interface.name = name,
                    LinkAttribute::Address(address) => {
                        if let Ok(mac) = address.try_into() {
                            interface.mac = mac;
                        }
                    }
                    LinkAttribute::Link(peer) => interface.peer = Some(peer),
                    LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                    LinkAttribute::LinkInfo(infos) => {
                        for info in infos {
                            if let LinkInfo::Kind(kind) = info {
                                interface.kind = classify(&kind);
                            }
                        }
                    }
                    _ => {}
                }
            }
            if interface.kind == Kind::Inner && elsewhere {
                // What it lies on is in another namespace, and that is where it leads.
                interface.kind = Kind::Other;
            }
            found.push(interface);
        }
        let mut addresses = handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.map_err(io::Error::other)? {
            let Some(interface) = found.iter_mut().find(|interface| interface.index == address.header.index)
            else {
                continue;
            };
            // The local address; on a point-to-point link `Address` is the other side's.
            let mut local = None;
            for attribute in address.attributes {
                match attribute {
                    AddressAttribute::Local(ip) => local = Some(ip),
                    AddressAttribute::Address(ip) if local.is_none() => local = Some(ip),
                    _ => {}
                }
            }
            match local {
                Some(IpAddr::V6(v6)) if v6.is_unicast_link_local() => {}
                Some(ip) => {
                    interface.addresses.insert(ip);
                }
                None => {}
            }
        }
        task.abort();
        Ok(found)
    })
}

/// Whether the interface of the calling thread's namespace has a filter of this priority and handle, leaving and
/// arriving: kernels below 6.6 have no link that could be asked.
pub(super) fn filtered(name: &str, priority: u16, handle: u32) -> io::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        let mut links = netlink.link().get().match_name(name.to_owned()).execute();
        let Some(link) = links.try_next().await.map_err(io::Error::other)? else {
            return Ok(false);
        };
        let index = i32::try_from(link.header.index).map_err(io::Error::other)?;
        for ingress in [true, false] {
            let get = netlink.traffic_filter(index).get();
            let mut filters = Box::pin(if ingress { get.ingress() } else { get.egress() }.execute());
            let mut found = false;
            while let Some(filter) = filters.try_next().await.map_err(io::Error::other)? {
                // The priority is the upper half of the word.
                found |= u32::from(filter.header.handle) == handle
                    && filter.header.info >> 16 == u32::from(priority);
            }
            if !found {
                return Ok(false);
            }
        }
        task.abort();
        Ok(true)
    })
}

fn classify(kind: &InfoKind) -> Kind {
    match kind {
        InfoKind::Veth => Kind::Veth,
        InfoKind::Dummy
        | InfoKind::Ifb
        | InfoKind::Bridge
        | InfoKind::Tun
        | InfoKind::Vrf
        | InfoKind::SitTun
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::GreTap
        | InfoKind::GreTap6
        | InfoKind::Vti
        | InfoKind::Vlan
        | InfoKind::MacVlan
        | InfoKind::MacVtap
        | InfoKind::IpVlan
        | InfoKind::IpVtap
        | InfoKind::Bond
        | InfoKind::Vxlan
        | InfoKind::Wireguard => Kind::Inner,
        InfoKind::Other(name)
            if matches!(name.as_str(), "vti6" | "erspan" | "ip6erspan" | "nlmon" | "team") =>
        {
            Kind::Inner
        }
        _ => Kind::Other,
    }
}
