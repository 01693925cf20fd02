//! From changes to tables: only what a change touches is worked out anew.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    base::Base,
    churn::Changes,
    compile::{Compiled, assemble},
    index::Index,
    namespace::{EGRESS_NAMESPACE, NamespacePart},
    parts::Parts,
    resources::{Kind, ObjectName, Resource, ResourceId},
    rules::Rules,
    settings::ClusterSettings,
    tables::Capacity,
};

/// The resources with everything that was worked out of them. Resources in, tables out; without a clock of its own.
///
/// ```
/// use heddle_policy::{ClusterSettings, Compiler, resources::parse_file};
///
/// let mut compiler = Compiler::new(ClusterSettings::default(), Some("node-a".to_owned()));
/// for resource in parse_file("rules.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").resources {
///     compiler.apply(resource);
/// }
/// let now = 1_770_000_000_000_000;
/// let compiled = compiler.compile(now);
/// assert!(compiled.next_expiry.is_none());
/// ```
#[derive(Clone, Debug)]
pub struct Compiler {
    index: Index,
    settings: Arc<ClusterSettings>,
    node: Option<String>,
    capacity: Option<Capacity>,
    base: Option<Arc<Base>>,
    parts: Parts,
    dirty: BTreeSet<String>,
    /// What changed since the base was worked out.
    changes: Changes,
}

impl Compiler {
    /// For the pods of a node; without one, for those of the whole cluster.
    pub fn new(settings: ClusterSettings, node: Option<String>) -> Self {
        Self {
            index: Index::default(),
            settings: Arc::new(settings),
            node,
            capacity: None,
            base: None,
            parts: Parts::default(),
            dirty: BTreeSet::new(),
            changes: Changes::default(),
        }
    }

    /// For tables of a size: where one has not room for all, the namespaces that take most of it are closed. Without a size all
    /// is put into them.
    #[must_use]
    pub fn within(mut self, capacity: Capacity) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// With these resources instead of its own.
    #[must_use]
    pub fn with(mut self, index: Index) -> Self {
        self.index = index;
        self.base = None;
        self
    }

    /// The resources.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Adds or replaces a resource.
    pub fn apply(&mut self, resource: Resource) {
        let id = resource.id();
        // A watch tells everything again after it was interrupted, and of objects whose status alone changed.
        if self.index.get(id.kind, &ObjectName::new(&*id.namespace, &*id.name)) == Some(&resource) {
            return;
        }
        self.leave(&id);
        self.index.apply(resource);
        self.touch(&id);
    }

    /// Removes a resource, wherever it was written.
    pub fn remove(&mut self, id: &ResourceId) {
        self.leave(id);
        self.index.remove(id);
        self.touch(id);
    }

    /// Removes everything that a file held.
    pub fn remove_file(&mut self, file: &str) {
        for removed in self.index.remove_file(file) {
            if self.base.is_some() {
                self.changes.leave(&removed);
            }
            self.touch(&removed.id());
        }
    }

    /// Marks where the resource that is in force under a name stands, for it may stand elsewhere or nowhere from now on.
    fn leave(&mut self, id: &ResourceId) {
        if self.base.is_some()
            && let Some(resource) = self.index.get(id.kind, &ObjectName::new(&*id.namespace, &*id.name))
        {
            self.changes.leave(resource);
        }
    }

    /// Marks what a change of a resource may change.
    fn touch(&mut self, id: &ResourceId) {
        match id.kind {
            // Everything will be worked out.
            kind if !kind.is_rule() && self.base.is_none() => {}
            Kind::ExternalWorkload => self.base = None,
            Kind::Namespace => {
                self.changes.namespaces.insert(id.name.clone());
            }
            Kind::Service => {
                self.changes.services.entry(ObjectName::new(&*id.namespace, &*id.name)).or_default();
            }
            Kind::EndpointSlice => self.leave(id),
            Kind::Pod => {
                self.changes.pods.insert(ObjectName::new(&*id.namespace, &*id.name));
            }
            Kind::ServiceAccount | Kind::ReferenceGrant => {}
            Kind::ClusterAccessRule => self.dirty.extend(self.parts.namespaces().cloned()),
            // Whoever has none of its own may use another namespace's.
            Kind::EgressNetwork => self.dirty.extend(self.parts.namespaces().cloned()),
            Kind::MeshTlsAuthentication | Kind::NetworkAuthentication => {
                let name = ObjectName::new(&*id.namespace, &*id.name);
                self.dirty.extend(self.parts.users_of(id.kind, name).cloned());
            }
            _ => {
                self.dirty.insert(id.namespace.clone());
                // Whoever uses its EgressNetworks uses the routes that are attached to them.
                if id.namespace == EGRESS_NAMESPACE {
                    self.dirty.extend(self.parts.namespaces().cloned());
                }
            }
        }
        if self.base.is_none() || self.changes.are_many() {
            self.base = None;
            self.changes = Changes::default();
        }
    }

    /// What is where now; marks the namespaces whose rules see a difference.
    fn base(&mut self) -> Arc<Base> {
        let changes = std::mem::take(&mut self.changes);
        if let Some(base) = &self.base {
            if changes.is_empty() {
                return Arc::clone(base);
            }
            if let Some(after) = base.after(&changes, &self.index, &self.settings, self.node.as_deref()) {
                if after.here {
                    self.dirty.extend(base.local.keys().chain(after.base.local.keys()).cloned());
                }
                if after.pods {
                    self.dirty.extend(self.parts.followers().cloned());
                }
                if after.labels {
                    self.dirty.extend(self.parts.label_followers().cloned());
                }
                self.dirty.extend(changes.namespaces);
                let base = Arc::new(after.base);
                self.base = Some(Arc::clone(&base));
                return base;
            }
        }
        let base = Arc::new(Base::of(&self.index, &self.settings, self.node.as_deref()));
        self.base = Some(Arc::clone(&base));
        self.parts = Parts::default();
        self.dirty = base.local.keys().chain(base.namespaces.keys()).cloned().collect();
        // Namespaces of which only rules are known.
        let mut last = "";
        for id in self.index.ids().filter(|id| id.kind.is_rule() && id.kind.namespaced()) {
            if id.namespace != last {
                last = &id.namespace;
                self.dirty.insert(id.namespace.clone());
            }
        }
        base
    }

    /// Works out everything, at a time in microseconds since 1970: never fails, since what cannot be worked out is
    /// refused and told.
    pub fn compile(&mut self, now: i64) -> Compiled {
        let base = self.base();
        self.dirty.extend(self.parts.expired(now).cloned());
        let rules = Rules { index: &self.index, base: &base, settings: &self.settings, now };
        for namespace in std::mem::take(&mut self.dirty) {
            let known = base.local.contains_key(&namespace) || base.namespaces.contains_key(&namespace);
            if !known && !self.index.has_rules(&namespace) {
                self.parts.remove(&namespace);
                continue;
            }
            let part = NamespacePart::of(&rules, &namespace);
            self.parts.insert(namespace, part);
        }
        assemble(&self.settings, &base, &self.parts, self.index.duplicates(), self.capacity.as_ref())
    }
}

impl Index {
    /// Works out everything that `node` needs at a time when no rule has expired: never fails, since what cannot be
    /// worked out is refused and told. Whoever follows changes keeps a [`Compiler`] instead.
    pub fn compile(&self, settings: &ClusterSettings, node: &str) -> Compiled {
        self.compile_at(settings, node, i64::MIN)
    }

    /// The same at a time, in microseconds since 1970.
    pub fn compile_at(&self, settings: &ClusterSettings, node: &str, now: i64) -> Compiled {
        Compiler::new(settings.clone(), Some(node.to_owned())).with(self.clone()).compile(now)
    }

    /// The same for the whole cluster, as if every pod ran on one node: for questions about any of them.
    pub fn compile_cluster(&self, settings: &ClusterSettings, now: i64) -> Compiled {
        Compiler::new(settings.clone(), None).with(self.clone()).compile(now)
    }
}

#[cfg(test)]
mod tests;
