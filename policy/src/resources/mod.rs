//! The resources that policy is made of, in typed form: checked once, here, and never again.
//!
//! A rule of which any deciding part cannot be read is kept, marked as unreadable, and grants nothing; what is wrong
//! with it is told as a [`Problem`].

mod core;
mod linkerd;
mod parse;
mod ports;
mod selector;
mod tree;

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

pub use self::{
    parse::{Parsed, parse_document, parse_file, parse_value},
    ports::{PortSet, check_port_name},
    selector::{Operator, Requirement, Selector},
    tree::Lines,
};
use crate::problems::{Origin, Problem, Severity};

/// What a resource is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    Namespace,
    ServiceAccount,
    Pod,
    Service,
    Server,
    AuthorizationPolicy,
    MeshTlsAuthentication,
    NetworkAuthentication,
    /// Linkerd's own.
    LinkerdHttpRoute,
    /// The Gateway API's.
    HttpRoute,
    GrpcRoute,
    HttpLocalRateLimitPolicy,
}

impl Kind {
    /// As manifests spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::Server => "Server",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::MeshTlsAuthentication => "MeshTLSAuthentication",
            Self::NetworkAuthentication => "NetworkAuthentication",
            Self::LinkerdHttpRoute | Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::HttpLocalRateLimitPolicy => "HTTPLocalRateLimitPolicy",
        }
    }
}

/// A namespaced name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectName {
    /// A name in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What tells a resource from every other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ResourceId {
    /// What it is.
    pub kind: Kind,
    /// Its namespace; empty for a Namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// `Kind namespace/name`.
impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.as_str())?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// What every resource has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// Its namespace; empty for a Namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The API server's id of this very object; empty where a manifest has none.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Microseconds since 1970; unknown counts as younger than any.
    pub created: Option<i64>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Where it was written.
    pub origin: Origin,
    /// The lines of its fields, for problems.
    pub lines: Arc<Lines>,
}

impl Meta {
    /// The name with its namespace.
    pub fn object_name(&self) -> ObjectName {
        ObjectName::new(&*self.namespace, &*self.name)
    }

    /// What older, then name, sorts by.
    pub(crate) fn age(&self) -> (i64, &str, &str) {
        (self.created.unwrap_or(i64::MAX), &self.namespace, &self.name)
    }

    /// A problem with a field of this resource.
    pub(crate) fn problem(
        &self,
        kind: Kind,
        severity: Severity,
        field: &str,
        reason: impl Into<String>,
    ) -> Problem {
        let id = ResourceId { kind, namespace: self.namespace.clone(), name: self.name.clone() };
        Problem::new(severity, &self.origin, reason)
            .resource(id)
            .field(field, tree::nearest_line(&self.lines, field))
    }
}

/// A transport protocol of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, which no meshed pod speaks.
    Sctp,
}

/// A port that a container declares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodPort {
    /// Its name; empty: none.
    pub name: String,
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub transport: Transport,
}

/// What a probe asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Check {
    /// GET of this path, its query cut.
    Http {
        /// The path.
        path: String,
        /// Whether over TLS.
        https: bool,
    },
    /// Whether the port is open.
    Tcp,
    /// `grpc.health.v1.Health/Check` of this service.
    Grpc {
        /// The service; empty: the server as a whole.
        service: String,
    },
}

/// A liveness, readiness or startup probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The port.
    pub port: u16,
    /// What is asked there.
    pub check: Check,
}

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// The node that it runs on; empty: none yet.
    pub node: String,
    /// Its service account.
    pub service_account: String,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// The ports that its containers declare, init containers included.
    pub ports: Vec<PodPort>,
    /// The probes of its containers.
    pub probes: Vec<Probe>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is ready: its condition says so, or there is no such condition and it is running.
    pub ready: bool,
    /// Whether it has ended (`Succeeded`, `Failed`): its addresses are no longer its own.
    pub finished: bool,
}

/// Where a Service's port leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetPort {
    /// To a number.
    Number(u16),
    /// To the port that each pod declares under a name.
    Name(String),
}

/// A Service's port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub transport: Transport,
    /// Where it leads.
    pub target: TargetPort,
}

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// Its cluster addresses; none: it is headless or a mere name.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The labels of its pods; empty: it selects none.
    pub selector: BTreeMap<String, String>,
    /// Whether pods that are not ready count as endpoints.
    pub publish_not_ready: bool,
}

/// A namespace or a service account: nothing but metadata matters.
pub type Plain = Meta;

/// `accessPolicy` and the default policies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum DefaultPolicy {
    /// Nobody.
    #[default]
    Deny,
    /// Everybody.
    AllUnauthenticated,
    /// Every mesh identity.
    AllAuthenticated,
    /// Every address of the cluster's networks.
    ClusterUnauthenticated,
    /// Every mesh identity at an address of the cluster's networks.
    ClusterAuthenticated,
    /// Everybody, and what a `deny` would have refused is told.
    Audit,
}

impl DefaultPolicy {
    /// Every value.
    pub const ALL: [Self; 6] = [
        Self::Deny,
        Self::AllUnauthenticated,
        Self::AllAuthenticated,
        Self::ClusterUnauthenticated,
        Self::ClusterAuthenticated,
        Self::Audit,
    ];

    /// As resources spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::AllAuthenticated => "all-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::Audit => "audit",
        }
    }

    /// The same with an identity demanded, where it allows without one; `audit` stays as it is.
    #[must_use]
    pub const fn authenticated(self) -> Self {
        match self {
            Self::AllUnauthenticated => Self::AllAuthenticated,
            Self::ClusterUnauthenticated => Self::ClusterAuthenticated,
            other => other,
        }
    }
}

impl std::str::FromStr for DefaultPolicy {
    type Err = NotAPolicy;

    fn from_str(text: &str) -> Result<Self, NotAPolicy> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or(NotAPolicy)
    }
}

/// The text is no default policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "is none of deny, all-unauthenticated, all-authenticated, cluster-unauthenticated, cluster-authenticated, audit"
)]
pub struct NotAPolicy;

/// What a Server says its port speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub enum ProxyProtocol {
    #[default]
    Unknown,
    Http1,
    Http2,
    Grpc,
    Opaque,
    Tls,
}

/// Which workloads a Server governs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerScope {
    /// The namespace's pods that a selector picks.
    Pods(Selector),
    /// External workloads only.
    ExternalWorkloads,
    /// Unreadable: it may have meant any pod of the namespace.
    Unreadable,
}

/// Which port a Server governs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerPort {
    /// This number, declared or not.
    Number(u16),
    /// The TCP ports that a pod declares under this name.
    Name(String),
    /// Unreadable: it may have meant any port.
    Unreadable,
}

/// A Server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// Which workloads it governs.
    pub scope: ServerScope,
    /// Which port it governs.
    pub port: ServerPort,
    /// What the port speaks.
    pub protocol: ProxyProtocol,
    /// One more authorization.
    pub access: DefaultPolicy,
    /// Whether all of it could be read. If not, it governs what it may have meant and allows nobody.
    pub readable: bool,
}

/// What an AuthorizationPolicy is attached to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// The Server of this name in its namespace.
    Server(String),
    /// Every Server in its namespace.
    Namespace,
    /// A route, whose requests are not read here.
    Route,
}

/// An identity that an AuthorizationPolicy demands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IdentityRef {
    /// What a MeshTLSAuthentication matches.
    MeshTls(ObjectName),
    /// One service account.
    ServiceAccount(ObjectName),
}

/// What an AuthorizationPolicy says. Both parts must hold; where neither is there, everybody is allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authorization {
    /// What it is attached to.
    pub target: Target,
    /// The identity that it demands.
    pub identity: Option<IdentityRef>,
    /// The NetworkAuthentication that it demands.
    pub network: Option<ObjectName>,
}

/// An AuthorizationPolicy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuthorizationPolicy {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// `None`: it could not be read and grants nothing.
    pub rule: Option<Authorization>,
}

/// One entry of a MeshTLSAuthentication.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IdentityMatch {
    /// `*`: every mesh identity.
    Any,
    /// `*.rest`: every DNS form that ends in this, which begins with a dot.
    Suffix(String),
    /// This DNS form.
    Dns(String),
    /// This SPIFFE form.
    Spiffe(String),
    /// This service account.
    ServiceAccount(ObjectName),
    /// Every service account of this namespace.
    Namespace(String),
}

/// A MeshTLSAuthentication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MeshTlsAuthentication {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// The entries, any of which is enough. `None`: it could not be read and matches nobody.
    pub clients: Option<Vec<IdentityMatch>>,
}

/// One entry of a NetworkAuthentication.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NetworkMatch {
    /// The network.
    pub cidr: IpNet,
    /// Networks in it that do not count.
    pub except: Vec<IpNet>,
}

impl NetworkMatch {
    /// Whether an address lies inside `cidr` and outside every `except`.
    pub fn contains(&self, address: &IpAddr) -> bool {
        self.cidr.contains(address) && !self.except.iter().any(|cut| cut.contains(address))
    }
}

/// A NetworkAuthentication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkAuthentication {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// The entries, any of which is enough. `None`: it could not be read and matches nobody.
    pub networks: Option<Vec<NetworkMatch>>,
}

/// Which Servers something that needs requests to be read is attached to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attached {
    /// These, in its own namespace.
    Servers(Vec<String>),
    /// Unreadable: it may have meant any Server of the namespace.
    Unreadable,
}

/// A route or a rate limit: of it only matters to which Servers it is attached, since their requests must be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// What it is.
    pub kind: Kind,
    /// Name, labels, annotations.
    pub meta: Meta,
    /// To which Servers.
    pub servers: Attached,
}

/// A resource.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Resource {
    Namespace(Plain),
    ServiceAccount(Plain),
    Pod(Pod),
    Service(Service),
    Server(Server),
    AuthorizationPolicy(AuthorizationPolicy),
    MeshTlsAuthentication(MeshTlsAuthentication),
    NetworkAuthentication(NetworkAuthentication),
    Attachment(Attachment),
}

impl Resource {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::Server(_) => Kind::Server,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::MeshTlsAuthentication(_) => Kind::MeshTlsAuthentication,
            Self::NetworkAuthentication(_) => Kind::NetworkAuthentication,
            Self::Attachment(attachment) => attachment.kind,
        }
    }

    /// Its metadata.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Namespace(meta) | Self::ServiceAccount(meta) => meta,
            Self::Pod(it) => &it.meta,
            Self::Service(it) => &it.meta,
            Self::Server(it) => &it.meta,
            Self::AuthorizationPolicy(it) => &it.meta,
            Self::MeshTlsAuthentication(it) => &it.meta,
            Self::NetworkAuthentication(it) => &it.meta,
            Self::Attachment(it) => &it.meta,
        }
    }

    /// What tells it from every other.
    pub fn id(&self) -> ResourceId {
        let meta = self.meta();
        ResourceId { kind: self.kind(), namespace: meta.namespace.clone(), name: meta.name.clone() }
    }
}

#[cfg(test)]
mod tests;
