//! Kubernetes' own kinds: what policy needs of them.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::core::v1::{self, Container},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{
    meta::{Kind, Meta},
    ports::check_port_name,
    tree::Lines,
    workload::{Check, Pod, PodPort, Probe, Service, ServicePort, TargetPort, Transport},
};
use crate::problems::{Origin, Problem, Severity};

/// The service account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";
/// The container of Linkerd's proxy.
const LINKERD_PROXY: &str = "linkerd-proxy";

/// Where a resource comes from and where what is said about it goes.
pub(super) struct Source {
    pub(super) origin: Origin,
    pub(super) lines: Arc<Lines>,
}

pub(super) fn meta(source: &Source, from: ObjectMeta, namespaced: bool) -> Meta {
    let namespace = match (namespaced, from.namespace) {
        (true, Some(namespace)) => namespace,
        (true, None) => "default".to_owned(),
        (false, _) => String::new(),
    };
    Meta {
        namespace,
        name: from.name.unwrap_or_default(),
        uid: from.uid.unwrap_or_default(),
        labels: Arc::new(from.labels.unwrap_or_default()),
        annotations: from.annotations.unwrap_or_default(),
        created: from.creation_timestamp.map(|time| time.0.as_microsecond()),
        deleting: from.deletion_timestamp.is_some(),
        origin: source.origin.clone(),
        lines: Arc::clone(&source.lines),
    }
}

fn transport(text: Option<&str>) -> Option<Transport> {
    match text {
        None | Some("" | "TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some("SCTP") => Some(Transport::Sctp),
        Some(_) => None,
    }
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

const PORT_REMEDY: &str = "write a number from 1 to 65535";
const TRANSPORT_REMEDY: &str = "write TCP, UDP or SCTP";

/// A port's number, in `name` under `field`, and its protocol. `None`: `wrong` was told what is wrong with one of them.
pub(super) fn port_of(
    field: &str,
    (name, number): (&str, i32),
    protocol: Option<&str>,
    mut wrong: impl FnMut(&str, String, &'static str),
) -> Option<(u16, Transport)> {
    let Some(port) = port_number(number) else {
        wrong(&format!("{field}.{name}"), format!("{number} is not a port: it is ignored"), PORT_REMEDY);
        return None;
    };
    let Some(transport) = transport(protocol) else {
        let reason = "is not a protocol: the port is ignored".to_owned();
        wrong(&format!("{field}.protocol"), reason, TRANSPORT_REMEDY);
        return None;
    };
    Some((port, transport))
}

/// The addresses that `fields` write, each once; `wrong` is told of those that `whose` they cannot be.
pub(super) fn addresses(
    fields: Vec<(String, String)>,
    whose: &str,
    mut wrong: impl FnMut(&str, String),
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (field, text) in fields {
        match text.parse::<IpAddr>() {
            Ok(ip) if usable(&ip) => {
                if !addresses.contains(&ip) {
                    addresses.push(ip);
                }
            }
            _ => wrong(&field, format!("{text:?} is not an address that {whose} can have: it is ignored")),
        }
    }
    addresses
}

impl Pod {
    pub(super) fn from_k8s(source: &Source, pod: v1::Pod, problems: &mut Vec<Problem>) -> Self {
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let mut it = Self {
            meta: meta(source, pod.metadata, true),
            node: spec.node_name.unwrap_or_default(),
            service_account: spec
                .service_account_name
                .or(spec.service_account)
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned()),
            host_network: spec.host_network.unwrap_or(false),
            linkerd_proxy: std::iter::chain(&spec.containers, spec.init_containers.iter().flatten())
                .any(|container| container.name == LINKERD_PROXY),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ..Self::default()
        };
        let conditions = status.conditions.unwrap_or_default();
        let condition =
            |name: &str| conditions.iter().find(|it| it.type_ == name).map(|it| it.status == "True");
        // Of a pod whose node was switched off and on it is the condition that says so.
        it.starting = status.phase.as_deref() == Some("Pending")
            || condition("PodReadyToStartContainers") == Some(false);
        it.ready = match condition("Ready") {
            Some(ready) => ready,
            // Only a manifest written by hand has no such condition.
            None => matches!(status.phase.as_deref(), None | Some("Running")),
        };
        for (field, containers) in
            [("containers", spec.containers), ("initContainers", spec.init_containers.unwrap_or_default())]
        {
            for (i, container) in containers.into_iter().enumerate() {
                it.add_container(&format!("spec.{field}[{i}]"), container, problems);
            }
        }
        let listed = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip);
        let mut fields = vec![("status.podIP".to_owned(), status.pod_ip.unwrap_or_default())];
        fields.extend(listed.enumerate().map(|(i, ip)| (format!("status.podIPs[{i}].ip"), ip)));
        fields.retain(|(_, text)| !text.is_empty());
        it.addresses = addresses(fields, "a pod", |field, reason| problems.push(it.problem(field, reason)));
        it
    }

    fn problem(&self, field: &str, reason: impl Into<String>) -> Problem {
        self.meta.problem(Kind::Pod, Severity::Error, field, reason)
    }

    fn add_container(&mut self, field: &str, container: Container, problems: &mut Vec<Problem>) {
        let mut own = Vec::new();
        for (i, port) in container.ports.unwrap_or_default().into_iter().enumerate() {
            let field = format!("{field}.ports[{i}]");
            let number = ("containerPort", port.container_port);
            let read = port_of(&field, number, port.protocol.as_deref(), |field, reason, remedy| {
                problems.push(self.problem(field, reason).remedy(remedy));
            });
            let Some((number, transport)) = read else { continue };
            own.push(PodPort { name: port.name.unwrap_or_default(), number, transport });
        }
        for (name, probe) in [
            ("livenessProbe", container.liveness_probe),
            ("readinessProbe", container.readiness_probe),
            ("startupProbe", container.startup_probe),
        ] {
            let Some(probe) = probe else { continue };
            let field = format!("{field}.{name}");
            let (port, check) = if let Some(http) = probe.http_get {
                let target = http.path.unwrap_or_default();
                let target = target.split('#').next().unwrap_or_default();
                let (path, query) = match target.split_once('?') {
                    Some((path, query)) => (path, Some(query.to_owned())),
                    None => (target, None),
                };
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                let https = http.scheme.as_deref() == Some("HTTPS");
                if https {
                    let reason = "is an HTTPS probe, whose path cannot be seen: it passes only where a rule lets \
                                  this node's address in";
                    problems.push(self.meta.problem(Kind::Pod, Severity::Warning, &field, reason));
                }
                (http.port, Check::Http { path, query, https })
            } else if let Some(tcp) = probe.tcp_socket {
                (tcp.port, Check::Tcp)
            } else if let Some(grpc) = probe.grpc {
                (IntOrString::Int(grpc.port), Check::Grpc { service: grpc.service.unwrap_or_default() })
            } else {
                continue;
            };
            let port = match &port {
                IntOrString::Int(number) => port_number(*number),
                IntOrString::String(name) => {
                    own.iter().find(|port| port.name == *name).map(|port| port.number)
                }
            };
            match port {
                Some(port) => self.probes.push(Probe { port, check }),
                None => problems.push(self.problem(
                    &field,
                    "has a port that is neither a number from 1 to 65535 nor the name of one of the container's \
                     ports: the probe will be refused",
                )),
            }
        }
        self.ports.append(&mut own);
    }
}

/// Whether an address can be a pod's or a Service's: a unicast one of its own, and in its plain form.
pub(super) fn usable(ip: &IpAddr) -> bool {
    let address = heddle_ebpf::Address::from(*ip);
    !(address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_link_local_v6()
        || address.to_ip() != *ip)
}

impl Service {
    pub(super) fn from_k8s(source: &Source, service: v1::Service, problems: &mut Vec<Problem>) -> Self {
        let spec = service.spec.unwrap_or_default();
        let mut it = Self {
            meta: meta(source, service.metadata, true),
            selector: spec.selector.unwrap_or_default(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            ..Self::default()
        };
        let name_only = spec.type_.as_deref() == Some("ExternalName");
        if name_only {
            problems.push(it.meta.problem(
                Kind::Service,
                Severity::Note,
                "spec.type",
                "an ExternalName is only a name: no policy is attached to it",
            ));
        }
        let mut fields = vec![("spec.clusterIP".to_owned(), spec.cluster_ip.unwrap_or_default())];
        let listed = spec.cluster_ips.unwrap_or_default();
        fields.extend(listed.into_iter().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip)));
        fields.retain(|(_, text)| !(text.is_empty() || text == "None" || name_only));
        it.addresses =
            addresses(fields, "a Service", |field, reason| problems.push(it.problem(field, reason)));
        for (i, port) in spec.ports.unwrap_or_default().into_iter().enumerate() {
            let field = format!("spec.ports[{i}]");
            let read =
                port_of(&field, ("port", port.port), port.protocol.as_deref(), |field, reason, remedy| {
                    problems.push(it.problem(field, reason).remedy(remedy))
                });
            let Some((number, transport)) = read else { continue };
            let target = match port.target_port {
                // Zero and the empty name are how clients write "none".
                None | Some(IntOrString::Int(0)) => Some(TargetPort::Number(number)),
                Some(IntOrString::Int(target)) => port_number(target).map(TargetPort::Number),
                Some(IntOrString::String(name)) if name.is_empty() => Some(TargetPort::Number(number)),
                Some(IntOrString::String(name)) if check_port_name(&name) => Some(TargetPort::Name(name)),
                Some(IntOrString::String(_)) => None,
            };
            match target {
                Some(target) => {
                    let name = port.name.unwrap_or_default();
                    it.ports.push(ServicePort { name, port: number, transport, target });
                }
                None => problems.push(
                    it.problem(
                        &format!("{field}.targetPort"),
                        "is neither a port nor a port's name: the port is ignored",
                    )
                    .remedy("write a number from 1 to 65535 or a port's name"),
                ),
            }
        }
        it
    }

    fn problem(&self, field: &str, reason: impl Into<String>) -> Problem {
        self.meta.problem(Kind::Service, Severity::Error, field, reason)
    }
}
