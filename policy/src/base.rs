//! What is where: pods, addresses, identities, Services. Worked out anew when one of these changes, and shared by every
//! generation until then; [`crate::churn`] changes a copy where only pods come and go.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use foldhash::fast::RandomState;
use heddle_ebpf::{
    Address,
    policy::{
        Backend, BackendKey, NETWORKS_CLUSTER, NETWORKS_PODS, Network, NetworkKey, SERVICE_MESHED,
        Service as ServiceRow, ServiceKey, WORKLOAD_ASKED_PLAIN, WORKLOAD_DNS, WORKLOAD_LOCAL,
        WORKLOAD_MESHED, WORKLOAD_TAKES_PLAIN, Workload,
    },
};
use ipnet::IpNet;

use crate::{
    address_map::AddressMap,
    grants::plain_networks,
    index::Index,
    names::IdentityName,
    networks,
    problems::{Problem, Severity},
    resources::{
        EndpointSlice, ExternalWorkload, Kind, Meta, NetworkMatch, ObjectName, Passage, Pod, Resource,
        Service,
    },
    services::Services,
    settings::{ClusterSettings, canonical},
    verdict::UDP,
    workloads::{Claims, Standing, WorkloadInfo, workload},
};

/// The pods of a namespace on this node, sorted by name.
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

/// The identities of the cluster, numbered in their order.
#[derive(Debug, Default)]
pub(crate) struct Numbers(HashMap<String, u32, RandomState>);

impl Numbers {
    /// The number of an identity; 0: it has none.
    pub(crate) fn of(&self, identity: &str) -> u32 {
        self.0.get(identity).copied().unwrap_or(0)
    }
}

/// What is where. A copy shares nearly everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Base {
    pub(crate) namespaces: Arc<BTreeMap<String, Meta>>,
    /// By namespace, sorted by name.
    pub(crate) pods: BTreeMap<Arc<str>, Arc<Vec<Arc<WorkloadInfo>>>>,
    pub(crate) by_address: AddressMap<Arc<WorkloadInfo>>,
    /// Addresses of pods that have no row, for whatever reason, and of workloads outside the cluster: claims that the
    /// rows do not show.
    pub(crate) claimed: Arc<HashSet<IpAddr, RandomState>>,
    pub(crate) externals: Arc<HashMap<Address, Arc<External>, RandomState>>,
    pub(crate) local: LocalPods,
    /// The clients of this node as its kernel knows them: identity and address, sorted.
    pub(crate) clients: Vec<(IdentityName, IpAddr)>,
    /// Everything but this node's meshed pods.
    pub(crate) elsewhere: AddressMap<Workload>,
    /// This node's meshed pods, but for what rules say of them.
    pub(crate) here: BTreeMap<Address, Workload>,
    pub(crate) identities: Arc<BTreeMap<u32, String>>,
    pub(crate) numbers: Arc<Numbers>,
    /// How many have each identity, by its number.
    pub(crate) carriers: Arc<Vec<u32>>,
    pub(crate) services: Arc<BTreeMap<ServiceKey, ServiceRow>>,
    pub(crate) backends: Arc<BTreeMap<BackendKey, Backend>>,
    pub(crate) service_names: Arc<BTreeMap<Address, ObjectName>>,
    pub(crate) networks: Arc<BTreeMap<NetworkKey, Network>>,
    pub(crate) cluster_networks: Arc<[NetworkMatch]>,
    /// What is wrong with each pod.
    pub(crate) pod_problems: Arc<BTreeMap<ObjectName, Vec<Problem>>>,
    /// What is wrong with a Service by itself.
    pub(crate) service_problems: Arc<BTreeMap<ObjectName, Problem>>,
    /// What is wrong with anything else.
    pub(crate) problems: Arc<Vec<Problem>>,
}

impl Base {
    /// Works out what is where as `node` sees it; without a node every pod counts as its own.
    pub(crate) fn of(index: &Index, settings: &ClusterSettings, node: Option<&str>) -> Self {
        let mut it = Self { cluster_networks: plain_networks(&settings.cluster_networks), ..Self::default() };
        let (mut pods, mut services, mut externals): (Vec<&Pod>, Vec<&Service>, Vec<&ExternalWorkload>) =
            Default::default();
        let namespaces = index.of_every_kind(Kind::Namespace).filter_map(|it| match it {
            Resource::Namespace(meta) => Some((meta.name.clone(), meta.clone())),
            _ => None,
        });
        it.namespaces = Arc::new(namespaces.collect());
        pods.extend(index.of_every_kind(Kind::Pod).filter_map(|it| match it {
            Resource::Pod(pod) => Some(pod),
            _ => None,
        }));
        services.extend(index.of_every_kind(Kind::Service).filter_map(|it| match it {
            Resource::Service(service) => Some(service),
            _ => None,
        }));
        let slices: Vec<&EndpointSlice> = index
            .of_every_kind(Kind::EndpointSlice)
            .filter_map(|it| match it {
                Resource::EndpointSlice(slice) => Some(slice),
                _ => None,
            })
            .collect();
        externals.extend(index.of_every_kind(Kind::ExternalWorkload).filter_map(|it| match it {
            Resource::ExternalWorkload(workload) => Some(workload),
            _ => None,
        }));
        let claims = Claims::of(&pods, &externals);
        let mut names = HashMap::default();
        let mut known: Vec<(&Pod, Arc<WorkloadInfo>)> = Vec::with_capacity(pods.len());
        let mut pod_problems: BTreeMap<ObjectName, Vec<Problem>> = BTreeMap::new();
        for pod in pods {
            let namespace = it.namespaces.get(&*pod.meta.namespace);
            let mut problems = Vec::new();
            let info = workload(pod, namespace, &claims, settings, node, &mut names, &mut problems);
            if !problems.is_empty() {
                pod_problems.entry(pod.meta.object_name()).or_default().append(&mut problems);
            }
            known.push((pod, Arc::new(info)));
        }
        it.pod_problems = Arc::new(pod_problems);
        let mut problems = Vec::new();
        let services = Services::of(&services, &slices, &known, settings, &mut problems);
        it.service_problems = Arc::new(services.problems());
        let outside = it.externals(&externals, &claims, &mut problems);
        it.problems = Arc::new(problems);
        it.number(&known);
        it.fill_networks(settings, &known, &outside);
        let (rows, names) = services.rows();
        (it.services, it.backends, it.service_names) =
            (Arc::new(rows.services), Arc::new(rows.backends), Arc::new(names));
        let mut claimed: HashSet<IpAddr, RandomState> =
            externals.iter().flat_map(|it| it.addresses.iter().copied()).collect();
        let mut last: Option<(Arc<str>, Vec<Arc<WorkloadInfo>>)> = None;
        for (pod, info) in known {
            let has_row = matches!(info.standing, Standing::Meshed | Standing::Plain);
            if has_row {
                it.add_rows(&info, |address| services.is_dns(address));
            } else if info.standing != Standing::Finished {
                claimed.extend(&info.addresses);
            }
            if info.local && info.meshed() {
                let local = LocalPod { pod: Arc::new(pod.clone()), info: Arc::clone(&info) };
                it.local.entry(pod.meta.namespace.clone()).or_default().push(local);
            }
            // They come sorted by namespace.
            match &mut last {
                Some((namespace, pods)) if **namespace == *pod.meta.namespace => pods.push(info),
                last => {
                    let next = (Arc::from(&*pod.meta.namespace), vec![info]);
                    it.pods.extend(last.replace(next).map(|(namespace, pods)| (namespace, Arc::new(pods))));
                }
            }
        }
        it.pods.extend(last.map(|(namespace, pods)| (namespace, Arc::new(pods))));
        it.claimed = Arc::new(claimed);
        it.clients.sort();
        let udp: Vec<ServiceKey> = it.services.keys().filter(|key| key.protocol == UDP).copied().collect();
        for key in udp {
            it.tell_meshed(&key);
        }
        it
    }

    /// Writes down whether an endpoint of a Service's port for UDP is meshed.
    pub(crate) fn tell_meshed(&mut self, key: &ServiceKey) {
        let Some(row) = self.services.get(key).copied().filter(|_| key.protocol == UDP) else { return };
        let meshed = |backend: &Backend| match self.by_address.get(&backend.address) {
            Some(info) => info.meshed(),
            None => self.externals.contains_key(&backend.address),
        };
        let mut backends = (0..row.backends)
            .filter_map(|index| self.backends.get(&BackendKey { service: row.service, index }));
        let flag = if backends.any(meshed) { SERVICE_MESHED } else { 0 };
        let flags = row.flags & !SERVICE_MESHED | flag;
        if flags != row.flags
            && let Some(row) = Arc::make_mut(&mut self.services).get_mut(key)
        {
            row.flags = flags;
        }
    }

    /// A pod by its name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<WorkloadInfo>> {
        let pods = self.pods.get(namespace)?;
        pods.get(pods.binary_search_by(|info| info.name.as_str().cmp(name)).ok()?)
    }

    /// Every pod, by namespace and name.
    pub(crate) fn all_pods(&self) -> impl Iterator<Item = &Arc<WorkloadInfo>> {
        self.pods.values().flat_map(|pods| pods.iter())
    }

    /// The workloads outside the cluster that can be believed; returns the addresses of those that cannot.
    fn externals(
        &mut self,
        externals: &[&ExternalWorkload],
        claims: &Claims,
        problems: &mut Vec<Problem>,
    ) -> Vec<IpAddr> {
        let mut refused = Vec::new();
        let mut by_address = HashMap::default();
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
                    problems.push(problem.remedy("remove one of them"));
                    refused.push(*address);
                } else {
                    by_address.insert(Address::from(*address), Arc::clone(&found));
                }
            }
        }
        self.externals = Arc::new(by_address);
        refused
    }

    /// Numbers the identities, and writes the rows of the workloads outside.
    fn number(&mut self, pods: &[(&Pod, Arc<WorkloadInfo>)]) {
        let mut counts: HashMap<&str, u32, RandomState> = HashMap::default();
        let own = pods.iter().filter_map(|(_, info)| info.identity.as_ref()).map(IdentityName::dns);
        for name in own.chain(self.externals.values().map(|it| &*it.identity)) {
            *counts.entry(name).or_default() += 1;
        }
        let mut names: Vec<(&str, u32)> = counts.into_iter().collect();
        names.sort_unstable();
        let numbers =
            Numbers(names.iter().zip(1..).map(|((name, _), id)| ((*name).to_owned(), id)).collect());
        for (address, external) in &*self.externals {
            let identity = numbers.of(&external.identity);
            let row = Workload { uid: 0, identity, client: 0, policy: 0, flags: WORKLOAD_MESHED };
            self.elsewhere.insert(*address, row);
        }
        self.identities =
            Arc::new(names.iter().zip(1..).map(|((name, _), id)| (id, (*name).to_owned())).collect());
        self.carriers = Arc::new([0].into_iter().chain(names.into_iter().map(|(_, count)| count)).collect());
        self.numbers = Arc::new(numbers);
    }

    /// Adds the rows of a pod that has some.
    pub(crate) fn add_rows(&mut self, info: &Arc<WorkloadInfo>, is_dns: impl Fn(&IpAddr) -> bool) {
        let flags = if info.meshed() { WORKLOAD_MESHED } else { 0 };
        let flags = flags | if info.local { WORKLOAD_LOCAL } else { 0 };
        let flags = flags
            | match info.passage {
                Passage::Over => 0,
                Passage::Settling | Passage::Leaving => WORKLOAD_TAKES_PLAIN,
                Passage::Joining | Passage::Parting | Passage::Left => {
                    WORKLOAD_ASKED_PLAIN | WORKLOAD_TAKES_PLAIN
                }
            };
        let identity = info.identity.as_ref().map_or(0, |name| self.numbers.of(name.dns()));
        for ip in &info.addresses {
            let dns = if is_dns(ip) { WORKLOAD_DNS } else { 0 };
            let row = Workload { uid: info.digest, identity, client: 0, policy: 0, flags: flags | dns };
            let address = Address::from(*ip);
            if info.local && info.meshed() {
                self.here.insert(address, row);
                self.clients.extend(info.identity.as_ref().map(|name| (name.clone(), *ip)));
            } else {
                self.elsewhere.insert(address, row);
            }
            self.by_address.insert(address, Arc::clone(info));
        }
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
        let mut rows = BTreeMap::new();
        let mut fill = |set, given: &mut dyn Iterator<Item = IpNet>, holds: &dyn Fn(&IpNet) -> bool| {
            for point in networks::points(given) {
                let allow = u32::from(holds(&point));
                rows.insert(networks::key(set, &point), Network { rule: 0, allow });
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
        self.networks = Arc::new(rows);
    }
}
