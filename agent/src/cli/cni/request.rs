//! What the container runtime asks for: CNI's specification, versions 0.3.1 to 1.1.0, which are alike in what matters here.

use super::attachments::Attachment;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// The versions of the specification.
pub(super) const SUPPORTED: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The capability by which the runtime passes on what a pod is annotated with.
pub(super) const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// An error as the specification has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub code: u32,
    pub message: String,
    pub details: String,
}

impl Fault {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    pub(super) fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// In the version that the request was made in.
    pub(super) fn to_json(&self, request: &str) -> Value {
        let version =
            serde_json::from_str::<Value>(request).ok().and_then(|it| it.get("cniVersion").cloned());
        // What the kubelet shows of an event is the message alone.
        let message = match self.details.as_str() {
            "" => self.message.clone(),
            details => format!("{} ({details})", self.message),
        };
        json!({ "cniVersion": version.unwrap_or_else(|| "1.1.0".into()), "code": self.code, "msg": message, "details": self.details })
    }
}

/// The plugin's configuration, and what the plugins before it did.
#[derive(Debug)]
pub(super) struct Config {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Namespaces whose pods start without the agent.
    pub exempt: Vec<String>,
    /// What the plugin before gave the pod.
    pub previous: Option<Value>,
    /// What the pod is annotated with, as the runtime wrote it; none: it does not tell.
    pub annotations: Option<Value>,
    /// The attachments that are in use, for `GC`; none: it does not tell.
    pub valid: Option<BTreeSet<Attachment>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    cni_version: String,
    socket: Option<PathBuf>,
    #[serde(default)]
    exempt: Vec<String>,
    prev_result: Option<Value>,
    #[serde(default)]
    runtime_config: BTreeMap<String, Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<BTreeSet<Attachment>>,
}

impl Config {
    pub(super) fn read(text: &str) -> Result<Self, Fault> {
        let written: Written = serde_json::from_str(text)
            .map_err(|error| Fault::new(6, format!("the configuration cannot be read: {error}")))?;
        if !SUPPORTED.contains(&written.cni_version.as_str()) {
            let message = format!("version {:?} of CNI is not known here", written.cni_version);
            return Err(Fault::new(1, message).details(format!("known are {}", SUPPORTED.join(", "))));
        }
        Ok(Self {
            socket: written.socket.unwrap_or_else(|| Path::new("/run/heddle/agent.sock").to_owned()),
            exempt: written.exempt,
            previous: written.prev_result,
            annotations: written.runtime_config.get(ANNOTATIONS).cloned(),
            valid: written.valid_attachments,
        })
    }

    /// The pod's addresses, as the plugins before gave them.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, Fault> {
        let listed = self.previous.as_ref().and_then(|it| it.get("ips")).and_then(Value::as_array);
        let mut found = Vec::new();
        for entry in listed.into_iter().flatten() {
            let text = entry.get("address").and_then(Value::as_str).unwrap_or_default();
            let address: IpAddr = text.split('/').next().unwrap_or_default().parse().map_err(|_| {
                Fault::new(7, format!("prevResult gives the pod {text:?}, which is no address"))
            })?;
            if !found.contains(&address) {
                found.push(address);
            }
        }
        if found.is_empty() {
            return Err(Fault::new(7, "prevResult gives the pod no address")
                .details("chain this plugin after the one that gives pods their network"));
        }
        Ok(found)
    }
}

/// A pod, as the kubelet names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is asked for whom.
#[derive(Debug)]
pub(super) struct Request {
    /// By which the runtime knows it.
    pub attachment: Attachment,
    netns: Option<String>,
    /// None: not one of Kubernetes' sandboxes.
    pub pod: Option<Pod>,
}

impl Request {
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Fault> {
        let given = |name: &str| {
            variable(name)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| Fault::new(4, format!("{name} is missing")))
        };
        let attachment = Attachment { container: given("CNI_CONTAINERID")?, interface: given("CNI_IFNAME")? };
        let arguments = variable("CNI_ARGS").unwrap_or_default();
        let arguments: BTreeMap<&str, &str> =
            arguments.split(';').filter_map(|pair| pair.split_once('=')).collect();
        let named =
            |key: &str| arguments.get(key).filter(|value| !value.is_empty()).map(|it| (*it).to_owned());
        let pod = match (named("K8S_POD_NAMESPACE"), named("K8S_POD_NAME"), named("K8S_POD_UID")) {
            (Some(namespace), Some(name), Some(uid)) => Some(Pod { namespace, name, uid }),
            _ => None,
        };
        Ok(Self { attachment, netns: variable("CNI_NETNS").filter(|path| !path.is_empty()), pod })
    }

    /// The sandbox's network namespace, under the one path that everybody knows it by: /var/run leads to /run.
    pub(super) fn netns(&self) -> Result<PathBuf, Fault> {
        let given = self.netns.as_deref().ok_or_else(|| Fault::new(4, "CNI_NETNS is missing"))?;
        let path = Path::new(given);
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        Ok(match (folder, path.file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => path.to_owned(),
        })
    }
}
