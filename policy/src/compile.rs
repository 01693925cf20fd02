//! What was worked out of the resources, put together: tables, and what the agent decides by name with. The same
//! resources give the same tables, ids included, on every node and in whatever order they came.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use foldhash::fast::RandomState;
use heddle_ebpf::{
    Address,
    policy::{
        ALLOW_DENIES, Allow, AllowKey, EGRESS_POLICY, EGRESS_SHIFT, NETWORK_ALLOW, NETWORK_BY_NAME,
        NETWORK_DENY, NETWORKS_FIRST_FREE, Network, PORT_MESH_CLIENTS, PortKey, PortPolicy, Settings,
        Workload,
    },
};
use ipnet::IpNet;

use crate::{
    base::Base,
    egress::EgressPolicy,
    grant_set::GrantSet,
    namespace::{KernelGrants, NamespacePart, network_row},
    networks,
    parts::Parts,
    policy::{PodPolicy, PortRules, Requests},
    problems::Problem,
    room::{self, Crowd},
    rule_ids::RuleIds,
    settings::{ClusterSettings, SameNode},
    tables::{Capacity, TableSet, TooLarge, Workloads},
    verdict::{TCP, UDP},
    ways::{EgressRules, Way},
};

/// Everything that a node needs: the tables, and the same by name.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What the kernel's maps hold.
    pub tables: TableSet,
    /// What is wrong with the resources taken together, sorted. (What is wrong with each by itself, parsing told.)
    pub problems: Vec<Problem>,
    /// When the first of the rules in force expires, in microseconds since 1970: then compile again.
    pub next_expiry: Option<i64>,
    pub(crate) settings: Arc<ClusterSettings>,
    pub(crate) base: Arc<Base>,
    /// Of this node's meshed pods.
    pub(crate) policies: HashMap<Address, PodRules, RandomState>,
    /// The ids of the tables' rules.
    pub(crate) rule_ids: RuleIds,
    parts: BTreeMap<String, Arc<NamespacePart>>,
}

impl Compiled {
    /// The namespaces whose rules by themselves, with all of the pods that were compiled, take more than one of `shares` of a
    /// table's places: each with the table, the rows and the places.
    pub(crate) fn crowding(&self, capacity: &Capacity, shares: u32) -> Vec<(&str, TooLarge)> {
        let mut found = Vec::new();
        let share = |table| capacity.of(table) / shares;
        for (namespace, part) in &self.parts {
            // Most take little: what they take at most is quickly said.
            if OF_RULES.iter().all(|table| part.at_most() <= u64::from(share(table))) {
                continue;
            }
            let rows = rows_of(&self.base, namespace, part);
            found.extend(OF_RULES.iter().filter_map(|table| {
                let needed = usize::try_from(*rows.get(table)?).unwrap_or(usize::MAX);
                let many = u32::try_from(needed).map_or(true, |it| it > share(table));
                many.then_some((&**namespace, TooLarge { table, needed, capacity: capacity.of(table) }))
            }));
        }
        found
    }
}

/// How many rows of each table the rules of a namespace take by themselves.
fn rows_of(base: &Base, namespace: &str, part: &Arc<NamespacePart>) -> room::Rows {
    let alone = BTreeMap::from([(namespace, Arc::clone(part))]);
    let tables = fill(base, &alone, TableSet::default()).tables;
    OF_RULES.into_iter().map(|table| (table, tables.rows(table))).collect()
}

/// What holds for a pod, both ways.
#[derive(Clone, Debug)]
pub(crate) struct PodRules {
    pub(crate) inbound: Arc<PodPolicy>,
    pub(crate) egress: Option<Arc<EgressPolicy>>,
}

/// What the rules say of this node's pods, by namespace.
type Here<'a> = BTreeMap<&'a str, Arc<NamespacePart>>;

/// The tables that rules fill; objects fill the others.
const OF_RULES: [&str; 4] = ["ports", "allows", "networks", "rules"];

/// Puts everything together. With a `capacity`, whoever takes most of what has not room for all gives way.
pub(crate) fn assemble(
    settings: &Arc<ClusterSettings>,
    base: &Arc<Base>,
    parts: &Parts,
    duplicates: Vec<Problem>,
    capacity: Option<&Capacity>,
) -> Compiled {
    let mut here: Here<'_> = base
        .local
        .keys()
        .filter_map(|namespace| Some((&**namespace, Arc::clone(parts.get(namespace)?))))
        .collect();
    let mut problems = duplicates;
    let (services, backends) = match capacity {
        Some(capacity) => room::services(base, capacity, &mut problems),
        None => (Arc::clone(&base.services), Arc::clone(&base.backends)),
    };
    let empty = TableSet {
        settings: Settings {
            default_outbound: settings.default_outbound.code(),
            same_node_encrypt: u32::from(settings.same_node == SameNode::Encrypt),
            open: 1,
            pad: 0,
        },
        networks: BTreeMap::clone(&base.networks),
        identities: Arc::clone(&base.identities),
        services,
        backends,
        ..TableSet::default()
    };
    let mut filled = fill(base, &here, empty.clone());
    if let Some(capacity) = capacity {
        let mut crowd = Crowd::default();
        while let Some(full) = OF_RULES.iter().find_map(|table| filled.tables.too_large(table, capacity)) {
            let each = here.iter().map(|(namespace, part)| (*namespace, part));
            let leaving = crowd.give_way(&full, each, |namespace, part| rows_of(base, namespace, part));
            if leaving.is_empty() {
                // What is left over is not the rules': the kernel side closes everything.
                break;
            }
            for namespace in leaving {
                problems.push(room::closed(base, namespace, &full, crowd.rows_of(namespace, full.table)));
                if let Some(part) = here.get_mut(namespace) {
                    *part = Arc::new(part.closed(&room::why(&full), base));
                }
            }
            filled = fill(base, &here, empty.clone());
        }
    }
    let Filled { tables, policies, rule_ids } = filled;
    problems.extend(base.problems.iter().chain(base.pod_problems.values().flatten()).cloned());
    problems.extend(base.service_problems.values().chain(parts.problems()).cloned());
    problems.sort();
    problems.dedup();
    Compiled {
        tables,
        problems,
        next_expiry: parts.next_expiry(),
        settings: Arc::clone(settings),
        base: Arc::clone(base),
        policies,
        rule_ids,
        parts: here.into_iter().map(|(namespace, part)| (namespace.to_owned(), part)).collect(),
    }
}

/// Tables with the rules in them.
struct Filled {
    tables: TableSet,
    policies: HashMap<Address, PodRules, RandomState>,
    rule_ids: RuleIds,
}

/// Adds what the rules of some namespaces say to `tables`.
fn fill(base: &Base, here: &Here<'_>, mut tables: TableSet) -> Filled {
    let mut policies = HashMap::default();
    for (namespace, part) in here {
        let pods = base.local.get(*namespace).map_or(&[][..], Vec::as_slice);
        for ((local, inbound), egress) in pods.iter().zip(&part.policies).zip(&part.egress) {
            for address in &local.info.addresses {
                let rules = PodRules { inbound: Arc::clone(inbound), egress: egress.clone() };
                policies.insert(Address::from(*address), rules);
            }
        }
    }
    let rule_ids = Filling::new(here, &mut tables).fill(&mut tables, base, &policies);
    Filled { tables, policies, rule_ids }
}

/// Numbers the sorted `items` from `first`.
fn numbered<T: Ord>(items: BTreeSet<T>, first: u32) -> BTreeMap<T, u32> {
    items.into_iter().zip(first..).collect()
}

/// A set of networks with what holds in each.
type NetworkSet = Vec<(IpNet, u32, u32)>;
/// What the rows of a pod's ports hold: rules, networks, what governs, flags.
type PortRow = (u32, u32, u32, u8);
/// A port and its protocol.
type Place = (u8, u16);

/// What the tables of rules are filled from.
struct Filling<'a> {
    /// By content, each once.
    sets: BTreeMap<&'a GrantSet, (&'a KernelGrants, u32)>,
    ids: RuleIds,
}

impl<'a> Filling<'a> {
    fn new(here: &'a Here<'_>, tables: &mut TableSet) -> Self {
        let mut sets: BTreeMap<&GrantSet, (&KernelGrants, u32)> = BTreeMap::new();
        let mut ids = RuleIds::default();
        let mut name = |text: &Arc<str>| {
            if !ids.knows(text) {
                ids.insert(text, 0);
            }
        };
        for part in here.values() {
            for kernel in &part.kernel {
                sets.insert(&kernel.set, (kernel, 0));
            }
            // Ports and pods that are alike share their rules.
            let mut seen: HashSet<*const Requests, RandomState> = HashSet::default();
            let mut known: HashSet<*const GrantSet, RandomState> = HashSet::default();
            for rules in part.distinct_policies().flat_map(|policy| policy.rules()) {
                name(&rules.governs);
                let mut add = |set: &Arc<GrantSet>| {
                    if known.insert(Arc::as_ptr(set)) {
                        set.allows.iter().chain(&set.denies).for_each(|grant| name(&grant.rule));
                    }
                };
                add(&rules.grants);
                if !seen.insert(Arc::as_ptr(&rules.requests)) {
                    continue;
                }
                for entry in rules.requests.routes.iter().flat_map(|routes| routes.entries()) {
                    add(&entry.grants);
                }
                if let Some(limits) = &rules.requests.limits {
                    name(&limits.rule);
                }
            }
            let mut seen: HashSet<*const EgressRules, RandomState> = HashSet::default();
            for egress in part.distinct_egress() {
                for rules in egress.rules().filter(|rules| seen.insert(Arc::as_ptr(rules))) {
                    for (_, way) in &rules.ways {
                        match way {
                            Way::Default => {}
                            Way::Allow(rule) | Way::Deny(rule) | Way::ByName(rule, _) => name(rule),
                        }
                    }
                    rules.names.iter().for_each(|it| name(&it.rule));
                }
            }
        }
        for (number, entry) in (1..).zip(sets.values_mut()) {
            entry.1 = number;
        }
        tables.rules = (1..).zip(ids.number()).map(|(id, text)| (id, text.to_string())).collect();
        Self { sets, ids }
    }

    fn text(&self, text: &Arc<str>) -> u32 {
        self.ids.of(text)
    }

    fn fill(
        self,
        tables: &mut TableSet,
        base: &Base,
        policies: &HashMap<Address, PodRules, RandomState>,
    ) -> RuleIds {
        let mut here = base.here.clone();

        // Sets of networks, each once.
        let mut contents: BTreeSet<NetworkSet> = BTreeSet::new();
        let open: Vec<NetworkSet> = self.sets.values().map(|(kernel, _)| self.open(kernel)).collect();
        contents.extend(open.iter().filter(|set| !set.is_empty()).cloned());
        let egress: BTreeMap<&Address, &Arc<EgressPolicy>> =
            policies.iter().filter_map(|(address, rules)| Some((address, rules.egress.as_ref()?))).collect();
        let mut leaving: HashMap<*const EgressRules, NetworkSet, RandomState> = HashMap::default();
        for rules in egress.values().flat_map(|policy| policy.rules()) {
            leaving.entry(Arc::as_ptr(rules)).or_insert_with(|| self.ways(rules));
        }
        contents.extend(leaving.values().filter(|set| !set.is_empty()).cloned());
        let sets = numbered(contents, NETWORKS_FIRST_FREE);
        for (set, id) in &sets {
            for (net, rule, allow) in set {
                tables.networks.insert(networks::key(*id, net), Network { rule: *rule, allow: *allow });
            }
        }
        let open: BTreeMap<u32, u32> = self
            .sets
            .values()
            .zip(&open)
            .map(|((_, number), set)| (*number, sets.get(set).copied().unwrap_or(0)))
            .collect();

        self.fill_ports(tables, &mut here, policies, &open);
        let leaving = leaving.into_iter().map(|(rules, set)| (rules, sets.get(&set).copied().unwrap_or(0)));
        fill_egress(tables, &mut here, &egress, &leaving.collect());
        self.fill_clients(tables, &mut here, base);
        tables.workloads = Workloads::new(base.elsewhere.clone(), here);
        self.ids
    }

    fn open(&self, kernel: &KernelGrants) -> NetworkSet {
        let row = |found: &Option<(Arc<str>, bool)>| network_row(found.as_ref(), |text| self.text(text));
        kernel
            .open
            .iter()
            .map(|(net, found)| {
                let row = row(found);
                (*net, row.rule, row.allow)
            })
            .collect()
    }

    fn ways(&self, rules: &EgressRules) -> NetworkSet {
        let row = |way: &Way| match way {
            Way::Default => (0, 0),
            Way::Allow(rule) => (self.text(rule), NETWORK_ALLOW),
            Way::Deny(rule) => (self.text(rule), NETWORK_DENY),
            Way::ByName(rule, _) => (self.text(rule), NETWORK_BY_NAME),
        };
        rules
            .ways
            .iter()
            .map(|(net, way)| {
                let (rule, allow) = row(way);
                (*net, rule, allow)
            })
            .collect()
    }

    /// Ports: pods whose ports are all alike share them.
    fn fill_ports(
        &self,
        tables: &mut TableSet,
        here: &mut BTreeMap<Address, Workload>,
        policies: &HashMap<Address, PodRules, RandomState>,
        open: &BTreeMap<u32, u32>,
    ) {
        let mut known: HashMap<*const GrantSet, u32> = HashMap::new();
        let mut row = |rules: &PortRules| -> PortRow {
            let mesh = if rules.grants.may_allow() { PORT_MESH_CLIENTS } else { 0 };
            let list = *known
                .entry(Arc::as_ptr(&rules.grants))
                .or_insert_with(|| self.sets.get(&*rules.grants).map_or(0, |(_, number)| *number));
            let networks = open.get(&list).copied().unwrap_or(0);
            (list, networks, self.text(&rules.governs), rules.flags | mesh)
        };
        let mut rows = |policy: &PodPolicy| -> Vec<(Place, PortRow)> {
            let mut all = Vec::new();
            for (protocol, ports) in [(TCP, &policy.tcp), (UDP, &policy.udp)] {
                let rest = row(&ports.rest);
                let own = ports.own.iter().map(|(port, rules)| ((protocol, *port), row(rules)));
                all.push(((protocol, 0), rest));
                all.extend(own.filter(|(_, it)| *it != rest));
            }
            all
        };
        let mut of_policies: HashMap<*const PodPolicy, Arc<Vec<(Place, PortRow)>>, RandomState> =
            HashMap::default();
        let by_address: BTreeMap<&Address, Arc<Vec<(Place, PortRow)>>> = policies
            .iter()
            .map(|(address, rules)| {
                let inbound = &rules.inbound;
                let rows = of_policies.entry(Arc::as_ptr(inbound)).or_insert_with(|| Arc::new(rows(inbound)));
                (address, Arc::clone(rows))
            })
            .collect();
        let ids = numbered(of_policies.into_values().collect(), 1);
        for (rows, policy) in &ids {
            for ((protocol, port), (rules, networks, governs, flags)) in &**rows {
                let key = PortKey { policy: *policy, port: *port, protocol: *protocol, pad: 0 };
                let (rules, networks, governs, flags) = (*rules, *networks, *governs, *flags);
                tables.ports.insert(key, PortPolicy { rules, networks, governs, flags, pad: [0; 3] });
            }
        }
        for (address, rows) in &by_address {
            if let Some(workload) = here.get_mut(address) {
                workload.policy = ids.get(rows).copied().unwrap_or(0);
            }
        }
    }

    /// Clients that no rule can tell apart are one class.
    fn fill_clients(&self, tables: &mut TableSet, here: &mut BTreeMap<Address, Workload>, base: &Base) {
        let mut columns: Vec<Vec<(u32, u32)>> = vec![Vec::new(); base.clients.len()];
        for (kernel, number) in self.sets.values() {
            for (client, rule, denies) in &kernel.clients {
                let rule = self.text(rule) | if *denies { ALLOW_DENIES } else { 0 };
                if let Some(column) = columns.get_mut(*client as usize) {
                    column.push((*number, rule));
                }
            }
        }
        let classes = numbered(columns.iter().collect(), 1);
        for (column, client) in &classes {
            for (rules, rule) in column.iter() {
                tables.allows.insert(AllowKey { rules: *rules, client: *client }, Allow { rule: *rule });
            }
        }
        for ((_, address), column) in base.clients.iter().zip(&columns) {
            if let Some(workload) = here.get_mut(&Address::from(*address)) {
                workload.client = classes.get(column).copied().unwrap_or(0);
            }
        }
    }
}

/// What leaves: rows of ports as for what comes in, each of which names a set of networks.
fn fill_egress(
    tables: &mut TableSet,
    here: &mut BTreeMap<Address, Workload>,
    egress: &BTreeMap<&Address, &Arc<EgressPolicy>>,
    sets: &HashMap<*const EgressRules, u32, RandomState>,
) {
    let row = |rules: &Arc<EgressRules>| sets.get(&Arc::as_ptr(rules)).copied().unwrap_or(0);
    let rows = |policy: &EgressPolicy| -> Vec<(Place, u32)> {
        let mut all = Vec::new();
        for (protocol, ports) in [(TCP, &policy.tcp), (UDP, &policy.udp)] {
            let rest = row(&ports.rest);
            let own = ports.own.iter().map(|(port, rules)| ((protocol, *port), row(rules)));
            all.push(((protocol, 0), rest));
            all.extend(own.filter(|(_, it)| *it != rest));
        }
        all
    };
    let mut of_policies: HashMap<*const EgressPolicy, Arc<Vec<(Place, u32)>>, RandomState> =
        HashMap::default();
    let by_address: BTreeMap<&Address, Arc<Vec<(Place, u32)>>> = egress
        .iter()
        .map(|(address, policy)| {
            let rows = of_policies.entry(Arc::as_ptr(policy)).or_insert_with(|| Arc::new(rows(policy)));
            (*address, Arc::clone(rows))
        })
        .collect();
    // Sixteen bits hold the number: a node has fewer pods than that.
    let ids = numbered(of_policies.into_values().collect(), 1);
    for (rows, id) in &ids {
        for ((protocol, port), networks) in &**rows {
            let policy = EGRESS_POLICY | *id;
            let key = PortKey { policy, port: *port, protocol: *protocol, pad: 0 };
            tables.ports.insert(key, PortPolicy { networks: *networks, ..PortPolicy::default() });
        }
    }
    for (address, rows) in &by_address {
        if let (Some(workload), Some(id)) = (here.get_mut(address), ids.get(rows)) {
            workload.flags |= *id << EGRESS_SHIFT;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
