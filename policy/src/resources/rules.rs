//! The rules, as they were written.

use ipnet::IpNet;
use std::net::IpAddr;

use super::{
    meta::{Kind, Meta, ObjectName},
    selector::Selector,
};

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

impl ProxyProtocol {
    /// As resources spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Http1 => "HTTP/1",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
            Self::Opaque => "opaque",
            Self::Tls => "TLS",
        }
    }
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
    /// A route in its namespace.
    Route {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
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
