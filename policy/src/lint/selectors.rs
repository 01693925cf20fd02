//! Selectors that select nothing, and rules for Servers that are not there.

use super::{Known, problem};
use crate::{
    Index, Problem, Severity,
    resources::{Pod, Resource, Server, ServerPort, ServerScope, Service, Target},
};

pub(super) fn look(index: &Index, known: &Known<'_>, problems: &mut Vec<Problem>) {
    let servers = |namespace: &str| {
        index
            .resources()
            .any(|it| matches!(it, Resource::Server(server) if server.meta.namespace == namespace))
    };
    for resource in index.resources() {
        let namespace = &*resource.meta().namespace;
        let none = Vec::new();
        let pods = known.pods.get(namespace).unwrap_or(&none);
        let found = match resource {
            Resource::Server(server) => of_server(server, pods),
            Resource::Service(service) => of_service(service, pods),
            Resource::AuthorizationPolicy(policy) => {
                let all = policy.rule.as_ref().is_some_and(|rule| rule.target == Target::Namespace);
                if all && !servers(namespace) {
                    let reason = "applies to every Server of its namespace, and there is none: it decides \
                                  nothing, for a port without a Server goes by its default policy";
                    problems.push(problem(
                        resource,
                        Severity::Warning,
                        "spec.targetRef",
                        reason,
                        "write a Server for the ports that are meant",
                    ));
                }
                None
            }
            _ => None,
        };
        if let Some((field, reason, remedy)) = found {
            problems.push(problem(resource, known.severity(namespace), field, reason, remedy));
        }
    }
}

type Found = Option<(&'static str, String, &'static str)>;

fn of_server(server: &Server, pods: &[&Pod]) -> Found {
    if !server.readable {
        return None;
    }
    let ServerScope::Pods(selector) = &server.scope else { return None };
    let selected: Vec<_> = pods.iter().filter(|pod| selector.matches(&pod.meta.labels)).collect();
    if selected.is_empty() {
        let reason = format!(
            "selects none of the {} known pods of its namespace: the Server governs nothing",
            pods.len()
        );
        return Some(("spec.podSelector", reason, "correct the labels or remove the Server"));
    }
    match &server.port {
        ServerPort::Name(name) if selected.iter().all(|pod| pod.named_tcp_ports(name).next().is_none()) => {
            let reason = format!(
                "none of the {} selected pods declares a TCP port named {name}: the Server governs nothing",
                selected.len()
            );
            Some(("spec.port", reason, "correct the name, or write the port's number"))
        }
        _ => None,
    }
}

fn of_service(service: &Service, pods: &[&Pod]) -> Found {
    let selects =
        |pod: &&&Pod| service.selector.iter().all(|(key, value)| pod.meta.labels.get(key) == Some(value));
    if service.selector.is_empty() || pods.iter().any(|pod| selects(&pod)) {
        return None;
    }
    let reason = format!(
        "selects none of the {} known pods of its namespace: the Service has no endpoint",
        pods.len()
    );
    Some(("spec.selector", reason, "correct the labels or remove the Service"))
}
