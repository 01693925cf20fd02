//! What holds for each port of a pod.

use std::{collections::BTreeMap, sync::Arc};

use heddle_ebpf::policy::{PORT_DETECT, PORT_L4_ONLY, PORT_NEEDS_REQUEST};

use super::cluster::Cluster;
use crate::{
    authorizations::{Authorizations, Grant},
    defaults::PodDefaults,
    problems::Problem,
    resources::{NetworkMatch, Pod, PortSet, ProxyProtocol, Server},
    servers::{conflict, governors},
    settings::ClusterSettings,
};

/// What holds for a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PortRules {
    /// What allows, in the order of credit.
    pub(crate) grants: Arc<[Grant]>,
    /// What is named when nothing allows.
    pub(crate) governs: Arc<str>,
    /// `PORT_*`, but for what follows from the grants.
    pub(crate) flags: u8,
}

/// What holds for a pod's ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PodPolicy {
    pub(crate) ports: BTreeMap<u16, PortRules>,
    /// For every other port.
    pub(crate) rest: PortRules,
}

impl PodPolicy {
    pub(super) fn of(
        pod: &Pod,
        cluster: &Cluster<'_>,
        authorizations: &Authorizations,
        settings: &ClusterSettings,
        networks: &Arc<[NetworkMatch]>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let namespace = cluster.namespaces.get(&*pod.meta.namespace).copied();
        let defaults = PodDefaults::of(pod, namespace, settings, problems);
        let none = Vec::new();
        let servers = cluster.servers.get(&*pod.meta.namespace).unwrap_or(&none);
        let governors =
            governors(pod, servers, |winner, loser, port| problems.push(conflict(winner, loser, pod, port)));

        let of_server = |server: &Server| {
            let requests =
                matches!(server.protocol, ProxyProtocol::Http1 | ProxyProtocol::Http2 | ProxyProtocol::Grpc);
            let protocol = match server.protocol {
                ProxyProtocol::Opaque | ProxyProtocol::Tls => PORT_L4_ONLY,
                _ => PORT_DETECT,
            };
            let requests = if requests || cluster.needs_request(server) { PORT_NEEDS_REQUEST } else { 0 };
            PortRules {
                grants: authorizations.of_server(server, networks).into(),
                governs: format!("Server {}", server.meta.object_name()).into(),
                flags: protocol | requests,
            }
        };
        // The four kinds of ports that no Server governs: opaque or not, identity demanded or not.
        let variants: Vec<PortRules> = [(false, false), (false, true), (true, false), (true, true)]
            .into_iter()
            .map(|(opaque, identity)| default_rules(&defaults, opaque, identity, networks))
            .collect();
        let variant =
            |opaque: bool, identity: bool| variants[usize::from(opaque) * 2 + usize::from(identity)].clone();
        let mut ports = BTreeMap::new();
        let mut rest = variant(defaults.opaque.is_all(), defaults.require_identity.is_all());
        if let Some(server) = governors.rest {
            rest = of_server(server);
        } else {
            // A list of every port is in `rest` already.
            let listed =
                [&defaults.opaque, &defaults.require_identity].into_iter().filter(|set| !set.is_all());
            for port in listed.flat_map(PortSet::iter) {
                let rules = variant(defaults.opaque.contains(port), defaults.require_identity.contains(port));
                ports.insert(port, rules);
            }
        }
        ports.extend(governors.ports.iter().map(|(port, server)| (*port, of_server(server))));
        Self { ports, rest }
    }

    /// What holds for a port.
    pub(crate) fn port(&self, port: u16) -> &PortRules {
        self.ports.get(&port).unwrap_or(&self.rest)
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = &PortRules> {
        self.ports.values().chain([&self.rest])
    }
}

fn default_rules(
    defaults: &PodDefaults,
    opaque: bool,
    identity: bool,
    networks: &Arc<[NetworkMatch]>,
) -> PortRules {
    let policy = if identity { defaults.policy.authenticated() } else { defaults.policy };
    let why = if policy == defaults.policy { "" } else { ", identity demanded" };
    let text = format!("default policy {} ({}{why})", policy.as_str(), defaults.source);
    PortRules {
        grants: Grant::by_default(policy, text.clone(), networks).into_iter().collect(),
        governs: text.into(),
        flags: if opaque { PORT_L4_ONLY } else { PORT_DETECT },
    }
}
