//! What is said at the door.

use crate::cluster::{folder::FolderStatus, kubernetes::ClusterStatus, snapshot::Publication};
use heddle_policy::{
    ClusterSettings, DefaultOutbound, SameNode, Standing, WorkloadInfo,
    names::{IdentityNaming, check_dns_name},
    problems::Problem,
    resources::ObjectName,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, str::FromStr};
use time::{OffsetDateTime, serde::rfc3339};

/// A pod's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name in it.
    pub name: String,
}

impl PodName {
    /// Checks both parts.
    ///
    /// # Errors
    /// Says which part is no name and why.
    pub fn new(namespace: &str, name: &str) -> Result<Self, AttachError> {
        for (field, value) in [("namespace", namespace), ("name", name)] {
            check_dns_name(value).map_err(|error| {
                AttachError::new(AttachErrorCode::BadRequest, format!("`{value}` is no {field}: {error}"))
                    .field(field)
                    .remedy("name the pod as Kubernetes does")
            })?;
        }
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for PodName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = text.split_once('/').ok_or("write the pod as namespace/name")?;
        Self::new(namespace, name).map_err(|error| error.message)
    }
}

/// A pod is to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// Which pod.
    pub pod: PodName,
    /// Its network namespace: an absolute path such as `/run/netns/x` or `/proc/123/ns/net`.
    pub netns: PathBuf,
    /// What the container runtime knows of a pod that starts.
    pub sandbox: Option<SandboxRequest>,
}

/// What the container runtime knows of a pod that starts, before the API server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxRequest {
    /// The pod's UID.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Whether a pod's capture is in force is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckRequest {
    /// Which pod.
    pub pod: PodName,
    /// In which network namespace it is to be captured, if that matters.
    pub netns: Option<PathBuf>,
}

/// A pod is to be let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachRequest {
    /// Which pod.
    pub pod: PodName,
    /// Only if it is captured in this network namespace.
    pub netns: Option<PathBuf>,
}

/// The request's JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttachBody {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) netns: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) addresses: Vec<IpAddr>,
}

/// The query of a check or a detachment.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetnsQuery {
    pub(crate) netns: Option<PathBuf>,
}

impl TryFrom<AttachBody> for AttachRequest {
    type Error = AttachError;
    fn try_from(body: AttachBody) -> Result<Self, AttachError> {
        let pod = PodName::new(&body.namespace, &body.name)?;
        // The kernel map that a restarted agent finds the namespace by holds 127 bytes.
        if !body.netns.is_absolute() || body.netns.as_os_str().len() > 127 {
            let reason = format!("`{}` is no absolute path of at most 127 bytes", body.netns.display());
            let error = AttachError::new(AttachErrorCode::BadRequest, reason).field("netns");
            return Err(error.remedy("name the pod's network namespace, such as /run/netns/x"));
        }
        let sandbox = match (body.uid, body.addresses) {
            (None, addresses) if addresses.is_empty() => None,
            (Some(uid), addresses) if !uid.is_empty() && (1..=8).contains(&addresses.len()) => {
                Some(SandboxRequest { uid, addresses })
            }
            _ => {
                let reason = "a pod that starts has a UID and one to eight addresses, both or neither";
                let error = AttachError::new(AttachErrorCode::BadRequest, reason).field("uid");
                return Err(error.remedy("send `uid` and `addresses`, or leave both out"));
            }
        };
        Ok(Self { pod, netns: body.netns, sandbox })
    }
}

/// A pod is captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses, as its network namespace and the snapshot have them.
    pub addresses: Vec<IpAddr>,
    /// Its identity.
    pub identity: String,
    /// The generation of the rules that were in force when it was attached.
    pub generation: u64,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $status:literal;)+) => {
        /// What kind of error it is: stable, for programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum AttachErrorCode { $($(#[doc = $doc])+ $name,)+ }

        impl AttachErrorCode {
            /// As it stands in the answer.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The answer's HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }
        }
    };
}

codes! {
    /// The request is malformed.
    BadRequest = "bad_request", 400;
    /// The snapshot has no such pod, or it is not captured.
    UnknownPod = "unknown_pod", 404;
    /// The pod runs on another node.
    NotOnThisNode = "not_on_this_node", 409;
    /// The pod is not meshed: there is nothing to attach.
    NotMeshed = "not_meshed", 409;
    /// Who the pod is cannot be told: another claims its address, it has none, or its name makes no identity.
    InDoubt = "in_doubt", 409;
    /// The path names no network namespace.
    NoNamespace = "no_namespace", 400;
    /// The network namespace is attached to another pod.
    NamespaceTaken = "namespace_taken", 409;
    /// The network namespace is the host's own.
    HostNamespace = "host_namespace", 403;
    /// The pod is in the mesh, and it is not captured, or not wholly, or in another network namespace.
    NotCaptured = "not_captured", 409;
    /// The pod is attached with another network namespace.
    PodTaken = "pod_taken", 409;
    /// The namespace's addresses are not the pod's.
    AddressesDiffer = "addresses_differ", 409;
    /// The namespace has no veth to the host, or more than one way out.
    NoVeth = "no_veth", 409;
    /// The node holds as many pods as it can.
    Full = "full", 503;
    /// No rules are in force yet.
    NotReady = "not_ready", 503;
    /// The kernel refused.
    Kernel = "kernel", 500;
    /// It took too long.
    TimedOut = "timed_out", 504;
}

/// Why a pod was not attached or detached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AttachError {
    /// What kind of error.
    pub code: AttachErrorCode,
    /// What is wrong.
    pub message: String,
    /// The field of the request that it is about; empty: none.
    pub field: String,
    /// What to do.
    pub remedy: String,
}

impl AttachError {
    /// An error of a kind.
    pub fn new(code: AttachErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: String::new(), remedy: String::new() }
    }

    /// With the field of the request that it is about.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

impl PodName {
    /// Whether a pod is to be captured.
    ///
    /// # Errors
    /// It is outside the mesh; or, which is another thing, it cannot be told who it is.
    pub fn to_be_captured(&self, known: &WorkloadInfo) -> Result<(), AttachError> {
        let in_doubt = |why: &str, remedy: &str| {
            let message = format!("it cannot be told who {self} is: {why}");
            Err(AttachError::new(AttachErrorCode::InDoubt, message).field("name").remedy(remedy))
        };
        match known.standing {
            Standing::Meshed => Ok(()),
            Standing::Plain | Standing::HostNetwork => {
                let error =
                    AttachError::new(AttachErrorCode::NotMeshed, format!("{self} is not in the mesh"));
                Err(error.field("name").remedy("annotate it or its namespace with heddle.io/mesh: enabled"))
            }
            Standing::Finished => in_doubt("it has ended", "attach pods that run"),
            Standing::NoAddress => in_doubt("it has no address", "write status.podIPs, or wait for it"),
            Standing::Contested => in_doubt(
                "another pod claims its address",
                "wait until the pod that is gone is gone everywhere",
            ),
            Standing::NoIdentity => {
                in_doubt("its name makes no identity", "choose a shorter account or namespace")
            }
        }
    }
}

/// An error's JSON.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ErrorBody {
    pub(crate) error: String,
    pub(crate) code: String,
    pub(crate) field: String,
    pub(crate) remedy: String,
}

/// A captured pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its network namespace's path.
    pub netns: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its identity.
    pub identity: String,
    /// Whether capture and guard are in force, as seen in the kernel.
    pub in_force: bool,
    /// What is wrong with it; empty: nothing.
    pub problems: Vec<String>,
    /// What was taken away behind the agent's back lately, and whether it could be put back.
    pub repairs: Vec<RepairStatus>,
}

/// Something of a pod's capture was taken away behind the agent's back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairStatus {
    /// When it was seen.
    #[serde(with = "rfc3339")]
    pub time: OffsetDateTime,
    /// What was missing.
    pub missing: Vec<String>,
    /// Why it could not be put back; absent: it is in force again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What is in force and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The version of the maps' layout, as in the pins' path.
    pub schema: u32,
    /// The node's name.
    pub node: String,
    /// The agent's process.
    pub pid: u32,
    /// When it started.
    #[serde(with = "rfc3339")]
    pub started: OffsetDateTime,
    /// Which rules are in force where.
    pub rules: Publication,
    /// What is in force from the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifests: Option<FolderStatus>,
    /// What is in force from the API server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
    /// What is wrong with the resources in force.
    pub problems: Vec<Problem>,
    /// The pods that are captured.
    pub pods: Vec<PodStatus>,
    /// What was asked at the door; the server fills it in.
    pub door: BTreeMap<String, u64>,
}

/// The rules in force, as they are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyInForce {
    /// The node's name.
    pub node: String,
    /// The generation of the rules in force; 0: none are.
    pub generation: u64,
    /// What holds for the whole cluster and stands in no manifest.
    pub settings: PolicySettings,
    /// The files in force: of a file that is broken now, its last good text.
    pub files: Vec<ManifestText>,
}

/// A file's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestText {
    /// Its path.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// The agent's settings that rules depend on, named as in its configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct PolicySettings {
    pub cluster_networks: Vec<IpNet>,
    pub pod_networks: Vec<IpNet>,
    /// The nodes' networks.
    #[serde(default)]
    pub node_networks: Vec<IpNet>,
    pub service_networks: Vec<IpNet>,
    pub default_inbound_policy: String,
    pub default_outbound: DefaultOutbound,
    pub same_node: SameNode,
    pub trust_domain: String,
    pub identity_namespace: String,
    pub dns_service: String,
    #[serde(default)]
    pub linkerd_inject: bool,
    /// Other trust domains whose workloads are believed.
    #[serde(default)]
    pub federated: Vec<String>,
}

impl From<&ClusterSettings> for PolicySettings {
    fn from(it: &ClusterSettings) -> Self {
        Self {
            cluster_networks: it.cluster_networks.clone(),
            pod_networks: it.pod_networks.clone(),
            node_networks: it.node_networks.clone(),
            service_networks: it.service_networks.clone(),
            default_inbound_policy: it.default_inbound_policy.as_str().to_owned(),
            default_outbound: it.default_outbound,
            same_node: it.same_node,
            trust_domain: it.naming.trust_domain().to_owned(),
            identity_namespace: it.naming.identity_namespace().to_owned(),
            dns_service: it.dns_service.to_string(),
            linkerd_inject: it.linkerd_inject,
            federated: it.federated.clone(),
        }
    }
}

impl PolicySettings {
    /// As policy takes them.
    ///
    /// # Errors
    /// Says which of them is not what it should be.
    pub fn cluster_settings(&self) -> Result<ClusterSettings, String> {
        let (namespace, name) = self.dns_service.split_once('/').ok_or("dnsService is no namespace/name")?;
        Ok(ClusterSettings {
            cluster_networks: self.cluster_networks.clone(),
            pod_networks: self.pod_networks.clone(),
            node_networks: self.node_networks.clone(),
            service_networks: self.service_networks.clone(),
            default_inbound_policy: self.default_inbound_policy.parse().map_err(
                |error: heddle_policy::resources::NotAPolicy| format!("defaultInboundPolicy {error}"),
            )?,
            default_outbound: self.default_outbound,
            same_node: self.same_node,
            naming: IdentityNaming::new(&self.identity_namespace, &self.trust_domain)
                .map_err(|error| format!("trustDomain or identityNamespace {error}"))?,
            dns_service: ObjectName::new(namespace, name),
            endpoints: heddle_policy::EndpointSource::default(),
            linkerd_inject: self.linkerd_inject,
            federated: self.federated.clone(),
        })
    }
}

/// A trust anchor in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnchorStatus {
    /// Its subject.
    pub subject: String,
    /// SHA-256 of it, in hexadecimal.
    pub fingerprint: String,
    /// It, in PEM.
    pub pem: String,
    /// When it expires.
    #[serde(with = "rfc3339")]
    pub expires: OffsetDateTime,
}

/// An identity that this node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    /// The DNS form.
    pub identity: String,
    /// The pods that have it, as `namespace/name`.
    pub pods: Vec<String>,
    /// Its certificate; absent: there is none yet.
    pub certificate: Option<CertificateStatus>,
    /// How many renewals have failed since the last that did not.
    pub failures: u32,
    /// Why the last one failed; empty: it did not.
    pub error: String,
    /// When the next is asked for.
    #[serde(with = "rfc3339")]
    pub next_renewal: OffsetDateTime,
}

/// A certificate in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// Its serial number.
    pub serial: String,
    /// From when it is valid.
    #[serde(with = "rfc3339")]
    pub issued: OffsetDateTime,
    /// Until when.
    #[serde(with = "rfc3339")]
    pub expires: OffsetDateTime,
    /// When it was obtained.
    #[serde(with = "rfc3339")]
    pub obtained: OffsetDateTime,
    /// Who signed it.
    pub issuer: String,
    /// The fingerprint of the anchor that it rests on; empty: none that is in force.
    pub anchor: String,
    /// It and its intermediates, in PEM.
    pub chain: String,
}

/// Every identity of a node and what it trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identities {
    /// The identities.
    pub identities: Vec<IdentityStatus>,
    /// What is trusted.
    pub anchors: Vec<AnchorStatus>,
    /// What is trusted of other trust domains, by their names.
    #[serde(default)]
    pub federated: std::collections::BTreeMap<String, Vec<AnchorStatus>>,
    /// The revocation lists in force, in PEM.
    #[serde(default)]
    pub revocation_lists: Vec<String>,
    /// SPIRE makes the certificates: what is believed of them differs.
    #[serde(default)]
    pub by_spire: bool,
    /// Why the trust bundle on disk is not in force; absent: it is.
    pub stale: Option<String>,
    /// What should be looked at, in words; empty: nothing.
    pub warnings: Vec<String>,
}
