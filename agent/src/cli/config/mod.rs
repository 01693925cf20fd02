//! The agent's configuration: one YAML file, each field also a flag, flags first.
//!
//! [`flags`] and [`file`] say what was given, [`validate`] turns it into [`Config`] and names every field that is wrong,
//! not only the first.

mod file;
mod flags;
/// The trust domain whose bundle a file of this name is.
pub(in crate::cli) fn bundle_of(file: &str) -> Option<&str> {
    file.strip_suffix(".pem").filter(|domain| !domain.is_empty() && !domain.starts_with('.'))
}

#[cfg(test)]
mod tests;
mod validate;

pub use flags::{Flags, PlaceFlags};

use heddle_ebpf::policy::maps;
use heddle_policy::{
    Capacity, ClusterSettings, DefaultOutbound, Problem, SameNode,
    names::IdentityNaming,
    resources::{DefaultPolicy, ObjectName},
};
use ipnet::IpNet;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

fn by_name<S: serde::Serializer>(policy: &DefaultPolicy, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(policy.as_str())
}

fn displayed<S: serde::Serializer>(name: &ObjectName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

/// The effective configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The node's name, as pods' `spec.nodeName` has it.
    pub node: String,
    /// Where the resources come from.
    #[serde(flatten)]
    pub resources: Resources,
    /// Networks whose addresses are the cluster's.
    pub cluster_networks: Vec<IpNet>,
    /// The pods' own networks: an address in them that no pod has is refused.
    pub pod_networks: Vec<IpNet>,
    /// The Services' own networks: an address in them that no Service has is refused.
    pub service_networks: Vec<IpNet>,
    /// The nodes' own networks: addresses in them that are no pod's may lie in the pods' networks.
    pub node_networks: Vec<IpNet>,
    /// What holds for a port that no Server selects.
    #[serde(serialize_with = "by_name")]
    pub default_inbound_policy: DefaultPolicy,
    /// Where pods may connect outside the mesh.
    pub default_outbound: DefaultOutbound,
    /// How two meshed pods of this node speak with each other.
    pub same_node: SameNode,
    /// The trust domain at the end of every identity.
    pub trust_domain: String,
    /// The control-plane namespace inside identities.
    pub identity_namespace: String,
    /// The cluster's DNS Service, `namespace/name`.
    #[serde(serialize_with = "displayed")]
    pub dns_service: ObjectName,
    /// Where the certificate authority's key comes from.
    pub ca: Ca,
    /// The folder of other trust domains' bundles; absent: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub federation: Option<PathBuf>,
    /// After how much of its life a certificate is renewed.
    pub renew_after_percent: u64,
    /// Where the agent's socket and lock are.
    pub run_directory: PathBuf,
    /// Where bpffs is mounted.
    pub bpffs: PathBuf,
    /// The cgroup (v2) that the programs are attached to; absent: the root of the hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// After how many milliseconds without a sign of life the kernel refuses what the agent would carry.
    pub heartbeat_milliseconds: u64,
    /// The kubelet's cgroup on this node; absent: no probe passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_cgroup: Option<PathBuf>,
    /// Threads of the data plane.
    pub workers: u32,
    /// How many microseconds a worker goes on asking for the next message of a conversation before it sleeps.
    pub poll_microseconds: u64,
    /// Places in the kernel's maps, by the map's name; maps that are not named keep their usual size.
    pub capacity: BTreeMap<String, u32>,
    /// Where the plugin for the container runtime is kept installed; absent: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni: Option<Cni>,
    /// Whether the node is handed over from one agent to the next while both live; absent: a second agent is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hand_over: Option<HandOver>,
    /// Where flows are recorded; absent: nowhere (`heddle flows` follows them all the same).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_log: Option<FlowLog>,
    /// The folder of the socket at which pods ask for certificates of their own; absent: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_api: Option<PathBuf>,
    /// Whether `linkerd.io/inject: enabled` means this mesh where `heddle.io/mesh` says nothing.
    pub linkerd_inject: bool,
    /// Whether pods that run already are found by their cgroups, captured when they are to be in the mesh and let go when not.
    pub find_pods: bool,
    /// How many seconds each step takes of a pod that comes into the mesh, or leaves it, while it runs: every agent must have
    /// seen the change within one.
    pub join_step_seconds: u64,
    /// Where whoever comes is told the node's metrics; absent: they are at the agent's socket alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_address: Option<SocketAddr>,
    /// How the agent logs.
    pub log: Log,
}

/// Where the resources come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Resources {
    /// A folder of manifests.
    Manifests(PathBuf),
    /// The API server.
    Cluster(ApiServer),
}

/// How the API server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiServer {
    /// By this kubeconfig; absent: as a pod of the cluster reaches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
}

/// Where the plugin for the container runtime is kept installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cni {
    /// The runtime's plugins.
    pub plugins: PathBuf,
    /// The runtime's network configurations.
    pub networks: PathBuf,
    /// Namespaces whose pods start without the agent.
    pub exempt: Vec<String>,
}

/// How the node is handed over from one agent to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HandOver {
    /// For how many seconds the one before goes on with the connections that it has.
    pub drain_seconds: u64,
}

impl HandOver {
    /// For how long the one before goes on with the connections that it has.
    pub const fn drain(self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

/// Where flows are recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLog {
    /// The file; the one before it bears `.1`.
    pub file: PathBuf,
    /// How much the two may hold together.
    pub megabytes: u64,
}

/// Where the certificate authority's key comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Ca {
    /// From a folder, made there if it is empty. Agents of several nodes share it.
    Folder(PathBuf),
    /// Made at the start and forgotten at the end: for one node alone.
    Memory(bool),
    /// SPIRE's agent on this node, at its admin socket.
    Spire(PathBuf),
    /// An authority that is asked.
    #[serde(untagged)]
    Remote(RemoteCa),
}

/// An authority that is asked, and how it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RemoteCa {
    /// `https://HOST:PORT`.
    pub url: String,
    /// The trust anchors, in PEM.
    pub trust_bundle: PathBuf,
    /// The token by which the agent proves itself.
    pub token_file: PathBuf,
    /// The authority's own service account.
    #[serde(serialize_with = "displayed")]
    pub account: ObjectName,
}

/// How the agent logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Lines for people or for machines.
    pub format: LogFormat,
    /// What is logged: `info`, `debug`, `heddle::cluster=debug,info`, …
    pub filter: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The configuration is not taken: every problem in it.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// What is wrong, each with its field.
    pub problems: Vec<Problem>,
    /// The file's text, if it could be read: to show the lines.
    pub text: Option<String>,
}

/// The trust domains whose bundles lie in a folder, as far as it can be read: an agent tells by itself what it cannot believe.
pub fn federated_in(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten();
    let mut domains: Vec<String> = names
        .filter_map(|entry| bundle_of(&entry.ok()?.file_name().to_string_lossy()).map(str::to_owned))
        .collect();
    domains.sort();
    domains
}

/// Where an agent is on its host: what it takes to find what it left there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the agent's socket and lock are.
    pub run_directory: PathBuf,
    /// Where bpffs is mounted.
    pub bpffs: PathBuf,
    /// The cgroup that the programs are attached to; absent: the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
}

impl Place {
    /// Reads these fields alone; the rest of the file is not judged.
    ///
    /// # Errors
    /// If the file cannot be read, is no YAML, has unknown fields, or one of these values is wrong.
    pub fn load(flags: &PlaceFlags) -> Result<Self, ConfigError> {
        Given::read(flags.config.as_deref())?.judge(|name, file| validate::place(name, file, flags))
    }
}

/// The file, if one is named.
struct Given {
    name: String,
    text: Option<String>,
    file: file::File,
}

impl Given {
    fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Ok(Self { name: String::new(), text: None, file: file::File::default() });
        };
        let text =
            file::read(path).map_err(|problem| ConfigError { problems: vec![*problem], text: None })?;
        Self::parse(path, text)
    }

    fn parse(path: &Path, text: String) -> Result<Self, ConfigError> {
        match file::parse(path, &text) {
            Ok(file) => Ok(Self { name: path.display().to_string(), text: Some(text), file }),
            Err(problem) => Err(ConfigError { problems: vec![*problem], text: Some(text) }),
        }
    }

    fn judge<T>(
        self,
        judge: impl FnOnce(&str, file::File) -> Result<T, Vec<Problem>>,
    ) -> Result<T, ConfigError> {
        judge(&self.name, self.file).map_err(|problems| ConfigError { problems, text: self.text })
    }
}

impl Config {
    /// Reads the file that `flags` name, if any, and lays the flags over it.
    ///
    /// # Errors
    /// If the file cannot be read, is no YAML, has unknown fields, or any value is wrong.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let given = Given::read(flags.place.config.as_deref())?;
        given.judge(|name, file| validate::validate(name, file, flags))
    }

    /// What the file that agents share says of the cluster. Each agent is told its node and its authority by flags, so that
    /// they are not in it.
    ///
    /// # Errors
    /// As of [`Self::load`].
    pub fn shared(path: &Path, text: Option<String>) -> Result<ClusterSettings, ConfigError> {
        let given = match text {
            Some(text) => Given::parse(path, text)?,
            None => Given::read(Some(path))?,
        };
        let flags = Flags { node: Some("any".to_owned()), ca_memory: true, ..Flags::default() };
        let config = given.judge(|name, mut file| {
            file.ca = None;
            validate::validate(name, file, &flags)
        })?;
        config.cluster_settings().map_err(|error| ConfigError {
            problems: vec![Problem::new(
                heddle_policy::Severity::Error,
                &heddle_policy::Origin::default(),
                error.to_string(),
            )],
            text: None,
        })
    }

    /// The kernel tables' sizes.
    pub fn table_capacity(&self) -> Capacity {
        let default = Capacity::default();
        let size = |name: &str, default: u32| self.capacity.get(name).copied().unwrap_or(default);
        Capacity {
            workloads: size(maps::WORKLOADS, default.workloads),
            ports: size(maps::PORTS, default.ports),
            allows: size(maps::ALLOWS, default.allows),
            networks: size(maps::NETWORKS, default.networks),
            services: size(maps::SERVICES, default.services),
            backends: size(maps::BACKENDS, default.backends),
            identities: size(maps::IDENTITIES, default.identities),
            rules: size(maps::RULES, default.rules),
        }
    }

    /// What policy needs to know of it.
    ///
    /// # Errors
    /// If identities cannot be named so; [`Self::load`] has tried it.
    pub fn cluster_settings(&self) -> Result<ClusterSettings, heddle_policy::names::NameError> {
        Ok(ClusterSettings {
            cluster_networks: self.cluster_networks.clone(),
            pod_networks: self.pod_networks.clone(),
            service_networks: self.service_networks.clone(),
            node_networks: self.node_networks.clone(),
            default_inbound_policy: self.default_inbound_policy,
            default_outbound: self.default_outbound,
            same_node: self.same_node,
            naming: IdentityNaming::new(&self.identity_namespace, &self.trust_domain)?,
            dns_service: self.dns_service.clone(),
            endpoints: heddle_policy::EndpointSource::default(),
            linkerd_inject: self.linkerd_inject,
            federated: self.federated(),
        })
    }

    fn federated(&self) -> Vec<String> {
        self.federation.as_deref().map(federated_in).unwrap_or_default()
    }

    /// The configuration as a file would have it.
    ///
    /// # Errors
    /// If it cannot be written as YAML.
    pub fn to_yaml(&self) -> Result<String, String> {
        serde_saphyr::to_string(self).map_err(|error| error.to_string())
    }
}
