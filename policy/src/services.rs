//! Services and their endpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_ebpf::{
    Address,
    policy::{Backend, BackendKey, SERVICE_DNS, Service as Row, ServiceKey},
};

use crate::{
    endpoints::{Endpoints, selects},
    problems::{Problem, Severity},
    resources::{EndpointSlice, Kind, ObjectName, Pod, Service, ServicePort, Transport},
    settings::ClusterSettings,
    verdict::{TCP, UDP},
    workloads::WorkloadInfo,
};

/// The Services, with the addresses that only one of them claims.
pub(crate) struct Services<'a> {
    services: Vec<(&'a Service, Endpoints<'a>)>,
    contested: BTreeSet<IpAddr>,
    dns: ObjectName,
    dns_pods: BTreeSet<IpAddr>,
}

impl<'a> Services<'a> {
    pub(crate) fn of(
        services: &[&'a Service],
        slices: &[&'a EndpointSlice],
        pods: &[(&'a Pod, Arc<WorkloadInfo>)],
        settings: &ClusterSettings,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut sliced: BTreeMap<(&str, &str), Vec<&'a EndpointSlice>> = BTreeMap::new();
        for slice in slices {
            sliced.entry((&slice.meta.namespace, &slice.service)).or_default().push(slice);
        }
        let mut by_namespace: BTreeMap<&str, Vec<&'a Pod>> = BTreeMap::new();
        for (pod, info) in pods {
            if info.standing.serves() {
                by_namespace.entry(&pod.meta.namespace).or_default().push(pod);
            }
        }
        let mut claims: BTreeMap<IpAddr, Vec<&Service>> = BTreeMap::new();
        let mut it = Self {
            services: Vec::new(),
            contested: BTreeSet::new(),
            dns: settings.dns_service.clone(),
            dns_pods: BTreeSet::new(),
        };
        for service in services {
            for address in &service.addresses {
                claims.entry(*address).or_default().push(service);
            }
            let namespace = &*service.meta.namespace;
            let selected = || -> Vec<&'a Pod> {
                let own = by_namespace.get(namespace).into_iter().flatten().copied();
                own.filter(|pod| selects(service, &pod.meta.labels)).collect()
            };
            if service.meta.object_name() == it.dns {
                // Whom it selects, whatever slices say: they gain no pod anything.
                it.dns_pods.extend(selected().iter().flat_map(|pod| pod.addresses.iter().copied()));
            }
            let slices = sliced.remove(&(namespace, &*service.meta.name)).unwrap_or_default();
            let endpoints = Endpoints::of(service, slices, selected, settings.endpoints, |name| {
                let key = (namespace, name);
                let at = pods.binary_search_by(|(pod, _)| (&*pod.meta.namespace, &*pod.meta.name).cmp(&key));
                pods.get(at.ok()?).map(|(_, info)| &**info)
            });
            it.services.push((service, endpoints));
        }
        for (address, claimants) in claims.into_iter().filter(|(_, claimants)| claimants.len() > 1) {
            it.contested.insert(address);
            for service in &claimants {
                let others: Vec<String> = claimants
                    .iter()
                    .map(|other| other.meta.object_name().to_string())
                    .filter(|other| *other != service.meta.object_name().to_string())
                    .collect();
                let reason =
                    format!("{address} is claimed by Service {} as well: it is refused", others.join(", "));
                problems.push(service_problem(
                    service,
                    Severity::Error,
                    "spec.clusterIP",
                    reason,
                    "give each Service an address of its own",
                ));
            }
        }
        it
    }

    /// Whether an address is that of a pod behind the cluster's DNS Service.
    pub(crate) fn is_dns(&self, address: &IpAddr) -> bool {
        self.dns_pods.contains(address)
    }

    /// What is wrong with each by itself.
    pub(crate) fn problems(&self) -> BTreeMap<ObjectName, Problem> {
        let problems = self.services.iter().filter_map(|(service, endpoints)| {
            Some((service.meta.object_name(), endpoints.problem(service)?))
        });
        problems.collect()
    }

    /// Their rows, and whose each address is.
    pub(crate) fn rows(&self) -> (Rows, BTreeMap<Address, ObjectName>) {
        let mut rows: BTreeMap<ServiceKey, (u32, BTreeSet<(Address, u16)>)> = BTreeMap::new();
        let own: BTreeSet<Address> = self
            .services
            .iter()
            .flat_map(|(service, _)| service.addresses.iter().map(|ip| Address::from(*ip)))
            .collect();
        let is_service = |address: &Address| own.contains(address);
        let mut names = BTreeMap::new();
        for (service, endpoints) in &self.services {
            let flags = if service.meta.object_name() == self.dns { SERVICE_DNS } else { 0 };
            for ip in &service.addresses {
                let address = Address::from(*ip);
                // An address of two Services leads nowhere, but stays known as a Service's.
                rows.insert(ServiceKey { address, port: 0, protocol: 0, pad: 0 }, (flags, BTreeSet::new()));
                if !self.contested.contains(ip) {
                    names.insert(address, service.meta.object_name());
                }
            }
            for (ip, port, key) in places(service) {
                if !self.contested.contains(&ip) {
                    let at = || endpoints.at(service, port, ip.is_ipv4(), is_service);
                    rows.entry(key).or_insert_with(|| (flags, at()));
                }
            }
        }
        let mut it = Rows::default();
        for (service, (key, (flags, endpoints))) in (1u32..).zip(rows) {
            let backends = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
            it.services.insert(key, Row { service, backends, flags });
            it.backends.extend(backend_rows(service, endpoints));
        }
        (it, names)
    }
}

/// The rows of Services.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) services: BTreeMap<ServiceKey, Row>,
    pub(crate) backends: BTreeMap<BackendKey, Backend>,
}

/// The addresses and ports at which a Service is asked for.
pub(crate) fn places(service: &Service) -> impl Iterator<Item = (IpAddr, &ServicePort, ServiceKey)> {
    service.addresses.iter().flat_map(|ip| {
        service.ports.iter().filter_map(|port| {
            let protocol = match port.transport {
                Transport::Tcp => TCP,
                Transport::Udp => UDP,
                Transport::Sctp => return None,
            };
            Some((*ip, port, ServiceKey { address: Address::from(*ip), port: port.port, protocol, pad: 0 }))
        })
    })
}

/// The rows of a Service's endpoints, numbered in their order.
pub(crate) fn backend_rows(
    service: u32,
    endpoints: BTreeSet<(Address, u16)>,
) -> impl Iterator<Item = (BackendKey, Backend)> {
    (0u32..).zip(endpoints).map(move |(index, (address, port))| {
        (BackendKey { service, index }, Backend { address, port, pad: 0 })
    })
}

/// A problem of a Service.
fn service_problem(
    service: &Service,
    severity: Severity,
    field: &str,
    reason: String,
    remedy: &str,
) -> Problem {
    service.meta.problem(Kind::Service, severity, field, reason).remedy(remedy)
}
