//! What is in force, seen from above: which networks, Servers and trials the compiled rules know of.

use std::{collections::BTreeSet, sync::Arc};

use heddle_ebpf::Address;
use ipnet::IpNet;

use crate::{
    Compiled,
    grant_set::GrantSet,
    grants::{Grant, Specificity},
    policy::PortRules,
    resources::Transport,
};

/// The sets of grants of a port, those of its routes included.
pub(super) fn sets(rules: &PortRules) -> impl Iterator<Item = &Arc<GrantSet>> {
    let routes = rules.requests.routes.iter().flat_map(|routes| routes.entries());
    std::iter::once(&rules.grants).chain(routes.map(|entry| &entry.grants))
}

impl Compiled {
    pub(super) fn all_sets(&self) -> BTreeSet<&Arc<GrantSet>> {
        self.policies.values().flat_map(|policy| policy.inbound.rules()).flat_map(sets).collect()
    }

    fn all_grants(&self) -> impl Iterator<Item = &Grant> {
        self.all_sets().into_iter().flat_map(|set| set.allows.iter().chain(&set.denies))
    }

    /// What governs a port of the meshed pod at `server`: a Server, or a default policy and who says so. `None`: no such pod
    /// on the node.
    pub fn governs(&self, server: &Address, port: u16, transport: Transport) -> Option<&str> {
        Some(&*self.policies.get(server)?.inbound.of(transport).port(port).governs)
    }

    /// The ports of the meshed pod at `server` for which rules of their own are known.
    pub fn ruled_ports(&self, server: &Address, transport: Transport) -> impl Iterator<Item = u16> {
        let policy = self.policies.get(server).into_iter();
        policy.flat_map(move |policy| {
            let ports = policy.inbound.of(transport);
            let admin = policy.inbound.admin.filter(|_| transport == Transport::Tcp);
            // Who reaches the agent there is told where a rule is about it; else it is as with any other port.
            let as_others = move |rules: &PortRules| {
                rules.governs == ports.rest.governs && rules.grants == ports.rest.grants
            };
            let own =
                ports.own.iter().filter(move |(port, rules)| Some(**port) != admin || !as_others(rules));
            own.map(|(port, _)| *port)
        })
    }

    /// Whether a rule of Heddle's allows datagrams to reach the meshed pod at `server`.
    pub fn rules_datagrams(&self, server: &Address) -> bool {
        let own = |it: &Grant| matches!(it.specificity, Specificity::Rule | Specificity::ClusterRule);
        self.policies
            .get(server)
            .is_some_and(|policy| policy.inbound.udp.rules().any(|rules| rules.grants.allows.iter().any(own)))
    }

    /// Every network that a rule of the node's pods names, with what is cut out of it: where answers to clients without an
    /// identity can change.
    pub fn named_networks(&self) -> Vec<IpNet> {
        let lists = self.all_grants().filter_map(|grant| grant.networks.clone());
        let named: BTreeSet<IpNet> = lists
            .flat_map(|list| {
                let each = |it: &crate::resources::NetworkMatch| {
                    it.except.iter().copied().chain([it.cidr]).collect::<Vec<_>>()
                };
                list.iter().flat_map(each).collect::<Vec<_>>()
            })
            .collect();
        named.into_iter().collect()
    }
}
