//! Heddle's own rules, ServerAuthorizations and EgressNetworks.

use std::{collections::BTreeMap, net::IpAddr};

use heddle_policy::{
    DefaultOutbound,
    resources::{
        AccessRule, Action, Direction, EgressScope, IdentityMatch, Kind, Meta, NetworkMatch, ObjectName,
        ParentKind, Parents, Peer, Pod, PortMatch, Resource, Selector, Server, ServerClients, ServerRef,
        Transport,
    },
};

use super::{Client, Credit, Reference, dns, entry_allows, entry_means, has_port, picks, spellings, within};
use crate::random::NOW;

fn covers(networks: &[NetworkMatch], address: IpAddr) -> bool {
    networks.iter().any(|it| within(&it.cidr, address) && !it.except.iter().any(|cut| within(cut, address)))
}

impl<'a> Reference<'a> {
    /// The ServerAuthorizations of a Server, and whether each holds.
    pub(super) fn older_forms(&self, server: &Server, client: &Client) -> Vec<(&'a Meta, bool)> {
        let mut found = Vec::new();
        for it in self.resources {
            let Resource::ServerAuthorization(it) = it else { continue };
            let Some(rule) = it.rule.as_ref().filter(|_| it.meta.namespace == server.meta.namespace) else {
                continue;
            };
            let selected = match &rule.servers {
                ServerRef::Name(name) => *name == server.meta.name,
                ServerRef::Selector(selector) => picks(selector, &server.meta.labels),
            };
            if !selected {
                continue;
            }
            let named = match &rule.clients {
                ServerClients::Unauthenticated => true,
                ServerClients::UnauthenticatedTls => client.tls,
                ServerClients::Identities(entries) => entries.iter().any(|entry| entry_allows(entry, client)),
            };
            let near = match &rule.networks {
                None => self.in_cluster(client.address),
                Some(networks) => covers(networks, client.address),
            };
            found.push((&it.meta, named && near));
        }
        found
    }

    fn namespaces(&self) -> Vec<&'a Meta> {
        let all = self.resources.iter();
        all.filter_map(|it| if let Resource::Namespace(meta) = it { Some(meta) } else { None }).collect()
    }

    fn picks_namespace(&self, selector: &Selector, name: &str) -> bool {
        let meta = self.namespaces().into_iter().find(|meta| meta.name == name);
        let mut labels: BTreeMap<String, String> =
            meta.map(|meta| (*meta.labels).clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        picks(selector, &labels)
    }

    /// Heddle's rules that are in force for a pod.
    fn in_force(&self, pod: &Pod) -> Vec<&'a AccessRule> {
        let all = self.resources.iter();
        all.filter_map(|it| if let Resource::AccessRule(it) = it { Some(it) } else { None })
            .filter(|it| {
                let namespaces = match (&it.spec, &it.closes) {
                    (Some(spec), _) => Some(&spec.namespaces),
                    (None, Some(closes)) => closes.namespaces.as_ref(),
                    (None, None) => return false,
                };
                match it.kind {
                    Kind::AccessRule => it.meta.namespace == pod.meta.namespace,
                    _ => namespaces.is_none_or(|it| self.picks_namespace(it, &pod.meta.namespace)),
                }
            })
            .filter(|it| {
                let pods = match (&it.spec, &it.closes) {
                    (Some(spec), _) => Some(&spec.pods),
                    (None, Some(closes)) => closes.pods.as_ref(),
                    (None, None) => None,
                };
                pods.is_none_or(|selector| picks(selector, &pod.meta.labels))
            })
            .filter(|it| it.spec.as_ref().and_then(|spec| spec.expires).is_none_or(|at| at > NOW))
            .collect()
    }

    fn about_port(rule: &AccessRule, pod: &Pod, port: u16, transport: Transport) -> bool {
        let Some(spec) = &rule.spec else { return true };
        if spec.transport.is_some_and(|own| own != transport) {
            return false;
        }
        spec.ports.is_empty()
            || spec.ports.iter().any(|it| match it {
                PortMatch::Range(first, last) => (*first..=*last).contains(&port),
                PortMatch::Name(name) => has_port(pod, name, port, transport),
            })
    }

    fn peer_holds(&self, peer: &Peer, client: &Client, denies: bool) -> bool {
        let says_who = !peer.identities.is_empty() || peer.namespaces.is_some();
        let means = |entry: &IdentityMatch| {
            if denies { entry_means(entry, client) } else { entry_allows(entry, client) }
        };
        let spares = |entry: &IdentityMatch| {
            if denies { entry_allows(entry, client) } else { entry_means(entry, client) }
        };
        let in_namespace = |selector: &Selector| {
            let known = self.namespaces();
            known
                .iter()
                .filter(|meta| self.picks_namespace(selector, &meta.name))
                .any(|meta| entry_allows(&IdentityMatch::Namespace(meta.name.clone()), client))
        };
        let named = !says_who
            || peer.identities.iter().any(means)
            || peer.namespaces.as_ref().is_some_and(in_namespace);
        let excepted = peer.except.iter().any(spares);
        let anybody_else = !says_who && !peer.except.is_empty() && client.is_foreign();
        // Somebody without a name may be anybody: refused wherever "not X" is said.
        let unknown = !peer.except.is_empty() && client.names.is_empty();
        let who = if unknown { denies && !says_who } else { named && !excepted && (denies || !anybody_else) };
        who && (peer.networks.is_empty() || covers(&peer.networks, client.address))
    }

    /// Heddle's rules about a port: the order of credit, the name, whether it denies and whether it holds.
    pub(super) fn access_rules(
        &self,
        pod: &Pod,
        port: u16,
        transport: Transport,
        client: &Client,
    ) -> Vec<(Credit, String, bool, bool)> {
        let mut found = Vec::new();
        for rule in self.in_force(pod) {
            let rank = if rule.kind == Kind::AccessRule { 3 } else { 4 };
            let credit = (rank, rule.meta.created.is_none(), rule.meta.created);
            let Some(spec) = &rule.spec else {
                found.push((credit, name(rule), true, true));
                continue;
            };
            let Direction::Inbound(peers) = &spec.direction else { continue };
            if spec.audit || !Self::about_port(rule, pod, port, transport) {
                continue;
            }
            let denies = spec.action == Action::Deny;
            let holds = peers.iter().any(|peer| self.peer_holds(peer, client, denies));
            found.push((credit, name(rule), denies, holds));
        }
        found
    }

    /// The rules about what leaves: whether each denies, is about names, and holds for an address.
    fn leaving(&self, source: IpAddr, address: IpAddr, port: u16, transport: Transport) -> Vec<(bool, bool)> {
        let Some(pod) = self.pod_at(source) else { return Vec::new() };
        let mut found = Vec::new();
        for rule in self.in_force(pod) {
            let Some(spec) = &rule.spec else {
                found.push((true, false));
                continue;
            };
            let Direction::Outbound(destinations) = &spec.direction else { continue };
            if spec.audit || !Self::about_port(rule, pod, port, transport) {
                continue;
            }
            for to in destinations {
                let holds = if to.identities.is_empty() {
                    to.networks.is_empty() || covers(&to.networks, address)
                } else {
                    let names = match (self.pod_at(address), self.external_at(address)) {
                        (Some(other), _) if self.wants_mesh(other) => {
                            spellings(&dns(&ObjectName::new(&*other.meta.namespace, &*other.service_account)))
                        }
                        (None, Some(other)) => vec![other.identity.clone()],
                        _ => Vec::new(),
                    };
                    let there = Client { names, address, tls: true };
                    spec.action == Action::Deny && to.identities.iter().any(|it| entry_means(it, &there))
                };
                if holds {
                    found.push((spec.action == Action::Deny, !to.hosts.is_empty()));
                }
            }
        }
        found
    }

    /// What an EgressNetwork says, if one is about the address: whether it allows, and whether routes hang on it.
    fn egress_network(&self, source: IpAddr, address: IpAddr) -> Option<(bool, bool)> {
        let pod = self.pod_at(source)?;
        let all = || {
            self.resources
                .iter()
                .filter_map(|it| if let Resource::EgressNetwork(it) = it { Some(it) } else { None })
        };
        let own = all().any(|it| it.meta.namespace == pod.meta.namespace);
        let namespace = if own { &*pod.meta.namespace } else { "linkerd-egress" };
        let mut best: Vec<_> = all()
            .filter(|it| it.meta.namespace == namespace)
            .filter_map(|it| {
                // The whole of a family is outside what lies in it; a cluster of everything has no outside.
                let whole = |net: &ipnet::IpNet| net.prefix_len() == 0 && within(net, address);
                let nets = &self.settings.cluster_networks;
                let outside = !self.in_cluster(address) || nets.iter().any(whole);
                let outside = (outside && !self.inside_smaller(address)).then_some(0);
                let block = match &it.scope {
                    EgressScope::OutsideCluster => outside,
                    EgressScope::Networks(networks) => networks
                        .iter()
                        .filter(|net| covers(std::slice::from_ref(net), address))
                        .map(|net| net.cidr.prefix_len())
                        .max()
                        // What could not be read of it may be about anything outside.
                        .or(outside.filter(|_| !it.readable)),
                }?;
                Some((
                    (it.readable, std::cmp::Reverse(block)),
                    it.meta.created.is_none(),
                    it.meta.created,
                    &it.meta.name,
                    it,
                ))
            })
            .collect();
        best.sort_by(|a, b| (a.0, a.1, a.2, a.3).cmp(&(b.0, b.1, b.2, b.3)));
        let found = best.first()?.4;
        let routes = self.resources.iter().any(|it| match it {
            Resource::Route(route)
                if route.meta.namespace == found.meta.namespace && route.kind != Kind::TcpRoute =>
            {
                matches!(&route.parents, Parents::These(parents) if parents.iter().any(|parent| {
                    parent.kind == ParentKind::EgressNetwork
                        && parent.namespace == found.meta.namespace
                        && parent.name == found.meta.name
                }))
            }
            _ => false,
        });
        Some((found.allow, routes && found.readable))
    }

    fn inside_smaller(&self, address: IpAddr) -> bool {
        self.settings.cluster_networks.iter().any(|net| net.prefix_len() != 0 && within(net, address))
    }

    /// Whether a rule lets a connection leave, or refuses it whatever the far side is. `None`: no rule says.
    pub fn leave(&self, source: IpAddr, address: IpAddr, port: u16, transport: Transport) -> Option<bool> {
        let rules = self.leaving(source, address, port, transport);
        if rules.contains(&(true, false)) {
            return Some(false);
        }
        if self.by_name(source, address, port, transport) {
            return None;
        }
        if rules.contains(&(false, false)) {
            return Some(true);
        }
        self.egress_network(source, address).map(|(allow, _)| allow)
    }

    /// Whether the name that is asked for decides.
    pub(super) fn by_name(&self, source: IpAddr, address: IpAddr, port: u16, transport: Transport) -> bool {
        let rules = self.leaving(source, address, port, transport);
        if rules.contains(&(true, false)) {
            return false;
        }
        if rules.contains(&(true, true)) {
            return true;
        }
        if rules.contains(&(false, false)) {
            return false;
        }
        let (base, routes) = match self.egress_network(source, address) {
            Some(found) => found,
            None => {
                let base = match self.settings.default_outbound {
                    DefaultOutbound::Allow => true,
                    DefaultOutbound::Cluster => self.in_cluster(address),
                    DefaultOutbound::Deny => false,
                };
                (base, false)
            }
        };
        !base && (rules.contains(&(false, true)) || routes)
    }
}

fn name(rule: &AccessRule) -> String {
    match rule.kind {
        Kind::AccessRule => format!("AccessRule {}", rule.meta.object_name()),
        _ => format!("ClusterAccessRule {}", rule.meta.name),
    }
}
