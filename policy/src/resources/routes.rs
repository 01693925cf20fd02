//! Routes and rate limits, as they were written.

use super::{
    meta::{Kind, Meta, ObjectName},
    pattern::Pattern,
};

/// What a route is attached to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ParentKind {
    /// A Server of Linkerd's: the route divides what comes in.
    Server,
    /// A Service: the route divides what goes out to it.
    Service,
    /// An EgressNetwork: the route divides what leaves the cluster.
    EgressNetwork,
    /// Something that is not the mesh's.
    Other(String),
}

impl ParentKind {
    /// Whether it is called a Server and is none of Linkerd's: the group is missing or wrong.
    pub(crate) fn is_foreign_server(&self) -> bool {
        matches!(self, Self::Other(kind) if kind.rsplit('/').next().is_some_and(|it| it.eq_ignore_ascii_case("Server")))
    }
}

/// One of a route's parents.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Parent {
    /// What it is.
    pub kind: ParentKind,
    /// Its namespace; the route's own where none is written.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its port; `None`: every one.
    pub port: Option<u16>,
    /// A section of it: a Service's port by its name. `None`: all of it.
    pub section: Option<String>,
}

/// A host that a route is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HostMatch {
    /// This name, in lower case.
    Exact(String),
    /// Every name that ends in this, which begins with a dot.
    Suffix(String),
}

/// A test of a text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TextMatch {
    /// It is this.
    Exact(String),
    /// The whole of it matches.
    Regex(Pattern),
}

/// A test of a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PathMatch {
    /// It is this.
    Exact(String),
    /// Its first segments are these; without a slash at the end, and empty for every path.
    Prefix(String),
    /// The whole of it matches.
    Regex(Pattern),
    /// A gRPC method of this name, of whatever service.
    GrpcMethod(String),
}

/// A test of a header or a query parameter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NamedMatch {
    /// Its name; a header's in lower case.
    pub name: String,
    /// What its value must be.
    pub value: TextMatch,
}

/// What a request must be for a rule of a route: all of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RequestMatch {
    /// Its path.
    pub path: PathMatch,
    /// Its method; `None`: any.
    pub method: Option<String>,
    /// Its headers.
    pub headers: Vec<NamedMatch>,
    /// Its query parameters.
    pub query: Vec<NamedMatch>,
}

impl Default for RequestMatch {
    /// Every request.
    fn default() -> Self {
        Self { path: PathMatch::Prefix(String::new()), method: None, headers: Vec::new(), query: Vec::new() }
    }
}

/// Where a route leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendRef {
    /// Of which group and kind; a Service's are `""` and `Service`.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: ObjectName,
    /// Its port.
    pub port: Option<u16>,
    /// Its share.
    pub weight: u32,
}

/// A rule of a route.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RouteRule {
    /// Its name.
    pub name: Option<String>,
    /// Any of these; never empty.
    pub matches: Vec<RequestMatch>,
    /// Where it leads; empty: to the parent itself.
    pub backends: Vec<BackendRef>,
    /// What is done to a request once it is allowed, as written: the data plane's to read.
    pub filters: Vec<serde_json::Value>,
    /// Timeouts and retries, as written: the data plane's to read.
    pub timeouts: Option<serde_json::Value>,
    /// The same.
    pub retry: Option<serde_json::Value>,
}

/// To what a route is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parents {
    /// To these.
    These(Vec<Parent>),
    /// Unreadable: it may have meant any Server of its namespace.
    Unreadable,
}

/// A route of any kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Which.
    pub kind: Kind,
    /// Name, labels, annotations.
    pub meta: Meta,
    /// To what it is attached.
    pub parents: Parents,
    /// The hosts that it is for; empty: any.
    pub hosts: Vec<HostMatch>,
    /// Its rules. `None`: something in it cannot be read, and every request to what it is attached to is refused.
    pub rules: Option<Vec<RouteRule>>,
}

impl Route {
    /// The Servers that it is attached to, all in its own namespace. `None`: it cannot be told.
    pub fn servers(&self) -> Option<impl Iterator<Item = &str>> {
        match &self.parents {
            Parents::Unreadable => None,
            Parents::These(parents) => Some(
                parents
                    .iter()
                    .filter(|it| it.kind == ParentKind::Server && it.namespace == self.meta.namespace)
                    .map(|it| &*it.name),
            ),
        }
    }
}

/// Clients that share one budget.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RateOverride {
    /// Requests each second.
    pub per_second: u32,
    /// These service accounts.
    pub clients: Vec<ObjectName>,
}

/// What an HTTPLocalRateLimitPolicy says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct RateLimit {
    /// Requests each second of all clients together.
    pub total: Option<u32>,
    /// Of each identity; clients without one count as one.
    pub identity: Option<u32>,
    /// Instead of `identity`, for some.
    pub overrides: Vec<RateOverride>,
}

/// An HTTPLocalRateLimitPolicy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RateLimitPolicy {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// The Server of its namespace that it limits. `None`: unreadable, it may have meant any.
    pub server: Option<String>,
    /// The limits. `None`: they cannot be read, and every request to the Server is refused.
    pub limit: Option<RateLimit>,
}
