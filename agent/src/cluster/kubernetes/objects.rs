//! The cluster's objects as they are known: no I/O and no clock, so that a relist, an absent kind or an address that
//! comes early can be tried without a cluster.

use super::{
    early::{EarlyPods, Known, Unfit},
    kinds::KINDS,
    trim::trim,
    watched::{Change, Standing, Told, Watched},
};
use crate::cluster::{rules::Rules, view::View};
use heddle_policy::{Compiled, EndpointSource, Origin, Problem, resources::parse_value};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What a namespace, or a pod, is annotated with about the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    mesh: Option<String>,
    inject: Option<String>,
}

impl Wish {
    pub(super) fn of(annotations: &BTreeMap<String, String>) -> Self {
        let value = |key: &str| annotations.get(key).cloned();
        Self { mesh: value(heddle_policy::MESH), inject: value(heddle_policy::INJECT) }
    }

    fn of_object(object: &Value) -> Self {
        let annotations = object.pointer("/metadata/annotations");
        let value = |key: &str| annotations?.get(key)?.as_str().map(str::to_owned);
        Self { mesh: value(heddle_policy::MESH), inject: value(heddle_policy::INJECT) }
    }

    /// Whether it means outside the mesh; `inject`: Linkerd's wish is one.
    fn is_plain(&self, inject: bool) -> bool {
        match self.mesh.as_deref() {
            None => !(inject && self.inject.as_deref() == Some("enabled")),
            Some(mesh) => mesh == "disabled",
        }
    }
}

struct Object {
    text: Arc<str>,
    /// As the API server has it: an early address is laid over it.
    value: Option<Value>,
}

/// Everything that is known of the cluster.
pub(super) struct Objects {
    node: String,
    kinds: Vec<Watched<Object>>,
    rules: Rules,
    early: EarlyPods,
    /// Whether Linkerd's wish is one.
    inject: bool,
    changed: bool,
}

const POD: &str = "Pod";

impl Objects {
    pub(super) fn new(mut view: View) -> Self {
        // A controller writes slices for whatever a Service selects.
        view.settings.endpoints = EndpointSource::Slices;
        let node = view.node.clone();
        Self {
            inject: view.settings.linkerd_inject,
            kinds: KINDS.iter().map(Watched::new).collect(),
            rules: Rules::new(view),
            early: EarlyPods::default(),
            node,
            changed: false,
        }
    }

    /// Takes what the watch of a kind tells.
    pub(super) fn take(&mut self, kind: usize, told: Told) {
        let Some(watched) = self.kinds.get_mut(kind) else { return };
        for change in watched.take(told) {
            match change {
                Change::Standing => self.changed = true,
                Change::Put(file, object) => self.put(kind, file, object),
                Change::Gone(file) => self.remove(kind, &file),
            }
        }
    }

    fn put(&mut self, kind: usize, file: String, object: Value) {
        let Some(watched) = self.kinds.get_mut(kind) else { return };
        let kept = trim(object, watched.kind.kind, &self.node);
        let pod = watched.kind.kind == POD;
        let shown = if pod { self.early.lay_over(&file, &kept) } else { kept.clone() };
        let text: Arc<str> = shown.to_string().into();
        if watched.objects.get(&file).is_some_and(|before| before.text == text) {
            return;
        }
        let parsed = parse_value(shown, Origin::new(file.clone(), 0));
        self.rules.put(&file, &parsed);
        watched.objects.insert(file, Object { text, value: pod.then_some(kept) });
        self.changed = true;
    }

    fn remove(&mut self, kind: usize, file: &str) {
        let Some(watched) = self.kinds.get_mut(kind) else { return };
        self.early.forget(file);
        if watched.objects.remove(file).is_some() {
            self.rules.remove(file);
            self.changed = true;
        }
    }

    /// A pod's sandbox has these addresses, which the API server does not know yet.
    ///
    /// # Errors
    /// The pod is not known, is another, or is another node's.
    pub(super) fn admit(
        &mut self,
        namespace: &str,
        name: &str,
        uid: &str,
        addresses: &[IpAddr],
    ) -> Result<(), Unfit> {
        let pods = KINDS.iter().position(|kind| kind.kind == POD).unwrap_or_default();
        let file = format!("pods/{namespace}/{name}");
        let value = self.kinds.get(pods).and_then(|it| it.objects.get(&file)).and_then(|it| it.value.clone());
        let value = value.ok_or(Unfit::Unknown)?;
        Known::of(&value).is(uid, &self.node)?;
        self.early.admit(&file, &value, uid, addresses);
        self.put(pods, file, value);
        Ok(())
    }

    /// Whether every kind is listed or known to be absent: before that nothing is put in force.
    pub(super) fn complete(&self) -> bool {
        self.kinds.iter().all(|kind| kind.standing != Standing::Unknown)
    }

    /// Whether something is other than at the last [`Self::compile`].
    pub(super) fn changed(&self) -> bool {
        self.changed
    }

    /// What is in force at a time.
    pub(super) fn compile(&mut self, now: i64) -> (Compiled, Vec<Problem>) {
        self.changed = false;
        self.rules.compile(now)
    }

    /// The rules, for their expiry.
    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What a namespace is annotated with about the mesh; none: no such namespace is known.
    pub(super) fn wish_of(&self, namespace: &str) -> Option<Wish> {
        let kinds = KINDS.iter().zip(&self.kinds).find(|(kind, _)| kind.kind == "Namespace");
        let object = kinds.and_then(|(_, it)| it.objects.get(&format!("namespaces/{namespace}")))?;
        Some(Wish::of_object(&serde_json::from_str(&object.text).ok()?))
    }

    /// The namespaces that are outside the mesh by their own annotation, or for want of one.
    pub(super) fn plain_namespaces(&self) -> BTreeSet<String> {
        let namespaces = KINDS.iter().zip(&self.kinds).filter(|(kind, _)| kind.kind == "Namespace");
        let objects = namespaces.flat_map(|(_, watched)| watched.objects.values());
        objects
            .filter_map(|object| {
                let namespace: Value = serde_json::from_str(&object.text).ok()?;
                let name = namespace.pointer("/metadata/name").and_then(Value::as_str)?;
                Wish::of_object(&namespace).is_plain(self.inject).then(|| name.to_owned())
            })
            .collect()
    }

    /// Every object in force, as it is kept.
    pub(super) fn texts(&self) -> Vec<(String, Arc<str>)> {
        let objects = self.kinds.iter().flat_map(|kind| kind.objects.iter());
        objects.map(|(file, object)| (file.clone(), Arc::clone(&object.text))).collect()
    }

    /// How each kind stands: its name, its standing, how many objects, and why it cannot be watched.
    pub(super) fn standings(&self) -> impl Iterator<Item = (String, &Standing, usize, Option<&String>)> {
        KINDS.iter().zip(&self.kinds).map(|(kind, watched)| {
            (kind.resource(), &watched.standing, watched.objects.len(), watched.error.as_ref())
        })
    }
}

#[cfg(test)]
mod tests;
