//! A pod's ways out of its namespace: found when it is attached, watched from then on.

use std::{collections::HashSet, io, net::IpAddr};

use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_ROUTE};

use super::{
    links::{self, Interface, Kind},
    namespace::Namespace,
};

/// `RTMGRP_LINK`: interfaces that come, go or change.
const LINKS: u32 = 1;

/// What leads out of a namespace.
pub(super) struct Ways {
    /// Veths, each with its end on the host, where it can be guarded.
    pub pairs: Vec<(Interface, Interface)>,
    /// What leads out past any veth of the host's, by name.
    pub unguarded: Vec<String>,
    /// Veths whose other end is in a namespace that is neither the host's nor this one, by name. Before a pod runs
    /// somebody else made it; a pod that runs makes namespaces of its own, from which the only way out is through it.
    pub nested: Vec<String>,
    /// The namespace's addresses beyond the link, loopback's aside.
    pub addresses: Vec<IpAddr>,
}

/// Every way out of `namespace` as it is now.
pub(super) fn ways_out(namespace: &Namespace, home: &Namespace) -> io::Result<Ways> {
    let (inside, host) = (links::interfaces(namespace)?, links::interfaces(home)?);
    let mut ways =
        Ways { pairs: Vec::new(), unguarded: Vec::new(), nested: Vec::new(), addresses: Vec::new() };
    for interface in &inside {
        match interface.kind {
            Kind::Loopback => continue,
            Kind::Inner => {}
            Kind::Other => ways.unguarded.push(interface.name.clone()),
            Kind::Veth => {
                let end = interface.peer.and_then(|peer| {
                    let ours = |end: &&Interface| {
                        end.index == peer && end.kind == Kind::Veth && end.peer == Some(interface.index)
                    };
                    host.iter().find(ours)
                });
                match end {
                    Some(end) => ways.pairs.push((interface.clone(), end.clone())),
                    // Both ends inside the pod: it leads nowhere.
                    None if inside.iter().any(|other| Some(other.index) == interface.peer) => {}
                    None => ways.nested.push(interface.name.clone()),
                }
            }
        }
        ways.addresses.extend(&interface.addresses);
    }
    Ok(ways)
}

impl Ways {
    /// Puts the pair that bears the pod's addresses first; `false` if there is none.
    pub fn own_first(&mut self, expected: &HashSet<IpAddr>) -> bool {
        // A false key sorts before a true one.
        self.pairs.sort_by_key(|(interface, _)| !interface.addresses.iter().any(|ip| expected.contains(ip)));
        self.pairs.first().is_some_and(|(first, _)| !first.addresses.is_empty())
    }
}

/// Hears of a namespace's interfaces. It costs one system call a look as long as nothing changes.
pub(super) struct Watch {
    socket: Socket,
    /// What could not be guarded when it was last looked at, as a person is told it.
    pub unguarded: Vec<String>,
    /// Whether it must be looked at whatever the kernel tells.
    pub again: bool,
}

impl Watch {
    /// Whatever changes from now on is heard.
    pub fn new(namespace: &Namespace) -> io::Result<Self> {
        let socket = namespace.run(|| {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&NetlinkAddress::new(0, LINKS))?;
            socket.set_non_blocking(true)?;
            io::Result::Ok(socket)
        })??;
        Ok(Self { socket, unguarded: Vec::new(), again: false })
    }

    /// Whether anything has changed since the last call.
    pub fn changed(&mut self) -> bool {
        let mut changed = std::mem::take(&mut self.again);
        let mut buffer = Vec::with_capacity(4096);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changed,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // More changed than the socket holds.
                Err(_) => return true,
            }
        }
    }
}
