//! Where a pod's connections to what has no mesh identity may lead, and which identities it may not reach: EgressNetworks,
//! and Heddle's own rules about what leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    authorizations::rule_name,
    base::LocalPod,
    clients::{Match, Presented},
    networks,
    policy::ports_of,
    request::host_matches,
    resources::{
        Action, Direction, EgressNetwork, EgressScope, HostMatch, Kind, NetworkMatch, ParentKind, Parents,
        Resource, Transport,
    },
    rules::{InNamespace, Rules},
    settings::DefaultOutbound,
};

/// What holds for a network that a pod's connections may lead to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Way {
    /// `defaultOutbound` decides.
    Default,
    /// A rule lets it pass.
    Allow(Arc<str>),
    /// A rule refuses it.
    Deny(Arc<str>),
    /// The name that is asked for decides, which only the proxy can read; the second holds for a name that no rule is about.
    ByName(Arc<str>, Box<Way>),
}

/// A rule about names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NameRule {
    pub(crate) denies: bool,
    pub(crate) rule: Arc<str>,
    pub(crate) hosts: Vec<HostMatch>,
    /// Empty: anywhere.
    pub(crate) networks: Vec<NetworkMatch>,
}

/// What holds for a port of what a pod connects to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct EgressRules {
    pub(crate) ways: Vec<(IpNet, Way)>,
    pub(crate) names: Vec<NameRule>,
}

/// What holds for what a pod sends to the ports of one protocol.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct EgressPorts {
    pub(crate) own: BTreeMap<u16, Arc<EgressRules>>,
    /// For every other port.
    pub(crate) rest: Arc<EgressRules>,
}

/// What holds for what a pod connects to, and sends datagrams to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct EgressPolicy {
    pub(crate) tcp: EgressPorts,
    pub(crate) udp: EgressPorts,
}

/// A rule about what leaves, cut into its destinations.
struct Part {
    denies: bool,
    tried: bool,
    rule: Arc<str>,
    order: (i64, usize),
    ports: Option<Vec<u16>>,
    networks: Vec<NetworkMatch>,
    hosts: Vec<HostMatch>,
}

impl EgressPolicy {
    /// Works it out for a pod. `None`: `defaultOutbound` alone decides.
    pub(crate) fn of(rules: &Rules<'_>, found: &InNamespace<'_>, local: &LocalPod) -> Option<Self> {
        let [tcp, udp] = [Transport::Tcp, Transport::Udp].map(|it| parts(rules, found, local, it));
        if tcp.is_empty() && udp.is_empty() && found.egress.is_empty() {
            return None;
        }
        // EgressNetworks, which Linkerd knows for connections only, hold for datagrams too.
        Some(Self { tcp: EgressPorts::of(rules, found, &tcp), udp: EgressPorts::of(rules, found, &udp) })
    }

    /// Nothing leaves, which `why` says.
    pub(crate) fn closed(why: &Arc<str>) -> Self {
        let ways = networks::everything().map(|net| (net, Way::Deny(Arc::clone(why)))).collect();
        let rest = Arc::new(EgressRules { ways, names: Vec::new() });
        let ports = EgressPorts { own: BTreeMap::new(), rest };
        Self { tcp: ports.clone(), udp: ports }
    }

    pub(crate) fn rules(&self) -> impl Iterator<Item = &Arc<EgressRules>> {
        [&self.tcp, &self.udp].into_iter().flat_map(|ports| ports.own.values().chain([&ports.rest]))
    }
}

impl EgressPorts {
    fn of(rules: &Rules<'_>, found: &InNamespace<'_>, parts: &[Part]) -> Self {
        let listed: BTreeSet<u16> =
            parts.iter().filter_map(|it| it.ports.as_ref()).flatten().copied().collect();
        let of = |port: Option<u16>| {
            let applying: Vec<&Part> = parts
                .iter()
                .filter(|it| match (&it.ports, port) {
                    (None, _) => true,
                    (Some(ports), Some(port)) => ports.contains(&port),
                    (Some(_), None) => false,
                })
                .collect();
            Arc::new(egress_rules(rules, found, &applying))
        };
        let rest = of(None);
        let mut made: BTreeMap<Vec<bool>, Arc<EgressRules>> = BTreeMap::new();
        let own = listed
            .into_iter()
            .map(|port| {
                let which = parts
                    .iter()
                    .map(|it| it.ports.as_ref().is_none_or(|ports| ports.contains(&port)))
                    .collect();
                (port, Arc::clone(made.entry(which).or_insert_with(|| of(Some(port)))))
            })
            .collect();
        Self { own, rest }
    }

    /// What holds for a port.
    pub(crate) fn port(&self, port: u16) -> &EgressRules {
        self.own.get(&port).unwrap_or(&self.rest)
    }
}

fn parts(rules: &Rules<'_>, found: &InNamespace<'_>, local: &LocalPod, transport: Transport) -> Vec<Part> {
    let mut parts = Vec::new();
    for rule in &found.access {
        let Some(spec) = &rule.spec else {
            // Whatever it may have meant: nothing leaves.
            let about = rule.closes.as_ref().is_some_and(|closes| {
                closes.pods.as_ref().is_none_or(|pods| pods.matches(&local.pod.meta.labels))
            });
            if about {
                parts.push(Part {
                    denies: true,
                    tried: false,
                    rule: rule_name(rule),
                    order: (rule.meta.created.unwrap_or(i64::MAX), 0),
                    ports: None,
                    networks: Vec::new(),
                    hosts: Vec::new(),
                });
            }
            continue;
        };
        let Direction::Outbound(destinations) = &spec.direction else { continue };
        if !spec.pods.matches(&local.pod.meta.labels) || !spec.is_about(transport) {
            continue;
        }
        for (number, destination) in destinations.iter().enumerate() {
            let mut networks = destination.networks.clone();
            if !destination.identities.is_empty() {
                if spec.action == Action::Allow {
                    // A meshed destination needs no leave: the destination's own rules decide.
                    continue;
                }
                networks = addresses_of(rules, &destination.identities);
                if networks.is_empty() {
                    continue;
                }
            }
            parts.push(Part {
                denies: spec.action == Action::Deny,
                tried: spec.audit,
                rule: rule_name(rule),
                order: (rule.meta.created.unwrap_or(i64::MAX), number),
                ports: ports_of(rule, &local.pod, transport),
                networks,
                hosts: destination.hosts.clone(),
            });
        }
    }
    parts.sort_by(|a, b| (a.order, &a.rule).cmp(&(b.order, &b.rule)));
    parts
}

/// The addresses of the pods that have an identity, each as a network.
fn addresses_of(rules: &Rules<'_>, identities: &[crate::resources::IdentityMatch]) -> Vec<NetworkMatch> {
    let wanted: Vec<Match> =
        identities.iter().filter_map(|it| Match::resolve(it, &rules.settings.naming)).collect();
    let pods = rules.base.all_pods().filter(|info| {
        info.identity.as_ref().is_some_and(|name| {
            let name = Presented::of(name);
            wanted.iter().any(|it| it.holds(&name))
        })
    });
    let mut found: Vec<NetworkMatch> = pods
        .flat_map(|info| info.addresses.iter())
        .map(|address| NetworkMatch { cidr: IpNet::from(*address), except: Vec::new() })
        .collect();
    for (address, external) in &*rules.base.externals {
        let identity = Some(&*external.identity);
        let (dns, spiffe) =
            if external.identity.contains("://") { (None, identity) } else { (identity, None) };
        // As its certificate would be read: it may have the name of a service account.
        let mut buffer = String::new();
        let name = Presented::read(&rules.settings.naming, dns, spiffe, &mut buffer);
        if name.is_some_and(|name| wanted.iter().any(|it| it.holds(&name))) {
            found.push(NetworkMatch { cidr: IpNet::from(address.to_ip()), except: Vec::new() });
        }
    }
    found.sort();
    found
}

/// Networks inside which the answer is the same.
fn inside(networks: &[NetworkMatch], point: &IpNet) -> bool {
    networks.is_empty()
        || networks
            .iter()
            .any(|it| it.cidr.contains(point) && !it.except.iter().any(|cut| cut.contains(point)))
}

fn egress_rules(rules: &Rules<'_>, found: &InNamespace<'_>, parts: &[&Part]) -> EgressRules {
    let outside: Vec<NetworkMatch> = networks::everything()
        .map(|cidr| NetworkMatch {
            cidr,
            // Where the whole family is the cluster's, what an EgressNetwork denies must not pass for want of an outside.
            except: rules
                .base
                .cluster_networks
                .iter()
                .map(|it| it.cidr)
                .filter(|cut| cidr.contains(cut) && cidr != *cut)
                .collect(),
        })
        .collect();
    // What of one could not be read may have meant any place outside the cluster.
    let scope = |it: &EgressNetwork| match &it.scope {
        EgressScope::OutsideCluster => outside.clone(),
        EgressScope::Networks(networks) if it.readable => networks.clone(),
        EgressScope::Networks(networks) => outside.iter().chain(networks).cloned().collect(),
    };
    let egress: Vec<(&EgressNetwork, Vec<NetworkMatch>)> =
        found.egress.iter().map(|it| (*it, scope(it))).collect();
    let mut given: BTreeSet<IpNet> = BTreeSet::new();
    let all = egress.iter().map(|(_, networks)| networks).chain(parts.iter().map(|part| &part.networks));
    for it in all.flatten() {
        given.insert(it.cidr);
        given.extend(it.except.iter().copied());
    }
    if parts.iter().any(|part| part.networks.is_empty()) {
        given.extend(networks::everything());
    }
    given.extend(rules.base.cluster_networks.iter().map(|it| it.cidr));
    let way = |point: &IpNet| {
        let about = |part: &&&Part| !part.tried && inside(&part.networks, point);
        let by_name = |part: &&Part| !part.hosts.is_empty();
        if let Some(part) = parts.iter().filter(about).find(|part| part.denies && !by_name(part)) {
            return Way::Deny(Arc::clone(&part.rule));
        }
        let network = smallest(&egress, point);
        let unnamed = match (parts.iter().filter(about).find(|part| !part.denies && !by_name(part)), network)
        {
            (Some(part), _) => Way::Allow(Arc::clone(&part.rule)),
            (None, Some(it)) if it.allow => Way::Allow(text(it)),
            (None, Some(it)) => Way::Deny(text(it)),
            (None, None) => Way::Default,
        };
        if let Some(part) = parts.iter().filter(about).find(|part| part.denies) {
            return Way::ByName(Arc::clone(&part.rule), Box::new(unnamed));
        }
        let passes = match (&unnamed, rules.settings.default_outbound) {
            (Way::Allow(_), _) | (Way::Default, DefaultOutbound::Allow) => true,
            (Way::Default, DefaultOutbound::Cluster) => {
                rules.base.cluster_networks.iter().any(|it| it.cidr.contains(point))
            }
            _ => false,
        };
        let named = parts.iter().find(about).map(|part| Arc::clone(&part.rule));
        match (named, network) {
            (Some(rule), _) if !passes => Way::ByName(rule, Box::new(unnamed)),
            (None, Some(it)) if !passes && it.readable && has_routes(rules, it) => {
                Way::ByName(text(it), Box::new(unnamed))
            }
            _ => unnamed,
        }
    };
    let ways = networks::points(given).into_iter().map(|point| (point, way(&point))).collect();
    let names = parts
        .iter()
        .filter(|part| !part.tried && !part.hosts.is_empty())
        .map(|part| NameRule {
            denies: part.denies,
            rule: Arc::clone(&part.rule),
            hosts: part.hosts.clone(),
            networks: part.networks.clone(),
        })
        .collect();
    EgressRules { ways, names }
}

fn text(network: &EgressNetwork) -> Arc<str> {
    format!("EgressNetwork {}", network.meta.object_name()).into()
}

/// The EgressNetwork of the smallest block around a network; of several the older, then the name. Before all one that
/// cannot be read: its block may have been smaller.
fn smallest<'a>(
    egress: &[(&'a EgressNetwork, Vec<NetworkMatch>)],
    point: &IpNet,
) -> Option<&'a EgressNetwork> {
    let block = |networks: &[NetworkMatch]| {
        let around = networks
            .iter()
            .filter(|it| it.cidr.contains(point) && !it.except.iter().any(|cut| cut.contains(point)));
        around.map(|it| it.cidr.prefix_len()).max()
    };
    egress
        .iter()
        .filter_map(|(it, networks)| {
            Some(((it.readable, std::cmp::Reverse(block(networks)?), it.meta.age()), *it))
        })
        .min_by(|a, b| a.0.cmp(&b.0))
        .map(|(_, it)| it)
}

/// Whether routes of names are attached to an EgressNetwork: they let pass what it denies.
fn has_routes(rules: &Rules<'_>, network: &EgressNetwork) -> bool {
    let kinds = [Kind::LinkerdHttpRoute, Kind::HttpRoute, Kind::GrpcRoute, Kind::TlsRoute];
    kinds.into_iter().flat_map(|kind| rules.index.of_kind(kind, &network.meta.namespace)).any(|it| match it {
        Resource::Route(route) => match &route.parents {
            Parents::Unreadable => false,
            Parents::These(parents) => parents.iter().any(|parent| {
                parent.kind == ParentKind::EgressNetwork
                    && parent.namespace == network.meta.namespace
                    && parent.name == network.meta.name
            }),
        },
        _ => false,
    })
}

impl EgressRules {
    /// What holds for an address.
    pub(crate) fn at(&self, address: &IpAddr) -> &Way {
        const DEFAULT: &Way = &Way::Default;
        let around = self.ways.iter().filter(|(net, _)| net.contains(address));
        around.max_by_key(|(net, _)| net.prefix_len()).map_or(DEFAULT, |(_, way)| way)
    }

    /// The rule that decides about a name at an address: one that denies wins.
    pub(crate) fn by_name(&self, host: &str, address: &IpAddr) -> Option<&NameRule> {
        let about = |it: &&NameRule| {
            it.hosts.iter().any(|wanted| host_matches(wanted, host))
                && (it.networks.is_empty() || it.networks.iter().any(|net| net.contains(address)))
        };
        self.names.iter().filter(about).min_by_key(|it| !it.denies)
    }
}
