//! What was worked out of each namespace, found by what a change asks for: there are thousands, and most changes are
//! about one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    namespace::NamespacePart,
    problems::Problem,
    resources::{Kind, ObjectName},
};

/// What was worked out of each namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    by_namespace: BTreeMap<String, Arc<NamespacePart>>,
    /// The namespaces that refer to a resource of another.
    users: BTreeMap<(Kind, ObjectName), BTreeSet<String>>,
    expiries: BTreeSet<(i64, String)>,
    followers: BTreeSet<String>,
    label_followers: BTreeSet<String>,
    /// Those with something wrong in them.
    troubled: BTreeSet<String>,
}

impl Parts {
    pub(crate) fn get(&self, namespace: &str) -> Option<&Arc<NamespacePart>> {
        self.by_namespace.get(namespace)
    }

    /// Takes a namespace out of which nothing is known any more.
    pub(crate) fn remove(&mut self, namespace: &str) {
        let Some(old) = self.by_namespace.remove(namespace) else { return };
        for reference in &old.references {
            if let Some(users) = self.users.get_mut(reference) {
                users.remove(namespace);
                if users.is_empty() {
                    self.users.remove(reference);
                }
            }
        }
        if let Some(at) = old.next_expiry {
            self.expiries.remove(&(at, namespace.to_owned()));
        }
        for set in [&mut self.followers, &mut self.label_followers, &mut self.troubled] {
            set.remove(namespace);
        }
    }

    pub(crate) fn insert(&mut self, namespace: String, part: NamespacePart) {
        self.remove(&namespace);
        for reference in &part.references {
            self.users.entry(reference.clone()).or_default().insert(namespace.clone());
        }
        self.expiries.extend(part.next_expiry.map(|at| (at, namespace.clone())));
        for (set, holds) in [
            (&mut self.followers, part.follows_pods),
            (&mut self.label_followers, part.follows_labels),
            (&mut self.troubled, !part.problems.is_empty()),
        ] {
            if holds {
                set.insert(namespace.clone());
            }
        }
        self.by_namespace.insert(namespace, Arc::new(part));
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &String> {
        self.by_namespace.keys()
    }

    /// Those that refer to a resource.
    pub(crate) fn users_of(&self, kind: Kind, name: ObjectName) -> impl Iterator<Item = &String> {
        self.users.get(&(kind, name)).into_iter().flatten()
    }

    /// Those whose rules are about where identities are.
    pub(crate) fn followers(&self) -> impl Iterator<Item = &String> {
        self.followers.iter()
    }

    /// Those whose rules are about whom namespaces' labels pick.
    pub(crate) fn label_followers(&self) -> impl Iterator<Item = &String> {
        self.label_followers.iter()
    }

    /// Those with a rule that expires up to then.
    pub(crate) fn expired(&self, now: i64) -> impl Iterator<Item = &String> {
        self.expiries.iter().take_while(move |(at, _)| *at <= now).map(|(_, namespace)| namespace)
    }

    /// When the first rule expires.
    pub(crate) fn next_expiry(&self) -> Option<i64> {
        self.expiries.first().map(|(at, _)| *at)
    }

    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.troubled.iter().filter_map(|namespace| self.get(namespace)).flat_map(|part| &part.problems)
    }
}
