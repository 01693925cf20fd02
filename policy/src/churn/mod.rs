//! Pods and the endpoints of Services come and go all the time, Services and namespaces' annotations change, so a change of some does not
//! work out the others anew. Whatever would touch more than the pod or Service itself (an address that somebody else claims, the first or
//! last bearer of an identity, the cluster's DNS) is left to [`Base::of`], which looks at everything.

mod services;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_ebpf::{
    Address,
    policy::{BackendKey, ServiceKey},
};

use crate::{
    base::{Base, LocalPod},
    endpoints::{Endpoints, selects},
    index::Index,
    resources::{EndpointSlice, Kind, ObjectName, Pod, Resource, Service},
    services::{backend_rows, places},
    settings::ClusterSettings,
    verdict::UDP,
    workloads::{Claims, Standing, WorkloadInfo, workload},
};

/// Where more than this changed at once, working out everything is as quick.
const MOST_CHANGES: usize = 1024;

/// What changed of what is where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    pub(crate) pods: BTreeSet<ObjectName>,
    /// With the addresses that they had.
    pub(crate) services: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
    /// Services whose slices changed.
    pub(crate) sliced: BTreeSet<ObjectName>,
    pub(crate) namespaces: BTreeSet<String>,
}

impl Changes {
    /// Marks where a resource stands that is about to change or to go.
    pub(crate) fn leave(&mut self, resource: &Resource) {
        match resource {
            Resource::EndpointSlice(slice) => {
                self.sliced.insert(ObjectName::new(&*slice.meta.namespace, &*slice.service));
            }
            Resource::Service(service) => {
                let addresses = self.services.entry(service.meta.object_name()).or_default();
                addresses.extend(&service.addresses);
            }
            _ => {}
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.pods.len() + self.services.len() + self.sliced.len() + self.namespaces.len()
    }

    /// Whether they are so many that working out everything is as quick.
    pub(crate) fn are_many(&self) -> bool {
        self.len() > MOST_CHANGES
    }
}

/// A base after some changes.
pub(crate) struct Changed {
    pub(crate) base: Base,
    /// Whether a meshed pod of this node came or went: its clients are numbered anew.
    pub(crate) here: bool,
    /// Whether any pod came, went or is something else now.
    pub(crate) pods: bool,
    /// Whether the labels of a namespace changed, or which there are.
    pub(crate) labels: bool,
}

impl Base {
    /// What is where after these changes. `None`: they touch more than themselves.
    pub(crate) fn after(
        &self,
        changes: &Changes,
        index: &Index,
        settings: &ClusterSettings,
        node: Option<&str>,
    ) -> Option<Changed> {
        let mut it = Changed { base: self.clone(), here: false, pods: false, labels: false };
        let mut changed = changes.pods.clone();
        for name in &changes.namespaces {
            it.rename(name, index, settings, node, &mut changed);
        }
        it.pods = !changed.is_empty();
        if changed.len() > MOST_CHANGES {
            return None;
        }
        let mut sliced = changes.sliced.clone();
        let mut labels: BTreeMap<&str, Vec<Arc<BTreeMap<String, String>>>> = BTreeMap::new();
        let mut identities: HashSet<u32> = HashSet::new();
        for name in &changed {
            if let Some(old) = self.pod(&name.namespace, &name.name) {
                identities.extend(it.forget(old)?);
                labels.entry(&*name.namespace).or_default().push(Arc::clone(&old.labels));
            }
        }
        for name in &changed {
            if let Some(Resource::Pod(pod)) = index.get(Kind::Pod, name) {
                it.learn(pod, settings, node)?;
                labels.entry(&*name.namespace).or_default().push(Arc::clone(&pod.meta.labels));
            }
        }
        // The last who had an identity: the others' numbers change.
        if identities.iter().any(|number| it.base.carriers.get(*number as usize).is_none_or(|it| *it == 0)) {
            return None;
        }
        it.base.clients.sort();
        for (namespace, labels) in labels {
            for resource in index.of_kind(Kind::Service, namespace) {
                if let Resource::Service(service) = resource
                    && labels.iter().any(|labels| selects(service, labels))
                {
                    let name = service.meta.object_name();
                    // The tables know the pods behind the cluster's DNS as such.
                    if name == settings.dns_service {
                        return None;
                    }
                    sliced.insert(name);
                }
            }
            let own = changed.iter().filter(|name| name.namespace == namespace);
            let own: BTreeSet<&str> = own.map(|name| &*name.name).collect();
            for slice in slices(index, namespace) {
                let mut named = slice.endpoints.iter().filter_map(|it| it.pod.as_ref());
                if named.any(|pod| own.contains(&*pod.name)) {
                    sliced.insert(ObjectName::new(namespace, &*slice.service));
                }
            }
        }
        it.base.resettle(&changes.services, index, settings)?;
        sliced.extend(changes.services.keys().cloned());
        for name in sliced {
            if let Some(Resource::Service(service)) = index.get(Kind::Service, &name) {
                it.base.lead(service, index, settings)?;
            }
        }
        // Whoever wrote an endpoint by hand need not have named the pod that has its address.
        let udp: Vec<ServiceKey> =
            it.base.services.keys().filter(|key| key.protocol == UDP).copied().collect();
        udp.iter().for_each(|key| it.base.tell_meshed(key));
        Some(it)
    }

    /// Works out anew where a Service leads. `None`: it has an address that is written in several ways.
    fn lead(&mut self, service: &Service, index: &Index, settings: &ClusterSettings) -> Option<()> {
        let namespace = &*service.meta.namespace;
        let pods = || {
            let all = index.of_kind(Kind::Pod, namespace).filter_map(|it| match it {
                Resource::Pod(pod) if selects(service, &pod.meta.labels) => Some(pod),
                _ => None,
            });
            let serves =
                |pod: &&Pod| self.pod(namespace, &pod.meta.name).is_some_and(|it| it.standing.serves());
            all.filter(serves).collect()
        };
        let slices = slices(index, namespace).filter(|slice| slice.service == service.meta.name).collect();
        let leads = Endpoints::of(service, slices, pods, settings.endpoints, |name| {
            self.pod(namespace, name).map(AsRef::as_ref)
        });
        let (name, problem) = (service.meta.object_name(), leads.problem(service));
        if self.service_problems.get(&name) != problem.as_ref() {
            let problems = Arc::make_mut(&mut self.service_problems);
            match problem {
                Some(problem) => problems.insert(name, problem),
                None => problems.remove(&name),
            };
        }
        let mut done = BTreeSet::new();
        for (ip, port, key) in places(service) {
            plain(&ip)?;
            // Where there is no row two Services claim the address; of two ports alike the first counts.
            let Some(row) = self.services.get(&key).copied().filter(|_| done.insert(key)) else { continue };
            let is_service = |address: &Address| {
                let key = ServiceKey { address: *address, port: 0, protocol: 0, pad: 0 };
                self.services.contains_key(&key)
            };
            let found = leads.at(service, port, ip.is_ipv4(), is_service);
            let count = u32::try_from(found.len()).unwrap_or(u32::MAX);
            let backends = Arc::make_mut(&mut self.backends);
            for index in count..row.backends {
                backends.remove(&BackendKey { service: row.service, index });
            }
            backends.extend(backend_rows(row.service, found));
            if let Some(row) = Arc::make_mut(&mut self.services).get_mut(&key) {
                row.backends = count;
            }
            self.tell_meshed(&key);
        }
        Some(())
    }
}

impl Changed {
    /// Reads what is said of a namespace, and marks its pods to which that makes a difference.
    fn rename(
        &mut self,
        name: &str,
        index: &Index,
        settings: &ClusterSettings,
        node: Option<&str>,
        changed: &mut BTreeSet<ObjectName>,
    ) {
        let base = &mut self.base;
        let new = match index.get(Kind::Namespace, &ObjectName::new("", name)) {
            Some(Resource::Namespace(meta)) => Some(meta),
            _ => None,
        };
        let old = base.namespaces.get(name);
        if old == new {
            return;
        }
        self.labels |= old.map(|meta| &meta.labels) != new.map(|meta| &meta.labels);
        let namespaces = Arc::make_mut(&mut base.namespaces);
        match new {
            Some(meta) => namespaces.insert(name.to_owned(), meta.clone()),
            None => namespaces.remove(name),
        };
        let mut names = HashMap::default();
        for resource in index.of_kind(Kind::Pod, name) {
            let Resource::Pod(pod) = resource else { continue };
            let pod_name = pod.meta.object_name();
            let Some(was) = base.pod(name, &pod.meta.name).filter(|_| !changed.contains(&pod_name)) else {
                continue;
            };
            // Whoever claims an address, the namespace has nothing to do with it.
            if was.standing == Standing::Contested {
                continue;
            }
            let (claims, mut problems) = (Claims::default(), Vec::new());
            let is = workload(pod, new, &claims, settings, node, &mut names, &mut problems);
            if is != **was {
                changed.insert(pod_name);
            } else if base.pod_problems.get(&pod_name).map_or(&[][..], Vec::as_slice) != problems {
                let all = Arc::make_mut(&mut base.pod_problems);
                if problems.is_empty() {
                    all.remove(&pod_name);
                } else {
                    all.insert(pod_name, problems);
                }
            }
        }
    }

    /// Takes a pod out; returns the number of its identity. `None`: others are what they are because of it.
    fn forget(&mut self, old: &Arc<WorkloadInfo>) -> Option<Option<u32>> {
        let base = &mut self.base;
        let mut number = None;
        match old.standing {
            Standing::Meshed | Standing::Plain => {
                let here = old.local && old.meshed();
                for ip in &old.addresses {
                    let address = plain(ip)?;
                    base.by_address.remove(&address);
                    if here {
                        base.here.remove(&address);
                    } else {
                        base.elsewhere.remove(&address);
                    }
                }
                if here {
                    self.here = true;
                    base.clients.retain(|(_, ip)| !old.addresses.contains(ip));
                    let local = base.local.get_mut(&old.namespace)?;
                    local.retain(|it| it.info.name != old.name);
                    if local.is_empty() {
                        base.local.remove(&old.namespace);
                    }
                }
                if let Some(identity) = &old.identity {
                    let found = base.numbers.of(identity.dns());
                    *Arc::make_mut(&mut base.carriers).get_mut(found as usize)? -= 1;
                    number = Some(found);
                }
            }
            Standing::Finished | Standing::NoAddress => {}
            Standing::HostNetwork | Standing::Contested | Standing::NoIdentity => return None,
        }
        let pods = Arc::make_mut(base.pods.get_mut(&*old.namespace)?);
        pods.retain(|info| info.name != old.name);
        if pods.is_empty() {
            base.pods.remove(&*old.namespace);
        }
        let name = ObjectName::new(&*old.namespace, &*old.name);
        if base.pod_problems.contains_key(&name) {
            Arc::make_mut(&mut base.pod_problems).remove(&name);
        }
        Some(number)
    }

    /// Takes a pod in. `None`: it makes a difference to others.
    fn learn(&mut self, pod: &Pod, settings: &ClusterSettings, node: Option<&str>) -> Option<()> {
        let base = &mut self.base;
        let mut own = HashSet::new();
        for ip in pod.addresses.iter().filter(|_| !pod.finished) {
            let address = plain(ip)?;
            if !own.insert(ip) || base.claimed.contains(ip) || base.by_address.get(&address).is_some() {
                return None;
            }
        }
        let mut problems = Vec::new();
        let namespace = base.namespaces.get(&*pod.meta.namespace);
        let claims = Claims::default();
        let mut names = HashMap::default();
        let info = Arc::new(workload(pod, namespace, &claims, settings, node, &mut names, &mut problems));
        match info.standing {
            Standing::Meshed | Standing::Plain => {
                if let Some(identity) = &info.identity {
                    let number = base.numbers.of(identity.dns());
                    let carriers = Arc::make_mut(&mut base.carriers).get_mut(number as usize)?;
                    if number == 0 {
                        return None;
                    }
                    *carriers += 1;
                }
                base.add_rows(&info, |_| false);
                if info.local && info.meshed() {
                    self.here = true;
                    let local = base.local.entry(pod.meta.namespace.clone()).or_default();
                    let at = local.partition_point(|it| it.info.name < info.name);
                    local.insert(at, LocalPod { pod: Arc::new(pod.clone()), info: Arc::clone(&info) });
                }
            }
            Standing::Finished | Standing::NoAddress => {}
            Standing::HostNetwork | Standing::Contested | Standing::NoIdentity => return None,
        }
        if !problems.is_empty() {
            Arc::make_mut(&mut base.pod_problems).insert(pod.meta.object_name(), problems);
        }
        let pods = Arc::make_mut(base.pods.entry(Arc::from(&*pod.meta.namespace)).or_default());
        let at = pods.partition_point(|it| it.name < info.name);
        pods.insert(at, info);
        Some(())
    }
}

fn slices<'a>(index: &'a Index, namespace: &'a str) -> impl Iterator<Item = &'a EndpointSlice> {
    index.of_kind(Kind::EndpointSlice, namespace).filter_map(|it| match it {
        Resource::EndpointSlice(slice) => Some(slice),
        _ => None,
    })
}

/// An address that is written in one way only.
fn plain(ip: &IpAddr) -> Option<Address> {
    (ip.to_canonical() == *ip).then(|| Address::from(*ip))
}
