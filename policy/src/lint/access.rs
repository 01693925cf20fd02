//! Heddle's own rules that are about no pod, or about nobody.

use std::collections::BTreeMap;

use super::{
    Known,
    identities::{ACCOUNT, nobody},
    problem,
};
use crate::{
    Compiled, Index, Problem, Severity,
    applying::ports_of,
    resources::{
        AccessRule, AccessSpec, Direction, IdentityMatch, Kind, Pod, PortMatch, Resource, Transport,
        namespace_matches,
    },
};

const SELECTOR: &str = "correct the labels or remove the rule";

pub(super) fn look(index: &Index, known: &Known<'_>, compiled: &Compiled, problems: &mut Vec<Problem>) {
    for resource in index.resources() {
        let Resource::AccessRule(rule) = resource else { continue };
        let Some(spec) = &rule.spec else { continue };
        let mut tell = |severity, field: &str, reason: String, remedy| {
            problems.push(problem(resource, severity, field, reason, remedy));
        };
        about_no_pod(rule, spec, known, compiled, &mut tell);
        about_nobody(spec, known, compiled, &mut tell);
    }
}

/// Takes a severity, a field, a reason and a remedy.
type Tell<'a> = &'a mut dyn FnMut(Severity, &str, String, &'static str);

fn about_no_pod(
    rule: &AccessRule,
    spec: &AccessSpec,
    known: &Known<'_>,
    compiled: &Compiled,
    tell: Tell<'_>,
) {
    let none = BTreeMap::new();
    let labels = |name: &str| compiled.base.namespaces.get(name).map_or(&none, |meta| &*meta.labels);
    let near: Vec<&Pod> = known
        .pods
        .iter()
        .filter(|(namespace, _)| rule.is_about_namespace(namespace, labels(namespace)))
        .flat_map(|(_, pods)| pods.iter().copied())
        .collect();
    let severity = match rule.kind {
        Kind::AccessRule => known.severity(&rule.meta.namespace),
        _ if known.pods.is_empty() => Severity::Note,
        _ => Severity::Warning,
    };
    let wide = rule.kind == Kind::ClusterAccessRule;
    if wide && !known.namespaces.iter().any(|name| rule.is_about_namespace(name, labels(name))) {
        let reason = format!(
            "selects none of the {} known namespaces: the rule decides nothing",
            known.namespaces.len()
        );
        return tell(severity, "spec.namespaceSelector", reason, SELECTOR);
    }
    let selected: Vec<&Pod> =
        near.iter().copied().filter(|pod| spec.pods.matches(&pod.meta.labels)).collect();
    if selected.is_empty() {
        let of = if wide { "the namespaces that it is about" } else { "its namespace" };
        let reason =
            format!("selects none of the {} known pods of {of}: the rule decides nothing", near.len());
        return tell(severity, "spec.podSelector", reason, SELECTOR);
    }
    // A port that leaves is the other side's: no pod of ours declares it.
    let named = spec.ports.iter().any(|port| matches!(port, PortMatch::Name(_)));
    if !named || !matches!(spec.direction, Direction::Inbound(_)) {
        return;
    }
    let transports = [Transport::Tcp, Transport::Udp].into_iter().filter(|it| spec.is_about(*it));
    let mut found = transports.flat_map(|it| selected.iter().map(move |pod| ports_of(rule, pod, it)));
    if found.all(|ports| ports.is_some_and(|ports| ports.is_empty())) {
        let reason = format!(
            "none of the {} selected pods declares such a port: the rule decides nothing",
            selected.len()
        );
        tell(severity, "spec.ports", reason, "correct the name, or write the port's number");
    }
}

fn about_nobody(spec: &AccessSpec, known: &Known<'_>, compiled: &Compiled, tell: Tell<'_>) {
    let mut of = |field: String, entries: &[IdentityMatch]| {
        for entry in entries {
            let list = match entry {
                IdentityMatch::ServiceAccount(_) => "serviceAccounts",
                IdentityMatch::Namespace(_) => "namespaces",
                _ => "identities",
            };
            if let Some((severity, reason)) = nobody(entry, known, &compiled.settings) {
                tell(severity, &format!("{field}.{list}"), reason, ACCOUNT);
            }
        }
    };
    match &spec.direction {
        Direction::Inbound(peers) => {
            for (i, peer) in peers.iter().enumerate() {
                of(format!("spec.from[{i}]"), &peer.identities);
            }
            for (i, peer) in peers.iter().enumerate() {
                let Some(selector) = &peer.namespaces else { continue };
                let mut all = compiled.base.namespaces.iter();
                if !compiled.base.namespaces.is_empty()
                    && !all.any(|(name, meta)| namespace_matches(selector, name, &meta.labels))
                {
                    let reason = "picks none of the known namespaces: nobody is matched".to_owned();
                    let field = format!("spec.from[{i}].namespaceSelector");
                    tell(Severity::Warning, &field, reason, "correct the labels of the selector");
                }
            }
        }
        Direction::Outbound(destinations) => {
            for (i, destination) in destinations.iter().enumerate() {
                of(format!("spec.to[{i}]"), &destination.identities);
            }
        }
    }
}
