//! Heddle's own rules: one for many namespaces, for ranges of ports, for a time, and rules that deny.

use super::{
    meta::{Kind, Meta, ObjectName},
    routes::HostMatch,
    rules::{IdentityMatch, NetworkMatch},
    selector::Selector,
    workload::Transport,
};

/// What a rule does to whom it matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// Allows, as one rule among others.
    Allow,
    /// Refuses, whatever any other rule allows.
    Deny,
}

/// A port, or several, of a rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PortMatch {
    /// From the first to the last.
    Range(u16, u16),
    /// What a pod declares under this name.
    Name(String),
}

/// A rule of who: every part that is there must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peer {
    /// Any of these identities. Empty: the part is not there.
    pub identities: Vec<IdentityMatch>,
    /// A service account in a namespace with these labels; counts among `identities`.
    pub namespaces: Option<Selector>,
    /// None of these identities. Who shows no identity could be any of them.
    pub except: Vec<IdentityMatch>,
    /// At any of these addresses. Empty: the part is not there.
    pub networks: Vec<NetworkMatch>,
}

/// Where a rule about what leaves a pod leads: every part that is there must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Destination {
    /// Any of these identities. Empty: the part is not there.
    pub identities: Vec<IdentityMatch>,
    /// Any of these addresses. Empty: the part is not there.
    pub networks: Vec<NetworkMatch>,
    /// Any of these names (SNI, or a request's host). Empty: the part is not there.
    pub hosts: Vec<HostMatch>,
}

/// Which way a rule looks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Direction {
    /// At what reaches the pods, from any of these.
    Inbound(Vec<Peer>),
    /// At what leaves the pods, to any of these.
    Outbound(Vec<Destination>),
}

/// What an AccessRule or a ClusterAccessRule says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessSpec {
    /// What it does.
    pub action: Action,
    /// Whether it is only tried: nothing is refused or allowed by it, but what it would do is told.
    pub audit: bool,
    /// From when on it no longer is in force, in microseconds since 1970.
    pub expires: Option<i64>,
    /// The namespaces whose pods it is about; always the own one for an AccessRule.
    pub namespaces: Selector,
    /// The pods in them.
    pub pods: Selector,
    /// The ports; empty: every one.
    pub ports: Vec<PortMatch>,
    /// The protocol; `None`: TCP and UDP alike.
    pub transport: Option<Transport>,
    /// Who or whereto.
    pub direction: Direction,
}

impl AccessSpec {
    /// Whether it is about a protocol.
    pub fn is_about(&self, transport: Transport) -> bool {
        self.transport.is_none_or(|own| own == transport)
    }
}

/// An AccessRule or a ClusterAccessRule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessRule {
    /// Which.
    pub kind: Kind,
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says. `None`: something in it cannot be read.
    pub spec: Option<AccessSpec>,
    /// Where `spec` is not there: whether it may have meant to deny, so that all that it may be about is refused.
    pub closes: Option<Closes>,
}

/// What an unreadable rule that may have denied refuses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closes {
    /// In which namespaces; `None`: any that it can be about.
    pub namespaces: Option<Selector>,
    /// Which pods; `None`: any.
    pub pods: Option<Selector>,
}

/// Which clients a ServerAuthorization allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerClients {
    /// Everybody.
    Unauthenticated,
    /// Everybody who speaks mesh TLS, with a certificate or without.
    UnauthenticatedTls,
    /// Any of these.
    Identities(Vec<IdentityMatch>),
}

/// Which Servers a ServerAuthorization is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerRef {
    /// The one of this name.
    Name(String),
    /// Those with these labels.
    Selector(Selector),
}

/// A ServerAuthorization.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerAuthorization {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// What it says; `None`: it cannot be read and grants nothing.
    pub rule: Option<ServerAuthorizationRule>,
}

/// What a ServerAuthorization says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerAuthorizationRule {
    /// Which Servers of its namespace.
    pub servers: ServerRef,
    /// Which clients.
    pub clients: ServerClients,
    /// At which addresses; `None`: those of the cluster's networks.
    pub networks: Option<Vec<NetworkMatch>>,
}

/// Where an EgressNetwork lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EgressScope {
    /// Everything outside the cluster's networks.
    OutsideCluster,
    /// These.
    Networks(Vec<NetworkMatch>),
}

/// An EgressNetwork.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EgressNetwork {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// Where it lies.
    pub scope: EgressScope,
    /// Whether what leads there is allowed. An EgressNetwork that cannot be read allows nothing.
    pub allow: bool,
    /// Whether all of it could be read.
    pub readable: bool,
}

/// A workload outside the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExternalWorkload {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// Its identity: a DNS name or a SPIFFE id. Empty: it cannot be read.
    pub identity: String,
    /// The name that it is asked for in TLS.
    pub server_name: String,
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// Its ports.
    pub ports: Vec<super::workload::PodPort>,
    /// Whether it is ready.
    pub ready: bool,
}

/// Whom a ReferenceGrant trusts with what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReferenceGrant {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// Group, kind and namespace of those that may refer; empty: it cannot be read and grants nothing.
    pub from: Vec<(String, String, String)>,
    /// Group, kind and perhaps name of what they may refer to.
    pub to: Vec<(String, String, Option<String>)>,
}

impl ReferenceGrant {
    /// Whether it lets a resource of a group, kind and namespace refer to another (group, kind, name) of its own
    /// namespace.
    pub fn allows(&self, from: (&str, &str, &str), to: (&str, &str, &ObjectName)) -> bool {
        to.2.namespace == self.meta.namespace
            && self.from.iter().any(|(group, kind, namespace)| (&**group, &**kind, &**namespace) == from)
            && self.to.iter().any(|(group, kind, name)| {
                (&**group, &**kind) == (to.0, to.1) && name.as_ref().is_none_or(|name| *name == to.2.name)
            })
    }
}
