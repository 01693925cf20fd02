//! A node: what a machine of a cluster has, in namespaces.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context, Result, ensure};

use super::{
    agent::Agent,
    cgroup::Cgroup,
    network,
    place::Place,
    sweep::{Claim, hold},
};

/// A node of the lab.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its own address.
    pub v4: Ipv4Addr,
    /// Its own address.
    pub v6: Ipv6Addr,
    number: u8,
    pods: AtomicU8,
    host: Place,
    cgroup: Cgroup,
    router_interface: String,
    directory: PathBuf,
    agent: Agent,
}

impl Node {
    pub(super) fn new(claim: &Claim, name: &str, number: u8, router: &Place) -> Result<Self> {
        ensure!(
            (1..=10).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "node name {name:?}: 1 to 10 lower-case letters, digits and hyphens"
        );
        let directory = claim.directory().join(name);
        let run = directory.join("run");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&run)?;
        let cgroup = claim.cgroup().child(name)?;
        let host = cgroup.child("host")?;
        let script = if claim.cgroup().path() == claim.cgroup().path_in_node() {
            "mount -t bpf bpf /sys/fs/bpf && echo ready && exec sleep infinity"
        } else {
            "mount -t cgroup2 none \"$1/cgroup\" && mount -t bpf bpf /sys/fs/bpf && echo ready && exec sleep infinity"
        };
        let holder = hold(
            Command::new("unshare")
                .args(["--net", "--mount", "--propagation", "private", "sh", "-c", script, "holder"])
                .arg(claim.directory()),
        )
        .with_context(|| format!("node {name}: its namespaces or the bpf mount on /sys/fs/bpf failed"))?;
        fs::write(host.path().join("cgroup.procs"), holder.to_string())?;
        let host = Place::new(&format!("/proc/{holder}"), claim.directory(), host);
        network::prepare(&host, true)?;
        let router_interface = format!("to-{name}");
        network::connect_node(router, &router_interface, &host, number)?;
        let agent_place = host.in_cgroup(cgroup.child("agent")?);
        let agent = Agent::new(name, &directory, &cgroup, agent_place, claim.directory());
        cgroup.child("kubelet")?;
        Ok(Self {
            name: name.to_owned(),
            v4: Ipv4Addr::new(10, 79, number, 2),
            v6: Ipv6Addr::new(0xfd79, number.into(), 0, 0, 0, 0, 0, 2),
            number,
            pods: AtomicU8::new(10),
            host,
            cgroup,
            router_interface,
            directory,
            agent,
        })
    }

    /// The node's own namespaces: what runs on the host itself and in no pod.
    pub const fn host(&self) -> &Place {
        &self.host
    }

    /// As [`Self::host`], in the cgroup that the agent is told is the kubelet's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kubelet(&self) -> Result<Place> {
        Ok(self.host.in_cgroup(self.cgroup.child("kubelet")?))
    }

    /// The node's cgroup: what the agent attaches to.
    pub const fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The interface of the router's that leads here.
    pub fn router_interface(&self) -> &str {
        &self.router_interface
    }

    /// The node's folder in the lab's: configuration, log and run directory of its agent.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) const fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The next pod's number on this node, and its addresses with the gateways'.
    pub(super) fn next_addresses(&self) -> Result<(u8, [Ipv4Addr; 2], [Ipv6Addr; 2])> {
        let host = self.pods.fetch_add(1, Ordering::Relaxed);
        ensure!(host < 250, "node {}: more pods than a lab has addresses for", self.name);
        let v4 = |last| Ipv4Addr::new(10, 77, self.number, last);
        let v6 = |last: u8| Ipv6Addr::new(0xfd77, self.number.into(), 0, 0, 0, 0, 0, last.into());
        Ok((host, [v4(host), v4(1)], [v6(host), v6(1)]))
    }
}
