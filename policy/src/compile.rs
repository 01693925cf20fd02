//! Resources into tables, and into what the agent decides by name with. The same resources give the same tables, ids
//! included, on every node and in whatever order they came.

mod cluster;
mod ports;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_ebpf::{
    Address,
    policy::{
        Allow, AllowKey, NETWORKS_CLUSTER, NETWORKS_FIRST_FREE, NETWORKS_PODS, Network, NetworkKey,
        PORT_MESH_CLIENTS, PortKey, PortPolicy, Settings, WORKLOAD_DNS, WORKLOAD_LOCAL, WORKLOAD_MESHED,
        Workload,
    },
};
use ipnet::IpNet;

pub(crate) use self::ports::{PodPolicy, PortRules};
use self::{cluster::Cluster, services::Services};
use crate::{
    authorizations::{Authorizations, Grant, Presented, References, plain_networks},
    names::IdentityName,
    networks,
    problems::Problem,
    resources::{Attached, NetworkMatch, ObjectName, Pod, Resource},
    servers,
    settings::{ClusterSettings, SameNode, canonical},
    tables::TableSet,
    workloads::{Claims, Standing, WorkloadInfo, workload},
};

/// Everything that a node needs: the tables, and the same by name.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What the kernel's maps hold.
    pub tables: TableSet,
    /// What is wrong with the resources taken together, sorted. (What is wrong with each by itself, parsing told.)
    pub problems: Vec<Problem>,
    pub(crate) settings: ClusterSettings,
    pub(crate) pods: BTreeMap<ObjectName, Arc<WorkloadInfo>>,
    pub(crate) by_address: BTreeMap<Address, Arc<WorkloadInfo>>,
    /// Of this node's meshed pods.
    pub(crate) policies: BTreeMap<Address, Arc<PodPolicy>>,
    /// The ids of the tables' rules.
    pub(crate) rule_ids: BTreeMap<String, u32>,
    /// By cluster address.
    pub(crate) services: BTreeMap<Address, ObjectName>,
}

/// Compiles `resources` for `node`; to `problems` is added what is found.
pub(crate) fn compile<'a>(
    resources: impl Iterator<Item = &'a Resource>,
    mut problems: Vec<Problem>,
    settings: &ClusterSettings,
    node: &str,
) -> Compiled {
    let mut cluster = Cluster::default();
    let mut references = References {
        naming: &settings.naming,
        mesh_tls: BTreeMap::new(),
        networks: BTreeMap::new(),
        servers: BTreeMap::new(),
    };
    for resource in resources {
        match resource {
            Resource::Namespace(meta) => {
                cluster.namespaces.insert(&meta.name, meta);
            }
            Resource::ServiceAccount(_) => {}
            Resource::Pod(pod) => cluster.pods.push(pod),
            Resource::Service(service) => cluster.services.push(service),
            Resource::Server(server) => {
                references.servers.insert(server.meta.object_name(), server);
                cluster.servers.entry(&server.meta.namespace).or_default().push(server);
            }
            Resource::AuthorizationPolicy(policy) => cluster.policies.push(policy),
            Resource::MeshTlsAuthentication(it) => {
                references.mesh_tls.insert(it.meta.object_name(), it);
            }
            Resource::NetworkAuthentication(it) => {
                references.networks.insert(it.meta.object_name(), it);
            }
            Resource::Attachment(it) => match &it.servers {
                Attached::Servers(servers) => {
                    let named = |name: &String| ObjectName::new(&*it.meta.namespace, &**name);
                    cluster.need_request.extend(servers.iter().map(named));
                }
                Attached::Unreadable => {
                    cluster.need_request_everywhere.insert(&it.meta.namespace);
                }
            },
        }
    }
    for list in cluster.servers.values_mut() {
        servers::by_age(list);
    }
    let mut authorizations = Authorizations::default();
    for policy in &cluster.policies {
        authorizations.add(policy, &references, &mut problems);
    }

    let claims = Claims::of(cluster.pods.iter().copied());
    let pods: Vec<(&Pod, Arc<WorkloadInfo>)> = cluster
        .pods
        .iter()
        .map(|pod| {
            let namespace = cluster.namespaces.get(&*pod.meta.namespace).copied();
            let info = workload(pod, namespace, &claims, &settings.naming, node, &mut problems);
            (*pod, Arc::new(info))
        })
        .collect();

    let cluster_networks = plain_networks(&settings.cluster_networks);
    let mut policies = BTreeMap::new();
    for (pod, info) in pods.iter().filter(|(_, info)| info.local && info.meshed()) {
        let policy =
            PodPolicy::of(pod, &cluster, &authorizations, settings, &cluster_networks, &mut problems);
        let policy = Arc::new(policy);
        for address in &info.addresses {
            policies.insert(Address::from(*address), Arc::clone(&policy));
        }
    }

    let services = Services::of(&cluster.services, &pods, settings, &mut problems);
    let mut tables = TableSet {
        settings: Settings {
            default_outbound: settings.default_outbound.code(),
            same_node_encrypt: u32::from(settings.same_node == SameNode::Encrypt),
            open: 1,
            pad: 0,
        },
        ..TableSet::default()
    };
    let identities = fill_workloads(&mut tables, &pods, &services);
    fill_policies(&mut tables, &policies, &pods, &identities);
    fill_settings_networks(&mut tables, settings, &pods);
    let service_names = services.fill(&mut tables);

    problems.sort();
    problems.dedup();
    let by_address = pods
        .iter()
        .filter(|(_, info)| matches!(info.standing, Standing::Meshed | Standing::Plain))
        .flat_map(|(_, info)| info.addresses.iter().map(|ip| (Address::from(*ip), Arc::clone(info))))
        .collect();
    Compiled {
        rule_ids: tables.rules.iter().map(|(id, rule)| (rule.clone(), *id)).collect(),
        tables,
        problems,
        settings: settings.clone(),
        pods: pods.iter().map(|(pod, info)| (pod.meta.object_name(), Arc::clone(info))).collect(),
        by_address,
        policies,
        services: service_names,
    }
}

/// Numbers the sorted `items` from `first`.
fn numbered<T: Ord>(items: BTreeSet<T>, first: u32) -> BTreeMap<T, u32> {
    items.into_iter().zip(first..).collect()
}

fn fill_workloads(
    tables: &mut TableSet,
    pods: &[(&Pod, Arc<WorkloadInfo>)],
    services: &Services<'_>,
) -> BTreeMap<IdentityName, u32> {
    let identities = numbered(pods.iter().filter_map(|(_, info)| info.identity.clone()).collect(), 1);
    tables.identities = identities.iter().map(|(name, id)| (*id, name.dns().to_owned())).collect();
    for (_, info) in pods {
        let flags = match info.standing {
            Standing::Meshed => WORKLOAD_MESHED,
            Standing::Plain => 0,
            _ => continue,
        };
        let flags = flags | if info.local { WORKLOAD_LOCAL } else { 0 };
        let identity = info.identity.as_ref().and_then(|name| identities.get(name)).copied().unwrap_or(0);
        for address in &info.addresses {
            let dns = if services.is_dns(address) { WORKLOAD_DNS } else { 0 };
            let row = Workload { uid: info.digest, identity, client: 0, policy: 0, flags: flags | dns };
            tables.workloads.insert(Address::from(*address), row);
        }
    }
    identities
}

fn fill_policies(
    tables: &mut TableSet,
    policies: &BTreeMap<Address, Arc<PodPolicy>>,
    pods: &[(&Pod, Arc<WorkloadInfo>)],
    identities: &BTreeMap<IdentityName, u32>,
) {
    let all_rules = || policies.values().flat_map(|policy| policy.rules());
    let texts: BTreeSet<&str> = all_rules()
        .flat_map(|rules| rules.grants.iter().map(|grant| &*grant.rule).chain([&*rules.governs]))
        .collect();
    let texts = numbered(texts, 1);
    let text_id = |text: &str| texts.get(text).copied().unwrap_or(0);
    tables.rules = texts.iter().map(|(text, id)| (*id, (*text).to_owned())).collect();
    let grant_lists = numbered(all_rules().map(|rules| &rules.grants).collect::<BTreeSet<_>>(), 1);

    // Sets of addresses that need no identity, one for each list of rules that has any.
    let flattened: BTreeMap<&Arc<[Grant]>, Vec<(IpNet, Network)>> =
        grant_lists.keys().map(|grants| (*grants, flatten(grants, text_id))).collect();
    let contents: BTreeSet<Vec<(IpNet, u32, u32)>> = flattened
        .values()
        .filter(|set| !set.is_empty())
        .map(|set| set.iter().map(|(net, it)| (*net, it.rule, it.allow)).collect())
        .collect();
    let sets = numbered(contents, NETWORKS_FIRST_FREE);
    for (set, id) in &sets {
        for (net, rule, allow) in set {
            tables.networks.insert(networks::key(*id, net), Network { rule: *rule, allow: *allow });
        }
    }
    let set_of = |grants: &Arc<[Grant]>| {
        let set =
            flattened.get(grants).map(|set| set.iter().map(|(net, it)| (*net, it.rule, it.allow)).collect());
        set.and_then(|set: Vec<_>| sets.get(&set)).copied().unwrap_or(0)
    };

    // Ports: pods whose ports are all alike share them.
    let row = |rules: &PortRules| {
        let mesh = if rules.grants.is_empty() { 0 } else { PORT_MESH_CLIENTS };
        let list = grant_lists.get(&rules.grants).copied().unwrap_or(0);
        (list, set_of(&rules.grants), text_id(&rules.governs), rules.flags | mesh)
    };
    let rows = |policy: &PodPolicy| {
        let rest = row(&policy.rest);
        let mut rows = vec![(0, rest)];
        rows.extend(
            policy.ports.iter().map(|(port, rules)| (*port, row(rules))).filter(|(_, it)| *it != rest),
        );
        rows
    };
    let by_address: BTreeMap<&Address, _> =
        policies.iter().map(|(address, policy)| (address, rows(policy))).collect();
    let ids = numbered(by_address.values().cloned().collect(), 1);
    for (rows, policy) in &ids {
        for (port, (rules, networks, governs, flags)) in rows {
            let key = PortKey { policy: *policy, port: *port, pad: 0 };
            let value = PortPolicy {
                rules: *rules,
                networks: *networks,
                governs: *governs,
                flags: *flags,
                pad: [0; 3],
            };
            tables.ports.insert(key, value);
        }
    }
    for (address, rows) in &by_address {
        if let Some(workload) = tables.workloads.get_mut(address) {
            workload.policy = ids.get(rows).copied().unwrap_or(0);
        }
    }
    fill_clients(tables, &grant_lists, pods, identities, text_id);
}

/// Clients that no rule can tell apart are one class: the same identity, and inside the same networks.
fn fill_clients(
    tables: &mut TableSet,
    grant_lists: &BTreeMap<&Arc<[Grant]>, u32>,
    pods: &[(&Pod, Arc<WorkloadInfo>)],
    identities: &BTreeMap<IdentityName, u32>,
    text_id: impl Fn(&str) -> u32,
) {
    let relevant: BTreeSet<&Arc<[NetworkMatch]>> = grant_lists
        .keys()
        .flat_map(|grants| grants.iter())
        .filter_map(|grant| grant.networks.as_ref())
        .collect();
    let clients: Vec<(&IdentityName, u32, &IpAddr, bool)> = pods
        .iter()
        .filter_map(|(_, info)| Some((info, info.identity.as_ref()?)))
        .flat_map(|(info, name)| {
            let id = identities.get(name).copied().unwrap_or(0);
            info.addresses.iter().map(move |address| (name, id, address, info.local))
        })
        .collect();
    let class = |id: u32, address: &IpAddr| {
        let inside = relevant.iter().map(|nets| nets.iter().any(|net| net.contains(address)));
        (id, inside.collect::<Vec<bool>>())
    };
    let classes = numbered(clients.iter().map(|(_, id, address, _)| class(*id, address)).collect(), 1);
    let mut done = BTreeSet::new();
    for (name, id, address, local) in clients {
        let client = classes.get(&class(id, address)).copied().unwrap_or(0);
        if let Some(workload) = tables.workloads.get_mut(&Address::from(*address)) {
            workload.client = client;
        }
        // Only the clients of this node are known to its kernel by their pod.
        if !local || !done.insert(client) {
            continue;
        }
        let presented = Presented::of(name.clone());
        for (grants, rules) in grant_lists {
            if let Some(grant) = grants.iter().find(|grant| grant.holds(Some(&presented), address)) {
                let rule = text_id(&grant.rule);
                tables.allows.insert(AllowKey { rules: *rules, client }, Allow { rule });
            }
        }
    }
}

/// What clients without an identity may, by address: an entry for every network at which the answer can change, with
/// the answer inside it and outside every smaller one.
fn flatten(grants: &[Grant], text_id: impl Fn(&str) -> u32) -> Vec<(IpNet, Network)> {
    let open: Vec<&Grant> = grants.iter().filter(|grant| grant.holds_for(None)).collect();
    let given = open.iter().flat_map(|grant| match &grant.networks {
        None => networks::everything().collect::<Vec<_>>(),
        Some(list) => list.iter().flat_map(|it| it.except.iter().copied().chain([it.cidr])).collect(),
    });
    let inside = |grant: &Grant, point: &IpNet| match &grant.networks {
        None => true,
        Some(list) => {
            list.iter().any(|it| it.cidr.contains(point) && !it.except.iter().any(|cut| cut.contains(point)))
        }
    };
    networks::points(given)
        .into_iter()
        .map(|point| {
            let grant = open.iter().find(|grant| inside(grant, &point));
            let rule = grant.map_or(0, |grant| text_id(&grant.rule));
            (point, Network { rule, allow: u32::from(grant.is_some()) })
        })
        .collect()
}

fn fill_settings_networks(
    tables: &mut TableSet,
    settings: &ClusterSettings,
    pods: &[(&Pod, Arc<WorkloadInfo>)],
) {
    let mut fill = |set, given: &[IpNet], holds: &dyn Fn(&IpNet) -> bool| {
        for point in networks::points(given.iter().copied()) {
            let key: NetworkKey = networks::key(set, &point);
            tables.networks.insert(key, Network { rule: 0, allow: u32::from(holds(&point)) });
        }
    };
    let any = |nets: &[IpNet], point: &IpNet| nets.iter().any(|net| net.contains(point));
    let cluster: Vec<IpNet> = settings.cluster_networks.iter().map(canonical).collect();
    fill(NETWORKS_CLUSTER, &cluster, &|point| any(&cluster, point));
    // The addresses of pods that cannot be believed are refused wherever they lie.
    let closed = pods
        .iter()
        .filter(|(_, info)| matches!(info.standing, Standing::Contested | Standing::NoIdentity))
        .flat_map(|(_, info)| info.addresses.iter().map(|address| IpNet::from(*address)));
    let closed: Vec<IpNet> = closed.collect();
    let own: Vec<IpNet> =
        settings.pod_networks.iter().chain(&settings.service_networks).map(canonical).collect();
    // Nodes may have addresses in the pods' networks: theirs are nobody's whom the cluster ought to know.
    let nodes: Vec<IpNet> = settings.node_networks.iter().map(canonical).collect();
    let all = [closed.as_slice(), &own, &nodes].concat();
    fill(NETWORKS_PODS, &all, &|point| any(&closed, point) || any(&own, point) && !any(&nodes, point));
}

#[cfg(test)]
pub(crate) mod tests;
