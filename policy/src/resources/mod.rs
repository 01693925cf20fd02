//! The resources that policy is made of, in typed form: checked once, here, and never again.
//!
//! A rule of which any deciding part cannot be read is kept, marked as unreadable, and grants nothing; what is wrong
//! with it is told as a [`crate::Problem`].

mod access;
mod checks;
mod core;
mod gateway;
mod heddle;
mod limits;
mod linkerd;
mod meta;
mod outside;
mod parse;
mod pattern;
mod ports;
mod raw;
mod resource;
mod routes;
mod rules;
mod selector;
mod slices;
mod tree;
mod typed;
mod workload;

pub use self::{
    access::{
        AccessRule, AccessSpec, Action, Closes, Destination, Direction, EgressNetwork, EgressScope,
        ExternalWorkload, Peer, PortMatch, ReferenceGrant, ServerAuthorization, ServerAuthorizationRule,
        ServerClients, ServerRef,
    },
    heddle::namespace_matches,
    meta::{Kind, Meta, ObjectName, ResourceId},
    parse::{Parsed, parse_file, parse_value},
    pattern::Pattern,
    ports::{PortSet, check_port_name},
    raw::{Document, read_documents},
    resource::Resource,
    routes::{
        BackendRef, HostMatch, NamedMatch, Parent, ParentKind, Parents, PathMatch, RateLimit,
        RateLimitPolicy, RateOverride, RequestMatch, Route, RouteRule, TextMatch,
    },
    rules::{
        Authorization, AuthorizationPolicy, DefaultPolicy, IdentityMatch, IdentityRef, MeshTlsAuthentication,
        NetworkAuthentication, NetworkMatch, NotAPolicy, ProxyProtocol, Server, ServerPort, ServerScope,
        Target,
    },
    selector::{Operator, Requirement, Selector},
    slices::{EndpointSlice, EndpointState, PodReference, SERVICE_NAME, SliceEndpoint, SlicePort},
    tree::Lines,
    workload::{
        ADMIN_PORT, ADMIN_PORT_NAME, Check, Passage, Pod, PodPort, Probe, Service, ServicePort, TargetPort,
        Transport,
    },
};

#[cfg(test)]
mod tests;
