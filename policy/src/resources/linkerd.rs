//! Linkerd's kinds. Whatever in a `spec` cannot be read, or is not known here, may have narrowed the rule: the rule
//! then grants nothing, and a problem says so.

use serde::Deserialize;
use serde_json::Value;

use super::{
    checks::{Checks, RawNetwork, RawRef, RawSelector, identity_match, networks, selector},
    meta::{Kind, Meta},
    ports::check_port_name,
    rules::{
        Authorization, AuthorizationPolicy, DefaultPolicy, IdentityMatch, IdentityRef, MeshTlsAuthentication,
        NetworkAuthentication, NotAPolicy, ProxyProtocol, Server, ServerPort, ServerScope, Target,
    },
};
use crate::problems::Problem;

pub(super) const GROUP: &str = "policy.linkerd.io";
pub(super) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Each part as it was written, so that one that cannot be read does not hide the others.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawServer {
    pod_selector: Option<Value>,
    external_workload_selector: Option<Value>,
    port: Option<Value>,
    proxy_protocol: Option<Value>,
    access_policy: Option<Value>,
}

pub(super) fn server(version: &str, meta: Meta, spec: Option<&Value>, problems: &mut Vec<Problem>) -> Server {
    let mut it = Server {
        meta: meta.clone(),
        scope: ServerScope::Unreadable,
        port: ServerPort::Unreadable,
        protocol: ProxyProtocol::Unknown,
        access: DefaultPolicy::Deny,
        readable: false,
    };
    let mut checks =
        Checks::new(Kind::Server, &meta, "the Server closes every port that it may have meant", problems);
    let Some(raw) = checks.read::<RawServer>("spec", spec) else { return it };
    match (&raw.pod_selector, &raw.external_workload_selector) {
        (Some(value), None) => {
            let field = "spec.podSelector";
            if let Some(raw) = checks.read::<RawSelector>(field, Some(value))
                && let Some(selector) = selector(&mut checks, field, raw)
            {
                it.scope = ServerScope::Pods(selector);
            }
        }
        (None, Some(_)) if version == "v1beta1" => {
            checks.fail("spec.externalWorkloadSelector", "is not known in v1beta1", "use v1beta3");
        }
        (None, Some(_)) => it.scope = ServerScope::ExternalWorkloads,
        _ => {
            checks.fail("spec", "needs exactly one of podSelector and externalWorkloadSelector", "write one")
        }
    }
    let number = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|port| *port != 0);
    match &raw.port {
        Some(Value::String(name)) if check_port_name(name) => it.port = ServerPort::Name(name.clone()),
        Some(value) if number(value).is_some() => {
            it.port = number(value).map_or(ServerPort::Unreadable, ServerPort::Number);
        }
        Some(_) => checks.fail(
            "spec.port",
            "is neither a port nor a port's name",
            "write a number from 1 to 65535 (without quotes) or a port's name",
        ),
        None => checks.fail("spec.port", "is missing", "write a number or a port's name"),
    }
    match raw.proxy_protocol.as_ref().map(Value::as_str) {
        None | Some(Some("unknown")) => {}
        Some(Some("HTTP/1")) => it.protocol = ProxyProtocol::Http1,
        Some(Some("HTTP/2")) => it.protocol = ProxyProtocol::Http2,
        Some(Some("gRPC")) => it.protocol = ProxyProtocol::Grpc,
        Some(Some("opaque")) => it.protocol = ProxyProtocol::Opaque,
        Some(Some("TLS")) => it.protocol = ProxyProtocol::Tls,
        Some(_) => checks.fail(
            "spec.proxyProtocol",
            "is not a protocol",
            "write unknown, HTTP/1, HTTP/2, gRPC, opaque or TLS",
        ),
    }
    match raw.access_policy.as_ref().map(|value| value.as_str().map(str::parse)) {
        None => {}
        Some(Some(Ok(access))) if version == "v1beta3" => it.access = access,
        Some(Some(Ok(_))) => {
            checks.fail("spec.accessPolicy", format!("is not known in {version}"), "use v1beta3");
        }
        Some(_) => checks.fail("spec.accessPolicy", NotAPolicy, "write one of them"),
    }
    it.readable = checks.sound;
    it
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawAuthorizationPolicy {
    target_ref: RawRef,
    // Never optional: a list that was forgotten must not allow everybody, as one that is written out empty does.
    required_authentication_refs: Vec<RawRef>,
}

pub(super) fn authorization_policy(
    meta: Meta,
    spec: Option<&Value>,
    problems: &mut Vec<Problem>,
) -> AuthorizationPolicy {
    let mut checks = Checks::new(Kind::AuthorizationPolicy, &meta, "the policy grants nothing", problems);
    let rule = authorization(&mut checks, spec).filter(|_| checks.sound);
    AuthorizationPolicy { meta, rule }
}

fn authorization(checks: &mut Checks<'_>, spec: Option<&Value>) -> Option<Authorization> {
    let raw = checks.read::<RawAuthorizationPolicy>("spec", spec)?;
    let meta = checks.meta;
    let target = &raw.target_ref;
    let own_name = target.is("", "Namespace") && target.name == meta.namespace;
    let target = if target.leaves(meta) || target.is("", "Namespace") && !own_name {
        checks.fail(
            "spec.targetRef",
            "names another namespace",
            "target a resource of the policy's own namespace",
        );
        return None;
    } else if target.is(GROUP, "Server") {
        Target::Server(target.name.clone())
    } else if own_name {
        Target::Namespace
    } else if let Some(kind) = route_kind(target) {
        Target::Route { kind, name: target.name.clone() }
    } else {
        checks.fail(
            "spec.targetRef",
            format!("is a {} that no policy can be attached to", target.kind),
            "target a Server, the Namespace, an HTTPRoute or a GRPCRoute, each with its group",
        );
        return None;
    };
    let mut it = Authorization { target, identity: None, network: None };
    for (i, reference) in raw.required_authentication_refs.iter().enumerate() {
        let field = format!("spec.requiredAuthenticationRefs[{i}]");
        let name = reference.object_name(meta);
        let second = if reference.is(GROUP, "NetworkAuthentication") {
            it.network.replace(name).is_some()
        } else if reference.is(GROUP, "MeshTLSAuthentication") {
            it.identity.replace(IdentityRef::MeshTls(name)).is_some()
        } else if reference.is("", "ServiceAccount") {
            it.identity.replace(IdentityRef::ServiceAccount(name)).is_some()
        } else {
            checks.fail(
                &field,
                format!("is a {} that authenticates nobody", reference.kind),
                "refer to a MeshTLSAuthentication, a NetworkAuthentication or a ServiceAccount, each with its group",
            );
            continue;
        };
        if second {
            checks.fail(
                &field,
                "is a second reference of its sort",
                "at most one identity (MeshTLSAuthentication or ServiceAccount) and one NetworkAuthentication",
            );
        }
    }
    Some(it)
}

fn route_kind(target: &RawRef) -> Option<Kind> {
    [
        (GROUP, "HTTPRoute", Kind::LinkerdHttpRoute),
        (GATEWAY_GROUP, "HTTPRoute", Kind::HttpRoute),
        (GATEWAY_GROUP, "GRPCRoute", Kind::GrpcRoute),
    ]
    .into_iter()
    .find_map(|(group, name, kind)| target.is(group, name).then_some(kind))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMeshTls {
    identities: Option<Vec<String>>,
    identity_refs: Option<Vec<RawRef>>,
}

pub(super) fn mesh_tls(
    meta: Meta,
    spec: Option<&Value>,
    problems: &mut Vec<Problem>,
) -> MeshTlsAuthentication {
    let mut checks =
        Checks::new(Kind::MeshTlsAuthentication, &meta, "the authentication matches nobody", problems);
    let clients = mesh_clients(&mut checks, spec).filter(|_| checks.sound);
    MeshTlsAuthentication { meta, clients }
}

fn mesh_clients(checks: &mut Checks<'_>, spec: Option<&Value>) -> Option<Vec<IdentityMatch>> {
    let raw = checks.read::<RawMeshTls>("spec", spec)?;
    let mut clients = Vec::new();
    match (raw.identities, raw.identity_refs) {
        (Some(identities), None) if !identities.is_empty() => {
            for (i, text) in identities.iter().enumerate() {
                match identity_match(text) {
                    Ok(it) => clients.push(it),
                    Err(reason) => checks.fail(
                        &format!("spec.identities[{i}]"),
                        format!("{text:?} {reason}"),
                        "write *, *.rest, a DNS name in lower case or a spiffe:// URI",
                    ),
                }
            }
        }
        (None, Some(references)) if !references.is_empty() => {
            for (i, reference) in references.into_iter().enumerate() {
                if reference.is("", "ServiceAccount") {
                    clients.push(IdentityMatch::ServiceAccount(reference.object_name(checks.meta)));
                } else if reference.is("", "Namespace") && reference.namespace.is_none() {
                    clients.push(IdentityMatch::Namespace(reference.name));
                } else {
                    checks.fail(
                        &format!("spec.identityRefs[{i}]"),
                        format!("is a {} that has no identity", reference.kind),
                        "refer to a ServiceAccount or a Namespace",
                    );
                }
            }
        }
        (Some(_), Some(_)) => {
            checks.fail("spec", "has both identities and identityRefs", "write one of them");
        }
        _ => checks.fail(
            "spec",
            "names no identity",
            "write identities or identityRefs, with an entry at least",
        ),
    }
    Some(clients)
}

#[derive(Deserialize)]
struct RawNetworkAuthentication {
    networks: Vec<RawNetwork>,
}

pub(super) fn network(
    meta: Meta,
    spec: Option<&Value>,
    problems: &mut Vec<Problem>,
) -> NetworkAuthentication {
    let mut checks =
        Checks::new(Kind::NetworkAuthentication, &meta, "the authentication matches nobody", problems);
    let raw = checks.read::<RawNetworkAuthentication>("spec", spec);
    let networks = raw.map(|raw| networks(&mut checks, "spec.networks", raw.networks));
    let networks = networks.filter(|_| checks.sound);
    NetworkAuthentication { meta, networks }
}
