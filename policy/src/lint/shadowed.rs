//! Matches of routes that no request reaches, because an older route of the same Server takes each that they would.

use std::collections::BTreeMap;

use super::problem;
use crate::{
    Index, Problem, Severity,
    resources::{HostMatch, ObjectName, ParentKind, Parents, RequestMatch, Resource, Route},
};

/// What a request is asked on one Server, for one host (`None`: for any).
type Asked = (ObjectName, Option<HostMatch>, RequestMatch);

pub(super) fn look(index: &Index, problems: &mut Vec<Problem>) {
    let mut routes: Vec<(&Resource, &Route)> = index
        .resources()
        .filter_map(|resource| match resource {
            Resource::Route(route) => Some((resource, route)),
            _ => None,
        })
        .collect();
    // In which of two routes with the same match a request is taken.
    routes.sort_by_key(|(_, route)| (route.meta.age(), route.kind.as_str()));
    let mut first: BTreeMap<Asked, (&Route, usize, usize)> = BTreeMap::new();
    for (resource, route) in routes {
        let servers = servers(route);
        for (i, rule) in route.rules.iter().flatten().enumerate() {
            for (j, wanted) in rule.matches.iter().enumerate() {
                let mut all = servers.iter().flat_map(|server| asked(server, route, wanted)).peekable();
                if all.peek().is_none() {
                    continue;
                }
                let mut by = None;
                let mut shadowed = true;
                for asked in all {
                    match first.get(&asked) {
                        Some(taken) => by = by.or(Some(*taken)),
                        None => {
                            shadowed = false;
                            first.insert(asked, (route, i, j));
                        }
                    }
                }
                let Some((other, rule, part)) = by.filter(|_| shadowed) else { continue };
                let name = other.meta.object_name();
                let whose = if std::ptr::eq(other, route) {
                    "of this route".to_owned()
                } else {
                    format!("of {} {name}", other.kind.as_str())
                };
                let reason = format!(
                    "never takes a request: rules[{rule}].matches[{part}] {whose} asks the same and comes first"
                );
                let remedy = "remove it, or write what tells the two apart";
                problems.push(problem(
                    resource,
                    Severity::Warning,
                    &format!("spec.rules[{i}].matches[{j}]"),
                    reason,
                    remedy,
                ));
            }
        }
    }
}

fn servers(route: &Route) -> Vec<ObjectName> {
    let Parents::These(parents) = &route.parents else { return Vec::new() };
    let mut servers: Vec<ObjectName> = parents
        .iter()
        .filter(|parent| parent.kind == ParentKind::Server)
        .map(|parent| ObjectName::new(&*parent.namespace, &*parent.name))
        .collect();
    servers.sort();
    servers.dedup();
    servers
}

/// The tests of a match hold together, in whatever order they are written.
fn asked(server: &ObjectName, route: &Route, wanted: &RequestMatch) -> Vec<Asked> {
    let mut wanted = wanted.clone();
    wanted.headers.sort();
    wanted.query.sort();
    let hosts: Vec<Option<HostMatch>> = match &route.hosts[..] {
        [] => vec![None],
        hosts => hosts.iter().cloned().map(Some).collect(),
    };
    hosts.into_iter().map(|host| (server.clone(), host, wanted.clone())).collect()
}
