//! What rules about what leaves, and EgressNetworks, say of each network together.

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    networks::{self, Held, Holding},
    request::host_matches,
    resources::{EgressNetwork, HostMatch, NetworkMatch},
    rules::Rules,
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
    /// In the order of networks.
    pub(crate) ways: Vec<(IpNet, Way)>,
    pub(crate) names: Vec<NameRule>,
}

/// A rule about what leaves, cut into its destinations.
pub(crate) struct Part {
    /// The rule's number in its namespace.
    pub(crate) number: usize,
    pub(crate) denies: bool,
    pub(crate) tried: bool,
    pub(crate) rule: Arc<str>,
    pub(crate) order: (i64, usize),
    pub(crate) networks: Vec<NetworkMatch>,
    pub(crate) hosts: Vec<HostMatch>,
}

/// An EgressNetwork, and inside which networks it holds.
pub(crate) struct Block<'a> {
    pub(crate) network: &'a EgressNetwork,
    pub(crate) networks: Vec<NetworkMatch>,
    pub(crate) rule: Arc<str>,
    pub(crate) has_routes: bool,
}

impl Part {
    /// What it costs to be worked out.
    pub(crate) fn weight(&self) -> usize {
        1 + self.hosts.len() + weight(&self.networks)
    }
}

impl Block<'_> {
    /// The same.
    pub(crate) fn weight(&self) -> usize {
        1 + weight(&self.networks)
    }
}

fn weight(networks: &[NetworkMatch]) -> usize {
    networks.iter().map(|it| 1 + it.except.len()).sum()
}

/// What decides inside a network: of each sort the smallest number is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Decides {
    Denies(usize),
    Allows(usize),
    DeniesNames(usize),
    AllowsNames(usize),
    /// The EgressNetwork of the smallest block decides; of several the older. Before all one that cannot be read: its block may
    /// have been smaller.
    Block(bool, Reverse<u8>, usize),
}

/// The number of the first of a sort that holds.
fn first(held: &Held<Decides>, sort: fn(usize) -> Decides) -> Option<usize> {
    let (found, _) = held.range(sort(0)..=sort(usize::MAX)).next()?;
    match found {
        Decides::Denies(number)
        | Decides::Allows(number)
        | Decides::DeniesNames(number)
        | Decides::AllowsNames(number)
        | Decides::Block(_, _, number) => Some(*number),
    }
}

fn block<'b, 'a>(held: &Held<Decides>, blocks: &'b [Block<'a>]) -> Option<&'b Block<'a>> {
    let (found, _) = held.range(Decides::Block(false, Reverse(u8::MAX), 0)..).next()?;
    match found {
        Decides::Block(_, _, number) => blocks.get(*number),
        _ => None,
    }
}

/// Works out what rules and EgressNetworks (the oldest first) say together.
pub(crate) fn egress_rules(rules: &Rules<'_>, blocks: &[Block<'_>], parts: &[&Part]) -> EgressRules {
    let mut all = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        for it in &block.networks {
            let what = Decides::Block(block.network.readable, Reverse(it.cidr.prefix_len()), number);
            all.push(Holding { what, cidr: it.cidr, except: &it.except });
        }
    }
    let mut points: Vec<IpNet> = rules.base.cluster_networks.iter().map(|it| it.cidr).collect();
    for (number, part) in parts.iter().enumerate() {
        let what = match (part.denies, part.hosts.is_empty()) {
            (true, true) => Decides::Denies(number),
            (false, true) => Decides::Allows(number),
            (true, false) => Decides::DeniesNames(number),
            (false, false) => Decides::AllowsNames(number),
        };
        if part.networks.is_empty() {
            points.extend(networks::everything());
        }
        for it in &part.networks {
            points.push(it.cidr);
            points.extend(&it.except);
        }
        if part.tried {
            continue;
        }
        match &*part.networks {
            [] => {
                all.extend(networks::everything().map(|cidr| Holding { what, cidr, except: &[] }));
            }
            given => all.extend(given.iter().map(|it| Holding { what, cidr: it.cidr, except: &it.except })),
        }
    }
    let rule = |number: usize| parts.get(number).map(|part| Arc::clone(&part.rule)).unwrap_or_default();
    let way = |point: &IpNet, held: &Held<Decides>| {
        if let Some(number) = first(held, Decides::Denies) {
            return Way::Deny(rule(number));
        }
        let block = block(held, blocks);
        let unnamed = match (first(held, Decides::Allows), block) {
            (Some(number), _) => Way::Allow(rule(number)),
            (None, Some(it)) if it.network.allow => Way::Allow(Arc::clone(&it.rule)),
            (None, Some(it)) => Way::Deny(Arc::clone(&it.rule)),
            (None, None) => Way::Default,
        };
        if let Some(number) = first(held, Decides::DeniesNames) {
            return Way::ByName(rule(number), Box::new(unnamed));
        }
        let passes = match (&unnamed, rules.settings.default_outbound) {
            (Way::Allow(_), _) | (Way::Default, DefaultOutbound::Allow) => true,
            (Way::Default, DefaultOutbound::Cluster) => {
                rules.base.cluster_networks.iter().any(|it| it.cidr.contains(point))
            }
            _ => false,
        };
        match (first(held, Decides::AllowsNames), block) {
            (Some(number), _) if !passes => Way::ByName(rule(number), Box::new(unnamed)),
            (None, Some(it)) if !passes && it.network.readable && it.has_routes => {
                Way::ByName(Arc::clone(&it.rule), Box::new(unnamed))
            }
            _ => unnamed,
        }
    };
    let mut ways = Vec::new();
    networks::sweep(&all, points, |point, held| ways.push((point, way(&point, held))));
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

impl EgressRules {
    /// What holds for an address.
    pub(crate) fn at(&self, address: &IpAddr) -> &Way {
        const DEFAULT: &Way = &Way::Default;
        let at = |bits| {
            let network = IpNet::new(*address, bits).ok()?.trunc();
            let found = self.ways.binary_search_by(|(it, _)| it.cmp(&network)).ok()?;
            self.ways.get(found).map(|(_, way)| way)
        };
        (0..=IpNet::from(*address).prefix_len()).rev().find_map(at).unwrap_or(DEFAULT)
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
