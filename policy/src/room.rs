//! Who gives way where a table has not room for all: the namespaces that take most of it. So nobody's rules or Services
//! close another's pods, and whoever takes no more than a table's places, shared out evenly, is never closed.

use std::{
    cell::Cell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use heddle_ebpf::policy::{Backend, BackendKey, Service, ServiceKey};

use crate::{
    base::Base,
    problems::{Origin, Problem, Severity},
    resources::Kind,
    tables::{Capacity, TooLarge},
};

/// So many rules and networks are worked out for the pods of a namespace at most, each counted for every set of ports that has
/// rules of its own: no table has room for what comes of more, and working it out would keep everybody else's rules waiting.
const MOST: usize = 1 << 19;

/// How much of that is left.
pub(crate) struct Effort(Cell<Option<usize>>);

impl Effort {
    pub(crate) fn new() -> Self {
        Self(Cell::new(Some(MOST)))
    }

    /// Whether so much may be worked out; once it may not, nothing more may.
    pub(crate) fn take(&self, count: usize) -> bool {
        self.0.set(self.0.get().and_then(|left| left.checked_sub(count)));
        self.0.get().is_some()
    }

    /// Whether it was too much.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.0.get().is_none()
    }
}

/// The rule that is named where a namespace's rules are too many to be worked out.
pub(crate) const TOO_MANY: &str = "namespace closed: too many rules and networks";

/// What is told of it.
pub(crate) fn too_many(base: &Base, namespace: &str) -> Problem {
    let reason = format!(
        "its rules and their networks are more than {MOST}, counted for each set of ports with rules of its own: its pods are \
         closed, both ways"
    );
    about(base, namespace, Severity::Error, reason)
        .remedy("write fewer rules, or fewer networks in them, for fewer ports")
}

/// How many rows of each table a namespace takes.
pub(crate) type Rows = BTreeMap<&'static str, u64>;

/// The namespaces on a node whose rules have not room beside each other.
#[derive(Default)]
pub(crate) struct Crowd<'a> {
    /// What each takes by itself; empty until it is asked for.
    rows: BTreeMap<&'a str, Rows>,
    closed: BTreeSet<&'a str>,
}

impl<'a> Crowd<'a> {
    /// The namespaces that are to be closed for a table: those that take most of it, and no more of them than it takes.
    /// Empty: none is left that takes any.
    pub(crate) fn give_way<P>(
        &mut self,
        full: &TooLarge,
        here: impl Iterator<Item = (&'a str, P)>,
        rows: impl Fn(&'a str, P) -> Rows,
    ) -> Vec<&'a str> {
        if self.rows.is_empty() {
            self.rows = here.map(|(namespace, part)| (namespace, rows(namespace, part))).collect();
        }
        let open = self.rows.keys().filter(|namespace| !self.closed.contains(*namespace));
        let weights = open.map(|namespace| (*namespace, self.rows_of(namespace, full.table)));
        let leaving = heaviest(weights.collect(), excess(full));
        self.closed.extend(&leaving);
        leaving
    }

    /// How many rows of a table a namespace takes by itself.
    pub(crate) fn rows_of(&self, namespace: &str, table: &str) -> u64 {
        self.rows.get(namespace).and_then(|rows| rows.get(table)).copied().unwrap_or(0)
    }
}

fn excess(full: &TooLarge) -> u64 {
    u64::try_from(full.needed).unwrap_or(u64::MAX).saturating_sub(u64::from(full.capacity))
}

/// As few of them as take `excess` together, those that take most first.
fn heaviest(mut weights: Vec<(&str, u64)>, excess: u64) -> Vec<&str> {
    weights.retain(|(_, rows)| *rows > 0);
    weights.sort_unstable_by_key(|(namespace, rows)| (Reverse(*rows), *namespace));
    let mut freed = 0;
    let mut leaving = Vec::new();
    for (namespace, rows) in weights {
        if freed >= excess {
            break;
        }
        freed += rows;
        leaving.push(namespace);
    }
    leaving
}

/// The rule that is named in whatever is refused for it.
pub(crate) fn why(full: &TooLarge) -> Arc<str> {
    format!("namespace closed: no room in {}", full.table).into()
}

/// What is told of a namespace whose rules have no room.
pub(crate) fn closed(base: &Base, namespace: &str, full: &TooLarge, rows: u64) -> Problem {
    let TooLarge { table, capacity, .. } = full;
    let reason = format!(
        "its rules take {rows} of the {capacity} places of table {table} on this node, more than any other's that have room \
         there: its pods are closed, both ways"
    );
    let remedy = format!(
        "let its rules name fewer ports and networks, or raise capacity.{table} in the agent's configuration"
    );
    about(base, namespace, Severity::Error, reason).remedy(remedy)
}

/// A problem of a namespace, of which its pods alone may be known.
pub(crate) fn about(base: &Base, namespace: &str, severity: Severity, reason: String) -> Problem {
    match base.namespaces.get(namespace) {
        Some(meta) => meta.problem(Kind::Namespace, severity, "metadata.name", reason),
        None => {
            Problem::new(severity, &Origin::default(), reason).resource(format_args!("Namespace {namespace}"))
        }
    }
}

/// The rows of Services.
type ServiceRows = (Arc<BTreeMap<ServiceKey, Service>>, Arc<BTreeMap<BackendKey, Backend>>);

/// The rows of Services for which there is room. Of the others the addresses stay known as Services', and are refused.
pub(crate) fn services(base: &Base, capacity: &Capacity, problems: &mut Vec<Problem>) -> ServiceRows {
    let mut rows = (Arc::clone(&base.services), Arc::clone(&base.backends));
    for (table, capacity) in [("services", capacity.services), ("backends", capacity.backends)] {
        let needed = if table == "services" { rows.0.len() } else { rows.1.len() };
        let full = TooLarge { table, needed, capacity };
        if excess(&full) == 0 {
            continue;
        }
        let owner = |key: &ServiceKey| base.service_names.get(&key.address).map(|name| &*name.namespace);
        let mut weights: BTreeMap<&str, u64> = BTreeMap::new();
        for (key, row) in &*rows.0 {
            // An address by itself stays.
            if let Some(namespace) = owner(key).filter(|_| key.port != 0) {
                *weights.entry(namespace).or_default() +=
                    if table == "services" { 1 } else { u64::from(row.backends) };
            }
        }
        let leaving =
            heaviest(weights.iter().map(|(namespace, rows)| (*namespace, *rows)).collect(), excess(&full));
        for namespace in &leaving {
            let taken = weights.get(namespace).copied().unwrap_or(0);
            let reason = format!(
                "its Services take {taken} of the {capacity} places of table {table}, more than any other's that have room there: \
                 they are refused"
            );
            let remedy = format!(
                "give its Services fewer ports and endpoints, or raise capacity.{table} in the agent's configuration"
            );
            problems.push(about(base, namespace, Severity::Error, reason).remedy(remedy));
        }
        let leaves = |key: &ServiceKey| key.port != 0 && owner(key).is_some_and(|it| leaving.contains(&it));
        let gone: BTreeSet<u32> =
            rows.0.iter().filter(|(key, _)| leaves(key)).map(|(_, row)| row.service).collect();
        let kept = rows.0.iter().filter(|(key, _)| !leaves(key)).map(|(key, row)| (*key, *row));
        let services = kept.collect();
        let backends = rows.1.iter().filter(|(key, _)| !gone.contains(&key.service));
        rows = (Arc::new(services), Arc::new(backends.map(|(key, row)| (*key, *row)).collect()));
    }
    rows
}

#[cfg(test)]
mod tests;
