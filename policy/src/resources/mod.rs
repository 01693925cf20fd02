//! The resources that policy is made of, in typed form: checked once, here, and never again.
//!
//! A rule of which any deciding part cannot be read is kept, marked as unreadable, and grants nothing; what is wrong
//! with it is told as a [`crate::Problem`].

mod core;
mod linkerd;
mod meta;
mod parse;
mod ports;
mod resource;
mod rules;
mod selector;
mod tree;
mod typed;
mod workload;

pub use self::{
    meta::{Kind, Meta, ObjectName, ResourceId},
    parse::{Parsed, parse_document, parse_file, parse_value},
    ports::{PortSet, check_port_name},
    resource::Resource,
    rules::{
        Attached, Attachment, Authorization, AuthorizationPolicy, DefaultPolicy, IdentityMatch, IdentityRef,
        MeshTlsAuthentication, NetworkAuthentication, NetworkMatch, NotAPolicy, ProxyProtocol, Server,
        ServerPort, ServerScope, Target,
    },
    selector::{Operator, Requirement, Selector},
    tree::Lines,
    workload::{Check, Pod, PodPort, Probe, Service, ServicePort, TargetPort, Transport},
};

#[cfg(test)]
mod tests;
