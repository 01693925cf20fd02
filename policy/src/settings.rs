//! What holds for the whole cluster and is written in the agent's configuration, not in resources.

use heddle_ebpf::policy::{OUTBOUND_ALLOW, OUTBOUND_CLUSTER, OUTBOUND_DENY};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::{
    names::IdentityNaming,
    resources::{DefaultPolicy, ObjectName},
};

/// Where connections to destinations without a mesh identity may lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultOutbound {
    /// Anywhere.
    #[default]
    Allow,
    /// Into the cluster's networks.
    Cluster,
    /// Nowhere.
    Deny,
}

impl DefaultOutbound {
    /// As the kernel's tables hold it.
    pub const fn code(self) -> u32 {
        match self {
            Self::Allow => OUTBOUND_ALLOW,
            Self::Cluster => OUTBOUND_CLUSTER,
            Self::Deny => OUTBOUND_DENY,
        }
    }
}

/// How flows between two meshed pods of one node are carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNode {
    /// By the kernel, in plain text inside the machine, where no request needs to be read.
    #[default]
    Direct,
    /// Encrypted, like any other.
    Encrypt,
}

/// Where a Service's endpoints come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EndpointSource {
    /// From its EndpointSlices where it has some, else from the pods that it selects: manifests come without slices.
    #[default]
    SlicesOrPods,
    /// From its EndpointSlices alone: a controller writes them.
    Slices,
}

/// The settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterSettings {
    /// The cluster's networks: what `cluster-*` policies and `defaultOutbound: cluster` mean.
    pub cluster_networks: Vec<IpNet>,
    /// The pods' networks: an address in them that no pod is known to have is refused.
    pub pod_networks: Vec<IpNet>,
    /// The Services' networks: the same.
    pub service_networks: Vec<IpNet>,
    /// The nodes' networks: what in them is no pod's may lie in the pods' networks and is known all the same.
    pub node_networks: Vec<IpNet>,
    /// What holds for a port that no Server governs.
    pub default_inbound_policy: DefaultPolicy,
    /// Where plain connections may lead.
    pub default_outbound: DefaultOutbound,
    /// How flows inside the node are carried.
    pub same_node: SameNode,
    /// How identities are spelled.
    pub naming: IdentityNaming,
    /// The cluster's DNS Service.
    pub dns_service: ObjectName,
    /// Where Services lead.
    pub endpoints: EndpointSource,
    /// Whether `linkerd.io/inject: enabled` means this mesh, where `heddle.io/mesh` says nothing.
    pub linkerd_inject: bool,
    /// Other trust domains whose workloads are believed. Certificates decide that; a check of rules wants to know whom they can mean.
    pub federated: Vec<String>,
}

impl Default for ClusterSettings {
    /// Linkerd's cluster networks (RFC 1918, 100.64.0.0/10, fd00::/8), no pod and Service networks, `deny` inbound,
    /// `allow` outbound, `kube-system/kube-dns`.
    fn default() -> Self {
        let v4 =
            |a, b, c, d, bits| Ipv4Net::new(std::net::Ipv4Addr::new(a, b, c, d), bits).ok().map(IpNet::V4);
        let v6 =
            ipnet::Ipv6Net::new(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 8).ok().map(IpNet::V6);
        let networks =
            [v4(10, 0, 0, 0, 8), v4(100, 64, 0, 0, 10), v4(172, 16, 0, 0, 12), v4(192, 168, 0, 0, 16), v6];
        Self {
            cluster_networks: networks.into_iter().flatten().collect(),
            pod_networks: Vec::new(),
            service_networks: Vec::new(),
            node_networks: Vec::new(),
            default_inbound_policy: DefaultPolicy::Deny,
            default_outbound: DefaultOutbound::Allow,
            same_node: SameNode::Direct,
            naming: IdentityNaming::default(),
            dns_service: ObjectName::new("kube-system", "kube-dns"),
            endpoints: EndpointSource::SlicesOrPods,
            linkerd_inject: false,
            federated: Vec::new(),
        }
    }
}

/// A network in the one form that everything compares: without host bits, IPv4 as IPv4.
pub(crate) fn canonical(net: &IpNet) -> IpNet {
    match net.trunc() {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => {
            match v6.network().to_ipv4_mapped().map(|v4| Ipv4Net::new(v4, v6.prefix_len() - 96)) {
                Some(Ok(v4)) => IpNet::V4(v4),
                _ => IpNet::V6(v6),
            }
        }
        net => net,
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn a_network_of_mapped_addresses_is_ipv4s() {
        for (written, meant) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
            // More than the mapped ones, and none of them.
            ("::ffff:0.0.0.0/95", "::fffe:0:0/95"),
            ("fd00::1:2/112", "fd00::1:0/112"),
            ("2001:db8::1/32", "2001:db8::/32"),
        ] {
            let net = canonical(&written.parse().unwrap());
            assert_eq!(net, meant.parse().unwrap(), "{written}");
        }
    }
}
