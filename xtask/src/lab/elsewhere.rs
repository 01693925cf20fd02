//! A cluster over several machines: each has a lab with its own nodes, and a real link joins the labs' routers.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result};

use super::{Lab, network, pod::Placed, pod::PodSpec};

/// The file of the agents' authority, in the lab's folder.
const AUTHORITY: &str = "ca/authority.pem";

/// A node of another machine's lab.
pub(super) struct Elsewhere {
    number: u8,
    pods: u8,
}

impl Lab {
    /// Gives the router an interface of this machine's, on the link to the others'. `machine`: this one's number on it.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn join(&self, interface: &str, machine: u8) -> Result<()> {
        network::join(&self.router, interface, machine)
    }

    /// A node of the machine that has number `machine` on the link. Nodes, and the pods of each, must be named in the
    /// same order on every machine: their addresses follow from it.
    ///
    /// # Errors
    /// When the kernel refuses the routes.
    pub fn elsewhere(&mut self, node: &str, machine: u8) -> Result<()> {
        let number = self.next_number(node)?;
        network::route_elsewhere(&self.router, number, machine)?;
        self.elsewhere.insert(node.to_owned(), Elsewhere { number, pods: 10 });
        Ok(())
    }

    /// A pod of a node elsewhere: its manifest alone. Its addresses are returned.
    ///
    /// # Errors
    /// When its node is not known or the folder cannot be written.
    pub fn pod_elsewhere(&mut self, spec: &PodSpec) -> Result<(Ipv4Addr, Ipv6Addr)> {
        let node = self
            .elsewhere
            .get_mut(&spec.node)
            .with_context(|| format!("no node {:?} on another machine", spec.node))?;
        let (number, host) = (node.number, node.pods);
        node.pods += 1;
        let uid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot read a random uid")?;
        let placed = Placed {
            uid: uid.trim(),
            v4: Ipv4Addr::new(10, 77, number, host),
            v6: Ipv6Addr::new(0xfd77, number.into(), 0, 0, 0, 0, 0, host.into()),
            host: IpAddr::V4(Ipv4Addr::new(10, 79, number, 2)),
        };
        self.manifests.write_pod(&placed, spec)?;
        Ok((placed.v4, placed.v6))
    }

    /// The authority that this lab's agents made, for the agents of another machine.
    ///
    /// # Errors
    /// When no agent has run yet.
    pub fn authority(&self) -> Result<String> {
        let path = self.claim.directory().join(AUTHORITY);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Has this lab's agents use the authority of another machine's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn take_authority(&self, text: &str) -> Result<()> {
        use std::{io::Write as _, os::unix::fs::DirBuilderExt as _, os::unix::fs::OpenOptionsExt as _};
        let path = self.claim.directory().join(AUTHORITY);
        let folder = path.parent().context("no folder")?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}
