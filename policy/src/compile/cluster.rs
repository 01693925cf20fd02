//! The resources, sorted by what they are for.

use std::collections::{BTreeMap, BTreeSet};

use crate::resources::{AuthorizationPolicy, Meta, ObjectName, Pod, Server, Service};

/// The resources by kind, each in the order of its name.
#[derive(Default)]
pub(super) struct Cluster<'a> {
    pub(super) namespaces: BTreeMap<&'a str, &'a Meta>,
    pub(super) pods: Vec<&'a Pod>,
    pub(super) services: Vec<&'a Service>,
    /// By namespace, each sorted by age.
    pub(super) servers: BTreeMap<&'a str, Vec<&'a Server>>,
    pub(super) policies: Vec<&'a AuthorizationPolicy>,
    /// Servers whose requests must be read.
    pub(super) need_request: BTreeSet<ObjectName>,
    /// Namespaces in which every Server's requests must be read.
    pub(super) need_request_everywhere: BTreeSet<&'a str>,
}

impl Cluster<'_> {
    pub(super) fn needs_request(&self, server: &Server) -> bool {
        self.need_request_everywhere.contains(&*server.meta.namespace)
            || self.need_request.contains(&server.meta.object_name())
    }
}
