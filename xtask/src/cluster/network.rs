//! How the pods of a cluster are connected: the CNI's reference plugin that does it, and the families of their addresses.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;
use xtask::lab::{Node, POD_NETWORKS};

/// What Services' addresses are taken from: the API server takes no IPv6 network that is larger.
const SERVICE_NETWORKS: [&str; 2] = ["10.78.0.0/16", "fd78::/108"];
const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// One of the CNI's reference plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// A veth of its own for each pod, and routes between
    Ptp,
    /// All pods of a node on one bridge, which is their gateway
    Bridge,
}

/// How the pods of a cluster are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
pub struct PodNetwork {
    /// The CNI's reference plugin that connects pods
    #[arg(long, value_enum, default_value_t = Cni::Ptp)]
    pub cni: Cni,
    /// Pods, Services and nodes have IPv6 addresses beside those of IPv4
    #[arg(long)]
    pub dual_stack: bool,
}

impl PodNetwork {
    fn families(self) -> usize {
        if self.dual_stack { 2 } else { 1 }
    }

    /// The networks of pods, one of each family.
    pub fn pod_networks(self) -> Vec<&'static str> {
        POD_NETWORKS.into_iter().take(self.families()).collect()
    }

    /// The networks of Services, one of each family.
    pub fn service_networks(self) -> Vec<&'static str> {
        SERVICE_NETWORKS.into_iter().take(self.families()).collect()
    }

    /// A node's own addresses, one of each family.
    pub fn node_addresses(self, node: &Node) -> Vec<String> {
        [node.v4.to_string(), node.v6.to_string()].into_iter().take(self.families()).collect()
    }

    /// The CNI's configuration on a node. The router knows the way to each node's pods.
    pub fn configuration(self, node: &Node) -> Value {
        let number = node.v4.octets()[2];
        let subnets = [format!("10.77.{number}.0/24"), format!("fd77:{number:x}::/64")];
        let families = self.families();
        let ranges: Vec<Value> =
            subnets.iter().take(families).map(|subnet| json!([{ "subnet": subnet }])).collect();
        let routes: Vec<Value> = EVERYWHERE.iter().take(families).map(|to| json!({ "dst": to })).collect();
        let ipam = json!({
            "type": "host-local",
            "dataDir": "/run/cni-addresses",
            "ranges": ranges,
            "routes": routes,
        });
        let plugin = match self.cni {
            Cni::Ptp => json!({ "type": "ptp", "ipam": ipam }),
            // Without `ipMasq`: pods of other nodes would see the node's address.
            Cni::Bridge => json!({
                "type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true, "ipam": ipam,
            }),
        };
        json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [plugin] })
    }
}

/// The bridge's interface on a node.
pub const BRIDGE: &str = "cni0";

impl fmt::Display for PodNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cni = match self.cni {
            Cni::Ptp => "ptp",
            Cni::Bridge => "bridge",
        };
        write!(f, "{cni}, {}", if self.dual_stack { "IPv4 and IPv6" } else { "IPv4" })
    }
}
