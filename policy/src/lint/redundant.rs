//! Rules that never decide, because others allow all that they allow or refuse it.

use std::collections::{BTreeMap, BTreeSet};

use super::problem;
use crate::{
    Compiled, Index, Problem, Severity,
    clients::Match,
    grants::{Clients, Grant, Specificity},
    resources::{NetworkMatch, Resource},
};

/// A rule without which nothing would change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Redundant {
    /// The rule, as decisions name it.
    pub rule: String,
    /// The rules that allow all of it, or deny it, wherever it applies.
    pub because: BTreeSet<String>,
    /// Whether one of them denies.
    pub denied: bool,
}

impl Compiled {
    /// The rules of the node's pods that allow nobody whom another rule does not allow, on every port and route that they
    /// apply to.
    pub fn redundant(&self) -> Vec<Redundant> {
        // By rule: what covers it; `None`: somewhere nothing does.
        let mut covered: BTreeMap<&str, Option<(BTreeSet<String>, bool)>> = BTreeMap::new();
        for set in self.all_sets() {
            let grants = &set.allows;
            for (i, grant) in grants.iter().enumerate() {
                let by = grants.iter().enumerate().find(|(j, other)| {
                    other.rule != grant.rule
                        && other.specificity != Specificity::Audit
                        && covers(other, grant)
                        // Of two that are alike the first is credited.
                        && (*j < i || !covers(grant, other))
                });
                let denied = set.denies.iter().find(|deny| covers(deny, grant));
                let entry = covered.entry(&grant.rule).or_insert_with(|| Some((BTreeSet::new(), false)));
                match denied.or(by.map(|(_, by)| by)) {
                    None => *entry = None,
                    Some(by) => {
                        if let Some((because, refused)) = entry {
                            because.insert(by.rule.to_string());
                            *refused |= denied.is_some();
                        }
                    }
                }
            }
        }
        covered
            .into_iter()
            .filter_map(|(rule, why)| {
                let (because, denied) = why?;
                Some(Redundant { rule: rule.to_owned(), because, denied })
            })
            .collect()
    }
}

/// Whether `wide` allows everybody whom `narrow` allows. What cannot be told is not covered.
fn covers(wide: &Grant, narrow: &Grant) -> bool {
    let all = |wide: &[Match], narrow: &[Match]| narrow.iter().all(|it| wide.iter().any(|w| includes(w, it)));
    let clients = match (&wide.clients, &narrow.clients) {
        (Clients::Everybody, _)
        | (Clients::MeshTls, Clients::MeshTls | Clients::Any(_) | Clients::Except(..)) => true,
        (Clients::Any(wide), Clients::Any(narrow) | Clients::Except(Some(narrow), _)) => all(wide, narrow),
        (Clients::Any(wide), Clients::Except(None, _)) => wide.contains(&Match::Any),
        (wide, narrow) => wide == narrow,
    };
    let networks = match (&wide.networks, &narrow.networks) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => narrow.iter().all(|it| wide.iter().any(|w| holds(w, it))),
    };
    clients && networks
}

pub(super) fn includes(wide: &Match, narrow: &Match) -> bool {
    match (wide, narrow) {
        // Perhaps another trust domain's: such a one is let in by its whole name alone.
        (Match::Any | Match::Suffix(_), Match::Dns(_) | Match::Spiffe(_)) => false,
        (Match::Any, _) => true,
        // A name of ours is `account.namespace.serviceaccount.identity.…`.
        (Match::Namespace(namespace), Match::Name(name)) => name
            .split_once(".serviceaccount.identity.")
            .and_then(|(own, _)| own.rsplit_once('.'))
            .is_some_and(|(_, own)| own == namespace),
        (Match::Suffix(suffix), Match::Name(dns)) => dns.ends_with(suffix.as_str()),
        (Match::Suffix(wide), Match::Suffix(narrow)) => narrow.ends_with(wide.as_str()),
        (wide, narrow) => wide == narrow,
    }
}

pub(super) fn holds(wide: &NetworkMatch, narrow: &NetworkMatch) -> bool {
    wide.cidr.contains(&narrow.cidr)
        && wide.except.iter().all(|cut| {
            let apart = !cut.contains(&narrow.cidr) && !narrow.cidr.contains(cut);
            apart || narrow.except.iter().any(|other| other.contains(cut))
        })
}

pub(super) fn look(index: &Index, compiled: &Compiled, problems: &mut Vec<Problem>) {
    let redundant = compiled.redundant();
    for resource in index.resources() {
        let rule = matches!(
            resource,
            Resource::AuthorizationPolicy(_) | Resource::ServerAuthorization(_) | Resource::AccessRule(_)
        );
        if !rule {
            continue;
        }
        let Some(found) = redundant.iter().find(|it| it.rule == resource.id().to_string()) else { continue };
        let because: Vec<_> = found.because.iter().map(String::as_str).collect();
        let does = if found.denied { "denies or allows" } else { "allows" };
        let reason =
            format!("never decides: wherever it applies, {} {does} all that it allows", because.join(" or "));
        let remedy = "remove it, or narrow what is wider if this was to be the limit";
        problems.push(problem(resource, Severity::Warning, "spec", reason, remedy));
    }
}
