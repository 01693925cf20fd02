//! What is installed: the manifests that the chart renders, with a person's values in their places.
//!
//! The chart is the source, and its own rendering of its own values is in this program. A value is put where the chart
//! puts it, into the object and not into a text; a value that is not known here is refused. A test renders the same values by
//! both and compares.

use crate::cli::config::Config;
use heddle_policy::{problems::Problem, resources::read_documents};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

/// The chart's rendering.
const MANIFESTS: &str = include_str!("../../../../deploy/kubernetes/heddle.yaml");
/// Linkerd's kinds, for a cluster that nobody has brought them to.
const LINKERD: [&str; 9] = [
    include_str!("../../../../deploy/crds/linkerd/authorizationpolicies.policy.linkerd.io.yaml"),
    include_str!("../../../../deploy/crds/linkerd/egressnetworks.policy.linkerd.io.yaml"),
    include_str!("../../../../deploy/crds/linkerd/externalworkloads.workload.linkerd.io.yaml"),
    include_str!("../../../../deploy/crds/linkerd/httplocalratelimitpolicies.policy.linkerd.io.yaml"),
    include_str!("../../../../deploy/crds/linkerd/httproutes.policy.linkerd.io.yaml"),
    include_str!("../../../../deploy/crds/linkerd/meshtlsauthentications.policy.linkerd.io.yaml"),
    include_str!("../../../../deploy/crds/linkerd/networkauthentications.policy.linkerd.io.yaml"),
    include_str!("../../../../deploy/crds/linkerd/serverauthorizations.policy.linkerd.io.yaml"),
    include_str!("../../../../deploy/crds/linkerd/servers.policy.linkerd.io.yaml"),
];
/// Where everything is installed.
pub(in crate::cli) const NAMESPACE: &str = "heddle-system";
/// Longer than what a succeeded agent keeps its connections for, as in the chart.
const AFTER_DRAIN: u64 = 20;

/// A person's values: the chart's, as far as they are known here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Values {
    pub crds: Option<bool>,
    pub admission: Option<bool>,
    pub roles: Option<bool>,
    pub image: Image,
    pub agent: Agent,
    pub ca: Replicated,
    pub controller: Replicated,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Image {
    repository: Option<String>,
    tag: Option<String>,
    pull_policy: Option<PullPolicy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Agent {
    config: Map<String, Value>,
    federation_config_map: Option<String>,
    host_cgroup: Option<String>,
    priority_class_name: Option<String>,
    resources: Option<Resources>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Replicated {
    pub replicas: Option<u32>,
    priority_class_name: Option<String>,
    resources: Option<Resources>,
    network_policy: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Resources {
    requests: BTreeMap<String, Value>,
    limits: BTreeMap<String, Value>,
}

const VOLUMES: &str = "/spec/template/spec/volumes";
/// The volume of other trust domains' bundles.
const FEDERATION: &str = "federation";

/// The objects, in the order in which they are applied.
#[derive(Clone, Debug)]
pub(super) struct Bundle {
    pub objects: Vec<Value>,
    /// Linkerd's kinds.
    pub linkerd: Vec<Value>,
}

/// The kind, namespace and name of an object.
pub(super) fn words(object: &Value) -> (&str, &str, &str) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

/// `DaemonSet heddle-system/heddle`.
pub(super) fn shown(object: &Value) -> String {
    match words(object) {
        (kind, "", name) => format!("{kind} {name}"),
        (kind, namespace, name) => format!("{kind} {namespace}/{name}"),
    }
}

fn objects(texts: &[&str]) -> Vec<Value> {
    texts.iter().flat_map(|text| read_documents("", text)).map(|it| it.value).collect()
}

/// The names of Linkerd's kinds.
pub(in crate::cli) fn linkerd_kinds() -> Vec<String> {
    objects(&LINKERD).iter().map(|it| words(it).2.to_owned()).collect()
}

/// The names of what binds the admission policies.
pub(in crate::cli) fn admission_bindings() -> Vec<String> {
    let objects = objects(&[MANIFESTS]);
    let bindings = objects.iter().filter(|it| words(it).0 == "ValidatingAdmissionPolicyBinding");
    bindings.map(|it| words(it).2.to_owned()).collect()
}

/// Where the chart mounts the agents' folder.
const RUN_DIRECTORY: &str = "/run/heddle/agent";

impl Values {
    /// Reads them as YAML.
    ///
    /// # Errors
    /// It is none, or a value is not known here.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let values: Option<Self> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        Ok(values.unwrap_or_default())
    }
}

impl Bundle {
    /// With a person's values.
    ///
    /// # Errors
    /// A value that cannot be.
    pub(super) fn of(values: &Values) -> Result<Self, String> {
        let mut objects = objects(&[MANIFESTS]);
        objects.retain(|object| values.keep(object));
        for object in &mut objects {
            let known = object.clone();
            match words(&known) {
                ("ConfigMap", _, "heddle-agent") => {
                    let text = values.agent.configuration(object)?;
                    set(object, "/data", json!({ "heddle.yaml": text }));
                }
                ("DaemonSet", _, "heddle") => values.agent(object)?,
                ("Deployment", _, "heddle-ca") => {
                    values.replicated(object, &values.ca)?;
                    values.naming(object);
                }
                ("Deployment", _, "heddle-controller") => {
                    values.replicated(object, &values.controller)?;
                    values.federation(object);
                }
                _ => {}
            }
        }
        let mut linkerd = self::objects(&LINKERD);
        objects.iter_mut().chain(&mut linkerd).for_each(mark);
        Ok(Self { objects, linkerd })
    }
}

/// Says whose it is: of an object without a field of its own the API server would not know.
fn mark(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata") {
        metadata["labels"]["app.kubernetes.io/managed-by"] = "heddle".into();
    }
}

/// A list in an object, and which of its entries bears a name.
fn named<'a>(object: &'a mut Value, list: &str, name: &str) -> Option<(&'a mut Vec<Value>, usize)> {
    let entries = object.pointer_mut(list)?.as_array_mut()?;
    let at = entries.iter().position(|it| it.get("name").and_then(Value::as_str) == Some(name))?;
    Some((entries, at))
}

/// Writes where something is already.
fn set(object: &mut Value, pointer: &str, value: Value) {
    if let Some(place) = object.pointer_mut(pointer) {
        *place = value;
    }
}

impl Values {
    fn keep(&self, object: &Value) -> bool {
        let on = |value: Option<bool>| value.unwrap_or(true);
        match words(object) {
            ("CustomResourceDefinition", ..) => on(self.crds),
            ("ValidatingAdmissionPolicy" | "ValidatingAdmissionPolicyBinding", ..) => on(self.admission),
            ("ClusterRole", _, "heddle-viewer" | "heddle-tenant-editor" | "heddle-security-admin") => {
                on(self.roles)
            }
            ("NetworkPolicy", _, "heddle-ca") => on(self.ca.network_policy),
            (kind, _, "heddle-controller" | "heddle-controller-reads") => {
                self.controller.replicas != Some(0)
                    && (kind != "NetworkPolicy" || on(self.controller.network_policy))
            }
            _ => true,
        }
    }

    fn container(&self, object: &mut Value, resources: Option<&Resources>) {
        const CONTAINER: &str = "/spec/template/spec/containers/0";
        let at = |field: &str| format!("{CONTAINER}/{field}");
        let image = object.pointer(&at("image")).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (repository, tag) = image.split_once(':').unwrap_or((&image, ""));
        let tag = self.image.tag.as_deref().filter(|it| !it.is_empty()).unwrap_or(tag);
        let repository = self.image.repository.as_deref().unwrap_or(repository);
        set(object, &at("image"), format!("{repository}:{tag}").into());
        if let Some(policy) = self.image.pull_policy {
            set(object, &at("imagePullPolicy"), format!("{policy:?}").into());
        }
        if let Some(resources) = resources {
            let known = object.pointer(&at("resources")).cloned().unwrap_or_else(|| json!({}));
            set(object, &at("resources"), resources.over(known));
        }
    }

    fn agent(&self, object: &mut Value) -> Result<(), String> {
        self.container(object, self.agent.resources.as_ref());
        let text = self.agent.configuration_of_the_chart()?;
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let mark = format!("{:016x}", hasher.finish());
        set(object, "/spec/template/metadata/annotations", json!({ "heddle.io/configuration": mark }));
        let drain = self.agent.config.get("handOver").and_then(|it| it.get("drainSeconds"));
        if let Some(drain) = drain {
            let drain =
                drain.as_u64().ok_or("agent.config.handOver.drainSeconds: is no number of seconds")?;
            let grace = drain.saturating_add(AFTER_DRAIN);
            set(object, "/spec/template/spec/terminationGracePeriodSeconds", grace.into());
        }
        if let Some(class) = &self.agent.priority_class_name {
            set(object, "/spec/template/spec/priorityClassName", class.clone().into());
        }
        const MOUNTS: &str = "/spec/template/spec/containers/0/volumeMounts";
        if let Some((volumes, at)) = named(object, VOLUMES, "cgroup")
            && let (Some(volume), Some(cgroup)) = (volumes.get_mut(at), &self.agent.host_cgroup)
        {
            set(volume, "/hostPath/path", cgroup.clone().into());
        }
        self.federation(object);
        if let Some(folder) = self.agent.config.get("workloadApi") {
            let folder = folder
                .as_str()
                .filter(|it| it.starts_with('/') && !it.starts_with("//") && it.len() > 1)
                .ok_or("agent.config.workloadApi: is no absolute path of a folder")?;
            for (list, entry) in [
                (MOUNTS, json!({"name": "workloads", "mountPath": folder})),
                (
                    VOLUMES,
                    json!({"name": "workloads", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}),
                ),
            ] {
                let (entries, at) =
                    named(object, list, FEDERATION).ok_or("the chart mounts no federation")?;
                entries.insert(at + 1, entry);
            }
        }
        Ok(())
    }

    /// The authority certifies the identities that the agents ask for.
    fn naming(&self, object: &mut Value) {
        let arguments =
            object.pointer_mut("/spec/template/spec/containers/0/args").and_then(Value::as_array_mut);
        let Some(arguments) = arguments else { return };
        for (field, flag) in
            [("trustDomain", "--trust-domain"), ("identityNamespace", "--identity-namespace")]
        {
            if let Some(name) = self.agent.config.get(field).and_then(Value::as_str) {
                arguments.push(format!("{flag}={name}").into());
            }
        }
    }

    /// Whom the agents believe, the controller must know, too.
    fn federation(&self, object: &mut Value) {
        if let Some((volumes, at)) = named(object, VOLUMES, FEDERATION)
            && let (Some(volume), Some(map)) = (volumes.get_mut(at), &self.agent.federation_config_map)
        {
            set(volume, "/configMap/name", map.clone().into());
        }
    }

    fn replicated(&self, object: &mut Value, values: &Replicated) -> Result<(), String> {
        self.container(object, values.resources.as_ref());
        if let Some(class) = &values.priority_class_name {
            set(object, "/spec/template/spec/priorityClassName", class.clone().into());
        }
        match values.replicas {
            Some(0) => return Err("ca.replicas: at least one is needed".to_owned()),
            Some(replicas) => set(object, "/spec/replicas", replicas.into()),
            None => {}
        }
        Ok(())
    }
}

impl Resources {
    /// Each quantity over the chart's.
    fn over(&self, mut known: Value) -> Value {
        for (sort, quantities) in [("requests", &self.requests), ("limits", &self.limits)] {
            for (name, quantity) in quantities {
                known[sort][name] = quantity.clone();
            }
        }
        known
    }
}

impl Agent {
    fn configuration_of_the_chart(&self) -> Result<String, String> {
        let chart = objects(&[MANIFESTS]);
        let map = chart.iter().find(|it| matches!(words(it), ("ConfigMap", _, "heddle-agent")));
        self.configuration(map.ok_or("the chart has no ConfigMap heddle-agent")?)
    }

    /// The agents' file, with what is given over what the chart says.
    fn configuration(&self, map: &Value) -> Result<String, String> {
        if self.config.contains_key("ca") {
            return Err("agent.config.ca: another issuer than Heddle's authority is installed by Helm alone"
                .to_owned());
        }
        if self.config.get("runDirectory").is_some_and(|it| it != RUN_DIRECTORY) {
            return Err(format!(
                "agent.config.runDirectory: the chart's agents run in {RUN_DIRECTORY}: leave it out"
            ));
        }
        let text = map.pointer("/data/heddle.yaml").and_then(Value::as_str).unwrap_or_default();
        let mut config = objects(&[text]).pop().unwrap_or_else(|| json!({}));
        for (field, value) in &self.config {
            merge(&mut config[field], value);
        }
        let text = serde_saphyr::to_string(&config).map_err(|error| error.to_string())?;
        // What agents would refuse when they start is refused here.
        let judged = Config::shared(Path::new("agent.config"), Some(text.clone()));
        judged.map(|_| text).map_err(|error| error.problems.iter().map(told).collect::<Vec<_>>().join("; "))
    }
}

/// A problem of the agents' configuration. Its lines are of no file of anybody's.
fn told(problem: &Problem) -> String {
    let Problem { field, reason, remedy, .. } = problem;
    let place = if field.is_empty() { "agent.config".to_owned() } else { format!("agent.config.{field}") };
    format!("{place}: {reason}: {remedy}")
}

/// As Helm does: objects field by field, everything else as a whole.
fn merge(known: &mut Value, given: &Value) {
    match (known, given) {
        (Value::Object(known), Value::Object(given)) => {
            for (field, value) in given {
                merge(known.entry(field.clone()).or_insert(Value::Null), value);
            }
        }
        (known, given) => *known = given.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(bundle: &'a Bundle, kind: &str, name: &str) -> Option<&'a Value> {
        bundle.objects.iter().find(|it| (words(it).0, words(it).2) == (kind, name))
    }

    #[test]
    fn the_chart_s_own_rendering_is_taken_whole() {
        let bundle = Bundle::of(&Values::default()).unwrap();
        let documents = MANIFESTS.split("\n---").skip(1).filter(|it| it.contains("\nkind: ")).count();
        assert_eq!(bundle.objects.len(), documents);
        assert_eq!(bundle.linkerd.len(), LINKERD.len());
        assert!(bundle.objects.iter().chain(&bundle.linkerd).all(|it| !words(it).2.is_empty()));
    }

    #[test]
    fn nothing_is_written_that_another_reader_of_yaml_takes_for_something_else() {
        let octal =
            |it: &str| it.len() > 1 && it.starts_with('0') && it.bytes().all(|it| it.is_ascii_digit());
        let loose = |it: &str| octal(it) || ["yes", "no", "on", "off", "y", "n"].contains(&it);
        for line in MANIFESTS.lines().chain(LINKERD.iter().flat_map(|it| it.lines())) {
            let line = line.split(" #").next().unwrap_or_default();
            let values = line.split([',', '{', '}', '[', ']']).filter_map(|it| it.split(": ").nth(1));
            for value in values.map(str::trim) {
                assert!(!loose(value), "{value}: {line}");
            }
        }
        assert!(loose("0440") && loose("on") && !loose("440") && !loose("0"), "control");
    }

    #[test]
    fn values_are_put_where_the_chart_puts_them() {
        let values = Values::read(
            "image: {repository: registry.example/heddle, tag: '2', pullPolicy: Never}\n\
             agent:\n  hostCgroup: /run/cgroup\n  resources: {requests: {memory: 1Gi}}\n  \
             config: {podNetworks: [10.1.0.0/16], handOver: {drainSeconds: 9}, cni: {exempt: [kube-system]}}\n\
             ca: {replicas: 3, networkPolicy: false}\ncontroller: {replicas: 0}\nroles: false\n",
        )
        .unwrap();
        let bundle = Bundle::of(&values).unwrap();
        let agents = find(&bundle, "DaemonSet", "heddle").unwrap();
        let container = &agents["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.example/heddle:2");
        assert_eq!(container["imagePullPolicy"], "Never");
        assert_eq!(container["resources"]["requests"], json!({"cpu": "100m", "memory": "1Gi"}));
        assert_eq!(agents["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 29);
        assert!(agents.to_string().contains("\"path\":\"/run/cgroup\""));
        let config = find(&bundle, "ConfigMap", "heddle-agent").unwrap()["data"]["heddle.yaml"].to_string();
        for said in ["10.1.0.0/16", "drainSeconds: 9", "exempt", "serviceNetworks", "10.96.0.0/12"] {
            assert!(config.contains(said), "{said}: {config}");
        }
        assert!(!config.contains("10.244.0.0"), "a list is taken as a whole: {config}");
        assert_eq!(find(&bundle, "Deployment", "heddle-ca").unwrap()["spec"]["replicas"], 3);
        assert!(find(&bundle, "NetworkPolicy", "heddle-ca").is_none());
        assert!(!bundle.objects.iter().any(|it| words(it).2.starts_with("heddle-controller")));
        assert!(find(&bundle, "ClusterRole", "heddle-viewer").is_none());

        let mark = |bundle: &Bundle| {
            find(bundle, "DaemonSet", "heddle").unwrap()["spec"]["template"]["metadata"]["annotations"]
                .clone()
        };
        assert_ne!(mark(&bundle), mark(&Bundle::of(&Values::default()).unwrap()), "agents start anew");
    }

    #[test]
    fn a_value_that_is_not_known_here_is_refused() {
        for (wrong, named) in [
            ("agents: {}", "agents"),
            ("ca: {replicas: two}", "replicas"),
            ("ca: {metricsFrom: []}", "metricsFrom"),
            ("image: {pullPolicy: Perhaps}", "Perhaps"),
            ("agent: {resources: {request: {}}}", "request"),
        ] {
            let error = Values::read(wrong).unwrap_err();
            assert!(error.contains(named), "{wrong}: {error}");
        }
        assert_eq!(Values::read("# nothing\n").unwrap(), Values::default());
        let relative = Values::read("agent: {config: {workloadApi: run}}").unwrap();
        assert!(Bundle::of(&relative).unwrap_err().contains("workloadApi"));
        for (wrong, named) in
            [("ca: {spire: {socket: /x}}", "agent.config.ca"), ("runDirectory: /run/x", "runDirectory")]
        {
            let values = Values::read(&format!("agent: {{config: {{{wrong}}}}}")).unwrap();
            assert!(Bundle::of(&values).unwrap_err().contains(named), "{wrong}");
        }
        // What the chart's schema or the agents refuse when they start.
        for (wrong, named) in [
            ("workers: 0", "agent.config.workers: "),
            ("workers: 1000", "agent.config.workers: "),
            ("capacity: {everything: 5}", "agent.config.capacity.everything: "),
            ("capacity: {pods: 99999999999}", "agent.config.capacity.pods: "),
            ("podNetworks: [10.0.0.1/8]", "agent.config.podNetworks[0]: "),
            ("defaultOutbond: deny", "defaultOutbond"),
            ("trustDomain: Upper", "agent.config.trustDomain: "),
        ] {
            let values = Values::read(&format!("agent: {{config: {{{wrong}}}}}")).unwrap();
            let said = Bundle::of(&values).unwrap_err();
            assert!(said.contains(named), "{wrong}: {said}");
        }
        let sound = Values::read("agent: {config: {workers: 2}}").unwrap();
        assert!(Bundle::of(&sound).is_ok(), "the control");
        let none = Values::read("ca: {replicas: 0}").unwrap();
        assert!(Bundle::of(&none).unwrap_err().contains("ca.replicas"));
    }
}
