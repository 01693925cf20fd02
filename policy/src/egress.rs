//! Where a pod's connections to what has no mesh identity may lead, and which identities it may not reach: EgressNetworks,
//! and Heddle's own rules about what leaves.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    applying::ports_of,
    authorizations::rule_name,
    base::LocalPod,
    clients::{Match, Presented},
    networks,
    resources::{
        AccessRule, Action, Direction, EgressNetwork, EgressScope, Kind, NetworkMatch, ParentKind, Parents,
        Pod, Resource, Transport,
    },
    room::Effort,
    rules::{InNamespace, Rules},
    ways::{Block, EgressRules, Part, Way, egress_rules},
};

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
    pub(crate) tcp: Arc<EgressPorts>,
    pub(crate) udp: Arc<EgressPorts>,
}

impl EgressPolicy {
    /// Nothing leaves, which `why` says.
    pub(crate) fn closed(why: &Arc<str>) -> Self {
        let ways = networks::everything().map(|net| (net, Way::Deny(Arc::clone(why)))).collect();
        let rest = Arc::new(EgressRules { ways, names: Vec::new() });
        let ports = Arc::new(EgressPorts { own: BTreeMap::new(), rest });
        Self { tcp: Arc::clone(&ports), udp: ports }
    }

    pub(crate) fn rules(&self) -> impl Iterator<Item = &Arc<EgressRules>> {
        [&self.tcp, &self.udp].into_iter().flat_map(|ports| ports.own.values().chain([&ports.rest]))
    }
}

impl EgressPorts {
    /// What holds for a port.
    pub(crate) fn port(&self, port: u16) -> &EgressRules {
        self.own.get(&port).unwrap_or(&self.rest)
    }
}

/// The rules that are about a pod and a protocol, by their numbers, with the ports (`None`: every one).
type Applying = Vec<(usize, Option<Vec<u16>>)>;

/// Works out what leaves the pods of a namespace; pods, protocols and ports to which the same rules apply share what is
/// worked out.
pub(crate) struct AboutLeaving<'a> {
    rules: &'a Rules<'a>,
    access: &'a [&'a AccessRule],
    /// Sorted by their order.
    parts: Vec<Part>,
    /// The numbers of the rules that have one.
    with_parts: BTreeSet<usize>,
    /// The oldest first.
    blocks: Vec<Block<'a>>,
    made: HashMap<Vec<usize>, Arc<EgressRules>>,
    ports: HashMap<Applying, Arc<EgressPorts>>,
    policies: HashMap<[Applying; 2], Arc<EgressPolicy>>,
    effort: Effort,
}

impl<'a> AboutLeaving<'a> {
    pub(crate) fn new(rules: &'a Rules<'a>, found: &'a InNamespace<'a>) -> Self {
        let parts = parts(rules, &found.access);
        Self {
            rules,
            access: &found.access,
            with_parts: parts.iter().map(|part| part.number).collect(),
            parts,
            blocks: blocks(rules, &found.egress),
            made: HashMap::new(),
            ports: HashMap::new(),
            policies: HashMap::new(),
            effort: Effort::new(),
        }
    }

    /// Whether the rules are too many: then they are not in force.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.effort.is_exceeded()
    }

    /// What holds for a pod. `None`: `defaultOutbound` alone decides.
    pub(crate) fn policy(&mut self, local: &LocalPod) -> Option<Arc<EgressPolicy>> {
        let key = [Transport::Tcp, Transport::Udp].map(|it| self.applying(&local.pod, it));
        if key.iter().all(Vec::is_empty) && self.blocks.is_empty() {
            return None;
        }
        if let Some(made) = self.policies.get(&key) {
            return Some(Arc::clone(made));
        }
        // EgressNetworks, which Linkerd knows for connections only, hold for datagrams too.
        let [tcp, udp] = &key;
        let made = Arc::new(EgressPolicy { tcp: self.of_ports(tcp), udp: self.of_ports(udp) });
        self.policies.insert(key, Arc::clone(&made));
        Some(made)
    }

    fn applying(&self, pod: &Pod, transport: Transport) -> Applying {
        let about = |rule: &AccessRule| match (&rule.spec, &rule.closes) {
            (Some(spec), _) => {
                let selected = matches!(spec.direction, Direction::Outbound(_))
                    && spec.pods.matches(&pod.meta.labels)
                    && spec.is_about(transport);
                selected.then(|| ports_of(rule, pod, transport))
            }
            // Whatever it may have meant: nothing leaves.
            (None, Some(closes)) => {
                closes.pods.as_ref().is_none_or(|pods| pods.matches(&pod.meta.labels)).then_some(None)
            }
            (None, None) => None,
        };
        let with_parts =
            self.with_parts.iter().filter_map(|number| Some((*number, self.access.get(*number)?)));
        with_parts.filter_map(|(number, rule)| Some((number, about(rule)?))).collect()
    }

    fn of_ports(&mut self, applying: &Applying) -> Arc<EgressPorts> {
        if let Some(made) = self.ports.get(applying) {
            return Arc::clone(made);
        }
        let by_rule: HashMap<usize, &Option<Vec<u16>>> =
            applying.iter().map(|(number, ports)| (*number, ports)).collect();
        let mut everywhere = Vec::new();
        let mut listed: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (index, part) in self.parts.iter().enumerate() {
            match by_rule.get(&part.number) {
                None => {}
                Some(None) => everywhere.push(index),
                Some(Some(ports)) => {
                    for port in ports {
                        listed.entry(*port).or_default().push(index);
                    }
                }
            }
        }
        let mut alike: HashMap<Vec<usize>, Arc<EgressRules>> = HashMap::new();
        let own = listed.into_iter().map(|(port, which)| {
            let rules = alike.entry(which).or_insert_with_key(|which| {
                let mut all: Vec<usize> = everywhere.iter().chain(which).copied().collect();
                all.sort_unstable();
                self.of_parts(all)
            });
            (port, Arc::clone(rules))
        });
        let own = own.collect();
        let made = Arc::new(EgressPorts { own, rest: self.of_parts(everywhere) });
        self.ports.insert(applying.clone(), Arc::clone(&made));
        made
    }

    fn of_parts(&mut self, which: Vec<usize>) -> Arc<EgressRules> {
        if let Some(made) = self.made.get(&which) {
            return Arc::clone(made);
        }
        let parts: Vec<&Part> = which.iter().filter_map(|index| self.parts.get(*index)).collect();
        let of_blocks = self.blocks.iter().map(Block::weight).sum::<usize>();
        let of_parts = parts.iter().map(|part| part.weight()).sum::<usize>();
        let made = if self.effort.take(of_blocks + of_parts) {
            Arc::new(egress_rules(self.rules, &self.blocks, &parts))
        } else {
            Arc::default()
        };
        self.made.insert(which, Arc::clone(&made));
        made
    }
}

fn parts(rules: &Rules<'_>, access: &[&AccessRule]) -> Vec<Part> {
    let mut parts = Vec::new();
    for (number, rule) in access.iter().enumerate() {
        let Some(spec) = &rule.spec else {
            if rule.closes.is_some() {
                parts.push(Part {
                    number,
                    denies: true,
                    tried: false,
                    rule: rule_name(rule),
                    order: (rule.meta.created.unwrap_or(i64::MAX), 0),
                    networks: Vec::new(),
                    hosts: Vec::new(),
                });
            }
            continue;
        };
        let Direction::Outbound(destinations) = &spec.direction else { continue };
        for (place, destination) in destinations.iter().enumerate() {
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
                number,
                denies: spec.action == Action::Deny,
                tried: spec.audit,
                rule: rule_name(rule),
                order: (rule.meta.created.unwrap_or(i64::MAX), place),
                networks,
                hosts: destination.hosts.clone(),
            });
        }
    }
    parts.sort_by(|a, b| (a.order, &a.rule).cmp(&(b.order, &b.rule)));
    parts
}

fn blocks<'a>(rules: &Rules<'_>, egress: &[&'a EgressNetwork]) -> Vec<Block<'a>> {
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
    let mut blocks: Vec<Block<'a>> = egress
        .iter()
        .map(|network| Block {
            network,
            networks: scope(network),
            rule: format!("EgressNetwork {}", network.meta.object_name()).into(),
            has_routes: has_routes(rules, network),
        })
        .collect();
    blocks.sort_by(|a, b| a.network.meta.age().cmp(&b.network.meta.age()));
    blocks
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
