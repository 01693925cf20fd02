//! Pods that do not run yet: what a Deployment or another controller would make, so that rules kept in git beside their
//! workloads can be judged before anything runs.

use heddle_policy::{
    Severity,
    resources::{Document, ObjectName, Parsed, Resource, parse_value},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Kinds that make pods, and where their template is.
const MAKERS: [(&str, &str); 7] = [
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("ReplicationController", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

/// One pod, by the workload's name, for each workload that has none running; and the notes about kinds that this makes
/// untrue, by resource and field.
pub(super) fn pods(documents: &[Document], known: &[Resource]) -> (Parsed, BTreeSet<(String, String)>) {
    let mut made = Parsed::default();
    let mut explained = BTreeSet::new();
    let mut names: BTreeSet<ObjectName> = known
        .iter()
        .filter_map(|it| if let Resource::Pod(pod) = it { Some(pod.meta.object_name()) } else { None })
        .collect();
    for document in documents {
        let Some((_, pointer)) = MAKERS.iter().find(|(kind, _)| *kind == document.text("/kind")) else {
            continue;
        };
        let note = document.problem(Severity::Note, "kind", "");
        let name = ObjectName::new(document.namespace(), document.text("/metadata/name"));
        for resource in [note.resource, format!("{} {}", document.text("/kind"), name.name)] {
            explained.insert((resource, "kind".to_owned()));
        }
        let Some(template) = document.value.pointer(pointer) else { continue };
        if name.name.is_empty() || runs(template, &name, known) || !names.insert(name.clone()) {
            continue;
        }
        let field = |name: &str| template.pointer(name).cloned().unwrap_or_else(|| json!({}));
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name.name, "namespace": name.namespace,
                "labels": field("/metadata/labels"), "annotations": field("/metadata/annotations"),
            },
            "spec": field("/spec"),
        });
        let parsed = parse_value(pod, document.origin.clone());
        made.resources.extend(parsed.resources);
        made.problems.extend(parsed.problems.into_iter().map(|mut problem| {
            // A person looks for the field where it is written.
            problem.line = document.problem(Severity::Note, "spec.template", "").line;
            problem
        }));
    }
    (made, explained)
}

/// Whether a pod of the template's labels runs already: it says more than its template.
fn runs(template: &Value, name: &ObjectName, known: &[Resource]) -> bool {
    let labels = template.pointer("/metadata/labels").and_then(Value::as_object);
    known.iter().any(|resource| match resource {
        Resource::Pod(pod) => {
            pod.meta.namespace == name.namespace
                && pod.meta.name.starts_with(&name.name)
                && labels.is_some_and(|labels| {
                    labels
                        .iter()
                        .all(|(key, value)| pod.meta.labels.get(key).map(String::as_str) == value.as_str())
                })
        }
        _ => false,
    })
}
