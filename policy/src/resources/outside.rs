//! What lies outside the cluster, and the older form of Linkerd's authorizations.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::{
    access::{
        EgressNetwork, EgressScope, ExternalWorkload, ServerAuthorization, ServerAuthorizationRule,
        ServerClients, ServerRef,
    },
    checks::{Checks, RawNetwork, RawSelector, identity_match, networks, selector},
    core::usable,
    meta::{Kind, Meta, ObjectName},
    ports::check_port_name,
    rules::IdentityMatch,
    workload::{PodPort, Transport},
};
use crate::{names::check_dns_name, problems::Problem};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawServerAuthorization {
    server: RawServerRef,
    client: RawClient,
}

#[derive(Deserialize)]
struct RawServerRef {
    name: Option<String>,
    selector: Option<RawSelector>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawClient {
    networks: Option<Vec<RawNetwork>>,
    unauthenticated: Option<bool>,
    #[serde(rename = "meshTLS")]
    mesh_tls: Option<RawMeshClient>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMeshClient {
    #[serde(rename = "unauthenticatedTLS")]
    unauthenticated_tls: Option<bool>,
    identities: Option<Vec<String>>,
    service_accounts: Option<Vec<RawAccount>>,
}

#[derive(Deserialize)]
pub(super) struct RawAccount {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
}

pub(super) fn server_authorization(
    meta: Meta,
    spec: Option<&Value>,
    problems: &mut Vec<Problem>,
) -> ServerAuthorization {
    let mut checks = Checks::new(Kind::ServerAuthorization, &meta, "it grants nothing", problems);
    let rule = authorization(&mut checks, spec).filter(|_| checks.sound);
    ServerAuthorization { meta, rule }
}

fn authorization(checks: &mut Checks<'_>, spec: Option<&Value>) -> Option<ServerAuthorizationRule> {
    let raw = checks.read::<RawServerAuthorization>("spec", spec)?;
    let servers = match (raw.server.name, raw.server.selector) {
        (Some(name), None) => ServerRef::Name(name),
        (None, Some(raw)) => ServerRef::Selector(selector(checks, "spec.server.selector", raw)?),
        _ => {
            checks.fail("spec.server", "needs exactly one of name and selector", "write one");
            return None;
        }
    };
    let networks = match raw.client.networks {
        // An empty list means the same as none: the cluster's networks.
        None => None,
        Some(raw) if raw.is_empty() => None,
        Some(raw) => Some(networks(checks, "spec.client.networks", raw)),
    };
    let unauthenticated = raw.client.unauthenticated == Some(true);
    let clients = match (unauthenticated, raw.client.mesh_tls) {
        (true, None) => ServerClients::Unauthenticated,
        (false, Some(mesh)) => mesh_clients(checks, mesh)?,
        (true, Some(_)) => {
            checks.fail("spec.client", "has both unauthenticated and meshTLS", "write one of them");
            return None;
        }
        (false, None) => {
            checks.fail("spec.client", "names nobody", "write unauthenticated: true or meshTLS");
            return None;
        }
    };
    Some(ServerAuthorizationRule { servers, clients, networks })
}

fn mesh_clients(checks: &mut Checks<'_>, raw: RawMeshClient) -> Option<ServerClients> {
    const FIELD: &str = "spec.client.meshTLS";
    let (identities, accounts) =
        (raw.identities.unwrap_or_default(), raw.service_accounts.unwrap_or_default());
    let listed = !identities.is_empty() || !accounts.is_empty();
    match (raw.unauthenticated_tls == Some(true), listed) {
        (true, false) => return Some(ServerClients::UnauthenticatedTls),
        (false, true) => {}
        (true, true) => {
            checks.fail(FIELD, "has both unauthenticatedTLS and identities", "write one of them");
            return None;
        }
        (false, false) => {
            checks.fail(FIELD, "names nobody", "write identities or serviceAccounts, with an entry at least");
            return None;
        }
    }
    let mut clients = identity_matches(checks, &format!("{FIELD}.identities"), &identities);
    clients.extend(accounts.into_iter().map(|it| account(checks.meta, it)));
    Some(ServerClients::Identities(clients))
}

pub(super) fn account(meta: &Meta, raw: RawAccount) -> IdentityMatch {
    let namespace = raw.namespace.unwrap_or_else(|| meta.namespace.clone());
    IdentityMatch::ServiceAccount(ObjectName::new(namespace, raw.name))
}

/// Reads a list of identities at `field`.
pub(super) fn identity_matches(checks: &mut Checks<'_>, field: &str, texts: &[String]) -> Vec<IdentityMatch> {
    let mut found = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        match identity_match(text) {
            Ok(it) => found.push(it),
            Err(reason) => checks.fail(
                &format!("{field}[{i}]"),
                format!("{text:?} {reason}"),
                "write *, *.rest, a DNS name in lower case or a spiffe:// URI",
            ),
        }
    }
    found
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEgressNetwork {
    networks: Option<Vec<RawNetwork>>,
    traffic_policy: String,
}

pub(super) fn egress_network(meta: Meta, spec: Option<&Value>, problems: &mut Vec<Problem>) -> EgressNetwork {
    let mut checks =
        Checks::new(Kind::EgressNetwork, &meta, "nothing may leave where it may have meant", problems);
    let mut it = EgressNetwork {
        meta: meta.clone(),
        scope: EgressScope::OutsideCluster,
        allow: false,
        readable: false,
    };
    if let Some(raw) = checks.read::<RawEgressNetwork>("spec", spec) {
        if let Some(raw) = raw.networks {
            it.scope = EgressScope::Networks(networks(&mut checks, "spec.networks", raw));
        }
        it.allow = match &*raw.traffic_policy {
            "Allow" => true,
            "Deny" => false,
            _ => {
                checks.fail("spec.trafficPolicy", "is not a policy", "write Allow or Deny");
                false
            }
        };
    }
    it.readable = checks.sound;
    it.allow &= checks.sound;
    it
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawExternalWorkload {
    // `meshTls` in v1alpha1.
    #[serde(rename = "meshTLS", alias = "meshTls")]
    mesh_tls: RawMeshTls,
    // Read by itself.
    #[serde(rename = "workloadIPs")]
    _workload_ips: Option<Value>,
    ports: Option<Vec<RawPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMeshTls {
    identity: String,
    server_name: String,
}

#[derive(Deserialize)]
struct RawPort {
    name: Option<String>,
    port: u16,
    protocol: Option<String>,
}

pub(super) fn external_workload(
    meta: Meta,
    spec: Option<&Value>,
    status: Option<&Value>,
    problems: &mut Vec<Problem>,
) -> ExternalWorkload {
    let mut checks = Checks::new(
        Kind::ExternalWorkload,
        &meta,
        "the workload has no identity, and its addresses are refused",
        problems,
    );
    let mut it = ExternalWorkload {
        meta: meta.clone(),
        identity: String::new(),
        server_name: String::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
        ready: ready(status),
    };
    // Whatever else cannot be read: they are refused then, and not spoken to as nobody's.
    it.addresses = workload_ips(&mut checks, spec);
    let Some(raw) = checks.read::<RawExternalWorkload>("spec", spec) else { return it };
    for (i, raw) in raw.ports.unwrap_or_default().into_iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        let transport = match raw.protocol.as_deref() {
            None | Some("TCP") => Transport::Tcp,
            Some("UDP") => Transport::Udp,
            Some(_) => {
                checks.fail(&format!("{field}.protocol"), "is not a protocol", "write TCP or UDP");
                continue;
            }
        };
        let name = raw.name.unwrap_or_default();
        if raw.port == 0 || !name.is_empty() && !check_port_name(&name) {
            checks.fail(&field, "is not a port", "write a number from 1 to 65535 and perhaps a name");
            continue;
        }
        it.ports.push(PodPort { name, number: raw.port, transport });
    }
    if !matches!(identity_match(&raw.mesh_tls.identity), Ok(IdentityMatch::Dns(_) | IdentityMatch::Spiffe(_)))
    {
        checks.fail("spec.meshTLS.identity", "is not an identity", "write a DNS name or a spiffe:// URI");
    }
    if let Err(error) = check_dns_name(&raw.mesh_tls.server_name) {
        checks.fail("spec.meshTLS.serverName", error, "write a DNS name");
    }
    if checks.sound {
        it.identity = raw.mesh_tls.identity;
        it.server_name = raw.mesh_tls.server_name;
    }
    it
}

/// The addresses that a workload has, and of those that it cannot have what they may have meant.
fn workload_ips(checks: &mut Checks<'_>, spec: Option<&Value>) -> Vec<IpAddr> {
    const FIELD: &str = "spec.workloadIPs";
    let listed = match spec.and_then(|spec| spec.get("workloadIPs")) {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(listed)) => listed,
        Some(_) => {
            checks.fail(FIELD, "is not a list", "write a list of addresses, each as ip: ADDRESS");
            return Vec::new();
        }
    };
    let mut addresses = Vec::new();
    for (i, entry) in listed.iter().enumerate() {
        let field = format!("{FIELD}[{i}]");
        for other in
            entry.as_object().into_iter().flatten().map(|(name, _)| name).filter(|name| *name != "ip")
        {
            checks.fail(&format!("{field}.{other}"), "is not a known field", "correct its name or remove it");
        }
        let text = entry.get("ip").and_then(Value::as_str).unwrap_or_default();
        let ip = text.trim().parse::<IpAddr>().ok();
        addresses.extend(ip.map(|ip| ip.to_canonical()));
        if !ip.is_some_and(|ip| usable(&ip) && text.trim() == text) {
            let reason = format!("{text:?} is not an address that a workload can have");
            checks.fail(&format!("{field}.ip"), reason, "correct it");
        }
    }
    addresses
}

fn ready(status: Option<&Value>) -> bool {
    let conditions = status.and_then(|status| status.get("conditions")).and_then(Value::as_array);
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|it| it.get("type").and_then(Value::as_str) == Some("Ready"))
        .map(|it| it.get("status").and_then(Value::as_str) == Some("True"));
    // Only a manifest written by hand has no such condition.
    ready.unwrap_or(true)
}
