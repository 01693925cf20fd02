//! ServiceProfiles and TrafficSplits: named one by one, with the routes and annotations that say the same.

use crate::cli::policy::picture::Picture;
use heddle_policy::{
    Problem, Severity,
    resources::{Document, ObjectName, Transport},
};
use serde_json::{Map, Value, json};

/// Groups of the older kinds.
const PROFILES: &str = "linkerd.io/";
const SPLITS: &str = "split.smi-spec.io/";

/// A resource of an older kind, and what to write in its place.
pub(super) struct Legacy {
    pub problem: Problem,
    /// YAML.
    pub equivalent: String,
}

/// Every ServiceProfile and TrafficSplit.
pub(super) fn look(picture: &Picture) -> Vec<Legacy> {
    picture
        .documents
        .iter()
        .filter_map(|document| {
            let (group, kind) = (document.text("/apiVersion"), document.text("/kind"));
            match kind {
                "ServiceProfile" if group.starts_with(PROFILES) => Some(profile(document, picture)),
                "TrafficSplit" if group.starts_with(SPLITS) => Some(split(document, picture)),
                _ => None,
            }
        })
        .collect()
}

/// A route, as far as it is known.
struct Route {
    name: String,
    namespace: String,
    service: ObjectName,
    matches: Vec<Value>,
    backends: Vec<(String, u64)>,
    annotations: Map<String, Value>,
    timeout: Option<String>,
}

impl Route {
    fn manifest(&self, picture: &Picture) -> Value {
        let mut parent = json!({"group": "", "kind": "Service", "name": self.service.name});
        let port = only_port(picture, &self.service);
        put(&mut parent, "port", port);
        if self.service.namespace != self.namespace {
            put(&mut parent, "namespace", Some(&self.service.namespace));
        }
        let mut rule = Map::new();
        if !self.matches.is_empty() {
            rule.insert("matches".into(), self.matches.clone().into());
        }
        let own = [(self.service.name.clone(), 1)];
        let backends = if self.backends.is_empty() { &own[..] } else { &self.backends };
        let backends: Vec<Value> = backends
            .iter()
            .map(|(name, weight)| {
                let mut backend = json!({"name": name});
                put(&mut backend, "weight", (backends.len() > 1).then_some(weight));
                let service = ObjectName::new(&*self.namespace, &**name);
                put(&mut backend, "port", only_port(picture, &service).or(port));
                backend
            })
            .collect();
        rule.insert("backendRefs".into(), backends.into());
        if let Some(timeout) = &self.timeout {
            rule.insert("timeouts".into(), json!({"request": timeout}));
        }
        let mut metadata = json!({"name": self.name, "namespace": self.namespace});
        if !self.annotations.is_empty() {
            put(&mut metadata, "annotations", Some(&self.annotations));
        }
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata,
            "spec": {"parentRefs": [parent], "rules": [rule]},
        })
    }
}

fn put(object: &mut Value, key: &str, value: Option<impl serde::Serialize>) {
    if let (Some(object), Some(Ok(value))) = (object.as_object_mut(), value.map(serde_json::to_value)) {
        object.insert(key.to_owned(), value);
    }
}

/// The one TCP port of a Service; `None`: it is not known, or there are several.
fn only_port(picture: &Picture, service: &ObjectName) -> Option<u16> {
    let ports = &picture.service(service)?.ports;
    let mut tcp = ports.iter().filter(|port| port.transport == Transport::Tcp);
    match (tcp.next(), tcp.next()) {
        (Some(port), None) => Some(port.port),
        _ => None,
    }
}

fn yaml(routes: &[Route], notes: &[String], picture: &Picture) -> String {
    let mut out: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    let unknown = |route: &Route| only_port(picture, &route.service).is_none();
    if routes.iter().any(unknown) {
        out += "# Add `port` to parentRefs and backendRefs: the Service's port is not known here.\n";
    }
    for route in routes {
        out += "---\n";
        out += &serde_saphyr::to_string(&route.manifest(picture)).unwrap_or_default();
    }
    out
}

/// A name that Kubernetes takes, of whatever text.
fn slug(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.truncate(40);
    out.trim_end_matches('-').to_owned()
}

fn profile(document: &Document, picture: &Picture) -> Legacy {
    let host = document.text("/metadata/name");
    let mut labels = host.split('.');
    let service = labels.next().unwrap_or_default();
    let namespace = labels.next().unwrap_or(document.namespace());
    let target = ObjectName::new(namespace, service);
    let mut notes = vec![format!("Instead of ServiceProfile {}/{host}:", document.namespace())];
    let mut routes = Vec::new();
    let written = document.value.pointer("/spec/routes").and_then(Value::as_array);
    for (i, given) in written.into_iter().flatten().enumerate() {
        let text = |field: &str| given.pointer(field).and_then(Value::as_str).unwrap_or_default();
        let name = match slug(text("/name")) {
            slug if slug.is_empty() => format!("{service}-{i}"),
            slug => format!("{service}-{slug}"),
        };
        let mut route = Route {
            name,
            namespace: document.namespace().to_owned(),
            service: target.clone(),
            matches: Vec::new(),
            backends: overrides(document),
            annotations: Map::new(),
            timeout: (!text("/timeout").is_empty()).then(|| text("/timeout").to_owned()),
        };
        match given.get("condition").map(matches) {
            Some(Some(matches)) => route.matches = matches,
            // Without matches it would be a route for every request.
            Some(None) => {
                notes.push(format!(
                    "Route {:?} is missing: no HTTPRoute can say its condition (`not`, or `all` of several). Write one by hand.",
                    text("/name")
                ));
                continue;
            }
            None => {}
        }
        if given.get("isRetryable").and_then(Value::as_bool) == Some(true) {
            route.annotations.insert("retry.linkerd.io/http".into(), "5xx".into());
            route.annotations.insert("retry.linkerd.io/limit".into(), "1".into());
        }
        if given.get("responseClasses").is_some() {
            notes.push(format!(
                "Route {:?} has responseClasses: what counts as failure is 5xx, and gRPC's codes of the same meaning.",
                text("/name")
            ));
        }
        routes.push(route);
    }
    let written = routes.len();
    if written > 0 || !overrides(document).is_empty() {
        // Once a Service has routes, a request that none of them matches has none: the profile let it pass.
        routes.push(Route {
            name: format!("{service}-others"),
            namespace: document.namespace().to_owned(),
            service: target,
            matches: vec![json!({"path": {"type": "PathPrefix", "value": "/"}})],
            backends: overrides(document),
            annotations: Map::new(),
            timeout: None,
        });
    }
    if let Some(ratio) = document.value.pointer("/spec/retryBudget/retryRatio") {
        notes.push(format!(
            "retryBudget: retries may be 20 % of the requests at most, whatever the profile says ({ratio})."
        ));
    }
    let reason = format!(
        "ServiceProfiles are not in force: the {written} routes of {host}, their retries and timeouts do not exist"
    );
    Legacy {
        problem: document
            .problem(Severity::Error, "kind", reason)
            .remedy("write HTTPRoutes with annotations in its place; what they would be is shown with this"),
        equivalent: yaml(&routes, &notes, picture),
    }
}

/// The services that a profile's `dstOverrides` lead to.
fn overrides(document: &Document) -> Vec<(String, u64)> {
    let given = document.value.pointer("/spec/dstOverrides").and_then(Value::as_array);
    let of = |it: &Value| {
        let authority = it.get("authority").and_then(Value::as_str)?;
        let service = authority.split(['.', ':']).next()?;
        Some((service.to_owned(), weight(it.get("weight")?)?))
    };
    given.into_iter().flatten().filter_map(of).collect()
}

/// The matches of a profile's condition; `None`: no list of matches says the same.
fn matches(condition: &Value) -> Option<Vec<Value>> {
    if let Some(any) = condition.get("any").and_then(Value::as_array) {
        let each: Option<Vec<_>> = any.iter().map(matches).collect();
        return each.map(|each| each.into_iter().flatten().collect());
    }
    if condition.get("not").is_some() {
        return None;
    }
    if let Some(all) = condition.get("all").and_then(Value::as_array) {
        let mut one = Map::new();
        for part in all {
            let [Value::Object(part)] = <[Value; 1]>::try_from(matches(part)?).ok()? else { return None };
            for (key, value) in part {
                if one.insert(key, value).is_some() {
                    return None;
                }
            }
        }
        return Some(vec![one.into()]);
    }
    let mut one = Map::new();
    if let Some(method) = condition.get("method") {
        one.insert("method".into(), method.clone());
    }
    if let Some(path) = condition.get("pathRegex") {
        one.insert("path".into(), json!({"type": "RegularExpression", "value": path}));
    }
    Some(vec![one.into()])
}

/// A weight: a number, or a quantity such as `500m`.
fn weight(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.strip_suffix('m').unwrap_or(text).parse().ok(),
        _ => None,
    }
}

fn split(document: &Document, picture: &Picture) -> Legacy {
    let (name, service) = (document.text("/metadata/name"), document.text("/spec/service"));
    let service = service.split('.').next().unwrap_or_default();
    let given = document.value.pointer("/spec/backends").and_then(Value::as_array);
    let backend = |it: &Value| {
        Some((it.get("service")?.as_str()?.to_owned(), it.get("weight").and_then(weight).unwrap_or(0)))
    };
    let backends: Vec<_> = given.into_iter().flatten().filter_map(backend).collect();
    let mut notes = vec![format!("Instead of TrafficSplit {}/{name}:", document.namespace())];
    if document.value.pointer("/spec/matches").is_some() {
        notes.push("It refers to HTTPRouteGroups (spec.matches): write their matches into the rule.".into());
    }
    let reason = format!(
        "TrafficSplits are not in force: {service} is not divided over {}",
        backends.iter().map(|(name, weight)| format!("{name} ({weight})")).collect::<Vec<_>>().join(", ")
    );
    let route = Route {
        name: name.to_owned(),
        namespace: document.namespace().to_owned(),
        service: ObjectName::new(document.namespace(), service),
        matches: Vec::new(),
        backends,
        annotations: Map::new(),
        timeout: None,
    };
    Legacy {
        problem: document.problem(Severity::Error, "kind", reason).remedy(
            "write an HTTPRoute with weighted backendRefs in its place; what it would be is shown with this",
        ),
        equivalent: yaml(&[route], &notes, picture),
    }
}
