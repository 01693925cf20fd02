//! What every resource has.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::tree::{Lines, nearest_line};
use crate::problems::{Origin, Problem, Severity};

/// What a resource is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    Namespace,
    ServiceAccount,
    Pod,
    Service,
    EndpointSlice,
    Server,
    AuthorizationPolicy,
    MeshTlsAuthentication,
    NetworkAuthentication,
    /// Linkerd's own.
    LinkerdHttpRoute,
    /// The Gateway API's.
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    HttpLocalRateLimitPolicy,
    ServerAuthorization,
    EgressNetwork,
    ExternalWorkload,
    ReferenceGrant,
    /// Heddle's own, for its namespace.
    AccessRule,
    /// Heddle's own, for the whole cluster.
    ClusterAccessRule,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 21] = [
        Self::Namespace,
        Self::ServiceAccount,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Server,
        Self::AuthorizationPolicy,
        Self::MeshTlsAuthentication,
        Self::NetworkAuthentication,
        Self::LinkerdHttpRoute,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::HttpLocalRateLimitPolicy,
        Self::ServerAuthorization,
        Self::EgressNetwork,
        Self::ExternalWorkload,
        Self::ReferenceGrant,
        Self::AccessRule,
        Self::ClusterAccessRule,
    ];

    /// Whether its resources say who may do what, and not what there is.
    pub(crate) const fn is_rule(self) -> bool {
        !matches!(
            self,
            Self::Namespace
                | Self::ServiceAccount
                | Self::Pod
                | Self::Service
                | Self::EndpointSlice
                | Self::ExternalWorkload
                | Self::ReferenceGrant
        )
    }

    /// Whether its resources belong to a namespace.
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::ClusterAccessRule)
    }

    /// As manifests spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Server => "Server",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::MeshTlsAuthentication => "MeshTLSAuthentication",
            Self::NetworkAuthentication => "NetworkAuthentication",
            Self::LinkerdHttpRoute | Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::HttpLocalRateLimitPolicy => "HTTPLocalRateLimitPolicy",
            Self::ServerAuthorization => "ServerAuthorization",
            Self::EgressNetwork => "EgressNetwork",
            Self::ExternalWorkload => "ExternalWorkload",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::AccessRule => "AccessRule",
            Self::ClusterAccessRule => "ClusterAccessRule",
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
    /// Its namespace; empty for what belongs to none.
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
    /// Its namespace; empty for what belongs to none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The API server's id of this very object; empty where a manifest has none.
    pub uid: String,
    /// Labels: whoever has the same shares them, as the pods of a workload do.
    pub labels: Arc<BTreeMap<String, String>>,
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
            .field(field, nearest_line(&self.lines, field))
    }
}
