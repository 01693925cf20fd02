//! Where a Service leads: as its EndpointSlices say or, where resources come without them, to the pods that it selects.

use std::collections::{BTreeMap, BTreeSet};

use heddle_ebpf::Address;

use crate::{
    problems::{Problem, Severity},
    resources::{EndpointSlice, EndpointState, Kind, Pod, Service, ServicePort, SliceEndpoint, TargetPort},
    settings::EndpointSource,
    workloads::WorkloadInfo,
};

/// The endpoints of a Service.
pub(crate) enum Endpoints<'a> {
    /// As slices name them, of each those that are there.
    Sliced(Vec<(&'a EndpointSlice, Vec<&'a SliceEndpoint>)>),
    /// The pods that it selects and that may serve.
    Selected(Vec<&'a Pod>),
    /// Nobody says.
    Unsaid,
}

impl<'a> Endpoints<'a> {
    /// Of a Service with these `slices`; `pods` tells those that it selects, `pod` finds one of its namespace.
    pub(crate) fn of<'b>(
        service: &Service,
        slices: Vec<&'a EndpointSlice>,
        pods: impl FnOnce() -> Vec<&'a Pod>,
        source: EndpointSource,
        pod: impl Fn(&str) -> Option<&'b WorkloadInfo>,
    ) -> Self {
        if !slices.is_empty() {
            let there = |endpoint: &&SliceEndpoint| match &endpoint.pod {
                None => true,
                // Slices follow the pods: what they name may be gone, and another may have its address.
                Some(named) => pod(&named.name).is_some_and(|pod| {
                    (named.uid.is_empty() || pod.uid.is_empty() || pod.uid == named.uid)
                        && pod.standing.serves()
                        && pod.addresses.contains(&endpoint.address)
                }),
            };
            let sliced = slices.into_iter().map(|it| (it, it.endpoints.iter().filter(there).collect()));
            return Self::Sliced(sliced.collect());
        }
        match source {
            EndpointSource::SlicesOrPods if !service.selector.is_empty() => Self::Selected(pods()),
            _ => Self::Unsaid,
        }
    }

    /// Where a port leads: to no other Service, of whose endpoints nothing would be known.
    pub(crate) fn at(
        &self,
        service: &Service,
        port: &ServicePort,
        v4: bool,
        is_service: impl Fn(&Address) -> bool,
    ) -> BTreeSet<(Address, u16)> {
        let mut found = self.every(service, port, v4);
        found.retain(|(address, _)| !is_service(address));
        found
    }

    fn every(&self, service: &Service, port: &ServicePort, v4: bool) -> BTreeSet<(Address, u16)> {
        match self {
            Self::Sliced(slices) => {
                let ready = named(slices, port, v4, EndpointState::Ready);
                // As kube-proxy does it: whoever ends but serves is better than none.
                if ready.is_empty() { named(slices, port, v4, EndpointState::Draining) } else { ready }
            }
            Self::Selected(pods) => pods
                .iter()
                .filter(|pod| !pod.meta.deleting && (pod.ready || service.publish_not_ready))
                .filter_map(|pod| of_pod(pod, port, v4))
                .collect(),
            Self::Unsaid => BTreeSet::new(),
        }
    }

    /// What is wrong where nobody says where a Service leads, and nobody is going to.
    pub(crate) fn problem(&self, service: &Service) -> Option<Problem> {
        if !matches!(self, Self::Unsaid) || service.addresses.is_empty() || !service.selector.is_empty() {
            return None;
        }
        let reason = "there is neither a selector nor an EndpointSlice: it is refused";
        let problem = service.meta.problem(Kind::Service, Severity::Warning, "spec.selector", reason);
        Some(problem.remedy("write a selector, or EndpointSlices that bear its name"))
    }
}

/// What slices say of a port.
fn named(
    slices: &[(&EndpointSlice, Vec<&SliceEndpoint>)],
    port: &ServicePort,
    v4: bool,
    state: EndpointState,
) -> BTreeSet<(Address, u16)> {
    let mut found = BTreeSet::new();
    for (slice, endpoints) in slices {
        for own in slice.ports.iter().filter(|own| own.name == port.name && own.transport == port.transport) {
            let fits = endpoints.iter().filter(|it| it.state == state && it.address.is_ipv4() == v4);
            found.extend(fits.map(|it| (Address::from(it.address), own.number)));
        }
    }
    found
}

fn of_pod(pod: &Pod, port: &ServicePort, v4: bool) -> Option<(Address, u16)> {
    let address = pod.addresses.iter().find(|ip| ip.is_ipv4() == v4)?;
    let number = match &port.target {
        TargetPort::Number(number) => *number,
        TargetPort::Name(name) => {
            pod.ports.iter().find(|it| it.name == *name && it.transport == port.transport)?.number
        }
    };
    Some((Address::from(*address), number))
}

/// Whether a Service selects pods with such labels.
pub(crate) fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    !service.selector.is_empty() && service.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests;
