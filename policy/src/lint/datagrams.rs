//! What rules about datagrams cannot do.

use super::problem;
use crate::{
    Compiled, Index, Problem, SameNode, Severity,
    clients::Match,
    resources::{AccessRule, Action, Direction, Kind, Peer, Pod, Resource, Service, Transport},
};

pub(super) fn look(index: &Index, compiled: &Compiled, problems: &mut Vec<Problem>) {
    for resource in index.resources() {
        let found = match resource {
            Resource::AccessRule(rule) => of_rule(rule, index, compiled),
            Resource::Service(service) => of_service(service, compiled),
            _ => None,
        };
        if let Some((severity, field, reason, remedy)) = found {
            problems.push(problem(resource, severity, field, reason, remedy));
        }
    }
}

type Found = Option<(Severity, &'static str, String, &'static str)>;

const FIELD: &str = "spec.protocol";

fn of_rule(rule: &AccessRule, index: &Index, compiled: &Compiled) -> Found {
    let spec = rule.spec.as_ref()?;
    let Direction::Inbound(peers) = &spec.direction else { return None };
    let lets_meshed = peers.iter().any(|peer| !peer.identities.is_empty() || peer.namespaces.is_some());
    if spec.transport != Some(Transport::Udp) || spec.action != Action::Allow || !lets_meshed {
        return None;
    }
    if compiled.settings.same_node == SameNode::Encrypt {
        let reason = "lets no meshed pod in: nothing encrypts UDP, and sameNode is encrypt".to_owned();
        return Some((Severity::Warning, FIELD, reason, "use TCP, or take sameNode: encrypt back"));
    }
    let nodes = |mut wanted: Box<dyn FnMut(&Pod) -> bool + '_>| -> Vec<&str> {
        index
            .of_every_kind(Kind::Pod)
            .filter_map(|it| if let Resource::Pod(pod) = it { Some(pod) } else { None })
            .filter(|pod| !pod.node.is_empty() && !pod.finished && wanted(pod))
            .map(|pod| &*pod.node)
            .collect()
    };
    let none = std::collections::BTreeMap::new();
    let servers = nodes(Box::new(|pod| {
        let labels = compiled.base.namespaces.get(&*pod.meta.namespace).map_or(&none, |meta| &*meta.labels);
        rule.is_about_namespace(&pod.meta.namespace, labels) && spec.pods.matches(&pod.meta.labels)
    }));
    let clients = nodes(Box::new(|pod| peers.iter().any(|peer| names(peer, pod, compiled))));
    let together = clients.iter().any(|node| servers.contains(node));
    if !together && !servers.is_empty() && !clients.is_empty() {
        let reason = "lets nobody in: UDP passes between meshed pods of one node only, since nothing would encrypt it \
                      between nodes, and none of these shares a node with one of its clients"
            .to_owned();
        return Some((Severity::Warning, FIELD, reason, "use TCP, or a DaemonSet that serves its own node"));
    }
    let reason =
        "passes between pods of one node only: between nodes UDP is refused, since nothing would encrypt it"
            .to_owned();
    Some((Severity::Note, FIELD, reason, "use TCP where clients may run on another node"))
}

/// Whether an entry may be about a pod, as far as its identities say.
fn names(peer: &Peer, pod: &Pod, compiled: &Compiled) -> bool {
    let info = compiled.pod(&pod.meta.namespace, &pod.meta.name);
    let Some(name) = info.and_then(|info| info.identity.as_ref()) else { return false };
    let client = crate::clients::Presented::of(name);
    let naming = &compiled.settings.naming;
    let named =
        peer.identities.iter().filter_map(|it| Match::resolve(it, naming)).any(|it| it.holds(&client));
    let labels = compiled.base.namespaces.get(&*pod.meta.namespace).map(|meta| &meta.labels);
    named
        || peer.namespaces.as_ref().zip(labels).is_some_and(|(selector, labels)| {
            crate::resources::namespace_matches(selector, &pod.meta.namespace, labels)
        })
}

fn of_service(service: &Service, compiled: &Compiled) -> Found {
    let port = service.ports.iter().find(|port| port.transport == Transport::Udp)?;
    let meshed = compiled.pods().any(|pod| {
        pod.meshed()
            && pod.namespace == service.meta.namespace
            && crate::endpoints::selects(service, &pod.labels)
    });
    if !meshed || service.addresses.is_empty() || service.meta.object_name() == compiled.settings.dns_service
    {
        return None;
    }
    let reason = format!(
        "leads datagrams to meshed pods (port {}): to a Service's address they are refused, since which pod they reach is \
         decided after they left",
        port.port
    );
    Some((
        Severity::Warning,
        "spec.ports",
        reason,
        "send to the pods' own addresses: a headless Service names them",
    ))
}
