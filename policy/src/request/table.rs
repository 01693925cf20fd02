//! The routes of one Server, so arranged that a request finds its own without asking each.
//!
//! The order is the Gateway API's: exact host, host suffix (longest first), none; then an exact path, an expression
//! (which is over the whole path), a prefix (longest first), a gRPC method alone; then a method, more headers, more query
//! parameters; then the older route, its name, the rule and the match. A route that fits in one respect and not in
//! another leaves the request to the next.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use regex::Regex;

use super::{
    host::Host,
    message::{BadRequest, Request},
    values::ValueTest,
};
use crate::{
    grant_set::GrantSet,
    path::meaning,
    resources::{HostMatch, PathMatch, RequestMatch, Route},
};

/// A match of a rule of a route, where it stands in the order.
#[derive(Clone, Debug)]
pub(crate) struct RouteEntry {
    /// As people read the route.
    pub(crate) route: Arc<str>,
    /// Which of its rules.
    pub(crate) rule: u32,
    /// Which of the rule's matches.
    pub(crate) part: u32,
    /// Who may send such a request.
    pub(crate) grants: Arc<GrantSet>,
    method: Option<String>,
    headers: Vec<ValueTest>,
    query: Vec<ValueTest>,
    age: (i64, String, String),
}

impl RouteEntry {
    fn rank(&self) -> impl Ord + '_ {
        use std::cmp::Reverse;
        let tests = (Reverse(self.method.is_some()), Reverse(self.headers.len()), Reverse(self.query.len()));
        (tests, &self.age, &self.route, self.rule, self.part)
    }
}

/// What a request's routes say.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Routed<'a> {
    /// It is this route's.
    To(&'a RouteEntry),
    /// It is no route's.
    Nowhere,
}

#[derive(Clone, Debug, Default)]
struct Paths {
    exact: HashMap<String, Vec<u32>, RandomState>,
    regex: Vec<(Regex, u32)>,
    prefix: HashMap<String, Vec<u32>, RandomState>,
    grpc_method: HashMap<String, Vec<u32>, RandomState>,
    /// The longest prefix: longer parts of a path need not be looked up.
    longest: usize,
}

/// The routes of one Server.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteTable {
    /// Sorted, but for hosts and paths.
    entries: Vec<RouteEntry>,
    exact: HashMap<String, Paths, RandomState>,
    suffix: HashMap<String, Paths, RandomState>,
    any: Paths,
}

impl RouteTable {
    /// The table of routes, each with who may send what it takes.
    pub(crate) fn new<'a>(routes: impl Iterator<Item = (&'a Route, Arc<GrantSet>)>) -> Self {
        let mut found: Vec<(RouteEntry, &[HostMatch], &RequestMatch)> = Vec::new();
        for (route, grants) in routes {
            let name: Arc<str> = format!("{} {}", route.kind.as_str(), route.meta.object_name()).into();
            let (created, namespace, own) = route.meta.age();
            for (rule, it) in (0..).zip(route.rules.iter().flatten()) {
                for (part, wanted) in (0..).zip(&it.matches) {
                    let entry = RouteEntry {
                        route: Arc::clone(&name),
                        rule,
                        part,
                        grants: Arc::clone(&grants),
                        method: wanted.method.clone(),
                        headers: wanted.headers.iter().map(ValueTest::new).collect(),
                        query: wanted.query.iter().map(ValueTest::new).collect(),
                        age: (created, namespace.to_owned(), own.to_owned()),
                    };
                    found.push((entry, &route.hosts, wanted));
                }
            }
        }
        found.sort_by(|a, b| a.0.rank().cmp(&b.0.rank()));
        let mut it = Self::default();
        for (index, (entry, hosts, wanted)) in (0u32..).zip(found) {
            it.entries.push(entry);
            if hosts.is_empty() {
                it.any.add(&wanted.path, index);
            }
            for host in hosts {
                match host {
                    HostMatch::Exact(name) => it.exact.entry(name.clone()),
                    HostMatch::Suffix(suffix) => it.suffix.entry(suffix.clone()),
                }
                .or_default()
                .add(&wanted.path, index);
            }
        }
        it
    }

    /// Every entry, in order.
    pub(crate) fn entries(&self) -> &[RouteEntry] {
        &self.entries
    }

    /// Which route a request is.
    ///
    /// # Errors
    /// If the request can be read in two ways.
    pub(crate) fn find(&self, request: &Request<'_>) -> Result<Routed<'_>, BadRequest> {
        let (path, query) = request.split();
        // What is compared is what both sides mean: a character that is escaped leads around no narrower route.
        let path = &*meaning(path)?;
        let host = Host::read(request.host)?;
        let host = host.as_str();
        let search = |paths: &Paths| paths.first(path, |index| self.holds(index, request, query));
        if let Some(paths) = self.exact.get(host)
            && let Some(found) = search(paths)?
        {
            return Ok(self.to(found));
        }
        if !self.suffix.is_empty() {
            for (dot, _) in host.match_indices('.').filter(|(dot, _)| *dot != 0) {
                if let Some(paths) = self.suffix.get(&host[dot..])
                    && let Some(found) = search(paths)?
                {
                    return Ok(self.to(found));
                }
            }
        }
        Ok(search(&self.any)?.map_or(Routed::Nowhere, |found| self.to(found)))
    }

    fn to(&self, index: u32) -> Routed<'_> {
        self.entries.get(index as usize).map_or(Routed::Nowhere, Routed::To)
    }

    fn holds(&self, index: u32, request: &Request<'_>, query: Option<&str>) -> Result<bool, BadRequest> {
        let Some(entry) = self.entries.get(index as usize) else { return Ok(false) };
        if entry.method.as_ref().is_some_and(|method| method != request.method) {
            return Ok(false);
        }
        for test in &entry.headers {
            if !test.header(request.headers)? {
                return Ok(false);
            }
        }
        for test in &entry.query {
            if !test.query(query)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What a route's path says. One that no request has (a prefix of nothing among them) stays as it is.
fn plain(path: &str) -> String {
    meaning(path).map_or_else(|_| path.to_owned(), Cow::into_owned)
}

impl Paths {
    fn add(&mut self, path: &PathMatch, index: u32) {
        match path {
            PathMatch::Exact(text) => self.exact.entry(plain(text)).or_default().push(index),
            PathMatch::Prefix(text) => {
                let text = plain(text);
                self.longest = self.longest.max(text.len());
                self.prefix.entry(text).or_default().push(index);
            }
            PathMatch::GrpcMethod(text) => self.grpc_method.entry(text.clone()).or_default().push(index),
            PathMatch::Regex(pattern) => {
                if let Some(regex) = pattern.regex() {
                    self.regex.push((regex, index));
                }
            }
        }
    }

    /// The first that fits the path and holds otherwise.
    fn first(
        &self,
        path: &str,
        holds: impl Fn(u32) -> Result<bool, BadRequest>,
    ) -> Result<Option<u32>, BadRequest> {
        let among = |list: Option<&Vec<u32>>| -> Result<Option<u32>, BadRequest> {
            for index in list.into_iter().flatten() {
                if holds(*index)? {
                    return Ok(Some(*index));
                }
            }
            Ok(None)
        };
        if !self.exact.is_empty()
            && let Some(found) = among(self.exact.get(path))?
        {
            return Ok(Some(found));
        }
        for (regex, index) in &self.regex {
            if regex.is_match(path) && holds(*index)? {
                return Ok(Some(*index));
            }
        }
        if !self.prefix.is_empty() {
            // The whole path, then what stands before each slash, down to nothing.
            let mut end = path.len();
            if end > self.longest {
                end = path.as_bytes()[..=self.longest].iter().rposition(|b| *b == b'/').unwrap_or(0);
            }
            loop {
                if let Some(found) = among(self.prefix.get(&path[..end]))? {
                    return Ok(Some(found));
                }
                match path[..end].rfind('/') {
                    Some(slash) => end = slash,
                    None => break,
                }
            }
        }
        if !self.grpc_method.is_empty() {
            let method = path.strip_prefix('/').and_then(|it| it.split_once('/')).map(|(_, method)| method);
            return among(method.and_then(|method| self.grpc_method.get(method)));
        }
        Ok(None)
    }
}
