//! The resources that are in force, fed one event at a time.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    compile::{Compiled, compile},
    problems::{Origin, Problem, Severity},
    resources::{Kind, Parsed, Resource, ResourceId},
    servers,
    settings::ClusterSettings,
};

/// Where one writing of a resource stands: its origin, and its line there (a document may hold a list).
type Place = (Origin, u32);

/// The resources. The order in which they are applied makes no difference.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Index {
    resources: BTreeMap<ResourceId, BTreeMap<Place, Resource>>,
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
    pub fn apply(&mut self, resource: Resource) {
        let meta = resource.meta();
        let place = (meta.origin.clone(), meta.lines.get("").copied().unwrap_or(0));
        self.resources.entry(resource.id()).or_default().insert(place, resource);
    }

    /// Removes a resource, wherever it was written.
    pub fn remove(&mut self, id: &ResourceId) {
        self.resources.remove(id);
    }

    /// Removes everything that a file held.
    pub fn remove_file(&mut self, file: &str) {
        self.resources.retain(|_, places| {
            places.retain(|(origin, _), _| origin.file != file);
            !places.is_empty()
        });
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
        self.resources.values().filter_map(|places| places.values().next())
    }

    /// Works out everything that `node` needs: never fails, since what cannot be worked out is refused and told.
    pub fn compile(&self, settings: &ClusterSettings, node: &str) -> Compiled {
        compile(self.resources(), self.duplicates(), settings, node)
    }

    /// Everything that is wrong with the resources taken together, on whichever node: for a check of a folder before it
    /// is put in force.
    pub fn check(&self, settings: &ClusterSettings) -> Vec<Problem> {
        let pods =
            || self.resources().filter_map(|it| if let Resource::Pod(pod) = it { Some(pod) } else { None });
        let nodes: BTreeSet<&str> = pods().map(|pod| &*pod.node).chain([""]).collect();
        let mut problems: Vec<Problem> =
            nodes.into_iter().flat_map(|node| self.compile(settings, node).problems).collect();
        for resource in self.resources() {
            let Resource::Server(server) = resource else { continue };
            let in_namespace = pods().filter(|pod| pod.meta.namespace == server.meta.namespace);
            if server.readable && !in_namespace.into_iter().any(|pod| servers::may_govern(pod, server)) {
                let reason = "governs no port of any pod that is known";
                problems.push(server.meta.problem(Kind::Server, Severity::Note, "spec", reason));
            }
        }
        problems.sort();
        problems.dedup();
        problems
    }

    fn duplicates(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (id, places) in &self.resources {
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
