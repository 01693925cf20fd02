//! EndpointSlices: where a Service leads, as a controller of the cluster or a person wrote it.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{self, EndpointConditions};

use super::{
    core::{Source, addresses, meta, port_of},
    meta::{Kind, Meta},
    workload::Transport,
};
use crate::problems::{Problem, Severity};

/// The label that says which Service a slice is for.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A slice of a Service's endpoints.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointSlice {
    /// Name, labels.
    pub meta: Meta,
    /// The Service of its own namespace that it is for; empty: of none.
    pub service: String,
    /// Where connections may lead.
    pub endpoints: Vec<SliceEndpoint>,
    /// The ports of each of them.
    pub ports: Vec<SlicePort>,
}

/// An endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Whether it takes connections.
    pub state: EndpointState,
    /// The pod of the slice's namespace that it is: it leads there only while that pod has the address.
    pub pod: Option<PodReference>,
}

/// Whether an endpoint takes connections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EndpointState {
    /// It does.
    Ready,
    /// It ends, but serves still: better than none.
    Draining,
    /// It does not.
    Away,
}

/// A pod, by what tells it from its successors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodReference {
    /// Its name.
    pub name: String,
    /// Its UID; empty where a manifest has none.
    pub uid: String,
}

/// A port of every endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// The name of the Service's port; empty: it has none.
    pub name: String,
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub transport: Transport,
}

impl EndpointSlice {
    pub(super) fn from_k8s(source: &Source, slice: v1::EndpointSlice, problems: &mut Vec<Problem>) -> Self {
        let mut it = Self { meta: meta(source, slice.metadata, true), ..Self::default() };
        it.service = it.meta.labels.get(SERVICE_NAME).cloned().unwrap_or_default();
        let v4 = match slice.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            other => {
                let reason = format!("{other:?} is neither IPv4 nor IPv6: no endpoint is taken from it");
                let problem = it.problem(Severity::Warning, "addressType", reason);
                problems.push(problem.remedy("write IPv4 or IPv6 and addresses"));
                return it;
            }
        };
        for (i, endpoint) in slice.endpoints.into_iter().enumerate() {
            let pod = endpoint.target_ref.filter(|to| {
                to.kind.as_deref() == Some("Pod")
                    && to.namespace.as_ref().is_none_or(|namespace| *namespace == it.meta.namespace)
            });
            let pod =
                pod.and_then(|to| Some(PodReference { name: to.name?, uid: to.uid.unwrap_or_default() }));
            // What further addresses would mean is not defined: nobody looks at them.
            let first = endpoint.addresses.into_iter().take(1);
            let fields = first.map(|text| (format!("endpoints[{i}].addresses[0]"), text)).collect();
            let mut wrong = |field: &str, reason: String| {
                let problem = it.problem(Severity::Error, field, reason);
                problems.push(problem.remedy("write an address of a host, in its plain form"));
            };
            let read = addresses(fields, "an endpoint", &mut wrong).pop();
            let what = match read {
                None => continue,
                Some(address) if address.is_ipv4() != v4 => "is not of the slice's addressType",
                Some(address) if is_beside(&address) => "is nobody's beyond a link",
                Some(address) => {
                    let state = state(endpoint.conditions.as_ref());
                    it.endpoints.push(SliceEndpoint { address, state, pod });
                    continue;
                }
            };
            wrong(&format!("endpoints[{i}].addresses[0]"), format!("{what}: it is ignored"));
        }
        for (i, port) in slice.ports.unwrap_or_default().into_iter().enumerate() {
            let field = format!("ports[{i}]");
            let number = ("port", port.port.unwrap_or_default());
            let read = port_of(&field, number, port.protocol.as_deref(), |field, reason, remedy| {
                problems.push(it.problem(Severity::Error, field, reason).remedy(remedy));
            });
            if let Some((number, transport)) = read {
                it.ports.push(SlicePort { name: port.name.unwrap_or_default(), number, transport });
            }
        }
        it
    }

    fn problem(&self, severity: Severity, field: &str, reason: String) -> Problem {
        self.meta.problem(Kind::EndpointSlice, severity, field, reason)
    }
}

/// Unknown is ready, and whoever does not say whether it serves does if it is ready.
fn state(conditions: Option<&EndpointConditions>) -> EndpointState {
    let Some(conditions) = conditions else { return EndpointState::Ready };
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    match (ready, serving && conditions.terminating.unwrap_or(false)) {
        (true, _) => EndpointState::Ready,
        (false, true) => EndpointState::Draining,
        (false, false) => EndpointState::Away,
    }
}

/// Whether an address of IPv4 means a neighbor on the link, or all of them: no endpoint is told from another by it.
fn is_beside(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(_) => false,
    }
}

#[cfg(test)]
mod tests;
