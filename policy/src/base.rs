//! What is where: pods, addresses, identities, Services. Worked out anew when one of these changes, and shared by every
//! generation until then.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use foldhash::fast::RandomState;
use heddle_ebpf::{
    Address,
    policy::{
        Backend, BackendKey, NETWORKS_CLUSTER, NETWORKS_PODS, Network, NetworkKey, Service as ServiceRow,
        ServiceKey, WORKLOAD_DNS, WORKLOAD_LOCAL, WORKLOAD_MESHED, Workload,
    },
};
use ipnet::IpNet;

use crate::{
    grants::plain_networks,
    index::Index,
    names::IdentityName,
    networks,
    problems::{Problem, Severity},
    resources::{ExternalWorkload, Kind, Meta, NetworkMatch, ObjectName, Pod, Resource, Service},
    services::Services,
    settings::{ClusterSettings, canonical},
    tables::TableSet,
    workloads::{Claims, Standing, WorkloadInfo, workload},
};

/// The pods of a namespace on this node.
pub(crate) type LocalPods = BTreeMap<String, Vec<LocalPod>>;

/// A meshed pod of this node.
#[derive(Clone, Debug)]
pub(crate) struct LocalPod {
    pub(crate) pod: Arc<Pod>,
    pub(crate) info: Arc<WorkloadInfo>,
}

/// A workload outside the cluster that has an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct External {
    /// Its resource.
    pub name: ObjectName,
    /// Its identity, as its certificate bears it.
    pub identity: String,
    /// The name that it is asked for in TLS.
    pub server_name: String,
}

/// What is where.
#[derive(Debug, Default)]
pub(crate) struct Base {
    pub(crate) namespaces: BTreeMap<String, Meta>,
    pub(crate) pods: BTreeMap<ObjectName, Arc<WorkloadInfo>>,
    pub(crate) by_address: HashMap<Address, Arc<WorkloadInfo>, RandomState>,
    pub(crate) externals: HashMap<Address, Arc<External>, RandomState>,
    pub(crate) local: LocalPods,
    /// The clients of this node as its kernel knows them: identity and address, sorted.
    pub(crate) clients: Vec<(IdentityName, IpAddr)>,
    /// Everything but this node's meshed pods.
    pub(crate) elsewhere: Arc<HashMap<Address, Workload, RandomState>>,
    /// This node's meshed pods, but for what rules say of them.
    pub(crate) here: BTreeMap<Address, Workload>,
    pub(crate) identities: Arc<BTreeMap<u32, String>>,
    pub(crate) services: Arc<BTreeMap<ServiceKey, ServiceRow>>,
    pub(crate) backends: Arc<BTreeMap<BackendKey, Backend>>,
    pub(crate) service_names: BTreeMap<Address, ObjectName>,
    pub(crate) networks: BTreeMap<NetworkKey, Network>,
    pub(crate) cluster_networks: Arc<[NetworkMatch]>,
    pub(crate) problems: Vec<Problem>,
}

impl Base {
    /// Works out what is where as `node` sees it; without a node every pod counts as its own.
    pub(crate) fn of(index: &Index, settings: &ClusterSettings, node: Option<&str>) -> Self {
        let mut it = Self { cluster_networks: plain_networks(&settings.cluster_networks), ..Self::default() };
        let (mut pods, mut services, mut externals): (Vec<&Pod>, Vec<&Service>, Vec<&ExternalWorkload>) =
            Default::default();
        for resource in index.of_every_kind(Kind::Namespace) {
            if let Resource::Namespace(meta) = resource {
                it.namespaces.insert(meta.name.clone(), meta.clone());
            }
        }
        pods.extend(index.of_every_kind(Kind::Pod).filter_map(|it| match it {
            Resource::Pod(pod) => Some(pod),
            _ => None,
        }));
        services.extend(index.of_every_kind(Kind::Service).filter_map(|it| match it {
            Resource::Service(service) => Some(service),
            _ => None,
        }));
        externals.extend(index.of_every_kind(Kind::ExternalWorkload).filter_map(|it| match it {
            Resource::ExternalWorkload(workload) => Some(workload),
            _ => None,
        }));
        let claims = Claims::of(pods.iter().copied(), &externals);
        let mut names = HashMap::default();
        let mut known: Vec<(&Pod, Arc<WorkloadInfo>)> = Vec::with_capacity(pods.len());
        for pod in pods {
            let namespace = it.namespaces.get(&*pod.meta.namespace);
            let info =
                workload(pod, namespace, &claims, &settings.naming, node, &mut names, &mut it.problems);
            known.push((pod, Arc::new(info)));
        }
        let services = Services::of(&services, &known, settings, &mut it.problems);
        let outside = it.externals(&externals, &claims);
        it.fill_workloads(&known, &services);
        it.fill_networks(settings, &known, &outside);
        let mut tables = TableSet::default();
        it.service_names = services.fill(&mut tables);
        (it.services, it.backends) = (tables.services, tables.backends);
        for (pod, info) in known {
            if matches!(info.standing, Standing::Meshed | Standing::Plain) {
                it.by_address.extend(info.addresses.iter().map(|ip| (Address::from(*ip), Arc::clone(&info))));
            }
            if info.local && info.meshed() {
                let local = LocalPod { pod: Arc::new(pod.clone()), info: Arc::clone(&info) };
                it.local.entry(pod.meta.namespace.clone()).or_default().push(local);
            }
            it.pods.insert(pod.meta.object_name(), info);
        }
        it
    }

    /// The workloads outside the cluster that can be believed; returns the addresses of those that cannot.
    fn externals(&mut self, externals: &[&ExternalWorkload], claims: &Claims) -> Vec<IpAddr> {
        let mut refused = Vec::new();
        for external in externals {
            if external.identity.is_empty() {
                refused.extend(&external.addresses);
                continue;
            }
            let found = Arc::new(External {
                name: external.meta.object_name(),
                identity: external.identity.clone(),
                server_name: external.server_name.clone(),
            });
            for address in &external.addresses {
                if claims.is_contested(address) {
                    let reason = format!("{address} is claimed by another workload as well: it is refused");
                    let kind = Kind::ExternalWorkload;
                    let problem = external.meta.problem(kind, Severity::Error, "spec.workloadIPs", reason);
                    self.problems.push(problem.remedy("remove one of them"));
                    refused.push(*address);
                } else {
                    self.externals.insert(Address::from(*address), Arc::clone(&found));
                }
            }
        }
        refused
    }

    fn fill_workloads(&mut self, pods: &[(&Pod, Arc<WorkloadInfo>)], services: &Services<'_>) {
        let own = pods.iter().filter_map(|(_, info)| info.identity.as_ref());
        let names: BTreeSet<&str> =
            own.map(IdentityName::dns).chain(self.externals.values().map(|it| &*it.identity)).collect();
        let ids: HashMap<&str, u32, RandomState> = names.iter().copied().zip(1..).collect();
        let mut elsewhere = HashMap::default();
        for (_, info) in pods {
            let flags = match info.standing {
                Standing::Meshed => WORKLOAD_MESHED,
                Standing::Plain => 0,
                _ => continue,
            };
            let flags = flags | if info.local { WORKLOAD_LOCAL } else { 0 };
            let identity = info.identity.as_ref().and_then(|name| ids.get(name.dns())).copied().unwrap_or(0);
            for address in &info.addresses {
                let dns = if services.is_dns(address) { WORKLOAD_DNS } else { 0 };
                let row = Workload { uid: info.digest, identity, client: 0, policy: 0, flags: flags | dns };
                if info.local && info.meshed() {
                    self.here.insert(Address::from(*address), row);
                    self.clients.extend(info.identity.as_ref().map(|name| (name.clone(), *address)));
                } else {
                    elsewhere.insert(Address::from(*address), row);
                }
            }
        }
        for (address, external) in &self.externals {
            let identity = ids.get(&*external.identity).copied().unwrap_or(0);
            let row = Workload { uid: 0, identity, client: 0, policy: 0, flags: WORKLOAD_MESHED };
            elsewhere.insert(*address, row);
        }
        self.identities =
            Arc::new(names.iter().zip(1..).map(|(name, id)| (id, (*name).to_owned())).collect());
        self.elsewhere = Arc::new(elsewhere);
        self.clients.sort();
    }

    fn fill_networks(
        &mut self,
        settings: &ClusterSettings,
        pods: &[(&Pod, Arc<WorkloadInfo>)],
        outside: &[IpAddr],
    ) {
        // By every prefix length: as many as the contested addresses are, a scan of them for each would be square.
        let inside = |given: &BTreeSet<IpNet>, point: &IpNet| {
            (0..=point.prefix_len()).any(|length| {
                IpNet::new(point.network(), length).is_ok_and(|net| given.contains(&net.trunc()))
            })
        };
        let mut fill = |set, given: &mut dyn Iterator<Item = IpNet>, holds: &dyn Fn(&IpNet) -> bool| {
            for point in networks::points(given) {
                let allow = u32::from(holds(&point));
                self.networks.insert(networks::key(set, &point), Network { rule: 0, allow });
            }
        };
        let cluster: BTreeSet<IpNet> = settings.cluster_networks.iter().map(canonical).collect();
        fill(NETWORKS_CLUSTER, &mut cluster.iter().copied(), &|point| inside(&cluster, point));
        // The addresses of pods that cannot be believed are refused wherever they lie.
        let closed = pods
            .iter()
            .filter(|(_, info)| matches!(info.standing, Standing::Contested | Standing::NoIdentity))
            .flat_map(|(_, info)| info.addresses.iter())
            .chain(outside)
            .map(|address| IpNet::from(*address));
        let closed: BTreeSet<IpNet> = closed.collect();
        let own: BTreeSet<IpNet> =
            settings.pod_networks.iter().chain(&settings.service_networks).map(canonical).collect();
        // Nodes may have addresses in the pods' networks: theirs are nobody's whom the cluster ought to know.
        let nodes: BTreeSet<IpNet> = settings.node_networks.iter().map(canonical).collect();
        let mut all = closed.iter().chain(&own).chain(&nodes).copied();
        fill(NETWORKS_PODS, &mut all, &|point| {
            inside(&closed, point) || inside(&own, point) && !inside(&nodes, point)
        });
    }
}
