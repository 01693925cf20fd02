//! AccessRules and ClusterAccessRules.

use serde::Deserialize;
use serde_json::Value;

use super::{
    access::{AccessRule, AccessSpec, Action, Closes, Destination, Direction, Peer, PortMatch},
    checks::{Checks, RawNetwork, RawSelector, networks, selector},
    gateway::host_match,
    meta::{Kind, Meta},
    outside::{RawAccount, account, identity_matches},
    ports::check_port_name,
    rules::IdentityMatch,
    selector::{Operator, Requirement, Selector},
    typed::typed,
    workload::Transport,
};
use crate::problems::Problem;

pub(super) const GROUP: &str = "heddle.io";
pub(super) const VERSION: &str = "v1alpha1";
/// The label that every namespace bears with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Each port is a row in the kernel's tables, and one rule must not fill them for a whole node.
const MAX_LISTED_PORTS: u32 = 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawAccessRule {
    action: String,
    mode: Option<String>,
    expires: Option<String>,
    namespace_selector: Option<RawSelector>,
    pod_selector: Option<RawSelector>,
    ports: Option<Vec<Value>>,
    protocol: Option<String>,
    from: Option<Vec<RawPeer>>,
    to: Option<Vec<RawDestination>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPeer {
    anyone: Option<bool>,
    identities: Option<Vec<String>>,
    service_accounts: Option<Vec<RawAccount>>,
    namespaces: Option<Vec<String>>,
    namespace_selector: Option<RawSelector>,
    except_identities: Option<Vec<String>>,
    networks: Option<Vec<RawNetwork>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDestination {
    anywhere: Option<bool>,
    identities: Option<Vec<String>>,
    service_accounts: Option<Vec<RawAccount>>,
    namespaces: Option<Vec<String>>,
    networks: Option<Vec<RawNetwork>>,
    hosts: Option<Vec<String>>,
}

/// What an unreadable rule may have meant, as far as it can be told.
#[derive(Deserialize, Default)]
struct RawBounds {
    action: Option<Value>,
    mode: Option<Value>,
}

pub(super) fn access_rule(
    kind: Kind,
    meta: Meta,
    spec: Option<&Value>,
    problems: &mut Vec<Problem>,
) -> AccessRule {
    let bounds =
        spec.and_then(|spec| typed::<RawBounds>(spec, "").ok()).map(|(raw, _)| raw).unwrap_or_default();
    let says = |value: &Option<Value>, text: &str| value.as_ref().and_then(Value::as_str) == Some(text);
    let may_deny = !says(&bounds.action, "Allow") && !says(&bounds.mode, "Audit");
    let consequence = if may_deny {
        "all that it may be about is refused, since it may have been meant to deny"
    } else {
        "the rule is not in force"
    };
    let mut checks = Checks::new(kind, &meta, consequence, problems);
    let read = access_spec(&mut checks, spec).filter(|_| checks.sound);
    let closes = (read.is_none() && may_deny).then(|| {
        let part = |field: &str| -> Option<Selector> {
            let value = spec?.get(field)?;
            let (raw, unknown) = typed::<RawSelector>(value, field).ok()?;
            let mut ignored = Vec::new();
            let mut checks = Checks::new(kind, &meta, consequence, &mut ignored);
            selector(&mut checks, field, raw).filter(|_| unknown.is_empty())
        };
        Closes { namespaces: part("namespaceSelector"), pods: part("podSelector") }
    });
    AccessRule { kind, meta, spec: read, closes }
}

fn access_spec(checks: &mut Checks<'_>, spec: Option<&Value>) -> Option<AccessSpec> {
    let raw = checks.read::<RawAccessRule>("spec", spec)?;
    let action = match &*raw.action {
        "Allow" => Action::Allow,
        "Deny" => Action::Deny,
        _ => {
            checks.fail("spec.action", "is not an action", "write Allow or Deny");
            return None;
        }
    };
    let audit = match raw.mode.as_deref() {
        None | Some("Enforce") => false,
        Some("Audit") => true,
        Some(_) => {
            checks.fail("spec.mode", "is not a mode", "write Enforce or Audit");
            false
        }
    };
    let expires = raw.expires.and_then(|text| match text.parse::<k8s_openapi::jiff::Timestamp>() {
        Ok(time) => Some(time.as_microsecond()),
        Err(_) => {
            let reason = format!("{text:?} is not a time");
            checks.fail("spec.expires", reason, "write it as 2026-12-31T18:00:00Z");
            None
        }
    });
    let cluster = checks.kind == Kind::ClusterAccessRule;
    let namespaces = match (cluster, raw.namespace_selector) {
        (true, Some(raw)) => selector(checks, "spec.namespaceSelector", raw)?,
        (false, None) => Selector::default(),
        (true, None) => {
            checks.fail("spec.namespaceSelector", "is missing", "write {} for every namespace");
            return None;
        }
        (false, Some(_)) => {
            checks.fail(
                "spec.namespaceSelector",
                "is for a ClusterAccessRule: an AccessRule is about its own namespace",
                "remove it",
            );
            return None;
        }
    };
    let pods = match raw.pod_selector {
        None => Selector::default(),
        Some(raw) => selector(checks, "spec.podSelector", raw)?,
    };
    let ports = ports(checks, raw.ports);
    let transport = match raw.protocol.as_deref() {
        // What is left out must not open: a rule that denies is then about all that there is.
        None if action == Action::Deny => None,
        None | Some("TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some(_) => {
            checks.fail("spec.protocol", "is not a protocol", "write TCP or UDP");
            None
        }
    };
    if transport == Some(Transport::Udp) {
        for (i, to) in raw.to.iter().flatten().enumerate() {
            if to.hosts.is_some() {
                let reason = "names hosts, which no datagram says";
                checks.fail(&format!("spec.to[{i}].hosts"), reason, "write networks, or a rule for TCP");
            }
        }
    }
    let direction = match (raw.from, raw.to) {
        (Some(from), None) => Direction::Inbound(peers(checks, from)),
        (None, Some(to)) => Direction::Outbound(destinations(checks, to)),
        _ => {
            checks.fail("spec", "needs exactly one of from and to", "write one");
            return None;
        }
    };
    Some(AccessSpec { action, audit, expires, namespaces, pods, ports, transport, direction })
}

fn ports(checks: &mut Checks<'_>, raw: Option<Vec<Value>>) -> Vec<PortMatch> {
    const REMEDY: &str = "write numbers from 1 to 65535, ranges as \"8000-8100\", or names of ports";
    let Some(raw) = raw else { return Vec::new() };
    if raw.is_empty() {
        checks.fail("spec.ports", "is empty", "remove it to mean every port");
    }
    let mut found = Vec::new();
    for (i, value) in raw.iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        let number =
            |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0 && !text.starts_with('+'));
        let range = match value {
            Value::Number(number) => {
                let port = number.as_u64().and_then(|it| u16::try_from(it).ok()).filter(|port| *port != 0);
                port.map(|port| PortMatch::Range(port, port))
            }
            Value::String(text) => match text.split_once('-') {
                Some((first, last)) if number(first).is_some() && number(last).is_some() => number(first)
                    .zip(number(last))
                    .filter(|(first, last)| first <= last)
                    .map(|(first, last)| PortMatch::Range(first, last)),
                _ => check_port_name(text).then(|| PortMatch::Name(text.clone())),
            },
            _ => None,
        };
        match range {
            Some(range) => found.push(range),
            None => checks.fail(&field, "is neither a port, a range nor a port's name", REMEDY),
        }
    }
    let size: u32 = found
        .iter()
        .map(|it| if let PortMatch::Range(first, last) = it { u32::from(last - first) + 1 } else { 1 })
        .fold(0, u32::saturating_add);
    if size > MAX_LISTED_PORTS && found != [PortMatch::Range(1, u16::MAX)] {
        checks.fail(
            "spec.ports",
            format!("lists more than {MAX_LISTED_PORTS} ports, but not all"),
            "list fewer ports, or remove it to mean every port",
        );
    }
    if found == [PortMatch::Range(1, u16::MAX)] {
        found.clear();
    }
    found
}

fn with_name(namespace: &str) -> IdentityMatch {
    IdentityMatch::Namespace(namespace.to_owned())
}

/// An entry that says nothing would never match, or always: neither is what anybody means.
const EMPTY: &str = "is empty";
const SAYS_NOTHING: &str = "says nothing";

fn peers(checks: &mut Checks<'_>, raw: Vec<RawPeer>) -> Vec<Peer> {
    if raw.is_empty() {
        checks.fail("spec.from", "is empty", "write an entry at least; {anyone: true} means everybody");
    }
    let mut found = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let field = format!("spec.from[{i}]");
        for (name, empty) in [
            ("identities", raw.identities.as_ref().is_some_and(Vec::is_empty)),
            ("serviceAccounts", raw.service_accounts.as_ref().is_some_and(Vec::is_empty)),
            ("namespaces", raw.namespaces.as_ref().is_some_and(Vec::is_empty)),
            ("exceptIdentities", raw.except_identities.as_ref().is_some_and(Vec::is_empty)),
        ] {
            if empty {
                checks.fail(&format!("{field}.{name}"), EMPTY, "write an entry at least, or remove it");
            }
        }
        let mut it = Peer::default();
        let identities = raw.identities.unwrap_or_default();
        it.identities = identity_matches(checks, &format!("{field}.identities"), &identities);
        let accounts = raw.service_accounts.unwrap_or_default();
        it.identities.extend(cluster_accounts(checks, &field, accounts));
        it.identities.extend(raw.namespaces.unwrap_or_default().iter().map(|it| with_name(it)));
        if let Some(raw) = raw.namespace_selector {
            it.namespaces = selector(checks, &format!("{field}.namespaceSelector"), raw);
        }
        let except = raw.except_identities.unwrap_or_default();
        it.except = identity_matches(checks, &format!("{field}.exceptIdentities"), &except);
        if let Some(raw) = raw.networks {
            it.networks = networks(checks, &format!("{field}.networks"), raw);
        }
        let anyone = raw.anyone == Some(true);
        if anyone == (it != Peer::default()) {
            let reason = if anyone { "names anyone and somebody" } else { SAYS_NOTHING };
            checks.fail(&field, reason, "write {anyone: true} to mean everybody, or say who");
        }
        found.push(it);
    }
    found
}

fn destinations(checks: &mut Checks<'_>, raw: Vec<RawDestination>) -> Vec<Destination> {
    if raw.is_empty() {
        checks.fail("spec.to", "is empty", "write an entry at least; {anywhere: true} means everywhere");
    }
    let mut found = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let field = format!("spec.to[{i}]");
        for (name, empty) in [
            ("identities", raw.identities.as_ref().is_some_and(Vec::is_empty)),
            ("serviceAccounts", raw.service_accounts.as_ref().is_some_and(Vec::is_empty)),
            ("namespaces", raw.namespaces.as_ref().is_some_and(Vec::is_empty)),
            ("hosts", raw.hosts.as_ref().is_some_and(Vec::is_empty)),
        ] {
            if empty {
                checks.fail(&format!("{field}.{name}"), EMPTY, "write an entry at least, or remove it");
            }
        }
        let mut it = Destination::default();
        let identities = raw.identities.unwrap_or_default();
        it.identities = identity_matches(checks, &format!("{field}.identities"), &identities);
        let accounts = raw.service_accounts.unwrap_or_default();
        it.identities.extend(cluster_accounts(checks, &field, accounts));
        it.identities.extend(raw.namespaces.unwrap_or_default().iter().map(|it| with_name(it)));
        if let Some(raw) = raw.networks {
            it.networks = networks(checks, &format!("{field}.networks"), raw);
        }
        for (j, text) in raw.hosts.unwrap_or_default().iter().enumerate() {
            match host_match(text) {
                Some(host) => it.hosts.push(host),
                None => {
                    let field = format!("{field}.hosts[{j}]");
                    let reason = format!("{text:?} is not a host's name");
                    checks.fail(&field, reason, "write a DNS name, or one with *. before it");
                }
            }
        }
        let by_address = !it.networks.is_empty() || !it.hosts.is_empty();
        if by_address && !it.identities.is_empty() {
            checks.fail(&field, "has identities beside networks or hosts", "write an entry for each");
        }
        let anywhere = raw.anywhere == Some(true);
        if anywhere == (it != Destination::default()) {
            let reason = if anywhere { "names anywhere and somewhere" } else { SAYS_NOTHING };
            checks.fail(&field, reason, "write {anywhere: true} to mean everywhere, or say where");
        }
        found.push(it);
    }
    found
}

/// Service accounts; in a rule for the cluster each must say its namespace.
fn cluster_accounts(checks: &mut Checks<'_>, field: &str, raw: Vec<RawAccount>) -> Vec<IdentityMatch> {
    let mut found = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        if raw.namespace.is_none() && checks.kind == Kind::ClusterAccessRule {
            checks.fail(&format!("{field}.serviceAccounts[{i}].namespace"), "is missing", "write it");
            continue;
        }
        found.push(account(checks.meta, raw));
    }
    found
}

impl AccessRule {
    /// Whether it is about the pods of a namespace with these labels.
    pub fn is_about_namespace(
        &self,
        name: &str,
        labels: &std::collections::BTreeMap<String, String>,
    ) -> bool {
        if self.kind == Kind::AccessRule {
            return self.meta.namespace == name;
        }
        let selector = match (&self.spec, &self.closes) {
            (Some(spec), _) => Some(&spec.namespaces),
            (None, Some(closes)) => closes.namespaces.as_ref(),
            (None, None) => return false,
        };
        selector.is_none_or(|selector| namespace_matches(selector, name, labels))
    }
}

/// Whether a selector picks a namespace. Its name's label cannot be set by anybody: it counts as Kubernetes sets it.
pub fn namespace_matches(
    selector: &Selector,
    name: &str,
    labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    let mut reserved = Selector::default();
    let mut others = selector.clone();
    if let Some(value) = others.labels.remove(NAMESPACE_NAME) {
        reserved.expressions.push(Requirement {
            key: NAMESPACE_NAME.to_owned(),
            operator: Operator::In,
            values: vec![value],
        });
    }
    let (own, rest) = others.expressions.into_iter().partition(|it| it.key == NAMESPACE_NAME);
    others.expressions = rest;
    reserved.expressions.extend::<Vec<Requirement>>(own);
    let as_set = std::collections::BTreeMap::from([(NAMESPACE_NAME.to_owned(), name.to_owned())]);
    reserved.matches(&as_set) && others.matches(labels)
}
