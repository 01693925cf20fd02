//! Which Server governs a port of a pod.

use std::collections::BTreeMap;

use crate::{
    problems::{Problem, Severity},
    resources::{Kind, Pod, Server, ServerPort, ServerScope},
};

/// The Servers that govern a pod's ports.
#[derive(Clone, Default, Debug)]
pub(crate) struct Governors<'a> {
    /// By port.
    pub(crate) ports: BTreeMap<u16, &'a Server>,
    /// A Server whose port cannot be read: it closes every port that no other Server governs.
    pub(crate) rest: Option<&'a Server>,
}

/// Sorts Servers as conflicts are decided: the older wins, then the name.
pub(crate) fn by_age(servers: &mut [&Server]) {
    servers.sort_by_key(|server| server.meta.age());
}

/// Which of its namespace's Servers (sorted [`by_age`]) govern the ports of a pod.
pub(crate) fn governors<'a>(
    pod: &Pod,
    servers: &[&'a Server],
    mut conflict: impl FnMut(&'a Server, &'a Server, u16),
) -> Governors<'a> {
    let mut it = Governors::default();
    for server in servers {
        let ServerScope::Pods(selector) = &server.scope else { continue };
        if !selector.matches(&pod.meta.labels) {
            continue;
        }
        for port in ports_of(pod, server) {
            match it.ports.get(&port) {
                Some(winner) => conflict(winner, server, port),
                None => {
                    it.ports.insert(port, server);
                }
            }
        }
    }
    // What cannot be read never takes a port from a Server that says plainly that it means it.
    for server in servers {
        let maybe = match &server.scope {
            ServerScope::Pods(selector) => selector.matches(&pod.meta.labels),
            ServerScope::ExternalWorkloads => false,
            ServerScope::Unreadable => true,
        };
        if !maybe {
            continue;
        }
        for port in ports_of(pod, server) {
            it.ports.entry(port).or_insert(server);
        }
        if server.port == ServerPort::Unreadable && it.rest.is_none() {
            it.rest = Some(server);
        }
    }
    it
}

fn ports_of(pod: &Pod, server: &Server) -> Vec<u16> {
    match &server.port {
        ServerPort::Number(port) => vec![*port],
        ServerPort::Name(name) => {
            // Two containers may declare one port under one name.
            let mut ports: Vec<u16> = pod.named_tcp_ports(name).collect();
            ports.sort_unstable();
            ports.dedup();
            ports
        }
        ServerPort::Unreadable => Vec::new(),
    }
}

/// What is said of a Server that another one beats on a pod's port.
pub(crate) fn conflict(winner: &Server, loser: &Server, pod: &Pod, port: u16) -> Problem {
    let why = if winner.meta.created == loser.meta.created { "comes first by name" } else { "is older" };
    let reason = format!(
        "does not govern port {port} of pod {}: Server {}, which {why}, does",
        pod.meta.object_name(),
        winner.meta.object_name()
    );
    loser
        .meta
        .problem(Kind::Server, Severity::Warning, "spec", reason)
        .remedy("narrow one of the selectors or remove one of the Servers")
}
