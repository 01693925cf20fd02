//! The rules about one namespace, as its pods' policies are worked out from them.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    authorizations::{Authorizations, References},
    base::Base,
    index::Index,
    names::IdentityNaming,
    resources::{
        AccessRule, EgressNetwork, Kind, MeshTlsAuthentication, NetworkAuthentication, ObjectName,
        RateLimitPolicy, Resource, Route, Server,
    },
    settings::ClusterSettings,
};

/// Rules as they are looked up while a namespace is worked out.
pub(crate) struct Rules<'a> {
    pub(crate) index: &'a Index,
    pub(crate) base: &'a Base,
    pub(crate) settings: &'a ClusterSettings,
    pub(crate) now: i64,
}

impl References for Rules<'_> {
    fn naming(&self) -> &IdentityNaming {
        &self.settings.naming
    }
    fn mesh_tls(&self, name: &ObjectName) -> Option<&MeshTlsAuthentication> {
        match self.index.get(Kind::MeshTlsAuthentication, name)? {
            Resource::MeshTlsAuthentication(it) => Some(it),
            _ => None,
        }
    }
    fn network(&self, name: &ObjectName) -> Option<&NetworkAuthentication> {
        match self.index.get(Kind::NetworkAuthentication, name)? {
            Resource::NetworkAuthentication(it) => Some(it),
            _ => None,
        }
    }
    fn server(&self, name: &ObjectName) -> Option<&Server> {
        match self.index.get(Kind::Server, name)? {
            Resource::Server(it) => Some(it),
            _ => None,
        }
    }
    fn route(&self, kind: Kind, name: &ObjectName) -> bool {
        self.index.get(kind, name).is_some()
    }
    fn namespaces(&self) -> Vec<(&str, &BTreeMap<String, String>)> {
        self.base.namespaces.iter().map(|(name, meta)| (&**name, &*meta.labels)).collect()
    }
}

/// The rules about one namespace, sorted by what they are.
pub(crate) struct InNamespace<'a> {
    pub(crate) servers: Vec<&'a Server>,
    pub(crate) authorizations: Authorizations,
    /// Routes by the Server that they are attached to.
    pub(crate) routes: BTreeMap<&'a str, Vec<&'a Route>>,
    /// Servers to which something unreadable is attached.
    pub(crate) closed: BTreeSet<&'a str>,
    /// Something unreadable may be attached to any of its Servers.
    pub(crate) closed_everywhere: bool,
    /// The oldest of each Server.
    pub(crate) limits: BTreeMap<&'a str, &'a RateLimitPolicy>,
    /// Heddle's own, in force.
    pub(crate) access: Vec<&'a AccessRule>,
    pub(crate) egress: Vec<&'a EgressNetwork>,
}
