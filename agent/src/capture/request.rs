//! What asks to be captured, what comes of it, and why it may be refused.

use std::{collections::HashSet, net::IpAddr, path::PathBuf};

use heddle_ebpf::attach::MAX_PODS;

use super::{error::CaptureError, listeners::PodListener, pod::CapturedPod};

/// A pod that asks to be captured, as the cluster knows it.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The digest of its UID that the tables bear.
    pub uid: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports that it declares, which no listener takes.
    pub ports: HashSet<u16>,
    /// Where its network namespace is.
    pub netns: PathBuf,
    /// It runs already: what it has open goes on until it has settled.
    pub running: bool,
}

/// Why a pod is not captured.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AttachRefusal {
    #[error("{0} is no network namespace that can be entered: {1}")]
    NoNamespace(PathBuf, CaptureError),
    #[error("{0} is the host's own network namespace")]
    HostNamespace(PathBuf),
    #[error("{path} is already attached to pod {pod}")]
    OtherPod { path: PathBuf, pod: String },
    #[error("pod {pod} is already attached with another network namespace, {path}")]
    OtherNamespace { pod: String, path: PathBuf },
    #[error("the namespace has the addresses {found:?}, the pod has {expected:?}")]
    Addresses { found: Vec<IpAddr>, expected: Vec<IpAddr> },
    #[error("interface {0} leads out of the pod past any veth of this host, where nothing could guard it")]
    Interface(String),
    #[error("the namespace has no veth whose other end is in the agent's network namespace")]
    NoVeth,
    #[error("{pod} is too long: a pod is known by {at_most} bytes of `namespace/name`")]
    LongName { pod: String, at_most: usize },
    #[error("this node holds {MAX_PODS} captured pods, which is all it can")]
    Full,
    #[error("another agent takes over from this one, or has")]
    Succeeded,
    #[error(transparent)]
    Kernel(#[from] CaptureError),
}

/// A fresh capture, with the sockets on which the data plane accepts.
#[derive(Debug)]
pub struct Attachment {
    /// The pod.
    pub pod: CapturedPod,
    /// Its listeners; empty when the pod was captured before.
    pub listeners: Vec<PodListener>,
    /// Whether nobody had captured it before, an earlier agent neither.
    pub fresh: bool,
}
