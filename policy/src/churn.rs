//! Pods come and go all the time, so a change of some does not work out the others anew. Whatever would touch more than
//! the pod itself (an address that somebody else claims, the first or last bearer of an identity, the cluster's DNS) is
//! left to [`Base::of`], which looks at everything.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_ebpf::{Address, policy::BackendKey};

use crate::{
    base::{Base, LocalPod},
    index::Index,
    resources::{Kind, ObjectName, Pod, Resource, Service},
    services::{backend_rows, endpoints, places, selects},
    settings::ClusterSettings,
    workloads::{Claims, Standing, WorkloadInfo, workload},
};

/// A base after some pods changed.
pub(crate) struct Changed {
    pub(crate) base: Base,
    /// Whether a meshed pod of this node came or went: its clients are numbered anew.
    pub(crate) here: bool,
}

impl Base {
    /// What is where after the pods of these names changed. `None`: the change touches more than they.
    pub(crate) fn after(
        &self,
        changed: &BTreeSet<ObjectName>,
        index: &Index,
        settings: &ClusterSettings,
        node: Option<&str>,
    ) -> Option<Changed> {
        let mut it = Changed { base: self.clone(), here: false };
        let mut labels: BTreeMap<&str, Vec<BTreeMap<String, String>>> = BTreeMap::new();
        let mut identities: HashSet<u32> = HashSet::new();
        for name in changed {
            if let Some(old) = self.pod(&name.namespace, &name.name) {
                identities.extend(it.forget(old)?);
                labels.entry(&*name.namespace).or_default().push(old.labels.clone());
            }
        }
        for name in changed {
            if let Some(Resource::Pod(pod)) = index.get(Kind::Pod, name) {
                it.learn(pod, settings, node)?;
                labels.entry(&*name.namespace).or_default().push(pod.meta.labels.clone());
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
                    it.base.lead(service, index, settings)?;
                }
            }
        }
        Some(it)
    }

    /// Works out anew where a Service leads. `None`: it is the cluster's DNS, whose pods the tables know as such.
    fn lead(&mut self, service: &Service, index: &Index, settings: &ClusterSettings) -> Option<()> {
        if service.meta.object_name() == settings.dns_service {
            return None;
        }
        let namespace = &*service.meta.namespace;
        let pods: Vec<&Pod> = index
            .of_kind(Kind::Pod, namespace)
            .filter_map(|it| match it {
                Resource::Pod(pod) if selects(service, &pod.meta.labels) => Some(pod),
                _ => None,
            })
            .filter(|pod| self.pod(namespace, &pod.meta.name).is_some_and(|info| info.standing.serves()))
            .collect();
        let mut done = BTreeSet::new();
        for (ip, port, key) in places(service) {
            plain(&ip)?;
            // Where there is no row two Services claim the address; of two ports alike the first counts.
            let Some(row) = self.services.get(&key).copied().filter(|_| done.insert(key)) else { continue };
            let found = endpoints(service, &pods, port, ip.is_ipv4());
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
        let (naming, mut names) = (&settings.naming, HashMap::default());
        let info = Arc::new(workload(pod, namespace, &claims, naming, node, &mut names, &mut problems));
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

/// An address that is written in one way only.
fn plain(ip: &IpAddr) -> Option<Address> {
    (ip.to_canonical() == *ip).then(|| Address::from(*ip))
}
