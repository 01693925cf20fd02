//! Any resource.

use super::{
    access::{AccessRule, EgressNetwork, ExternalWorkload, ReferenceGrant, ServerAuthorization},
    meta::{Kind, Meta, ResourceId},
    routes::{RateLimitPolicy, Route},
    rules::{AuthorizationPolicy, MeshTlsAuthentication, NetworkAuthentication, Server},
    slices::EndpointSlice,
    workload::{Pod, Service},
};

/// A resource.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Resource {
    Namespace(Meta),
    ServiceAccount(Meta),
    Pod(Pod),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Server(Server),
    AuthorizationPolicy(AuthorizationPolicy),
    MeshTlsAuthentication(MeshTlsAuthentication),
    NetworkAuthentication(NetworkAuthentication),
    Route(Route),
    RateLimitPolicy(RateLimitPolicy),
    ServerAuthorization(ServerAuthorization),
    EgressNetwork(EgressNetwork),
    ExternalWorkload(ExternalWorkload),
    ReferenceGrant(ReferenceGrant),
    AccessRule(AccessRule),
}

impl Resource {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Server(_) => Kind::Server,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::MeshTlsAuthentication(_) => Kind::MeshTlsAuthentication,
            Self::NetworkAuthentication(_) => Kind::NetworkAuthentication,
            Self::Route(route) => route.kind,
            Self::RateLimitPolicy(_) => Kind::HttpLocalRateLimitPolicy,
            Self::ServerAuthorization(_) => Kind::ServerAuthorization,
            Self::EgressNetwork(_) => Kind::EgressNetwork,
            Self::ExternalWorkload(_) => Kind::ExternalWorkload,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::AccessRule(rule) => rule.kind,
        }
    }

    /// Its metadata.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Namespace(meta) | Self::ServiceAccount(meta) => meta,
            Self::Pod(it) => &it.meta,
            Self::Service(it) => &it.meta,
            Self::EndpointSlice(it) => &it.meta,
            Self::Server(it) => &it.meta,
            Self::AuthorizationPolicy(it) => &it.meta,
            Self::MeshTlsAuthentication(it) => &it.meta,
            Self::NetworkAuthentication(it) => &it.meta,
            Self::Route(it) => &it.meta,
            Self::RateLimitPolicy(it) => &it.meta,
            Self::ServerAuthorization(it) => &it.meta,
            Self::EgressNetwork(it) => &it.meta,
            Self::ExternalWorkload(it) => &it.meta,
            Self::ReferenceGrant(it) => &it.meta,
            Self::AccessRule(it) => &it.meta,
        }
    }

    /// What tells it from every other.
    pub fn id(&self) -> ResourceId {
        let meta = self.meta();
        ResourceId { kind: self.kind(), namespace: meta.namespace.clone(), name: meta.name.clone() }
    }
}
