//! Objects of any kind at the API server, and whose they are.

use super::bundle::words;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PropagationPolicy},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::Value;

/// As whom everything is applied.
pub(super) const MANAGER: &str = "heddle";

/// To whom an object belongs that is there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// `heddle install`.
    Own,
    /// A release of Helm's.
    Helm(String),
    /// Whoever these are.
    Others(Vec<String>),
}

/// The interface for objects like this one.
pub(super) fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let version = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let (kind, namespace, _) = words(object);
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
}

/// The object as it is, if it is.
///
/// # Errors
/// The API server cannot be asked. A kind that it does not serve has no objects.
pub(super) async fn get(client: &Client, object: &Value) -> Result<Option<DynamicObject>, kube::Error> {
    api(client, object).get_opt(words(object).2).await
}

/// Whose it is.
pub(super) fn owner(object: &DynamicObject) -> Owner {
    let annotations = object.metadata.annotations.iter().flatten();
    let mut release = annotations.filter(|(key, _)| *key == "meta.helm.sh/release-name");
    if let Some((_, release)) = release.next() {
        return Owner::Helm(release.clone());
    }
    let fields = object.metadata.managed_fields.iter().flatten();
    // What only writes a status owns nothing.
    let mut managers: Vec<String> = fields
        .filter(|it| it.subresource.as_deref().unwrap_or_default().is_empty())
        .filter_map(|it| it.manager.clone())
        .collect();
    managers.sort();
    managers.dedup();
    if managers.iter().any(|it| it == MANAGER) { Owner::Own } else { Owner::Others(managers) }
}

/// Puts it there as it is written, and gives what it became.
///
/// # Errors
/// The API server does not take it.
pub(super) async fn apply(
    client: &Client,
    object: &Value,
    force: bool,
    dry: bool,
) -> Result<DynamicObject, kube::Error> {
    let parameters = PatchParams { dry_run: dry, force, ..PatchParams::apply(MANAGER) };
    api(client, object).patch(words(object).2, &parameters, &Patch::Apply(object)).await
}

/// Takes it away. False: it was not there.
///
/// # Errors
/// The API server does not do it.
pub(super) async fn delete(client: &Client, object: &Value, dry: bool) -> Result<bool, kube::Error> {
    let parameters = DeleteParams {
        dry_run: dry,
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    match api(client, object).delete(words(object).2, &parameters).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_belongs_to_whoever_wrote_it() {
        let of = |metadata: Value| {
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
            owner(&serde_json::from_value(object).unwrap())
        };
        let by = |names: &[(&str, &str)]| {
            let fields: Vec<Value> =
                names.iter().map(|(it, sub)| json!({"manager": it, "subresource": sub})).collect();
            json!({"name": "x", "managedFields": fields})
        };
        assert_eq!(of(by(&[("kubectl", ""), ("heddle", "")])), Owner::Own);
        assert_eq!(of(by(&[("kubectl", ""), ("heddle", "status")])), Owner::Others(vec!["kubectl".into()]));
        assert_eq!(of(json!({"name": "x"})), Owner::Others(Vec::new()));
        let helm = json!({"name": "x", "annotations": {"meta.helm.sh/release-name": "mesh"},
            "managedFields": [{"manager": "heddle"}]});
        assert_eq!(of(helm), Owner::Helm("mesh".into()));
    }
}
