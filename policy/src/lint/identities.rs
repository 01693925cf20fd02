//! Identities that nobody has, and authentications that nobody refers to.

use std::collections::BTreeSet;

use super::{Known, problem};
use crate::{
    Index, Problem, Severity,
    names::{IdentityNaming, NameError},
    resources::{IdentityMatch, IdentityRef, ObjectName, Resource},
};

const ACCOUNT: &str = "correct the name, or write the ServiceAccount";

pub(super) fn look(index: &Index, known: &Known<'_>, naming: &IdentityNaming, problems: &mut Vec<Problem>) {
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
                    if let Some((severity, reason)) = nobody(entry, known, naming) {
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
fn nobody(entry: &IdentityMatch, known: &Known<'_>, naming: &IdentityNaming) -> Option<(Severity, String)> {
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
            (!some && !known.identities.is_empty()).then_some((Severity::Warning, reason))
        }
        IdentityMatch::Dns(text) => name_missing(text, naming.parse_dns(text), known, naming),
        IdentityMatch::Spiffe(text) => name_missing(text, naming.parse_spiffe(text), known, naming),
    }
}

fn name_missing(
    text: &str,
    parsed: Result<crate::names::IdentityName, NameError>,
    known: &Known<'_>,
    naming: &IdentityNaming,
) -> Option<(Severity, String)> {
    match parsed {
        Ok(name) => account_missing(&ObjectName::new(name.namespace(), name.service_account()), known),
        Err(NameError::OtherTrustDomain) => {
            let reason = format!(
                "{text} is in another trust domain or identity namespace than {} and {}: no pod of this cluster \
                 has it",
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
