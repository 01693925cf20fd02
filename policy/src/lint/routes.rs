//! Routes that are attached to nothing, or lead nowhere.

use super::problem;
use crate::{
    Index, Problem, Severity,
    resources::{BackendRef, Kind, ObjectName, Parent, ParentKind, Parents, Resource, Route},
};

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const LINKERD_GROUP: &str = "policy.linkerd.io";

pub(super) fn look(index: &Index, problems: &mut Vec<Problem>) {
    for resource in index.resources() {
        let Resource::Route(route) = resource else { continue };
        let Parents::These(parents) = &route.parents else { continue };
        let mut tell = |severity, field: &str, reason: String, remedy: &str| {
            problems.push(problem(resource, severity, field, reason, remedy));
        };
        if parents.is_empty() {
            let reason = "is attached to nothing: it has no effect".to_owned();
            tell(
                Severity::Warning,
                "spec.parentRefs",
                reason,
                "name a Server, a Service or an EgressNetwork",
            );
        }
        for (i, parent) in parents.iter().enumerate() {
            if let Some((field, reason, remedy)) = of_parent(index, route, parent) {
                tell(Severity::Warning, &format!("spec.parentRefs[{i}]{field}"), reason, remedy);
            }
        }
        // A route on a Server judges requests that have arrived: where they lead is no longer asked.
        if parents.iter().all(|parent| parent.kind == ParentKind::Server) {
            continue;
        }
        for (i, rule) in route.rules.iter().flatten().enumerate() {
            for (j, backend) in rule.backends.iter().enumerate() {
                if let Some((field, reason, remedy)) = of_backend(index, route, backend) {
                    let field = format!("spec.rules[{i}].backendRefs[{j}]{field}");
                    tell(Severity::Warning, &field, reason, remedy);
                }
            }
        }
    }
}

/// A field beneath the reference, what is wrong with it, and what to do.
type Found = Option<(&'static str, String, &'static str)>;

fn of_parent(index: &Index, route: &Route, parent: &Parent) -> Found {
    let name = ObjectName::new(&*parent.namespace, &*parent.name);
    match &parent.kind {
        // Compiling tells of Servers that are not there, parsing of those of another group.
        ParentKind::Server => None,
        kind if kind.is_foreign_server() => None,
        ParentKind::Other(kind) => Some((
            ".kind",
            format!(
                "{kind} {name} is neither a Server, a Service nor an EgressNetwork: the route has no effect there"
            ),
            "name one of them, with its group, or leave the route to whom it is meant for",
        )),
        ParentKind::Service => {
            let Some(Resource::Service(service)) = index.get(Kind::Service, &name) else {
                let reason = format!("there is no Service {name}: the route is attached to nothing there");
                return Some(("", reason, "write the Service or correct the name"));
            };
            if let Some(port) = parent.port.filter(|port| service.ports.iter().all(|it| it.port != *port)) {
                let reason =
                    format!("Service {name} has no port {port}: the route is attached to nothing there");
                return Some((".port", reason, "correct the port, or leave it out for every port"));
            }
            let reason = "requests towards a Service are not routed: they go to its own endpoints".to_owned();
            Some(("", reason, "attach rules about who may send them to a Server"))
        }
        ParentKind::EgressNetwork => {
            if index.get(Kind::EgressNetwork, &name).is_none() {
                let reason =
                    format!("there is no EgressNetwork {name}: the route is attached to nothing there");
                return Some(("", reason, "write the EgressNetwork or correct the name"));
            }
            if parent.namespace != route.meta.namespace {
                let reason =
                    format!("EgressNetwork {name} is another namespace's: the route has no effect there");
                return Some((".namespace", reason, "write the route in the EgressNetwork's namespace"));
            }
            let reason = "is missing: a route on an EgressNetwork is for one port".to_owned();
            parent.port.is_none().then_some((".port", reason, "write the port"))
        }
    }
}

fn of_backend(index: &Index, route: &Route, backend: &BackendRef) -> Found {
    let name = &backend.name;
    if (&*backend.group, &*backend.kind) == (LINKERD_GROUP, "EgressNetwork") {
        return None;
    }
    if (&*backend.group, &*backend.kind) != ("", "Service") {
        let reason = format!("is a {}: its share of the requests is answered with an error", backend.kind);
        return Some((".kind", reason, "refer to a Service"));
    }
    if name.namespace != route.meta.namespace && !is_granted(index, route, name) {
        let reason = format!(
            "Service {name} lies in another namespace, and no ReferenceGrant there lets a {} of {} refer to it: its \
             share of the requests is answered with an error",
            route.kind.as_str(),
            route.meta.namespace
        );
        return Some((".namespace", reason, "write a ReferenceGrant in the Service's namespace"));
    }
    let Some(Resource::Service(service)) = index.get(Kind::Service, name) else {
        let reason =
            format!("there is no Service {name}: its share of the requests is answered with an error");
        return Some((".name", reason, "write the Service or correct the name"));
    };
    let reason = match backend.port {
        None => "is missing: it is not known where in the Service the requests lead".to_owned(),
        Some(port) if service.ports.iter().any(|it| it.port == port) => return None,
        Some(port) => format!("Service {name} has no port {port}"),
    };
    Some((".port", reason, "write a port of the Service"))
}

/// Whether somebody in the Service's namespace lets the route refer to it.
fn is_granted(index: &Index, route: &Route, service: &ObjectName) -> bool {
    let group = if route.kind == Kind::LinkerdHttpRoute { LINKERD_GROUP } else { GATEWAY_GROUP };
    let from = (group, route.kind.as_str(), &*route.meta.namespace);
    index.of_kind(Kind::ReferenceGrant, &service.namespace).any(|it| match it {
        Resource::ReferenceGrant(grant) => grant.allows(from, ("", "Service", service)),
        _ => false,
    })
}
