//! Identities that nobody has, and authentications that nobody refers to.

use std::collections::BTreeSet;

use super::{Known, problem};
use crate::{
    ClusterSettings, Index, Problem, Severity,
    names::NameError,
    resources::{IdentityMatch, IdentityRef, ObjectName, Resource},
};

pub(super) const ACCOUNT: &str = "correct the name, or write the ServiceAccount";

pub(super) fn look(
    index: &Index,
    known: &Known<'_>,
    settings: &ClusterSettings,
    problems: &mut Vec<Problem>,
) {
    let mut referred = BTreeSet::new();
    for resource in index.resources() {
        let Resource::AuthorizationPolicy(policy) = resource else { continue };
        let Some(rule) = &policy.rule else { continue };
        match &rule.identity {
            Some(IdentityRef::ServiceAccount(account)) => {
                if let Some((severity, reason)) = account_missing(account, known) {
                    let field = "spec.requiredAuthenticationRefs";
                    problems.push(problem(resource, severity, field, reason, ACCOUNT));
                }
            }
            Some(IdentityRef::MeshTls(name)) => {
                referred.insert(("MeshTLSAuthentication", name));
            }
            None => {}
        }
        referred.extend(rule.network.iter().map(|name| ("NetworkAuthentication", name)));
    }
    for resource in index.resources() {
        let kind = resource.kind().as_str();
        match resource {
            Resource::MeshTlsAuthentication(it) => {
                for (i, entry) in it.clients.iter().flatten().enumerate() {
                    let list = match entry {
                        IdentityMatch::ServiceAccount(_) | IdentityMatch::Namespace(_) => "identityRefs",
                        _ => "identities",
                    };
                    if let Some((severity, reason)) = nobody(entry, known, settings) {
                        let field = format!("spec.{list}[{i}]");
                        problems.push(problem(resource, severity, &field, reason, ACCOUNT));
                    }
                }
            }
            Resource::NetworkAuthentication(_) => {}
            _ => continue,
        }
        if !referred.contains(&(kind, &resource.meta().object_name())) {
            let reason = "no AuthorizationPolicy refers to it: it decides nothing";
            problems.push(problem(
                resource,
                Severity::Note,
                "metadata.name",
                reason,
                "remove it or refer to it",
            ));
        }
    }
}

/// Why nobody has an identity that a rule names; `None`: somebody may have it.
pub(super) fn nobody(
    entry: &IdentityMatch,
    known: &Known<'_>,
    settings: &ClusterSettings,
) -> Option<(Severity, String)> {
    let naming = &settings.naming;
    match entry {
        IdentityMatch::Any => None,
        IdentityMatch::ServiceAccount(account) => account_missing(account, known),
        IdentityMatch::Namespace(namespace) => {
            let empty = !known.accounts.iter().any(|account| account.namespace == *namespace);
            let reason = format!("no service account of namespace {namespace} is known: nobody is matched");
            (empty && !known.namespaces.is_empty()).then_some((Severity::Warning, reason))
        }
        IdentityMatch::Suffix(suffix) => {
            let reason = format!("no known identity ends in {suffix}: nobody is matched");
            let some = known.identities.iter().any(|name| name.dns().ends_with(suffix.as_str()));
            let federated = settings.federated.iter().any(|domain| {
                let (domain, suffix) = (format!(".{domain}"), format!(".{}", suffix.trim_start_matches('.')));
                domain.ends_with(&suffix) || suffix.ends_with(&domain)
            });
            (!some && !federated && !known.identities.is_empty()).then_some((Severity::Warning, reason))
        }
        IdentityMatch::Dns(text) => name_missing(text, naming.parse_dns(text), known, settings),
        IdentityMatch::Spiffe(text) => name_missing(text, naming.parse_spiffe(text), known, settings),
    }
}

fn name_missing(
    text: &str,
    parsed: Result<crate::names::IdentityName, NameError>,
    known: &Known<'_>,
    settings: &ClusterSettings,
) -> Option<(Severity, String)> {
    let naming = &settings.naming;
    let of = |domain: &String| match text.strip_prefix("spiffe://") {
        Some(name) => name.split('/').next() == Some(domain),
        None => text.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.')),
    };
    // Which accounts there are, only their own cluster knows.
    if parsed.is_err() && settings.federated.iter().any(of) {
        return None;
    }
    match parsed {
        Ok(name) => account_missing(&ObjectName::new(name.namespace(), name.service_account()), known),
        Err(NameError::OtherTrustDomain) => {
            let reason = format!(
                "{text} is in another trust domain or identity namespace than {} and {}, and in none that is \
                 federated: nobody has it",
                naming.trust_domain(),
                naming.identity_namespace()
            );
            Some((Severity::Warning, reason))
        }
        Err(_) => {
            let reason = format!(
                "{text} is no service account's name: only a workload outside the cluster can have it"
            );
            Some((Severity::Note, reason))
        }
    }
}

/// A service account that is not known: worth a word only where something of its namespace is.
fn account_missing(account: &ObjectName, known: &Known<'_>) -> Option<(Severity, String)> {
    // Every namespace has this one, written or not.
    let implied = account.name == "default" && known.namespaces.contains(&*account.namespace);
    if implied || known.accounts.contains(account) {
        return None;
    }
    let severity =
        if known.namespaces.contains(&*account.namespace) { Severity::Warning } else { Severity::Note };
    let nearest = known
        .accounts
        .iter()
        .filter(|other| other.namespace == account.namespace)
        .map(|other| other.name.as_str())
        .take(5)
        .collect::<Vec<_>>();
    let there =
        if nearest.is_empty() { String::new() } else { format!(" (known there: {})", nearest.join(", ")) };
    Some((severity, format!("no service account {account} is known{there}: nobody has this identity")))
}
