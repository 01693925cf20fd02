//! Requests and routes: every match that holds is gathered, then sorted.

use std::net::IpAddr;

use heddle_policy::resources::{
    HostMatch, Kind, NamedMatch, ParentKind, Parents, PathMatch, ProxyProtocol, RequestMatch, Resource,
    Route, Server, TextMatch,
};

use super::{Answer, Client, Reference};

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub host: String,
    pub headers: Vec<(String, String)>,
}

/// The place of a match in the order: hosts, paths, tests, age, name, number.
type Place = (u8, usize, u8, usize, bool, usize, usize);

impl<'a> Reference<'a> {
    /// Whether a route is attached to a Server. `None`: it cannot be told.
    pub(super) fn attached(&self, route: &Route, server: &Server) -> Option<bool> {
        if route.meta.namespace != server.meta.namespace {
            return Some(false);
        }
        let fits = match route.kind {
            Kind::HttpRoute | Kind::LinkerdHttpRoute => {
                matches!(
                    server.protocol,
                    ProxyProtocol::Unknown | ProxyProtocol::Http1 | ProxyProtocol::Http2
                )
            }
            Kind::GrpcRoute => server.protocol == ProxyProtocol::Grpc,
            _ => false,
        };
        match &route.parents {
            Parents::Unreadable => None,
            Parents::These(parents) => Some(
                fits && parents.iter().any(|parent| {
                    parent.kind == ParentKind::Server
                        && parent.namespace == server.meta.namespace
                        && parent.name == server.meta.name
                }),
            ),
        }
    }

    /// Judges a request: the answer, the rule that gave it, and the route that took it.
    pub fn request(
        &self,
        server: IpAddr,
        port: u16,
        client: &Client,
        asked: &Asked,
    ) -> (Answer, String, Option<(String, u32, u32)>) {
        let Some(pod) = self.pod_at(server).filter(|pod| self.local_meshed(pod)) else {
            return (Answer::NotHere, String::new(), None);
        };
        let governs = self.governs(pod, port);
        let governor = self.governor(pod, port);
        let opaque = self.opaque(pod, port);
        let plain = || {
            let (answer, rule) = self.judge(pod, port, client, None);
            (answer, rule, None)
        };
        let Some(server) = governor.filter(|_| !opaque) else { return plain() };
        if self.closed(server) {
            return (Answer::InvalidPolicy, governs, None);
        }
        let routes: Vec<&'a Route> = self
            .resources
            .iter()
            .filter_map(|it| if let Resource::Route(it) = it { Some(it) } else { None })
            .filter(|route| self.attached(route, server) == Some(true))
            .collect();
        if routes.is_empty() {
            return plain();
        }
        let mut candidates = Vec::new();
        for route in routes {
            let hosts = host_places(route, &asked.host);
            for (rule, it) in (0u32..).zip(route.rules.iter().flatten()) {
                for (part, wanted) in (0u32..).zip(&it.matches) {
                    let Some((kind, length)) = path_place(&wanted.path, &asked.path) else { continue };
                    for (host, host_length) in &hosts {
                        let place: Place = (
                            *host,
                            usize::MAX - host_length,
                            kind,
                            usize::MAX - length,
                            wanted.method.is_none(),
                            usize::MAX - wanted.headers.len(),
                            usize::MAX - wanted.query.len(),
                        );
                        let meta = &route.meta;
                        let age =
                            (meta.created.is_none(), meta.created, meta.name.clone(), route.kind.as_str());
                        candidates.push((place, age, rule, part, route, wanted));
                    }
                }
            }
        }
        candidates.sort_by(|a, b| (&a.0, &a.1, a.2, a.3).cmp(&(&b.0, &b.1, b.2, b.3)));
        for (_, _, rule, part, route, wanted) in candidates {
            match holds(wanted, asked) {
                None => return (Answer::BadRequest, governs, None),
                Some(false) => {}
                Some(true) => {
                    let (answer, by) = self.judge(pod, port, client, Some((route.kind, &route.meta.name)));
                    let name = format!("{} {}", route.kind.as_str(), route.meta.object_name());
                    return (answer, by, Some((name, rule, part)));
                }
            }
        }
        (Answer::NoRoute, governs, None)
    }
}

/// The ways in which a route is for a host: exact, suffix, any, and how long.
fn host_places(route: &Route, host: &str) -> Vec<(u8, usize)> {
    let host = host.split(':').next().unwrap().trim_end_matches('.').to_lowercase();
    if route.hosts.is_empty() {
        return vec![(2, 0)];
    }
    let of = |it: &HostMatch| match it {
        HostMatch::Exact(name) => (*name == host).then_some((0, name.len())),
        HostMatch::Suffix(suffix) => {
            host.strip_suffix(suffix.as_str()).filter(|rest| !rest.is_empty()).map(|_| (1, suffix.len()))
        }
    };
    route.hosts.iter().filter_map(of).collect()
}

/// How a path fits: exact, expression, prefix or a gRPC method, and how long.
fn path_place(wanted: &PathMatch, path: &str) -> Option<(u8, usize)> {
    match wanted {
        PathMatch::Exact(text) => (text == path).then_some((0, 0)),
        PathMatch::Regex(pattern) => whole(pattern.as_str(), path).then_some((1, 0)),
        PathMatch::Prefix(prefix) => {
            let wanted: Vec<&str> = prefix.split('/').collect();
            let have: Vec<&str> = path.split('/').collect();
            (have.len() >= wanted.len() && have[..wanted.len()] == wanted[..]).then_some((2, prefix.len()))
        }
        PathMatch::GrpcMethod(method) => {
            let parts: Vec<&str> = path.splitn(3, '/').collect();
            (parts.len() == 3 && parts[2] == method).then_some((3, 0))
        }
    }
}

fn whole(pattern: &str, text: &str) -> bool {
    let regex = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
    regex.find(text).is_some_and(|found| found.range() == (0..text.len()))
}

fn is(wanted: &TextMatch, value: &str) -> bool {
    match wanted {
        TextMatch::Exact(text) => text == value,
        TextMatch::Regex(pattern) => whole(pattern.as_str(), value),
    }
}

/// Whether everything else of a match holds. `None`: it can be read both ways.
fn holds(wanted: &RequestMatch, asked: &Asked) -> Option<bool> {
    if wanted.method.as_ref().is_some_and(|method| *method != asked.method) {
        return Some(false);
    }
    for test in &wanted.headers {
        if !header(test, asked)? {
            return Some(false);
        }
    }
    for test in &wanted.query {
        let values: Vec<bool> = asked
            .query
            .iter()
            .filter(|(name, _)| *name == test.name)
            .map(|(_, value)| is(&test.value, value))
            .collect();
        match (values.contains(&true), values.contains(&false)) {
            (true, true) => return None,
            (true, false) => {}
            _ => return Some(false),
        }
    }
    Some(true)
}

/// A header that came several times, joined or not, must be what is asked for in each of its values.
fn header(test: &NamedMatch, asked: &Asked) -> Option<bool> {
    let lines: Vec<&str> = asked
        .headers
        .iter()
        .filter(|(name, _)| name.to_lowercase() == test.name)
        .map(|(_, value)| value.as_str())
        .collect();
    let elements: Vec<bool> =
        lines.iter().flat_map(|line| line.split(',')).map(|it| is(&test.value, it.trim())).collect();
    let whole: Vec<bool> = lines.iter().map(|line| is(&test.value, line.trim())).collect();
    if lines.is_empty() {
        return Some(false);
    }
    if !elements.contains(&false) || whole == [true] {
        return Some(true);
    }
    if elements.contains(&true) || whole.contains(&true) { None } else { Some(false) }
}
