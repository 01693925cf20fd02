//! The agent's configuration: one YAML file, each field also a flag, flags first.
//!
//! [`flags`] and [`file`] say what was given, [`validate`] turns it into [`Config`] and names every field that is wrong,
//! not only the first.

mod file;
mod flags;
#[cfg(test)]
mod tests;
mod validate;

pub use flags::Flags;

use heddle_policy::{
    ClusterSettings, DefaultOutbound, Problem, SameNode,
    names::IdentityNaming,
    resources::{DefaultPolicy, ObjectName},
};
use ipnet::IpNet;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
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
    /// The folder of manifests.
    pub manifests: PathBuf,
    /// Networks whose addresses are the cluster's.
    pub cluster_networks: Vec<IpNet>,
    /// The pods' own networks: an address in them that no pod has is refused.
    pub pod_networks: Vec<IpNet>,
    /// The Services' own networks: an address in them that no Service has is refused.
    pub service_networks: Vec<IpNet>,
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
    /// Places in the kernel's maps, by the map's name; maps that are not named keep the programs' own size.
    pub capacity: BTreeMap<String, u32>,
    /// How the agent logs.
    pub log: Log,
}

/// Where the certificate authority's key comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Ca {
    /// From a folder, made there if it is empty. Agents of several nodes share it.
    Folder(PathBuf),
    /// Made at the start and forgotten at the end: for one node alone.
    Memory(bool),
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

impl Config {
    /// Reads the file that `flags` name, if any, and lays the flags over it.
    ///
    /// # Errors
    /// If the file cannot be read, is no YAML, has unknown fields, or any value is wrong.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        match &flags.config {
            None => Self::from_parts(None, flags),
            Some(path) => {
                let text = file::read(path)
                    .map_err(|problem| ConfigError { problems: vec![problem], text: None })?;
                Self::from_parts(Some((path, &text)), flags)
            }
        }
    }

    fn from_parts(file: Option<(&Path, &str)>, flags: &Flags) -> Result<Self, ConfigError> {
        let error = |problems| ConfigError { problems, text: file.map(|(_, text)| text.to_owned()) };
        let (name, given) = match file {
            None => (String::new(), file::File::default()),
            Some((path, text)) => {
                (path.display().to_string(), file::parse(path, text).map_err(|problem| error(vec![problem]))?)
            }
        };
        validate::validate(&name, given, flags).map_err(error)
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
            default_inbound_policy: self.default_inbound_policy,
            default_outbound: self.default_outbound,
            same_node: self.same_node,
            naming: IdentityNaming::new(&self.identity_namespace, &self.trust_domain)?,
            dns_service: self.dns_service.clone(),
        })
    }

    /// The configuration as a file would have it.
    ///
    /// # Errors
    /// If it cannot be written as YAML.
    pub fn to_yaml(&self) -> Result<String, String> {
        serde_saphyr::to_string(self).map_err(|error| error.to_string())
    }
}
