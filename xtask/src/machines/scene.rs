//! Which pods there are, on which of the two machines.

use anyhow::{Context, Result};
use std::collections::BTreeMap;

use crate::{
    demo::rules,
    lab::{Lab, OUTSIDE, Pod, PodSpec, Running},
};

/// What every page carries.
pub const MARKER: &str = "THE-LOOM-IS-OPEN-7f3a9c";
/// On the first machine: may reach [`WEB`].
pub const CLIENT: &str = "client";
/// On the first machine: in no mesh.
pub const PLAIN: &str = "plain";
/// On the first machine: nginx, which [`WEB`] may reach.
pub const ORDERS: &str = "orders";
/// On the second machine: nginx.
pub const WEB: &str = "web";

/// What a page consists of: more than a packet, and more than a TLS record.
const PAGE: usize = 60_000;

fn pods() -> [PodSpec; 4] {
    let meshed = |name: &str, node: &str| {
        PodSpec::new(name, node).namespace("shop").account(name).meshed().port("http", 8080)
    };
    [meshed(CLIENT, "node-a"), PodSpec::new(PLAIN, "node-a"), meshed(ORDERS, "node-a"), meshed(WEB, "node-b")]
}

/// The page that the servers answer with.
pub fn page() -> String {
    MARKER.repeat(PAGE / MARKER.len()) + "\n"
}

/// This machine's part.
pub struct Scene {
    pub lab: Lab,
    pub pods: BTreeMap<String, Pod>,
    applications: Vec<Running>,
}

impl Scene {
    /// Makes the node of machine `own`, with its pods and applications, and knows of the other's.
    pub fn set(own: u8, interface: &str) -> Result<Self> {
        let mut lab = Lab::new(&lab_name(own))?;
        lab.join(interface, own).context("the link between the machines")?;
        for (number, node) in [(1, "node-a"), (2, "node-b")] {
            if number == own { lab.add_node(node)? } else { lab.elsewhere(node, number)? }
        }
        let mut here = BTreeMap::new();
        for spec in pods() {
            if lab.nodes().any(|node| node.name == spec.node()) {
                let pod = lab.pod(&spec)?;
                here.insert(pod.name.clone(), pod);
            } else {
                lab.pod_elsewhere(&spec)?;
            }
        }
        let [office, _] = OUTSIDE;
        lab.apply(rules::SERVERS, &rules::servers(office))?;
        lab.apply(rules::CLIENTS, &rules::clients())?;
        let web = "web.shop.serviceaccount.identity.linkerd.cluster.local";
        lab.apply("orders.yaml", &rules::server_for(ORDERS, 8080, "buyers", web))?;
        let mut applications = Vec::new();
        for name in [ORDERS, WEB] {
            if let Some(pod) = here.get(name) {
                applications.push(pod.nginx(8080, &page())?);
            }
        }
        Ok(Self { lab, pods: here, applications })
    }

    /// Leaves it up when this process ends.
    pub fn keep(self) -> Result<()> {
        self.applications.into_iter().for_each(Running::leave);
        self.lab.keep()
    }
}

/// The name of the lab of machine `own`.
pub fn lab_name(own: u8) -> String {
    format!("machine-{own}")
}
