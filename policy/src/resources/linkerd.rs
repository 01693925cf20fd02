//! Linkerd's kinds. Whatever in a `spec` cannot be read, or is not known here, may have narrowed the rule: the rule
//! then grants nothing, and a problem says so.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    meta::{Kind, Meta, ObjectName},
    ports::check_port_name,
    rules::{
        Attached, Attachment, Authorization, AuthorizationPolicy, DefaultPolicy, IdentityMatch, IdentityRef,
        MeshTlsAuthentication, NetworkAuthentication, NetworkMatch, NotAPolicy, ProxyProtocol, Server,
        ServerPort, ServerScope, Target,
    },
    selector::{Operator, Requirement, Selector},
    typed::{Unreadable, typed},
};
use crate::{
    names::check_dns_name,
    problems::{Problem, Severity},
};

pub(super) const GROUP: &str = "policy.linkerd.io";
pub(super) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Collects what is wrong with one resource's spec.
struct Checks<'a> {
    kind: Kind,
    meta: &'a Meta,
    consequence: &'static str,
    problems: &'a mut Vec<Problem>,
    sound: bool,
}

impl<'a> Checks<'a> {
    fn new(kind: Kind, meta: &'a Meta, consequence: &'static str, problems: &'a mut Vec<Problem>) -> Self {
        Self { kind, meta, consequence, problems, sound: true }
    }

    fn fail(&mut self, field: &str, reason: impl std::fmt::Display, remedy: &str) {
        self.sound = false;
        let reason = format!("{reason}: {}", self.consequence);
        self.problems.push(self.meta.problem(self.kind, Severity::Error, field, reason).remedy(remedy));
    }

    /// Reads a spec. Fields that are not known fail the checks, but what is known is returned.
    fn read<T: DeserializeOwned>(&mut self, field: &str, value: Option<&Value>) -> Option<T> {
        let Some(value) = value else {
            self.fail(field, "is missing", "write it");
            return None;
        };
        match typed::<T>(value, field) {
            Ok((spec, unknown)) => {
                for path in unknown {
                    self.fail(&path, "is not a known field", "remove it or correct its name");
                }
                Some(spec)
            }
            Err(Unreadable { path, reason }) => {
                self.fail(&path, reason, "correct it");
                None
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSelector {
    match_labels: Option<std::collections::BTreeMap<String, String>>,
    match_expressions: Option<Vec<RawRequirement>>,
}

#[derive(Deserialize)]
struct RawRequirement {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

fn selector(checks: &mut Checks<'_>, field: &str, raw: RawSelector) -> Option<Selector> {
    let mut it = Selector { labels: raw.match_labels.unwrap_or_default(), ..Selector::default() };
    for (i, raw) in raw.match_expressions.unwrap_or_default().into_iter().enumerate() {
        let values = raw.values.unwrap_or_default();
        let (operator, valued) = match raw.operator.as_str() {
            "In" => (Operator::In, true),
            "NotIn" => (Operator::NotIn, true),
            "Exists" => (Operator::Exists, false),
            "DoesNotExist" => (Operator::DoesNotExist, false),
            _ => {
                let field = format!("{field}.matchExpressions[{i}].operator");
                checks.fail(&field, "is not an operator", "write In, NotIn, Exists or DoesNotExist");
                return None;
            }
        };
        if valued == values.is_empty() {
            let field = format!("{field}.matchExpressions[{i}].values");
            checks.fail(
                &field,
                "does not go with the operator",
                "In and NotIn need values, Exists and DoesNotExist none",
            );
            return None;
        }
        it.expressions.push(Requirement { key: raw.key, operator, values });
    }
    Some(it)
}

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
struct RawRef {
    group: Option<String>,
    kind: String,
    name: String,
    namespace: Option<String>,
}

impl RawRef {
    /// Kinds and groups compare without case, as in Linkerd; the core group is written `""`, `core` or left out.
    fn is(&self, group: &str, kind: &str) -> bool {
        let own = self.group.as_deref().unwrap_or_default();
        let own = if own.eq_ignore_ascii_case("core") { "" } else { own };
        own.eq_ignore_ascii_case(group) && self.kind.eq_ignore_ascii_case(kind)
    }

    fn object_name(&self, meta: &Meta) -> ObjectName {
        ObjectName::new(self.namespace.as_deref().unwrap_or(&meta.namespace), &*self.name)
    }

    fn leaves(&self, meta: &Meta) -> bool {
        self.namespace.as_deref().is_some_and(|namespace| namespace != meta.namespace)
    }
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
    } else if [(GROUP, "HTTPRoute"), (GATEWAY_GROUP, "HTTPRoute"), (GATEWAY_GROUP, "GRPCRoute")]
        .iter()
        .any(|(group, kind)| target.is(group, kind))
    {
        Target::Route
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

fn identity_match(text: &str) -> Result<IdentityMatch, String> {
    if text == "*" {
        return Ok(IdentityMatch::Any);
    }
    if let Some(rest) = text.strip_prefix("*.") {
        check_dns_name(rest).map_err(|error| error.to_string())?;
        return Ok(IdentityMatch::Suffix(format!(".{rest}")));
    }
    if let Some(rest) = text.strip_prefix("spiffe://") {
        let mut segments = rest.split('/');
        let domain = segments.next().unwrap_or_default();
        let domain_fits = !domain.is_empty()
            && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b));
        let segment_fits = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        if !domain_fits || !segments.all(segment_fits) || !rest.contains('/') {
            return Err("is not a SPIFFE id".to_owned());
        }
        return Ok(IdentityMatch::Spiffe(text.to_owned()));
    }
    check_dns_name(text).map_err(|error| error.to_string())?;
    Ok(IdentityMatch::Dns(text.to_owned()))
}

#[derive(Deserialize)]
struct RawNetworkAuthentication {
    networks: Vec<RawNetwork>,
}

#[derive(Deserialize)]
struct RawNetwork {
    cidr: String,
    except: Option<Vec<String>>,
}

pub(super) fn network(
    meta: Meta,
    spec: Option<&Value>,
    problems: &mut Vec<Problem>,
) -> NetworkAuthentication {
    let mut checks =
        Checks::new(Kind::NetworkAuthentication, &meta, "the authentication matches nobody", problems);
    let networks = networks(&mut checks, spec).filter(|_| checks.sound);
    NetworkAuthentication { meta, networks }
}

fn networks(checks: &mut Checks<'_>, spec: Option<&Value>) -> Option<Vec<NetworkMatch>> {
    const REMEDY: &str = "write an address or a network such as 10.0.0.0/8 or fd00::/8";
    let raw = checks.read::<RawNetworkAuthentication>("spec", spec)?;
    if raw.networks.is_empty() {
        checks.fail("spec.networks", "is empty", "write a network at least");
    }
    let mut networks = Vec::new();
    for (i, raw) in raw.networks.into_iter().enumerate() {
        let field = format!("spec.networks[{i}]");
        let Some(cidr) = cidr(&raw.cidr) else {
            checks.fail(&format!("{field}.cidr"), format!("{:?} is not a network", raw.cidr), REMEDY);
            continue;
        };
        let mut it = NetworkMatch { cidr, except: Vec::new() };
        for (j, text) in raw.except.unwrap_or_default().iter().enumerate() {
            let field = format!("{field}.except[{j}]");
            match self::cidr(text) {
                None => checks.fail(&field, format!("{text:?} is not a network"), REMEDY),
                Some(cut) if cut.contains(&cidr) => {
                    checks.fail(&field, format!("{cut} covers its network {cidr}"), "write a part of it");
                }
                Some(cut) if !cidr.contains(&cut) => {
                    checks.fail(
                        &field,
                        format!("{cut} lies outside its network {cidr}"),
                        "write a part of it",
                    );
                }
                Some(cut) => it.except.push(cut),
            }
        }
        networks.push(it);
    }
    Some(networks)
}

/// Reads a network or a single address. IPv4 in its IPv6 form is refused: it would mean another network to each
/// reader.
pub(crate) fn cidr(text: &str) -> Option<IpNet> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => net.trunc(),
        Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?),
    };
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.network().to_ipv4_mapped().is_some() => None,
        net => Some(net),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawAttachment {
    parent_refs: Option<Vec<RawParent>>,
    target_ref: Option<RawParent>,
}

#[derive(Deserialize)]
struct RawParent {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    namespace: Option<String>,
}

/// Reads to which Servers a route or a rate limit is attached; the rest of it needs requests to be read.
pub(super) fn attachment(
    kind: Kind,
    meta: Meta,
    spec: Option<&Value>,
    problems: &mut Vec<Problem>,
) -> Attachment {
    let read = spec.map_or(Ok(None), |spec| typed::<RawAttachment>(spec, "spec").map(|(raw, _)| Some(raw)));
    let raw = match read {
        Ok(raw) => raw,
        Err(Unreadable { path, reason }) => {
            let reason = format!("{reason}: every Server of the namespace that it may have meant is closed");
            problems.push(meta.problem(kind, Severity::Error, &path, reason).remedy("correct it"));
            return Attachment { kind, meta, servers: Attached::Unreadable };
        }
    };
    let parents = raw.map(|raw| raw.parent_refs.into_iter().flatten().chain(raw.target_ref));
    let servers = parents
        .into_iter()
        .flatten()
        .filter(|parent| {
            let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
            let kind = parent.kind.as_deref().unwrap_or("Gateway");
            group.eq_ignore_ascii_case(GROUP)
                && kind.eq_ignore_ascii_case("Server")
                && parent.namespace.as_deref().is_none_or(|namespace| namespace == meta.namespace)
        })
        .map(|parent| parent.name)
        .collect();
    Attachment { kind, meta, servers: Attached::Servers(servers) }
}
