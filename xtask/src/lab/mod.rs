//! Nodes, pods and a router out of network namespaces: one builder for every privileged test, the demo and the bench.
//!
//! A lab is made of ordinary parts of Linux and leaves the machine alone: every namespace, link, address, mount and
//! cgroup is its own, and no network namespace but its own has a setting changed. What holds it together is one
//! cgroup, `heddle-<name>-<random>`: every process of the lab lives below it, and every namespace and mount lives
//! as long as those processes do. To remove a lab is to kill that cgroup; a janitor process does so when the lab is
//! dropped and also when its owner is killed, and the next lab sweeps up after a janitor that was killed too.
//!
//! ```text
//!   node-a ── router ── node-b        each pod: its own network namespace, a veth to its node, IPv4 and IPv6
//!   │  │        │         │  │        outside: behind the router, in no node
//!  pods…     outside     pods…
//! ```

mod agent;
pub mod apps;
mod cgroup;
mod door;
mod elsewhere;
mod entrance;
mod manifests;
mod network;
mod node;
pub mod pcap;
mod place;
mod pod;
mod program;
mod sweep;
mod tools;
mod wire;

pub use agent::{Agent, Events, Former, Settings};
pub use door::Answer;
pub use manifests::{Manifests, Service, ServiceSpec};
pub use node::Node;
pub use place::Place;
pub use pod::{Pod, PodSpec};
pub use program::{Output, Running, cpu_time, eventually, slowness, stretched};
pub use sweep::{Traces, exists, kept, remove_kept};
pub use tools::{missing_tools, packages};
pub use wire::Capture;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use self::{cgroup::Cgroup, elsewhere::Elsewhere, sweep::Claim};

/// What the pods' addresses are taken from: `10.77.<node>.0/24` and `fd77:<node>::/64`.
pub const POD_NETWORKS: [&str; 2] = ["10.77.0.0/16", "fd77::/16"];
/// What the Services' addresses are taken from.
pub const SERVICE_NETWORKS: [&str; 2] = ["10.78.0.0/16", "fd78::/16"];
/// What the nodes' own addresses are taken from.
pub const NODE_NETWORKS: [&str; 2] = ["10.79.0.0/16", "fd79::/16"];
/// The address of `outside`: in no network of the cluster's.
pub const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2)),
];

/// A cluster of network namespaces. Dropping it removes it.
pub struct Lab {
    // The claim is dropped last: it is what removes everything.
    nodes: BTreeMap<String, Node>,
    pods: Vec<Pod>,
    services: u16,
    /// Nodes that have a number, here and on other machines.
    numbered: u8,
    elsewhere: BTreeMap<String, Elsewhere>,
    manifests: Manifests,
    router: Place,
    outside: Place,
    settings: Settings,
    binary: Option<PathBuf>,
    claim: Claim,
}

impl Lab {
    /// Begins a lab: the router and `outside` behind it. `name` is for people: lower-case letters, digits, hyphens.
    ///
    /// Leftovers of labs whose owners are dead are removed first.
    ///
    /// # Errors
    /// When not root, when a tool is missing (each named with its Debian package) or when the kernel refuses.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the lab needs root: it makes network namespaces, cgroups and mounts; run it with sudo"
        );
        let missing = missing_tools(&["ip", "nsenter", "unshare", "setpriv", "tcpdump"]);
        ensure!(
            missing.is_empty(),
            "the lab needs tools that are not installed: {}",
            missing
                .iter()
                .map(|(tool, package)| format!("{tool} (package {package})"))
                .collect::<Vec<_>>()
                .join(", ")
        );
        ensure!(
            (1..=24).contains(&name.len())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
            "lab name {name:?}: 1 to 24 lower-case letters, digits and hyphens"
        );
        let claim = Claim::new(name)?;
        let holder = claim.place();
        let router = holder.new_netns("router")?;
        let outside = holder.new_netns("outside")?;
        network::prepare(&router, true)?;
        network::prepare(&outside, false)?;
        network::connect_outside(&router, &outside)?;
        let manifests = Manifests::new(&claim.directory().join("manifests"))?;
        Ok(Self {
            nodes: BTreeMap::new(),
            pods: Vec::new(),
            services: 0,
            numbered: 0,
            elsewhere: BTreeMap::new(),
            manifests,
            router,
            outside,
            settings: Settings::default(),
            binary: None,
            claim,
        })
    }

    /// Adds a node: network and mount namespace, bpffs of its own, cgroup, a veth to the router.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn node(mut self, name: &str) -> Result<Self> {
        self.add_node(name)?;
        Ok(self)
    }

    /// As [`Self::node`], for a lab that is already in a variable.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub fn add_node(&mut self, name: &str) -> Result<()> {
        let number = self.next_number(name)?;
        let node = Node::new(&self.claim, name, number, &self.router)?;
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    fn next_number(&mut self, name: &str) -> Result<u8> {
        ensure!(
            !self.nodes.contains_key(name) && !self.elsewhere.contains_key(name),
            "node {name:?} exists already"
        );
        self.numbered = self.numbered.checked_add(1).context("more nodes than a lab has addresses for")?;
        Ok(self.numbered)
    }

    /// Adds a pod: network namespace, veth to its node, addresses, cgroup, and its manifests (with the Namespace
    /// and ServiceAccount that it names, unless they are there).
    ///
    /// # Errors
    /// When its node does not exist, its name is taken or the kernel refuses.
    pub fn pod(&mut self, spec: &PodSpec) -> Result<Pod> {
        ensure!(
            !self.pods.iter().any(|pod| pod.name == spec.name && pod.namespace == spec.namespace),
            "pod {}/{} exists already",
            spec.namespace,
            spec.name
        );
        let node =
            self.nodes.get(&spec.node).with_context(|| format!("no node {:?} in this lab", spec.node))?;
        let pod = Pod::new(&self.claim, node, spec)?;
        self.manifests.write_pod(&pod.placed(), spec)?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Gives the router an interface of this machine's, on the link to the machines of other nodes. `machine`: this one's
    /// number on it.
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
        self.elsewhere.insert(node.to_owned(), Elsewhere::new(number));
        Ok(())
    }

    /// A pod of a node elsewhere: its manifest alone.
    ///
    /// # Errors
    /// When its node is not known or the folder cannot be written.
    pub fn pod_elsewhere(&mut self, spec: &PodSpec) -> Result<()> {
        let node = self.elsewhere.get_mut(spec.node());
        let node = node.with_context(|| format!("no node {:?} on another machine", spec.node()))?;
        self.manifests.write_pod_elsewhere(node.next_addresses(), spec)
    }

    /// The authority that this lab's agents made, for the agents of another machine.
    ///
    /// # Errors
    /// When no agent has run yet.
    pub fn authority(&self) -> Result<String> {
        elsewhere::authority(self.claim.directory())
    }

    /// Has this lab's agents use the authority of another machine's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn take_authority(&self, text: &str) -> Result<()> {
        elsewhere::take_authority(self.claim.directory(), text)
    }

    /// Removes a pod: its processes, its network namespace and its manifest, in that order.
    ///
    /// # Errors
    /// When the kernel or the folder refuses.
    pub fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        pod.delete()?;
        self.manifests.remove(&manifests::file_name("pod", &pod.namespace, &pod.name))?;
        self.pods.retain(|other| other.name != pod.name || other.namespace != pod.namespace);
        Ok(())
    }

    /// Adds a Service with one IPv4 and one IPv6 cluster address.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn service(&mut self, spec: &ServiceSpec) -> Result<Service> {
        self.services = self.services.checked_add(1).context("more Services than a lab has addresses for")?;
        self.manifests.write_service(spec, self.services)
    }

    /// Writes `yaml` as the file `name` of the manifests folder, replacing it whole.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        self.manifests.write(name, yaml)
    }

    /// The manifests folder.
    pub const fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Uses this `heddle` instead of `$HEDDLE_BIN` or the one beside the running program.
    pub fn binary(&mut self, path: impl Into<PathBuf>) {
        self.binary = Some(path.into());
    }

    /// The configuration that every agent starts from; a change holds from the agent's next start.
    pub const fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Starts an agent on every node that has none, waits until each says it is ready, and attaches every meshed
    /// pod through its node's door.
    ///
    /// # Errors
    /// With the agent's log or its own answer, where it did not start or refused a pod.
    pub fn start_agents(&self) -> Result<()> {
        let names: Vec<&String> = self.nodes.keys().collect();
        for name in &names {
            self.start_agent(name)?;
        }
        Ok(())
    }

    /// Starts the agent of one node and attaches the node's meshed pods, unless it adopted them.
    ///
    /// # Errors
    /// As [`Self::start_agents`].
    pub fn start_agent(&self, node: &str) -> Result<()> {
        let agent = self.agent(node)?;
        if !agent.is_running() {
            agent.start(&self.heddle()?, &self.settings)?;
        }
        for pod in self.pods.iter().filter(|pod| pod.node == node && pod.meshed) {
            agent.attach(pod)?;
        }
        Ok(())
    }

    /// The `heddle` binary that agents and client commands are run from.
    ///
    /// # Errors
    /// When there is none: says where it was looked for.
    pub fn heddle(&self) -> Result<PathBuf> {
        match &self.binary {
            Some(path) => Ok(path.clone()),
            None => program::beside_this_program("heddle", "HEDDLE_BIN", "cargo build -p heddle"),
        }
    }

    /// The agent of a node, running or not.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        Ok(self.at(node)?.agent())
    }

    /// A node.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn at(&self, node: &str) -> Result<&Node> {
        self.nodes.get(node).with_context(|| format!("no node {node:?} in this lab"))
    }

    /// The nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The pods, in the order of their making.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Behind the router and in no node: [`OUTSIDE`] are its addresses.
    pub const fn outside(&self) -> &Place {
        &self.outside
    }

    /// Between the nodes.
    pub const fn router(&self) -> &Place {
        &self.router
    }

    /// Starts a capture of everything that passes between `node` and the router, both ways.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn capture(&self, node: &str) -> Result<Capture> {
        let node = self.at(node)?;
        Capture::start(&self.router, node.router_interface(), self.claim.directory())
    }

    /// Starts a capture on one interface of any place of the lab.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn capture_at(&self, place: &Place, interface: &str) -> Result<Capture> {
        Capture::start(place, interface, self.claim.directory())
    }

    /// `heddle-<name>-<random>`: the prefix of whatever the lab made.
    pub fn id(&self) -> &str {
        self.claim.id()
    }

    /// The lab's own folder, removed with it.
    pub fn directory(&self) -> &Path {
        self.claim.directory()
    }

    /// The lab's cgroup, with one child for each node.
    pub const fn cgroup(&self) -> &Cgroup {
        self.claim.cgroup()
    }

    /// Writes a script that runs programs in the lab's pods, its nodes and outside: `in PLACE PROGRAM…`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn entrance(&self) -> Result<PathBuf> {
        let pods = self.pods.iter().map(|pod| (pod.name.as_str(), pod.place()));
        let nodes = self.nodes.values().map(|node| (node.name.as_str(), node.host()));
        let others = [("outside", &self.outside), ("router", &self.router)];
        entrance::write(self.claim.directory(), pods.chain(nodes).chain(others))
    }

    /// Leaves the lab up when this process ends, until [`remove_kept`] is called or a lab of the same name is made.
    ///
    /// # Errors
    /// When the lab's file cannot be written; then it is removed as ever.
    pub fn keep(mut self) -> Result<()> {
        for node in self.nodes.values() {
            node.agent().let_go();
        }
        self.claim.keep()
    }

    /// The end of every agent's log, for a failure's report.
    pub fn agent_logs(&self) -> String {
        self.nodes
            .values()
            .map(|node| format!("--- {}\n{}\n", node.name, node.agent().log_tail(40)))
            .collect()
    }

    /// Removes the lab and says what is still there, where dropping it would only print that.
    ///
    /// # Errors
    /// When something is left.
    pub fn close(mut self) -> Result<()> {
        let id = self.claim.id().to_owned();
        self.claim.release()?;
        let left = Traces::of_lab(&id)?;
        if !left.is_empty() {
            bail!("lab {id} left behind: {left:?}");
        }
        Ok(())
    }
}
