//! What was installed, as it stands in the cluster: with which values, and which objects, so that the next one knows what
//! is there no longer.

use super::{
    bundle::{Bundle, NAMESPACE, words},
    objects,
};
use kube::Client;
use serde_json::{Value, json};

const NAME: &str = "heddle-install";

/// An installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub version: String,
    /// The values, as a person wrote them.
    pub values: String,
    /// Each object's kind and name.
    pub objects: Vec<Value>,
}

fn empty() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE}})
}

/// What it takes to find an object again.
fn bare(object: &Value) -> Value {
    let (kind, namespace, name) = words(object);
    let mut metadata = json!({ "name": name });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": object.get("apiVersion"), "kind": kind, "metadata": metadata})
}

impl Record {
    pub(super) fn of(bundle: &Bundle, linkerd: &[Value], values: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            values: values.to_owned(),
            objects: bundle.objects.iter().chain(linkerd).map(bare).collect(),
        }
    }

    /// As it stands in the cluster.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub(super) async fn read(client: &Client) -> Result<Option<Self>, kube::Error> {
        let Some(map) = objects::get(client, &empty()).await? else { return Ok(None) };
        let text = |key: &str| {
            map.data.pointer(&format!("/data/{key}")).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let objects = serde_json::from_str(&text("objects.json")).unwrap_or_default();
        Ok(Some(Self { version: text("version"), values: text("values.yaml"), objects }))
    }

    /// Leaves it in the cluster.
    ///
    /// # Errors
    /// The API server does not take it.
    pub(super) async fn write(&self, client: &Client) -> Result<(), kube::Error> {
        let mut map = empty();
        map["data"] = json!({
            "version": self.version,
            "values.yaml": self.values,
            "objects.json": Value::Array(self.objects.clone()).to_string(),
        });
        objects::apply(client, &map, true, false).await.map(drop)
    }

    /// Takes it away.
    ///
    /// # Errors
    /// The API server does not do it.
    pub(super) async fn remove(client: &Client) -> Result<(), kube::Error> {
        objects::delete(client, &empty(), false).await.map(drop)
    }

    /// The objects of this one that `next` does not have. Kinds stay: every rule would be gone with them.
    pub(super) fn gone_in(&self, next: &Self) -> Vec<Value> {
        let old = self.objects.iter().filter(|it| !next.objects.contains(it));
        old.filter(|it| !matches!(words(it).0, "CustomResourceDefinition" | "Namespace")).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::install::bundle::Values;

    #[test]
    fn what_the_next_one_has_no_longer_is_known_and_kinds_stay() {
        let all = Bundle::of(&Values::default()).unwrap();
        let less = Values::read("{crds: false, roles: false, controller: {replicas: 0}}").unwrap();
        let less = Bundle::of(&less).unwrap();
        let (old, new) = (Record::of(&all, &all.linkerd, ""), Record::of(&less, &[], ""));
        let gone = old.gone_in(&new);
        let named = |kind: &str, name: &str| gone.iter().any(|it| (words(it).0, words(it).2) == (kind, name));
        assert!(named("ClusterRole", "heddle-viewer") && named("Deployment", "heddle-controller"));
        assert!(!gone.iter().any(|it| words(it).0 == "CustomResourceDefinition"), "{gone:?}");
        assert!(!named("DaemonSet", "heddle") && new.gone_in(&new).is_empty());
    }
}
