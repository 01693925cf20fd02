//! The resources that are in force, fed one event at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    problems::{Origin, Problem, Severity},
    resources::{Kind, ObjectName, Parsed, Pod, Resource, ResourceId},
};

/// Where one writing of a resource stands: its origin, and its line there (a document may hold a list).
type Place = (Origin, u32);

/// The resources. The order in which they are applied makes no difference.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Index {
    /// Each as often as it is written, sorted by place: nearly always once, so that a list takes the least room.
    resources: BTreeMap<ResourceId, Vec<(Place, Resource)>>,
    /// Those that are written in more than one place.
    twice: BTreeSet<ResourceId>,
}

impl Index {
    /// An index of everything that was parsed.
    pub fn of(parsed: impl IntoIterator<Item = Parsed>) -> Self {
        let mut index = Self::default();
        for resource in parsed.into_iter().flat_map(|parsed| parsed.resources) {
            index.apply(resource);
        }
        index
    }

    /// Adds a resource or replaces what the same place held of it. Written in two places, the first (by file, then
    /// document) is in force, and a problem names both.
    pub fn apply(&mut self, mut resource: Resource) {
        if let Resource::Pod(pod) = &mut resource {
            self.share(pod);
        }
        let meta = resource.meta();
        let place = (meta.origin.clone(), meta.lines.get("").copied().unwrap_or(0));
        let id = resource.id();
        let places = self.resources.entry(id.clone()).or_default();
        match places.binary_search_by(|(there, _)| there.cmp(&place)) {
            Ok(at) => {
                if let Some(entry) = places.get_mut(at) {
                    entry.1 = resource;
                }
            }
            Err(at) => {
                places.reserve_exact(1);
                places.insert(at, (place, resource));
            }
        }
        if places.len() > 1 {
            self.twice.insert(id);
        }
    }

    /// Lets a pod have its labels in common with the pod beside it, if they are the same: a hundred thousand pods
    /// are far fewer workloads, and the pods of one stand beside each other.
    fn share(&self, pod: &mut Pod) {
        let namespace = &*pod.meta.namespace;
        let id = ResourceId { kind: Kind::Pod, namespace: namespace.to_owned(), name: pod.meta.name.clone() };
        let before = self.resources.range(..&id).next_back();
        let after = self.resources.range(&id..).next();
        for (_, places) in before.into_iter().chain(after) {
            if let Some((_, Resource::Pod(other))) = places.first()
                && other.meta.labels == pod.meta.labels
            {
                pod.meta.labels = Arc::clone(&other.meta.labels);
                return;
            }
        }
    }

    /// Removes a resource, wherever it was written.
    pub fn remove(&mut self, id: &ResourceId) {
        self.resources.remove(id);
        self.twice.remove(id);
    }

    /// Removes everything that a file held, and returns it.
    pub fn remove_file(&mut self, file: &str) -> Vec<Resource> {
        let mut removed = Vec::new();
        self.resources.retain(|_, places| {
            let gone = places.extract_if(.., |((origin, _), _)| origin.file == file);
            removed.extend(gone.map(|(_, resource)| resource));
            !places.is_empty()
        });
        for id in removed.iter().map(Resource::id) {
            if self.resources.get(&id).is_none_or(|places| places.len() < 2) {
                self.twice.remove(&id);
            }
        }
        removed
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The resources that are in force, sorted by kind, namespace and name.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values().filter_map(|places| Some(&places.first()?.1))
    }

    /// The resource of a kind and name that is in force.
    pub fn get(&self, kind: Kind, name: &ObjectName) -> Option<&Resource> {
        let id = ResourceId { kind, namespace: name.namespace.clone(), name: name.name.clone() };
        Some(&self.resources.get(&id)?.first()?.1)
    }

    /// The resources of a kind in a namespace, sorted by name.
    pub fn of_kind<'a>(&'a self, kind: Kind, namespace: &'a str) -> impl Iterator<Item = &'a Resource> {
        let first = ResourceId { kind, namespace: namespace.to_owned(), name: String::new() };
        self.resources
            .range(first..)
            .take_while(move |(id, _)| id.kind == kind && id.namespace == namespace)
            .filter_map(|(_, places)| Some(&places.first()?.1))
    }

    /// The resources of a kind everywhere, sorted by namespace and name.
    pub fn of_every_kind(&self, kind: Kind) -> impl Iterator<Item = &Resource> {
        let first = ResourceId { kind, namespace: String::new(), name: String::new() };
        self.resources
            .range(first..)
            .take_while(move |(id, _)| id.kind == kind)
            .filter_map(|(_, places)| Some(&places.first()?.1))
    }

    /// Whether a rule is written in a namespace.
    pub(crate) fn has_rules(&self, namespace: &str) -> bool {
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.is_rule() && kind.namespaced());
        kinds.into_iter().any(|kind| self.of_kind(kind, namespace).next().is_some())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &ResourceId> {
        self.resources.keys()
    }

    pub(crate) fn duplicates(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for id in &self.twice {
            let Some(places) = self.resources.get(id) else { continue };
            let mut places = places.iter();
            let Some(((first, first_line), _)) = places.next() else { continue };
            for ((origin, line), _) in places {
                let reason = format!(
                    "is written twice: the one in {}, line {first_line} (document {}) is in force, this one is not",
                    first.file, first.document
                );
                problems.push(
                    Problem::new(Severity::Error, origin, reason)
                        .resource(id)
                        .field("metadata.name", *line)
                        .remedy("remove one of them"),
                );
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests;
