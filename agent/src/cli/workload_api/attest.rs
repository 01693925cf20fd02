//! Whose process a caller is: told by the kernel in three ways that must agree.
//!
//! 1. The network namespace that its socket was made in (`SO_NETNS_COOKIE` of the accepted socket): a captured pod's. No
//!    reuse of a process id changes it.
//! 2. The network namespace that its process is in now: the same.
//! 3. Its process's cgroup: the one that bears that pod's UID, as the kubelet names pods' cgroups. So whoever entered a
//!    pod's network namespace from outside, from the host or from another pod, is not that pod.
//!
//! The second and the third are read of a process that is pinned ([`Peer`]).

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use heddle_identity::IdentityName;
use heddle_policy::uid_digest;
use tokio::{net::UnixStream, sync::watch};

use crate::{
    capture::{Namespace, netns_cookie},
    cli::{cgroup, peer::Peer},
};

/// The captured pods of this node.
pub trait Pods: Send + Sync + 'static {
    /// The pod whose network namespace has this cookie.
    fn pod(&self, cookie: u64) -> Option<Pod>;
    /// Tells when pods came or went.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// A captured pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// `namespace/name`.
    pub name: Arc<str>,
    /// The digest of its UID.
    pub uid: u64,
    /// Who it is.
    pub identity: IdentityName,
    /// Its network namespace.
    pub namespace: Namespace,
}

/// Why a caller is nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its process has ended, or cannot be seen from here.
    #[error("the calling process is gone or cannot be seen from the agent's pid namespace")]
    Gone,
    /// Its socket is of no captured pod's network namespace: the host's, an unmeshed pod's, one made in a pod.
    #[error("the caller is in no network namespace of a meshed pod on this node")]
    NoPod,
    /// Its socket was made in another network namespace than its process is in.
    #[error("the caller's socket and process are in different network namespaces")]
    OtherNamespace,
    /// Its cgroup is not the pod's: it has entered the pod's network namespace from elsewhere.
    #[error("the caller's cgroup does not belong to the pod whose network namespace it is in")]
    OtherCgroup,
}

impl Refusal {
    /// As counters name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::NoPod => "no_pod",
            Self::OtherNamespace => "other_namespace",
            Self::OtherCgroup => "other_cgroup",
        }
    }
}

/// A caller, as the kernel knows it.
#[derive(Debug)]
pub(super) struct Caller {
    peer: Peer,
    cookie: u64,
    known: Arc<AtomicBool>,
}

impl Caller {
    /// Of a connection that was accepted just now.
    pub(super) fn of(stream: &UnixStream) -> Result<Self, Refusal> {
        let cookie = netns_cookie(stream).map_err(|_| Refusal::NoPod)?;
        let peer = Peer::of(stream).ok_or(Refusal::Gone)?;
        Ok(Self { peer, cookie, known: Arc::default() })
    }

    /// It has been attested for a call: its connection may stay.
    pub(super) fn keep(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Whether it has ever been.
    pub(super) fn is_kept(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.known)
    }

    /// Tells callers apart, whoever they are.
    pub(super) const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Its process.
    pub(super) const fn pid(&self) -> u32 {
        self.peer.pid()
    }

    /// The pod that it is a process of, now.
    pub(super) fn attest(&self, pods: &impl Pods) -> Result<Pod, Refusal> {
        let pod = pods.pod(self.cookie).ok_or(Refusal::NoPod)?;
        let process = format!("/proc/{}", self.peer.pid());
        let process = Path::new(&process);
        let within = pod.namespace.holds(process);
        let cgroups = std::fs::read_to_string(process.join("cgroup"));
        // Still the same process: what was read was its own.
        if !self.peer.is_alive() {
            return Err(Refusal::Gone);
        }
        if !within {
            return Err(Refusal::OtherNamespace);
        }
        let cgroups = cgroups.map_err(|_| Refusal::Gone)?;
        if is_of(&cgroups, &pod) { Ok(pod) } else { Err(Refusal::OtherCgroup) }
    }
}

/// Whether `/proc/<pid>/cgroup` names the pod, in one hierarchy at least, and no other pod in any.
fn is_of(cgroups: &str, pod: &Pod) -> bool {
    let Some((namespace, name)) = pod.name.split_once('/') else { return false };
    let mut uids = cgroup::pod_uids(cgroups).peekable();
    uids.peek().is_some() && uids.all(|uid| uid_digest(namespace, name, &uid) == pod.uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_identity::IdentityNaming;

    const UID: &str = "0b9b3c1e-52cf-4e0c-9a5f-9d1b6a7c2f10";
    const OTHER: &str = "11111111-52cf-4e0c-9a5f-9d1b6a7c2f10";

    fn pod() -> Pod {
        Pod {
            name: "shop/web".into(),
            uid: uid_digest("shop", "web", UID),
            identity: IdentityNaming::default().name("shop", "web").unwrap(),
            namespace: Namespace::own().unwrap(),
        }
    }

    #[test]
    fn a_cgroup_names_its_pod_in_every_form_that_runtimes_have() {
        let slice = UID.replace('-', "_");
        for path in [
            format!("0::/kubepods/burstable/pod{UID}/4f2a"),
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice}.slice/cri-containerd-4f2a.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{slice}.slice/crio-4f2a.scope/container"),
            // Seen from a container's own cgroup namespace.
            format!("0::/../../pod{UID}/4f2a"),
            // Version 1 beside version 2.
            format!("12:cpu,cpuacct:/kubepods/pod{UID}/4f2a\n1:name=systemd:/kubepods/pod{UID}/4f2a\n0::/"),
            // A container's own cgroups are its own business.
            format!("0::/kubepods/pod{UID}/4f2a/pod{OTHER}"),
        ] {
            assert!(is_of(&path, &pod()), "{path}");
        }
    }

    #[test]
    fn whatever_names_no_pod_or_another_is_refused() {
        for path in [
            String::new(),
            "0::/".to_owned(),
            "0::/user.slice/user-0.slice/session-1.scope".to_owned(),
            format!("0::/kubepods/pod{OTHER}/4f2a"),
            format!("0::/kubepods/pod{OTHER}/pod{UID}"),
            format!("0::/kubepods/pod{UID}x"),
            format!("0::/kubepods/xpod{UID}"),
            "0::/machine.slice/podman-1.scope".to_owned(),
            // One hierarchy says so, another says otherwise.
            format!("1:cpu:/kubepods/pod{UID}/4f2a\n0::/kubepods/pod{OTHER}/4f2a"),
        ] {
            assert!(!is_of(&path, &pod()), "{path}");
        }
        let renamed = Pod { name: "shop/db".into(), ..pod() };
        assert!(!is_of(&format!("0::/pod{UID}"), &renamed), "the digest is of name and UID");
    }
}
