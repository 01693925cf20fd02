//! What is kept of an object: a cluster has many, and each agent holds them all.

use heddle_policy::resources::SERVICE_NAME;
use serde_json::{Map, Value, json};

/// Metadata that policy reads.
const METADATA: [&str; 7] =
    ["name", "namespace", "uid", "labels", "annotations", "creationTimestamp", "deletionTimestamp"];
/// Metadata of what changes all the time: annotations tell when.
const OF_SLICES: [&str; 4] = ["name", "namespace", "uid", "labels"];
/// What kubectl leaves in annotations: the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Keeps of `object` what policy reads. Of a pod on `node` that is its ports and probes too, of another its named ports.
pub(super) fn trim(object: Value, kind: &str, node: &str) -> Value {
    let Value::Object(mut object) = object else { return object };
    let fields: &[&str] = if kind == "EndpointSlice" { &OF_SLICES } else { &METADATA };
    let mut metadata = keep(object.remove("metadata"), fields);
    if let ("EndpointSlice", Some(Value::Object(labels))) = (kind, metadata.get_mut("labels")) {
        labels.retain(|label, _| label == SERVICE_NAME);
    }
    if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
        annotations.remove(LAST_APPLIED);
    }
    let mut kept = Map::new();
    for field in ["apiVersion", "kind"] {
        kept.extend(object.remove(field).map(|value| (field.to_owned(), value)));
    }
    kept.insert("metadata".to_owned(), Value::Object(metadata));
    match kind {
        "Namespace" | "ServiceAccount" => {}
        "Service" => {
            let fields = ["type", "selector", "clusterIP", "clusterIPs", "ports", "publishNotReadyAddresses"];
            kept.insert("spec".to_owned(), Value::Object(keep(object.remove("spec"), &fields)));
        }
        "EndpointSlice" => {
            kept.extend(object.remove("addressType").map(|it| ("addressType".to_owned(), it)));
            for (list, fields) in [
                ("endpoints", &["addresses", "conditions", "targetRef"][..]),
                ("ports", &["name", "port", "protocol"]),
            ] {
                kept.insert(list.to_owned(), keep_each(object.remove(list), fields));
            }
        }
        "Pod" => {
            let spec = pod_spec(object.remove("spec"), node);
            kept.insert("spec".to_owned(), spec);
            kept.insert("status".to_owned(), pod_status(object.remove("status")));
        }
        _ => {
            // Unknown fields are told, and an unknown field of a rule closes it: whatever is not status stays.
            let status = object.remove("status");
            object.retain(|field, _| !kept.contains_key(field));
            kept.extend(object);
            if kind == "ExternalWorkload" {
                kept.extend(status.map(|status| ("status".to_owned(), status)));
            }
        }
    }
    Value::Object(kept)
}

fn keep(from: Option<Value>, fields: &[&str]) -> Map<String, Value> {
    let Some(Value::Object(mut from)) = from else { return Map::new() };
    fields.iter().filter_map(|field| Some(((*field).to_owned(), from.remove(*field)?))).collect()
}

/// Of each object of a list these fields. What is no list stays: whoever reads it refuses it.
fn keep_each(list: Option<Value>, fields: &[&str]) -> Value {
    match list {
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|it| if it.is_object() { Value::Object(keep(Some(it), fields)) } else { it })
            .collect(),
        Some(other) => other,
        None => Value::Array(Vec::new()),
    }
}

fn pod_spec(spec: Option<Value>, node: &str) -> Value {
    let fields =
        ["nodeName", "serviceAccountName", "serviceAccount", "hostNetwork", "containers", "initContainers"];
    let mut spec = keep(spec, &fields);
    let local = spec.get("nodeName").and_then(Value::as_str) == Some(node);
    for list in ["containers", "initContainers"] {
        let Some(Value::Array(containers)) = spec.get_mut(list) else { continue };
        for container in containers {
            let fields: &[&str] = if local {
                &["name", "ports", "livenessProbe", "readinessProbe", "startupProbe"]
            } else {
                &["name", "ports"]
            };
            let mut kept = keep(Some(container.take()), fields);
            if let (false, Some(Value::Array(ports))) = (local, kept.get_mut("ports")) {
                ports.retain(|port| port.get("name").is_some());
            }
            *container = Value::Object(kept);
        }
    }
    Value::Object(spec)
}

fn pod_status(status: Option<Value>) -> Value {
    let mut status = keep(status, &["phase", "podIP", "podIPs", "conditions"]);
    if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
        let text =
            |it: &Value, name: &str| it.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        conditions.retain(|it| match text(it, "type").as_str() {
            "Ready" => true,
            // A pod without an address is told of unless this says that it starts.
            "PodReadyToStartContainers" => text(it, "status") == "False",
            _ => false,
        });
        for condition in conditions {
            // When it changed, and who looked last, is nothing that rules depend on.
            *condition = json!({ "type": text(condition, "type"), "status": text(condition, "status") });
        }
    }
    Value::Object(status)
}

#[cfg(test)]
mod tests {
    use super::trim;
    use serde_json::json;

    fn pod() -> serde_json::Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "managedFields": [{}],
                "annotations": {"a": "b", super::LAST_APPLIED: "{}"},
            },
            "spec": {
                "nodeName": "a", "serviceAccountName": "web", "volumes": [{}],
                "containers": [{
                    "name": "c", "image": "i", "env": [{"name": "PASSWORD", "value": "secret"}],
                    "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}],
                    "readinessProbe": {"tcpSocket": {"port": 80}},
                }],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "hostIP": "10.9.9.9",
                "conditions": [
                    {"type": "Ready", "status": "True", "lastProbeTime": null}, {"type": "Initialized"},
                    {"type": "PodReadyToStartContainers", "status": "True"},
                ],
            },
        })
    }

    #[test]
    fn of_a_pod_of_this_node_ports_and_probes_are_kept_and_no_secret() {
        let kept = trim(pod(), "Pod", "a");
        assert_eq!(kept["spec"]["containers"][0]["readinessProbe"]["tcpSocket"]["port"], 80);
        assert_eq!(kept["spec"]["containers"][0]["ports"].as_array().unwrap().len(), 2);
        assert_eq!(kept["status"]["conditions"], json!([{"type": "Ready", "status": "True"}]));
        let mut starting = pod();
        starting["status"]["conditions"] = json!([{"type": "PodReadyToStartContainers", "status": "False"}]);
        let said = starting["status"]["conditions"].clone();
        assert_eq!(trim(starting, "Pod", "a")["status"]["conditions"], said);
        let text = kept.to_string();
        for gone in ["secret", "volumes", "hostIP", "managedFields", "resourceVersion", "last-applied"] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
        assert_eq!(kept["metadata"]["annotations"], json!({"a": "b"}));
    }

    #[test]
    fn of_another_node_s_pod_named_ports_alone() {
        let kept = trim(pod(), "Pod", "b");
        assert_eq!(
            kept["spec"]["containers"],
            json!([{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}])
        );
    }

    #[test]
    fn of_a_slice_where_it_leads_and_nothing_that_changes_besides() {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "web-x", "namespace": "shop", "uid": "u", "generation": 4,
                "labels": {"kubernetes.io/service-name": "web", "app": "web"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
            },
            "addressType": "IPv4",
            "endpoints": [{
                "addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "a", "zone": "z",
                "targetRef": {"kind": "Pod", "name": "web", "uid": "u"}, "hints": {"forZones": [{"name": "z"}]},
            }],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}],
        });
        assert_eq!(
            trim(slice, "EndpointSlice", "a"),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": "web-x", "namespace": "shop", "uid": "u",
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "addressType": "IPv4",
                "endpoints": [{
                    "addresses": ["10.0.0.1"], "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "name": "web", "uid": "u"},
                }],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            })
        );
        let empty = json!({"kind": "EndpointSlice", "metadata": {"name": "x"}, "endpoints": null});
        assert_eq!(
            trim(empty, "EndpointSlice", "a"),
            json!({"kind": "EndpointSlice", "metadata": {"name": "x"}, "endpoints": null, "ports": []})
        );
    }

    #[test]
    fn of_a_rule_everything_but_its_status_stays() {
        let rule = json!({"apiVersion": "heddle.io/v1alpha1", "kind": "AccessRule", "metadata": {"name": "r", "namespace": "n"},
            "spec": {"action": "Deny"}, "misspelt": 1, "status": {"conditions": []}});
        let kept = trim(rule, "AccessRule", "a");
        assert_eq!(kept["spec"]["action"], "Deny");
        assert!(kept.get("misspelt").is_some() && kept.get("status").is_none(), "{kept}");
    }
}
