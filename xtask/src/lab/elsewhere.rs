//! A cluster over several machines: each has a lab with its own nodes, and a real link joins the labs' routers.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::{Context, Result};

/// The file of the agents' authority, in the lab's folder.
const AUTHORITY: &str = "ca/authority.pem";

/// A node of another machine's lab.
pub(super) struct Elsewhere {
    number: u8,
    pods: u8,
}

impl Elsewhere {
    pub(super) fn new(number: u8) -> Self {
        Self { number, pods: 10 }
    }

    /// The next pod's addresses, and its node's.
    pub(super) fn next_addresses(&mut self) -> (Ipv4Addr, Ipv6Addr, IpAddr) {
        let (number, host) = (self.number, self.pods);
        self.pods += 1;
        let v6 = Ipv6Addr::new(0xfd77, number.into(), 0, 0, 0, 0, 0, host.into());
        (Ipv4Addr::new(10, 77, number, host), v6, Ipv4Addr::new(10, 79, number, 2).into())
    }
}

/// The authority that the agents of the lab in this folder made.
pub(super) fn authority(lab: &Path) -> Result<String> {
    let path = lab.join(AUTHORITY);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Has the agents of the lab in this folder use another's authority.
pub(super) fn take_authority(lab: &Path, text: &str) -> Result<()> {
    let path = lab.join(AUTHORITY);
    let folder = path.parent().context("no folder")?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
