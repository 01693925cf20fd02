//! What is in force as it is written, but hardly as it is meant: for a check before rules are put in force.
//!
//! Only reads the index and what was compiled from it.

mod access;
mod datagrams;
mod identities;
mod overview;
mod redundant;
mod room;
mod routes;
mod selectors;
mod shadowed;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Compiled, Index, Problem, Severity,
    names::{IdentityName, IdentityNaming},
    resources::{Kind, ObjectName, Pod, Resource},
};
pub use redundant::Redundant;

/// Everything that reads as a mistake in resources that are sound each by itself. `compiled` is `index`, compiled so that
/// every pod is on the node.
pub fn lint(index: &Index, compiled: &Compiled) -> Vec<Problem> {
    let known = Known::of(index, &compiled.settings.naming);
    let mut problems = Vec::new();
    selectors::look(index, &known, &mut problems);
    identities::look(index, &known, &compiled.settings, &mut problems);
    access::look(index, &known, compiled, &mut problems);
    redundant::look(index, compiled, &mut problems);
    routes::look(index, &mut problems);
    shadowed::look(index, &mut problems);
    datagrams::look(index, compiled, &mut problems);
    room::look(compiled, &mut problems);
    problems.sort();
    problems.dedup();
    problems
}

/// What there is in a cluster that rules can mean.
struct Known<'a> {
    /// Service accounts that are written or that a pod has.
    accounts: BTreeSet<ObjectName>,
    /// Their identities.
    identities: Vec<IdentityName>,
    pods: BTreeMap<&'a str, Vec<&'a Pod>>,
    namespaces: BTreeSet<&'a str>,
}

impl<'a> Known<'a> {
    fn of(index: &'a Index, naming: &IdentityNaming) -> Self {
        let mut it = Self {
            accounts: BTreeSet::new(),
            identities: Vec::new(),
            pods: BTreeMap::new(),
            namespaces: BTreeSet::new(),
        };
        for resource in index.resources() {
            let meta = resource.meta();
            match resource {
                Resource::Namespace(meta) => {
                    it.namespaces.insert(&meta.name);
                }
                Resource::ServiceAccount(meta) => {
                    it.namespaces.insert(&meta.namespace);
                    it.accounts.insert(meta.object_name());
                }
                Resource::Pod(pod) => {
                    it.namespaces.insert(&meta.namespace);
                    it.accounts.insert(ObjectName::new(&*meta.namespace, &*pod.service_account));
                    it.pods.entry(&meta.namespace).or_default().push(pod);
                }
                _ => {}
            }
        }
        it.identities =
            it.accounts.iter().filter_map(|it| naming.name(&it.namespace, &it.name).ok()).collect();
        it
    }

    /// Where nothing is known of a namespace's pods, a selector that selects none of them proves little.
    fn severity(&self, namespace: &str) -> Severity {
        if self.pods.contains_key(namespace) { Severity::Warning } else { Severity::Note }
    }
}

/// A problem of a resource, with what to do.
fn problem(
    resource: &Resource,
    severity: Severity,
    field: &str,
    reason: impl Into<String>,
    remedy: &str,
) -> Problem {
    let kind: Kind = resource.kind();
    resource.meta().problem(kind, severity, field, reason).remedy(remedy)
}

#[cfg(test)]
mod tests;
